"""The paired prefill test: does holding detectors at 0 lower what the model recovers by itself?

The unsteered model goes on from the same beginnings, its own off-topic text, under several
conditions; what it adds is scored by itself, and the scores are compared pair by pair.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from esr_eval.errors import EsrError
from esr_eval.logs.conditions import Condition, TrialKey, read_condition, shared_trials
from esr_eval.logs.reading import CONTINUATION, Note, read_each
from esr_eval.logs.replay import OFF_TOPIC
from esr_eval.report.dots import Dots, Group, Key, Lane, Mark, Row
from esr_eval.report.evidence import Evidence
from esr_eval.report.section import (
    RULE,
    Cell,
    Column,
    Part,
    Section,
    Table,
    certainty,
    count,
    mean,
    p_value,
    with_interval,
)
from esr_eval.scorers.continuation import RECOVERED
from esr_eval.stats.comparisons import holm
from esr_eval.stats.means import Difference, clustered_mean, mean_difference
from esr_eval.stats.power import PairedScores, latents_for_difference, least_difference
from esr_eval.stats.rates import Estimate
from esr_eval.text import one_line

EXPERIMENT = "prefill_ablation"
INDEPENDENT = Estimate(-1.5, -5.0, 2.0)
"""Effect of ablation on the recovered score, found by an independent re-implementation (2026)."""
INDEPENDENT_SCORES = (18, 62)
"""Between these lie the recovered scores that it had."""
NEITHER, DETECTORS, RANDOM = "neither", "detectors", "random"
_ARMS = {
    NEITHER: "nothing held",
    DETECTORS: "detectors held at 0",
    RANDOM: "random latents held at 0",
}
_PAIRS = ((NEITHER, DETECTORS), (NEITHER, RANDOM), (RANDOM, DETECTORS))


@dataclass(frozen=True)
class Arm:
    """One condition of the test: recovered scores by trial, of off-topic beginnings alone.

    Attributes:
        kind: `neither`, `detectors` or `random`.
        name: Which latents are held, for tables.
        scores: Recovered score of each trial; of several random sets, the mean over those.
        beginnings: What each trial was given, as far as the log's summary holds it.
        on_topic: Trials left out, since the answer that they go on from was not off-topic.
        unknown: Trials left out, since nobody scored that answer.
        unscored: Trials without a recovered score.
    """

    kind: str
    name: str
    scores: Mapping[TrialKey, float]
    beginnings: Mapping[TrialKey, str]
    on_topic: int
    unknown: int
    unscored: int


@dataclass(frozen=True)
class Recovery:
    """The second arm against the first, over the trials that both have.

    Attributes:
        subject: Who went on.
        judge: Who scored.
        first: Arm.
        second: Arm.
        before: Mean recovered score of the first, over the pairs.
        after: Of the second.
        difference: Second less first.
        pairs: How many.
        other_beginning: Trials that both have, but with different beginnings: no pairs.
        spread: Spread and clustering of the pairs' differences; None where there is none.
        holm: The p value after Holm's correction over the test's comparisons.
    """

    subject: str
    judge: str
    first: Arm
    second: Arm
    before: Estimate
    after: Estimate
    difference: Difference
    pairs: int
    other_beginning: int
    spread: PairedScores | None
    holm: float | None = None

    @property
    def name(self) -> str:
        """What is compared, for tables."""
        return f"{self.second.name} less {self.first.name}"

    @property
    def visible(self) -> float | None:
        """The least difference that these pairs see with a power of 80 %."""
        if self.spread is None:
            return None
        return least_difference(self.spread, self.difference.clusters)


def recoveries(conditions: Sequence[Condition]) -> list[Recovery]:
    """Compare the arms of every paired prefill test: same trial, beginning and seed.

    Arms belong together by subject, judge, the log that is continued and the beginnings' length.
    A beginning counts as off-topic where the first attempt of its answer scored below `OFF_TOPIC`.
    """
    groups: dict[tuple[str, ...], list[Condition]] = defaultdict(list)
    for one in conditions:
        if one.experiment and one.experiment.id in ("prefill_control", EXPERIMENT):
            groups[_belongs(one)].append(one)
    found: list[Recovery] = []
    for own in groups.values():
        if any(one.experiment and one.experiment.id == EXPERIMENT for one in own):
            found += _corrected(list(_compared(own)))
    return found


def recovered_scores(condition: Condition) -> dict[TrialKey, float]:
    """Scores of what the model added to its beginnings, by trial; those without one left out."""
    found = {}
    for key, sample in zip(condition.keys, condition.log.samples, strict=True):
        scores = sample.scores or {}
        score = next((scores[name] for name in scores if CONTINUATION.fullmatch(name)), None)
        value = score.value.get(RECOVERED) if score and isinstance(score.value, dict) else None
        if isinstance(value, int | float) and not math.isnan(value):
            found[key] = float(value)
    return found


def _belongs(one: Condition) -> tuple[str, ...]:
    replayed = one.log.metadata.get("replay")
    source = replayed.get("eval_id") if isinstance(replayed, dict) else None
    # Logs of before the length was written down have it among their arguments.
    length = one.log.metadata.get("characters", one.log.header.eval.task_args.get("characters"))
    return one.subject, one.judge, str(source), str(length)


def _compared(own: Sequence[Condition]) -> Iterator[Recovery]:
    scores = _source_scores(own)
    arms = [_arm(one, scores) for one in own]
    neither = [arm for arm in arms if arm.kind == NEITHER][:1]
    held: dict[tuple[int, ...], list[tuple[Condition, Arm]]] = defaultdict(list)
    for one, arm in zip(own, arms, strict=True):
        if arm.kind != NEITHER:
            held[_controlled(one)].append((one, arm))
    for same in held.values():
        by_kind = {
            NEITHER: neither,
            DETECTORS: [arm for _, arm in same if arm.kind == DETECTORS][:1],
            RANDOM: _pooled([arm for _, arm in same if arm.kind == RANDOM]),
        }
        for first, second in _PAIRS:
            if by_kind[first] and by_kind[second]:
                pair = _pair(own[0], by_kind[first][0], by_kind[second][0])
                if pair is not None:
                    yield pair


def _source_scores(own: Sequence[Condition]) -> dict[TrialKey, float]:
    """First scores of the answers that are continued, by trial; any arm's log may tell them."""
    found = {}
    for one in own:
        for key, sample in zip(one.keys, one.log.samples, strict=True):
            value = sample.metadata.get("source_score")
            if isinstance(value, int | float) and not math.isnan(value):
                found[key] = float(value)
    return found


def _controlled(one: Condition) -> tuple[int, ...]:
    """The detectors that an arm holds, or that its random latents stand in for."""
    about = one.log.metadata
    latents = about.get("random_set", {}).get("detectors") or about["ablation"]["latents"]
    return tuple(sorted(latents))


def _arm(one: Condition, source: Mapping[TrialKey, float]) -> Arm:
    about: Mapping[str, Any] = one.log.metadata
    kind = NEITHER
    if one.experiment and one.experiment.id == EXPERIMENT:
        kind = RANDOM if "random_set" in about else DETECTORS
    name = _ARMS[kind]
    if kind != NEITHER:
        name = f"{one_line(str(about['ablation']['name']))} held at 0"
    known, keys = recovered_scores(one), one.keys
    scores = {key: value for key, value in known.items() if source.get(key, OFF_TOPIC) < OFF_TOPIC}
    return Arm(
        kind,
        name,
        scores,
        {key: _beginning(sample) for key, sample in zip(keys, one.log.samples, strict=True)},
        on_topic=sum(source.get(key, -math.inf) >= OFF_TOPIC for key in keys),
        unknown=sum(key not in source for key in keys),
        unscored=len(set(keys) - set(known)),
    )


def _beginning(sample: Any) -> str:
    messages = sample.input if isinstance(sample.input, list) else []
    return messages[-1].text if messages else ""


def _pooled(arms: Sequence[Arm]) -> list[Arm]:
    """Several random sets as one arm: the mean over them of each trial that all have."""
    if len(arms) < 2:
        return list(arms)
    shared = set.intersection(*(set(arm.scores) for arm in arms))
    scores = {key: sum(arm.scores[key] for arm in arms) / len(arms) for key in shared}
    return [replace(arms[0], name=f"{len(arms)} random sets held at 0 in turn", scores=scores)]


def _pair(about: Condition, first: Arm, second: Arm) -> Recovery | None:
    shared = sorted(key for key in first.scores if key in second.scores)
    keys = [key for key in shared if first.beginnings[key] == second.beginnings[key]]
    if not keys:
        return None
    latents = [key.latent for key in keys]
    before, after = (np.array([arm.scores[key] for key in keys]) for arm in (first, second))
    return Recovery(
        subject=about.subject,
        judge=about.judge,
        first=first,
        second=second,
        before=Estimate(*clustered_mean(before, latents)),
        after=Estimate(*clustered_mean(after, latents)),
        difference=mean_difference(after - before, latents),
        pairs=len(keys),
        other_beginning=len(shared) - len(keys),
        spread=PairedScores.of(after - before, latents),
    )


def _corrected(found: Sequence[Recovery]) -> list[Recovery]:
    adjusted = holm({"p": [one.difference.p_value for one in found]})["p"]
    return [replace(one, holm=p) for one, p in zip(found, adjusted, strict=True)]


def recovery_table(found: Sequence[Recovery]) -> Table | None:
    """Recovered scores pair by pair; None where no logs make a pair."""
    if not found:
        return None
    rows: list[tuple[Cell, ...]] = []
    last = None
    for one in found:
        if last not in (None, (one.subject, one.judge)):
            rows.append(RULE)
        last = (one.subject, one.judge)
        visible = one.visible
        rows.append(
            (
                one.name,
                one_line(one.subject),
                mean(one.before),
                mean(one.after),
                with_interval(one.difference, "+.1f"),
                p_value(one.holm),
                one.pairs,
                one.difference.clusters,
                None if visible is None else f"{visible:.1f}",
            )
        )
    return Table(
        "Recovered scores, pair by pair: the unsteered model goes on from its own off-topic text",
        (
            Column("held at 0 in the second, less the first", "left"), "subject", "first",
            "second", "difference", "p (Holm)", "pairs", "latents", "seen with 80 % power",
        ),
        rows,
        "Recovered score: of the last attempt in what the model itself adds, judged without the "
        "given beginning, 0 to 100. Pairs have latent, task, seed and beginning in common; "
        f"beginnings of answers whose first attempt scored {OFF_TOPIC:g} or more are no off-topic "
        "text and are left out. 95 % intervals clustered by latent. Seen: the least difference "
        "that so many pairs, as spread and clustered as these, find with that chance.",
    )  # fmt: skip


def prefill_section(evidence: Evidence) -> Section | None:
    """The paired prefill test: differences, what fell out, and what could be seen at all."""
    logs = evidence.logs_of(EXPERIMENT)
    if not logs:
        return None
    found = recoveries(evidence.conditions)
    table = recovery_table(found)
    parts: list[Part] = [table] if table else []
    answers = [sentence(one) for one in found] or [
        "No pair: it takes the same beginnings continued under two conditions, with off-topic "
        "beginnings among them and recovered scores (`inspect score LOG --scorer "
        "esr_eval/continuation` gives them to logs that lack them)."
    ]
    if found:
        answers += _left_out(found)
        answers += [beside_published(one) for one in found if _is_effect(one)]
    return Section(
        id="prefill",
        title="Recovery from off-topic text, pair by pair",
        question="Does holding detectors at 0 lower what the unsteered model recovers?",
        answers=answers,
        figures=[_figure(found)] if found else [],
        parts=parts,
        tables={"recovered": pd.DataFrame([_numbers(one) for one in found])} if found else {},
        experiment=EXPERIMENT,
    )


def _figure(found: Sequence[Recovery]) -> Dots:
    """The differences of recovered scores, beside the independent group's."""
    rows = []
    for one in found:
        own = one.difference
        said = f"ours: {with_interval(own, '+.1f')}"
        marks = [Mark("full", own.value, own.low, own.high, said)]
        if _is_effect(one):
            said = f"independent group: {with_interval(INDEPENDENT, '+.1f')}"
            marks.append(
                Mark("elsewhere", INDEPENDENT.value, INDEPENDENT.low, INDEPENDENT.high, said)
            )
        lane = Lane("difference", marks, with_interval(own, "+.1f"))
        rows.append(Row(one.name, f"{one_line(one.subject)}, {count(one.pairs, 'pair')}", [lane]))
    keys = [
        Key("full", "difference of recovered scores, in points (line: 95 % interval)"),
        Key("elsewhere", "an independent group's, on another model with another judge"),
    ]
    return Dots(
        "Recovered scores: with latents held at 0, less without", "", [Group("", rows)], keys
    )


def sentence(one: Recovery) -> str:
    """One comparison in words: how large, how sure, and what would have been seen."""
    visible = one.visible
    seen = (
        ""
        if visible is None
        else f" A difference of {visible:.1f} points or more would be seen in these pairs with a "
        "power of 80 %."
    )
    return (
        f"{one_line(one.subject)}, judged by {one_line(one.judge)}: {one.name}: "
        f"{with_interval(one.difference, '+.1f')} points of recovered score, from "
        f"{one.before.value:.1f} to {one.after.value:.1f}, over {count(one.pairs, 'pair')} of "
        f"{count(one.difference.clusters, 'latent')} ({certainty(one.holm)} after Holm).{seen}"
    )


def _left_out(found: Sequence[Recovery]) -> list[str]:
    said = []
    for arm in {id(arm): arm for one in found for arm in (one.first, one.second)}.values():
        reasons = [
            f"{arm.on_topic:,} whose answer's first attempt scored {OFF_TOPIC:g} or more",
            f"{arm.unknown:,} whose answer was not scored",
            f"{arm.unscored:,} without a recovered score",
        ]
        said.append(f"Left out of {arm.name}: {', '.join(reasons)}.")
    others = sum(one.other_beginning for one in found)
    if others:
        said.append(f"{count(others, 'trial')} with another beginning on either side: no pairs.")
    return said


def _is_effect(one: Recovery) -> bool:
    return (one.first.kind, one.second.kind) == (NEITHER, DETECTORS)


def beside_published(one: Recovery) -> str:
    """An independent group's effect of ablation, and whether ours agrees with it."""
    low, high = INDEPENDENT_SCORES
    theirs = (
        "An independent re-implementation found recovered scores of "
        f"{low} to {high} of 100 and an effect of ablation of {INDEPENDENT.value:+.1f} "
        f"({INDEPENDENT.low:+.1f} to {INDEPENDENT.high:+.1f}), on another model with another judge"
    )
    ours = one.difference
    if ours.low is None or ours.high is None:
        return f"{theirs}; ours has no interval."
    inside = ours.low <= INDEPENDENT.value <= ours.high
    place = "inside" if inside else "outside"
    zero = "0 too" if ours.low <= 0 <= ours.high else "0 not"
    return f"{theirs}: it lies {place} our interval, {zero}."


def _numbers(one: Recovery) -> dict[str, object]:
    return {
        "subject": one.subject,
        "judge": one.judge,
        "first": one.first.name,
        "second": one.second.name,
        "pairs": one.pairs,
        "latents": one.difference.clusters,
        "first_mean": one.before.value,
        "second_mean": one.after.value,
        "difference": one.difference.value,
        "low": one.difference.low,
        "high": one.difference.high,
        "p": one.difference.p_value,
        "p_holm": one.holm,
        "deviation": one.spread.deviation if one.spread else None,
        "icc": one.spread.icc if one.spread else None,
        "seen_with_80_percent": one.visible,
        "on_topic_left_out": one.first.on_topic,
        "other_beginning": one.other_beginning,
    }


def spread_of_logs(paths: Sequence[str | Path], metric: str, note: Note) -> PairedScores | None:
    """How the differences of two logs' scores spread, over the trials that they share.

    Args:
        paths: A log and its replay, or two arms of the prefill test; none tells nothing.
        metric: `recovered_score`, or a score of esr_eval/attempts.
        note: Told of what is left out, see `esr_eval.logs.reading.read_each`.

    Raises:
        EsrError: They are not two, or share no trial with that score.
    """
    if not paths:
        return None
    conditions = read_each(paths, read_condition, note)
    if len(conditions) != 2:
        raise EsrError(
            f"The spread of pairs is taken from two logs of the same trials, not from "
            f"{len(conditions)}: pass --log twice."
        )
    if metric == RECOVERED:
        pairs = recoveries(conditions)
        found = pairs[0].spread if pairs else None
    else:
        before, after, latents = shared_trials(*(one.by_trial(metric) for one in conditions))
        found = PairedScores.of(after - before, latents.tolist()) if len(latents) else None
    if found is None:
        raise EsrError(
            f"The two logs have no trials of several latents whose {metric} differ: take two arms "
            "of the prefill test, or a log and its replay with --metric first_score."
        )
    return found


LATENTS = (12, 25, 50, 100, 200, 500)
TRIALS = (1, 5, 10)


def visible_table(
    design: PairedScores,
    latents: int | None = None,
    difference: float | None = None,
    chance: float = 0.8,
    alpha: float = 0.05,
) -> Table:
    """Which mean difference of paired scores latents x trials can see.

    Args:
        design: Spread and clustering of the pairs' differences, and trials of a latent.
        latents: A number of latents of one's own.
        difference: A difference of one's own: the latents that it takes are told.
        chance: The power that is wanted.
        alpha: Level of the two-sided test.
    """
    own = design.trials_per_latent
    designs = [replace(design, trials_per_latent=n) for n in sorted({*TRIALS, own})]
    rows: list[tuple[Cell, ...]] = [
        (
            f"{number} latents",
            *(f"{least_difference(one, number, chance, alpha):.1f}" for one in designs),
        )
        for number in sorted({*LATENTS, *([latents] if latents else [])})
    ]
    if difference is not None:
        needed = (latents_for_difference(one, difference, chance, alpha) for one in designs)
        rows += [RULE, (f"latents for {difference:g} points", *(f"{n:,}" for n in needed))]
    return Table(
        f"Difference of paired scores that is seen with {100 * chance:g} % power, "
        f"two-sided at {100 * alpha:g} %",
        (
            "",
            *(
                f"{one.trials_per_latent:g} pair{'s' * (one.trials_per_latent != 1)} a latent"
                for one in designs
            ),
        ),
        rows,
        f"In points of the score. Differences of pairs spread by {design.deviation:.1f} (standard "
        f"deviation), those of a latent correlate by {design.icc:.2f}; a t test over the latents.",
    )
