"""Imports run one way through the layers, heavy ones late, and no private part of Inspect is used."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# What a server of another environment imports, by itself and without this package.
ON_SERVER = {ROOT / "esr_eval" / "servers" / "ndif_server.py"}
SOURCES = sorted(
    p
    for d in ("esr_eval", "tasks", "scorers")
    for p in (ROOT / d).rglob("*.py")
    if p not in ON_SERVER
)
LAYERS = (
    "cli",
    "paper play",
    "_registry",
    "tasks",
    "finetune",
    "report",
    "selection detectors episodes vectors",
    "checks",
    "calibration",
    "solvers",
    "logs",
    "judges",
    "scorers",
    "stats",
    "provider",
    "servers",
    "backends",
    "steering",
    "sae",
    "model",
    "dataset",
    "data",
    "subjects",
    "_util",
    "errors",
    "text",
    "spec",
)
"""From top to bottom; packages of one layer know nothing of each other. tasks and scorers stand
beside esr_eval in a checkout and are parts of it once installed."""
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer.split()}
HEAVY = {"torch", "transformers", "nnsight", "sae_lens", "safetensors", "peft", "gguf"}
WITH_MODELS = {"backends", "steering", "sae", "model"}
"""The only packages that import torch and its like when they are imported."""
LIGHT = {
    "esr_eval.model.weights",
    "esr_eval.sae.config",
    "esr_eval.sae.files",
    "esr_eval.backends.remote",
}
"""Modules in them that need none of these, and so may be imported from above at any time."""
UNKNOWN_TO_MODELS = {"inspect_ai", "click", "typer", "rich", "pandas", "matplotlib"}


def package_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "esr_eval" else parts[0]


def imports(path, top_level_only=False):
    """Names of what a module imports, with what is taken from it; also inside of functions."""
    tree = ast.parse(path.read_text("utf-8"))
    nodes = list(ast.walk(tree))
    if top_level_only:
        nodes = [node for node in tree.body if not _is_for_types(node)]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path} imports by a relative name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_for_types(node):
    return isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"


def ours(names):
    return [name for name in names if name.startswith("esr_eval.")]


def test_every_package_has_its_layer():
    found = {package_of(path) for path in SOURCES} - {"__init__", "embedded"}
    assert found == set(LEVEL)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downwards(path):
    own = package_of(path)
    for name in ours(imports(path)):
        other = name.split(".")[1]
        assert other == own or LEVEL[own] < LEVEL[other], f"{own} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_loads_models_is_imported_late(path):
    top, own = list(imports(path, top_level_only=True)), package_of(path)
    module = "esr_eval." + ".".join(
        part for part in path.relative_to(ROOT).with_suffix("").parts if part != "esr_eval"
    )
    if own not in WITH_MODELS or module in LIGHT:
        assert not {name.split(".")[0] for name in top} & HEAVY
        assert not [
            name
            for name in ours(top)
            if name.split(".")[1] in WITH_MODELS
            and own != name.split(".")[1]
            and ".".join(name.split(".")[:3]) not in LIGHT
        ]
    if own in WITH_MODELS:
        assert not {name.split(".")[0] for name in top} & UNKNOWN_TO_MODELS


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_private_part_of_inspect_is_used(path):
    assert not [n for n in imports(path) if n.startswith("inspect_ai") and "._" in n]


def test_listing_the_tasks_loads_no_torch():
    code = "import sys, esr_eval._registry, esr_eval.cli; print(sorted(set(sys.modules) & set(%r)))"
    done = subprocess.run(
        [sys.executable, "-c", code % sorted(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )
    assert done.stdout.strip().endswith("[]")


def test_nothing_at_run_time_needs_what_is_outside_the_package():
    for path in SOURCES:
        text = path.read_text("utf-8")
        assert "shared/" not in text, path


def test_what_runs_on_a_server_needs_nothing_of_this_package():
    for path in ON_SERVER:
        assert not ours(imports(path))
