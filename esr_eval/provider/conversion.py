"""From Inspect's chats and settings to a row of a batch, and from its result to an output.

Settings are carried out as they stand, or refused by name.
"""

import math
from typing import TYPE_CHECKING, Any

from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    Content,
    ContentReasoning,
    ContentText,
    GenerateConfig,
    ModelOutput,
    ModelUsage,
)

from esr_eval.data.arguments import shown
from esr_eval.errors import EsrError
from esr_eval.spec import EXTRA_BODY_KEY, Runtime, Steering, fingerprint

if TYPE_CHECKING:
    from esr_eval.backends.base import Backend
    from esr_eval.steering.requests import Generated, Reading, Row

DEFAULT_TEMPERATURE = 1.0
DEFAULT_SEED = 0

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
INSTEAD = {
    "batch": " (a judge takes it: --model-role 'grader={model: PROVIDER/MODEL, batch: true}')"
}
"""What those who ask for a setting may have meant."""
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
                f"out{INSTEAD.get(name, '')}."
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


def check_finite(generated: "Generated", runtime: Runtime) -> None:
    """Raise when a row ended because its logits were no numbers.

    Raises:
        RuntimeError: They were not.
    """
    if not generated.finite:
        raise RuntimeError(
            f"The logits after {len(generated.tokens)} tokens were infinite or no numbers, so no "
            f"token could be chosen: the model left the range of {runtime.dtype}. Steer more "
            "weakly, or use -M dtype=float32 or bfloat16."
        )


def check_receipt(result: "Generated | Reading") -> None:
    """Raise when fewer positions were edited than the tokens call for.

    Raises:
        RuntimeError: So it is.
    """
    if result.edited_positions != result.expected_positions:
        raise RuntimeError(
            f"The residual stream was changed at {result.edited_positions} positions where "
            f"{result.expected_positions} were due: this sample was not steered as asked."
        )


def to_row(
    backend: "Backend",
    input: list[ChatMessage],
    config: GenerateConfig,
    steering: Steering | None,
    runtime: Runtime,
) -> "Row":
    """A chat as one row of a batch, with Inspect's defaults filled in."""
    from esr_eval.steering.requests import Row
    from esr_eval.steering.sampling import Sampling

    messages = [{"role": message.role, "content": message.text} for message in input]
    # An assistant message at the end is the beginning of the answer: the model goes on from it.
    prefill = messages.pop()["content"] if messages[-1]["role"] == "assistant" else None
    temperature = DEFAULT_TEMPERATURE if config.temperature is None else config.temperature
    return Row(
        prompt=tuple(backend.encode_chat(messages, prefill)),
        sampling=Sampling(
            seed=DEFAULT_SEED if config.seed is None else config.seed,
            temperature=temperature,
            top_p=config.top_p,
            top_k=config.top_k if (config.top_k or 0) > 0 else None,  # 0 and -1 mean all
            repetition_penalty=runtime.repetition_penalty,
            max_tokens=512 if config.max_tokens is None else config.max_tokens,
        ),
        steering=steering,
        prefilled=prefill is not None,
    )


def to_output(
    model: str,
    backend: "Backend",
    row: "Row",
    generated: "Generated",
    config: GenerateConfig,
    seconds: float,
) -> ModelOutput:
    """A row's result as Inspect's output, with the receipt and what it was made with."""
    response, stop_reason = backend.response(row, generated.tokens), generated.stop_reason
    text = response.text
    cut = [at for stop in config.stop_seqs or [] if (at := text.find(stop)) >= 0]
    if cut:
        text, stop_reason = text[: min(cut)], "stop"
    metadata: dict[str, Any] = {}
    if row.steering is not None:
        metadata = {
            "fingerprint": fingerprint(row.steering),
            "edited_positions": generated.edited_positions,
            "held_positions": generated.held_positions,
            "self_check": backend.info.self_check,
            "sae_digest": backend.info.sae_digest,
            "device": backend.info.device,
            "versions": backend.info.versions,
        }
        if backend.template.told:
            metadata["template"] = backend.template.told
        if generated.readouts:
            metadata["readouts"] = [
                {
                    "latents": "norm" if r.latents == "norm" else list(r.latents),
                    "values": r.values,
                    "positions": r.positions,
                }
                for r in generated.readouts
            ]
    return ModelOutput(
        model=model,
        choices=[
            ChatCompletionChoice(
                message=ChatMessageAssistant(
                    content=_content(response.reasoning, text), model=model, source="generate"
                ),
                stop_reason=stop_reason,
            )
        ],
        usage=ModelUsage(
            input_tokens=len(row.prompt),
            output_tokens=len(generated.tokens),
            total_tokens=len(row.prompt) + len(generated.tokens),
        ),
        time=seconds,
        metadata=metadata or None,
    )


def _content(reasoning: str, text: str) -> str | list[Content]:
    """An answer, behind the thoughts where there are any: scorers see the answer alone."""
    if not reasoning:
        return text
    thoughts: list[Content] = [ContentReasoning(reasoning=reasoning)]
    return [*thoughts, ContentText(text=text)] if text else thoughts
