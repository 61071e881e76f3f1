"""The steps of a sweep: the base's runs, and every adapter's on the same trials."""

from collections.abc import Callable
from typing import Any

from esr_eval.paper.run import responses_to_calibrate
from esr_eval.paper.steps import Logs, Step
from esr_eval.paper.sweep_plan import Adapter, Sizes, Sweep


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
    args: Callable[[Logs], dict[str, Any]],
    tuned: bool = False,
) -> Step:
    trials = sizes.n_latents * sizes.trials
    verdicts = trials * (2 if sizes.holistic else 1)
    return Step(key, task, args, tuned=tuned, generations=trials, verdicts=verdicts)


def _calibration(sweep: Sweep, adapter: Adapter | None, key: str) -> Step:
    sizes, drawn = sweep.sizes, _drawn(sweep.sizes)
    responses = responses_to_calibrate(
        sweep.paper(adapter), adapter is not None, sizes.latents, sizes.n_latents, sizes.seed
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
