"""What README and site print can be typed as it stands; the reference names what the code takes."""

import importlib.util
import inspect
import json
import re
import shlex
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import typer
import yaml
from click.testing import CliRunner as Clicked
from inspect_ai.log import list_eval_logs, read_eval_log
from typer.testing import CliRunner

from esr_eval.cli import app
from esr_eval.data.experiments import EXPERIMENTS
from esr_eval.provider.arguments import ModelArgs
from esr_eval.scorers.attempts import MEANS, RATES
from esr_eval.subjects import subjects

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOK = ROOT / "docs" / "examples" / "from-logs.ipynb"
FENCE = re.compile(r"^```(?:bash|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`((?:esr-eval|inspect|make) [^`]+)`(?!`)")
READING = {
    *("activations", "agreement", "compare", "detectors", "finetune table", "judges", "paper"),
    *("power", "report", "subjects", "summary"),
}
"""Commands that load no model, and take seconds."""
STORED = ROOT / "tests" / "data" / "logs"
LOGS = {
    "activations LOG": "activations.eval",
    "agreement LOG": "cross_judge.eval",
    "detectors LOG": "detectors.eval",
    "FOUND": "detectors.eval",
    "LOG": "esr.eval",
    "logs/LOG.eval": "esr.eval",
    "BASE": "esr.eval",
    "NEW": "esr.eval",
    "LOGS": "",
}
"""Logs to read where a page prints a capital word, after some command or after any."""
SMALL = re.compile(
    r"tasks/(esr|finetuned|injected_thought|vectors)\.py --model esr/smollm2-135m(-esr)?"
    r"( -T (?!rejudge)\S+)*$"
)
"""Evaluations that need no GPU, key or hub, and are quick once answers are short and few."""


def load_reference():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


reference = load_reference()
ESR_EVAL = dict(reference.commands())
TASKS = dict(reference.registered("task"))
SCORERS = dict(reference.registered("scorer"))


def printed(text):
    """Commands that a page prints: the lines of its fences, and those within sentences."""
    for block in FENCE.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s&&\s", line):
                words = shlex.split(part, comments=True)
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    yield words
    for line in INLINE.findall(FENCE.sub("", text)):
        words = shlex.split(" ".join(line.split()), comments=True)
        # `inspect eval esr_eval/esr ...` and `esr-eval finetune` name a command, and print none.
        if not {"...", "COMMAND"} & set(words):
            yield words


def all_printed(name):
    found = [
        (page.relative_to(ROOT), words)
        for page in PAGES
        for words in printed(page.read_text("utf-8"))
    ]
    for cell in json.loads(NOTEBOOK.read_text("utf-8"))["cells"]:
        if cell["cell_type"] == "markdown":
            text = "".join(cell["source"])
            found += [(NOTEBOOK.relative_to(ROOT), words) for words in printed(text)]
    unique = {shlex.join(words): (page, words) for page, words in found}
    commands = [
        pytest.param(words, id=f"{page}: {line}")
        for line, (page, words) in sorted(unique.items())
        if Path(words[0]).name == name
    ]
    assert commands
    return commands


def esr_eval_command(words):
    """The command that some words begin with, its path, and the other words."""
    for length in (3, 2, 1):
        path = tuple(words[1 : 1 + length])
        if path in ESR_EVAL:
            return path, ESR_EVAL[path], words[1 + length :]
    raise AssertionError(f"there is no command {shlex.join(words)}")


def names_only(words):
    """Whether a sentence names a command, or a group, rather than printing a line to type."""
    group = typer.main.get_command(app)
    for word in words[1:]:
        group = getattr(group, "commands", {}).get(word)
        if group is None:
            return False
    return True


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
    command, rest = inspect_command(words)
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


def filled(words):
    """A printed line with stored logs where the reader names theirs."""
    return [
        str(STORED / LOGS[key])
        if (key := f"{words[1]} {word}") in LOGS or (key := word) in LOGS
        else word
        for word in words
    ]


def needs_nothing(words):
    """Whether a command only reads what the repository has."""
    if names_only(words) and words[1:] != ["subjects"]:
        return False
    words = filled(words)
    try:
        path, command, rest = esr_eval_command(words)
        given = command.make_context("", list(rest)).params
    except Exception:  # that it does not parse is another test's to tell
        return False
    logs = [given.get(name) for name in ("logs", "log", "base", "new")]
    read = [one for some in logs for one in (some if isinstance(some, list | tuple) else [some])]
    files = [str(one) for one in read if isinstance(one, str | Path)]
    found = all((ROOT / name).exists() for name in files)
    # A plan is read; what it plans is another test's.
    small = "smollm2" in given.get("model", "") if path == ("paper",) else True
    planned = " ".join(path) not in ("judges", "paper") or (given["dry_run"] and small)
    return found and planned and " ".join(path) in READING


@pytest.mark.parametrize(
    "words", [one for one in all_printed("esr-eval") if needs_nothing(one.values[0])]
)
def test_every_printed_command_that_only_reads_the_repository_runs(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "logs", tmp_path / "logs")
    done = CliRunner().invoke(app, filled(words)[1:])
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    "words",
    [
        words
        for one in all_printed("inspect")
        if (words := one.values[0])[1] == "score" and "--model-role" not in words
    ],
    ids=shlex.join,
)
def test_every_printed_scoring_that_asks_no_paid_judge_runs(words, tmp_path):
    [stored] = [word for word in filled(words) if word.endswith(".eval")]
    log = shutil.copy(stored, tmp_path)
    given = [log if word == stored else word for word in filled(words)]
    # Asked whether to overwrite the log, as Inspect asks everyone, the reader does.
    done = Clicked().invoke(inspect_main(), [*given[1:], "--display", "none"], input="o\n")
    assert done.exit_code == 0, done.output
    scorer = words[words.index("--scorer") + 1].rpartition("/")[2]
    named = [score.scorer.rpartition("/")[2] for score in read_eval_log(log).results.scores]
    assert scorer in named


def inspect_main():
    [script] = entry_points(group="console_scripts", name="inspect")
    return script.load().__globals__["inspect"]


def quick_evaluations():
    """Printed evaluations of the small model, those of one size only once."""
    found = [one.values[0] for one in all_printed("inspect")]
    lines = [words for words in found if SMALL.search(shlex.join(words))]
    # Once short, lines that differ in sizes alone are one.
    return list({re.sub(r"_latents?=\d+|seed=\d+", "", shlex.join(w)): w for w in lines}.values())


@pytest.mark.model
@pytest.mark.parametrize("words", quick_evaluations(), ids=shlex.join)
def test_every_printed_evaluation_that_needs_no_gpu_key_or_hub_runs(words, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    short = ["--max-tokens", "8", "--limit", "2", "--log-dir", str(tmp_path), "--display", "none"]
    done = Clicked().invoke(inspect_main(), [*words[1:], *short])
    assert done.exit_code == 0, done.output
    [info] = list_eval_logs(str(tmp_path))
    log = read_eval_log(info.name)
    assert log.status == "success" and len(log.samples) == 2


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
