"""A whole-paper run: what decides it, and its steps, each a task with arguments after others."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from typing import Any

from esr_eval.calibration.methods import responses_per_latent
from esr_eval.data.pushes import answers_per_turn
from esr_eval.dataset import load_latents, meta_prompts, prompts
from esr_eval.errors import EsrError
from esr_eval.paper.run import (
    Args,
    ArgsOf,
    EvalSet,
    Logs,
    Step,
    responses_to_calibrate,
    uncalibrated_latents,
)
from esr_eval.provider.arguments import ModelArgs
from esr_eval.scorers.reliability import QUESTIONS
from esr_eval.subjects import Subject
from esr_eval.vectors.file import default_vectors, read_vectors

OFFLINE_SECOND_JUDGE = "esr-judge/lexical"
"""The further judge of a subject whose own judge is the offline one."""


@dataclass(frozen=True)
class Scale:
    """Sizes of all experiments.

    Attributes:
        latents: Latents of the main run and all its replays.
        trials: Trials for each of them.
        sweep: Levels, latents and trials per latent of the boost sweep.
        answers: Answers to each of the tasks that detectors are found on.
        random_sets: Sets of random latents that are ablated.
        vectors: Trials for each concept vector.
        held_out: Trials per latent on the held-out questions.
        prefill: Characters of each answer that the other condition continues.
        cross_judge: Stored responses that every further judge sees.
        episodes: Episodes whose activations are read, beside as many answers without a restart
            and as many unsteered ones.
        thoughts: Trials for each latent in which a thought is injected.
        pushes: Trials for each prompt that is answered under protective and harmful pushes.
    """

    latents: int
    trials: int
    sweep: tuple[int, int, int]
    answers: int
    random_sets: int
    vectors: int
    held_out: int
    prefill: int
    cross_judge: int
    episodes: int
    thoughts: int = 4
    pushes: int = 1


SCALES = {
    # The embedded subject answers in 120 tokens: a beginning of 1,100 characters would be all.
    "tiny": Scale(12, 4, (8, 3, 2), 2, 3, 2, 3, 160, 60, 24),
    "small": Scale(30, 5, (8, 10, 5), 5, 3, 5, 5, 1100, 300, 60, pushes=3),
    "full": Scale(500, 5, (8, 25, 10), 10, 3, 40, 5, 1100, 1000, 150, pushes=10),
}
"""By name; full is the paper's."""


@dataclass(frozen=True)
class Choices:
    """What decides the run beside the subject.

    Attributes:
        scale: Sizes.
        seed: Of all draws.
        latents: File of labelled latents; None takes the subject's.
        detectors: Detector set to ablate; None takes the run's own discovery.
        vectors: File of concept vectors; None takes the subject's.
        n_vectors: How many vectors there are; 0 leaves the experiment out.
        graders: Further judges for the cross-judge experiment; none leaves it out.
        tuned: Whether there is a fine-tuned subject; without one its experiment is left out.
        base: Whether the subject itself is tuned, and its base's main run stands beside its own.
        uncalibrated: Responses that the calibration still takes, by step.
        uncalibrated_sweep: Those that the boost sweep's takes where the main run's does not run.
        rejudge: Share of the main run's responses that the judge scores again.
        beyond: Whether what the paper does not ask is run as well (`data.experiments.BEYOND`).
    """

    scale: Scale
    seed: int = 0
    latents: str | None = None
    detectors: str | None = None
    vectors: str | None = None
    n_vectors: int = 0
    graders: tuple[str, ...] = ()
    tuned: bool = False
    base: bool = False
    uncalibrated: Mapping[str, int] | None = None
    uncalibrated_sweep: int = 0
    rejudge: float = 0.0
    beyond: bool = False


def choose(
    run: EvalSet,
    *,
    scale: str,
    seed: int,
    latents: str | None,
    detectors: str | None,
    vectors: str | None,
    graders: Sequence[str],
    rejudge: float = 0.0,
    beyond: bool = False,
) -> Choices:
    """Check what the user asked for and find what each step will take; loads nothing.

    Raises:
        EsrError: The scale is unknown, or there are no latents, or too few.
    """
    if scale not in SCALES:
        raise EsrError(f"There is no scale '{scale}'; there are {', '.join(SCALES)}.")
    sizes = SCALES[scale]
    runtime = ModelArgs.parse(run.model_args).runtime(run.subject)
    available = load_latents(run.subject, latents, runtime)
    if sizes.latents > len(available):
        raise EsrError(
            f"The scale {scale} takes {sizes.latents} latents, but {run.subject.name} has "
            f"{len(available)} with a label: pass more of them (--latents FILE) or a smaller scale."
        )
    main = uncalibrated_latents(run, False, latents, sizes.latents, seed)
    sweep = uncalibrated_latents(run, False, latents, sizes.sweep[1], seed)
    each = responses_per_latent(run.subject, run.prior)
    uncalibrated = {
        "calibrate": each * len(main),
        # Latents that both draws share are calibrated once.
        "calibrate_sweep": each * len(set(sweep) - set(main)),
    }
    if run.has_tuned:
        uncalibrated["calibrate_tuned"] = responses_to_calibrate(
            run, True, latents, sizes.latents, seed
        )
    if run.base is not None:
        uncalibrated["calibrate_base"] = responses_to_calibrate(
            run, False, latents, sizes.latents, seed, base=True
        )
    return Choices(
        scale=sizes,
        seed=seed,
        latents=latents,
        detectors=detectors,
        vectors=vectors,
        n_vectors=_count_vectors(run.base or run.subject, vectors),
        graders=tuple(graders),
        tuned=run.has_tuned,
        base=run.base is not None,
        uncalibrated=uncalibrated,
        uncalibrated_sweep=each * len(sweep),
        rejudge=rejudge,
        beyond=beyond,
    )


def identity(run: EvalSet, choices: Choices) -> dict[str, Any]:
    """What must be the same for a run to go on from another's logs."""
    chosen = asdict(choices)
    del chosen["uncalibrated"], chosen["uncalibrated_sweep"]  # fall to nothing as the run goes on
    del chosen["base"]  # told by its name
    del chosen["beyond"]  # adds steps, and changes none
    del chosen["scale"]["thoughts"], chosen["scale"]["pushes"]  # of these steps
    return {
        "model": run.subject.name,
        "judge": run.judge,
        "model_args": run.model_args,
        "adapter": run.adapter,
        "max_tokens": run.max_tokens,
        **({"prior": run.prior} if run.prior else {}),
        **({"base": run.base.name} if run.base else {}),
        **chosen,
    }


def _count_vectors(subject: Subject, vectors: str | None) -> int:
    """How many vectors the run adds; 0 where the user names none and none are shipped."""
    if vectors is None:
        try:
            vectors = default_vectors(subject)
        except EsrError:
            return 0
    return len(read_vectors(vectors).info.concepts)


def plan_steps(choices: Choices) -> list[Step]:
    """All steps, each after those that it needs."""
    steps = [*_originals(choices), *_replays(choices), *_prefills(choices)]
    if choices.n_vectors:
        steps.append(_vectors(choices))
    if choices.tuned:
        steps += _tuned(choices)
    if choices.base:
        steps += _base(choices)
    steps.append(_activations(choices))
    if choices.beyond:
        steps += [_injected(choices), _protective(choices)]
    if choices.graders:
        steps.append(_cross_judge(choices))
    return steps


def only_steps(choices: Choices, tasks: Sequence[str]) -> list[Step]:
    """The steps of some tasks, and those that they need.

    Args:
        choices: What decides the run.
        tasks: Inspect tasks, e.g. `ablation`.

    Raises:
        EsrError: No step runs such a task.
    """
    steps = plan_steps(choices)
    there = list(dict.fromkeys(step.task for step in steps))
    if unknown := [task for task in tasks if task not in there]:
        raise EsrError(
            f"No step of this run is of the task {', '.join(unknown)}; there are "
            f"{', '.join(there)}."
        )
    wanted: set[str] = set()
    for step in reversed(steps):
        if step.task in tasks or step.key in wanted:
            wanted |= {step.key, *step.needs}
    if "calibrate" not in wanted:  # which finds some of the sweep's strengths on its way
        alone = {**(choices.uncalibrated or {}), "calibrate_sweep": choices.uncalibrated_sweep}
        steps = plan_steps(replace(choices, uncalibrated=alone))
    # A calibration that has nothing to find is needed by nobody.
    return [
        step
        for step in steps
        if step.key in wanted
        and (step.task != "calibrate" or step.generations or step.task in tasks)
    ]


def left_out(choices: Choices) -> list[str]:
    """Experiments that this run does not do, each with the way to have it."""
    reasons = []
    if not choices.tuned and not choices.base:
        reasons.append("4 (fine-tuning): there is no tuned subject; name its adapter (--adapter).")
    if not choices.n_vectors:
        reasons.append(
            "13 (vectors): there are no concept vectors; make them with `esr-eval vectors extract` "
            "and name the file (--vectors)."
        )
    if not choices.graders:
        reasons.append("7 (cross-judge): there is no further judge; name some (--graders).")
    return reasons


def _main(choices: Choices) -> tuple[Args, Args]:
    """Arguments of the calibration and of the main run."""
    scale = choices.scale
    drawn = _given(latents=choices.latents, seed=choices.seed) | {"n_latents": scale.latents}
    return drawn, {**drawn, "trials_per_latent": scale.trials, "holistic": True}


def _originals(choices: Choices) -> list[Step]:
    scale = choices.scale
    shared = _given(latents=choices.latents, seed=choices.seed)
    drawn, main = _main(choices)
    levels, sweep_latents, sweep_trials = scale.sweep
    few = {**shared, "n_latents": sweep_latents}
    # Another draw than the main run's; what both share is calibrated once.
    sweep_calibration = "calibrate" if few == drawn else "calibrate_sweep"
    sweep = {**few, "levels": levels, "trials_per_latent": sweep_trials}
    answers = len(prompts("detector_discovery")) * scale.answers
    discovery = {"answers_per_task": scale.answers, "seed": choices.seed}
    trials, held_out = scale.latents * scale.trials, scale.latents * scale.held_out
    return [
        _calibration("calibrate", drawn, choices),
        *([] if few == drawn else [_calibration(sweep_calibration, few, choices)]),
        _judged_again(
            _answered(
                "main",
                "esr",
                _always(main | {"rejudge": choices.rejudge}),
                trials,
                ("calibrate",),
                views=2,
            ),
            choices.rejudge,
        ),
        _answered("no_steering", "esr", _always({**main, "steering": False}), trials, views=2),
        _answered(
            "boost_sweep",
            "boost_sweep",
            _always(sweep),
            levels * sweep_latents * sweep_trials,
            (sweep_calibration,),
        ),
        Step(
            "detectors",
            "detectors",
            _always(discovery),
            generations=answers,
            readings=2 * answers,
        ),
        _answered(
            "held_out",
            "held_out",
            _always({**drawn, "trials_per_latent": scale.held_out}),
            held_out,
            ("calibrate",),
        ),
    ]


def _replays(choices: Choices) -> list[Step]:
    trials = choices.scale.latents * choices.scale.trials

    def ablation(logs: Logs) -> Args:
        return {**_detectors(choices, logs), "replay": logs["main"], "holistic": True}

    def random_set(draw: int) -> ArgsOf:
        return lambda logs: {
            **_detectors(choices, logs),
            "discovery": logs["detectors"],
            "replay": logs["main"],
            "draw": draw,
        }

    def meta(variant: str) -> ArgsOf:
        return lambda logs: {"variant": variant, "replay": logs["main"]}

    both = ("main", "detectors")
    return [
        _answered("ablation", "ablation", ablation, trials, both, views=2),
        *(
            _answered(
                f"random_ablation_{draw + 1}", "random_ablation", random_set(draw), trials, both
            )
            for draw in range(choices.scale.random_sets)
        ),
        *(
            _answered(f"meta_{variant}", "meta_prompt", meta(variant), trials, ("main",))
            for variant in meta_prompts()
        ),
    ]


def _prefills(choices: Choices) -> list[Step]:
    trials = choices.scale.latents * choices.scale.trials

    def prefill(source: str, mirror: bool) -> ArgsOf:
        beginning = {"characters": choices.scale.prefill, "mirror": mirror}
        return lambda logs: {"source": logs[source], **beginning}

    def held(random: bool) -> ArgsOf:
        plain = prefill("main", False)
        return lambda logs: {
            **plain(logs),
            **_detectors(choices, logs),
            **({"discovery": logs["detectors"]} if random else {}),
        }

    both = ("main", "detectors")
    # The answer as a whole is judged, and what the model adds to its beginning.
    paired = partial(_answered, task="prefill_control", trials=trials, views=2)
    return [
        paired("prefill", args=prefill("main", False), needs=("main",)),
        paired("prefill_ablation", args=held(False), needs=both),
        paired("prefill_random", args=held(True), needs=both),
        _answered(
            "prefill_mirror",
            "prefill_control",
            prefill("no_steering", True),
            trials,
            ("no_steering",),
        ),
    ]


def _vectors(choices: Choices) -> Step:
    per_vector = choices.scale.vectors
    args = _given(vectors=choices.vectors, trials_per_vector=per_vector, seed=choices.seed)
    step = _answered("vectors", "vectors", _always(args), choices.n_vectors * per_vector)
    # Vectors and their strengths are the base's: training moves the strengths.
    return replace(step, base=choices.base and choices.vectors is None)


def _tuned(choices: Choices) -> list[Step]:
    scale = choices.scale
    trials = scale.latents * scale.trials
    drawn = _given(latents=choices.latents, seed=choices.seed, n_latents=scale.latents)

    def run(steering: bool) -> ArgsOf:
        return lambda logs: {"replay": logs["main"], "steering": steering, "holistic": True}

    steps = [
        _calibration("calibrate_tuned", drawn, choices),
        _answered(
            "finetuned", "finetuned", run(True), trials, ("main", "calibrate_tuned"), views=2
        ),
        _answered("finetuned_no_steering", "finetuned", run(False), trials, ("main",), views=2),
    ]
    return [replace(step, tuned=True) for step in steps]


def _base(choices: Choices) -> list[Step]:
    """The main run of what the subject was tuned from: what training changed."""
    trials = choices.scale.latents * choices.scale.trials
    drawn, main = _main(choices)
    unsteered = _always({**main, "steering": False})
    steps = [
        _calibration("calibrate_base", drawn, choices),
        _answered("main_base", "esr", _always(main), trials, ("calibrate_base",), views=2),
        _answered("no_steering_base", "esr", unsteered, trials, views=2),
    ]
    return [replace(step, base=True) for step in steps]


def _activations(choices: Choices) -> Step:
    """Episodes of whichever subject is expected to correct itself."""
    source, baseline = _episodes(choices)

    def args(logs: Logs) -> Args:
        return {
            "source": logs[source],
            "baseline": logs[baseline],
            **_detectors(choices, logs),
            "which": "auto",
            "controls": True,
            "episodes": choices.scale.episodes,
            "seed": choices.seed,
        }

    # Answers with a restart, as many without one, and as many unsteered ones.
    passes = 3 * choices.scale.episodes
    needs = (source, baseline, "detectors")
    step = Step("activations", "activations", args, needs, readings=passes, verdicts=passes)
    return replace(step, tuned=choices.tuned)


def _injected(choices: Choices) -> Step:
    """Thoughts injected as in the main run: per latent, is it reported, and does it start over?"""
    scale = choices.scale

    def args(logs: Logs) -> Args:
        return {
            "replay": logs["main"],
            "trials_per_latent": scale.thoughts,
            "seed": choices.seed,
        }

    # Each with and without injection: the thought, two unrelated questions and one that is true.
    questions = 2 * 4 * scale.latents * scale.thoughts
    return _answered("injected_thought", "injected_thought", args, questions, ("main",))


def _protective(choices: Choices) -> Step:
    """Pushes towards harm and protection; it needs neither latents nor another step's log."""
    args = {"trials_per_prompt": choices.scale.pushes, "seed": choices.seed}
    answers = choices.scale.pushes * answers_per_turn()
    return _answered("protective", "protective", _always(args), answers)


def _cross_judge(choices: Choices) -> Step:
    sources = tuple(dict.fromkeys(("main", _episodes(choices)[0])))

    def args(logs: Logs) -> Args:
        return {
            "source": ",".join(logs[key] for key in sources),
            "graders": ",".join(choices.graders),
            "n": choices.scale.cross_judge,
            "seed": choices.seed,
        }

    verdicts = len(choices.graders) * choices.scale.cross_judge
    return Step(
        "cross_judge", "cross_judge", args, sources, verdicts=verdicts, judges=choices.graders
    )


def _episodes(choices: Choices) -> tuple[str, str]:
    if choices.tuned:
        return "finetuned", "finetuned_no_steering"
    return "main", "no_steering"


def _answered(
    key: str, task: str, args: ArgsOf, trials: int, needs: tuple[str, ...] = (), views: int = 1
) -> Step:
    return Step(key, task, args, needs, generations=trials, verdicts=views * trials)


def _judged_again(step: Step, share: float) -> Step:
    """The step with the questions that judging a share of its responses again takes."""
    more = math.ceil(share * step.generations) * QUESTIONS
    return replace(step, verdicts=step.verdicts + more)


def _calibration(key: str, args: Args, choices: Choices) -> Step:
    responses = (choices.uncalibrated or {}).get(key, 0)
    return _answered(key, "calibrate", _always(args), responses)


def _detectors(choices: Choices, logs: Logs) -> Args:
    """The set to ablate; where the paper's rule finds none, the most separable latents."""
    if choices.detectors is not None:
        return {"detectors": choices.detectors}
    return {"detectors": logs["detectors"], "rule": rule_for(logs["detectors"])}


@cache
def rule_for(log: str) -> str:
    """The paper's rule where it finds a detector in this discovery, else the one by AUC.

    Kept, since several steps ask and a discovery's activations take long to read.
    """
    from esr_eval.detectors.discovery import find_detectors

    try:
        return "silent" if find_detectors(log).sets["silent"].detectors else "separability"
    except EsrError:
        return "silent"  # the task that is given the log tells what is wrong with it


def _always(args: Args) -> ArgsOf:
    return lambda logs: args


def _given(**args: Any) -> Args:
    return {name: value for name, value in args.items() if value is not None}
