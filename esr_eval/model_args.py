"""The provider's `-M` arguments: read, checked, and turned into a runtime."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from esr_eval.errors import EsrError
from esr_eval.spec import Dtype, Runtime, SAERef
from esr_eval.subjects import Subject

BACKENDS = ("local",)
PLANNED_BACKENDS = ("ndif", "vllm")


class ModelArgs(BaseModel):
    """Arguments of the provider `esr`, as given with `-M name=value`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    backend: str = Field(default="local", description="Where the model runs: local.")
    dtype: Dtype | None = Field(default=None, description="float32, bfloat16 or float16.")
    device: str | None = Field(default=None, description="transformers device map, e.g. cuda:1.")
    batch_size: int | None = Field(default=None, ge=1, description="Most samples at a time.")
    revision: str | None = Field(default=None, description="Revision of the model on the hub.")
    adapter: str | None = Field(default=None, description="PEFT adapter: path or hub id.")
    sae_release: str | None = Field(default=None, description="sae-lens release or local folder.")
    sae_id: str | None = Field(default=None, description="SAE within the release.")
    steering_layer: int | None = Field(default=None, ge=0, description="Layer that is edited.")
    feature_layer: int | None = Field(default=None, ge=0, description="Layer the SAE reads.")
    repetition_penalty: float | None = Field(default=None, gt=0)
    skip_first: int | None = Field(default=None, ge=0, description="Leading positions left alone.")

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
            raise EsrError(f"-M {name}={first['input']}: {first['msg']}.") from None

    def runtime(self, subject: Subject) -> Runtime:
        """The subject's runtime with these arguments on top.

        Raises:
            EsrError: The backend is unknown.
        """
        if self.backend not in BACKENDS:
            planned = self.backend in PLANNED_BACKENDS
            raise EsrError(
                f"The backend '{self.backend}' "
                + ("is not in this release yet" if planned else "does not exist")
                + f"; there is: {', '.join(BACKENDS)}."
            )
        changes: dict[str, Any] = {
            name: value
            for name in (
                "dtype",
                "revision",
                "adapter",
                "steering_layer",
                "feature_layer",
                "repetition_penalty",
                "skip_first",
            )
            if (value := getattr(self, name)) is not None
        }
        if self.sae_release is not None or self.sae_id is not None:
            release = self.sae_release or (subject.sae.release if subject.sae else None)
            if release is None:
                raise EsrError("-M sae_id= needs -M sae_release= beside it.")
            changes["sae"] = SAERef(release=release, sae_id=self.sae_id)
        return subject.runtime().model_copy(update=changes)
