"""A sweep over mixes as it is asked for: sizes, the adapters to train, where everything goes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esr_eval.dataset import pick_latents
from esr_eval.errors import EsrError
from esr_eval.finetune.card import CARD_FILE
from esr_eval.finetune.data import Example
from esr_eval.finetune.mixes import mix
from esr_eval.finetune.presets import Preset
from esr_eval.finetune.train import check_installed
from esr_eval.paper.run import Paper
from esr_eval.spec import fingerprint
from esr_eval.subjects import Subject


@dataclass(frozen=True)
class Sizes:
    """How much is evaluated, of the base and of every adapter alike.

    Attributes:
        latents: File of labelled latents; None takes the subject's.
        n_latents: How many of them.
        trials: Trials for each, with the boost on, and as many with it off.
        until_token: Also run the trials with the boost ended after so many tokens; None does not.
        seed: Of the mixes' draw, the training, the latents, tasks and samplers.
        holistic: Whether the second view is scored, too.
        max_steps: Training stops after so many steps; -1 takes the preset's epochs.
        max_tokens: Longest response; None leaves it to the subject.
    """

    latents: str | None = None
    n_latents: int = 12
    trials: int = 4
    until_token: int | None = None
    seed: int = 0
    holistic: bool = True
    max_steps: int = -1
    max_tokens: int | None = None


@dataclass(frozen=True)
class Adapter:
    """One mix: its training set, settings and folder."""

    percent: float
    examples: list[Example]
    preset: Preset
    folder: Path

    @property
    def name(self) -> str:
        """What its steps begin with, and its folder's name."""
        return self.folder.name

    @property
    def trained(self) -> bool:
        """Whether its training has ended; the card is written last."""
        return (self.folder / CARD_FILE).is_file()


@dataclass(frozen=True)
class Sweep:
    """A sweep as the user asked for it; see `plan`."""

    subject: Subject
    model_args: dict[str, Any]
    grader: str | None
    folder: Path
    sizes: Sizes
    adapters: list[Adapter]
    about: dict[str, Any] = field(repr=False)

    @property
    def logs(self) -> Path:
        """Where all logs lie."""
        return self.folder / "logs"

    def paper(self, adapter: Adapter | None = None) -> Paper:
        """What runs the steps of the base, or of an adapter."""
        own = str(adapter.folder.resolve()) if adapter else None
        return Paper(
            self.subject, self.model_args, own, self.grader, self.logs, self.sizes.max_tokens
        )


def read_mixes(text: str) -> list[float]:
    """Percentages such as `10,30,50`, in rising order.

    Raises:
        EsrError: One is no percentage from 0 to 100, or there is none.
    """
    found = set()
    for part in text.split(","):
        try:
            percent = float(part.strip().removesuffix("%"))
        except ValueError:
            percent = -1.0
        if not 0 <= percent <= 100:
            raise EsrError(
                f"'{part.strip()}' is no mix: name percentages of self-correction from 0 to 100, "
                "such as --mixes 10,30,50."
            )
        found.add(percent)
    return sorted(found)


def plan(
    subject: Subject,
    examples: Sequence[Example],
    mixes: Sequence[float],
    preset: Preset,
    folder: Path,
    sizes: Sizes,
    *,
    count: int | None = None,
    model_args: dict[str, Any] | None = None,
    grader: str | None = None,
) -> Sweep:
    """Draw every mix and check what can be checked; nothing is loaded.

    Args:
        subject: The base.
        examples: What the mixes are drawn from.
        mixes: Percentages of self-correction.
        preset: Settings of every training, but for the mix.
        folder: Where adapters (`mix-30`) and `logs` go.
        sizes: Of the evaluation.
        count: Examples in each mix; None takes the most that all of them allow, so that mixes
            differ in nothing but their composition.
        model_args: Arguments of the provider.
        grader: Judge; None takes the subject's.

    Raises:
        EsrError: There are too few examples or latents, or the subject has an adapter already.
    """
    check_installed()
    if subject.adapter is not None:
        raise EsrError(f"{subject.name} is fine-tuned already: sweep over mixes of its base.")
    args = dict(model_args or {})
    if "adapter" in args:
        raise EsrError("A sweep makes its adapters itself: leave out -M adapter=.")
    pick_latents(subject, sizes.latents, sizes.n_latents, sizes.seed)
    size = count or min(len(mix(examples, percent, None, sizes.seed)) for percent in mixes)
    adapters = [
        Adapter(
            percent,
            mix(examples, percent, size, sizes.seed),
            preset.model_copy(update={"mix_percent": percent, "seed": sizes.seed}),
            folder / f"mix-{percent:g}",
        )
        for percent in mixes
    ]
    about = {
        "model": subject.name,
        "model_args": args,
        "judge": grader or subject.grader,
        "examples": fingerprint({"examples": [one.model_dump(mode="json") for one in examples]}),
        "count": size,
        "preset": preset.model_dump(mode="json", exclude={"mix_percent", "seed"}),
        # The mixes are not: more of them may be added to a sweep.
        **{name: value for name, value in vars(sizes).items() if name != "until_token"},
    }
    return Sweep(subject, args, grader, folder, sizes, adapters, about)
