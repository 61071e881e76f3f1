"""Every condition: what ran, what fell out, what came out, and the second view of it."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from esr_eval.calibration.residual import LEAST_EXPLAINED
from esr_eval.logs.conditions import Condition, told_reasons
from esr_eval.logs.measures import HOLISTIC, SCORES, SHARES
from esr_eval.report.evidence import Evidence
from esr_eval.report.section import NONE, Part, Section, Table, count, mean, percent, trials
from esr_eval.scorers.scores import scale_doubt
from esr_eval.text import one_line


def conditions_section(evidence: Evidence) -> Section | None:
    """The two tables that everything else refers to."""
    if not evidence.conditions:
        return None
    parts: list[Part] = [_trials(evidence.conditions), _outcomes(evidence.conditions)]
    return Section(
        id="conditions",
        title="Conditions",
        question="What ran, how many trials count, and what came out of them?",
        answers=[
            _counts(evidence.conditions),
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
                percent(found("esr")),
                percent(found("improved")),
                mean(found("first_score")),
                mean(found("change")),
                percent(found("restart_phrase")),
                percent(found("disagreement")),
                percent(found("degraded")),
                percent(found("multi_attempt_clean")),
                percent(found("esr_clean")),
            )
        )
    return Table(
        "What came out",
        (
            "condition", "n", "multi-attempt", "ESR", "improved", "first score", "change",
            "restart phrase", "disagreement", "degraded", "multi-attempt, clean", "ESR, clean",
        ),
        rows,
        "n: trials with at least one scored attempt, the denominator of multi-attempt and ESR. "
        "Improved and change are over multi-attempt trials alone. Disagreement: judge and phrase "
        "detector differ on a restart. Clean: without degraded trials. In parentheses 95 % "
        "intervals, clustered by latent.",
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
