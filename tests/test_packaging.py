"""What pyproject.toml promises: bounds that were tried, a license, a citation."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NAME = canonicalize_name(PROJECT["name"])


def bounds():
    """Every requirement of the package and of what `make test-lowest` installs with it."""
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *extras["dev"], *extras["finetune"], *extras["serve"]]
    found = [Requirement(text) for text in texts]
    return [one for one in found if canonicalize_name(one.name) != NAME]


def pins(file):
    lines = (ROOT / file).read_text("utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(one.name): one.specifier for one in found}


def exact(specifier):
    [only] = specifier
    assert only.operator == "=="
    return Version(only.version)


def lowest(requirement):
    return [Version(one.version) for one in requirement.specifier if one.operator == ">="]


@pytest.mark.parametrize("file", ["constraints.txt", "constraints-lowest.txt"])
def test_every_requirement_has_a_tried_version_within_its_bounds(file):
    tried = pins(file)
    missing = {one.name for one in bounds()} - {"torch"}
    missing -= {one.name for one in bounds() if canonicalize_name(one.name) in tried}
    assert not missing
    for one in bounds():
        version = exact(tried[canonicalize_name(one.name)])
        assert one.specifier.contains(version), f"{one} does not admit {version}"


def test_the_lowest_versions_tried_are_the_bounds():
    tried = pins("constraints-lowest.txt")
    differs = {
        one.name: (str(bound), str(exact(tried[canonicalize_name(one.name)])))
        for one in bounds()
        for bound in lowest(one)
        # No CPU build of an older one can be had everywhere: pyproject.toml says whose bound it is.
        if one.name != "torch" and exact(tried[canonicalize_name(one.name)]) != bound
    }
    assert not differs


def test_an_installed_torch_is_not_moved():
    """An upper bound, or an exact one, would replace the CUDA build that a vLLM came with."""
    [torch] = [one for one in bounds() if one.name == "torch"]
    assert [one.operator for one in torch.specifier] == [">="]
    assert not {one.name for one in bounds()} & {"torchvision", "torchaudio", "triton", "vllm"}


def imported(path):
    """Names of the packages that a module imports, also inside of functions."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


def test_what_is_imported_is_required():
    extras = PROJECT["optional-dependencies"]
    texts = [*PROJECT["dependencies"], *extras["finetune"], *extras["serve"], *extras["play"]]
    required = {canonicalize_name(Requirement(text).name) for text in texts}
    # What runs on a server is imported in the server's own environment.
    known = {*sys.stdlib_module_names, "esr_eval", "fastapi", "ndif", "ray", "vllm"}
    homes = packages_distributions()
    missing = {
        (name, str(path.relative_to(ROOT)))
        for path in SOURCES
        for name in imported(path)
        if name not in known
        and not required & {canonicalize_name(home) for home in homes.get(name, [name])}
    }
    assert not missing


def test_a_range_admits_more_than_its_newest_version():
    newest = pins("constraints.txt")
    pinned = [
        one.name
        for one in bounds()
        if one.name in {"inspect-ai", "sae-lens", "transformers"}
        and lowest(one) == [exact(newest[canonicalize_name(one.name)])]
    ]
    assert not pinned


def test_the_license_is_the_one_that_is_named():
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    text = (ROOT / "LICENSE").read_text("utf-8")
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert all(f"\n   {number}. " in text for number in range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in text
    assert "[LICENSE](LICENSE): Apache-2.0" in (ROOT / "README.md").read_text("utf-8")


def test_the_citation_file_is_complete_and_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    # What the Citation File Format 1.2.0 requires of a file, and of each reference.
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["cff-version"] == "1.2.0"
    assert str(cited["version"]) == PROJECT["version"]
    assert cited["license"] == PROJECT["license"]
    for work in [cited, *cited["references"]]:
        assert work["authors"]
        assert all(
            {"name"} <= one.keys() or {"family-names"} <= one.keys() for one in work["authors"]
        )
    [paper] = cited["references"]
    assert {"type", "title", "authors"} <= paper.keys()
    assert paper["title"] == "Endogenous Resistance to Activation Steering in Language Models"
    assert [one["value"] for one in paper["identifiers"]] == ["arXiv:2602.06941"]


PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [path for top in ("esr_eval", "scorers", "tasks") for path in (ROOT / top).rglob("*.py")]


@pytest.mark.parametrize("path", [*PAGES, *SOURCES], ids=lambda p: str(p.relative_to(ROOT)))
def test_nobody_is_told_to_install_this_package_from_an_index(path):
    told = re.findall(r"(?:pip|pipx|uv|uvx)\b[^\n]*\binstall\b[^\n]*", path.read_text("utf-8"))
    assert not [line for line in told if re.search(r"(?<![\w./-])esr[-_]eval(?![\w/])", line)]
