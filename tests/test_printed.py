"""What README, site and notebook print runs as it stands, or says why it cannot be run here."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner as Clicked
from inspect_ai.log import list_eval_logs, read_eval_log, write_eval_log
from printed import (
    FILLED,
    ROOT,
    commands_of,
    every_command,
    filled,
    inspect_main,
    names_only,
    texts,
)
from typer.testing import CliRunner

from esr_eval.cli import app

BIN = Path(sys.executable).parent
LOG, VECTORS = str(FILLED["LOG"]), str(FILLED["vectors FILE"])
EXAMPLES = ROOT / "esr_eval" / "embedded" / "smollm2-135m-esr"

ASKS_NOBODY = r"^(?!.*--dry-run|esr-eval check \S+( --grader self)?$).*"
EXCUSED = {
    ASKS_NOBODY + r"(llama-\d+b|gemma-\d+b|Qwen|meta-llama|sae_release=)": (
        "weights, labels or an SAE of a hub"
    ),
    ASKS_NOBODY + r"((anthropic|openai|google)/|NDIF_API_KEY|--judge-batch)": "a key",
    r"^scripts/(vllm_cost|local_speed)\.py": "a GPU",
    r"^(pip|apt) ": "a package registry; tests/test_wheel.py builds the wheel and runs it",
    r"^make (setup|test|docs|test-(browser|vllm|lowest|newest|heavy|ndif|hub))$": (
        "targets of CI (.ci/run and .github/workflows), or gigabytes (test-ndif, test-hub)"
    ),
    r"^esr-eval serve vllm install$": "gigabytes; `make test-vllm` runs it, and starts a server",
    r"^pytest ": "the suite itself",
    r"^\S*jupyter ": "Jupyter; tests/test_docs.py runs the notebook's cells",
    r"^\. \.venv/bin/activate$": "it changes the shell alone",
    r"^python scripts/(train_turns|embedded/selfcorrection)\.py": (
        "an hour and 12 minutes: they make anew the weights that ship"
    ),
}
"""Commands that cannot be run by a test, by a pattern of the line, and why: what they need."""

SMALL = r"--model esr/smollm2-135m(-esr)?( -T (?!rejudge)\S+)*$"
RUN = {
    "reading": (
        r"^esr-eval (activations|agreement|compare|detectors|finetune table|power|report|subjects"
        r"|summary)\b|^esr-eval .*(--dry-run|--help)$(?<!full --dry-run)"
    ),
    "price": r"^esr-eval paper .*--scale full --dry-run",
    "missing": r"^esr-eval check llama-",
    "plan": r"^esr-eval paper (?!.*--dry-run)",
    "small": r"^esr-eval (calibrate|check smol|judges$|latents select|vectors calibrate)",
    "tuning": r"^esr-eval finetune (data|train|sweep) ",
    "scoring": r"^inspect score (?!.*--model-role)",
    "evaluation": rf"^inspect eval (tasks|esr_eval)/\w+(\.py)? {SMALL}",
    "retry": r"^inspect eval-retry ",
    "view": r"^inspect view\b",
    "play": r"^esr-eval play ",
    "ndif": r"^esr-eval serve ndif |-M backend=ndif",
    "help": r"^make help$",
    "demo": r"^make demo( SEED=0)?$",
    "regression": r"^make regression$",
    "script": r"^python scripts/(readme_figure|recompute|throughput)\.py",
    "long script": r"^python tests/curves\.py",
}
"""Commands that a test below runs, by a pattern of the line once its capital words are filled."""


def excuse(one):
    return next((why for pattern, why in EXCUSED.items() if re.search(pattern, one.line)), None)


def only_names(one):
    """Whether a sentence names a command, or a task, and prints no line to type."""
    if one.typed or one.words[1:] == ["subjects"]:
        return False
    if one.program == "esr-eval":
        return names_only(one.words) and "--help" not in one.words
    return one.words[:2] == ["inspect", "eval"] and len(one.words) <= 3


def runs(one, kind):
    line = shlex.join(filled(one.words))
    return not excuse(one) and not only_names(one) and bool(re.search(RUN[kind], line))


def printed(kind, same="(?!)"):
    """Lines of a kind, filled; of those that differ by no more than `same` matches, one."""
    found = [filled(one.words) for one in every_command() if runs(one, kind)]
    unique = {re.sub(same, "", shlex.join(words)): words for words in found}
    shown = [shlex.join(words).replace(f"{ROOT}/", "") for words in unique.values()]
    return pytest.mark.parametrize("words", unique.values(), ids=shown)


def test_every_printed_command_is_run_or_says_what_it_needs():
    escaped = [
        f"{one.page}: {one.line}"
        for one in every_command()
        if not excuse(one) and not only_names(one) and not any(runs(one, kind) for kind in RUN)
    ]
    assert not escaped, "run them in a test below, or say in EXCUSED why not"


def test_no_excuse_is_without_a_command():
    lines = [one.line for one in every_command()]
    for pattern in EXCUSED:
        assert any(re.search(pattern, line) for line in lines), pattern


def test_a_new_line_would_be_found_out():
    page = (
        "```bash\nesr-eval summary logs --fast\ninspect eval-set tasks/esr.py\n```\n`make cake now`"
    )
    found = {one.line: one for one in commands_of("page", page)}
    summary, evalset, cake = found.values()
    assert runs(summary, "reading") and cake.line == "make cake now"
    assert not any(runs(one, kind) for one in (evalset, cake) for kind in RUN)
    assert not excuse(evalset) and not excuse(cake) and not only_names(evalset)


@pytest.fixture
def copied(run_in):
    """A folder with what commands read in a checkout, to write beside it."""
    for name in ("logs", "scripts", "docs/img"):
        shutil.copytree(ROOT / name, run_in / name)
    return run_in


def esr_eval(words, *more, **given):
    done = CliRunner().invoke(app, [*words[1:], *more], **given)
    assert done.exit_code == 0, done.output
    return done.output


def inspected(words, *more, **given):
    done = Clicked().invoke(inspect_main(), [*words[1:], *more, "--display", "none"], **given)
    assert done.exit_code == 0, done.output


@printed("reading", same=r"/$")
def test_a_command_that_reads_logs_or_plans_runs(words, copied):
    assert esr_eval(words).strip()


@printed("price")
def test_the_whole_paper_is_priced_before_anything_is_fetched(words, run_in):
    """With labels at hand, as those that the run would fetch are a hub's."""
    rows = ["index_in_sae,label", *(f"{index},thing {index}" for index in range(500))]
    Path("labels.csv").write_text("\n".join(rows), "utf-8")
    assert "to do" in esr_eval(words, "--latents", "labels.csv")


@printed("missing")
def test_what_a_large_model_lacks_here_is_told(words, run_in):
    """Of the exit code no more than that it is one of a check: machines differ."""
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code in (0, 1) and "What a run on llama-" in done.output, done.output


@printed("plan")
def test_a_run_of_the_whole_paper_is_planned(words, run_in):
    """Only planned, by `--dry-run`: `test_the_whole_paper_runs` runs them."""
    assert "to do" in esr_eval(words, "--dry-run")


@pytest.mark.model
@pytest.mark.heavy
@printed("plan")
def test_the_whole_paper_runs(words, run_in):
    """Answers of 8 tokens."""
    esr_eval(words, "--yes", "--max-tokens", "8")
    assert (run_in / "logs" / "paper" / "report" / "index.html").exists()


@pytest.fixture
def strengths_of_its_own(tmp_path, monkeypatch):
    """Short searches leave nothing in the user's cache."""
    monkeypatch.setattr("esr_eval.calibration.store.cache_root", lambda: tmp_path / "cache")


SHORT_SEARCH = [
    "-T",
    'prior={"rounds": 1, "samples_per_round": 1, "max_tokens": 8}',
    "-T",
    "check_samples=1",
]
FEW = {
    "calibrate": ["--n-latents", "1", *SHORT_SEARCH],
    "check": [],
    "judges": ["--limit", "4"],
    "latents": ["--wanted", "2"],
    "vectors": SHORT_SEARCH,
}


@pytest.mark.model
@printed("small")
def test_a_command_on_the_small_model_runs(words, run_in, strengths_of_its_own):
    """One latent, one round of one response; 4 passages; 2 latents chosen; a copy of vectors."""
    words = [shutil.copy(word, run_in) if word == VECTORS else word for word in words]
    assert esr_eval(words, *FEW[words[1]]).strip()


def tuned(kind, *few):
    """Run the printed line of `esr-eval finetune KIND`."""
    lines = [filled(one.words) for one in every_command() if runs(one, "tuning")]
    [words] = [words for words in lines if words[2] == kind]
    esr_eval(words, *few)


@pytest.mark.model
@pytest.mark.heavy
def test_examples_for_training_are_written(run_in):
    """Of 6 steered answers, and of an unsteered one to every task."""
    tuned("data", "--corrections", "6")
    assert (run_in / "examples" / "examples.jsonl").stat().st_size


@pytest.mark.model
def test_an_adapter_is_trained(run_in):
    """One step, on the examples that ship."""
    shutil.copytree(EXAMPLES, run_in / "examples")
    tuned("train", "--max-steps", "1")
    assert (run_in / "adapter" / "adapter_model.safetensors").exists()


@pytest.mark.model
@pytest.mark.heavy
def test_mixes_are_swept(run_in, strengths_of_its_own):
    """On the examples that ship; a latent, a trial, answers of 8 tokens and a step for each."""
    shutil.copytree(EXAMPLES, run_in / "examples")
    few = ["--n-latents", "1", "--trials", "1", "--max-steps", "1", "--max-tokens", "8"]
    tuned("sweep", *few, "--yes")
    mixes = {path.name for path in (run_in / "sweep").glob("mix-*")}
    assert mixes == {f"mix-{mix}" for mix in (10, 30, 50, 70, 90)}


@printed("scoring")
def test_a_scoring_that_asks_no_paid_judge_runs(words, tmp_path):
    log = shutil.copy(LOG, tmp_path)
    # Asked whether to overwrite scores, and the log, as Inspect asks everyone, the reader does.
    inspected([log if word == LOG else word for word in words], input="o\n" * 2)
    scorer = words[words.index("--scorer") + 1].rpartition("/")[2]
    named = [score.scorer.rpartition("/")[2] for score in read_eval_log(log).results.scores]
    assert scorer in named


@pytest.mark.model
@printed("evaluation", same=r" -T (n_latents|trials_per_\w+|seed)=\d+")
def test_an_evaluation_that_needs_no_gpu_key_or_hub_runs(words, tmp_path, monkeypatch):
    """Two samples of 8 tokens; lines that differ in sizes alone are one."""
    monkeypatch.chdir(ROOT)
    own = tmp_path / "own.json"
    [example] = re.findall(r"```json\n(.*?)```", texts()["docs/protective.md"], re.S)
    own.write_text(example, "utf-8")
    words = [word.replace(own.name, str(own)) for word in words]
    inspected(words, "--max-tokens", "8", "--limit", "2", "--log-dir", str(tmp_path))
    [info] = list_eval_logs(str(tmp_path))
    log = read_eval_log(info.name)
    assert log.status == "success" and len(log.samples) == 2


@pytest.mark.model
@printed("retry")
def test_an_interrupted_evaluation_is_gone_on_with(words, run_in):
    """Of a log of two samples one is taken out, as if it had been interrupted."""
    log = read_eval_log(LOG)
    kept, lost = log.samples
    log.samples, log.status, log.results = [kept], "cancelled", None
    cut = str(run_in / "interrupted.eval")
    write_eval_log(log, cut)
    inspected([cut if word == LOG else word for word in words], "--log-dir", str(run_in / "logs"))
    [info] = list_eval_logs(str(run_in / "logs"))
    again = read_eval_log(info.name)
    assert again.status == "success" and {one.id for one in again.samples} == {kept.id, lost.id}
    assert kept.uuid in {one.uuid for one in again.samples}


@contextmanager
def served(words, *more, out):
    """A server that a printed line starts, at a free port; its address, once it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [BIN / words[0], *words[1:], *more, "--port", port]
    address = f"http://127.0.0.1:{port}"
    with Path(out).open("w", encoding="utf-8") as told:
        server = subprocess.Popen(command, stdout=told, stderr=told)
    try:
        deadline = time.monotonic() + 120
        while not answers(address):
            said = Path(out).read_text("utf-8")
            assert server.poll() is None and time.monotonic() < deadline, said
            time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def answers(address):
    try:
        return httpx.get(address).status_code == 200
    except httpx.ConnectError:
        return False


@printed("view")
def test_the_viewer_shows_the_logs(words, copied):
    with served(words, "--host", "127.0.0.1", out=copied / "out") as address:
        listed = httpx.get(f"{address}/api/logs", timeout=60).json()["files"]
        stored = {path.name for path in (copied / "logs").rglob("*.eval")}
        if "--log-dir" in words:
            stored = {path.name for path in Path(words[-1]).glob("*.eval")}
        assert {one["name"].rpartition("/")[2] for one in listed} == stored
        assert httpx.get(f"{address}/api/logs/{listed[0]['name']}", timeout=60).json()["eval"]


@pytest.mark.model
@pytest.mark.browser
@printed("play")
def test_the_page_to_feel_it_opens(words, tmp_path):
    """With `--no-browser`; `tests/test_play.py` asks it in a browser for answers."""
    pytest.importorskip("gradio")
    with served(words, "--no-browser", out=tmp_path / "out") as address:
        config = httpx.get(f"{address}/config").json()
        shown = json.dumps([one["props"] for one in config["components"]])
        assert "Boost until token" in shown and "Repeat steered" in shown


@pytest.mark.model
@pytest.mark.ndif
def test_the_server_that_the_page_tells_of_serves_the_line_below_it(run_in):
    """The lines of docs/remote.md in their order, the port filled; two samples of 8 tokens."""
    lines = [one for one in commands_of("", texts()["docs/remote.md"]) if runs(one, "ndif")]
    install, start, evaluation, stop = [one.words for one in lines if one.typed]
    esr_eval(install)
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+", esr_eval(start))[0]
        asked = [word.replace("http://127.0.0.1:PORT", address) for word in evaluation]
        inspected(asked, "--max-tokens", "8", "--limit", "2")
    finally:
        esr_eval(stop)
    [info] = list_eval_logs(str(run_in / "logs"))
    assert read_eval_log(info.name, header_only=True).status == "success"


def made(words, *settings):
    """What a target of the Makefile says, made in this environment as it is."""
    here = [f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.ready", *settings]
    done = subprocess.run([*words, *here], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@printed("help")
def test_the_makefile_lists_its_targets(words):
    told = made(words)
    assert all(target in told for target in ("demo", "test-heavy", "clean"))


@pytest.mark.model
@printed("demo", same=" SEED=0")
def test_the_demo_runs(words, tmp_path):
    """With answers of 8 tokens."""
    assert "start over" in made(words, f"LOGS={tmp_path}", "MORE=--max-tokens 8")
    assert len(list_eval_logs(str(tmp_path))) == 4
    assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.model
@pytest.mark.heavy
@printed("regression")
def test_nothing_is_worse_than_the_baseline(words, tmp_path):
    made(words, f"MEASURED={tmp_path}")


@printed("script")
def test_a_script_runs(words, copied):
    """In a copy; throughput with one round of 2 short answers."""
    few = ["--rows", "2", "--tokens", "4", "--rounds", "1"] if "throughput" in words[1] else []
    picture = copied / "docs" / "img" / "self-correction.svg"
    picture.unlink()
    done = subprocess.run(
        [sys.executable, *words[1:], *few], cwd=copied, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout or picture.exists()


@pytest.mark.heavy
@printed("long script")
def test_the_table_of_simulated_curves_is_printed(words):
    done = subprocess.run(
        [sys.executable, *words[1:]], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = texts()["docs/strengths.md"].splitlines()
    rows = [line for line in told if re.match(r"\| (llama-70b|gemma-9b) \| ", line)]
    assert rows and set(rows) <= set(done.stdout.splitlines())
