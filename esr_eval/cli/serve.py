"""`esr-eval serve`: servers of the remote backends on this machine, on loopback."""

from typing import Annotated

import typer

from esr_eval._util.output import tell
from esr_eval.cli.command import command
from esr_eval.data.arguments import AT_LEAST_ONE, DTYPE, PORT

app = typer.Typer(
    help="Servers for -M backend=ndif and -M backend=vllm on this machine, loopback only.",
    no_args_is_help=True,
)
ndif = typer.Typer(help="An NDIF server on the CPU, to try.", no_args_is_help=True)
vllm = typer.Typer(help="A vLLM server that steers.", no_args_is_help=True)
app.add_typer(ndif, name="ndif")
app.add_typer(vllm, name="vllm")

Served = Annotated[str, typer.Argument(help="Subject, Hugging Face id, or path.")]
Port = Annotated[int | None, typer.Option(help="Port on 127.0.0.1. Default: a free one."), PORT]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16 or float16. Default: the subject's."), DTYPE
]
SUBJECT = "smollm2-135m"


@ndif.command("install")
@command
def ndif_install() -> None:
    """Install the server into an environment of its own (2 GB; seconds when it is there)."""
    from esr_eval.servers.ndif import NDIFServer

    NDIFServer().install(say=tell)


@ndif.command("start")
@command
def ndif_start(
    subject: Served = SUBJECT,
    port: Port = None,
    dtype: Dtype = None,
    sandbox: Annotated[
        bool, typer.Option(help="Run requests in processes of their own, as NDIF does; slower.")
    ] = False,
) -> None:
    """Start the server and deploy a subject (about a minute)."""
    from esr_eval.servers.ndif import NDIFServer

    url = NDIFServer().start(subject, port=port, dtype=dtype, sandbox=sandbox, say=tell)
    _say_how("ndif", subject, url)


@ndif.command("check")
@command
def ndif_check() -> None:
    """Say whether the server answers, and what it has deployed."""
    from esr_eval.servers.ndif import NDIFServer

    tell(NDIFServer().check())


@ndif.command("stop")
@command
def ndif_stop() -> None:
    """Stop the server."""
    from esr_eval.servers.ndif import NDIFServer

    NDIFServer().stop()


@vllm.command("install")
@command
def vllm_install() -> None:
    """Install the server into an environment of its own."""
    from esr_eval.servers.vllm import VLLMServer

    VLLMServer().install(say=tell)


@vllm.command("start")
@command
def vllm_start(
    subject: Served = SUBJECT,
    port: Port = None,
    dtype: Dtype = None,
    revision: Annotated[str | None, typer.Option(help="Revision on the hub.")] = None,
    tensor_parallel: Annotated[
        int, typer.Option(help="GPUs that share every layer."), AT_LEAST_ONE
    ] = 1,
    pipeline_parallel: Annotated[
        int, typer.Option(help="Stages of consecutive layers."), AT_LEAST_ONE
    ] = 1,
    data_parallel: Annotated[int, typer.Option(help="Copies of the model."), AT_LEAST_ONE] = 1,
    quantization: Annotated[str | None, typer.Option(help="vLLM's name, e.g. fp8.")] = None,
    adapter: Annotated[list[str] | None, typer.Option(help="LoRA adapter to serve too.")] = None,
    layer: Annotated[
        list[int] | None, typer.Option(help="Layer to edit or read beside the subject's own.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Option of vLLM's own server, passed on as it is.")
    ] = None,
) -> None:
    """Start the server with a subject (about two minutes on a CPU)."""
    from esr_eval.servers.vllm import VLLMServer

    url = VLLMServer().start(
        subject,
        port=port,
        dtype=dtype,
        revision=revision,
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        data_parallel=data_parallel,
        quantization=quantization,
        adapters=adapter or (),
        options=option or (),
        layers=layer or (),
        say=tell,
    )
    _say_how("vllm", subject, url)


@vllm.command("check")
@command
def vllm_check() -> None:
    """Say whether the server answers, and what it serves."""
    from esr_eval.servers.vllm import VLLMServer

    tell(VLLMServer().check())


@vllm.command("stop")
@command
def vllm_stop() -> None:
    """Stop the server."""
    from esr_eval.servers.vllm import VLLMServer

    VLLMServer().stop()


def _say_how(backend: str, subject: str, url: str) -> None:
    tell("Evaluate on it:")
    tell(
        f"  inspect eval esr_eval/esr --model esr/{subject} -M backend={backend} "
        f"--model-base-url {url}"
    )
    tell(f"Stop it: esr-eval serve {backend} stop")
