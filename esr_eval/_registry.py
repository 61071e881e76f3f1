"""What Inspect finds through the package's entry point: providers, tasks, scorers, the hook."""

import logging

from inspect_ai.hooks import Hooks, TaskEnd, hooks
from inspect_ai.log import read_eval_log_samples
from inspect_ai.model import ModelAPI, modelapi

from esr_eval.errors import EsrError
from esr_eval.logs.sidecar import STORE_KEY, put_beside, reference, saved_any
from esr_eval.scorers.attempts import attempts
from esr_eval.scorers.continuation import continuation
from esr_eval.scorers.degradation import degradation
from esr_eval.scorers.improvement import improvement
from esr_eval.scorers.introspection import introspection
from esr_eval.scorers.passages import on_passage
from esr_eval.scorers.phrases import restarts
from esr_eval.scorers.regions import regions
from esr_eval.scorers.reliability import reliability
from esr_eval.scorers.stance import stance
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
    injected_thought,
    meta_prompt,
    passages,
    prefill_control,
    protective,
    random_ablation,
    select_latents,
    vectors,
)
from esr_eval.tasks.select_latents import selection

__all__ = [
    "ActivationFiles",
    "ablation",
    "activations",
    "attempts",
    "boost_sweep",
    "calibrate",
    "calibrate_vectors",
    "continuation",
    "cross_judge",
    "degradation",
    "detectors",
    "esr",
    "esr_judge",
    "esr_provider",
    "finetuned",
    "held_out",
    "improvement",
    "injected_thought",
    "introspection",
    "meta_prompt",
    "on_passage",
    "passages",
    "prefill_control",
    "protective",
    "random_ablation",
    "regions",
    "reliability",
    "restarts",
    "select_latents",
    "selection",
    "stance",
    "vectors",
]


logger = logging.getLogger(__name__)

WITH_ACTIVATIONS = frozenset({"detectors", "activations"})
"""Experiments whose samples refer to arrays."""


@modelapi(name="esr")
def esr_provider() -> type[ModelAPI]:
    """Subjects under steering: `esr/llama-70b`, `esr/smollm2-135m`, or any model's id."""
    from esr_eval.provider.api import ESRModelAPI

    return ESRModelAPI


@modelapi(name="esr-judge")
def esr_judge() -> type[ModelAPI]:
    """Judges on this machine: `esr-judge/offline`, `esr-judge/self`."""
    from esr_eval.judges.provider import LocalJudge

    return LocalJudge


@hooks(name="esr_activation_files", description="Moves activations beside the log they belong to.")
class ActivationFiles(Hooks):
    """Moves the arrays of a log's samples from the cache to the log's folder."""

    def enabled(self) -> bool:
        """Only where arrays were saved: other runs need not be told of this hook."""
        return saved_any()

    async def on_task_end(self, data: TaskEnd) -> None:
        """Move them, whether the task ended well or not."""
        log = data.log
        experiment = (log.eval.metadata or {}).get("experiment_id")
        if experiment not in WITH_ACTIVATIONS:
            return
        try:
            for sample in read_eval_log_samples(log.location, all_samples_required=False):
                found = sample.store.get(STORE_KEY)
                if found is not None:
                    put_beside(reference(found, log.location), log.location)
            if experiment == "detectors" and log.status == "success":
                from esr_eval.detectors.discovery import on_detectors_done

                on_detectors_done(log.location)
        except (EsrError, OSError) as error:
            # The run itself is whole; Inspect would only log what a hook raises.
            logger.warning("Activations of %s stay in the cache: %s", log.location, error)
