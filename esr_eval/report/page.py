"""The report: stored logs as one HTML page that needs nothing else, and CSV tables."""

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined

from esr_eval._util.output import write_frame
from esr_eval.data.experiments import BEYOND, EXPERIMENTS, Experiment
from esr_eval.errors import EsrError
from esr_eval.logs.conditions import Condition, conditions_of, told_reasons
from esr_eval.logs.stored import read_logs
from esr_eval.report.activations import activations_section
from esr_eval.report.agreement import agreement_section
from esr_eval.report.conditions import conditions_section, second_view_section
from esr_eval.report.detectors import detectors_section
from esr_eval.report.episodes import episodes_section
from esr_eval.report.evidence import Compared, Evidence, compare_with_main, in_words, paired_section
from esr_eval.report.finetuning import finetuning_section
from esr_eval.report.injected import injected_section
from esr_eval.report.overview import experiment_figures, overview_section, present, verdict
from esr_eval.report.protective import protective_section
from esr_eval.report.published import published_section
from esr_eval.report.reach import reach_section
from esr_eval.report.recovery import prefill_section
from esr_eval.report.reliability import reliability_section
from esr_eval.report.scores import distributions_section, latents_section, sweep_section
from esr_eval.report.section import Block, Pictures, Section, count, mean, percent
from esr_eval.text import harmless, one_line

GENERATOR = "esr-eval report"
PAGE = "index.html"
TABLES = "tables"
SECTIONS: tuple[Callable[[Evidence], Section | None], ...] = (
    conditions_section,
    second_view_section,
    paired_section,
    finetuning_section,
    published_section,
    distributions_section,
    sweep_section,
    latents_section,
    detectors_section,
    prefill_section,
    activations_section,
    injected_section,
    protective_section,
    agreement_section,
    reliability_section,
    reach_section,
)
"""What the page shows, in this order, behind the episodes; those of one experiment with it."""


UNFOLDED = ("overview", "experiments", "episodes")
"""Sections that show all they have at once."""


def write_report(
    paths: Sequence[Path], folder: Path, note: Callable[[str], None] = lambda text: None
) -> Path:
    """Make the report of some logs.

    The same logs give the same files, byte by byte.

    Args:
        paths: Logs, and folders of logs (not their subfolders).
        folder: Where to; an earlier report there is replaced.
        note: Told of logs that are left out; the page tells it as well.

    Returns:
        The page.

    Raises:
        EsrError: There is no log, one that was named cannot be read, or the folder is not free.
    """
    notes: list[str] = []

    def remember(text: str) -> None:
        notes.append(one_line(text, 400))
        note(text)

    logs = read_logs(paths, remember)
    conditions = conditions_of(logs)
    evidence = Evidence(logs, conditions, compare_with_main(conditions))
    for log in logs:
        if log.experiment is None:
            told = f"{log.file} ({log.header.eval.task}) is no experiment of the paper"
            used = any(one.log is log for one in conditions)
            remember(
                f"{told}; its numbers are shown all the same." if used else f"Left out: {told}."
            )
    found = [one for make in SECTIONS if (one := make(evidence)) is not None]
    special = [one for one in found if one.experiment]
    # Sections of one experiment stand folded beneath it.
    shown = {one.id for one in present(evidence, special)}
    opening = (
        overview_section(evidence, special),
        experiments_section(evidence, special),
        episodes_section(evidence),
    )
    sections = [one for one in opening if one is not None]
    sections += [one for one in found if one.experiment not in shown]
    return write(folder, sections, _lead(evidence, sections), notes)


def _lead(evidence: Evidence, sections: Sequence[Section]) -> str:
    # A log on stored responses names all subjects that they come from.
    subjects = dict.fromkeys(
        name for log in evidence.logs if log.experiment for name in log.subject.split(", ")
    )
    judges = dict.fromkeys(one.judge for one in evidence.conditions)
    present = {log.experiment.id for log in evidence.logs if log.experiment}
    unscored = sum((Counter(one.unscored) for one in evidence.conditions), Counter[str]())
    lost = ""
    if unscored:
        why = told_reasons(dict(unscored.most_common()))
        lost = f" The verdicts on {count(unscored.total(), 'trial')} could not be used: {why}."
    return (
        f"{count(len(evidence.logs), 'log')} of {count(len(present), 'experiment')} on "
        f"{', '.join(map(one_line, subjects)) or 'no subject'}, judged by "
        f"{', '.join(map(one_line, judges)) or 'nobody yet'}.{lost}"
    )


def write(folder: Path, sections: Sequence[Section], lead: str, notes: Sequence[str]) -> Path:
    """Write the page and its tables, in place of an earlier report's.

    Args:
        folder: Where to.
        sections: In the order of the page.
        lead: The sentence below the title.
        notes: What was left out, and why.

    Returns:
        The page.

    Raises:
        EsrError: The folder is something else, or cannot be written.
    """
    page = folder / PAGE
    try:
        _make_room(folder)
        page.write_text(render(sections, lead, notes), "utf-8", errors="replace")
        for section in sections:
            for name, table in section.tables.items():
                write_frame(folder / TABLES / f"{name}.csv", table)
    except OSError as error:
        raise EsrError(f"The report cannot be written to {folder}: {error.strerror}.") from error
    return page


def render(sections: Sequence[Section], lead: str, notes: Sequence[str]) -> str:
    """The page. Everything in it is escaped; it holds no script and asks for no other file."""
    environment = Environment(
        loader=PackageLoader("esr_eval.report"),
        autoescape=True,
        undefined=StrictUndefined,
        # Whatever a section forgot to make fit to be shown; what is markup already is ours.
        finalize=lambda value: harmless(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        sections=sections,
        lead=lead,
        notes=notes,
        generator=GENERATOR,
        tables=TABLES,
        open=UNFOLDED,
        folded=_folded,
    )
    return html.encode("utf-8", "replace").decode("utf-8").lstrip()


def _folded(section: Section) -> str:
    """What stands folded in a section, in words."""
    kinds = {"table": 0, "figure": 0}
    for part in section.parts:
        kinds["table"] += part.kind == "table"
        kinds["figure"] += len(part.pictures) if isinstance(part, Pictures) else 0
    said = [count(number, noun) for noun, number in kinds.items() if number]
    return " and ".join(said) or "More"


def _make_room(folder: Path) -> None:
    """Take an earlier report's tables away; leave anything else alone.

    Raises:
        EsrError: What is there is no report.
    """
    page = folder / PAGE
    if folder.exists() and not folder.is_dir():
        raise EsrError(f"{folder} is a file: name a folder with -o.")
    if page.exists():
        with page.open(encoding="utf-8", errors="replace") as file:
            if GENERATOR not in file.read(2000):
                raise EsrError(f"{page} is no report of esr-eval: name another folder with -o.")
        for table in (folder / TABLES).glob("*.csv"):
            table.unlink()
    (folder / TABLES).mkdir(parents=True, exist_ok=True)


_ARGUMENTS = {
    "ablation": "-T detectors=DETECTORS -T replay=MAIN",
    "random_ablation": "-T detectors=DETECTORS -T discovery=DISCOVERY -T replay=MAIN",
    "finetuned": "-M adapter=ADAPTER",
    "meta_prompt": "-T variant=self_monitor -T replay=MAIN",
    "activations": "-T source=MAIN -T baseline=UNSTEERED -T detectors=DETECTORS",
    "cross_judge": "-T source=MAIN -T graders=JUDGE,JUDGE",
    "no_steering": "-T replay=MAIN",
    "prefill_control": "-T source=MAIN",
    "prefill_mirror": "-T source=UNSTEERED",
    "prefill_ablation": "-T source=MAIN",
}
"""What a task needs beyond the model; capital words are logs or files of other experiments."""


def experiments_section(evidence: Evidence, special: Sequence[Section]) -> Section:
    """Each experiment with its figure, all else folded, and the commands of those absent.

    Args:
        evidence: The logs.
        special: Sections that report on an experiment of their own, such as the detectors.
    """
    own = {one.experiment: one for one in special}
    found = []
    tables: dict[str, pd.DataFrame] = {}
    for experiment in present(evidence, special):
        section = own.get(experiment.id)
        answers = list(section.answers) if section else []
        if not answers:
            answers = [sentence(one, evidence.compared) for one in evidence.of(experiment.id)]
        tables |= section.tables if section else {}
        found.append(
            {
                "experiment": experiment,
                "verdict": verdict(experiment, evidence, special),
                "figures": experiment_figures(experiment, evidence, section),
                "answers": answers,
                "parts": section.parts if section else [],
            }
        )
    shown = {one["experiment"] for one in found}
    absent = [
        {"experiment": one, "command": command(one, evidence)}
        for one in (*EXPERIMENTS, *BEYOND)
        if one not in shown
    ]
    return Section(
        id="experiments",
        title="Experiment by experiment",
        parts=[Block("experiments", {"present": found, "absent": absent})],
        tables=tables,
    )


def command(experiment: Experiment, evidence: Evidence) -> str:
    """The command that runs an experiment on the report's subject."""
    subject = next((log.subject for log in evidence.logs if log.experiment), "NAME")
    model = shlex.quote(f"esr/{one_line(subject)}")
    parts = [f"inspect eval esr_eval/{experiment.task} --model {model}"]
    return " ".join([*parts, _ARGUMENTS.get(experiment.id, "")]).strip()


def _beyond_noise(condition: Condition) -> str:
    found = condition.measures
    by_margin, recovered = found.get("esr_margin"), found.get("recovered")
    if by_margin is None or recovered is None:
        return ""
    return f" (by the margin {by_margin.hits:,}, recovered {recovered.hits:,}: {condition.bars})"


def sentence(condition: Condition, compared: Sequence[Compared]) -> str:
    """What came out of one condition, with numbers and n."""
    found = condition.measures
    who = [] if condition.subject in condition.name else [one_line(condition.subject)]
    about = ", ".join([*who, f"judged by {one_line(condition.judge)}"])
    name = f"{one_line(condition.name)} ({about})"
    multi, first = found.get("multi_attempt"), found.get("first_score")
    if multi is None or first is None:
        failed, unscored = int(condition.failed.sum()), found.get("unscored")
        told = f"{failed:,} failed" if failed else "none failed"
        if unscored is not None:
            told += f", {unscored.hits:,} could not be scored"
        trials = count(len(condition.trials), "trial")
        return f"{name}: no rate, since none of {trials} held a scored attempt ({told})."
    esr = found["esr"]
    said = (
        f"{name}: of {count(multi.n, 'trial')} with an attempt "
        f"({count(multi.clusters, condition.direction)}), {multi.hits:,} held several, "
        f"{percent(multi)}, and {esr.hits:,} ended better than they began, {percent(esr)}"
        f"{_beyond_noise(condition)}; first attempts scored {mean(first)} of 100."
    )
    against = [
        one
        for one in compared
        if one.condition is condition and one.metric in ("multi_attempt", "first_score")
    ]
    if against:
        said += f" Against {one_line(against[0].main.name)}: {'; '.join(map(in_words, against))}."
    return said
