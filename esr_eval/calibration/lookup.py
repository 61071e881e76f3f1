"""Which strength each latent gets: calibrated, a multiple of that, or one number for all.

A strength is found again only under exactly the settings that it was calibrated with. So a run
that finds none most often differs in one of them from a calibration that was made: the user is told
in which, and what to run.
"""

import json
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from esr_eval._util.paths import cache_root
from esr_eval.calibration.store import Setting, cache_folder, calibrated_strengths
from esr_eval.data.arguments import shown, strength_of
from esr_eval.data.labels import write_labels
from esr_eval.dataset import Latent, latents_at_hand, prompts
from esr_eval.errors import EsrError
from esr_eval.provider.arguments import ModelArgs
from esr_eval.spec import Runtime, fingerprint
from esr_eval.subjects import Subject, embedded_path

MOST_INDICES = 20
"""More latents than these are named by a file rather than one by one."""
WORDS = {
    "grader": "judge",
    "prompts": "set of tasks",
    "files model": "content of the model's folder",
    "files sae": "content of the SAE's folder",
    "files adapter": "content of the adapter's folder",
}
"""Names of settings where the field's own would not be understood."""
UNREADABLE = {"prompts", "files model", "files sae", "files adapter", "label"}
"""Settings whose values say nothing to a reader (digests), or are data of others."""


def resolve_strengths(
    strength: str | float,
    runtime: Runtime,
    subject: Subject,
    latents: Sequence[Latent],
    grader: str,
) -> dict[int, float]:
    """The strength of every latent, by index.

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
            f"{subject.name} has no calibration prior: pass the strength as -T strength=NUMBER."
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
        EsrError: It is neither, or no strength can have it.
    """
    try:
        return strength_of(strength)
    except ValueError as error:
        raise EsrError(f"-T strength={shown(strength)} is refused: {error}.") from None


def missing_message(
    missing: Sequence[Latent], total: int, subject: Subject, setting: Setting
) -> str:
    """One sentence: how many have none, how those that are known differ, and the whole command.

    Args:
        missing: Latents without a strength under this setting.
        total: How many the run has.
        subject: Whose latents.
        setting: What a strength would be kept under.
    """
    differ = _differences(missing, subject, setting)
    return (
        f"{len(missing)} of {total} latents have no calibrated strength with these settings"
        f"{f' ({differ})' if differ else ''}: run `{calibrate_command(missing, subject, setting)}` "
        "first, or pass -T strength=NUMBER."
    )


def calibrate_command(missing: Sequence[Latent], subject: Subject, setting: Setting) -> str:
    """The command that finds these latents' strengths under this setting."""
    words = ["esr-eval", "calibrate", subject.name, *_latents_option(missing, subject, setting)]
    if setting.grader != subject.grader:
        words += ["--grader", setting.grader]
    for name, value in _model_args(setting.runtime, subject.runtime()).items():
        words += ["-M", f"{name}={value}"]
    return shlex.join(words)


def _differences(missing: Sequence[Latent], subject: Subject, setting: Setting) -> str:
    """How the nearest known strengths differ, for as many latents as differ alike."""
    wanted = {latent.index: _facts(setting.model_dump(mode="json"), latent) for latent in missing}
    nearest: dict[int, tuple[str, ...]] = {}
    for index, known in _known(subject, wanted):
        here = wanted[index]
        if known.get("model") != here.get("model"):
            continue
        unlike = tuple(
            _said(name, known.get(name), here.get(name))
            for name in dict.fromkeys([*here, *known])
            if known.get(name) != here.get(name)
        )
        if index not in nearest or len(unlike) < len(nearest[index]):
            nearest[index] = unlike
    if not nearest:
        return "none are known for this model and latents"
    unlike, count = Counter(nearest.values()).most_common(1)[0]
    return f"{count} of them have one with {', '.join(unlike)}"


def _known(
    subject: Subject, wanted: dict[int, dict[str, Any]]
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The facts of every kept strength of these latents, whichever version wrote it."""
    files = [path for path in cache_folder().glob("*.json") if ".partial." not in path.name]
    if subject.strengths is not None:
        files.append(embedded_path(subject.strengths))
    for path in files:
        content = _read(path)
        for entry in content if isinstance(content, list) else [content]:
            # Damage is told where a strength is looked up; here such a file has nothing to say.
            if not isinstance(entry, dict) or not isinstance(entry.get("setting"), dict):
                continue
            index = entry.get("latent")
            if isinstance(index, int) and index in wanted:
                latent = Latent(index=index, label=str(entry.get("label")))
                yield index, _facts(entry["setting"], latent)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _facts(setting: dict[str, Any], latent: Latent) -> dict[str, Any]:
    """A setting as one level of names and values, and the label, which counts as well."""
    facts: dict[str, Any] = {"label": latent.label}
    for name, value in setting.items():
        if not isinstance(value, dict):
            facts[name] = value
            continue
        prefix = "" if name == "runtime" else f"{name} "
        facts |= {f"{prefix}{key}": one for key, one in value.items() if key != "backend"}
    return facts


def _said(name: str, known: Any, here: Any) -> str:
    word = WORDS.get(name, name.replace("_", " "))
    if name in UNREADABLE:
        return f"another {word}"
    return f"{word} {_short(known)} instead of {_short(here)}"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        value = " / ".join(str(part) for part in value.values() if part is not None)
    return "none" if value is None else str(value)[:80]


def _latents_option(missing: Sequence[Latent], subject: Subject, setting: Setting) -> list[str]:
    try:
        own = latents_at_hand(subject, setting.runtime)
    except EsrError:
        own = []
    if set(missing) == set(own):
        return []
    if set(missing) <= set(own) and len(missing) <= MOST_INDICES:
        return ["--latents", ",".join(str(latent.index) for latent in missing)]
    rows = [(latent.index, latent.label) for latent in missing]
    path = cache_root() / "uncalibrated" / f"{fingerprint({'latents': rows})}.csv"
    try:
        write_labels(path, rows)
    except EsrError:
        return ["--latents", "FILE.csv"]
    return ["--latents", str(path.resolve())]


def _model_args(ours: Runtime, usual: Runtime) -> dict[str, str]:
    """The `-M` arguments that make the usual runtime ours."""
    plain, other = ours.model_dump(mode="json"), usual.model_dump(mode="json")
    args = {
        name: value
        for name, value in plain.items()
        if name in ModelArgs.model_fields and value != other[name]
    }
    if ours.sae is not None and ours.sae != usual.sae:
        args["sae_release"], args["sae_id"] = ours.sae.release, ours.sae.sae_id
    return {name: _argument(value) for name, value in args.items() if value is not None}


def _argument(value: Any) -> str:
    """As `-M name=` reads it back: JSON, or else text."""
    if not isinstance(value, str):
        return json.dumps(value)
    try:
        json.loads(value)
    except ValueError:
        return value
    return json.dumps(value)
