"""Adapters of several mixes, each trained, calibrated and evaluated on the same trials."""

import gc
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esr_eval._util.output import note
from esr_eval.dataset import pick_latents
from esr_eval.errors import EsrError
from esr_eval.finetune.card import CARD_FILE, Preset, read_facts
from esr_eval.finetune.examples import Example, mix, read_examples
from esr_eval.finetune.train import SET_FILE, STATE_FILE, check_installed, planned_steps, train
from esr_eval.paper.run import (
    ArgsOf,
    EvalSet,
    Logs,
    Step,
    finished,
    responses_to_calibrate,
    run_steps,
)
from esr_eval.provider.arguments import ModelArgs
from esr_eval.spec import fingerprint
from esr_eval.subjects import Subject

EXAMPLES_PER_SECOND = {"smollm2-135m": 1.1}
"""Examples trained on per second where it was measured: the embedded preset on 2 CPU cores."""


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
    identity: dict[str, Any] = field(repr=False)

    @property
    def logs(self) -> Path:
        """Where all logs lie."""
        return self.folder / "logs"

    def eval_set(self, adapter: Adapter | None = None) -> EvalSet:
        """What runs the steps of the base, or of an adapter."""
        return EvalSet(
            self.subject,
            self.model_args,
            str(adapter.folder.resolve()) if adapter else None,
            self.grader,
            self.logs,
            self.sizes.max_tokens,
            self.identity,
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
        EsrError: There are too few examples or latents, the subject has an adapter already, or the
            folder holds one of another training.
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
    for adapter in adapters:
        _check_trained(adapter)
    identity = {
        "model": subject.name,
        "model_args": args,
        "judge": grader or subject.grader,
        "examples": fingerprint({"examples": [one.model_dump(mode="json") for one in examples]}),
        "count": size,
        "preset": preset.model_dump(mode="json", exclude={"mix_percent", "seed"}),
        # The mixes are not: more of them may be added to a sweep.
        **{name: value for name, value in vars(sizes).items() if name != "until_token"},
    }
    return Sweep(subject, args, grader, folder, sizes, adapters, identity)


def base_steps(sweep: Sweep) -> list[Step]:
    """The base's own calibration and runs; all others replay its main log."""
    sizes = sweep.sizes
    drawn = _drawn(sizes) | {"trials_per_latent": sizes.trials, "holistic": sizes.holistic}
    return [
        _calibration(sweep, None, "calibrate"),
        _answered(sizes, "main", "esr", lambda logs: drawn),
        *_conditions(sizes, "", "esr"),
    ]


def adapter_steps(sweep: Sweep, adapter: Adapter) -> list[Step]:
    """An adapter's calibration and its runs of the base's trials, boost on and off."""
    sizes, name = sweep.sizes, f"{adapter.name} "

    def steered(logs: Logs) -> dict[str, Any]:
        return {"replay": logs["main"], "holistic": sizes.holistic}

    return [
        _calibration(sweep, adapter, f"{name}calibrate"),
        _answered(sizes, f"{name}steered", "finetuned", steered, tuned=True),
        *_conditions(sizes, name, "finetuned", tuned=True),
    ]


def _conditions(sizes: Sizes, name: str, task: str, tuned: bool = False) -> list[Step]:
    """The main log's trials with the boost off, and with one that ends."""

    def unsteered(logs: Logs) -> dict[str, Any]:
        return {"replay": logs["main"], "steering": False, "holistic": sizes.holistic}

    def ending(logs: Logs) -> dict[str, Any]:
        until = {"until_token": sizes.until_token, "holistic": sizes.holistic}
        return {"replay": logs["main"], **until}

    steps = [_answered(sizes, f"{name}no_steering", task, unsteered, tuned)]
    if sizes.until_token is not None:
        key = f"{name}until_{sizes.until_token}"
        steps.append(_answered(sizes, key, task, ending, tuned))
    return steps


def _answered(
    sizes: Sizes,
    key: str,
    task: str,
    args: ArgsOf,
    tuned: bool = False,
) -> Step:
    trials = sizes.n_latents * sizes.trials
    verdicts = trials * (2 if sizes.holistic else 1)
    return Step(key, task, args, tuned=tuned, generations=trials, verdicts=verdicts)


def _calibration(sweep: Sweep, adapter: Adapter | None, key: str) -> Step:
    sizes, drawn = sweep.sizes, _drawn(sweep.sizes)
    responses = responses_to_calibrate(
        sweep.eval_set(adapter), adapter is not None, sizes.latents, sizes.n_latents, sizes.seed
    )
    tuned = adapter is not None
    return Step(
        key, "calibrate", lambda logs: drawn, tuned=tuned, generations=responses, verdicts=responses
    )


def _drawn(sizes: Sizes) -> dict[str, Any]:
    drawn = {"latents": sizes.latents, "n_latents": sizes.n_latents, "seed": sizes.seed}
    return {name: value for name, value in drawn.items() if value is not None}


def all_steps(sweep: Sweep) -> list[Step]:
    """The base's steps and every adapter's, trainings not among them."""
    steps = base_steps(sweep)
    for adapter in sweep.adapters:
        steps += adapter_steps(sweep, adapter)
    return steps


def training_lines(sweep: Sweep) -> list[str]:
    """What each training takes, as a line."""
    lines = []
    for adapter in sweep.adapters:
        corrections = sum(one.kind == "correction" for one in adapter.examples)
        steps = planned_steps(adapter.examples, adapter.preset, sweep.sizes.max_steps)
        seen = steps * adapter.preset.micro_batch * adapter.preset.grad_accumulation
        speed = EXAMPLES_PER_SECOND.get(sweep.subject.name)
        took = f", about {seen / speed / 60:.0f} minutes" if speed else ""
        lines.append(
            f"{adapter.name}: {len(adapter.examples)} examples, {corrections} of them "
            f"self-correction, {'trained already' if adapter.trained else f'{steps} steps{took}'}"
        )
    return lines


def run(sweep: Sweep, tell: Callable[[str], None]) -> Path:
    """Train and evaluate whatever has not ended; what was interrupted goes on.

    Args:
        sweep: From `plan`.
        tell: Told of every step.

    Returns:
        The folder of logs.

    Raises:
        EsrError: A step did not end well; the same command goes on from there.
    """
    logs = finished(sweep.logs, sweep.identity, note, aside=True)
    run_steps(sweep.eval_set(), base_steps(sweep), logs, tell)
    for adapter in sweep.adapters:
        if not adapter.trained:
            tell(f"{adapter.name} train")
            _train(sweep, adapter)
        run_steps(sweep.eval_set(adapter), adapter_steps(sweep, adapter), logs, tell)
    return sweep.logs


def _train(sweep: Sweep, adapter: Adapter) -> None:
    device = sweep.model_args.get("device")
    checkpoints = adapter.folder / "checkpoints"
    train(
        adapter.examples,
        ModelArgs.parse(sweep.model_args).runtime(sweep.subject),
        adapter.preset,
        adapter.folder,
        device=None if device is None else str(device),
        resume=any(checkpoints.glob(f"checkpoint-*/{STATE_FILE}")),
        max_steps=sweep.sizes.max_steps,
    )
    # The trained model must be gone before the evaluation loads its own.
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _check_trained(adapter: Adapter) -> None:
    """Raise an `EsrError` where the folder holds an adapter of another training."""
    if not adapter.trained:
        return
    facts = read_facts(adapter.folder)
    same = facts is not None and facts.preset == adapter.preset
    if not same or read_examples(adapter.folder / SET_FILE) != adapter.examples:
        raise EsrError(
            f"{adapter.folder} holds an adapter of other examples or settings: repeat that "
            "training's arguments, or name another folder."
        )
