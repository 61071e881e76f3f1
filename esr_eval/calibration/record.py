"""What is kept of a calibrated strength: the record, its key, and the digest of its content."""

from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from esr_eval._util.digests import folder_digest
from esr_eval.calibration.bisection import Bisection, Round
from esr_eval.calibration.sealed import Sealed
from esr_eval.scorers.rubric import RUBRIC_VERSION
from esr_eval.spec import DIGEST, Runtime, fingerprint
from esr_eval.subjects import CalibrationPrior, embedded_path


class Setting(BaseModel):
    """Everything that decides a latent's strength, beside the latent itself."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runtime: Runtime
    prior: CalibrationPrior = Field(description="Prior, effort, target and response length.")
    prompts: str = Field(description="Fingerprint of the tasks' texts, in order.")
    temperature: float
    grader: str = Field(description="Model that judged the responses.")
    rubric: int = Field(description="Version of the grader's instructions.")
    files: dict[str, str] = Field(
        default_factory=dict,
        description="Digests of a local model, SAE and adapter: a path stays when its content "
        "changes.",
    )

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        prior: CalibrationPrior,
        grader: str,
        *,
        prompts: Sequence[str],
        temperature: float,
    ) -> Self:
        """The setting for these task texts, under the current rubric."""
        return cls(
            runtime=runtime,
            prior=prior,
            prompts=fingerprint({"prompts": list(prompts)}),
            temperature=temperature,
            grader=grader,
            rubric=RUBRIC_VERSION,
            files=local_digests(runtime),
        )

    def key(self, latent: int, label: str) -> str:
        """Key of one latent. The label counts: graders are told which concept to look for.

        The backend does not: every backend gives the same tokens for the same runtime.
        """
        decides = self.model_dump(mode="json", context=DIGEST, exclude={"runtime": {"backend"}})
        return fingerprint({**decides, "latent": latent, "label": label})


def local_digests(runtime: Runtime) -> dict[str, str]:
    """Digests of the runtime's model, SAE and adapter where they are local folders."""
    folders = {"model": embedded_path(runtime.model)}
    if runtime.sae is not None:
        release = embedded_path(runtime.sae.release)
        inner = release / (runtime.sae.sae_id or "")
        folders["sae"] = inner if inner.is_dir() else release
    if runtime.adapter is not None:
        folders["adapter"] = embedded_path(runtime.adapter)
    return {name: folder_digest(folder) for name, folder in folders.items() if folder.is_dir()}


class Checkpoint(Sealed):
    """A search that is under way: an interrupted calibration continues from it."""

    seed: int
    search: Bisection


class StrengthRecord(Sealed):
    """One latent's calibrated strength and how it was found."""

    setting: Setting
    latent: int = Field(ge=0)
    label: str
    strength: float = Field(allow_inf_nan=False, description="Final posterior median.")
    interval: tuple[float, float] = Field(description="5 % and 95 % quantiles of the posterior.")
    achieved_score: float | None = Field(
        description="Mean first-attempt score of fresh responses at the strength."
    )
    check: Round | None = Field(description="Those fresh responses; no part of the search.")
    rounds: tuple[Round, ...]
    generations: int = Field(ge=0, description="Responses generated in all.")
    unscored: int = Field(ge=0, description="Responses not judged, or without attempt.")
    seed: int = Field(description="Seed of tasks and samplers; another one is a replication.")
    created: str = Field(description="UTC time, ISO 8601.")
    esr_eval: str = Field(description="Version of this package.")

    @classmethod
    def of(
        cls,
        setting: Setting,
        latent: int,
        label: str,
        search: Bisection,
        *,
        check: Round | None,
        seed: int,
    ) -> Self:
        """The record of a finished search."""
        rounds = (*search.rounds, *([check] if check else []))
        unscored = sum(tested.unscored for tested in rounds)
        return cls(
            key=setting.key(latent, label),
            setting=setting,
            latent=latent,
            label=label,
            strength=search.median,
            interval=(search.quantile(0.05), search.quantile(0.95)),
            achieved_score=check.mean if check else None,
            check=check,
            rounds=search.rounds,
            generations=unscored + sum(len(tested.scores) for tested in rounds),
            unscored=unscored,
            seed=seed,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            esr_eval=version("esr-eval"),
        ).sealed()

    @model_validator(mode="after")
    def _key_fits(self) -> Self:
        if self.key != self.setting.key(self.latent, self.label):
            raise ValueError("the key is not that of the record's setting and latent")
        return self

    def as_markdown(self) -> str:
        """The search as a table, for the log viewer."""
        low, high = self.interval
        lines = [
            f"**Strength {self.strength:.4g}** (90 % of the posterior: {low:.4g} to {high:.4g})",
            "",
            "| round | boost | first-attempt scores | unscored |",
            "|---|---|---|---|",
        ]
        rows = [(str(number), tested) for number, tested in enumerate(self.rounds, 1)]
        if self.check:
            rows.append(("check", self.check))
        for name, tested in rows:
            scores = ", ".join(f"{score:.0f}" for score in tested.scores)
            lines.append(f"| {name} | {tested.boost:.4g} | {scores} | {tested.unscored} |")
        return "\n".join(lines)
