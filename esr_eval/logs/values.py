"""One number of every trial of a log, such as whether it has several attempts."""

import math

from inspect_ai.log import read_eval_log_sample_summaries

from esr_eval.errors import EsrError
from esr_eval.logs.reading import ATTEMPTS, reading
from esr_eval.logs.runs import TrialKey


def read_values(path: str, metric: str = "multi_attempt") -> dict[TrialKey, float]:
    """Read a metric's value of each trial that has one, as the first judge of the log scored it.

    Args:
        path: A log of the task esr.
        metric: A key of the score, see `esr_eval.scorers.values`.

    Raises:
        EsrError: The file is no Inspect log, or has no trial with that value.
    """
    with reading(path):
        return _read(path, metric)


def _read(path: str, metric: str) -> dict[TrialKey, float]:
    found = {}
    for sample in read_eval_log_sample_summaries(path):
        scores = sample.scores or {}
        value = next((scores[name].value for name in scores if ATTEMPTS.fullmatch(name)), None)
        number = value.get(metric) if isinstance(value, dict) else None
        trial = sample.metadata
        if isinstance(number, int | float) and not math.isnan(number) and "latent" in trial:
            about = int(trial["latent"]), str(trial["topic"]), int(trial["seed"])
            key = TrialKey(*about, sample.epoch)
            found[key] = float(number)
    if not found:
        raise EsrError(f"{path} has no trial with a value of {metric}.")
    return found
