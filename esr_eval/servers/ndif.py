"""A real NDIF server on this machine, CPU only and on loopback, to try the remote path with.

NDIF is several programs: redis holds the queue, an S3 store the results, Ray the model, a
gunicorn the HTTP interface. All of them listen on 127.0.0.1 alone.
"""

import json
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]

from esr_eval.errors import EsrError
from esr_eval.servers import environment
from esr_eval.servers.processes import LOOPBACK, LoopbackServer, free_ports, http_ok, port_open
from esr_eval.subjects import find_subject

NAME = "ndif"
NDIF = "ndif[api,ray]==0.1.2"
SAME_AS_HERE = ("nnsight", "torch", "transformers", "tokenizers", "peft", "numpy", "safetensors")
"""Packages that decide tokens: the server gets this environment's versions."""
SERVER_FILE = "esr_eval_ndif_server"
WRAPPER = "nnsight.modeling.transformers.TransformersModel"
START_SECONDS = 120.0
DEPLOY_SECONDS = 300.0
RAY_BYTES = {"cuda_memory_bytes": 8_000_000_000, "cpu_memory_bytes": 8_000_000_000, "head": 10}
OBJECT_STORE_BYTES = 200_000_000


def requirements() -> list[str]:
    """What the server's environment holds."""
    found = [NDIF, "moto[server]==5.2.5"]
    for package in SAME_AS_HERE:
        try:
            # Wheels say on which hardware they run after a plus sign; indexes need not.
            found.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return found


def install(say: Callable[[str], None] = print) -> None:
    """Make the server's environment; seconds when it is there already.

    Raises:
        EsrError: It cannot be made.
    """
    environment.install(NAME, requirements(), say=say)
    _redis()


class NDIFServer(LoopbackServer):
    """The NDIF server: redis, an object store, Ray, its controller and its API."""

    name, main = NAME, "api"

    def start(
        self,
        subject: str = "smollm2-135m",
        *,
        port: int | None = None,
        dtype: str | None = None,
        sandbox: bool = False,
        say: Callable[[str], None] = print,
    ) -> str:
        """Start everything, deploy a model, and wait until it is ready.

        Args:
            subject: Name, hub id or path of the subject.
            port: Port of the HTTP interface on 127.0.0.1; None takes a free one.
            dtype: float32, bfloat16 or float16; None takes the subject's.
            sandbox: Run each request's code in a process of its own, as NDIF itself does; slower.
            say: Told what goes on.

        Returns:
            The server's address.

        Raises:
            EsrError: Something is not installed or does not start.
        """
        from esr_eval.model.loading import model_source

        began = time.monotonic()
        environment.server_python(NAME, requirements())
        runtime = find_subject(subject).runtime()
        source, _ = model_source(runtime)
        self.processes.stop()
        names = ("api", "redis", "s3", "ray", "ray_client", "ray_dashboard")
        ports = dict(zip(names, free_ports(len(names)), strict=True))
        ports["api"] = port or ports["api"]
        self.processes.remember(
            ports=ports, model=str(source), dtype=dtype or runtime.dtype, sandbox=sandbox
        )
        self._start_all()
        say(f"ndif: {subject} answers at {self.url} after {time.monotonic() - began:.0f} s")
        return self.url

    def bring_back(self) -> None:
        """Start whatever does not run, on the same ports, with the same model.

        Raises:
            EsrError: Something does not start.
        """
        self._start_all()

    def check(self) -> str:
        """One line on whether the server can be used.

        Raises:
            EsrError: It cannot.
        """
        url = self.url
        if not http_ok(f"{url}/connected"):
            raise EsrError(f"The NDIF server at {url} does not answer: start it again.")
        with httpx.Client(trust_env=False, timeout=60) as client:
            deployed = client.get(f"{url}/status").raise_for_status().json()["deployments"]
        states = sorted({str(one.get("application_state")) for one in deployed.values()})
        model = self.processes.facts["model"]
        return f"{url}: {model} {', '.join(states) or 'not deployed'}"

    def stop(self) -> None:
        """End everything that was started."""
        self.processes.stop()
        if "ports" in self.processes.facts:
            shutil.rmtree(self._ray_folder(), ignore_errors=True)

    def kill_api(self) -> None:
        """Kill the HTTP interface with its queue, as a crash would; the model lives on."""
        self.processes.stop("api", kill=True)

    def kill_worker(self) -> None:
        """Kill the process that holds the model; Ray starts it again."""
        for process in self.processes.members("ray"):
            with suppress(psutil.NoSuchProcess):  # one that has ended has no command line
                if "CpuModelActor" in " ".join(process.cmdline()):
                    process.kill()

    def kill_all(self) -> None:
        """Kill everything, as a power cut would."""
        self.processes.stop(kill=True)

    def _start_all(self) -> None:
        processes, facts = self.processes, self.processes.facts
        python = environment.server_python(NAME, requirements())
        bin_folder, env = python.parent, self._env()
        api, ray = self._port("api"), self._port("ray")
        commands = {
            "redis": [
                _redis(), "--bind", LOOPBACK, "--port", str(self._port("redis")),
                "--save", "", "--appendonly", "no", "--dir", str(processes.folder),
            ],
            "s3": [str(bin_folder / "moto_server"), "-H", LOOPBACK, "-p", str(self._port("s3"))],
            "ray": [
                str(bin_folder / "ray"), "start", "--head", "--block",
                f"--node-ip-address={LOOPBACK}", f"--port={ray}",
                f"--ray-client-server-port={self._port('ray_client')}",
                f"--dashboard-host={LOOPBACK}", f"--dashboard-port={self._port('ray_dashboard')}",
                "--num-cpus=4", "--num-gpus=1",
                f"--resources={json.dumps(RAY_BYTES)}",
                f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats",
                f"--temp-dir={self._ray_folder()}",
            ],
            "api": [
                str(python), "-m", "gunicorn", "--config", "python:ndif.services.api.gunicorn_conf",
                "--bind", f"{LOOPBACK}:{api}", "--no-control-socket", "ndif.services.api.app:app",
            ],
        }  # fmt: skip
        code = processes.folder / "code"
        code.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("ndif_server.py"), code / f"{SERVER_FILE}.py")
        deploy = not processes.alive("ray")
        for name, command in commands.items():
            if not processes.alive(name):
                processes.start(name, command, env)
        processes.wait("redis", lambda: port_open(self._port("redis")), START_SECONDS)
        processes.wait("s3", lambda: port_open(self._port("s3")), START_SECONDS)
        processes.wait("ray", lambda: port_open(ray), START_SECONDS)
        if deploy:
            spec = {
                "checkpoint": facts["model"],
                "model_key": model_key(facts["model"]),
                "dtype": facts["dtype"],
                "size_bytes": 1_000_000_000,  # decides the placement only, and there is one place
                "actor_class": f"{SERVER_FILE}.{_actor(facts['sandbox'])}",
            }
            command = [str(python), "-m", SERVER_FILE, "--address", f"{LOOPBACK}:{ray}"]
            processes.start("launch", [*command, "--spec", json.dumps(spec)], env)
            processes.finish("launch", DEPLOY_SECONDS)
        processes.wait("api", lambda: http_ok(f"{self.url}/connected"), START_SECONDS)
        processes.check_loopback()

    def _ray_folder(self) -> Path:
        # Ray puts sockets there, whose paths may have no more than 107 characters.
        return Path("/tmp") / f"esr-ray-{os.getuid()}-{self._port('ray')}"  # noqa: S108

    def _env(self) -> dict[str, str]:
        kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "HF_HOME", "LD_LIBRARY_PATH")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "PYTHONPATH": str(self.processes.folder / "code"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "OMP_WAIT_POLICY": "passive",
            "NDIF_REDIS_URL": f"redis://{LOOPBACK}:{self._port('redis')}",
            "NDIF_OBJECT_STORE_URL": f"http://{LOOPBACK}:{self._port('s3')}",
            "NDIF_RAY_ADDRESS": f"ray://{LOOPBACK}:{self._port('ray_client')}",
            "NDIF_DEFAULT_DTYPE": str(self.processes.facts["dtype"]),
            "NDIF_AUTOSCALING_MAX_REPLICAS": "1",
            "NDIF_SANDBOX_POOL_SIZE": "1",
            "NDIF_STATUS_TTL_S": "5",
            "NDIF_QUEUE_FETCH_TIMEOUT_S": "1",
            "RAY_ADDRESS": f"{LOOPBACK}:{self._port('ray')}",
            # Without this Ray listens on every interface of the machine.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
        }


def model_key(model: str, revision: str | None = None) -> str:
    """How nnsight names a deployed model."""
    named = {"repo_id": model, "revision": revision, "task": "text-generation"}
    return f"{WRAPPER}:{json.dumps(named)}"


def _actor(sandbox: bool) -> str:
    return "SandboxedCpuModelActor" if sandbox else "CpuModelActor"


def _redis() -> str:
    found = shutil.which("redis-server")
    if found is None:
        raise EsrError(
            "The NDIF server needs the program redis-server, which is not there: install your "
            "system's package (apt-get install redis-server, brew install redis)."
        )
    return found
