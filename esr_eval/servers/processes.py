"""Processes of a server: started, recorded, waited for, and ended, by their ids alone.

What runs is written down beside the logs, so that another command can stop it. A process id says
little by itself, as the system hands it out anew: each is recorded with the time it started, and
each process carries a mark in its environment that its children inherit.
"""

import json
import os
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]

from esr_eval._util.files import write_whole
from esr_eval.errors import EsrError

LOOPBACK = "127.0.0.1"
MARK = "ESR_EVAL_SERVER"
"""Environment variable by which a server's processes know each other."""
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Record:
    """One started process: its id, when it started (epoch seconds), its mark and its log."""

    pid: int
    started: float
    mark: str
    log: str


class Processes:
    """The processes of one server, with their logs and facts such as ports."""

    def __init__(self, folder: Path) -> None:
        """Read what is recorded in a folder, which need not exist yet."""
        self.folder = folder
        self._file = folder / "processes.json"
        self._records: dict[str, Record] = {}
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.facts: dict[str, Any] = {}
        if self._file.is_file():
            stored = json.loads(self._file.read_text("utf-8"))
            self._records = {n: Record(**r) for n, r in stored["processes"].items()}
            self.facts = stored["facts"]

    @property
    def names(self) -> list[str]:
        """What has been started and not been stopped, in the order of starting."""
        return list(self._records)

    def start(self, name: str, command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
        """Start a command in a session of its own, its output in `NAME.log`.

        Args:
            name: Name within this server; one that still runs is stopped first.
            command: Program and arguments.
            env: The whole environment; None passes this process's on.

        Returns:
            The process id.
        """
        if name in self._records:
            self.stop(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = f"{name}-{uuid.uuid4().hex}"
        log = self.folder / f"{name}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(  # noqa: S603 - the caller's own command
                list(command),
                env={**(os.environ if env is None else env), MARK: mark},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._children[name] = process
        try:
            started = psutil.Process(process.pid).create_time()
        except psutil.NoSuchProcess:  # gone already: `wait` tells why, from its log
            started = time.time()
        self._records[name] = Record(process.pid, started, mark, str(log))
        self._save()
        return process.pid

    def remember(self, **facts: Any) -> None:
        """Write facts down (JSON values) beside the processes."""
        self.facts |= facts
        self._save()

    def alive(self, name: str) -> bool:
        """Whether a recorded process still runs."""
        record = self._records.get(name)
        return record is not None and _leader(record) is not None

    def wait(self, name: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until a server answers.

        Args:
            name: The process that is to answer.
            ready: Asks it.
            seconds: Longest wait.

        Raises:
            EsrError: It ended or did not answer in time; its last lines are quoted.
        """
        deadline = time.monotonic() + seconds
        while not ready():
            ended = not self.alive(name)
            if ended or time.monotonic() > deadline:
                how = "ended" if ended else f"did not answer within {seconds:.0f} s"
                raise EsrError(
                    f"The server process '{name}' {how}. Its last lines "
                    f"({self._records[name].log}):\n{self.tail(name)}"
                )
            time.sleep(POLL_SECONDS)

    def finish(self, name: str, seconds: float) -> None:
        """Wait until a process has done its work and ended.

        Args:
            name: Which; it is forgotten afterwards.
            seconds: Longest wait.

        Raises:
            EsrError: It failed or took longer; its last lines are quoted.
        """
        deadline, code = time.monotonic() + seconds, None
        while (code := self._children[name].poll()) is None and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if code != 0:
            how = f"took longer than {seconds:.0f} s" if code is None else f"failed ({code})"
            said = self.tail(name)
            self.stop(name)
            raise EsrError(f"The server process '{name}' {how}. Its last lines:\n{said}")
        del self._records[name]
        self._save()

    def tail(self, name: str, lines: int = 20) -> str:
        """Last lines of a process's log."""
        log = Path(self._records[name].log)
        text = log.read_text("utf-8", errors="replace") if log.is_file() else ""
        return "\n".join(text.splitlines()[-lines:])

    def members(self, *names: str) -> list[psutil.Process]:
        """The named processes (all without a name) and whatever they have started."""
        records = [self._records[n] for n in names or self._records if n in self._records]
        marks = {record.mark for record in records}
        sessions = {record.pid for record in records if _leader(record) is not None}
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if os.getsid(process.pid) in sessions or _mark(process) in marks:
                    found[process.pid] = process
                    found |= {child.pid: child for child in process.children(recursive=True)}
        found.pop(os.getpid(), None)
        return list(found.values())

    def stop(self, *names: str, grace: float = 10.0, kill: bool = False) -> None:
        """End the named processes (all without a name) and whatever they have started.

        Args:
            names: Which; the last started ends first.
            grace: Seconds to end by themselves before they are killed.
            kill: Kill at once, as a crash would.
        """
        members = self.members(*names)
        for process in members:
            with suppress(psutil.Error):
                process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        _, left = psutil.wait_procs(members, timeout=grace)
        # Whoever was just being started when the others were told is found now.
        for process in {*left, *self.members(*names)}:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=grace)
        for name in names or self.names:
            self._records.pop(name, None)
            if child := self._children.pop(name, None):
                child.poll()  # takes note of its end, or it would stay behind as a zombie
        self._save()

    def listening(self) -> list[tuple[str, int]]:
        """Addresses and ports on which these processes accept connections."""
        found = set()
        for process in self.members():
            with suppress(psutil.Error):
                for one in process.net_connections(kind="inet"):
                    if one.status == psutil.CONN_LISTEN:
                        found.add((str(one.laddr.ip), int(one.laddr.port)))
        return sorted(found)

    def check_loopback(self) -> None:
        """Stop everything when something listens beyond this machine.

        Raises:
            EsrError: Something does.
        """
        open_to_all = [f"{ip}:{port}" for ip, port in self.listening() if not _is_loopback(ip)]
        if open_to_all:
            self.stop()
            raise EsrError(
                f"The server listened on {', '.join(open_to_all)}, beyond this machine's loopback "
                "address, and has been stopped. Please report it with the server's versions."
            )

    def _save(self) -> None:
        stored = {
            "processes": {name: asdict(record) for name, record in self._records.items()},
            "facts": self.facts,
        }
        write_whole(self._file, json.dumps(stored, indent=1).encode())


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nothing listens on at the moment, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def port_open(port: int) -> bool:
    """Whether something on this machine accepts connections on a port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def http_ok(url: str, seconds: float = 5.0) -> bool:
    """Whether a URL of this machine answers with a success status."""
    try:
        # A proxy of the environment knows nothing of this machine's loopback address.
        with httpx.Client(trust_env=False, timeout=seconds) as client:
            return client.get(url).is_success
    except httpx.HTTPError:
        return False


def _leader(record: Record) -> psutil.Process | None:
    try:
        process = psutil.Process(record.pid)
        same = abs(process.create_time() - record.started) < 1.0
        return process if same and process.status() != psutil.STATUS_ZOMBIE else None
    except psutil.Error:
        return None


def _mark(process: psutil.Process) -> str | None:
    value: str | None = process.environ().get(MARK)
    return value


def _is_loopback(ip: str) -> bool:
    return ip.startswith("127.") or ip in {"::1", "::ffff:127.0.0.1"}
