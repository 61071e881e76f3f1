"""What a model of the provider needs before it can run, and whether that is there."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from esr_eval._util.paths import CACHE_ENV, cache_root, given_path
from esr_eval.backends.remote import RemoteArgs
from esr_eval.data.registry import near, registered
from esr_eval.errors import EsrError
from esr_eval.model.weights import (
    PACKAGE_PREFIX,
    check_hub,
    check_memory,
    check_model_files,
    has_token,
    holds_weights,
    hub_errors,
    model_folder,
    package_file,
    with_facts,
)
from esr_eval.provider.arguments import ModelArgs
from esr_eval.provider.checks import Check, check_versions, look
from esr_eval.sae.config import SAEConfig
from esr_eval.sae.files import RowsFile, check_named, described, local_folder, read_sae_config
from esr_eval.spec import Runtime, SAERef
from esr_eval.subjects import Subject, check_layer

SOME_WEIGHTS = 1 << 20
"""A file as large as this is no description."""
GIB = 2**30


@dataclass
class Needs:
    """What one model needs; looked at again each time.

    Attributes:
        subject: The model as it is named.
        runtime: What is to run.
        args: The provider's arguments.
        remote: How a server is reached.
    """

    subject: Subject
    runtime: Runtime
    args: ModelArgs
    remote: RemoteArgs

    def checks(self, edits_needed: bool, connected: bool) -> list[Check]:
        """Look at all of it; small files are downloaded at most.

        Args:
            edits_needed: Whether the run boosts, clamps or reads latents.
            connected: Whether a server has been found to be right already.
        """
        found = [*look("versions", check_versions), *look("access", self._access)]
        reachable = all(one.state != "stop" for one in found if one.name == "access")
        found += [*look("memory", self._memory), *look("layers", self._layers)]
        if self.args.device is not None:
            found += look("device", self._device)
        if edits_needed:
            found += look("SAE", self._sae_to_be_used)
        if self.runtime.adapter is not None and self.runtime.backend == "local" and reachable:
            found += look("adapter", self._adapter_fits)
        if self.runtime.backend != "local" and not connected:
            found += look("server", self._server)
        return found

    def checks_here(self) -> list[Check]:
        """Look at what asks no other machine."""
        found = [*look("memory", self._memory), *look("layers", self._layers)]
        if self.args.device is not None:
            found += look("device", self._device)
        if self.runtime.backend == "local":
            found += look("access", self._files)
        return found

    def _files(self) -> None:
        check_model_files(self.runtime.model, self.runtime.revision)

    @property
    def known(self) -> Subject:
        """The subject, with what the model's files on this machine tell of it."""
        return with_facts(self.subject, self.runtime.revision)

    def _device(self) -> str:
        from esr_eval.model.loading import check_device

        assert self.args.device is not None
        check_device(self.args.device)
        return self.args.device

    def _memory(self) -> Check | str:
        if self.runtime.backend != "local":
            return f"none is needed here: the model runs on {self.runtime.backend}"
        told = check_memory(self.known.model_copy(update={"dtype": self.runtime.dtype}))
        if told is None:
            return Check("memory", "note", f"nobody says how much {self.subject.name} needs")
        return told

    def _access(self) -> str:
        model, revision = self.runtime.model, self.runtime.revision
        if model.startswith(PACKAGE_PREFIX):
            package_file(model)
            return f"in the package {model.removeprefix(PACKAGE_PREFIX).partition('/')[0]}"
        here = Path(given_path(model)).exists()
        if not here:
            check_hub(model, revision)
        if self.runtime.backend == "local":
            self._files()
        if here:
            return f"in the folder {model}"
        folder = model_folder(model, revision)
        where = "all in the hub's cache" if folder and holds_weights(folder) else "on the hub"
        return f"{model}: {where} ({'with' if has_token() else 'without'} a token)"

    def _layers(self) -> Check | str | None:
        subject, n_layers = self.known, self.known.n_layers
        told = []
        for option in ("steering_layer", "feature_layer"):
            layer = getattr(self.runtime, option)
            if layer is None:
                continue
            told.append(f"{option.replace('_layer', '')} {layer}")
            if n_layers is not None:
                check_layer(layer, n_layers, subject.name, f"-M {option}={layer}")
        if n_layers is None:
            said = f"nobody says how many {subject.name} has"
            return Check("layers", "note", "; ".join([said, *told]))
        return f"{', '.join(told) or 'none named'} of 0 to {n_layers - 1}"

    def _sae_to_be_used(self) -> Check | str:
        runtime = self.runtime
        if runtime.sae is None or runtime.steering_layer is None:
            raise EsrError(
                f"{self.subject.name} is no named subject, so say which SAE steers it and where: "
                "-M sae_release= -M sae_id= -M steering_layer= (and -M feature_layer=)."
            )
        config = self.sae_config()
        if config is None:
            return _registry_sae(runtime.sae, self.check_sae)
        self.check_sae(config)
        of = f"{config.n_latents} latents of width {config.d_model}, {config.architecture}"
        return f"{self.args.sae_rows or config.folder}: {of}"

    def _adapter_fits(self) -> str:
        from esr_eval.model.adapters import check_adapter
        from esr_eval.model.loading import empty_model

        check_adapter(self.runtime, empty_model(self.runtime))
        return str(self.runtime.adapter)

    def _server(self) -> Check | str:
        if self.runtime.backend == "ndif":
            from esr_eval.backends.ndif.backend import reach

            return reach(self.remote)
        from esr_eval.backends.vllm.preflight import reach as reach_vllm
        from esr_eval.servers.vllm import running_url

        url = self.remote.base_url or running_url()
        if url is None:
            return Check("server", "note", "no vLLM server runs here: the run starts one")
        return reach_vllm(replace(self.remote, base_url=url))

    def check_sae(self, sae: SAEConfig) -> None:
        """Raise an `EsrError` when the SAE is not of this model and layer."""
        d_model = self.known.d_model
        if d_model is not None:
            sae.check_width(d_model, self.subject.name)
        if self.args.sae_model != "any":
            sae.check_model(self.runtime.model, self.subject.name)
        sae.check_layer(self.runtime.feature_layer)

    def check_latents(self, latents: Sequence[int]) -> None:
        """Raise an `EsrError` when latents are not there or cannot steer, as far as is known."""
        sae, subject = self.runtime.sae, self.subject
        config = self.sae_config()
        if config is not None:
            from esr_eval.sae.sparse import SparseSAE

            opened = SparseSAE(config, self.rows)
            for latent in latents:
                opened.decoder_row(latent)
        elif sae == subject.sae and subject.n_latents is not None:
            for latent in latents:
                if latent >= subject.n_latents:
                    raise EsrError(
                        f"Latent {latent} is out of range: the SAE of {subject.name} has latents "
                        f"0 to {subject.n_latents - 1}."
                    )

    @cached_property
    def rows(self) -> RowsFile | None:
        """The file of rows that takes the SAE's place, if one is named."""
        sae, file = self.runtime.sae, self.args.sae_rows
        return None if sae is None or file is None else RowsFile.read(file, sae)

    def sae_config(self) -> SAEConfig | None:
        """Config of the SAE, as far as it is on this machine already."""
        if self.rows is not None:
            return self.rows.config
        folder = local_folder(self.runtime.sae) if self.runtime.sae is not None else None
        return None if folder is None else read_sae_config(folder)


def _registry_sae(ref: SAERef, check: Callable[[SAEConfig], None]) -> Check | str:
    """Whether an SAE that is not in this project's cache can be had, and what it takes.

    Args:
        ref: Release and id.
        check: Raises an `EsrError` when an SAE does not fit the run.

    Raises:
        EsrError: It does not fit, is not to be found, or there is no room for it.
    """
    check_named(ref)
    entry = registered(ref)
    name = f"{ref.release} / {ref.sae_id}"
    if entry is None and "/" not in ref.release:
        close = near(ref)
        raise EsrError(
            f"The SAE {name} is not in sae-lens's registry{f' (nearest: {close})' if close else ''}"
            ": check the release and id against sae-lens's table of pretrained SAEs, or pass a "
            "local folder as -M sae_release=."
        )
    # Whoever names a repository of the hub need not be in the registry.
    repo, path = (entry.repo, entry.path) if entry else (ref.release, str(ref.sae_id))
    config = described(ref)
    if config is not None:
        check(config)
    if _in_hub_cache(repo, path):
        return f"{name}: in the hub's cache, converted when it is first used"
    size = _size_on_hub(repo, path, name)
    # What is kept are encoder and decoder, in float32, beside what was downloaded.
    kept = 8 * config.d_model * config.n_latents if config else None
    _check_room(kept, name)
    told = [f"{size / GIB:.2g} GiB to download" if size else "to be downloaded", f"from {repo}"]
    room = f", {kept / GIB:.2g} GiB in the cache" if kept else ""
    return Check("SAE", "note", f"{name}: {' '.join(told)}{room}")


def _in_hub_cache(repo: str, path: str) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    kept = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model")
    for place in kept.glob("snapshots/*"):
        found = place / path
        files = found.rglob("*") if found.is_dir() else [found]
        if any(file.is_file() and file.stat().st_size > SOME_WEIGHTS for file in files):
            return True
    return False


def _size_on_hub(repo: str, path: str, name: str) -> int | None:
    """Bytes of an SAE's files; None where the hub does not say."""
    from huggingface_hub import model_info

    with hub_errors(repo, what="repository of SAEs"):
        files: Sequence[Any] = model_info(repo, files_metadata=True, timeout=30).siblings or []
    own = [file for file in files if f"{file.rfilename}/".startswith(f"{path}/")]
    if not own:
        raise EsrError(
            f"The repository {repo} has no {path}, where the SAE {name} should be: check -M "
            "sae_release= -M sae_id=, or update sae-lens."
        )
    return sum(file.size or 0 for file in own) or None


def _check_room(bytes_kept: int | None, name: str) -> None:
    folder = cache_root() / "sae"
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if bytes_kept is not None and bytes_kept > free:
        raise EsrError(
            f"The SAE {name} takes {bytes_kept / GIB:.1f} GiB in {folder}, where {free / GIB:.1f} "
            f"GiB are free: free space, or name another folder in {CACHE_ENV}."
        )
