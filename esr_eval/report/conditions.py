"""Every condition: what ran, what fell out, what came out, and the second view of it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from esr_eval.calibration.residual import LEAST_EXPLAINED
from esr_eval.logs.conditions import AGAIN, Condition, alarms_of, told_reasons
from esr_eval.logs.measures import ASSUMED, HOLISTIC, SCORES, SHARES, Measured
from esr_eval.report.evidence import Evidence
from esr_eval.report.section import NONE, Part, Section, Table, count, mean, percent, trials
from esr_eval.scorers.scores import scale_doubt
from esr_eval.text import one_line


def conditions_section(evidence: Evidence) -> Section | None:
    """The two tables that everything else refers to."""
    if not evidence.conditions:
        return None
    tables = (_trials, _outcomes, _restarts, _without)
    parts: list[Part] = [table(evidence.conditions) for table in tables]
    return Section(
        id="conditions",
        title="Conditions",
        question="What ran, how many trials count, and what came out of them?",
        answers=[
            _counts(evidence.conditions),
            *_alarms(evidence.conditions),
            *_boosts(evidence.conditions),
            *_doubts(evidence.conditions),
        ],
        parts=parts,
        tables={
            "conditions": _frame(evidence.conditions),
            "trials": pd.concat([_per_trial(one) for one in evidence.conditions]),
        },
    )


def numbers(condition: Condition) -> dict[str, int]:
    """How many trials were planned, ended, failed, and fell out of the rates."""
    trials = condition.trials
    return {
        "planned": condition.log.planned,
        "completed": int((~condition.failed).sum()),
        "errored": int(condition.failed.sum()),
        "unscored": int((trials["unscored"] == 1).sum()),
        "no_attempt": int((trials["no_attempt"] == 1).sum()),
        # Of a log that was scored with other scorers, or not to its end.
        "no_score": int((~condition.failed & trials["unscored"].isna()).sum()),
    }


def layers(runtime: Mapping[str, Any]) -> str:
    """Where edits act and where the SAE was trained: `33 / 50`."""
    names = ("steering_layer", "feature_layer")
    return " / ".join(str(runtime.get(name, "?")) for name in names) if runtime else "?"


def _counts(conditions: list[Condition]) -> str:
    total = {name: sum(numbers(one)[name] for one in conditions) for name in _COUNTS}
    lost = ", ".join(
        f"{total[name]:,} {words}"
        for name, words in (
            ("errored", "failed"),
            ("unscored", "could not be scored"),
            ("no_attempt", "held no attempt"),
            ("no_score", "have no score yet"),
        )
    )
    return (
        f"{count(len(conditions), 'condition')} with {count(total['completed'], 'response')} of "
        f"{count(total['planned'], 'planned trial')}; {lost}."
    )


def _alarms(conditions: list[Condition]) -> list[str]:
    """How often each detector finds a restart where there is next to none to find."""
    said: dict[str, None] = {}
    for one in conditions:
        alarms = alarms_of(one, conditions)
        if alarms is None or alarms.judge is None:
            continue
        who = f"{one_line(one.subject)}, judged by {one_line(one.judge)}"
        text = f"False alarms in {count(alarms.judge.n, 'unsteered answer')} of {who}: "
        text += f"judge {percent(alarms.judge)}, phrase detector {percent(alarms.detector)}."
        said[text] = None
    return list(said)


def _boosts(conditions: list[Condition]) -> list[str]:
    """How strong boosts are beside the residual, and whether the SAE describes what they edit."""
    said = []
    for one in conditions:
        shares = one.trials["share_of_norm"].dropna()
        if shares.empty:
            continue
        low, middle, high = shares.quantile([0.05, 0.5, 0.95])
        fits = ", ".join(
            f"{fit['explained_variance']:.0%} at layer {layer} ({fit['l0']:.0f} latents a token)"
            for layer, fit in one.fits.items()
        )
        poor = any(fit["explained_variance"] < LEAST_EXPLAINED for fit in one.fits.values())
        said.append(
            f"{one_line(one.name)}: boosts are {middle:.2f} of the residual's median norm "
            f"(90 % of trials: {low:.2f} to {high:.2f})"
            + (
                f"; of the variance of the model's own answers the SAE explains {fits}"
                if fits
                else ""
            )
            + (": it hardly describes what is edited there." if poor else ".")
        )
    return said


def _doubts(conditions: list[Condition]) -> list[str]:
    """Judges that seem to score on another scale than they were asked for."""
    return [
        f"The judge {one_line(one.judge)} of {one_line(one.name)} may use another scale: {doubt}."
        for one in conditions
        if (doubt := scale_doubt(one.trials["first_score"].tolist()))
    ]


_COUNTS = ("planned", "completed", "errored", "unscored", "no_attempt", "no_score")


def _title(condition: Condition) -> str:
    found = condition.experiment
    return f"{found.number}. {found.title}" if found else NONE


def _trials(conditions: list[Condition]) -> Table:
    rows = []
    for one in conditions:
        status = one.log.header.status
        rows.append(
            (
                one_line(one.name),
                _title(one),
                one_line(one.subject),
                layers(one.runtime),
                one_line(one.judge),
                *(f"{number:,}" for number in numbers(one).values()),
                f"{one.trials['latent'].nunique():,}",
                told_reasons(one.unscored) or NONE,
                status if status == "success" else f"{status}: not finished",
            )
        )
    return Table(
        "What ran",
        (
            "condition", "experiment", "subject", "layers", "judge", "planned", "completed",
            "errored", "unscored", "no attempt", "no score", "latents", "unscored because",
            "status",
        ),
        rows,
        "Layers: steered at / SAE trained on. Errored: failed before there was a response. "
        "Unscored: the judge's verdict could not be used.",
    )  # fmt: skip


def _outcomes(conditions: list[Condition]) -> Table:
    rows = []
    for one in conditions:
        found = one.measures.get
        rows.append(
            (
                one_line(one.name),
                trials(found("multi_attempt")),
                percent(found("multi_attempt")),
                *(percent(found(key)) for key in ("esr", "esr_margin", "recovered", "improved")),
                mean(found("first_score")),
                mean(found("change")),
                one.bars,
            )
        )
    return Table(
        "What came out",
        (
            "condition", "n", "multi-attempt", "ESR", "ESR by the margin", "recovered",
            "improved", "first score", "change", "bars",
        ),
        rows,
        "n: trials with at least one scored attempt, the denominator of all rates here but "
        "improved, which like change is over multi-attempt trials alone. ESR is the paper's: the "
        "last score above the first, by however little, which a judge's noise makes of about half "
        "of all restarts. By the margin: by that many points or more. Recovered: the first below, "
        "the last at or above a score that unsteered answers reach. In parentheses 95 % "
        "intervals, clustered by latent.",
    )  # fmt: skip


def _restarts(conditions: list[Condition]) -> Table:
    """Three counts of restarts, what follows from them, and how often each count is wrong."""
    rows = []
    for one in conditions:
        found, alarms = one.measures.get, alarms_of(one, conditions)
        estimate = one.all_restarts
        rows.append(
            (
                one_line(one.name),
                trials(found("confirmed")),
                *(percent(found(key)) for key in _COUNTED),
                percent(estimate) if isinstance(estimate, Measured) else NONE,
                percent(found("disagreement")),
                percent(alarms.judge) if alarms else NONE,
                percent(alarms.detector) if alarms else NONE,
            )
        )
    reasons = dict.fromkeys(
        one.all_restarts for one in conditions if isinstance(one.all_restarts, str)
    )
    missing = f" There is none where {'; where '.join(map(one_line, reasons))}." if reasons else ""
    return Table(
        "Restarts by two detectors",
        (
            "condition", "n", "judge", "phrase detector", "both, at one place", "all, estimated",
            "disagreement", "false alarms: judge", "false alarms: phrases",
        ),
        rows,
        "n: trials with at least one scored attempt; the phrase detector's share is of all trials "
        f"that did not fail. All: {ASSUMED}.{missing} False alarms: share of the subject's "
        "unsteered answers, judged by the same judge, in which each finds a restart.",
    )  # fmt: skip


_COUNTED = ("multi_attempt", "restart_phrase", "confirmed")


def _without(conditions: list[Condition]) -> Table:
    """The same rates without texts that only repeat themselves, by either rule."""
    rows = []
    for one in conditions:
        found = one.measures.get
        keys = ("multi_attempt", "esr", "esr_margin", "recovered")
        rows.append(
            (
                one_line(one.name),
                percent(found("degraded")),
                *(percent(found(f"{key}_clean")) for key in keys[:2]),
                mean(found("first_score_clean")),
                percent(found("degenerate")),
                *(percent(found(f"{key}_sound")) for key in keys),
                mean(found("first_score_sound")),
            )
        )
    lacking = [one_line(one.name) for one in conditions if one.lacking]
    lacking = ["all"] if len(lacking) == len(conditions) else lacking
    said = f" Score again to have all of it ({AGAIN}): {'; '.join(lacking)}." if lacking else ""
    return Table(
        "Without texts that repeat themselves",
        (
            "condition", "degraded", "multi-attempt, without", "ESR, without",
            "first score, without", "loops", "multi-attempt, no loops", "ESR, no loops",
            "by the margin, no loops", "recovered, no loops", "first score, no loops",
        ),
        rows,
        "Degraded: a word five times running, the paper's rule. Loops: any shape, which is words "
        "in turn, a phrase, a list item or line, letters or marks over and over as well."
        f"{said}",
    )  # fmt: skip


def _frame(conditions: list[Condition]) -> pd.DataFrame:
    rows = []
    for one in conditions:
        about = {
            "condition": one_line(one.name),
            "experiment": one.experiment.id if one.experiment else "",
            "subject": one.subject,
            "layers": layers(one.runtime),
            "judge": one.judge,
            "log": one.log.file,
            "status": one.log.header.status,
            **numbers(one),
            "unscored_because": told_reasons(one.unscored),
        }
        for key in (*SHARES, *SCORES):
            if key in one.measures:
                rows.append({**about, "metric": key, **one.measures[key]._asdict()})
        if isinstance(one.all_restarts, Measured):
            rows.append({**about, "metric": "all_restarts", **one.all_restarts._asdict()})
    return pd.DataFrame(rows)


def _per_trial(condition: Condition) -> pd.DataFrame:
    table = condition.trials.drop(columns=["error"]).copy()
    table.insert(0, "failed", condition.failed)
    table.insert(0, "condition", one_line(condition.name))
    return table


def second_view_section(evidence: Evidence) -> Section | None:
    """Both views side by side, for the conditions that have the second."""
    have = [one for one in evidence.conditions if one.second_judge is not None]
    have = [one for one in have if f"{HOLISTIC}improvement" in one.measures]
    if not have:
        return None
    rows, numbers = [], []
    for one in have:
        view = {key: one.measures.get(HOLISTIC + key) for key in _SECOND_VIEW}
        rows.append(
            (
                one_line(one.name),
                percent(one.measures.get("multi_attempt")),
                percent(one.measures.get("esr")),
                mean(view["improvement"]),
                *(percent(view[key]) for key in _SECOND_VIEW[1:]),
                trials(view["improvement"]),
                one_line(one.second_judge or "?"),
            )
        )
        numbers += [
            {"condition": one_line(one.name), "metric": key, **found._asdict()}
            for key, found in view.items()
            if found
        ]
    table = Table(
        "Both views",
        (
            "condition", "multi-attempt", "ESR", "improvement, 0-10", "improving", "explicit",
            "gradual", "no change", "unscored", "n", "judge of the second view",
        ),
        rows,
        "First view: attempts with explicit words of starting over. Second view: one judgement of "
        "the whole response; improving means 7 or more, by an explicit restart or gradually.",
    )  # fmt: skip
    return Section(
        id="second-view",
        title="The second view: does the response as a whole improve?",
        question="How many responses improve over their course, with or without saying so?",
        answers=[_second_view(one) for one in have],
        parts=[table],
        tables={"second_view": pd.DataFrame(numbers)},
    )


_SECOND_VIEW = ("improvement", "improving", "explicit", "gradual", "no_change", "unscored")


def _second_view(one: Condition) -> str:
    found = one.measures
    whole, improving = found[f"{HOLISTIC}improvement"], found.get(f"{HOLISTIC}improving")
    return (
        f"{one_line(one.name)}: of {whole.n:,} responses {percent(improving)} improve, on average "
        f"by {mean(whole)} of 10; explicitly {percent(found.get(f'{HOLISTIC}explicit'))}, "
        f"gradually {percent(found.get(f'{HOLISTIC}gradual'))}. The first view found several "
        f"attempts in {percent(found.get('multi_attempt'))}."
    )
