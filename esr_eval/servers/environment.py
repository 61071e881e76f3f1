"""Private Python environments for servers, made by uv and kept in the user's cache."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from esr_eval._util.cache import cache_root
from esr_eval.errors import EsrError

PYTHONS = ("3.12", "3.13")
"""Python versions that the servers run on, the preferred one first."""
INSTALL_SECONDS = 1800
MARKER = "installed.json"


def server_folder(name: str) -> Path:
    """Where a server's environment, logs and records lie."""
    return cache_root() / "servers" / name


def server_python(name: str, requirements: Sequence[str], overrides: Sequence[str] = ()) -> Path:
    """The Python of an environment that `install` has made.

    Raises:
        EsrError: It has not been made, or with other versions.
    """
    python = server_folder(name) / "venv" / "bin" / "python"
    if not _is_current(name, requirements, overrides):
        raise EsrError(
            f"The {name} server is not installed yet (or in another version): "
            f"run `esr-eval serve {name} install` first."
        )
    return python


def install(
    name: str,
    requirements: Sequence[str],
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> Path:
    """Make a server's environment, unless it is there already in these very versions.

    Args:
        name: The server's name.
        requirements: What to install, pinned.
        overrides: Requirements that replace those of other packages (uv's overrides).
        say: Told what goes on.

    Returns:
        The environment's Python.

    Raises:
        EsrError: uv or a fitting Python is missing, or the installation fails.
    """
    folder = server_folder(name)
    python = folder / "venv" / "bin" / "python"
    if _is_current(name, requirements, overrides):
        say(f"{name}: already installed in {folder}")
        return python
    uv, base = find_uv(), find_python()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).unlink(missing_ok=True)
    say(f"{name}: installing {', '.join(requirements)} into {folder} with {base}")
    wanted, replaced, lock = (folder / f for f in ("wanted.txt", "overrides.txt", "lock.txt"))
    wanted.write_text("\n".join([*requirements, ""]), "utf-8")
    replaced.write_text("\n".join([*overrides, ""]), "utf-8")
    _run([*uv, "venv", "--clear", "--python", base, str(folder / "venv")])
    at = ["--python", str(python)]
    override = ["--override", str(replaced)] if overrides else []
    _run([*uv, "pip", "compile", *at, *override, str(wanted), "-o", str(lock)])
    # The lock is complete; without --no-deps the overridden requirements would come back.
    _run([*uv, "pip", "install", *at, "--no-deps", "-r", str(lock)])
    (folder / MARKER).write_text(json.dumps(_pins(requirements, overrides)), "utf-8")
    return python


def find_uv() -> list[str]:
    """Command that runs uv: the package of this environment, or the program on PATH.

    Raises:
        EsrError: There is neither.
    """
    module = [sys.executable, "-m", "uv"]
    if _runs([*module, "--version"]):
        return module
    on_path = shutil.which("uv")
    if on_path is not None and _runs([on_path, "--version"]):
        return [on_path]
    raise EsrError(
        "Installing a server takes uv, which is not there: pip install uv, or see "
        "https://docs.astral.sh/uv/."
    )


def find_python() -> str:
    """Path of a Python that servers run on.

    Raises:
        EsrError: None is found.
    """
    uv = find_uv()
    for version in PYTHONS:
        found = _output([*uv, "python", "find", "--no-project", "--no-python-downloads", version])
        installed = sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python3"))
        on_path = shutil.which(f"python{version}")
        for candidate in (found, on_path, *map(str, reversed(installed))):
            if candidate and _output([candidate, "-c", _VERSION]) == version:
                return candidate
    raise EsrError(
        f"The servers need Python {' or '.join(PYTHONS)}, and none is found on PATH, by uv or in "
        f"~/.pyenv/versions: install one, e.g. with `uv python install {PYTHONS[0]}`."
    )


_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


def _pins(requirements: Sequence[str], overrides: Sequence[str]) -> dict[str, list[str]]:
    return {"requirements": list(requirements), "overrides": list(overrides)}


def _is_current(name: str, requirements: Sequence[str], overrides: Sequence[str]) -> bool:
    marker = server_folder(name) / MARKER
    return marker.is_file() and json.loads(marker.read_text("utf-8")) == _pins(
        requirements, overrides
    )


def _plain_env() -> dict[str, str]:
    """This environment without what would point uv at this process's own environment."""
    return {k: v for k, v in os.environ.items() if k not in {"VIRTUAL_ENV", "PYTHONPATH"}}


def _runs(command: Sequence[str]) -> bool:
    return _output(command) is not None


def _output(command: Sequence[str]) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=60, check=True, env=_plain_env()
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _run(command: Sequence[str]) -> None:
    try:
        subprocess.run(  # noqa: S603
            command,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=True,
            env=_plain_env(),
        )
    except subprocess.CalledProcessError as error:
        lines = "\n".join(str(error.stderr).splitlines()[-15:])
        raise EsrError(f"`{' '.join(command)}` failed:\n{lines}") from None
    except subprocess.TimeoutExpired:
        raise EsrError(
            f"`{' '.join(command)}` took longer than {INSTALL_SECONDS // 60} minutes; "
            "check the network and try again."
        ) from None
