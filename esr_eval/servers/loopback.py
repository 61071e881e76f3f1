"""What every server on loopback needs: an environment of its own, and programs that run.

uv makes the environment from a project file of this package; supervisor starts the programs, keeps
their logs, knows them by their ids, and ends them.
"""

import json
import os
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import xmlrpc.client
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cached_property
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any, ClassVar

import httpx
import psutil  # type: ignore[import-untyped]

from esr_eval._util.files import write_whole
from esr_eval._util.paths import cache_root
from esr_eval.backends.remote import is_loopback_host
from esr_eval.errors import EsrError
from esr_eval.spec import fingerprint

LOOPBACK = "127.0.0.1"
POLL_SECONDS = 0.1
END_SECONDS = 30.0
LOG_LINES = 20
SAME_AS_HERE = ("nnsight", "torch", "transformers", "tokenizers", "peft", "numpy", "safetensors")
"""Packages whose versions a project file may take from this environment."""
NOT_PASSED_ON = {"VIRTUAL_ENV", "PYTHONPATH", "UV_PROJECT_ENVIRONMENT"}
"""Environment variables that would point another Python at this one's packages."""
SUPERVISORD = """\
[unix_http_server]
file=%(ENV_ESR_SOCKET)s
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[supervisord]
logfile=%(here)s/supervisord.log
pidfile=%(here)s/supervisord.pid
"""
PROGRAM = """\
[program:{name}]
command=%(ENV_ESR_COMMAND_{name})s
autostart=false
autorestart=false
startsecs=0
startretries=0
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile=%(here)s/{name}.log
stdout_logfile_backups=1
"""


class LoopbackServer(ABC):
    """A server on this machine: install, start, ask, break and stop it."""

    name: ClassVar[str]
    main: ClassVar[str]
    """The program that has the HTTP interface."""

    def __init__(self, folder: Path | None = None) -> None:
        """Look at what runs already.

        Args:
            folder: Where logs and records lie; None: the user's cache.
        """
        self.project = cache_root() / "servers" / self.name
        self._venv = self.project / ".venv"
        self.folder = folder or self.project / "run"

    @property
    def project_file(self) -> str:
        """Name of the project file in this package that says what is installed."""
        return f"{self.name}.toml"

    def install(self, say: Callable[[str], None] = print) -> None:
        """Make the server's environment; seconds when it is there already.

        Args:
            say: Told what goes on.

        Raises:
            EsrError: uv is missing, or cannot make it.
        """
        if self._is_installed():
            say(f"{self.name}: already installed in {self.project}")
            return
        say(f"{self.name}: installing into {self.project}")
        if not self._is_wanted():  # a lock file of other versions would pass for theirs
            (self.project / "uv.lock").unlink(missing_ok=True)
            write_whole(self.project / "pyproject.toml", self._wanted().encode())
        if not self._is_whole():
            shutil.rmtree(self._venv, ignore_errors=True)
        done = self._sync()
        if done.returncode != 0:
            told = "\n".join(done.stderr.splitlines()[-15:])
            raise EsrError(f"uv could not install the {self.name} server:\n{told}")

    def python(self) -> Path:
        """The Python of the server's environment.

        Raises:
            EsrError: It is not installed, or damaged, or has other versions.
        """
        if not self._is_installed():
            raise EsrError(
                f"The {self.name} server is not installed yet (or damaged, or in another version): "
                f"run `esr-eval serve {self.name} install` first."
            )
        return self._venv / "bin" / "python"

    @property
    def facts(self) -> dict[str, Any]:
        """What was written down when it was started."""
        file = self.folder / "facts.json"
        return dict(json.loads(file.read_text("utf-8"))) if file.is_file() else {}

    @property
    def running(self) -> bool:
        """Whether its HTTP interface lives; it may not answer yet."""
        return self.alive(self.main)

    @property
    def url(self) -> str:
        """Address of the HTTP interface.

        Raises:
            EsrError: No server has been started.
        """
        return f"http://{LOOPBACK}:{self.port(self.main)}"

    def port(self, program: str) -> int:
        """Port of one of its programs.

        Raises:
            EsrError: No server has been started.
        """
        if "ports" not in self.facts:
            raise EsrError(
                f"No {self.name} server has been started here: `esr-eval serve {self.name} start`."
            )
        return int(self.facts["ports"][program])

    def remember(self, **facts: Any) -> None:
        """Write facts (JSON values) down, in the place of those of the last start."""
        write_whole(self.folder / "facts.json", json.dumps(facts, indent=1).encode())

    def alive(self, program: str) -> bool:
        """Whether a program runs."""
        return self._states().get(program, {}).get("statename") in {"STARTING", "RUNNING"}

    def bring_back(self) -> None:
        """Start whatever does not run as it was started last, on the same ports.

        Raises:
            EsrError: Something does not start, or listens beyond this machine.
        """
        try:
            self.bring_up()
        except BaseException:  # nobody would find a server that never became ready
            self.stop()
            raise
        self.check_loopback()

    @abstractmethod
    def bring_up(self) -> None:
        """Start what does not run, and wait for it.

        Raises:
            EsrError: Something is not installed, or does not start.
        """

    def supervise(self, commands: Mapping[str, Sequence[str]], env: Mapping[str, str]) -> None:
        """Have programs known, to be started one by one, unless they are already.

        Args:
            commands: Program and arguments, by name.
            env: Their whole environment.

        Raises:
            EsrError: supervisor is missing, or does not start.
        """
        if self._states():
            return
        file = self.folder / "supervisord.conf"
        programs = [PROGRAM.format(name=name) for name in commands]
        write_whole(file, "".join([SUPERVISORD, *programs]).encode())
        # In the environment a command needs no quoting for that file.
        given = {f"ESR_COMMAND_{name}": shlex.join(words) for name, words in commands.items()}
        given["ESR_SOCKET"] = str(self._socket)
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(file)],
            env={**env, **given},
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise EsrError(f"supervisor, which runs the server, does not start: {done.stderr}")

    def start_programs(self, *names: str) -> None:
        """Start those of the programs that do not run.

        Raises:
            EsrError: One cannot be run at all.
        """
        for name in names:
            if not self.alive(name):
                try:
                    self._ask().startProcess(name)
                except xmlrpc.client.Fault as fault:
                    raise EsrError(
                        f"The server process '{name}' cannot be run: {fault.faultString}"
                    ) from None

    def wait(self, program: str, ready: Callable[[], bool], seconds: float) -> None:
        """Wait until a program answers.

        Args:
            program: Which.
            ready: Asks it.
            seconds: Longest wait.

        Raises:
            EsrError: It ended or did not answer in time; its last lines are quoted.
        """
        deadline = time.monotonic() + seconds
        while True:
            ended = not self.alive(program)
            if ready():
                return
            if ended or time.monotonic() > deadline:
                how = "ended" if ended else f"did not answer within {seconds:.0f} s"
                log = self.folder / f"{program}.log"
                lines = log.read_text("utf-8", errors="replace").splitlines()[-LOG_LINES:]
                raise EsrError(
                    f"The server process '{program}' {how}. Its last lines ({log}):\n"
                    + "\n".join(lines)
                )
            time.sleep(POLL_SECONDS)

    def succeeded(self, program: str) -> bool:
        """Whether a program has done its work and ended without a failure."""
        state = self._states().get(program, {})
        return state.get("statename") == "EXITED" and state["exitstatus"] == 0

    def members(self, program: str | None = None) -> list[psutil.Process]:
        """A program (all of them, and what supervises them, without a name) with its children."""
        states = self._states()
        if not states:
            return []
        pid = self._ask().getPID() if program is None else states[program]["pid"]
        try:
            process = psutil.Process(pid) if pid else None
            return [process, *process.children(recursive=True)] if process else []
        except psutil.NoSuchProcess:
            return []

    def kill(self, program: str | None = None) -> None:
        """Kill a program, or all, at once, as a crash or a power cut would."""
        _end(self.members(program), seconds=0.0)
        while program is not None and self.alive(program):  # until supervisor has noticed
            time.sleep(POLL_SECONDS)

    def stop(self) -> None:
        """End everything that was started."""
        members = self.members()
        if members:
            with suppress(OSError, xmlrpc.client.Error):  # it is ending already
                self._ask().shutdown()
        _end(members, END_SECONDS)

    def listening(self) -> list[tuple[str, int]]:
        """Addresses and ports on which the programs accept connections."""
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
        open_to_all = [f"{ip}:{port}" for ip, port in self.listening() if not is_loopback_host(ip)]
        if open_to_all:
            self.stop()
            raise EsrError(
                f"The server listened on {', '.join(open_to_all)}, beyond this machine's loopback "
                "address, and has been stopped. Please report it with the server's versions."
            )

    @cached_property
    def _socket(self) -> Path:
        """Supervisor's socket: its path may have some 100 characters, and a cache's has more.

        Raises:
            EsrError: The folder for it belongs to somebody else.
        """
        folder = Path(tempfile.gettempdir()) / f"esr-eval-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise EsrError(f"{folder} is not this user's own folder: remove it.")
        return folder / f"{fingerprint({'folder': str(self.folder.resolve())})}.sock"

    def _wanted(self) -> str:
        text = (resources.files(__package__) / self.project_file).read_text("utf-8")
        # Wheels say on which hardware they run after a plus sign; indexes need not.
        return Template(text).substitute({p: version(p).partition("+")[0] for p in SAME_AS_HERE})

    def _is_wanted(self) -> bool:
        file = self.project / "pyproject.toml"
        return file.is_file() and file.read_text("utf-8") == self._wanted()

    def _is_whole(self) -> bool:
        """Whether what uv takes for granted is there."""
        return all((self._venv / name).is_file() for name in ("bin/python", "pyvenv.cfg"))

    def _is_installed(self) -> bool:
        return (
            self._is_wanted()
            and self._is_whole()
            and self._sync("--check", "--frozen", "--offline").returncode == 0
        )

    def _sync(self, *options: str) -> subprocess.CompletedProcess[str]:
        env = plain_env()
        # uv looks on PATH, where pyenv's versions need not be.
        pyenv = sorted((Path.home() / ".pyenv" / "versions").glob("3.*/bin"))
        env["PATH"] = os.pathsep.join([env.get("PATH", ""), *map(str, pyenv)])
        return subprocess.run(  # noqa: S603
            [_uv(), "sync", "--project", str(self.project), *options],
            env=env,
            capture_output=True,
            text=True,
        )

    def _ask(self) -> Any:
        """Supervisor's interface, on a socket that only this user may open."""
        from supervisor.xmlrpc import SupervisorTransport

        at = SupervisorTransport(serverurl=f"unix://{self._socket}")
        return xmlrpc.client.ServerProxy("http://127.0.0.1", transport=at).supervisor

    def _states(self) -> dict[str, dict[str, Any]]:
        """What supervisor tells of each program; nothing when it does not run."""
        if not self._socket.exists():
            return {}
        try:
            return {state["name"]: state for state in self._ask().getAllProcessInfo()}
        except (OSError, xmlrpc.client.Error):  # a socket that was left behind, or it is ending
            return {}


def plain_env() -> dict[str, str]:
    """This environment without what would point another Python at this one's packages."""
    return {k: v for k, v in os.environ.items() if k not in NOT_PASSED_ON}


def free_ports(count: int) -> list[int]:
    """Ports of the loopback address that nothing listens on at the moment, all different."""
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [int(one.getsockname()[1]) for one in sockets]


def port_open(port: int) -> bool:
    """Whether something on this machine accepts connections on a port."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((LOOPBACK, port)) == 0


def http_ok(url: str) -> bool:
    """Whether a URL of this machine answers with a success status."""
    try:
        # A proxy of the environment knows nothing of this machine's loopback address.
        return httpx.get(url, trust_env=False, timeout=5.0).is_success
    except httpx.HTTPError:
        return False


def _end(processes: list[psutil.Process], seconds: float) -> None:
    """Wait until processes end; kill those that do not, with what they were just starting."""
    _, left = psutil.wait_procs(processes, timeout=seconds)
    late: list[psutil.Process] = []
    for process in left:  # what stands still starts nothing more
        with suppress(psutil.NoSuchProcess):
            process.suspend()
            late += process.children(recursive=True)
    for process in (left := [*left, *late]):
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=END_SECONDS)


def _uv() -> str:
    try:
        import supervisor  # noqa: F401
        from uv import find_uv_bin

        return find_uv_bin()
    except (ImportError, FileNotFoundError):
        raise EsrError(
            "Servers need uv and supervisor, which are not there: install the extra `serve` of "
            "this package (docs/remote.md)."
        ) from None
