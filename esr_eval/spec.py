"""Interventions as data: what is edited, where, and what is read out.

A `Steering` is everything beyond Inspect's own settings that decides a sample's tokens. It is
plain JSON, travels in `GenerateConfig.extra_body["esr"]`, and so lies in every log: with the
log's prompt, temperature, seed and token limit it reproduces the sample.
"""

import datetime
import hashlib
import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

EXTRA_BODY_KEY = "esr"
"""Key of the steering spec in `GenerateConfig.extra_body`."""

TEMPLATE_DAY = datetime.date(2024, 7, 26)
"""What day it is in a chat template that writes one: the day that Llama 3.1's own names."""

Positions = Literal["all", "prompt", "generated"]
Dtype = Literal["float32", "bfloat16", "float16"]
Backend = Literal["local", "ndif", "vllm"]
Sampler = Literal["esr", "vllm"]


DIGEST = {"for": "digest"}
"""pydantic's context of a dump that a digest is made of."""


class Digested(BaseModel):
    """Data that digests are made of: fields of `came_later` at their defaults are left out.

    So what was digested before there were such fields has the same digest as ever.
    """

    came_later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _digested_as_before(
        self, handler: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        data: dict[str, Any] = handler(self)
        if info.context == DIGEST:
            for name in self.came_later:
                if getattr(self, name) == type(self).model_fields[name].default:
                    data.pop(name, None)
        return data


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Span(_Data):
    """Which positions of a sequence an intervention touches.

    Prompt positions come first; generated token `j` (counted from 0) stands right after them. An
    edit at a token's position acts on what is predicted after it.
    """

    positions: Positions = Field(default="all", description="Prompt, generated tokens, or both.")
    from_token: int | None = Field(
        default=None, ge=0, description="First generated token touched; leaves out the prompt."
    )
    until_token: int | None = Field(
        default=None, ge=0, description="Generated tokens from this one on are left alone."
    )

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.positions == "prompt" and (
            self.from_token is not None or self.until_token is not None
        ):
            raise ValueError(
                "positions='prompt' touches no generated token: drop from_token/until_token"
            )
        if self.until_token is not None:
            if self.from_token is not None and self.until_token <= self.from_token:
                raise ValueError("until_token must be greater than from_token")
            if self.positions == "generated" and self.until_token == 0:
                raise ValueError("until_token=0 leaves no generated token to touch")
        return self

    def bounds(self, prompt_tokens: int, skip_first: int) -> tuple[int, int | None]:
        """First position touched and the one after the last (None: to the end).

        Args:
            prompt_tokens: Length of the row's prompt, padding not counted.
            skip_first: Positions at the start of the sequence that are always left alone.
        """
        start, stop = 0, None
        if self.positions == "generated":
            start = prompt_tokens
        elif self.positions == "prompt":
            stop = prompt_tokens
        if self.from_token is not None:
            start = prompt_tokens + self.from_token
        if self.until_token is not None:
            stop = prompt_tokens + self.until_token
        return max(start, skip_first), stop


class Boost(Span):
    """Add `strength` to a latent's activation: x + strength * W_dec[latent]."""

    kind: Literal["boost"] = "boost"
    latent: int = Field(ge=0)
    strength: float = Field(allow_inf_nan=False)
    layer: int = Field(ge=0, description="Decoder layer whose output is edited.")


class Clamp(Span):
    """Hold a latent's activation at `value`: x + (value - f(x)) * W_dec[latent]; 0 ablates it."""

    kind: Literal["clamp"] = "clamp"
    latent: int = Field(ge=0)
    value: float = Field(default=0.0, allow_inf_nan=False)
    layer: int = Field(ge=0, description="Decoder layer whose output is edited.")


class AddVector(Span):
    """Add `strength` times a plain vector to the residual stream (no SAE involved)."""

    kind: Literal["vector"] = "vector"
    vector: tuple[float, ...] | None = Field(
        default=None, description="The vector itself (d_model values), for small models."
    )
    path: str | None = Field(default=None, description="safetensors file that holds the vector.")
    tensor: str | None = Field(default=None, description="Name of the tensor in that file.")
    sha256: str | None = Field(default=None, description="Digest of that file; checked on load.")
    strength: float = Field(allow_inf_nan=False)
    layer: int = Field(ge=0, description="Decoder layer whose output is edited.")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.vector is None) == (self.path is None):
            raise ValueError("give either the vector's values or the path of a safetensors file")
        if self.path is not None and (self.tensor is None or self.sha256 is None):
            raise ValueError(
                "a vector file needs the tensor's name and the file's sha256, "
                "or the log could not reproduce the sample"
            )
        return self


Edit = Annotated[Boost | Clamp | AddVector, Field(discriminator="kind")]


class Readout(Span):
    """Read latents' activations or the residual's norm, after the edits of the same layer."""

    latents: Annotated[tuple[int, ...], Field(min_length=1)] | Literal["all", "norm"] = Field(
        description="Which latents; the whole SAE only over finished answers (`provider.read`). "
        "Or the residual stream's L2 norm, in the place of one latent's activation."
    )
    layer: int = Field(ge=0, description="Decoder layer whose output is read.")
    reduce: Literal["max", "mean", "rate", "tokens"] = Field(
        default="max",
        description="Over positions: maximum, mean, share above 0, or every token's value.",
    )

    @model_validator(mode="after")
    def _tells_something(self) -> Self:
        if self.latents == "norm" and self.reduce == "rate":
            raise ValueError("a norm is above 0 everywhere: reduce it to max, mean or tokens")
        return self

    @property
    def of_sae(self) -> bool:
        """Whether latents are read; the residual's norm needs no SAE."""
        return self.latents != "norm"


class SAERef(_Data):
    """Where an SAE comes from: a release of sae-lens's registry, or a local folder."""

    release: str = Field(description="sae-lens release, Hugging Face repository, or local folder.")
    sae_id: str | None = Field(default=None, description="Id in the release; none for a folder.")


class Runtime(_Data, Digested):
    """What runs the sample: the part of the spec that the provider's arguments decide."""

    came_later = ("template_args", "date", "sampler")

    subject: str = Field(description="Name in the subject registry, or the model's own id.")
    model: str = Field(description="Hugging Face id, local path, or `package:` of the weights.")
    revision: str | None = None
    adapter: str | None = None
    backend: Backend = "local"
    dtype: Dtype = "float32"
    sae: SAERef | None = None
    steering_layer: int | None = Field(default=None, ge=0)
    feature_layer: int | None = Field(default=None, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0)
    skip_first: int = Field(
        default=0, ge=0, description="Leading positions never edited (attention sinks)."
    )
    template_args: dict[str, JsonValue] | None = Field(
        default=None, description="Variables of the chat template."
    )
    date: datetime.date = Field(
        default=TEMPLATE_DAY, description="What day it is in a chat template that writes one."
    )
    sampler: Sampler = Field(
        default="esr", description="Who chooses tokens: this project, or a vLLM server by itself."
    )


class Steering(_Data):
    """Everything that decides a sample's tokens beside Inspect's own generation settings."""

    version: Literal[1] = 1
    runtime: Runtime
    edits: tuple[Edit, ...] = ()
    readouts: tuple[Readout, ...] = ()

    @model_validator(mode="after")
    def _clamps_agree(self) -> Self:
        held: dict[tuple[int, int], Clamp] = {}
        for edit in self.edits:
            if not isinstance(edit, Clamp):
                continue
            other = held.setdefault((edit.layer, edit.latent), edit)
            if other != edit:
                raise ValueError(
                    f"latent {edit.latent} at layer {edit.layer} is clamped twice and differently"
                )
        return self

    @model_validator(mode="after")
    def _sae_named(self) -> Self:
        edited = any(not isinstance(edit, AddVector) for edit in self.edits)
        read = any(readout.of_sae for readout in self.readouts)
        if (edited or read) and self.runtime.sae is None:
            raise ValueError("boosts, clamps and readouts of latents need an SAE (runtime.sae)")
        return self

    def to_extra_body(self) -> dict[str, Any]:
        """The spec as `GenerateConfig.extra_body`, defaults left out to keep logs short."""
        return {EXTRA_BODY_KEY: self.model_dump(mode="json", exclude_none=True)}

    @classmethod
    def from_extra_body(cls, extra_body: dict[str, Any] | None) -> Self | None:
        """Read the spec back; None when the request carries none.

        Raises:
            pydantic.ValidationError: The spec is there but not valid.
        """
        if not extra_body or EXTRA_BODY_KEY not in extra_body:
            return None
        return cls.model_validate(extra_body[EXTRA_BODY_KEY])


def fingerprint(data: BaseModel | dict[str, Any]) -> str:
    """Digest of the data's canonical JSON: 16 hex digits, the same wherever it is computed."""
    plain = data.model_dump(mode="json", context=DIGEST) if isinstance(data, BaseModel) else data
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
