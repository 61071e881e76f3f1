"""What a search for off-topic detectors found: the report, and the file it is kept in."""

import json
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from esr_eval.errors import EsrError
from esr_eval.spec import Runtime

Rule = Literal["silent", "separability"]
RULES: tuple[Rule, ...] = get_args(Rule)


def check_rule(rule: str) -> Rule:
    """The rule of this name.

    Raises:
        EsrError: There is none.
    """
    for known in RULES:
        if rule == known:
            return known
    raise EsrError(f"rule={rule} is neither silent nor separability.")


class _Data(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Detector(_Data):
    """A latent and how it behaves on matched and mismatched pairs of task and answer."""

    latent: int = Field(ge=0)
    label: str | None = Field(default=None, description="Where the subject has one.")
    matched_active: float = Field(description="Share of matched pairs with a maximum above 0.")
    mismatched_active: float = Field(description="The same of mismatched pairs.")
    matched_max: float = Field(description="Mean over matched pairs of the maximum.")
    mismatched_max: float = Field(description="The same over mismatched pairs.")
    auc: float = Field(
        description="Chance that a mismatched pair's maximum exceeds a matched one's (ties half)."
    )
    rate: float = Field(description="Share of positions at which it is active, over all pairs.")


class Found(_Data):
    """The latents that one rule finds.

    Were task and answer indifferent to the latents, so that matched and mismatched could change
    places within each pair, as many as `expected_by_chance` would be found all the same.
    """

    detectors: tuple[Detector, ...]
    nearest: tuple[Detector, ...] = Field(
        default=(), description="What came closest without being found, best first."
    )
    expected_by_chance: float = Field(ge=0)


class DetectorReport(_Data):
    """A discovery log's detectors by both rules, with all that decided them."""

    version: Literal[1] = 1
    source: dict[str, str] = Field(description="eval_id, task and model of the discovery log.")
    runtime: Runtime = Field(description="Model and SAE that were read.")
    layer: int = Field(ge=0, description="Decoder layer that was read (the feature layer).")
    n_latents: int = Field(ge=1)
    positions: str = Field(description="all (task and answer) or generated (the answer).")
    pairs: int = Field(ge=1, description="Matched pairs, and as many mismatched ones.")
    missing: int = Field(ge=0, description="Samples of the log that have no reading.")
    min_mismatched: float = Field(description="silent: least share of mismatched pairs.")
    max_matched: float = Field(description="silent: greatest share of matched pairs.")
    top: int = Field(description="separability: how many latents, those of greatest AUC.")
    sets: dict[Rule, Found]

    @model_validator(mode="after")
    def _in_range(self) -> Self:
        for found in self.sets.values():
            for detector in found.detectors:
                if detector.latent >= self.n_latents:
                    raise ValueError(f"latent {detector.latent} of {self.n_latents}")
        return self


def write_detector_file(report: DetectorReport, path: Path) -> None:
    """Keep a report as JSON, to be named as `detectors=` of `ablation`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.model_dump_json(indent=1, exclude_none=True) + "\n", "utf-8")


def read_detector_file(path: Path) -> DetectorReport:
    """Read a report back.

    Raises:
        EsrError: The file cannot be read or is no report.
    """
    try:
        return DetectorReport.model_validate(json.loads(path.read_text("utf-8")))
    except OSError as error:
        raise EsrError(f"The detector file {path} cannot be read: {error.strerror}.") from error
    except (ValidationError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise EsrError(
            f"{path} is no detector file ({first}): make one with `esr-eval detectors LOG -o FILE` "
            "from a log of esr_eval/detectors."
        ) from error
