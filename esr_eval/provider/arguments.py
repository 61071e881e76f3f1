"""The provider's `-M` arguments: read, checked, and turned into a runtime."""

import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from esr_eval.backends.remote import DEFAULT_REQUESTS, DEFAULT_WAIT, RemoteArgs
from esr_eval.data.arguments import DEVICE, STRICT, shown, told
from esr_eval.errors import EsrError
from esr_eval.spec import Backend, Dtype, Runtime, SAERef, Sampler
from esr_eval.subjects import Subject

BACKENDS = get_args(Backend)
LOCAL_ONLY = ("device",)
REMOTE_ONLY = ("requests", "wait")
VLLM_ONLY = ("sampler",)


class ModelArgs(BaseModel):
    """Arguments of the provider `esr`, as given with `-M name=value`."""

    model_config = ConfigDict(**STRICT, extra="forbid", frozen=True)

    backend: str = Field(default="local", description="Where it runs: local, ndif or vllm.")
    dtype: Dtype | None = Field(default=None, description="float32, bfloat16 or float16.")
    device: Annotated[str | None, DEVICE] = Field(
        default=None, description="transformers device map, e.g. cuda:1."
    )
    batch_size: int | None = Field(
        default=None,
        ge=1,
        description="Most samples at a time (a GPU's memory, up to 256; on a CPU 64; NDIF 32).",
    )
    revision: str | None = Field(default=None, description="Revision of the model on the hub.")
    adapter: str | None = Field(
        default=None, description="PEFT adapter (LoRA, DoRA, LoHa, LoKr, IA3): path or hub id."
    )
    sae_release: str | None = Field(default=None, description="sae-lens release or local folder.")
    sae_id: str | None = Field(default=None, description="SAE within the release.")
    sae_rows: Path | None = Field(
        strict=False,
        default=None,
        description="File of `esr-eval latents rows`, in the whole SAE's place.",
    )
    sae_model: Literal["any"] | None = Field(
        default=None, description="'any': take an SAE that names another model than this one."
    )
    steering_layer: int | None = Field(default=None, ge=0, description="Layer that is edited.")
    feature_layer: int | None = Field(default=None, ge=0, description="Layer the SAE reads.")
    repetition_penalty: float | None = Field(
        default=None, gt=0, description="In place of the subject's."
    )
    skip_first: int | None = Field(default=None, ge=0, description="Leading positions left alone.")
    enable_thinking: bool | None = Field(
        default=None, description="Whether the model thinks first, where its template asks."
    )
    chat_template_args: dict[str, JsonValue] | None = Field(
        default=None, description="Variables of the chat template, as JSON."
    )
    date: datetime.date | None = Field(
        strict=False, default=None, description="What day it is in a chat template that writes one."
    )
    requests: int | None = Field(
        default=None, ge=1, le=16, description="Most batches under way at once on NDIF."
    )
    wait: float | None = Field(
        default=None, gt=0, description="Seconds for which a lost server is tried again."
    )
    sampler: Sampler | None = Field(
        default=None, description="vllm: leave the choice of tokens to a vLLM server."
    )

    @classmethod
    def parse(cls, args: dict[str, Any]) -> "ModelArgs":
        """Check `-M` arguments.

        Raises:
            EsrError: One is unknown or has an impossible value.
        """
        try:
            return cls.model_validate(args)
        except ValidationError as error:
            first = error.errors()[0]
            name = ".".join(str(part) for part in first["loc"])
            if first["type"] == "extra_forbidden":
                raise EsrError(
                    f"The provider esr has no argument -M {name}=; "
                    f"it takes {', '.join(sorted(cls.model_fields))}."
                ) from None
            raise EsrError(f"-M {name}={shown(first['input'])}: {told(error)}.") from None

    def runtime(self, subject: Subject) -> Runtime:
        """The subject's runtime with these arguments on top.

        Raises:
            EsrError: The backend is unknown, or an argument does not belong to it.
        """
        if self.backend not in BACKENDS:
            raise EsrError(
                f"The backend '{self.backend}' does not exist; there is: {', '.join(BACKENDS)}."
            )
        wrong = REMOTE_ONLY if self.backend == "local" else LOCAL_ONLY
        for name in (*wrong, *(VLLM_ONLY if self.backend != "vllm" else ())):
            if getattr(self, name) is not None:
                raise EsrError(f"-M {name}= has no meaning with backend={self.backend}: drop it.")
        changes: dict[str, Any] = {
            name: value
            for name in (
                "backend",
                "dtype",
                "revision",
                "adapter",
                "steering_layer",
                "feature_layer",
                "repetition_penalty",
                "skip_first",
                "date",
                "sampler",
            )
            if (value := getattr(self, name)) is not None
        }
        template_args = dict(self.chat_template_args or {})
        if self.enable_thinking is not None:
            asked = template_args.setdefault("enable_thinking", self.enable_thinking)
            if asked is not self.enable_thinking:
                raise EsrError(
                    f"-M enable_thinking={self.enable_thinking} and -M chat_template_args= say "
                    "different things: drop one."
                )
        if template_args:
            changes["template_args"] = {**(subject.template_args or {}), **template_args}
        if self.sae_release is not None or self.sae_id is not None:
            release = self.sae_release or (subject.sae.release if subject.sae else None)
            if release is None:
                raise EsrError("-M sae_id= needs -M sae_release= beside it.")
            changes["sae"] = SAERef(release=release, sae_id=self.sae_id)
        return subject.runtime().model_copy(update=changes)

    def remote(self, base_url: str | None, api_key: str | None) -> RemoteArgs:
        """How to reach the server of a remote backend.

        Args:
            base_url: From `--model-base-url`.
            api_key: Key of the server, where one is asked for.
        """
        return RemoteArgs(
            base_url=base_url,
            api_key=api_key,
            requests=self.requests or DEFAULT_REQUESTS,
            wait=self.wait or DEFAULT_WAIT,
            sae_rows=self.sae_rows,
        )
