"""The vLLM backend. Here: what the client and its plugin inside a server share.

This file lies on the server's path, too, so it needs nothing but the standard library.
"""

import hashlib
from pathlib import Path

OURS = "esr"
"""Key of what a request asks for, in its extra arguments, and of what was counted and read, in the
field of its answer that vLLM keeps for connectors."""
ROWS_PATH = "/v1/esr/rows"
FACTS_PATH = "/v1/esr/facts"
UNKNOWN_ROWS = "rows that are not here"
"""Part of the sentence with which the server refuses rows that have not been sent to it."""
LAYERS_ENV = "ESR_EVAL_VLLM_LAYERS"
"""Environment variable of the server: layers that can be edited and read, with commas."""
TRIED = ("0.30.0",)
"""Versions of vLLM that the plugin was tried with."""
PLUGIN = "esr_eval"
ENTRY_POINTS = f"""\
[vllm.general_plugins]
{PLUGIN} = esr_eval.backends.vllm.plugin:register
[vllm.endpoint_plugins]
{PLUGIN} = esr_eval.backends.vllm.routes:Routes
"""
SERVER_FILES = (
    "__init__.py",
    "sae/__init__.py",
    "sae/encoder.py",
    "steering/__init__.py",
    "steering/sampling.py",
    "backends/__init__.py",
    "backends/vllm/__init__.py",
    "backends/vllm/plugin.py",
    "backends/vllm/routes.py",
    "backends/vllm/sampler.py",
    "backends/vllm/steerer.py",
    "backends/vllm/wire.py",
)
"""What of this package lies on the server's path, and nothing else."""


def code_digest() -> str:
    """Digest of the code that steers and chooses tokens, on whichever side this is asked."""
    package = Path(__file__).parents[2]
    texts = [(package / name).read_bytes() for name in SERVER_FILES]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]
