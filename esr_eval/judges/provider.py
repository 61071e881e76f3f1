"""The offline judges as models: they answer grading requests without a network.

`esr-judge/offline` speaks the hosted graders' protocols (`PROTOCOLS`), so that a
run with it exercises everything that a run with a hosted grader does. It measures topicality, not
correctness. `esr-judge/lexical` only finds and scores attempts, by other and cruder means: it is
there to be compared with. `esr-judge/self` is the model under test, unsteered: its weights are
loaded once for both.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio.to_thread
from inspect_ai.model import (
    ChatMessage,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    get_model,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from esr_eval._util.minilm import SentenceEncoder, sentence_encoder, weights_folder
from esr_eval.errors import EsrError
from esr_eval.judges import lexical, offline, yes_no
from esr_eval.judges import stance as stances
from esr_eval.judges.similarity import ratings
from esr_eval.provider.api import ESRModelAPI
from esr_eval.scorers import attempts, concreteness, improvement, introspection, regions, stance

Answer = Callable[[SentenceEncoder], str]

PROTOCOLS: tuple[tuple[Callable[[Sequence[ChatMessage]], Any], Callable[..., str]], ...] = (
    (attempts.parse_request, offline.verdict),
    (improvement.parse_request, offline.improvement),
    (regions.parse_request, offline.regions),
    (concreteness.parse_request, ratings),
    (introspection.parse_request, yes_no.verdict),
    (stance.parse_request, stances.verdict),
)
"""What reads a question back, and what answers it: given the question and the encoder."""


def answer_to(messages: Sequence[ChatMessage]) -> Answer:
    """Find what answers the question in the messages.

    Raises:
        ValueError: They hold no question of any of the protocols.
    """
    for parse, answer in PROTOCOLS:
        try:
            return partial(answer, parse(messages))
        except ValueError:
            continue
    raise ValueError(
        "the messages hold none (on attempts, improvement, regions, concreteness, injected "
        "thoughts or stances, as in esr_eval.scorers)"
    )


def lexical_answer_to(messages: Sequence[ChatMessage]) -> Answer:
    """The same for the lexical judge, which knows attempts only.

    Raises:
        ValueError: The messages hold no question about attempts.
    """
    request = attempts.parse_request(messages)
    return lambda encoder: lexical.verdict(request)


MODELS = {"offline": answer_to, "lexical": lexical_answer_to}

SELF = "self"


class LocalJudge(ModelAPI):
    """A judge on this machine. Deterministic, but for the model under test in bfloat16."""

    def __init__(
        self,
        model_name: str = "offline",
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008 - Inspect's own signature
        **model_args: Any,
    ) -> None:
        super().__init__(model_name, base_url, api_key, [], config)
        if model_name not in (*MODELS, SELF):
            names = ", ".join((*MODELS, SELF))
            raise EsrError(f"There is no judge esr-judge/{model_name}; there are: {names}.")
        if model_args:
            raise EsrError(
                f"esr-judge/{model_name} takes no arguments (got {', '.join(model_args)})."
            )

    def check_ready(self) -> None:
        """Raise `EsrError` when the weights are missing; loads nothing."""
        if self.model_name == SELF:
            _subject()
        else:
            weights_folder()

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer a grading request.

        Of `config` the model under test keeps to the length and the seed; nothing of it changes
        the offline judges' verdicts, which are never cut.
        """
        if self.model_name == SELF:
            # No `extra_body`, so nothing is edited; greedy, and without the schema, which the
            # provider does not carry out.
            plain = GenerateConfig(max_tokens=config.max_tokens, seed=config.seed, temperature=0.0)
            return await _subject().generate(input, tools, tool_choice, plain)
        try:
            answer = MODELS[self.model_name](input)
        except ValueError as error:
            raise EsrError(
                f"esr-judge/{self.model_name} only answers grading requests: {error}."
            ) from None
        # In a thread, because embedding takes long enough to starve the event loop.
        content = await anyio.to_thread.run_sync(answer, sentence_encoder())
        asked = sum([await self.count_text_tokens(message.text) for message in input])
        written = await self.count_text_tokens(content)
        output = ModelOutput.from_content(f"esr-judge/{self.model_name}", content)
        output.usage = ModelUsage(
            input_tokens=asked, output_tokens=written, total_tokens=asked + written
        )
        return output

    async def count_text_tokens(self, text: str) -> int:
        """Tokens as whoever judges counts them; needs no network."""
        if self.model_name == SELF:
            return await _subject().count_text_tokens(text)
        return await anyio.to_thread.run_sync(sentence_encoder().count_tokens, text)

    def max_connections(self) -> int:
        """Requests at once: the encoder takes one sentence at a time anyway."""
        return _subject().max_connections() if self.model_name == SELF else 4


def _subject() -> ESRModelAPI:
    """The provider of the model under test.

    Raises:
        EsrError: There is none that this project runs.
    """
    api = get_model().api
    if not isinstance(api, ESRModelAPI):
        raise EsrError(
            f"esr-judge/{SELF} judges with the model under test, which is none of esr/NAME here: "
            "name another judge with --model-role grader=PROVIDER/MODEL."
        )
    return api
