"""Which region of an answer each of its tokens belongs to."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from esr_eval.errors import EsrError

KINDS = ("off_topic", "correction", "on_topic")
"""What a judge tells apart."""

BEFORE = "on_topic_before"
REGIONS = (BEFORE, "off_topic", "correction", "on_topic")
"""What is measured: on-topic text before any drift is no recovery, so it stands apart."""

NOWHERE = ""
"""Kind of a token that lies in no region."""


class Region(NamedTuple):
    """Characters `start` up to `end` (not included) of the response, and what they are."""

    kind: str
    start: int
    end: int


def read_regions(found: Any) -> list[Region]:
    """A judge's regions as a log holds them, in the order of the text.

    Args:
        found: `Score.metadata["regions"]`: a list of kind, start and end.

    Raises:
        EsrError: It is no such list.
    """
    try:
        regions = [Region(str(one["kind"]), int(one["start"]), int(one["end"])) for one in found]
    except (KeyError, TypeError, ValueError) as error:
        raise EsrError(
            f"The log's regions are no list of kind, start and end ({error!r}): score it again "
            "with `inspect score LOG --scorer esr_eval/regions`."
        ) from None
    unknown = {region.kind for region in regions} - set(KINDS)
    if unknown:
        raise EsrError(f"The log has regions of an unknown kind: {', '.join(sorted(unknown))}.")
    return sorted(regions, key=lambda region: region.start)


def measured(regions: Sequence[Region]) -> list[Region]:
    """The same regions, with on-topic text before any drift told apart from that after it.

    The paper's on-topic mean is that of the text after the correction. A response whose text is
    on-topic throughout has nothing but `on_topic_before`.
    """
    told: list[Region] = []
    drifted = False
    for region in regions:
        drifted = drifted or region.kind != "on_topic"
        told.append(region if drifted else region._replace(kind=BEFORE))
    return told


def token_kinds(
    response: str, offsets: NDArray[np.int64], regions: Sequence[Region]
) -> NDArray[np.str_]:
    """Kind of the region that each token stands in, by the token's first visible character.

    A token often carries the space before its word, which still belongs to the region before. The
    tokens that make up one character (an emoji, say) share its offsets, and so its region.

    Args:
        response: The answer.
        offsets: Characters of each token, (tokens, 2): start, and end (not included).
        regions: Of the answer, not overlapping; see `measured`.

    Returns:
        (tokens,), `NOWHERE` for a token outside all regions.
    """
    kinds = np.full(len(offsets), NOWHERE, dtype=f"<U{max(map(len, REGIONS))}")
    for index, (start, end) in enumerate(offsets.tolist()):
        text = response[start:end]
        at = start + len(text) - len(text.lstrip()) if text.strip() else start
        if at >= len(response):
            continue
        for region in regions:
            if region.start <= at < region.end:
                kinds[index] = region.kind
                break
    return kinds
