"""The subjects: which model, SAE, layers and priors a name such as `llama-70b` stands for."""

import difflib
import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
)

from esr_eval._util.paths import given_path
from esr_eval.errors import EsrError
from esr_eval.spec import Digested, Dtype, Runtime, SAERef

PAPER_GRADER = "anthropic/claude-haiku-4-5-20251001"
"""The judge of record of the paper, and the default for every subject but the embedded one."""

BYTES_PER_PARAMETER: dict[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2}

SearchMethod = Literal["paper", "curve"]
"""How a strength is searched for."""


class CalibrationPrior(Digested):
    """Prior and effort of the per-latent strength search (paper, appendix on calibration)."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    came_later = ("unit", "method")

    prior_mean: float = Field(description="Mean of the Gaussian prior over the strength.")
    prior_std: float = Field(gt=0, description="Standard deviation of that prior.")
    lower: float = Field(description="Smallest strength on the grid.")
    upper: float = Field(description="Largest strength on the grid.")
    unit: Literal["latent", "norm"] = Field(
        default="latent",
        description="Of the four: the latent's activation, or the residual's median norm at the "
        "steering layer, to which the decoder row is scaled.",
    )
    rounds: int = Field(default=10, ge=1)
    samples_per_round: int = Field(default=1, ge=1)
    target: float = Field(default=30.0, gt=0, lt=100, description="Mean first-attempt score.")
    max_tokens: int = Field(default=256, ge=1, description="Longest response while calibrating.")
    method: SearchMethod = Field(
        default="paper",
        description="Bisection by the side of the target on which scores lie, or a curve of scores "
        "on a share of the responses.",
    )


RELATIVE_PRIOR = CalibrationPrior(
    prior_mean=0.6, prior_std=0.3, lower=0.0, upper=2.0, unit="norm", samples_per_round=2
)
"""The prior of a model that the paper has none for, in units of the residual's norm.

Answers of Gemma 2 2B start to drift where a boost adds some 0.6 (SD 0.3) of the residual's median
norm, those of the embedded model at 0.3 to 0.6. At 2 the boost outweighs the residual itself.
"""


class Subject(BaseModel):
    """A model under test with its SAE and the paper's settings for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    model: str = Field(description="Hugging Face id, local path, or `package:NAME/FILE`.")
    revision: str | None = None
    n_layers: int | None = Field(default=None, description="None: read from the model's config.")
    d_model: int | None = None
    n_parameters: int | None = None
    dtype: Dtype = "float32"
    adapter: str | None = Field(default=None, description="PEFT adapter that belongs to it.")
    tuned: str | None = Field(
        default=None, description="Name of the subject that is this one, fine-tuned."
    )
    sae: SAERef | None = None
    n_latents: int | None = None
    steering_layer: int | None = Field(default=None, description="Where boosts and clamps act.")
    feature_layer: int | None = Field(default=None, description="What the SAE was trained on.")
    vector_layer: int | None = Field(
        default=None, description="Where concept vectors are taken and added; None: steering_layer."
    )
    repetition_penalty: float = 1.0
    template_args: dict[str, JsonValue] | None = Field(
        default=None, description="Variables of its chat template."
    )
    skip_first: int = Field(default=0, description="Leading positions never edited.")
    max_tokens: int = Field(default=512, description="Longest response in the main experiment.")
    temperature: float = 0.6
    grader: str = PAPER_GRADER
    latents: str | None = Field(default=None, description="CSV of latents and labels.")
    labels: str | None = Field(
        default=None,
        description="Where its SAE's labels are published, if sae-lens's registry does not say so "
        "(rightly): Neuronpedia's MODEL/SOURCE, or the https address of a file.",
    )
    labels_remark: str | None = Field(default=None, description="What users should know of them.")
    strengths: str | None = Field(default=None, description="Calibrated strengths, if shipped.")
    calibration: CalibrationPrior | None = None
    note: str | None = None

    @property
    def weights_gib(self) -> float | None:
        """Memory that the weights alone need, in GiB."""
        if self.n_parameters is None:
            return None
        return self.n_parameters * BYTES_PER_PARAMETER[self.dtype] / 2**30

    def runtime(self) -> Runtime:
        """The part of a steering spec that this subject decides."""
        return Runtime(
            subject=self.name,
            model=self.model,
            revision=self.revision,
            adapter=self.adapter,
            dtype=self.dtype,
            sae=self.sae,
            steering_layer=self.steering_layer,
            feature_layer=self.feature_layer,
            repetition_penalty=self.repetition_penalty,
            template_args=self.template_args,
            skip_first=self.skip_first,
        )


@cache
def subjects() -> dict[str, Subject]:
    """All named subjects, the embedded one first."""
    text = resources.files("esr_eval.data").joinpath("subjects.json").read_text("utf-8")
    entries = json.loads(text)
    found = {}
    for name, entry in entries.items():
        # A tuned subject is its base but for what its own entry says.
        base = entries[entry.pop("like")] if "like" in entry else {}
        found[name] = Subject(name=name, **{**base, **entry})
    return dict(sorted(found.items(), key=lambda item: item[1].n_parameters or 0))


def with_tuned_twin(name: str) -> tuple[Subject, Subject | None]:
    """A subject, its tuned twin in its place where it comes with one, and what that was tuned from.

    A base that hardly ever corrects itself has no rates that anything could change.

    Args:
        name: As in `find_subject`: of a base or of its twin.

    Raises:
        EsrError: No subject has that name.
    """
    subject = find_subject(name)
    if subject.tuned is not None:
        return find_subject(subject.tuned), subject
    return subject, next((one for one in subjects().values() if one.tuned == subject.name), None)


def is_custom(name: str) -> bool:
    """Whether a model name is a path or Hugging Face id rather than a subject's name."""
    return "/" in name or Path(given_path(name)).exists()


def find_subject(name: str) -> Subject:
    """Look a subject up by name, or stand one up for a Hugging Face id or a local path.

    Args:
        name: A subject's name (`llama-70b`), a Hugging Face id (`Qwen/Qwen3-4B`) or a path. A
            leading `esr/` is ignored.

    Raises:
        EsrError: No subject has that name.
    """
    name = name.removeprefix("esr/")
    known = subjects()
    if name in known:
        return known[name]
    if is_custom(name):
        return Subject(name=name, model=name, dtype="bfloat16")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise EsrError(
        f"There is no subject '{name}'.{hint} Named subjects: {', '.join(known)}; "
        "any other model goes by its Hugging Face id or path, with -M sae_release= -M sae_id= "
        "-M steering_layer= -M feature_layer=."
    )


def check_layer(layer: int, n_layers: int, subject: str, said: str | None = None) -> None:
    """Raise an `EsrError` when a model has no such decoder layer.

    Args:
        layer: Index of the layer.
        n_layers: How many the model has.
        subject: The model's name in the message.
        said: How the user named the layer; "Layer N" without it.
    """
    if layer >= n_layers:
        raise EsrError(
            f"{said or f'Layer {layer}'} is out of range: {subject} has decoder layers "
            f"0 to {n_layers - 1}."
        )


def embedded_path(reference: str) -> Path:
    """Resolve `embedded:NAME/FILE` to the file shipped with the package; else a given path."""
    if not reference.startswith("embedded:"):
        return Path(given_path(reference))
    return Path(str(resources.files("esr_eval.embedded"))) / reference.removeprefix("embedded:")


def given_folder(ref: SAERef) -> Path | None:
    """The folder of an SAE that is named by its path; None for one of a registry."""
    folder = embedded_path(ref.release)
    if ref.sae_id is not None and (folder / ref.sae_id).is_dir():
        folder = folder / ref.sae_id
    return folder if folder.is_dir() else None
