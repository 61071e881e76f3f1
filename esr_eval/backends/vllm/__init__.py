"""The vLLM backend. Here: what the client and its plugin inside a server share.

This file lies on the server's path, too, so it needs nothing but the standard library.
"""

import hashlib
from pathlib import Path

SAMPLING_ARG = "esr_sampling"
"""Extra argument of a request that holds its `Sampling` as JSON."""
STEERING_ARG = "esr_steering"
"""Extra argument of a request that holds its edits and readouts as JSON."""
PLAN_ARG = "esr_plan"
"""The same once the server has checked it and given it a slot; no request may bring it."""
ROWS_PATH = "/v1/esr/rows"
FACTS_PATH = "/v1/esr/facts"
UNKNOWN_ROWS = "rows that are not here"
"""Part of the sentence with which the server refuses rows that have not been sent to it."""
ANSWER = "esr"
"""Key of what was counted and read, in the field of an answer that vLLM keeps for connectors."""
LAYERS_ENV = "ESR_EVAL_VLLM_LAYERS"
"""Environment variable of the server: layers that can be edited and read, with commas."""
SPARE_SLOTS = 64
"""Steered requests that wait inside vLLM beside those that run."""
NO_STOP = 10**9
"""Stands for 'to the end of the sequence' among positions."""
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
)
"""What of this package lies on the server's path, and nothing else."""


def code_digest() -> str:
    """Digest of the code that steers and chooses tokens, on whichever side this is asked."""
    package = Path(__file__).parents[2]
    texts = [(package / name).read_bytes() for name in SERVER_FILES]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]
