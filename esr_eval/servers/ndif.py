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
from functools import partial
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]

from esr_eval.errors import EsrError
from esr_eval.servers.loopback import LOOPBACK, LoopbackServer, free_ports, http_ok, port_open
from esr_eval.subjects import find_subject

SERVER_FILE = "esr_eval_ndif_server"
WRAPPER = "nnsight.modeling.transformers.TransformersModel"
START_SECONDS = 120.0
DEPLOY_SECONDS = 300.0
RAY_BYTES = {"cuda_memory_bytes": 8_000_000_000, "cpu_memory_bytes": 8_000_000_000, "head": 10}
OBJECT_STORE_BYTES = 200_000_000
PORTS = ("api", "redis", "s3", "ray", "ray_client", "ray_dashboard")


class NDIFServer(LoopbackServer):
    """The NDIF server: redis, an object store, Ray, its controller and its API."""

    name, main = "ndif", "api"

    def install(self, say: Callable[[str], None] = print) -> None:
        """See `LoopbackServer.install`; redis is the system's own."""
        super().install(say)
        _redis()

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
        self.python()
        runtime = find_subject(subject).runtime()
        source, _ = model_source(runtime)
        self.stop()
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        ports["api"] = port or ports["api"]
        self.remember(ports=ports, model=str(source), dtype=dtype or runtime.dtype, sandbox=sandbox)
        self.bring_back()
        say(f"ndif: {subject} answers at {self.url} after {time.monotonic() - began:.0f} s")
        return self.url

    def bring_up(self) -> None:
        """See `LoopbackServer.bring_up`; the model is deployed wherever Ray had to be started."""
        facts, python = self.facts, self.python()
        bin_folder, api, ray = python.parent, self.port("api"), self.port("ray")
        # nnsight's name of a deployed model.
        named = {"repo_id": facts["model"], "revision": None, "task": "text-generation"}
        spec = {
            "checkpoint": facts["model"],
            "model_key": f"{WRAPPER}:{json.dumps(named)}",
            "dtype": facts["dtype"],
            "size_bytes": 1_000_000_000,  # decides the placement only, and there is one place
            "actor_class": f"{SERVER_FILE}.{'Sandboxed' * facts['sandbox']}CpuModelActor",
        }
        commands = {
            "redis": [
                _redis(), "--bind", LOOPBACK, "--port", str(self.port("redis")),
                "--save", "", "--appendonly", "no", "--dir", str(self.folder),
            ],
            "s3": [str(bin_folder / "moto_server"), "-H", LOOPBACK, "-p", str(self.port("s3"))],
            "ray": [
                str(bin_folder / "ray"), "start", "--head", "--block",
                f"--node-ip-address={LOOPBACK}", f"--port={ray}",
                f"--ray-client-server-port={self.port('ray_client')}",
                f"--dashboard-host={LOOPBACK}", f"--dashboard-port={self.port('ray_dashboard')}",
                "--num-cpus=4", "--num-gpus=1",
                f"--resources={json.dumps(RAY_BYTES)}",
                f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats",
                f"--temp-dir={self._ray_folder()}",
            ],
            "api": [
                str(python), "-m", "gunicorn", "--config", "python:ndif.services.api.gunicorn_conf",
                "--bind", f"{LOOPBACK}:{api}", "--no-control-socket", "ndif.services.api.app:app",
            ],
            "launch": [
                str(python), "-m", SERVER_FILE, "--address", f"{LOOPBACK}:{ray}",
                "--spec", json.dumps(spec),
            ],
        }  # fmt: skip
        code = self.folder / "code"
        code.mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(__file__).with_name("ndif_server.py"), code / f"{SERVER_FILE}.py")
        self.supervise(commands, self._env())
        deployed = self.alive("ray")
        self.start_programs("redis", "s3", "ray", "api")
        for name in ("redis", "s3", "ray"):
            self.wait(name, partial(port_open, self.port(name)), START_SECONDS)
        if not deployed:
            self.start_programs("launch")
            self.wait("launch", lambda: self.succeeded("launch"), DEPLOY_SECONDS)
        self.wait("api", lambda: http_ok(f"{self.url}/connected"), START_SECONDS)

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
        return f"{url}: {self.facts['model']} {', '.join(states) or 'not deployed'}"

    def stop(self) -> None:
        """End everything that was started."""
        super().stop()
        if "ports" in self.facts:
            shutil.rmtree(self._ray_folder(), ignore_errors=True)

    def kill_worker(self) -> None:
        """Kill the process that holds the model; Ray starts it again."""
        for process in self.members("ray"):
            with suppress(psutil.NoSuchProcess):  # one that has ended has no command line
                if "CpuModelActor" in " ".join(process.cmdline()):
                    process.kill()

    def _ray_folder(self) -> Path:
        # Ray puts sockets there, whose paths may have no more than 107 characters.
        return Path("/tmp") / f"esr-ray-{os.getuid()}-{self.port('ray')}"  # noqa: S108

    def _env(self) -> dict[str, str]:
        kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "HF_HOME", "LD_LIBRARY_PATH")
        return {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "PYTHONPATH": str(self.folder / "code"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
            "OMP_WAIT_POLICY": "passive",
            "NDIF_REDIS_URL": f"redis://{LOOPBACK}:{self.port('redis')}",
            "NDIF_OBJECT_STORE_URL": f"http://{LOOPBACK}:{self.port('s3')}",
            "NDIF_RAY_ADDRESS": f"ray://{LOOPBACK}:{self.port('ray_client')}",
            "NDIF_DEFAULT_DTYPE": str(self.facts["dtype"]),
            "NDIF_AUTOSCALING_MAX_REPLICAS": "1",
            "NDIF_SANDBOX_POOL_SIZE": "1",
            "NDIF_STATUS_TTL_S": "5",
            "NDIF_QUEUE_FETCH_TIMEOUT_S": "1",
            "RAY_ADDRESS": f"{LOOPBACK}:{self.port('ray')}",
            # Without this Ray listens on every interface of the machine.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_DISABLE_IMPORT_WARNING": "1",
        }


def _redis() -> str:
    found = shutil.which("redis-server")
    if found is None:
        raise EsrError(
            "The NDIF server needs the program redis-server, which is not there: install your "
            "system's package (apt-get install redis-server, brew install redis)."
        )
    return found
