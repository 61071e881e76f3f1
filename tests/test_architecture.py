"""Imports run one way, heavy ones late, and no private part of Inspect is used."""

import ast
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
HEAVY = {"torch", "transformers", "nnsight", "sae_lens", "safetensors", "peft", "gguf"}
BELOW_PROVIDER = {"edits", "sae", "sampling", "backends"}


def imports(path, top_level_only):
    tree = ast.parse(path.read_text("utf-8"))
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path):
    return path.relative_to(ROOT).with_suffix("").parts


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    parts = module_of(path)
    inner = parts[1] if parts[0] == "esr_eval" else parts[0]
    top = list(imports(path, top_level_only=True))
    if inner not in BELOW_PROVIDER:
        assert not {name.split(".")[0] for name in top} & HEAVY
        assert not [
            n
            for n in top
            if n.split(".")[1:2]
            and n.split(".")[:1] == ["esr_eval"]
            and n.split(".")[1] in BELOW_PROVIDER
        ]
    if inner == "scorers":
        assert not [n for n in top if n.startswith(("esr_eval.tasks", "esr_eval.provider.api"))]
    if inner == "spec":
        ours = [n for n in top if n.startswith("esr_eval")]
        assert not ours
    if inner in BELOW_PROVIDER:
        assert not [
            n
            for n in top
            if n.startswith(("inspect_ai", "esr_eval.provider.api", "esr_eval.tasks"))
        ]
    private = [n for n in imports(path, False) if n.startswith("inspect_ai") and "._" in n]
    assert not private


def test_nothing_at_run_time_needs_what_is_outside_the_package():
    for path in SOURCES:
        text = path.read_text("utf-8")
        assert "shared/" not in text, path


def test_what_runs_on_a_server_needs_nothing_of_this_package():
    for path in ON_SERVER:
        assert not [name for name in imports(path, False) if name.split(".")[0] == "esr_eval"]
