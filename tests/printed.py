"""The commands that README, site and notebook print, and stored logs for the words a reader fills."""

import importlib.util
import json
import re
import shlex
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import typer

from esr_eval.cli import app

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOK = ROOT / "docs" / "examples" / "from-logs.ipynb"
FENCE = re.compile(r"^```(?P<language>.*)\n(?P<block>(?:.*\n)*?)```$", re.MULTILINE)
PROGRAM = r"(?:[A-Z_]+=\S+ )?(?:esr-eval|inspect|make|pip|apt|vllm|pytest|python|\.venv/|scripts/)"
INLINE = re.compile(rf"(?<!`)`({PROGRAM}[^`\s]*\s[^`]+)`(?!`)")
STORED = ROOT / "tests" / "data" / "logs"
FILLED = {
    "activations LOG": STORED / "activations.eval",
    "agreement LOG": STORED / "cross_judge.eval",
    "detectors LOG": STORED / "detectors.eval",
    "FOUND": STORED / "detectors.eval",
    "LOG": STORED / "esr.eval",
    "logs/LOG.eval": STORED / "esr.eval",
    "BASE": STORED / "esr.eval",
    "NEW": STORED / "esr.eval",
    "LOGS": STORED,
    "replay=MAIN": f"replay={STORED / 'esr.eval'}",
    "replay=BASE": f"replay={STORED / 'esr.eval'}",
    "vectors FILE": ROOT / "esr_eval/embedded/smollm2-135m/vectors.safetensors",
    "adapter=WORK/adapter": f"adapter={ROOT / 'esr_eval/embedded/smollm2-135m-esr'}",
    "NAME": "smollm2-135m",
    "MODEL": "smollm2-135m",
    "esr/NAME": "esr/smollm2-135m",
    "esr/SUBJECT": "esr/llama-70b",
    "esr_eval/NAME": "esr_eval/restarts",
    "local|ndif|vllm": "local",
}
"""What stands for a capital word of a page, after some command or after any."""


def load_reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_reference()
ESR_EVAL = dict(reference.commands())


class Printed(NamedTuple):
    """A command of a page: a line to type, or (without `typed`) within a sentence."""

    page: str
    words: list[str]
    typed: bool

    @property
    def line(self):
        return shlex.join(self.words)

    @property
    def program(self):
        return Path(self.words[0]).name


@cache
def texts():
    """Text of README, of every page of the site but its changelog, and of the notebook."""
    found = {str(page.relative_to(ROOT)): page.read_text("utf-8") for page in PAGES}
    found |= reference.pages()
    carried = (name for name in reference.CARRIED if name != "CHANGELOG.md")
    found |= {name: (ROOT / name).read_text("utf-8") for name in carried}
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    told = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return found | {str(NOTEBOOK.relative_to(ROOT)): "\n\n".join(told)}


def commands_of(page, text):
    """Commands that a page prints: the lines of its fences, and those within sentences."""
    for language, block in FENCE.findall(text):
        if language in ("bash", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                for part in re.split(r"\s&&\s", line):
                    if words := without_settings(shlex.split(part, comments=True)):
                        yield Printed(page, words, True)
    for line in INLINE.findall(FENCE.sub("", text)):
        words = without_settings(shlex.split(" ".join(line.split()), comments=True))
        # `inspect eval esr_eval/esr ...` and `esr-eval finetune` name a command, and print none.
        if not {"...", "COMMAND"} & set(words):
            yield Printed(page, words, False)


def without_settings(words):
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    return words


@cache
def every_command():
    """All printed commands, each once: as a line to type, if some page has it as one."""
    found = [one for page, text in texts().items() for one in commands_of(page, text)]
    unique = {one.line: one for one in sorted(found, key=lambda one: one.typed)}
    return [unique[line] for line in sorted(unique)]


def lines_of(program):
    return [one for one in every_command() if one.program == program]


def esr_eval_command(words):
    """The command that some words begin with, its path, and the other words."""
    for length in (3, 2, 1):
        path = tuple(words[1 : 1 + length])
        if path in ESR_EVAL:
            return path, ESR_EVAL[path], words[1 + length :]
    raise AssertionError(f"there is no command {shlex.join(words)}")


def names_only(words):
    """Whether words name a command of `esr-eval`, or a group, and give it nothing."""
    group = typer.main.get_command(app)
    for word in [one for one in words[1:] if one != "--help"]:
        group = getattr(group, "commands", {}).get(word)
        if group is None:
            return False
    return True


def inspect_main():
    [script] = entry_points(group="console_scripts", name="inspect")
    return script.load().__globals__["inspect"]


def filled(words):
    """A printed line with stored logs, and the small model, where the reader names theirs."""
    command = " ".join(words[1:2])
    return [str(FILLED.get(f"{command} {word}", FILLED.get(word, word))) for word in words]
