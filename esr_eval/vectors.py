"""Files of plain vectors: their digests."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Digest of a file, as a spec names it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
