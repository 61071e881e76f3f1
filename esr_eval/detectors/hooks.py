"""What is done when a task ends: arrays are put beside its log, detectors are written out."""

import logging

from inspect_ai.hooks import Hooks, TaskEnd, hooks
from inspect_ai.log import read_eval_log_samples

from esr_eval.errors import EsrError
from esr_eval.logs import sidecar
from esr_eval.logs.sidecar import STORE_KEY, put_beside, reference

logger = logging.getLogger(__name__)


@hooks(name="esr_activation_files", description="Moves activations beside the log they belong to.")
class ActivationFiles(Hooks):
    """Moves the arrays of a log's samples from the cache to the log's folder."""

    def enabled(self) -> bool:
        """Only where arrays were saved: other runs need not be told of this hook."""
        return sidecar.saved_any()

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


WITH_ACTIVATIONS = frozenset({"detectors", "activations"})
"""Experiments whose samples refer to arrays."""
