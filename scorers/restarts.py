"""A scorer for restart phrases that needs no grader, and the detector's own measurement.

`python -m esr_eval.scorers.restarts tests/data/restarts.jsonl` prints precision and recall.
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import TaskState

from esr_eval.scorers.metrics import NAN, keyed_metrics
from esr_eval.scorers.phrases import find_restarts
from esr_eval.scorers.trials import errored, plain


@scorer(metrics=keyed_metrics(["restart_phrase"]) | keyed_metrics((), ["restarts"]))
def restarts() -> Scorer:
    """Whether, and how often, the response says in so many words that it starts over."""

    async def score(state: TaskState, target: Target) -> Score:
        if errored() is not None:
            return Score(value={"restart_phrase": NAN, "restarts": NAN}, answer="errored")
        found = find_restarts(state.output.completion)
        phrases = "\n".join(f"- “{plain(restart.phrase)}”" for restart in found[:12])
        return Score(
            value={"restart_phrase": float(bool(found)), "restarts": float(len(found))},
            answer=str(len(found)),
            explanation=phrases or "No restart phrase.",
            metadata={"restarts": [restart._asdict() for restart in found[:20]]},
        )

    return score


class Accuracy(NamedTuple):
    """Restarts found against restarts labelled."""

    correct: int
    invented: int
    missed: int

    @property
    def precision(self) -> float:
        """Share of what was found that is there."""
        return self.correct / max(1, self.correct + self.invented)

    @property
    def recall(self) -> float:
        """Share of what is there that was found."""
        return self.correct / max(1, self.correct + self.missed)


def measure(examples: Iterable[dict[str, Any]]) -> Accuracy:
    """Count per example (`text`, `restarts`) what was found, invented and missed."""
    correct = invented = missed = 0
    for example in examples:
        found, labelled = len(find_restarts(example["text"])), example["restarts"]
        correct += min(found, labelled)
        invented += max(found - labelled, 0)
        missed += max(labelled - found, 0)
    return Accuracy(correct, invented, missed)


def _main(path: str) -> None:
    lines = Path(path).read_text("utf-8").splitlines()
    examples = [json.loads(line) for line in lines if line.strip()]
    for split in sorted({example["split"] for example in examples}):
        chosen = [example for example in examples if example["split"] == split]
        found = measure(chosen)
        print(
            f"{split}: {len(chosen)} responses, precision {found.precision:.2f}, "
            f"recall {found.recall:.2f} (found {found.correct}, invented {found.invented}, "
            f"missed {found.missed})"
        )


if __name__ == "__main__":
    _main(sys.argv[1])
