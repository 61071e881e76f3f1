"""The whole-paper run on paper: its steps, what each needs, and what all of it takes."""

import io
from dataclasses import replace

import pytest
from inspect_ai.log import EvalLog
from rich.console import Console
from typer.testing import CliRunner

from esr_eval import _registry
from esr_eval.cli import app
from esr_eval.data.experiments import BEYOND, EXPERIMENTS
from esr_eval.dataset import meta_prompts
from esr_eval.errors import EsrError
from esr_eval.paper import run as paper_run
from esr_eval.paper import steps as paper_steps
from esr_eval.paper.estimate import estimate, estimate_table
from esr_eval.paper.run import EvalSet, Step, run_steps
from esr_eval.paper.steps import SCALES, Choices, choose, identity, left_out, only_steps, plan_steps
from esr_eval.subjects import PAPER_GRADER, find_subject, with_tuned_twin

FULL = Choices(SCALES["full"], n_vectors=12, graders=("a/b", "c/d"), tuned=True)


class AnyLog(dict):
    def __missing__(self, key):
        return f"{key}.eval"


def test_every_step_comes_after_what_it_needs():
    known = set()
    for step in plan_steps(FULL):
        assert known >= set(step.needs), step.key
        assert step.key not in known
        known.add(step.key)


def test_a_step_reads_only_the_logs_it_needs():
    for step in plan_steps(FULL):
        step.args({key: f"{key}.eval" for key in step.needs})  # KeyError otherwise


def test_all_steps_share_one_reading_of_the_discovery(monkeypatch):
    read = []

    def find_detectors(log):
        read.append(log)
        raise EsrError("no log")

    monkeypatch.setattr("esr_eval.detectors.discovery.find_detectors", find_detectors)
    paper_steps.rule_for.cache_clear()
    logs = {step.key: f"{step.key}.eval" for step in plan_steps(FULL)}
    rules = [args["rule"] for step in plan_steps(FULL) if "rule" in (args := step.args(logs))]
    paper_steps.rule_for.cache_clear()
    assert rules == ["silent"] * 7 and read == ["detectors.eval"]


def test_the_steps_cover_every_experiment_of_the_catalogue():
    tasks = {step.task for step in plan_steps(FULL)}
    assert tasks == {one.task.split()[0] for one in EXPERIMENTS} | {"calibrate"}
    assert tasks <= set(_registry.__all__)


def test_beyond_the_paper_are_further_steps_that_change_no_other(tmp_path):
    beyond = replace(FULL, beyond=True)
    more = [
        step for step in plan_steps(beyond) if step.task not in {s.task for s in plan_steps(FULL)}
    ]
    assert [step.task for step in more] == [one.task for one in BEYOND]
    assert more[0].args({"main": "main.eval"})["replay"] == "main.eval"
    assert more[0].generations == 2 * 4 * 500 * 4
    # Each of 18 prompts under one direction or under two, both signs, two random ones and none.
    assert more[1].generations == 10 * 18 * (5 + 7) and not more[1].needs
    # A run that is there already goes on with them.
    run = EvalSet(find_subject("smollm2-135m"), {}, None, None, tmp_path)
    assert identity(run, beyond) == identity(run, FULL)


def test_full_scale_is_the_papers():
    steps = {step.key: step for step in plan_steps(FULL)}
    assert steps["main"].generations == steps["ablation"].generations == 500 * 5
    assert steps["boost_sweep"].generations == 8 * 25 * 10
    assert sum(key.startswith("random_ablation") for key in steps) == 3
    assert sum(key.startswith("meta_") for key in steps) == len(meta_prompts()) == 4
    assert steps["cross_judge"].verdicts == 2 * 1000


def test_a_tuned_subject_runs_every_experiment_with_its_bases_main_run_beside_it(tmp_path):
    subject, base = with_tuned_twin("smollm2-135m")
    assert (subject.name, base.name) == ("smollm2-135m-esr", "smollm2-135m")
    assert with_tuned_twin("esr/smollm2-135m-esr") == (subject, base)
    assert with_tuned_twin("llama-70b") == (find_subject("llama-70b"), None)
    run = EvalSet(subject, {}, None, None, tmp_path, base=base)
    arguments = {"seed": 0, "latents": None, "detectors": None, "vectors": None, "graders": ["a/b"]}
    chosen = choose(run, scale="tiny", **arguments)
    # Both ship the strengths of all latents that may be drawn: nothing is searched.
    assert set(chosen.uncalibrated.values()) == {0}
    steps = {step.key: step for step in plan_steps(chosen)}
    on_base = {key for key, step in steps.items() if step.base}
    assert on_base == {"vectors", "calibrate_base", "main_base", "no_steering_base"}
    models = {key: run.model(step.tuned, step.base)[0] for key, step in steps.items()}
    assert models["main"] == models["ablation"] == models["detectors"] == "esr/smollm2-135m-esr"
    assert models["main_base"] == "esr/smollm2-135m"
    logs = {step.key: f"{step.key}.eval" for step in steps.values()}
    # The same draw: trials pair between the two. The judge is tried on the main run alone.
    main = steps["main"].args(logs)
    assert main.pop("rejudge") == chosen.rejudge
    assert main == steps["main_base"].args(logs)
    assert steps["activations"].needs == ("main", "no_steering", "detectors")
    assert "finetuned" not in steps and not left_out(chosen)
    assert identity(run, chosen)["base"] == "smollm2-135m"
    assert "base" not in identity(replace(run, base=None), chosen)
    # About the tokens that 40 minutes on two cores allow.
    assert estimate(steps.values(), subject, run.judge).hours < 0.5


def test_part_of_the_paper_is_some_tasks_and_what_they_need():
    def keys(choices, *tasks):
        return [step.key for step in only_steps(choices, tasks)]

    tuned = replace(FULL, base=True, uncalibrated={"calibrate": 0, "calibrate_base": 0})
    assert keys(tuned, "esr") == ["main", "no_steering", "main_base", "no_steering_base"]
    searched = replace(tuned, uncalibrated={"calibrate": 9, "calibrate_sweep": 9})
    assert keys(searched, "ablation") == ["calibrate", "main", "detectors", "ablation"]
    # By itself it searches what the main run's calibration would have found, too.
    alone = replace(searched, uncalibrated_sweep=19)
    search, sweep = only_steps(alone, ["boost_sweep"])
    assert (search.key, search.generations, sweep.key) == ("calibrate_sweep", 19, "boost_sweep")
    assert only_steps(alone, ["esr", "boost_sweep"])[1].generations == 9
    assert keys(searched, "meta_prompt", "held_out")[:3] == ["calibrate", "main", "held_out"]
    with pytest.raises(EsrError, match="of the task ablations; there are calibrate, esr, boost"):
        keys(tuned, "esr", "ablations")


def test_a_named_adapter_leaves_the_subject_as_it_is(tmp_path):
    done = CliRunner().invoke(
        app,
        ["paper", "--adapter", str(tmp_path), "--dry-run", "--log-dir", str(tmp_path / "logs")],
        env={"COLUMNS": "120"},
    )
    assert done.exit_code == 0, done.output
    assert "The paper on smollm2-135m, judged" in done.output
    assert "calibrate_tuned" in done.output and "main_base" not in done.output
    done = CliRunner().invoke(
        app, ["paper", "--dry-run", "--log-dir", str(tmp_path / "logs")], env={"COLUMNS": "120"}
    )
    assert "The paper on smollm2-135m-esr, judged" in done.output
    assert "Its base, smollm2-135m, runs vectors, calibrate_base, main_base" in done.output
    part = ["paper", "--only", "esr", "--dry-run", "--log-dir", str(tmp_path / "logs")]
    done = CliRunner().invoke(app, part, env={"COLUMNS": "120"})
    assert "runs main_base, no_steering_base." in done.output and "ablation" not in done.output


def test_the_paired_prefill_test_differs_in_what_is_held_alone():
    steps = {step.key: step for step in plan_steps(FULL)}
    logs = {key: f"{key}.eval" for key in steps}
    plain, held, random = (
        steps[key].args(logs) for key in ("prefill", "prefill_ablation", "prefill_random")
    )
    assert set(held) - set(plain) == {"detectors", "rule"}
    assert set(random) - set(held) == {"discovery"}
    assert {name: held[name] for name in plain} == plain
    assert steps["prefill_random"].verdicts == 2 * steps["prefill_random"].generations
    assert steps["activations"].args(logs)["controls"] is True


def test_what_cannot_be_run_is_told_with_the_way_to_have_it():
    bare = Choices(SCALES["tiny"])
    assert [reason.split()[0] for reason in left_out(bare)] == ["4", "13", "7"]
    keys = {step.key for step in plan_steps(bare)}
    assert not keys & {"finetuned", "vectors", "cross_judge"}
    assert not left_out(FULL)


def test_the_estimate_adds_up():
    subject = find_subject("llama-70b")
    steps = [
        Step("a", "esr", lambda logs: {}, generations=100, verdicts=200),
        Step("b", "calibrate", lambda logs: {}, generations=10, verdicts=10),
        Step("c", "activations", lambda logs: {}, readings=5),
    ]
    found = estimate(steps, subject, PAPER_GRADER, speed=100.0)
    assert found.generations == 110 and found.verdicts == 210
    assert found.generated == 100 * 512 + 10 * 256
    # What a calibration asks for does not follow --max-tokens.
    short = subject.model_copy(update={"max_tokens": 12})
    assert estimate(steps, short, PAPER_GRADER).generated == 100 * 12 + 10 * 256
    assert found.hours == pytest.approx(found.generated / 100 / 3600)
    assert found.dollars == pytest.approx(
        (found.judge_read * 1.0 + found.judge_written * 5.0) / 1e6
    )
    unknown = estimate(steps, subject, "openai/some-model")
    assert unknown.hours is None and unknown.dollars is None
    assert estimate(steps, subject, "esr-judge/offline").dollars == 0
    assert estimate(steps, subject, "x/y", price=(2.0, 0.0)).dollars == pytest.approx(
        2 * found.judge_read / 1e6
    )


def test_choosing_checks_the_scale_and_the_latents(tmp_path):
    paper = EvalSet(find_subject("smollm2-135m"), {}, None, None, tmp_path)
    chosen = choose(
        paper, scale="tiny", seed=0, latents=None, detectors=None, vectors=None, graders=[]
    )
    # The embedded subject ships its strengths: nothing is left to calibrate.
    assert chosen.uncalibrated["calibrate"] == chosen.uncalibrated["calibrate_sweep"] == 0
    arguments = {"seed": 0, "detectors": None, "vectors": None, "graders": []}
    with pytest.raises(EsrError, match="there are tiny, small, full"):
        choose(paper, scale="huge", latents=None, **arguments)
    with pytest.raises(EsrError, match="takes 500 latents"):
        choose(paper, scale="full", latents=None, **arguments)
    other = EvalSet(find_subject("smollm2-135m"), {}, None, "other/judge", tmp_path)
    # Under another judge none of the shipped strengths holds.
    left = choose(other, scale="tiny", latents=None, **arguments).uncalibrated["calibrate"]
    prior = find_subject("smollm2-135m").calibration
    assert left == SCALES["tiny"].latents * (prior.rounds * prior.samples_per_round + 5)


def test_method_of_calibration_decides_what_the_estimate_counts(tmp_path):
    command = ["paper", "--dry-run", "--grader", "esr-judge/lexical", "--logs", str(tmp_path / "l")]
    said = {}
    for method in ("paper", "curve"):
        done = CliRunner().invoke(app, [*command, "--method", method])
        assert done.exit_code == 0, done.output
        said[method] = done.output
    line = {name: text[text.index("calibrate") :].split("\n")[0] for name, text in said.items()}
    assert str(SCALES["tiny"].latents * (20 + 5)) in line["paper"]
    assert str(SCALES["tiny"].latents * (8 + 5)) in line["curve"]
    assert "at most 13 responses a latent" in " ".join(said["curve"].split())
    assert "method=curve" not in said["paper"]


def test_latents_of_both_draws_are_calibrated_once(tmp_path):
    paper = EvalSet(find_subject("smollm2-135m"), {}, None, "other/judge", tmp_path)
    labels = tmp_path / "two.csv"
    labels.write_text("index_in_sae,label\n" + "".join(f"{i},word {i}\n" for i in range(12)))
    chosen = choose(
        paper,
        scale="tiny",
        seed=0,
        latents=str(labels),
        detectors=None,
        vectors=None,
        graders=[],
    )
    # The main run takes all twelve, so the sweep's three are among them.
    assert chosen.uncalibrated["calibrate"] > chosen.uncalibrated["calibrate_sweep"] == 0


def test_a_paper_names_its_own_option_where_labels_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("ESR_EVAL_CACHE", str(tmp_path))
    done = CliRunner().invoke(app, ["paper", "--model", "esr/gemma-2b", "--dry-run"])
    assert done.exit_code != 0
    said = " ".join(done.output.split())
    assert "pass --latents FILE.csv" in said and "-T" not in said


def test_further_judges_are_counted_at_their_own_price():
    subject = find_subject("llama-70b")
    own = Step("main", "esr", lambda logs: {}, verdicts=100)

    def dollars(*judges, price=None):
        asked = 100 * len(judges)
        further = Step("more", "cross_judge", lambda logs: {}, verdicts=asked, judges=judges)
        return estimate([own, further], subject, "esr-judge/offline", price=price).dollars

    paid = estimate([own], subject, PAPER_GRADER).dollars
    assert dollars("hf/some", PAPER_GRADER) == pytest.approx(paid) and paid > 0
    assert dollars("hf/some") == 0
    assert dollars("openai/some", PAPER_GRADER) is None
    assert dollars("openai/some", PAPER_GRADER, price=(1.0, 5.0)) == pytest.approx(3 * paid)


def test_the_estimate_counts_what_judging_again_takes():
    def main(share):
        steps = plan_steps(Choices(SCALES["full"], rejudge=share))
        return next(step for step in steps if step.key == "main")

    assert main(0.2).verdicts - main(0.0).verdicts == 3 * 500
    assert main(0.2).args({})["rejudge"] == 0.2


# Judging in batches


STEPS = [
    Step("main", "esr", lambda logs: {}, generations=100, verdicts=200),
    Step("calibrate", "calibrate", lambda logs: {}, generations=10, verdicts=100),
    Step("cross_judge", "cross_judge", lambda logs: {}, verdicts=100),
]


def test_in_batches_a_judge_costs_its_providers_part_where_a_step_can_wait():
    subject = find_subject("llama-70b")
    whole = estimate(STEPS, subject, PAPER_GRADER)
    cheaper = estimate(STEPS, subject, PAPER_GRADER, judge_batch=True)
    # Half of the 400 verdicts at half the price.
    assert cheaper.dollars == pytest.approx(0.75 * whole.dollars)
    assert cheaper.verdicts == whole.verdicts and cheaper.batched == 200
    assert "24 hours" in str(cheaper) and "24 hours" not in str(whole)
    price = (2.0, 4.0)
    one, other = (
        estimate(STEPS[:1], subject, "grok/some", price=price, judge_batch=batch).dollars
        for batch in (False, True)
    )
    assert one == other  # no reduction that holds for all its models
    assert estimate(STEPS, subject, "openai/some", judge_batch=True).dollars is None


def test_a_run_in_batches_asks_its_judge_so_and_the_subject_never(tmp_path, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "not-a-key")
    asked = {}

    def eval_set(task, **settings):
        asked[task.rpartition("/")[2]] = settings
        log = EvalLog.model_construct(status="success", location=f"{task}.eval", error=None)
        return True, [log]

    monkeypatch.setattr(paper_run, "eval_set", eval_set)
    run = EvalSet(find_subject("llama-70b"), {}, None, None, tmp_path, judge_batch=True)
    run_steps(run, STEPS, {}, lambda key: None)
    judge = asked["esr"]["model_roles"]["grader"]
    assert str(judge) == PAPER_GRADER and judge.config.batch is True
    assert asked["esr"]["max_samples"] >= 500  # trials that wait hold up no others
    for settings in asked.values():
        assert "batch" not in settings
    for task in ("calibrate", "cross_judge"):
        assert asked[task]["model_roles"] is None and asked[task]["max_samples"] is None


def planned_with(tmp_path, *more):
    arguments = ["paper", "--dry-run", "--log-dir", str(tmp_path / "logs"), *more]
    return CliRunner().invoke(app, arguments, env={"COLUMNS": "120"})


def test_the_estimate_tells_half_the_price_and_how_long_answers_can_take(tmp_path):
    judge = ("--grader", PAPER_GRADER)
    plain, batched = (planned_with(tmp_path, *judge, *more) for more in ((), ("--judge-batch",)))
    assert plain.exit_code == batched.exit_code == 0, batched.output
    said = " ".join(batched.output.split())
    assert "in batches, at 50 % of the list price: answers can take up to 24 hours" in said
    assert "in batches" not in plain.output
    rows = [
        {cells[0]: cells[-1] for line in one.output.splitlines() if (cells := line.split())}
        for one in (plain, batched)
    ]
    (full, half) = (float(row["main"]) for row in rows)
    assert half == pytest.approx(full / 2, abs=0.011) and full > 0
    assert rows[0]["calibrate"] == rows[1]["calibrate"]


def test_no_number_of_the_estimate_is_cut_at_80_columns():
    subject, print_to = find_subject("llama-70b"), Console(width=80, file=io.StringIO())
    steps = [
        Step("meta_resist_manipulation", "esr", lambda logs: {}, generations=4, verdicts=8),
        Step("main", "esr", lambda logs: {}, generations=150_000, verdicts=450_000),
    ]
    print_to.print(estimate_table("title", steps, [], subject, PAPER_GRADER, 40.0, None))
    lines = print_to.file.getvalue().splitlines()
    [main] = [line.split() for line in lines if line.startswith("main")]
    assert main == ["main", "150", "k", "83.5", "M", "450", "k", "639.9", "M", "533.33", "837.90"]
    assert not any("…" in line for line in lines)
    assert any("responses" in line and "dollars" in line for line in lines)


@pytest.mark.parametrize(
    ("grader", "why"),
    [
        ((), "runs on this machine and costs nothing"),
        (("--grader", "mockllm/model"), "its provider has no such mode"),
    ],
)
def test_a_judge_without_a_batch_mode_is_refused_in_one_sentence(tmp_path, grader, why):
    told = planned_with(tmp_path, *grader, "--judge-batch")
    said = " ".join(told.output.split())
    assert told.exit_code == 1 and "cannot be asked in batches" in said and why in said
    assert "responses" not in said
