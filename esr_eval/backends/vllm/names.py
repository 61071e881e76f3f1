"""What the client and its sampler inside a vLLM server share; the standard library alone."""

import hashlib
from pathlib import Path

SAMPLING_ARG = "esr_sampling"
"""Extra argument of a request that holds its `Sampling` as JSON."""
PROBE_ARG = "esr_sampler_probe"
"""Extra argument that makes the sampler refuse the request and say which version it is."""
SAMPLER_SAYS = "esr-eval sampler"
"""How that refusal begins."""
SERVER_FILES = (
    "__init__.py",
    "steering/__init__.py",
    "steering/sampling.py",
    "backends/__init__.py",
    "backends/vllm/__init__.py",
    "backends/vllm/names.py",
    "backends/vllm/sampler.py",
)
"""What of this package lies on the server's path, and nothing else."""
SAMPLER_CLASS = "esr_eval.backends.vllm.sampler:SeededRows"


def sampler_digest() -> str:
    """Digest of the code that chooses tokens, on whichever side this is asked."""
    package = Path(__file__).parents[2]
    texts = [(package / name).read_bytes() for name in SERVER_FILES]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:16]
