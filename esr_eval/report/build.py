"""The report's parts in order: read, compare, make the sections, write."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from esr_eval.logs.conditions import conditions_of
from esr_eval.logs.runs import told_reasons
from esr_eval.logs.stored import read_logs
from esr_eval.report import experiments, gallery, page
from esr_eval.report.comparisons import compare_with_main
from esr_eval.report.section import Evidence, Section
from esr_eval.report.sections import SECTIONS
from esr_eval.report.text import count
from esr_eval.text import one_line


def build(paths: Sequence[Path], folder: Path, note: Callable[[str], None]) -> Path:
    """See `esr_eval.report.write_report`."""
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
    sections = [experiments.section(evidence, found), *found]
    episodes = gallery.section(evidence)
    sections += [episodes] if episodes else []
    return page.write(folder, sections, _lead(evidence, sections), notes)


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
