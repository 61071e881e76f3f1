"""A verdict in words, for the viewer, which shows it as plain text."""

from typing import NamedTuple

from esr_eval.data.trial import Trial
from esr_eval.scorers.grader import Verdict
from esr_eval.scorers.parsing import Attempt
from esr_eval.scorers.phrases import Restart
from esr_eval.scorers.trials import plain

_SHOWN = 12
"""Attempts and restarts written out; more are only counted."""


class Judged(NamedTuple):
    """A trial with everything that was found in its response."""

    trial: Trial
    response: str
    judge: str
    verdict: Verdict
    restarts: list[Restart]
    degraded: bool


def answer(verdict: Verdict) -> str:
    """The verdict in a few words, such as `2 attempts: 10 → 75`."""
    if verdict.attempts is None:
        return f"unscored: {verdict.reason}"
    if not verdict.attempts:
        return "no attempt"
    scores = [f"{found.score:.0f}" for found in verdict.attempts]
    if len(scores) > 6:
        scores = [*scores[:3], "…", *scores[-2:]]
    count = len(verdict.attempts)
    return f"{count} attempt{'s' if count > 1 else ''}: {' → '.join(scores)}"


def explain(judged: Judged) -> str:
    """The verdict with its evidence, a few lines whatever the response's length."""
    trial, verdict = judged.trial, judged.verdict
    lines = [f"{plain(answer(verdict))}{_meaning(verdict)}", ""]
    lines += [
        f"{number}. {found.score:.0f}/100: {_ends(judged.response, found)}"
        for number, found in enumerate((verdict.attempts or [])[:_SHOWN], 1)
    ]
    if verdict.attempts:
        lines.append("")
    if verdict.attempts is None:
        lines.append(f"- Unscored: {plain(verdict.problem, 300)}")
    lines += [
        f"- Boost: latent {trial.latent} “{plain(trial.label)}”, strength {trial.strength:g} "
        f"({trial.condition})",
        f"- Restart phrases: {_phrases(judged.restarts)}",
        f"- Degraded (a word five times running): {'yes' if judged.degraded else 'no'}",
        judge_line(judged.judge, verdict.retries),
    ]
    return "\n".join(lines)


def judge_line(judge: str, retries: int) -> str:
    """Who judged, and how often it had to be asked."""
    return f"- Judge: {plain(judge)}" + (f", asked {retries + 1} times" if retries else "")


def _meaning(verdict: Verdict) -> str:
    if not verdict.attempts or len(verdict.attempts) < 2:
        return ""
    change = verdict.attempts[-1].score - verdict.attempts[0].score
    return f" (change {change:+.0f}{', ESR' if change > 0 else ''})"


def _ends(response: str, found: Attempt) -> str:
    text = response[found.start : found.end]
    if len(text) <= 140:
        return f"“{plain(text)}”"
    return f"“{plain(text[:70], 70)}” … “{plain(text[-70:], 70)}”"


def _phrases(restarts: list[Restart]) -> str:
    if not restarts:
        return "none"
    shown = "; ".join(f"“{plain(found.phrase, 90)}”" for found in restarts[:_SHOWN])
    more = len(restarts) - _SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
