"""Write the site's reference from the code: `python scripts/reference.py FOLDER`.

mkdocs runs it as a hook (mkdocs.yml), so that nothing in the reference is kept by hand: arguments,
defaults and meanings of tasks, scorers, the provider and the commands, every metric, every subject.
"""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import typer
from docstring_parser import DocstringStyle, parse
from inspect_ai.util import registry_info
from pydantic import TypeAdapter
from pydantic_core import PydanticUndefined

from esr_eval import _registry
from esr_eval.cli import app
from esr_eval.data.experiments import EXPERIMENTS
from esr_eval.data.neuronpedia import label_sources
from esr_eval.provider.arguments import ModelArgs
from esr_eval.scorers import (
    agreement,
    attempts,
    continuation,
    improvement,
    passages,
    regions,
    reliability,
)
from esr_eval.subjects import subjects

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
METRICS = {
    "attempts": attempts,
    "improvement": improvement,
    "continuation": continuation,
    "reliability": reliability,
    "regions": regions,
    "on_passage": passages,
}
"""Scorers whose module says what their values mean."""
CARRIED = (
    "CHANGELOG.md",
    "esr_eval/embedded/smollm2-135m/README.md",
    "esr_eval/embedded/smollm2-135m-esr/README.md",
    "esr_eval/embedded/smollm2-135m-esr/EVALUATION.md",
)
"""Pages of the repository that the site has, too, since its pages link to them."""


def pages() -> dict[str, str]:
    """Every generated page, by its path in the site."""
    return {
        "reference/tasks.md": tasks_page(),
        "reference/scorers.md": scorers_page(),
        "reference/provider.md": provider_page(),
        "reference/commands.md": commands_page(),
        "reference/metrics.md": metrics_page(),
        "reference/subjects.md": subjects_page(),
    }


def tasks_page() -> str:
    """All tasks with their arguments."""
    shown = [
        "# Tasks",
        "Run a task by its file (`inspect eval tasks/esr.py`) in a checkout, or by its name "
        "(`inspect eval esr_eval/esr`) anywhere. Arguments are passed as `-T NAME=VALUE`.",
    ]
    for name, task in registered("task"):
        asked = [one for one in EXPERIMENTS if one.task.split()[0] == name]
        shown += [f"## {name}", *(f"*{one.title}.* {one.question}" for one in asked)]
        shown += documented(inspect.unwrap(task))
    return _page(shown)


def scorers_page() -> str:
    """All scorers with their arguments."""
    shown = [
        "# Scorers",
        "The tasks choose their scorers. To score a stored log again, name one with "
        "`inspect score LOG --scorer esr_eval/NAME`; arguments are passed as `-S NAME=VALUE`.",
    ]
    for name, scorer in registered("scorer"):
        shown += [f"## {name}", *documented(inspect.unwrap(scorer))]
    return _page(shown)


def provider_page() -> str:
    """The provider's `-M` arguments."""
    rows = []
    for name, field in ModelArgs.model_fields.items():
        default = None if field.default is PydanticUndefined else field.default
        kind = kinds(TypeAdapter(field.rebuild_annotation()))
        rows.append((code(name), kind, _default(default), field.description or ""))
    return _page(
        [
            "# Model arguments",
            "Arguments of the provider `esr/NAME`, passed as `-M NAME=VALUE`. What is left out "
            "comes from the [subject](subjects.md).",
            table(("argument", "value", "default", "meaning"), rows),
        ]
    )


def commands_page() -> str:
    """Every command of `esr-eval` with its options."""
    shown = [
        "# Commands",
        "`esr-eval COMMAND --help` says the same in a terminal.",
    ]
    for path, command in commands():
        required = [one.name.upper() for one in command.params if one.param_type_name == "argument"]
        usage = " ".join(["esr-eval", *path, *required, "[OPTIONS]" if _options(command) else ""])
        shown += [f"## {' '.join(path)}", f"```text\n{usage.strip()}\n```"]
        shown.append(inspect.cleandoc(command.help or ""))
        rows = [
            (", ".join(map(code, _names(one))), _default(one.default), getattr(one, "help", ""))
            for one in command.params
        ]
        if rows:
            shown.append(table(("argument", "default", "meaning"), rows))
    return _page(shown)


def metrics_page() -> str:
    """Every value that scorers write, and what it is taken over."""
    shown = [
        "# Metrics",
        "Rates are shares of trials, means are over trials; both come with 95 % intervals "
        "clustered by latent. [What the numbers mean](../validity.md) says what each does and "
        "does not count. All lie in each sample's score, from which `esr-eval summary` and the "
        "report compute. When a run ends, Inspect shows the few main ones, without intervals, and "
        "`unscored` and `errored` as numbers of samples.",
    ]
    for name, module in METRICS.items():
        known = {**getattr(module, "RATES", {}), **getattr(module, "MEANS", {})}
        rates = getattr(module, "RATES", {})
        rows = [
            (code(key), "rate" if key in rates else "mean", text) for key, text in known.items()
        ]
        shown += [f"## {name}", table(("metric", "kind", "meaning"), rows)]
    rows = [(code(key), "rate", text) for key, text in agreement.AGREEMENTS.items()]
    shown += ["## Agreement of judges", table(("metric", "kind", "meaning"), rows)]
    return _page(shown)


def subjects_page() -> str:
    """The named subjects."""
    rows = []
    for one in subjects().values():
        sae = (
            " ".join(part for part in (one.sae.release, one.sae.sae_id) if part) if one.sae else ""
        )
        labels = (
            "its own"
            if one.latents is not None
            else next(
                (found.rpartition("://")[2] for found in label_sources(one, one.runtime())), ""
            )
        )
        size = "" if one.weights_gib is None else f"{one.weights_gib:.1f}"
        layers = f"{one.steering_layer} / {one.feature_layer} of {one.n_layers}"
        rows.append(
            (
                code(one.name),
                code(one.model.removeprefix("package:")),
                code(sae),
                layers,
                size,
                code(labels) if labels != "its own" else labels,
            )
        )
    return _page(
        [
            "# Subjects",
            "Models that go by a name: `--model esr/NAME`. Layers: the one that is steered, the "
            "one that the SAE reads, and how many there are. GiB: the weights alone; about 15 % "
            "more is needed. Any other model goes by its Hugging Face id or a path, with "
            "`-M sae_release=` ([Your own model](../how-to/own-model.md)).",
            table(("name", "model", "SAE", "layers", "GiB", "labels"), rows),
        ]
    )


def registered(kind: str) -> Iterator[tuple[str, Callable[..., Any]]]:
    """What the package gives Inspect of one kind, by name."""
    for name in _registry.__all__:
        found = getattr(_registry, name)
        try:
            info = registry_info(found)
        except ValueError:
            continue
        if info.type == kind:
            yield info.name.rpartition("/")[2], found


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command of `esr-eval`, with its path."""

    def below(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from below(command, (*path, name))
            else:
                yield (*path, name), command

    yield from below(typer.main.get_command(app), ())


def documented(function: Callable[..., Any]) -> list[str]:
    """What a function's docstring says, and a table of its arguments."""
    said = parse(inspect.getdoc(function) or "", DocstringStyle.GOOGLE)
    meanings = {one.arg_name: " ".join((one.description or "").split()) for one in said.params}
    hints = get_type_hints(function, include_extras=True)
    rows = [
        (
            code(name),
            kinds(TypeAdapter(hints.get(name, Any))),
            "required" if one.default is one.empty else _default(one.default),
            meanings.get(name, ""),
        )
        for name, one in inspect.signature(function).parameters.items()
    ]
    text = [part for part in (said.short_description, said.long_description) if part]
    return [*text, *([table(("argument", "value", "default", "meaning"), rows)] if rows else [])]


def kinds(adapter: TypeAdapter[Any]) -> str:
    """What values an argument takes, from the schema of its annotation."""
    return " or ".join(dict.fromkeys(_kinds(adapter.json_schema())))


def _kinds(schema: dict[str, Any]) -> Iterable[str]:
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            yield from _kinds(one)
    elif "enum" in schema or "const" in schema:
        yield ", ".join(code(str(one)) for one in schema.get("enum", [schema.get("const")]))
    elif schema.get("type") == "array":
        yield f"list of {' or '.join(_kinds(schema.get('items', {})))}"
    elif schema.get("type") == "object":
        yield "JSON object"
    elif schema.get("format") in ("path", "date"):
        yield schema["format"]
    elif (kind := schema.get("type")) in _WORDS:
        yield f"{_WORDS[kind]}{_bounds(schema)}"


_WORDS = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true, false"}
_UNBOUNDED = 10_000
"""Greater bounds only catch slips of the finger."""


def _bounds(schema: dict[str, Any]) -> str:
    low, above = schema.get("minimum"), schema.get("exclusiveMinimum")
    high = schema.get("maximum", schema.get("exclusiveMaximum"))
    parts = []
    if low is not None:
        parts.append(f"{low:g} or more")
    if above is not None:
        parts.append(f"above {above:g}")
    if high is not None and high < _UNBOUNDED:
        parts.append(f"at most {high:g}")
    return f", {', '.join(parts)}" if parts else ""


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def code(text: str) -> str:
    """Text as code; nothing where there is none."""
    return f"`{text}`" if text else ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(value: object) -> str:
    if value is None or value == ():
        return ""
    shown = str(value).lower() if isinstance(value, bool) else str(value)
    return code(shown)


def _names(parameter: Any) -> list[str]:
    if parameter.param_type_name == "argument":
        return [parameter.name.upper()]
    return [*parameter.opts, *parameter.secondary_opts]


def _options(command: Any) -> bool:
    return any(one.param_type_name == "option" for one in command.params)


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(parts) + "\n"


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Give mkdocs the generated pages, and those of the repository."""
    from mkdocs.structure.files import File

    found = pages() | {f"repository/{name}": (ROOT / name).read_text("utf-8") for name in CARRIED}
    for path, text in found.items():
        files.append(File.generated(config, path, content=text))
    return files


LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<to>[^)#\s]+)(?P<at>#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Point links that leave docs/ to the page that the site carries, or to nothing but a name."""
    path = page.file.src_uri
    carried = path.removeprefix("repository/") if path.startswith("repository/") else None
    home = (ROOT / carried if carried else ROOT / "docs" / path).parent

    def mended(found: re.Match[str]) -> str:
        to = found["to"]
        if "://" in to or files.get_file_from_path(_joined(path, to)) is not None:
            return found[0]
        target = (home / to).resolve()
        if not target.is_relative_to(ROOT):
            return found[0]
        name = target.relative_to(ROOT).as_posix()
        if name in CARRIED:
            inside = f"repository/{name}"
        elif name.startswith("docs/"):
            inside = name.removeprefix("docs/")
        elif target.exists():
            return f"{found['text']} (`{name}`)" if name not in found["text"] else found["text"]
        else:
            return found[0]  # mkdocs tells of it
        up = "../" * path.count("/")
        return f"[{found['text']}]({up}{inside}{found['at'] or ''})"

    return LINK.sub(mended, markdown)


def _joined(path: str, to: str) -> str:
    parts: list[str] = path.split("/")[:-1]
    for part in to.split("/"):
        if part == "..":
            if not parts:
                return ""
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


if __name__ == "__main__":
    for name, text in pages().items():
        target = Path(sys.argv[1]) / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
