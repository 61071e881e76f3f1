"""What README and site print can be typed as it stands; the reference names what the code takes."""

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml
from printed import (
    ESR_EVAL,
    FENCE,
    NOTEBOOK,
    PAGES,
    PROGRAM,
    ROOT,
    esr_eval_command,
    filled,
    inspect_main,
    lines_of,
    names_only,
    reference,
    texts,
)

from esr_eval.data.experiments import EXPERIMENTS
from esr_eval.provider.arguments import ModelArgs
from esr_eval.scorers.attempts import MEANS, RATES
from esr_eval.subjects import subjects

TASKS = dict(reference.registered("task"))
SCORERS = dict(reference.registered("scorer"))


def all_printed(program):
    commands = [pytest.param(o.words, id=f"{o.page}: {o.line}") for o in lines_of(program)]
    assert commands
    return commands


def test_what_stands_in_a_block_to_type_is_marked_as_such():
    for page, text in texts().items():
        for language, block in FENCE.findall(text):
            # `text` is the reference's: what a command takes.
            if language not in ("bash", "sh", "text"):
                assert not re.search(rf"^{PROGRAM}", block, re.MULTILINE), page


@pytest.mark.parametrize("words", all_printed("esr-eval"))
def test_every_esr_eval_command_that_is_printed_parses(words):
    if names_only(words):
        return
    path, command, rest = esr_eval_command(words)
    context = command.make_context(" ".join(path), list(rest))
    for pair in context.params.get("model_args") or ():
        assert pair.partition("=")[0] in ModelArgs.model_fields


def inspect_command(words):
    command, rest = inspect_main(), words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"inspect has no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def arguments_of(function):
    return set(inspect.signature(inspect.unwrap(function)).parameters)


def names_of(pairs):
    return {pair.partition("=")[0] for pair in pairs or ()}


@pytest.mark.parametrize("words", all_printed("inspect"))
def test_every_inspect_command_that_is_printed_parses_and_its_arguments_exist(words):
    command, rest = inspect_command(filled(words))
    if not rest:  # a sentence names it
        return
    params = command.make_context("inspect", rest).params
    for named in params.get("tasks") or ():
        task = Path(named).stem if named.startswith("tasks/") else named.partition("/")[2]
        assert named in (f"tasks/{task}.py", f"esr_eval/{task}")
        assert names_of(params["t"]) <= arguments_of(TASKS[task]), task
    model = str(params.get("model") or "")
    if model.startswith("esr/"):
        assert names_of(params["m"]) <= ModelArgs.model_fields.keys()
        named = model.removeprefix("esr/")
        assert named in subjects() or "/" in named or named.isupper(), model
    if scorer := params.get("scorer"):
        package, _, name = scorer.partition("/")
        assert package == "esr_eval"
        assert names_of(params["s"]) <= arguments_of(SCORERS[name])


@pytest.mark.parametrize("words", all_printed("make"))
def test_every_make_target_that_is_printed_exists(words):
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert next(word for word in words[1:] if "=" not in word) in targets


def test_readme_and_site_print_the_commands_that_are_run_in_ci():
    text = (ROOT / "README.md").read_text("utf-8")
    ci = (ROOT / ".ci" / "run").read_text("utf-8")
    for line in ("make demo", "esr-eval summary logs"):
        assert line in text
    assert "make test" in text and "\nmake test\n" in ci


def test_the_reference_names_every_argument_with_its_meaning():
    pages = reference.pages()
    sections = dict(
        re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", pages["reference/tasks.md"], re.M | re.S)
    )
    assert sections.keys() == TASKS.keys() and len(TASKS) >= 16
    for name, task in TASKS.items():
        for argument in arguments_of(task):
            [row] = re.findall(rf"^\| `{argument}` \| (.*)", sections[name], re.MULTILINE)
            value, _default, meaning = re.split(r"(?<!\\)\|", row.rstrip("| "))
            assert meaning.strip(), f"{name}: {argument} has no meaning"
            assert value.strip(), f"{name}: {argument} takes no value"
    for argument in ModelArgs.model_fields:
        [row] = re.findall(rf"^\| `{argument}` \| (.*)", pages["reference/provider.md"], re.M)
        assert not row.endswith("|  |"), f"{argument} has no meaning"


def test_the_reference_names_every_command_option_metric_and_subject():
    pages = reference.pages()
    for path, command in ESR_EVAL.items():
        [section] = re.findall(
            rf"^## {' '.join(path)}\n(.*?)(?=^## |\Z)", pages["reference/commands.md"], re.M | re.S
        )
        for parameter in command.params:
            assert f"`{reference._names(parameter)[0]}`" in section
    for metric in (*RATES, *MEANS):
        assert f"| `{metric}` |" in pages["reference/metrics.md"]
    for name in subjects():
        assert f"| `{name}` |" in pages["reference/subjects.md"]


def test_every_page_is_in_the_sites_navigation():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))["nav"]
    flat = [page for one in nav for page in ([one] if isinstance(one, str) else one.popitem()[1])]
    written = {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
    assert written | set(reference.pages()) <= set(flat)


def test_every_link_of_a_page_leads_somewhere():
    generated = {f"docs/{path}" for path in reference.pages()}
    lost = []
    for page in [*PAGES, ROOT / "CHANGELOG.md"]:
        text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)
        for to in re.findall(r"\]\(([^)#\s]+)", text):
            if "://" in to:
                continue
            target = (page.parent / to).resolve()
            if not target.exists() and str(target.relative_to(ROOT)) not in generated:
                lost.append((page.name, to))
    assert not lost


def test_the_notebook_still_gives_what_it_shows(monkeypatch):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    monkeypatch.chdir(NOTEBOOK.parent)
    cells = [
        c for c in json.loads(NOTEBOOK.read_text("utf-8"))["cells"] if c["cell_type"] == "code"
    ]
    assert all(cell["execution_count"] and cell["outputs"] for cell in cells)
    names = {}
    for cell in cells:
        exec("".join(cell["source"]), names)
    shown = "".join(
        "".join(output["data"].get("text/html", ""))
        for cell in cells
        for output in cell["outputs"]
        if "data" in output
    )
    for number in names["table"].to_numpy().ravel():
        assert f"<td>{number}</td>" in shown
    assert "image/png" in str([cell["outputs"] for cell in cells])


def test_the_listing_names_every_experiment_and_nothing_that_is_not_there():
    listing = yaml.safe_load((ROOT / "tasks" / "eval.yaml").read_text("utf-8"))
    wanted = {"title", "description", "arxiv", "group", "contributors", "version", "tasks"}
    assert wanted | {"external_assets"} <= listing.keys()
    assert listing["arxiv"].endswith("2602.06941")
    named = [one["name"] for one in listing["tasks"]]
    assert len(named) == len(set(named)) and set(named) <= TASKS.keys()
    assert {one.task.split()[0] for one in EXPERIMENTS} <= set(named)
    assert all(one["dataset_samples"] > 0 for one in listing["tasks"])
    for asset in listing["external_assets"]:
        assert asset.keys() >= {"type", "source", "fetch_method", "state"}
        assert asset["state"] in ("floating", "pinned", "controlled")


def test_a_release_runs_on_tags_alone_and_refuses_another_version():
    text = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    release = yaml.safe_load(text)
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML reads `on` as true
    assert release["permissions"] == {"contents": "read"}
    jobs = release["jobs"]
    assert jobs["publish"]["needs"] == "build" and jobs["publish"]["environment"] == "release"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "secrets." not in text
