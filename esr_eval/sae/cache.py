"""SAEs of sae-lens's registry, converted once into folders that are kept in the cache.

A converted folder has the digests of its files beside them. They are checked before the weights
are used, and a folder that does not fit them is converted anew.
"""

import errno
import shutil
import time
from pathlib import Path
from typing import Any

from esr_eval._util.cache import CACHE_ENV
from esr_eval._util.digests import file_sha256, read_sums, write_sums
from esr_eval._util.files import share
from esr_eval.errors import EsrError
from esr_eval.sae.config import CFG_FILE, WEIGHTS_FILE, converted_folder, parse_sae_config
from esr_eval.spec import SAERef

FILES = (CFG_FILE, WEIGHTS_FILE)
UNFINISHED = ".unfinished"
LONGEST_CONVERSION = 24 * 3600.0
"""Seconds after which an unfinished folder is left over from a process that was killed."""
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}


def converted(ref: SAERef) -> Path:
    """The cache's folder of a registry SAE, converted now if it is not there whole.

    Args:
        ref: Release and id.

    Raises:
        EsrError: The SAE cannot be had or used, or the cache cannot be written to.
    """
    from filelock import FileLock
    from safetensors import SafetensorError

    if ref.sae_id is None:
        raise EsrError(
            f"'{ref.release}' is no SAE folder on this machine; if it is a sae-lens release, "
            "name its SAE with -M sae_id=."
        )
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
    from sae_lens.loading.pretrained_sae_loaders import load_sae_config_from_huggingface

    assert ref.sae_id is not None
    named = Path(ref.release) / ref.sae_id
    try:
        # What cannot be used is refused before gigabytes are downloaded.
        cfg = load_sae_config_from_huggingface(ref.release, ref.sae_id)
    except Exception:  # of any library's own type; the download itself tells what is wrong
        cfg = None
    if cfg is not None:
        # Loading folds the scale in where the registry knows it; that is checked below.
        unscaled = cfg.get("normalize_activations") == "expected_average_only_in"
        parse_sae_config({**cfg, "normalize_activations": "none"} if unscaled else cfg, named)
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
    parse_sae_config(sae.cfg.to_dict(), named)
    return sae


def _in_one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _is_of_the_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return True
        error = error.__cause__ or error.__context__
    return False
