"""SAE folders: found on this machine or converted into the cache, and whole.

A release of sae-lens's registry is converted once into a folder with the digests of its files
beside them. They are checked before the weights are used, and a folder that does not fit them is
converted anew.

A client need not hold the SAE: steering takes the decoder rows of the boosted latents, and encoder
and decoder rows of the clamped ones, 64 KB a latent at d_model 8,192 in float32, where the whole
SAE takes 4 GB. A small file of them, used as `-M sae_rows=FILE`, stands in its place.
"""

import errno
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from esr_eval._util.files import file_sha256, read_sums, share, write_sums
from esr_eval._util.paths import CACHE_ENV, cache_root, given_path
from esr_eval.errors import EsrError
from esr_eval.sae.config import (
    ARCHITECTURES,
    CFG_FILE,
    WEIGHTS_FILE,
    SAEConfig,
    parse_sae_config,
    unfolded,
    unreadable,
)
from esr_eval.spec import SAERef, fingerprint
from esr_eval.subjects import given_folder

SCALER_FILE = "activation_scaler.json"
"""What sae-lens writes beside a checkpoint whose input scale is not in its weights yet."""
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
DTYPES = ("F32", "BF16", "F16", "F64")
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl")
SCALE = "scaling_factor"
"""Tensor of old sae-lens files: all ones, or a scale that is not in the weights."""
FILES = (CFG_FILE, WEIGHTS_FILE)
LATENTS = "latents"
"""Name of the tensor that lists which latents the file holds, in order."""
ABOUT = "esr_eval"
UNFINISHED = ".unfinished"
LONGEST_CONVERSION = 24 * 3600.0
"""Seconds after which an unfinished folder is left over from a process that was killed."""
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def read_sae_config(folder: Path) -> SAEConfig:
    """Read a folder's cfg.json, and check that its weights are whole and fit it.

    Of the weights only the header is read.

    Raises:
        EsrError: It is no SAE folder, a damaged one, or one this project cannot edit with.
    """
    config = parse_sae_config(read_cfg(folder), folder)
    scaler = folder / SCALER_FILE
    if scaler.is_file():
        try:
            kept = json.loads(scaler.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise unreadable(folder, error) from error
        if any(value is not None for value in kept.values()):
            raise unfolded(config.folder, config.hook, SCALER_FILE)
    check_weights(
        folder / WEIGHTS_FILE,
        tensor_shapes(config.architecture, config.d_model, config.n_latents),
    )
    return config


def read_cfg(folder: Path) -> dict[str, Any]:
    """The content of a folder's cfg.json, unchecked.

    Raises:
        EsrError: There is none, or it cannot be read.
    """
    file = folder / CFG_FILE
    try:
        check_no_pointer(file)
        cfg = json.loads(file.read_text("utf-8"))
        if not isinstance(cfg, dict):
            raise TypeError(f"{CFG_FILE} holds no object")
    except (OSError, ValueError, TypeError) as error:
        raise unreadable(folder, error) from error
    return cfg


def tensor_shapes(architecture: str, d_model: int, n_latents: int) -> dict[str, tuple[int, ...]]:
    """The tensors that an SAE's file must hold, by name.

    Args:
        architecture: One of `ARCHITECTURES`.
        d_model: Width of the residual stream.
        n_latents: Number of latents in the file.
    """
    shapes = {"W_enc": (d_model, n_latents), "W_dec": (n_latents, d_model), "b_dec": (d_model,)}
    return {name: shapes.get(name, (n_latents,)) for name in ARCHITECTURES[architecture]}


def local_folder(ref: SAERef) -> Path | None:
    """The folder of an SAE that is on this machine already; None when it must be downloaded.

    Of a converted copy in the cache the weights' digest is not checked here: that takes seconds,
    and `converted` does it before the weights are used.
    """
    if folder := given_folder(ref):
        return folder
    converted = converted_folder(ref)
    try:
        # A copy that is cut short is no SAE on this machine: it is converted anew.
        read_sae_config(converted)
    except EsrError:
        return None
    told = read_sums(converted)
    whole = WEIGHTS_FILE in told and told.get(CFG_FILE) == file_sha256(converted / CFG_FILE)
    return converted if whole else None


def converted_folder(ref: SAERef) -> Path:
    """Where the cache keeps a registry SAE in sae-lens's folder format."""
    return cache_root() / "sae" / fingerprint(ref)


def converted(ref: SAERef) -> Path:
    """The cache's folder of a registry SAE, converted now if it is not there whole.

    Args:
        ref: Release and id.

    Raises:
        EsrError: The SAE cannot be had or used, or the cache cannot be written to.
    """
    from filelock import FileLock
    from safetensors import SafetensorError

    check_named(ref)
    folder = converted_folder(ref)
    if _is_whole(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_name(folder.name + ".lock"), timeout=LONGEST_CONVERSION)
        with lock:
            # Another process may have converted it meanwhile.
            if not _is_whole(folder):
                _convert(ref, folder)
    except (OSError, SafetensorError, NotImplementedError) as error:
        raise EsrError(
            f"The SAE {ref.release} / {ref.sae_id} could not be kept in the cache "
            f"{folder.parent} ({_in_one_line(error)}): free space there, or name another folder in "
            f"the environment variable {CACHE_ENV}."
        ) from error
    return folder


def check_named(ref: SAERef) -> None:
    """Raise an `EsrError` when neither a folder nor an SAE of a release is named."""
    if ref.sae_id is None:
        raise EsrError(
            f"'{ref.release}' is no SAE folder on this machine; if it is a sae-lens release, "
            "name its SAE with -M sae_id=."
        )


def described(ref: SAERef) -> SAEConfig | None:
    """What sae-lens knows of an SAE that it would download; none of the weights are.

    Returns:
        None where it cannot tell: the download itself says what is wrong.

    Raises:
        EsrError: It is of a kind that cannot be used.
    """
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

    assert ref.sae_id is not None
    try:
        cfg = load_sae_config_from_huggingface(ref.release, ref.sae_id)
    except Exception:  # of any library's own type
        return None
    # Loading folds the scale in where the registry knows it; that is checked then.
    if cfg.get("normalize_activations") == "expected_average_only_in":
        cfg = {**cfg, "normalize_activations": "none"}
    return parse_sae_config(cfg, Path(ref.release) / ref.sae_id)


def _is_whole(folder: Path) -> bool:
    told = read_sums(folder)
    try:
        return all(name in told and told[name] == file_sha256(folder / name) for name in FILES)
    except OSError:
        return False


def _convert(ref: SAERef, folder: Path) -> None:
    _remove_leftovers(folder.parent)
    scratch = folder.with_name(folder.name + UNFINISHED)
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()  # before the download, which takes minutes
    try:
        try:
            sae = _downloaded(ref)
        except EsrError as error:
            if not folder.exists():
                raise
            raise EsrError(
                f"The converted copy of the SAE {ref.release} / {ref.sae_id} in {folder} is "
                "damaged, cut short or of an older version (its files do not have the digests of "
                f"a conversion), and it could not be converted anew: {error.message}"
            ) from error
        for parameter in sae.parameters():
            parameter.data = parameter.data.contiguous()  # safetensors refuses strided views
        sae.save_model(scratch)
        write_sums(scratch, FILES)
        share(scratch)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.replace(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _remove_leftovers(cache: Path) -> None:
    """Remove what conversions that were killed have left, of this version and of older ones."""
    for left in (*cache.glob(f"*{UNFINISHED}"), *cache.glob("tmp*")):
        if left.is_dir() and time.time() - left.stat().st_mtime > LONGEST_CONVERSION:
            shutil.rmtree(left, ignore_errors=True)


def _downloaded(ref: SAERef) -> Any:
    """The SAE as sae-lens loads it, from the hub or the hub's own cache."""
    from sae_lens import SAE

    assert ref.sae_id is not None
    described(ref)  # what cannot be used is refused before gigabytes are downloaded
    try:
        sae = SAE.from_pretrained(ref.release, ref.sae_id, device="cpu", dtype="float32")
    except Exception as error:  # sae-lens, the hub and the network raise types of their own
        way_out = (
            "free space in the hub's cache or name another folder in HF_HOME."
            if _is_of_the_disk(error)
            else "check the release and id against sae-lens's table of pretrained SAEs, and the "
            "network, or pass a local folder as -M sae_release=."
        )
        raise EsrError(
            f"The SAE {ref.release} / {ref.sae_id} could not be loaded through sae-lens "
            f"({type(error).__name__}: {_in_one_line(error)}); {way_out}"
        ) from error
    parse_sae_config(sae.cfg.to_dict(), Path(ref.release) / ref.sae_id)
    return sae


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _is_of_the_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False


def check_no_pointer(file: Path) -> None:
    """Raise an `EsrError` when git-lfs has left a pointer in a file's place.

    Raises:
        OSError: The file cannot be read.
    """
    with file.open("rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise EsrError(
                f"{file} is a git-lfs pointer, not the file itself: run 'git lfs pull' in the "
                "folder that was cloned."
            )


def check_weights(
    file: Path, shapes: Mapping[str, tuple[int, ...]], indices: str | None = None
) -> None:
    """Check that a safetensors file is whole and holds the tensors that it should.

    Args:
        file: The file.
        shapes: Names and shapes of the tensors; no others may be in it.
        indices: The tensor among them that holds whole numbers, if one does.

    Raises:
        EsrError: It is missing, damaged, or another SAE's.
    """
    from safetensors import SafetensorError, safe_open

    way_out = "download or save the SAE again."
    try:
        check_no_pointer(file)
        with safe_open(file, framework="np") as tensors:
            names = set(tensors.keys())
            found = {name: tensors.get_slice(name) for name in names}
            held = {name: (tuple(s.get_shape()), s.get_dtype()) for name, s in found.items()}
    except FileNotFoundError:
        raise EsrError(_missing(file)) from None
    except (OSError, SafetensorError) as error:
        raise EsrError(f"The SAE's weights {file} are damaged ({error}): {way_out}") from error
    if missing := sorted(shapes.keys() - names):
        raise EsrError(f"The SAE's weights {file} lack the tensor {missing[0]}: {way_out}")
    for name, shape in shapes.items():
        got, dtype = held[name]
        if got != shape:
            raise EsrError(
                f"The SAE's weights {file} do not fit its config: {name} has the shape "
                f"{list(got)} where {list(shape)} is due; {way_out}"
            )
        if dtype not in DTYPES and name != indices:
            raise EsrError(
                f"The SAE's weights {file} hold {name} as {dtype}, which are no numbers that can "
                f"be used as they are (supported: {', '.join(DTYPES)}): save the SAE in float32."
            )
    others = sorted(names - shapes.keys())
    if SCALE in others and _all_ones(file):
        others.remove(SCALE)
    if others:
        raise EsrError(
            f"The SAE's weights {file} hold the tensor {others[0]}, which an SAE of its "
            "architecture does not have, so its activations would be computed without it: fold it "
            "into the others, or correct the config."
        )


def _all_ones(file: Path) -> bool:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        return bool((tensors.get_tensor(SCALE) == 1).all())


def _missing(file: Path) -> str:
    said = f"The SAE's weights {file} do not exist"
    if file.parent.is_dir():
        pickles = [one.name for one in sorted(file.parent.iterdir()) if one.suffix in PICKLES]
        if pickles:
            return (
                f"{said}, and {pickles[0]} beside it is a pickle, which could run code when it is "
                "opened and never is: save the SAE as safetensors with sae-lens (sae.save_model)."
            )
    return f"{said}: download or save the SAE again."


class RowsOrigin(BaseModel):
    """Where rows come from.

    Attributes:
        sae: The SAE they belong to.
        digest: Digest of the whole SAE's folder, which logs name; it ends in -bfloat16 where rows
            have been rounded.
        config: The SAE's cfg.json.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sae: SAERef
    digest: str
    config: dict[str, Any]


@dataclass(frozen=True)
class RowsFile:
    """A file of rows, checked.

    Attributes:
        file: Where it lies.
        origin: What its rows are of.
        config: The SAE's config.
        latents: Position of each latent's row in the file.
    """

    file: Path
    origin: RowsOrigin
    config: SAEConfig
    latents: dict[int, int]

    @classmethod
    def read(cls, file: Path, ref: SAERef) -> "RowsFile":
        """Open a file of rows; loads no rows and no torch.

        Args:
            file: As written by `write_rows`.
            ref: The SAE that is wanted.

        Raises:
            EsrError: There is no such file, it holds no rows, or those of another SAE.
        """
        from safetensors import SafetensorError, safe_open

        way_out = "write one with `esr-eval latents rows SUBJECT -o FILE` where the SAE is."
        file = Path(given_path(str(file)))
        if not file.is_file():
            raise EsrError(f"There is no file {file} of SAE rows: {way_out}")
        try:
            check_no_pointer(file)
            with safe_open(file, framework="np") as tensors:
                origin = RowsOrigin.model_validate_json((tensors.metadata() or {})[ABOUT])
                latents = [int(latent) for latent in tensors.get_tensor(LATENTS)]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise EsrError(
                f"{file} holds no SAE rows ({type(error).__name__}): {way_out}"
            ) from error
        if origin.sae != ref:
            raise EsrError(
                f"{file} holds rows of the SAE {name_of(origin.sae)}, but {name_of(ref)} is wanted."
            )
        config = parse_sae_config(origin.config, file)
        for latent in latents:
            config.check_latent(latent)
        if len(set(latents)) < len(latents):
            raise EsrError(f"{file} holds rows of one latent twice: {way_out}")
        shapes = tensor_shapes(config.architecture, config.d_model, len(latents))
        check_weights(file, {**shapes, LATENTS: (len(latents),)}, indices=LATENTS)
        return cls(file, origin, config, {latent: at for at, latent in enumerate(latents)})

    def at(self, latent: int) -> int:
        """Where a latent's row stands in the file.

        Raises:
            EsrError: It is not in there.
        """
        if latent not in self.latents:
            raise EsrError(
                f"{self.file} holds the rows of {len(self.latents)} latents, but not of latent "
                f"{latent}: write it again with `esr-eval latents rows` and that one too."
            )
        return self.latents[latent]


def name_of(ref: SAERef) -> str:
    """The SAE's name in messages."""
    return ref.release if ref.sae_id is None else f"{ref.release} / {ref.sae_id}"
