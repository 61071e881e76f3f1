"""A sweep over mixes on the embedded subject, very small: interrupted, gone on with, tabled."""

import re
import shutil

import pytest
from inspect_ai.log import list_eval_logs, read_eval_log, read_eval_log_sample_summaries
from typer.testing import CliRunner

from esr_eval._util.paths import CACHE_ENV
from esr_eval.cli.finetune import app
from esr_eval.dataset import load_latents
from esr_eval.finetune.card import AdapterFacts, read_facts
from esr_eval.paper import run as paper_run
from esr_eval.paper import sweep as sweeping
from esr_eval.paper.run import STEP
from esr_eval.subjects import embedded_path, find_subject, subjects

EXAMPLES = str(embedded_path("embedded:smollm2-135m-esr") / "examples.jsonl")


def sweep(folder, *more, mixes="25,75"):
    sizes = ["--n-latents", "2", "--trials", "1", "--max-tokens", "8", "--max-steps", "1"]
    arguments = ["sweep", "smollm2-135m", EXAMPLES, str(folder), "--mixes", mixes, *sizes]
    return CliRunner().invoke(app, [*arguments, "--count", "4", "-M", "device=cpu", *more])


def logs_of(folder):
    headers = [read_eval_log(info, header_only=True) for info in list_eval_logs(str(folder))]
    return {log.eval.metadata[STEP]: log for log in headers if log.status == "success"}


def trials(log):
    samples = read_eval_log_sample_summaries(log.location)
    return sorted((s.metadata["latent"], s.metadata["topic"], s.metadata["seed"]) for s in samples)


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """The embedded subject with a search of strengths that ends soon; nothing is known of it."""
    # Strengths alone: in a cache of its own the model would have to be unpacked again.
    monkeypatch.setattr("esr_eval.calibration.store.cache_root", lambda: tmp_path / "cache")
    monkeypatch.setenv("COLUMNS", "200")
    known = dict(subjects())
    base = known["smollm2-135m"]
    effort = {"rounds": 1, "samples_per_round": 1, "max_tokens": 8}
    prior = base.calibration.model_copy(update=effort)
    known[base.name] = base.model_copy(update={"calibration": prior, "strengths": None})
    monkeypatch.setattr("esr_eval.subjects.subjects", lambda: known)
    assert find_subject("smollm2-135m").calibration.rounds == 1


@pytest.mark.model
@pytest.mark.heavy
def test_interrupted_in_training_and_between_logs_a_sweep_goes_on(tmp_path, quick, monkeypatch):
    folder = tmp_path / "sweep"
    train, trained = sweeping.train, []

    def cut_short(*args, **settings):
        trained.append(settings["resume"])
        made = train(*args, **settings)
        if len(trained) == 1:
            # As if the power went off before the card was written.
            (args[3] / "README.md").unlink()
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(sweeping, "train", cut_short)
    assert sweep(folder).exit_code != 0
    assert set(logs_of(folder / "logs")) == {"calibrate", "main", "no_steering"}

    eval_set, ran = paper_run.eval_set, []

    def interrupted(task, **settings):
        if len(ran) == 2:
            raise KeyboardInterrupt
        ran.append(settings["metadata"][STEP])
        return eval_set(task, **settings)

    monkeypatch.setattr(paper_run, "eval_set", interrupted)
    assert sweep(folder).exit_code != 0
    assert trained == [False, True] and ran == ["mix-25 calibrate", "mix-25 steered"]
    first = logs_of(folder / "logs")
    monkeypatch.setattr(paper_run, "eval_set", eval_set)
    result = sweep(folder)
    assert result.exit_code == 0, result.output
    done = logs_of(folder / "logs")
    assert trained == [False, True, False]
    assert {key: done[key].location for key in first} == {k: v.location for k, v in first.items()}

    runs = ("calibrate", "steered", "no_steering")
    expected = [f"mix-{mix} {run}" for mix in (25, 75) for run in runs]
    assert set(done) == {"calibrate", "main", "no_steering", *expected}
    asked = trials(done["main"])
    assert len(asked) == 2
    for mix in (25, 75):
        for run, condition in (("steered", ""), ("no_steering", ", no steering")):
            log = done[f"mix-{mix} {run}"]
            assert trials(log) == asked
            assert log.eval.metadata["condition"] == f"fine-tuned, {mix} %{condition}"
            told = log.eval.metadata["adapter"]
            assert told["mix_percent"] == mix and told["steps"] == 1
            assert told["preset"] == "embedded" and told["examples"] == 4
            assert log.eval.metadata["runtime"]["adapter"].endswith(f"mix-{mix}")
    # The card alone tells the same, but for the mix, which it counts after the validation split.
    card, facts = (
        (folder / "mix-75" / "README.md").read_text("utf-8"),
        read_facts(folder / "mix-75"),
    )
    told = AdapterFacts.of_card(card).model_dump(exclude={"mix_percent"})
    assert told == AdapterFacts.of(facts).model_dump(exclude={"mix_percent"})
    # The tables stand at the end, one row for the base and one for each mix, twice.
    for name in ("smollm2-135m, 25 %", "smollm2-135m, 75 %", "The cost: nobody steers"):
        assert name in result.output
    assert result.output.count("smollm2-135m, 75 %") == 2

    # Again, nothing is left to do; other settings do not take what lies there for their own.
    monkeypatch.setattr(paper_run, "eval_set", None)
    assert sweep(folder).exit_code == 0
    assert "other seed" in " ".join(sweep(folder, "--seed", "1", mixes="50").output.split())
    other = tmp_path / "other"
    shutil.copytree(folder / "mix-25", other / "mix-25")
    assert "other examples or settings" in sweep(other, "--seed", "1").output


@pytest.mark.parametrize("mixes", ["10,300", "ten", ",", "-5", "nan"])
def test_an_unknown_mix_is_refused_in_one_sentence(tmp_path, mixes):
    result = sweep(tmp_path / "s", mixes=mixes)
    assert result.exit_code == 1
    assert result.output.startswith("Error: '") and "is no mix" in result.output
    assert result.output.count("\n") == 1 and not (tmp_path / "s").exists()


def test_what_cannot_be_swept_is_told_before_anything_runs(tmp_path):
    tuned = CliRunner().invoke(app, ["sweep", "smollm2-135m-esr", EXAMPLES, str(tmp_path / "s")])
    assert tuned.exit_code == 1 and "fine-tuned already" in tuned.output
    many = sweep(tmp_path / "s", "--count", "1000")
    assert many.exit_code == 1 and "at most" in many.output
    adapter = sweep(tmp_path / "s", "-M", "adapter=x")
    assert adapter.exit_code == 1 and "makes its adapters itself" in adapter.output
    assert not (tmp_path / "s").exists()


def test_a_dry_run_tells_steps_trials_and_trainings(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    arguments = ["sweep", "smollm2-135m", EXAMPLES, str(tmp_path / "s"), "--mixes", "10,50"]
    result = CliRunner().invoke(app, [*arguments, "--dry-run", "--until-token", "40"])
    assert result.exit_code == 0, result.output
    rows = {
        cells[0]: cells[1]
        for line in result.output.splitlines()
        if len(cells := re.split(r"\s{2,}", line.strip())) > 3
    }
    prior = find_subject("smollm2-135m").calibration
    assert rows["calibrate"] == "0"  # shipped with the subject
    assert rows["mix-10 calibrate"] == str(12 * (prior.rounds * prior.samples_per_round + 5))
    for step in ("main", "until_40", "mix-10 steered", "mix-50 no_steering", "mix-50 until_40"):
        assert rows[step] == "48"
    # All mixes are as large as the one for which there are fewest examples.
    said = [line for line in result.output.splitlines() if line.startswith("Training mix-")]
    assert [line.split()[1:3] for line in said] == [["mix-10:", "277"], ["mix-50:", "277"]]
    assert "28 of them self-correction" in said[0] and "minutes" in said[0]
    assert not (tmp_path / "s").exists() and len(load_latents(find_subject("smollm2-135m"))) >= 12
