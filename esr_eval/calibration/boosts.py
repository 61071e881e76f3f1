"""Which boost each latent gets: calibrated, a multiple of that, or one number for all."""

from collections.abc import Sequence

from esr_eval.calibration.missing import missing_message
from esr_eval.calibration.record import Setting
from esr_eval.calibration.store import calibrated_strengths
from esr_eval.data.arguments import shown, strength_of
from esr_eval.dataset import Latent, prompts
from esr_eval.errors import EsrError
from esr_eval.spec import Runtime
from esr_eval.subjects import Subject


def resolve_strengths(
    strength: str | float,
    runtime: Runtime,
    subject: Subject,
    latents: Sequence[Latent],
    grader: str,
) -> dict[int, float]:
    """The boost of every latent, by index.

    Args:
        strength: `calibrated`, a number, or a multiple of the calibrated strength (`1.5x`).
        runtime: What the strengths were calibrated on.
        subject: Its calibration prior and shipped strengths.
        latents: Which latents.
        grader: The judge the calibration went by.

    Raises:
        EsrError: The strength is none of these, or a latent has not been calibrated.
    """
    factor, fixed = parse_strength(strength)
    if fixed is not None:
        return {latent.index: fixed for latent in latents}
    if subject.calibration is None:
        raise EsrError(
            f"{subject.name} has no calibration prior: pass the boost as -T strength=NUMBER."
        )
    setting = Setting.of(
        runtime,
        subject.calibration,
        grader,
        prompts=[prompt.text for prompt in prompts()],
        temperature=subject.temperature,
    )
    found, missing = calibrated_strengths(setting, latents, subject.strengths)
    if missing:
        raise EsrError(missing_message(missing, len(latents), subject, setting))
    return {index: factor * record.strength for index, record in found.items()}


def parse_strength(strength: str | float) -> tuple[float, float | None]:
    """Read a task's `strength`: the multiple of the calibrated, or else the number for all.

    Raises:
        EsrError: It is neither, or no boost can have it.
    """
    try:
        return strength_of(strength)
    except ValueError as error:
        raise EsrError(f"-T strength={shown(strength)} is refused: {error}.") from None
