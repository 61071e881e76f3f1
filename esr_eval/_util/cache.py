"""Where this project keeps what it need not make twice."""

import os
from pathlib import Path

from platformdirs import user_cache_path

CACHE_ENV = "ESR_EVAL_CACHE"
"""Environment variable that names another cache folder than the user's usual one."""


def cache_root() -> Path:
    """Folder of dequantised models, converted SAEs and calibrated strengths."""
    root = os.environ.get(CACHE_ENV)
    return Path(root) if root else user_cache_path("esr-eval")
