"""The command `inspect`, with a line in $CALLS for each load and each question that was answered."""

import functools
import json
import os
import runpy
import shutil
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from esr_eval.judges.provider import LocalJudge
from esr_eval.provider.api import ESRModelAPI


def note(kind: str, what: str) -> None:
    """Write a line at once: the process may be killed any moment."""
    with Path(os.environ["CALLS"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps([kind, what, time.time()]) + "\n")


def noted(kind: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A model's `generate` that notes what it was asked."""

    @functools.wraps(method)
    async def generate(self: Any, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
        output = await method(self, input, tools, tool_choice, config)
        asked = [[m.text for m in input], config.seed, config.max_tokens, config.extra_body]
        note(kind, sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest())
        return output

    return generate


def main() -> None:
    """Run it."""
    ESRModelAPI.generate = noted("subject", ESRModelAPI.generate)  # type: ignore[method-assign]
    LocalJudge.generate = noted("judge", LocalJudge.generate)  # type: ignore[method-assign]
    load = ESRModelAPI._load

    def counted(self: ESRModelAPI) -> Any:
        backend = load(self)
        note("load", self.runtime.model)
        return backend

    ESRModelAPI._load = counted  # type: ignore[method-assign]
    script = shutil.which("inspect", path=Path(sys.executable).parent)
    assert script
    sys.argv[0] = script
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
