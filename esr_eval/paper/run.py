"""Run steps as one Inspect eval set, one after another; what has ended well is kept."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inspect_ai import eval_set
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log
from inspect_ai.model import GenerateConfigArgs

from esr_eval.calibration.bisection import calibration_prior
from esr_eval.calibration.methods import responses_per_latent
from esr_eval.calibration.store import calibrated_strengths
from esr_eval.calibration.strengths import setting_of
from esr_eval.dataset import Latent, has_fetched_labels, pick_latents
from esr_eval.errors import EsrError
from esr_eval.logs.reading import Note, reading
from esr_eval.provider.arguments import ModelArgs
from esr_eval.scorers.grader import GRADER_ROLE, in_batches
from esr_eval.subjects import Subject, find_subject

STEP = "paper_step"
"""Key of a log's metadata that names the step it belongs to."""
RUN = "paper_run"
"""Key of a log's metadata that tells this run from others, in another scale, say."""
CALIBRATING = {"calibrate", "esr", "boost_sweep", "held_out"}
"""Tasks that find strengths with a prior; the other steps replay theirs, or have their own."""
ONE_BY_ONE = {"calibrate", "cross_judge"}
"""Tasks whose judges are never asked in batches: a search would wait for one in each round, and the
further judges are bound to no role."""
AT_ONCE = 1000
"""Trials that are under way where verdicts come in batches: each waits for its own."""
Logs = Mapping[str, str]
"""Steps that have ended, and where their logs lie."""
Args = dict[str, Any]
ArgsOf = Callable[[Logs], Args]


@dataclass(frozen=True)
class Step:
    """One task of the run.

    Attributes:
        key: Name of the step.
        task: Its Inspect task.
        args: The task's arguments, given the logs of the steps it needs.
        needs: Steps that must have ended before.
        tuned: Whether the fine-tuned subject runs it.
        base: Whether the base runs it that the subject was tuned from.
        generations: Responses that the subject writes.
        readings: Forward passes over finished answers.
        verdicts: Questions to a judge.
        judges: Who is asked in place of the run's judge, each of them equally often.
    """

    key: str
    task: str
    args: ArgsOf
    needs: tuple[str, ...] = ()
    tuned: bool = False
    base: bool = False
    generations: int = 0
    readings: int = 0
    verdicts: int = 0
    judges: tuple[str, ...] = ()


@dataclass(frozen=True)
class EvalSet:
    """Who answers and judges the steps of a run, and where their logs lie.

    Attributes:
        subject: Who answers.
        model_args: Arguments of the provider.
        adapter: Adapter of the fine-tuned subject; None takes the subject's tuned twin, if any.
        grader: Judge; None takes the subject's.
        folder: Where logs lie.
        max_tokens: Longest response; None leaves it to the subject.
        identity: What must be the same for a run to go on from another's logs.
        prior: Changes to the prior of all calibrations.
        base: What the subject was tuned from, where its main run stands beside the subject's.
        judge_batch: Whether the judge is asked in batches, where a step can wait for them.
    """

    subject: Subject
    model_args: dict[str, Any]
    adapter: str | None
    grader: str | None
    folder: Path
    max_tokens: int | None = None
    identity: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] | None = None
    base: Subject | None = None
    judge_batch: bool = False

    @property
    def judge(self) -> str:
        """The judge's name."""
        return self.grader or self.subject.grader

    def model(self, tuned: bool, base: bool = False) -> tuple[str, dict[str, Any]]:
        """Name and arguments of the model that runs a step."""
        if base:
            assert self.base is not None
            return f"esr/{self.base.name}", self.model_args
        if not tuned:
            return f"esr/{self.subject.name}", self.model_args
        if self.adapter is not None:
            return f"esr/{self.subject.name}", {**self.model_args, "adapter": self.adapter}
        assert self.subject.tuned is not None
        return f"esr/{self.subject.tuned}", self.model_args

    @property
    def has_tuned(self) -> bool:
        """Whether there is a fine-tuned subject."""
        return self.adapter is not None or self.subject.tuned is not None


def finished(
    folder: Path, identity: dict[str, Any], note: Note = lambda text: None, *, aside: bool = False
) -> dict[str, str]:
    """Logs of the steps that have ended well, by step.

    Args:
        folder: Where logs lie.
        identity: See `EvalSet`.
        note: Told of files that are no logs.
        aside: Whether these are renamed: Inspect runs no eval set in a folder with such a file.

    Raises:
        EsrError: The folder holds another run.
    """
    if not folder.is_dir():
        return {}
    found = {}
    wanted = json.loads(json.dumps(identity))  # as it is read from a log
    for info in list_eval_logs(str(folder), recursive=False, descending=False):
        path = folder / Path(info.name).name
        try:
            with reading(path):
                log = read_eval_log(str(path), header_only=True)
        except EsrError as error:
            if path.is_dir():
                continue
            if aside:
                path.rename(path.with_name(f"{path.name}.unreadable"))
            note(f"{'Renamed to .unreadable' if aside else 'Left out'}: {error}")
            continue
        metadata = log.eval.metadata or {}
        step = metadata.get(STEP)
        if not step:
            continue
        other = metadata.get(RUN, {})
        if different := [name for name, value in wanted.items() if other.get(name) != value]:
            raise EsrError(
                f"{folder} holds another run (other {', '.join(different)}): name another folder, "
                "or repeat that run's arguments."
            )
        if log.status == "success":
            found[str(step)] = str(path)
    return found


def run_steps(
    run: EvalSet, steps: Sequence[Step], logs: dict[str, str], tell: Callable[[str], None]
) -> None:
    """Run the steps that have not ended, each going on where it was interrupted.

    Args:
        run: Who answers and judges, and where logs lie.
        steps: What to run, each after those that it needs.
        logs: Logs of the steps that have ended, by step; those of the others are added.
        tell: Told of every step that begins.

    Raises:
        EsrError: A step did not end well; the same command goes on from there.
    """
    for step in steps:
        if step.key not in logs:
            tell(step.key)
            logs[step.key] = _run_step(run, step, logs)


def can_wait(step: Step) -> bool:
    """Whether a step's verdicts can be asked for in batches."""
    return step.task not in ONE_BY_ONE


def _run_step(run: EvalSet, step: Step, logs: Logs) -> str:
    model, model_args = run.model(step.tuned, step.base)
    batched = run.judge_batch and can_wait(step)
    judge = in_batches(run.judge) if batched else run.grader
    limits: GenerateConfigArgs = {}
    # Inspect counts a limit that is None as one, too, when it compares tasks with logs.
    if run.max_tokens is not None:
        limits["max_tokens"] = run.max_tokens
    success, made = eval_set(
        f"esr_eval/{step.task}",
        task_args=_with_prior(step, step.args(logs), run.prior),
        model=model,
        model_args=model_args,
        model_roles={GRADER_ROLE: judge} if judge else None,
        max_samples=AT_ONCE if batched else None,
        metadata={STEP: step.key, RUN: run.identity},
        log_dir=str(run.folder),
        # Earlier steps of the same set lie there, too.
        log_dir_allow_dirty=True,
        retry_attempts=0,
        retry_immediate=False,
        **limits,
    )
    log: EvalLog = made[0]
    if not success or log.status != "success":
        why = f" ({log.error.message})" if log.error else ""
        raise EsrError(
            f"The step {step.key} ended early{why}: what is done is kept in {run.folder}, and "
            "the same command goes on from there."
        )
    return str(run.folder / Path(log.location).name)


def _with_prior(step: Step, args: Args, prior: dict[str, Any] | None) -> Args:
    return {**args, "prior": prior} if prior and step.task in CALIBRATING else args


def uncalibrated_latents(
    run: EvalSet, tuned: bool, latents: str | None, count: int, seed: int, base: bool = False
) -> list[Latent]:
    """The latents of a run that have no strength yet.

    Those that are chosen in the run are not known before it; they count as without.

    Args:
        run: The subjects.
        tuned: Whether it is the fine-tuned one.
        latents: File of labelled latents; None takes the subject's.
        count: How many of them.
        seed: Of their draw.
        base: Whether it is the base.

    Raises:
        EsrError: There are no labels, or fewer than latents are asked for.
    """
    name, args = run.model(tuned, base)
    subject = find_subject(name)
    runtime = ModelArgs.parse(args).runtime(subject)
    chosen = pick_latents(subject, latents, count, seed, runtime)
    if has_fetched_labels(subject, latents):
        return chosen
    prior = calibration_prior(subject, run.prior)
    setting = setting_of(runtime, subject, run.judge, prior)
    return calibrated_strengths(setting, chosen, subject.strengths)[1]


def responses_to_calibrate(
    run: EvalSet, tuned: bool, latents: str | None, count: int, seed: int, base: bool = False
) -> int:
    """Responses that calibrating a run's latents still takes; see `uncalibrated_latents`."""
    missing = uncalibrated_latents(run, tuned, latents, count, seed, base)
    return responses_per_latent(find_subject(run.model(tuned, base)[0]), run.prior) * len(missing)
