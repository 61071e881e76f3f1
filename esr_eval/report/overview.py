"""The first screen: rates by condition in one figure, and a line on what each experiment says."""

from collections.abc import Sequence

from esr_eval.data.experiments import BEYOND, EXPERIMENTS, Experiment
from esr_eval.logs.conditions import Condition
from esr_eval.logs.measures import Measured
from esr_eval.report.dots import Dots, Group, Key, Lane, Mark, Row, Shape, lanes_of
from esr_eval.report.evidence import Compared, Evidence
from esr_eval.report.published import Verdict, figure_text, verdicts
from esr_eval.report.section import (
    Block,
    Paragraph,
    Part,
    Section,
    count,
    mean,
    percent,
    points,
)
from esr_eval.text import one_line

_RESTARTS: tuple[tuple[str, Shape, str], ...] = (
    ("confirmed", "full", "by judge and phrase detector at one place"),
    ("multi_attempt", "ring", "by the judge"),
    ("restart_phrase", "triangle", "by the phrase detector"),
)
_BETTER: tuple[tuple[str, Shape, str], ...] = (
    ("esr", "diamond", "last attempt above the first (ESR)"),
    ("esr_margin", "square", "above by the margin"),
)
_KEYS = [
    Key("full", "starts over, found by judge and phrase detector (line: 95 % interval)"),
    Key("ring", "found by the judge"),
    Key("triangle", "found by the phrase detector"),
    Key("diamond", "ends better than it began: ESR (line: 95 % interval)"),
    Key("square", "better by the margin"),
]
_PUBLISHED = Key("published", "published, run alike")
_ELSEWHERE = Key("elsewhere", "published for another model, judge or setting")
LEVEL = 0.05
"""Of corrected p values below which a difference counts as shown."""
LONGEST_LINE = 220


def overview_section(evidence: Evidence, special: Sequence[Section]) -> Section | None:
    """The figure, and a verdict for each experiment that the logs hold.

    Args:
        evidence: The logs.
        special: Sections that report on an experiment of their own.
    """
    lines = [
        {"experiment": one, "verdict": verdict(one, evidence, special)}
        for one in present(evidence, special)
    ]
    figure = rates_figure(evidence.conditions, "Answers that start over, and that end better")
    parts: list[Part] = []
    if figure is not None:
        parts.append(figure)
    if lines:
        parts.append(Block("verdicts", lines))
    if not parts:
        return None
    parts.append(Paragraph(_READING))
    return Section(id="overview", title="How often does the model start over?", parts=parts)


_READING = (
    "Share of answers with an attempt at the task, in percent. Intervals respect the clustering of "
    "trials by latent. All sentences and numbers are computed from the logs."
)


def present(evidence: Evidence, special: Sequence[Section]) -> list[Experiment]:
    """The experiments that logs, or sections of their own, have something to say of."""
    # A tuned subject's main run beside its base's answers the fourth without logs of its own.
    own = {one.experiment for one in special if one.answers}
    return [one for one in (*EXPERIMENTS, *BEYOND) if evidence.logs_of(one.id) or one.id in own]


def rates_figure(conditions: Sequence[Condition], title: str) -> Dots | None:
    """Restarts by who finds them, and improvement, by condition, grouped by experiment."""
    groups: dict[str, Group] = {}
    known: list[Verdict] = []
    for one in conditions:
        beside = verdicts(one)
        lanes = [
            lane
            for name, marks in (("starts over", _RESTARTS), ("ends better", _BETTER))
            if (lane := _lane(name, marks, one, beside)) is not None
        ]
        if not lanes:
            continue
        found = one.experiment
        heading = f"{found.number} · {found.title}" if found else one_line(one.log.condition)
        judged = one.measures["multi_attempt"]
        note = f"{judged.n:,} of {len(one.trials):,} answers hold an attempt"
        if judged.n == len(one.trials):
            note = count(judged.n, "answer")
        group = groups.setdefault(heading, Group(heading, []))
        group.rows.append(Row(one_line(one.name), note, lanes))
        known += [entry for entry in beside if entry.figure.metric in ("multi_attempt", "esr")]
    if not lanes_of(list(groups.values())):
        return None
    keys = [*_KEYS]
    keys += [_PUBLISHED] if any(not one.reasons for one in known) else []
    keys += [_ELSEWHERE] if any(one.reasons for one in known) else []
    return Dots(title, "%", list(groups.values()), keys)


def _lane(
    name: str, wanted: Sequence[tuple[str, Shape, str]], one: Condition, beside: Sequence[Verdict]
) -> Lane | None:
    found = {key: one.measures[key] for key, _, _ in wanted if key in one.measures}
    if "multi_attempt" not in one.measures or not found:
        return None
    main = next(iter(found))
    marks = []
    for key, shape, meaning in wanted:
        if key in found:
            low, high = _bounds(found[key]) if key == main else (None, None)
            said = f"{meaning}: {percent(found[key])}"
            marks.append(Mark(shape, 100 * found[key].value, low, high, said))
    # The paper's rates are the judge's.
    metric = "multi_attempt" if name == "starts over" else "esr"
    marks += [_published(entry) for entry in beside if entry.figure.metric == metric]
    return Lane(name, marks, percent(found[main]))


def _bounds(found: Measured) -> tuple[float | None, float | None]:
    if found.low is None or found.high is None:
        return None, None
    return 100 * found.low, 100 * found.high


def _published(entry: Verdict, scale: float = 100) -> Mark:
    figure = entry.figure
    least, most = (scale * bound for bound in figure.bounds)
    low, high = max(0.0, least), min(100.0, most)
    reasons = f" ({', '.join(entry.reasons)})" if entry.reasons else ""
    said = f"published for {figure.subject or 'five models'}: {figure_text(figure)}{reasons}"
    shape: Shape = "elsewhere" if entry.reasons else "published"
    place = high if figure.most is not None else low
    if figure.value is not None:
        return Mark(shape, place, None, None, said)
    return Mark(shape, place, low, high, said)


def scores_figure(conditions: Sequence[Condition]) -> Dots | None:
    """Mean scores of first attempts, by condition."""
    rows = []
    keys = [Key("full", "mean score of first attempts (line: 95 % interval)")]
    for one in conditions:
        found = one.measures.get("first_score")
        if found is None:
            continue
        beside = [entry for entry in verdicts(one) if entry.figure.metric == "first_score"]
        said = f"mean first score: {mean(found)}"
        marks = [Mark("full", found.value, found.low, found.high, said)]
        marks += [_published(entry, 1) for entry in beside]
        for entry in beside:
            key = _ELSEWHERE if entry.reasons else _PUBLISHED
            keys += [key] if key not in keys else []
        lane = Lane("first score", marks, mean(found))
        rows.append(Row(one_line(one.name), count(found.n, "answer"), [lane]))
    if not rows:
        return None
    return Dots("First attempts, 0 to 100", "", [Group("", rows)], keys, (0.0, 100.0))


def experiment_figures(
    experiment: Experiment, evidence: Evidence, special: Section | None
) -> list[Part]:
    """The small figure of an experiment: its section's own, or its conditions beside the main run.

    Args:
        experiment: Which.
        evidence: The logs.
        special: The section that reports on it alone.
    """
    if special is not None and special.figures:
        return list(special.figures)
    own = evidence.of(experiment.id)
    mains = [
        one.main
        for one in evidence.compared
        if any(one.condition is condition for condition in own)
    ]
    shown = list({id(one): one for one in [*mains, *own]}.values())
    title = "Beside the main run on the same trials" if mains else "Rates"
    figures = [rates_figure(shown, title) if mains else None, scores_figure(shown)]
    return [one for one in figures if one is not None]


def verdict(experiment: Experiment, evidence: Evidence, special: Sequence[Section]) -> str:
    """What the logs say of an experiment, in a line."""
    own = next((one for one in special if one.experiment == experiment.id), None)
    if own is not None and (own.verdict or own.answers):
        return one_line(own.verdict or own.answers[0], LONGEST_LINE)
    conditions = evidence.of(experiment.id)
    if not conditions:
        return f"{count(len(evidence.logs_of(experiment.id)), 'log')} without a score yet."
    scored = [one for one in conditions if "multi_attempt" in one.measures]
    if not scored:
        return "No answer held a scored attempt."
    against = [one for one in evidence.compared if any(one.condition is c for c in scored)]
    rates = [one for one in against if one.metric == "multi_attempt" and one.rate is not None]
    if all(one.steering == "unsteered" for one in scored):
        return _unsteered(scored, against)
    if rates:
        return _differences(rates)
    return f"{_rates(scored)}."


def _rates(conditions: Sequence[Condition]) -> str:
    said = f"{_share(conditions, 'multi_attempt')} of {_answers(conditions)} start over"
    return f"{said}, {_share(conditions, 'esr')} end better than they began{_in(conditions)}"


def _unsteered(conditions: Sequence[Condition], against: Sequence[Compared]) -> str:
    firsts = [one.measures["first_score"].value for one in conditions]
    said = f"{_share(conditions, 'multi_attempt')} of {_answers(conditions)} start over"
    said += f"; first attempts score {_span(firsts, '.1f')} of 100{_in(conditions)}"
    changes = [
        one.score.value for one in against if one.metric == "first_score" and one.score is not None
    ]
    if changes:
        said += f", {_span(changes, '+.1f')} against the same trials of the main run"
    return f"{said}."


def _differences(compared: Sequence[Compared]) -> str:
    """How restarts differ from the main run's, and whether that is more than noise."""
    clear: dict[str, list[Compared]] = {"fewer restarts": [], "more restarts": [], "": []}
    for one in compared:
        assert one.rate is not None
        p = one.holm if one.holm is not None else one.p_value
        less = one.rate.difference.value < 0
        word = "fewer restarts" if less else "more restarts"
        clear[word if p is not None and p < LEVEL else ""].append(one)
    said = []
    for word, found in clear.items():
        if not found:
            continue
        told = f"{word} than in the main run" if word else "no difference from the main run shown"
        if len(found) == 1 and found[0].rate is not None:
            told += f": {points(found[0].rate.difference)}"
        else:
            values = [100 * one.rate.difference.value for one in found if one.rate is not None]
            told += f" in {len(found)} conditions: {_span(values, '+.1f')} points"
        said.append(told)
    return f"{_capital('; '.join(said))}."


def _share(conditions: Sequence[Condition], key: str) -> str:
    """A rate with its interval, or the range of several."""
    found = [one.measures[key] for one in conditions if key in one.measures]
    if len(found) == 1:
        return percent(found[0])
    return f"{_span([100 * one.value for one in found], '.1f')} %"


def _answers(conditions: Sequence[Condition]) -> str:
    return count(sum(one.measures["multi_attempt"].n for one in conditions), "answer")


def _in(conditions: Sequence[Condition]) -> str:
    return f", in {len(conditions)} conditions" if len(conditions) > 1 else ""


def _span(values: Sequence[float], form: str) -> str:
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
