"""What the command `esr-eval scaling` prints."""

from esr_eval.errors import EsrError
from esr_eval.model_args import BACKENDS
from esr_eval.paper.estimate import PROMPT_TOKENS
from esr_eval.scaling.hardware import find_gpu
from esr_eval.scaling.paper import full_steps
from esr_eval.scaling.shapes import BYTES, shape_of
from esr_eval.scaling.speed import LOCAL_SOFTWARE, MEAN_ANSWER, NO_SOFTWARE, plan
from esr_eval.scaling.tables import cost_table, paper_table, speed_table, wire_table
from esr_eval.subjects import find_subject
from esr_eval.terminal import Terminal


def show(
    name: str,
    *,
    gpus: int,
    gpu: str,
    backend: str,
    dtype: str | None,
    rows: int,
    tuned: bool,
    vectors: int,
    graders: int,
) -> None:
    """Print all tables; see `esr-eval scaling --help`.

    Raises:
        EsrError: The subject's shape, the GPU, the backend or the dtype is not known.
    """
    subject = find_subject(name)
    shape, hardware = shape_of(subject), find_gpu(gpu)
    if backend not in BACKENDS:
        raise EsrError(f"There is no backend '{backend}'; there is: {', '.join(BACKENDS)}.")
    dtype = dtype or subject.dtype
    if dtype not in BYTES or (dtype == "fp8" and backend != "vllm"):
        known = [one for one in BYTES if one != "fp8" or backend == "vllm"]
        raise EsrError(f"{backend} knows no weights in '{dtype}': {', '.join(known)}.")
    software = NO_SOFTWARE if backend == "vllm" else LOCAL_SOFTWARE
    found = plan(shape, hardware, gpus, dtype, together=backend == "vllm")
    context = PROMPT_TOKENS + MEAN_ANSWER * subject.max_tokens
    positions = PROMPT_TOKENS + subject.max_tokens
    steps = full_steps(subject, tuned=tuned, vectors=vectors, graders=graders)
    console = Terminal()
    console.print(cost_table(shape, dtype, rows, context))
    if found is None:
        console.print(
            f"{subject.name} in {dtype} does not fit on {gpus} x {hardware.name}: take more GPUs, "
            "fp8 on vLLM, or NDIF."
        )
    else:
        console.print(speed_table(found, context, positions, software))
    console.print(paper_table(steps, subject, found, rows, software))
    if backend != "local":
        console.print(wire_table(shape, steps, subject, rows))
    console.print(f"GPU figures: {hardware.source}. Nothing here was measured on a GPU.")
