"""The second view: how the response as a whole improves, beside the first."""

import pandas as pd

from esr_eval.logs.conditions import Condition
from esr_eval.logs.measures import HOLISTIC
from esr_eval.report.section import Evidence, Section, Table
from esr_eval.report.text import mean, percent
from esr_eval.text import one_line


def section(evidence: Evidence) -> Section | None:
    """Both views side by side, for the conditions that have the second."""
    have = [one for one in evidence.conditions if one.second_judge is not None]
    have = [one for one in have if f"{HOLISTIC}improvement" in one.measures]
    if not have:
        return None
    rows, numbers = [], []
    for one in have:
        view = {key: one.measures.get(HOLISTIC + key) for key in _KEYS}
        rows.append(
            (
                one_line(one.name),
                percent(one.measures.get("multi_attempt")),
                percent(one.measures.get("esr")),
                mean(view["improvement"]),
                *(percent(view[key]) for key in _KEYS[1:]),
                f"{view['improvement'].n:,}" if view["improvement"] else "0",
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
        answers=[_answer(one) for one in have],
        parts=[table],
        tables={"second_view": pd.DataFrame(numbers)},
    )


_KEYS = ("improvement", "improving", "explicit", "gradual", "no_change", "unscored")


def _answer(one: Condition) -> str:
    found = one.measures
    whole, improving = found[f"{HOLISTIC}improvement"], found.get(f"{HOLISTIC}improving")
    return (
        f"{one_line(one.name)}: of {whole.n:,} responses {percent(improving)} improve, on average "
        f"by {mean(whole)} of 10; explicitly {percent(found.get(f'{HOLISTIC}explicit'))}, "
        f"gradually {percent(found.get(f'{HOLISTIC}gradual'))}. The first view found several "
        f"attempts in {percent(found.get('multi_attempt'))}."
    )
