"""Run the steps as one Inspect eval set, one after another, and make the report."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from inspect_ai import eval_set
from inspect_ai.log import EvalLog, list_eval_logs, read_eval_log
from inspect_ai.model import GenerateConfigArgs

from esr_eval._util.terminal import Terminal
from esr_eval.calibration.record import Setting
from esr_eval.calibration.store import calibrated_strengths, responses_per_latent
from esr_eval.dataset import Latent, load_latents, pick_latents, prompts
from esr_eval.errors import EsrError
from esr_eval.logs.reading import Note, reading
from esr_eval.paper.scales import SCALES
from esr_eval.paper.steps import Choices, Step, plan_steps
from esr_eval.provider.arguments import ModelArgs
from esr_eval.scorers.grader import GRADER_ROLE
from esr_eval.subjects import Subject, find_subject
from esr_eval.vectors.file import default_vectors, read_vectors

STEP = "paper_step"
"""Key of a log's metadata that names the step it belongs to."""
RUN = "paper_run"
"""Key of a log's metadata that tells this run from others, in another scale, say."""


@dataclass(frozen=True)
class Paper:
    """A whole-paper run as the user asked for it.

    Attributes:
        subject: Who answers.
        model_args: Arguments of the provider.
        adapter: Adapter of the fine-tuned subject; None takes the subject's tuned twin, if any.
        grader: Judge; None takes the subject's.
        folder: Where logs lie.
        max_tokens: Longest response; None leaves it to the subject.
    """

    subject: Subject
    model_args: dict[str, Any]
    adapter: str | None
    grader: str | None
    folder: Path
    max_tokens: int | None = None

    @property
    def judge(self) -> str:
        """The judge's name."""
        return self.grader or self.subject.grader

    def model(self, tuned: bool) -> tuple[str, dict[str, Any]]:
        """Name and arguments of the model that runs a step."""
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


def choose(
    paper: Paper,
    *,
    scale: str,
    seed: int,
    latents: str | None,
    detectors: str | None,
    vectors: str | None,
    graders: Sequence[str],
) -> Choices:
    """Check what the user asked for and find what each step will take; loads nothing.

    Raises:
        EsrError: The scale is unknown, or there are no latents, or too few.
    """
    if scale not in SCALES:
        raise EsrError(f"There is no scale '{scale}'; there are {', '.join(SCALES)}.")
    sizes = SCALES[scale]
    runtime = ModelArgs.parse(paper.model_args).runtime(paper.subject)
    available = load_latents(paper.subject, latents, runtime)
    if sizes.latents > len(available):
        raise EsrError(
            f"The scale {scale} takes {sizes.latents} latents, but {paper.subject.name} has "
            f"{len(available)} with a label: pass more of them (--latents FILE) or a smaller scale."
        )
    main = uncalibrated_latents(paper, False, latents, sizes.latents, seed)
    sweep = uncalibrated_latents(paper, False, latents, sizes.sweep[1], seed)
    each = responses_per_latent(paper.subject)
    uncalibrated = {
        "calibrate": each * len(main),
        # Latents that both draws share are calibrated once.
        "calibrate_sweep": each * len(set(sweep) - set(main)),
    }
    if paper.has_tuned:
        uncalibrated["calibrate_tuned"] = responses_to_calibrate(
            paper, True, latents, sizes.latents, seed
        )
    return Choices(
        scale=sizes,
        seed=seed,
        latents=latents,
        detectors=detectors,
        vectors=vectors,
        n_vectors=_count_vectors(paper.subject, vectors),
        graders=tuple(graders),
        tuned=paper.has_tuned,
        uncalibrated=uncalibrated,
    )


def run_paper(paper: Paper, choices: Choices, console: Terminal) -> list[str]:
    """Run all steps that have not ended; the logs of those that have are kept.

    Args:
        paper: The subject and where logs lie.
        choices: The sizes.
        console: Told of every step.

    Returns:
        The logs, in order.

    Raises:
        EsrError: A step did not end well; the same command goes on from there.
    """
    steps = plan_steps(choices)
    about = identity(paper, choices)
    logs = finished(paper.folder, about, console.print, aside=True)
    for number, step in enumerate(steps, 1):
        if step.key in logs:
            continue
        console.rule(f"{number} of {len(steps)}: {step.key}")
        logs[step.key] = run_step(paper, step, logs, about)
    return [logs[step.key] for step in steps]


def identity(paper: Paper, choices: Choices) -> dict[str, Any]:
    """What must be the same for a run to go on from another's logs."""
    chosen = asdict(choices)
    del chosen["uncalibrated"]  # falls to nothing as the run goes on
    return {
        "model": paper.subject.name,
        "judge": paper.judge,
        "model_args": paper.model_args,
        "adapter": paper.adapter,
        "max_tokens": paper.max_tokens,
        **chosen,
    }


def finished(
    folder: Path, about: dict[str, Any], note: Note = lambda text: None, *, aside: bool = False
) -> dict[str, str]:
    """Logs of the steps that have ended well, by step.

    Args:
        folder: Where logs lie.
        about: The run's `identity`.
        note: Told of files that are no logs.
        aside: Whether these are renamed: Inspect runs no eval set in a folder with such a file.

    Raises:
        EsrError: The folder holds another run.
    """
    if not folder.is_dir():
        return {}
    found = {}
    wanted = json.loads(json.dumps(about))
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


def run_step(paper: Paper, step: Step, logs: dict[str, str], about: dict[str, Any]) -> str:
    """Run one step, or go on with it where it was interrupted.

    Args:
        paper: The subject and where logs lie.
        step: What to run.
        logs: Logs of the steps that have ended.
        about: What must be the same for a run to go on from this one's logs.

    Returns:
        The step's log.

    Raises:
        EsrError: It did not end well; what is done is kept.
    """
    model, model_args = paper.model(step.tuned)
    success, made = eval_set(
        f"esr_eval/{step.task}",
        task_args=step.args(logs),
        model=model,
        model_args=model_args,
        model_roles={GRADER_ROLE: paper.grader} if paper.grader else None,
        metadata={STEP: step.key, RUN: about},
        log_dir=str(paper.folder),
        # Earlier steps of the same set lie there, too.
        log_dir_allow_dirty=True,
        retry_attempts=0,
        retry_immediate=False,
        **_limits(paper),
    )
    log: EvalLog = made[0]
    if not success or log.status != "success":
        why = f" ({log.error.message})" if log.error else ""
        raise EsrError(
            f"The step {step.key} ended early{why}: what is done is kept in {paper.folder}, and "
            "the same command goes on from there."
        )
    return str(paper.folder / Path(log.location).name)


def _limits(paper: Paper) -> GenerateConfigArgs:
    # Inspect counts a limit that is None as one, too, when it compares tasks with logs.
    return {} if paper.max_tokens is None else {"max_tokens": paper.max_tokens}


def _count_vectors(subject: Subject, vectors: str | None) -> int:
    """How many vectors the run adds; 0 where the user names none and none are shipped."""
    if vectors is None:
        try:
            vectors = default_vectors(subject)
        except EsrError:
            return 0
    return len(read_vectors(vectors).info.concepts)


def uncalibrated_latents(
    paper: Paper, tuned: bool, latents: str | None, count: int, seed: int
) -> list[Latent]:
    """The latents of a run that have no strength yet.

    Args:
        paper: The subjects.
        tuned: Whether it is the fine-tuned one.
        latents: File of labelled latents; None takes the subject's.
        count: How many of them.
        seed: Of their draw.

    Raises:
        EsrError: The subject has no calibration prior.
    """
    name, args = paper.model(tuned)
    subject = find_subject(name)
    runtime = ModelArgs.parse(args).runtime(subject)
    if subject.calibration is None:
        raise EsrError(
            f"{subject.name} has no calibration prior, so its strengths cannot be found: run the "
            "tasks one by one with -T strength=NUMBER."
        )
    setting = Setting.of(
        runtime,
        subject.calibration,
        paper.judge,
        prompts=[prompt.text for prompt in prompts()],
        temperature=subject.temperature,
    )
    chosen = pick_latents(subject, latents, count, seed, runtime)
    return calibrated_strengths(setting, chosen, subject.strengths)[1]


def responses_to_calibrate(
    paper: Paper, tuned: bool, latents: str | None, count: int, seed: int
) -> int:
    """Responses that calibrating a run's latents still takes; see `uncalibrated_latents`."""
    missing = uncalibrated_latents(paper, tuned, latents, count, seed)
    return responses_per_latent(find_subject(paper.model(tuned)[0])) * len(missing)
