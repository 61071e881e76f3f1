"""Wrong arguments of every task and command: one sentence, nothing loaded, no number."""

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_type_hints

import click
import pytest
import typer
from inspect_ai.model import GenerateConfig, get_model
from typer.testing import CliRunner

from esr_eval import tasks
from esr_eval.cli import app
from esr_eval.data.arguments import (
    LatentsArgument,
    LatentsOrSet,
    LogFile,
    Names,
    Sources,
    Strength,
    StrengthOrReplay,
    Topics,
)
from esr_eval.errors import EsrError
from esr_eval.provider.conversion import AS_IT_IS, CARRIED_OUT, INSPECTS, check_settings
from esr_eval.tasks.injected_thought import Doses, Layers

NAN, INF = float("nan"), float("inf")
TASKS = [getattr(tasks, name) for name in tasks.__all__]
INDICES = [True, 2.5, -1, "7,-2", [7, 7], "7,7", [], [1.5], ["a,b.csv", "c"], ""]
NAMES = [3, "", [], ["a", ""], "a,,b", "a,a", True]
STRENGTHS = [NAN, INF, "1e400", 1e30, "-3x", "0x", "nanx", "x", 0, -5, True, [60], "", "strong"]
WRONG: dict[Any, list[Any]] = {
    bool: ["flase", "true", "", 1, 0, [True]],
    int: [2.5, 3.0, True, -1, "3", "1e3", NAN, 10**30, [1], ""],
    float: [NAN, INF, -INF, "1e400", -1, True, [1.0], ""],
    str: [3, "", ["a"], True],
    dict: [3, "x", [1]],
    Strength: STRENGTHS,
    StrengthOrReplay: STRENGTHS,
    LatentsArgument: INDICES,
    LatentsOrSet: INDICES,
    Topics: NAMES,
    Names: NAMES,
    Sources: [3, "", [], [1], ["a", ""], True],
    Doses: [one for one in STRENGTHS if one != [60]] + ["0.3rms,0.3rms", [True]],
    Layers: [2.5, -1, True, "x", "", "3,3", [], [1.5]],
    LogFile: [3, "", "no/such.eval", ["a", "b"], "FOLDER"],
}


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused has neither loaded a model nor started a process."""

    def reached(*args: Any, **kwargs: Any) -> None:
        pytest.fail("something was loaded or started")

    monkeypatch.setattr("esr_eval.provider.api.ESRModelAPI._load", reached)
    monkeypatch.setattr("esr_eval.servers.loopback.subprocess.Popen", reached)


def kind_of(task: Any, name: str) -> Any:
    """The key of WRONG for an argument of a task."""
    hint = get_type_hints(inspect.unwrap(task), include_extras=True)[name]
    parts = [hint, *getattr(hint, "__args__", ())]
    for part in parts:
        if part in WRONG:
            return part
    plain = get_type_hints(inspect.unwrap(task))[name]
    for part in [plain, *getattr(plain, "__args__", ())]:
        kind = getattr(part, "__origin__", part)
        kind = type(part.__args__[0]) if kind not in WRONG and hasattr(part, "__args__") else kind
        if kind in WRONG:
            return kind
    raise AssertionError(f"{task.__name__}({name}): no wrong values are known for {hint}")


def arguments_of(task: Any) -> list[str]:
    return [p.name for p in inspect.signature(inspect.unwrap(task)).parameters.values()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_every_argument_of_every_task_refuses_what_it_does_not_mean(
    task: Any, tmp_path: Path
) -> None:
    log = tmp_path / "log.eval"
    log.touch()
    parameters = inspect.signature(inspect.unwrap(task)).parameters
    needed = {
        name: str(log) for name, one in parameters.items() if one.default is inspect.Parameter.empty
    }
    for name in arguments_of(task):
        for value in WRONG[kind_of(task, name)]:
            given = str(tmp_path) if value == "FOLDER" else value
            try:
                task(**{**needed, name: given})
            except EsrError as error:
                said = str(error)
            except Exception as error:
                pytest.fail(f"{name}={given!r} is taken, up to: {error}")
            else:
                pytest.fail(f"{name}={given!r} is taken")
            assert said.startswith(f"-T {name}="), (name, value, said)
            assert "\n" not in said and said.endswith("."), said


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_an_unknown_or_missing_argument_of_a_task_is_told(task: Any) -> None:
    with pytest.raises(EsrError, match=r"has no argument -T n_latnts=; it takes "):
        task(n_latnts=3)
    parameters = inspect.signature(inspect.unwrap(task)).parameters.values()
    if any(one.default is inspect.Parameter.empty for one in parameters):
        with pytest.raises(EsrError, match="lacks an argument"):
            task()


def test_names_and_defaults_of_tasks_are_still_shown() -> None:
    shown = inspect.signature(tasks.esr).parameters
    assert shown["trials_per_latent"].default == 5
    assert list(shown)[:3] == ["latents", "n_latents", "trials_per_latent"]


def test_every_task_that_searches_strengths_takes_the_method_of_the_search() -> None:
    for task in TASKS:
        names = inspect.signature(inspect.unwrap(task)).parameters
        assert ("prior" in names) == ("method" in names), task.__name__


WRONG_SETTINGS = {
    "max_tokens": [0, -1],
    "temperature": [-0.1, NAN, INF],
    "top_p": [0, -1, 1.5, NAN],
    "top_k": [-2],
    "seed": [-1, 2**63],
    "stop_seqs": [[""], ["a", ""]],
    "extra_body": [{"other": 1}],
    "max_connections": [0, -1],
    "adaptive_connections": [0],
    "timeout": [0],
    "attempt_timeout": [0],
    "max_retries": [-1],
}


@pytest.mark.parametrize("name", sorted(GenerateConfig.model_fields))
def test_a_setting_is_carried_out_or_refused_by_name(name: str) -> None:
    if name in CARRIED_OUT | INSPECTS:
        values = WRONG_SETTINGS.get(name, [])
    else:
        values = [7, 0.5, ["text"], {"a": 1}, "high"]
    for value in values:
        config = GenerateConfig.model_construct(**{name: value})
        with pytest.raises(EsrError) as told:
            check_settings(config)
        assert f"--{name.replace('_', '-')} " in str(told.value)
        with pytest.raises(EsrError):
            get_model("esr/smollm2-135m", config=config, memoize=False)


def test_settings_that_mean_something_pass() -> None:
    check_settings(GenerateConfig())
    check_settings(
        GenerateConfig(max_tokens=1, temperature=0, top_p=1, top_k=-1, seed=0, stop_seqs=["."])
    )
    check_settings(GenerateConfig(top_k=0, max_connections=1, max_retries=0, timeout=1))
    for name, values in AS_IT_IS.items():
        for value in values:
            check_settings(GenerateConfig.model_construct(**{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch_size", 2.5),
        ("batch_size", True),
        ("batch_size", 0),
        ("sampler", "mine"),
        ("sampler", 1),
        ("steering_layer", -1),
        ("steering_layer", "14"),
        ("device", "nonsense"),
        ("device", ""),
        ("dtype", "int8"),
        ("skip_first", "1e9"),
        ("skip_first", -1),
        ("repetition_penalty", NAN),
        ("repetition_penalty", 0),
        ("backend", ""),
        ("wait", INF),
        ("revision", 123),
        ("adapter", ""),
        ("nonsense", 1),
    ],
)
def test_a_model_argument_that_means_nothing_is_refused(name: str, value: Any) -> None:
    with pytest.raises(EsrError, match=f"-M {name}=") as told:
        get_model("esr/smollm2-135m", memoize=False, **{name: value})
    assert "\n" not in str(told.value)


def leaves(command: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if hasattr(command, "commands"):
        found = command.commands.items()
        return [leaf for name, below in found for leaf in leaves(below, (*path, name))]
    return [(path, command)]


COMMANDS = leaves(typer.main.get_command(app))
VALUES = {
    int: ["-2", "2.5", "nan", "x"],
    float: ["nan", "inf", "-inf", "-1", "x"],
}


def values_of(hint: Any) -> list[str]:
    return next(
        (VALUES[kind] for kind in VALUES if kind in (hint, *getattr(hint, "__args__", ()))), []
    )


def invocations(command: Any, folder: Path) -> list[list[str]]:
    """The command with one wrong value each, and all that it needs."""
    file = folder / "file.jsonl"
    file.touch()
    arguments: list[str] = []
    options: list[str] = []
    for one in command.params:
        if one.param_type_name == "argument" and one.required:
            arguments.append(str(folder / "new" if one.name == "folder" else file))
        elif one.required:
            options += [one.opts[-1], str(folder / "out.safetensors")]
    found = []
    hints = get_type_hints(inspect.unwrap(command.callback))
    for one in command.params:
        if one.param_type_name == "argument":
            continue
        if one.name != "help" and not one.is_flag:
            found.append([*arguments, *options, one.opts[-1], ""])
        for value in values_of(hints.get(one.name)):
            found.append([*arguments, *options, one.opts[-1], value])
        if one.name in {"csv", "out", "output", "export"}:
            found.append([*arguments, *options, one.opts[-1], str(file / "below")])
    if arguments:
        found.append(["", *arguments[1:], *options])
    found.append([*arguments, *options, "--no-such-option"])
    return found


@pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS]
)
def test_every_command_refuses_what_its_options_do_not_mean(
    path: tuple[str, ...], command: Any, tmp_path: Path
) -> None:
    for args in invocations(command, tmp_path):
        ran = CliRunner().invoke(app, [*path, *args])
        assert ran.exit_code != 0, args
        assert isinstance(ran.exception, SystemExit), (args, ran.exception)
        assert "Traceback" not in ran.output and "rror" in ran.output, (args, ran.output)


@pytest.mark.parametrize(
    "args",
    [
        ["summary", "no/such"],
        ["power", "--metric", "nonsense"],
        ["power", "--base", "5", "--reduced", "7"],
        ["finetune", "data", "FOLDER/new", "--writer", "nope/x"],
        ["finetune", "data", "FILE"],
        ["latents", "select", "smollm2-135m", "-o", "FOLDER"],
        ["latents", "select", "smollm2-135m", "-o", "FOLDER/no/such.csv"],
        ["latents", "select", "smollm2-135m", "-o", "FOLDER/x.csv", "--grader", "nope/x"],
        ["calibrate", "smollm2-135m", "--grader", "x"],
        ["calibrate", "smollm2-135m", "--latents", "7,7"],
        ["calibrate", "smollm2-135m", "-T", "seed=3"],
        ["calibrate", "smollm2-135m", "-T", "nonsense=3"],
        ["calibrate", "smollm2-135m", "-M", "dtype=int8"],
        ["calibrate", "smollm2-135m", "-M", "dtype=float32", "-M", "dtype=float16"],
        ["paper", "--graders", "nope/x", "--dry-run", "--log-dir", "FOLDER/logs"],
        ["paper", "--log-dir", "FILE", "--dry-run"],
        ["serve", "vllm", "start", "--port", "99999"],
        ["serve", "vllm", "start", "--dtype", "int3"],
        ["vectors", "extract", "--model", "nope", "-o", "FOLDER/v.safetensors"],
        ["vectors", "extract", "--model", "smollm2-135m", "-o", "FOLDER/v.txt"],
    ],
    ids=" ".join,
)
def test_a_command_tells_in_one_sentence_what_is_wrong(args: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    real = [
        arg.replace("FOLDER", str(tmp_path)).replace("FILE", str(tmp_path / "file")) for arg in args
    ]
    ran = CliRunner().invoke(app, real)
    assert ran.exit_code != 0 and isinstance(ran.exception, SystemExit), ran.exception
    assert [line for line in ran.output.splitlines() if line.startswith("Error: ")], ran.output


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--max-connections", "0"], "--max-connections 0"),
        (["--max-samples", "0"], "--max-samples 0"),
        (["--seed", "3"], "-T seed="),
        (["-T", "n_latnts=3", "--generate-config", "SETTINGS"], "--frequency-penalty"),
        (["-T", "steering=flase"], "-T steering=flase"),
    ],
)
def test_inspect_ends_with_the_sentence(
    args: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()  # this process starts one
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"frequency_penalty": 1}))
    real = [str(settings) if arg == "SETTINGS" else arg for arg in args]
    ran = subprocess.run(
        [
            str(Path(sys.executable).parent / "inspect"),
            *("eval", "esr_eval/esr", "--model", "esr/smollm2-135m", "--display", "plain"),
            *("--log-dir", str(tmp_path / "logs"), *real),
        ],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1
    assert "Traceback" not in ran.stdout + ran.stderr
    errors = [line for line in (ran.stdout + ran.stderr).splitlines() if "Error: " in line]
    assert len(errors) == 1 and said in errors[0], ran.stdout + ran.stderr


@pytest.mark.parametrize("name", ["max_samples", "max_tasks", "epochs", "limit", "token_limit"])
def test_options_of_inspect_that_are_0_are_refused(name: str) -> None:
    with click.Context(click.Command("eval")) as context:
        context.params = {name: "0" if name == "limit" else 0}
        with pytest.raises(EsrError, match=f"--{name.replace('_', '-')} 0 is refused"):
            tasks.esr()
