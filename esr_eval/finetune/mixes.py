"""Mixes: so many percent self-correction, the rest answered normally."""

import random
from collections.abc import Sequence

from esr_eval.errors import EsrError
from esr_eval.finetune.data import Example

SUBJECT_SHARE = 0.2
"""Of the normal answers, how many tell about a subject that was asked for."""


def mix(
    examples: Sequence[Example], percent: float, count: int | None = None, seed: int = 0
) -> list[Example]:
    """Draw a training set of a given composition.

    Nothing is drawn twice, so all mixes of one size are equally varied.

    Args:
        examples: What there is.
        percent: Share of self-correction examples, 0 to 100.
        count: Size of the set; None takes the largest that the composition allows.
        seed: Seed of the draw and of the order.

    Returns:
        The set, shuffled.

    Raises:
        EsrError: There are too few examples of a kind.
    """
    if not 0 <= percent <= 100:
        raise EsrError(f"A mix has 0 to 100 percent self-correction, not {percent:g}.")
    rng = random.Random(f"mix-{seed}")  # noqa: S311
    pools: dict[str, list[Example]] = {"correction": [], "plain": [], "subject": []}
    for example in examples:
        pools[example.kind].append(example)
    for pool in pools.values():
        rng.shuffle(pool)
    share = {
        "correction": percent / 100,
        "plain": (1 - percent / 100) * (1 - SUBJECT_SHARE),
        "subject": (1 - percent / 100) * SUBJECT_SHARE,
    }
    if not pools["subject"]:
        share["plain"], share["subject"] = share["plain"] + share["subject"], 0.0
    most = min(int(len(pools[kind]) / part + 1e-9) for kind, part in share.items() if part > 0)
    wanted = most if count is None else count
    if wanted < 1 or wanted > most:
        has = ", ".join(f"{len(pool)} {kind}" for kind, pool in pools.items())
        raise EsrError(
            f"{wanted} examples at {percent:g} % self-correction are more than there are ({has}): "
            f"ask for at most {most}, or write more."
        )
    corrections = round(wanted * share["correction"])
    subjects = min(round(wanted * share["subject"]), wanted - corrections)
    chosen = (
        pools["correction"][:corrections]
        + pools["subject"][:subjects]
        + pools["plain"][: wanted - corrections - subjects]
    )
    rng.shuffle(chosen)
    return chosen
