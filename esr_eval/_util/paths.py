"""Paths as the user meant them.

Inspect makes and runs a task in the folder of the task's file, so there a relative path that was
typed on the command line would be looked for in the wrong place.
"""

from pathlib import Path

STARTED_IN = Path.cwd()
"""Where the user stood: this module is loaded with the model, before Inspect goes anywhere."""


def given_path(text: str) -> str:
    """A path or URL as it can be opened from here.

    Args:
        text: As it was given. Relative paths start where the user stood, unless there is such a
            file here.
    """
    if "://" in text:
        return text
    path = Path(text).expanduser()
    if not path.exists() and (STARTED_IN / path).exists():
        path = STARTED_IN / path
    return str(path)
