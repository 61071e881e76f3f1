"""The paired prefill test: planted effects through the real tasks, pairs, sentences, commands."""

import json
import re

import numpy as np
import pytest
from detection import DETECTORS, MODEL, PlantedSubject, install
from inspect_ai import eval as inspect_eval
from inspect_ai import score as inspect_score
from inspect_ai.log import read_eval_log, write_eval_log
from inspect_ai.model import ModelAPI, modelapi
from scoring import grader, means_of, output, run, trial, verdict
from typer.testing import CliRunner

from esr_eval._util.paths import CACHE_ENV
from esr_eval.cli import app
from esr_eval.dataset import prompts
from esr_eval.errors import EsrError
from esr_eval.logs.conditions import conditions_of
from esr_eval.logs.stored import read_logs
from esr_eval.report.evidence import compare_with_main
from esr_eval.report.page import write_report
from esr_eval.report.reach import what_can_be_seen
from esr_eval.report.recovery import RANDOM, recovered_scores, recoveries, spread_of_logs
from esr_eval.scorers.attempts import parse_request
from esr_eval.scorers.continuation import continuation
from esr_eval.spec import Boost, Clamp, Steering
from esr_eval.stats.power import least_difference

TOPICS = [prompt.topic for prompt in prompts("detector_discovery")[:8]]
ON_TOPIC = 3
"""This latent's steered answers are on topic all the same."""
EFFECT = 12


class Continuing(PlantedSubject):
    """Goes on from a beginning at a quality that its seed decides, and detectors held at 0 lower."""

    def generate(self, messages, config):
        spec = Steering.from_extra_body(config.extra_body)
        boosts = [edit for edit in spec.edits if isinstance(edit, Boost)]
        clamps = {edit.latent for edit in spec.edits if isinstance(edit, Clamp)}
        seed = config.seed or 0
        if boosts:
            quality = 80 if boosts[0].latent == ON_TOPIC else 20
            return output(f"Answer {seed} about the latent of quality {quality} in all.")
        if messages[-1].role != "assistant":
            return output(f"To {messages[-1].text} with seed {seed}: quality 90 in all.")
        lost = EFFECT if clamps & set(DETECTORS) else 0
        noise = seed % 7 if clamps else 0
        if seed % 11 == 0 and clamps & set(DETECTORS):
            return output("")
        return output(f" and on it goes, of quality {40 + seed % 30 - lost + noise} in all.")


@modelapi(name="quality-judge")
class QualityJudge(ModelAPI):
    """Scores the one attempt in a response by the last quality that it names."""

    async def generate(self, input, tools, tool_choice, config):
        response = parse_request(input).response
        score = int(re.findall(r"quality (\d+)", response)[-1])
        words = response.split()
        return output(verdict((" ".join(words[:4]), " ".join(words[-4:]), score)))


def go(folder, task, **task_args):
    [log] = inspect_eval(
        f"esr_eval/{task}",
        model=MODEL,
        model_roles={"grader": "quality-judge/plain"},
        task_args=task_args,
        log_dir=str(folder),
        display="none",
    )
    assert log.status == "success", log.error
    return log


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logs")
    labels = folder / "labels.csv"
    labels.write_text("index_in_sae,label\n" + "".join(f"{i},thing {i}\n" for i in range(1, 7)))
    with pytest.MonkeyPatch.context() as patch:
        subject = install(patch)
        subject.generate = Continuing.generate.__get__(subject)
        patch.setenv(CACHE_ENV, str(tmp_path_factory.mktemp("cache")))
        discovery = go(folder, "detectors", answers_per_task=2, topics=TOPICS).location
        plan = {"latents": str(labels), "trials_per_latent": 5, "strength": 20}
        main = go(folder, "esr", **plan).location
        args = {"source": main, "characters": 30}
        held = {**args, "detectors": discovery}
        made = {
            "main": main,
            "neither": go(folder, "prefill_control", **args).location,
            "detectors": go(folder, "prefill_control", **held).location,
        }
        for draw in (0, 1):
            made[f"random {draw}"] = go(
                folder, "prefill_control", **held, discovery=discovery, draw=draw
            ).location
        with pytest.raises(EsrError, match="pass those as detectors="):
            go(folder, "prefill_control", **args, discovery=discovery)
        with pytest.raises(EsrError, match="leave out detectors"):
            go(folder, "prefill_control", **held, mirror=True)
    return folder, made


@pytest.fixture(scope="module")
def conditions(logs):
    return conditions_of(read_logs([logs[0]], lambda text: None))


def test_the_arms_differ_in_nothing_but_what_is_held(logs):
    _, made = logs
    read = {name: read_eval_log(path) for name, path in made.items()}
    plain = {sample.id: sample for sample in read["neither"].samples}
    assert read["neither"].eval.metadata["condition"] == "steered prefill, no steering"
    assert read["detectors"].eval.metadata["condition"] == "steered prefill, ablated: silent_4"
    assert read["random 1"].eval.metadata["condition"] == "steered prefill, random set 2"
    held = {}
    for name in ("detectors", "random 0", "random 1"):
        log = read[name]
        assert log.eval.metadata["experiment_id"] == "prefill_ablation"
        held[name] = set(log.eval.metadata["ablation"]["latents"])
        assert {sample.id for sample in log.samples} == set(plain)
        for sample in log.samples:
            assert [m.text for m in sample.input] == [m.text for m in plain[sample.id].input]
            assert sample.metadata == plain[sample.id].metadata
            [event] = [
                e for e in sample.events if e.event == "model" and e.model.startswith("esr/")
            ]
            edits = Steering.from_extra_body(event.config.extra_body).edits
            assert {edit.latent for edit in edits} == held[name]
            assert all(isinstance(edit, Clamp) and edit.value == 0 for edit in edits)
    assert held["detectors"] == set(DETECTORS)
    assert all(len(latents) == 4 for latents in held.values())
    assert not held["random 0"] & held["random 1"]
    assert read["random 0"].eval.metadata["random_set"]["detectors"] == sorted(DETECTORS)


def test_the_continuation_is_scored_without_the_given_beginning(logs):
    log = read_eval_log(logs[1]["neither"])
    for sample in log.samples:
        seed = sample.metadata["seed"]
        value = sample.scores["continuation"].value
        assert value["recovered_score"] == 40 + seed % 30
        assert sample.metadata["source_score"] == (80 if sample.metadata["latent"] == 3 else 20)
        [attempt] = sample.scores["continuation"].metadata["attempts"]
        assert attempt["start"] <= 1, "places are those in what was added"
        # Beside it, the response as a whole is judged as ever.
        assert sample.scores["attempts"].value["first_score"] == 40 + seed % 30


def test_planted_loss_is_found_pair_by_pair_and_on_topic_beginnings_are_left_out(conditions):
    found = {(one.first.kind, one.second.kind): one for one in recoveries(conditions)}
    assert list(found) == [
        ("neither", "detectors"),
        ("neither", "random"),
        ("random", "detectors"),
    ]
    effect = found["neither", "detectors"]
    assert effect.pairs == 25 and effect.difference.clusters == 5
    assert effect.first.on_topic == effect.second.on_topic == 5
    assert effect.first.unknown == effect.first.unscored == effect.other_beginning == 0
    main, held = (
        next(one for one in conditions if word in one.name) for word in ("no steering", "ablated")
    )
    before, after = recovered_scores(main), recovered_scores(held)
    changes = {key: after[key] - before[key] for key in before if key.latent != ON_TOPIC}
    assert effect.difference.value == pytest.approx(np.mean(list(changes.values())))
    # Who adds nothing has recovered nothing: it counts, as 0.
    for key, change in changes.items():
        expected = -before[key] if key.seed % 11 == 0 else key.seed % 7 - EFFECT
        assert change == expected
    assert effect.difference.high < 0 and effect.holm < 0.05
    control = found["neither", "random"]
    assert control.second.name == "2 random sets held at 0 in turn"
    assert control.difference.value > 0
    assert effect.visible == pytest.approx(least_difference(effect.spread, 5))
    assert effect.holm >= effect.difference.p_value


def test_other_beginnings_make_no_pairs(logs, tmp_path):
    _, made = logs
    log = read_eval_log(made["detectors"])
    log.samples[0].input[-1].content += " changed"
    write_eval_log(log, str(tmp_path / "held.eval"))
    plain = read_eval_log(made["neither"])
    write_eval_log(plain, str(tmp_path / "plain.eval"))
    own = conditions_of(read_logs([tmp_path], lambda text: None))
    [one] = recoveries(own)
    assert one.pairs + one.other_beginning == 25
    assert one.other_beginning == (log.samples[0].metadata["latent"] != ON_TOPIC)
    # Beginnings of another length belong to another test.
    log.eval.metadata["characters"] = 99
    write_eval_log(log, str(tmp_path / "held.eval"))
    assert recoveries(conditions_of(read_logs([tmp_path], lambda text: None))) == []


def test_ablations_of_a_prefill_are_not_held_against_the_main_run(conditions):
    against = {one.condition.experiment.id for one in compare_with_main(conditions)}
    assert against == {"prefill_control"}


def test_page_and_commands_tell_the_pairs(logs, tmp_path):
    folder, made = logs
    write_report([folder], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    for said in (
        "silent_4 held at 0 less nothing held",
        "silent_4 held at 0 less 2 random sets held at 0 in turn",
        "5 whose answer&#39;s first attempt scored 50 or more",
        "18 to 62 of 100 and an effect of ablation of -1.5 (-5.0 to +2.0)",
        "would be seen in these pairs with a power of 80 %",
        "What these trials can show",
    ):
        assert said in page, said
    table = (tmp_path / "report" / "tables" / "recovered.csv").read_text("utf-8")
    assert table.count("\n") == 4
    env = {"COLUMNS": "220"}
    arms = [made["neither"], made["detectors"]]
    done = CliRunner().invoke(app, ["summary", *arms], env=env)
    assert done.exit_code == 0, done.output
    assert "Recovered scores, pair by pair" in done.output
    said = CliRunner().invoke(app, ["summary", made["main"]], env=env).output
    assert "Recovered scores" not in said
    spread = spread_of_logs(arms, "recovered_score", lambda text: None)
    args = ["power", "--scores", "--log", arms[0], "--log", arms[1], "--latents", "5"]
    done = CliRunner().invoke(app, [*args, "--trials-per-latent", "5"], env=env)
    assert done.exit_code == 0, done.output
    assert f"spread by {spread.deviation:.1f}" in done.output
    assert f"{least_difference(spread, 5):.1f}" in done.output
    with pytest.raises(EsrError, match="pass --log twice"):
        spread_of_logs(arms[:1], "recovered_score", lambda text: None)
    with pytest.raises(EsrError, match="no trials of several latents whose recovered_score"):
        spread_of_logs([made["main"], arms[0]], "recovered_score", lambda text: None)


def test_what_the_pairs_could_show_is_told(conditions):
    said = "\n".join(what_can_be_seen(conditions))
    [effect] = [
        one for one in recoveries(conditions) if RANDOM not in (one.first.kind, one.second.kind)
    ]
    assert f"difference of recovered scores of {effect.visible:.1f} points or more" in said
    # The planted main run never restarts.
    assert "multi-attempt rate 0.0 % of 30 trials (6 latents)" in said
    assert "no fall (a rate of 0 cannot fall)" in said


def test_logs_without_recovered_scores_are_scored_again(logs, tmp_path):
    _, made = logs
    for name in ("neither", "detectors"):
        log = read_eval_log(made[name])
        for sample in log.samples:
            del sample.scores["continuation"]
        write_eval_log(log, str(tmp_path / f"{name}.eval"))
    bare = conditions_of(read_logs([tmp_path], lambda text: None))
    assert recoveries(bare) == []
    write_report([tmp_path], tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text("utf-8")
    assert "inspect score LOG --scorer esr_eval/continuation" in page
    for name in ("neither", "detectors"):
        path = tmp_path / f"{name}.eval"
        again = inspect_score(read_eval_log(str(path)), continuation(), action="append")
        write_eval_log(again, str(path))
    [one] = recoveries(conditions_of(read_logs([tmp_path], lambda text: None)))
    assert one.pairs == 25 and one.difference.value < 0


def test_a_continuation_that_cannot_be_judged_is_counted(tmp_path):
    from inspect_ai.model import ChatMessageAssistant, ChatMessageUser

    def judge(messages, *_):
        response = parse_request(messages).response
        return "no verdict" if "riddle" in response else json.dumps({"attempts": []})

    def given(response, latent):
        sample = trial(response, latent, identifier=str(latent))
        sample.input = [ChatMessageUser(content="Add."), ChatMessageAssistant(content="Fish ")]
        return sample

    samples = [given("Fish swim.", 1), given("Fish riddle.", 2), given("Fish ", 3)]
    log = run([*samples, given(None, 4)], grader(judge), tmp_path, scorer=continuation())
    values = {sample.id: sample.scores["continuation"].value for sample in log.samples}
    assert values["1"]["recovered_score"] == values["3"]["recovered_score"] == 0
    assert values["1"]["no_attempt"] == values["3"]["no_attempt"] == 1
    assert values["2"]["unscored"] == 1 and np.isnan(values["2"]["recovered_score"])
    assert values["4"]["errored"] == 1
    assert means_of(log)["recovered_score"] == 0
    none = run([trial("Fish.", 1)], grader(judge), tmp_path, scorer=continuation())
    assert "was given no beginning" in str(none.samples[0].error or none.error)
