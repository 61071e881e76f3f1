"""Draw the README's picture from the committed logs: `python scripts/readme_figure.py`."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from esr_eval.logs.conditions import Condition, read_all_scored
from esr_eval.logs.measures import Measured, measure

ROOT = Path(__file__).resolve().parent.parent
LOGS = ROOT / "logs" / "self-correction"
FIGURE = ROOT / "docs" / "img" / "self-correction.svg"
ROWS = (
    ("smollm2-135m", "unsteered", "base model, boost off"),
    ("smollm2-135m", "steered", "base model, boost on"),
    ("smollm2-135m-esr", "unsteered", "tuned model, boost off"),
    ("smollm2-135m-esr", "steered", "tuned model, boost on"),
)
PANELS = (
    ("multi_attempt", 100, "answers with a restart, %", (0, 45)),
    ("first_score", 1, "score of the first attempt, 0-100", (0, 100)),
)
COLOURS = {"unsteered": "#888888", "steered": "#b3402a"}


def measured() -> list[tuple[str, str, dict[str, Measured]]]:
    """Label, condition and measures of each row, from the logs."""
    runs = read_all_scored([LOGS], print)
    found = []
    for subject, steering, label in ROWS:
        [run] = [
            one
            for one in runs
            if (one.subject, one.steering) == (subject, steering) and not _ends_early(one)
        ]
        found.append((label, steering, measure(run.trials)))
    return found


def _ends_early(run: Condition) -> bool:
    return "boost off after" in run.name


def draw(target: Path) -> None:
    """Draw the figure, the same bytes each time."""
    plt.rcParams.update({"svg.hashsalt": "esr-eval", "svg.fonttype": "path", "font.size": 10})
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 2.5), sharey=True, layout="constrained")
    rows = measured()
    for axis, (key, unit, title, limits) in zip(axes, PANELS, strict=True):
        for place, (_, steering, numbers) in enumerate(reversed(rows)):
            one = numbers[key]
            low, high = one.low * unit, one.high * unit
            axis.plot([low, high], [place, place], color=COLOURS[steering], lw=2)
            axis.plot(one.value * unit, place, "o", color=COLOURS[steering])
            axis.annotate(
                f"{one.value * unit:.1f}",
                (one.value * unit, place),
                xytext=(0, 6),
                textcoords="offset points",
                ha="center",
                fontsize=9,
            )
        axis.set_xlabel(title)
        axis.set_xlim(limits[0] - 2, limits[1] + 2)
        axis.set_ylim(-0.6, len(rows) - 0.3)
        axis.grid(axis="x", alpha=0.3)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(rows)), [label for label, *_ in reversed(rows)])
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None}, facecolor="white")
    plt.close(figure)


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FIGURE)
