"""Lay the package out as the wheel has it: `python scripts/assemble.py FOLDER`.

In a checkout tasks/ and scorers/ stand beside esr_eval/ and are mapped into it on installation.
The type checker does not know of that mapping, so it is shown the package as installed.
"""

import shutil
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def assemble(target: Path) -> None:
    """Copy every package to where setuptools' package-dir mapping puts it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    mapping = project["tool"]["setuptools"]["package-dir"]
    for package, folder in sorted(mapping.items()):
        if not package:
            continue
        shutil.copytree(
            ROOT / folder,
            target / package.replace(".", "/"),
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "*.safetensors"),
        )


if __name__ == "__main__":
    assemble(Path(sys.argv[1]))
