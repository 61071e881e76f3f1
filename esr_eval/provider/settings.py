"""Inspect's generation settings: carried out as they stand, or refused by name."""

import math
from typing import Any

from inspect_ai.model import GenerateConfig

from esr_eval.data.arguments import shown
from esr_eval.errors import EsrError
from esr_eval.spec import EXTRA_BODY_KEY

CARRIED_OUT = frozenset(
    {"max_tokens", "temperature", "top_p", "top_k", "seed", "stop_seqs", "extra_body"}
)
"""By this provider."""
INSPECTS = frozenset(
    {
        "adaptive_connections",
        "attempt_timeout",
        "cache",
        "fail_on_refusal",
        "max_connections",
        "max_retries",
        "reasoning_history",
        "system_message",
        "timeout",
    }
)
"""By Inspect itself, whatever the provider."""
AS_IT_IS: dict[str, tuple[Any, ...]] = {
    "batch": (False,),
    "best_of": (1,),
    "cache_prompt": (False, "auto"),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "num_choices": (1,),
    "presence_penalty": (0,),
}
"""Values of the others that ask for what happens anyway."""
AT_LEAST = {
    "adaptive_connections": 1,
    "attempt_timeout": 1,
    "max_connections": 1,
    "max_retries": 0,
    "max_tokens": 1,
    "seed": 0,
    "temperature": 0,
    "timeout": 1,
    "top_k": -1,
}
BELOW = {"seed": 2**63}


def check_settings(config: GenerateConfig) -> None:
    """Refuse settings that the provider does not carry out, and values that mean nothing.

    Raises:
        EsrError: There is such a setting.
    """
    for name in sorted(GenerateConfig.model_fields):
        value = getattr(config, name)
        if value is None:
            continue
        if name not in CARRIED_OUT | INSPECTS:
            if value in AS_IT_IS.get(name, ()):
                continue
            raise EsrError(
                f"The provider esr does not carry out {_option(name)} ({shown(value)}): leave it "
                "out."
            )
        if why := _wrong(name, value):
            raise EsrError(f"{_option(name)} {shown(value)} is refused: {why}.")


def _wrong(name: str, value: Any) -> str | None:
    if name == "stop_seqs":
        return "an empty stop sequence ends every answer" if "" in value else None
    if name == "extra_body":
        unknown = sorted(set(value) - {EXTRA_BODY_KEY})
        return f"the provider esr reads nothing but '{EXTRA_BODY_KEY}' there" if unknown else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if not math.isfinite(value):
        return "it should be a finite number"
    if name in AT_LEAST and value < AT_LEAST[name]:
        return f"it should be {AT_LEAST[name]} or more"
    if name in BELOW and value >= BELOW[name]:
        return "it should be below 2^63"
    if name == "top_p" and not 0 < value <= 1:
        return "it should be above 0 and at most 1"
    return None


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
