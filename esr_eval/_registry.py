"""What Inspect finds through the package's entry point: providers, tasks, scorers."""

from inspect_ai.model import ModelAPI, modelapi

from esr_eval.detectors.hooks import ActivationFiles
from esr_eval.scorers.attempts import attempts
from esr_eval.scorers.degradation import degradation
from esr_eval.scorers.improvement import improvement
from esr_eval.scorers.regions import regions
from esr_eval.scorers.restarts import restarts
from esr_eval.tasks import (
    ablation,
    activations,
    boost_sweep,
    calibrate,
    calibrate_vectors,
    cross_judge,
    detectors,
    esr,
    finetuned,
    held_out,
    meta_prompt,
    prefill_control,
    random_ablation,
    select_latents,
    vectors,
)
from esr_eval.tasks.selection import selection

__all__ = [
    "ActivationFiles",
    "ablation",
    "activations",
    "attempts",
    "boost_sweep",
    "calibrate",
    "calibrate_vectors",
    "cross_judge",
    "degradation",
    "detectors",
    "esr",
    "esr_judge",
    "esr_provider",
    "finetuned",
    "held_out",
    "improvement",
    "meta_prompt",
    "prefill_control",
    "random_ablation",
    "regions",
    "restarts",
    "select_latents",
    "selection",
    "vectors",
]


@modelapi(name="esr")
def esr_provider() -> type[ModelAPI]:
    """Subjects under steering: `esr/llama-70b`, `esr/smollm2-135m`, or any model's id."""
    from esr_eval.provider.api import ESRModelAPI

    return ESRModelAPI


@modelapi(name="esr-judge")
def esr_judge() -> type[ModelAPI]:
    """The offline judge: `esr-judge/offline`."""
    from esr_eval.judges.provider import OfflineJudge

    return OfflineJudge
