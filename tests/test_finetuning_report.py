"""Tables of tuned subjects: the shipped logs recomputed by hand, costs, mixes."""

import csv
import random
from dataclasses import replace
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
from inspect_ai.log import read_eval_log_sample_summaries
from scipy.stats import t as student
from typer.testing import CliRunner

from esr_eval.cli.finetune import app
from esr_eval.finetune.card import adapter_facts
from esr_eval.logs.conditions import conditions_of
from esr_eval.logs.stored import read_logs
from esr_eval.report.evidence import Evidence
from esr_eval.report.finetuning import boosted_table, cost_table, finetuning_of, finetuning_section

LOGS = Path(__file__).resolve().parent.parent / "logs" / "self-correction"
BASE, TUNED = "smollm2-135m", "smollm2-135m-esr"


def silent(text):
    raise AssertionError(text)


@pytest.fixture(scope="module")
def conditions():
    return conditions_of(read_logs([LOGS], silent))


@pytest.fixture(scope="module")
def by_hand():
    """Every log's trials from its raw scores, by subject and how long the boost was on."""
    found = {}
    for path in LOGS.glob("*.eval"):
        samples = read_eval_log_sample_summaries(str(path))
        [log] = read_logs([path], silent)
        off = samples[0].metadata["condition"] == "unsteered"
        boost = "off" if off else log.metadata.get("until_token") or "on"
        found[log.subject, boost] = {
            tuple(one.metadata[key] for key in ("latent", "topic", "seed")): one.scores[
                "attempts"
            ].value
            for one in samples
        }
    assert len(found) == 6 and all(len(trials) == 96 for trials in found.values())
    return found


def share(trials, key="multi_attempt"):
    return mean(one[key] for one in trials.values())


def spread_between(differences, trial_differences):
    """Half a clustered interval: latents are the units (Miller 2024)."""
    groups, center = differences, mean(trial_differences)
    totals = [sum(one - center for one in group) for group in groups]
    count, n = len(groups), len(trial_differences)
    error = np.sqrt(sum(t * t for t in totals) * count / (count - 1)) / n
    return student.ppf(0.975, count - 1) * error


def test_the_shipped_logs_give_the_figures_that_their_scores_say(conditions, by_hand):
    found = finetuning_of(conditions)
    rows = {(one.condition.subject, one.until_token or "on"): one for one in found.boosted}
    assert set(rows) == set(by_hand) - {(BASE, "off"), (TUNED, "off")}
    assert [one.tuned for one in found.boosted] == [False, False, True, True]
    for key, row in rows.items():
        assert row.condition.measures["multi_attempt"].value == share(by_hand[key])
        assert row.condition.measures["esr"].value == share(by_hand[key], "esr")
    assert share(by_hand[TUNED, "on"]) == 25 / 96 and share(by_hand[TUNED, 40]) == 26 / 96
    off = {name: share(by_hand[name, "off"]) for name in (BASE, TUNED)}
    assert off == {BASE: 0, TUNED: 1 / 96}
    for until in ("on", 40):
        row, restarts = rows[TUNED, until], share(by_hand[TUNED, until])
        assert row.over_unsteered.value == pytest.approx(restarts - off[TUNED])
        assert row.over_base.value == pytest.approx(restarts - share(by_hand[BASE, until]))
        assert row.over_base.low > 0.1  # what the shipped adapter is held to
    base = rows[BASE, "on"]
    assert base.over_base is None and base.over_unsteered.value == 0


def test_the_cost_is_tuned_less_base_over_the_same_trials(conditions, by_hand):
    base, tuned = by_hand[BASE, "off"], by_hand[TUNED, "off"]
    changes = {key: tuned[key]["first_score"] - base[key]["first_score"] for key in base}
    [none, one] = finetuning_of(conditions).unboosted
    assert none.first_score is None and not none.tuned and one.tuned
    assert one.first_score.n == 96 and one.first_score.value == pytest.approx(
        mean(changes.values())
    )
    assert one.first_score.value == pytest.approx(1.59375)
    latents = {key[0] for key in changes}
    groups = [[v for key, v in changes.items() if key[0] == latent] for latent in latents]
    half = spread_between(groups, list(changes.values()))
    assert one.first_score.low == pytest.approx(one.first_score.value - half)
    assert one.first_score.high == pytest.approx(one.first_score.value + half)
    assert one.over_base.value == pytest.approx(1 / 96)


def test_a_subject_made_worse_has_a_cost_below_zero(conditions):
    worse = []
    for one in conditions:
        trials = one.trials.copy()
        if one.runtime.get("adapter"):
            trials["first_score"] = trials["first_score"] - 20
        worse.append(replace(one, trials=trials))
    [_, cost] = finetuning_of(worse).unboosted
    assert cost.first_score.value == pytest.approx(1.59375 - 20) and cost.first_score.high < 0
    assert cost_table(finetuning_of(worse)).rows[1][5].startswith("-18.4 (")


def test_only_trials_that_both_have_are_compared(conditions):
    half = []
    for one in conditions:
        keep = one.trials["latent"] > one.trials["latent"].median()
        half.append(replace(one, trials=one.trials[keep]) if not _tuned(one) else one)
    [_, cost] = finetuning_of(half).unboosted
    assert cost.first_score.n < 96 and cost.first_score.n == len(half[0].trials)
    apart = [replace(one, judge="another") if not _tuned(one) else one for one in conditions]
    found = finetuning_of(apart)
    assert {one.name for one in found.boosted} == {f"{TUNED}, 40 %"}
    assert all(one.over_base is None and one.over_unsteered for one in found.boosted)
    assert [one.first_score for one in found.unboosted] == [None]


def test_without_a_tuned_subject_there_is_no_section(conditions):
    base = [one for one in conditions if not _tuned(one)]
    assert finetuning_of(base) is None
    assert finetuning_section(Evidence([], base, [])) is None


def test_one_adapter_has_tables_and_several_mixes_have_curves(conditions):
    section = finetuning_section(Evidence([], conditions, []))
    assert [part.kind for part in section.parts] == ["table", "table"]
    text = " ".join(section.answers)
    assert "26.0 % (14.3 to 42.7) restart" in text and "+1.6 (+0.2 to +3.0)" in text
    assert "the boost off after 40 tokens" in text

    swept = [one for one in conditions if not _tuned(one)]
    rng = random.Random(0)
    for mix in (10, 30, 50):
        for one in (one for one in conditions if _tuned(one)):
            trials = one.trials.sample(frac=0.5 + mix / 100, random_state=rng.randrange(100))
            swept.append(_as_mix(replace(one, trials=trials), mix))
    section = finetuning_section(Evidence([], swept, []))
    [pictures] = [part for part in section.parts if part.kind == "pictures"]
    rates, cost = pictures.pictures
    for said in ("boost on: ", "boost off: ", "boost off after 40 tokens: ", "at +10 (n = 58)"):
        assert said in rates.alt
    assert "first score, less the base's: " in cost.alt and "at +50" in cost.alt
    names = [row[0] for row in boosted_table(finetuning_of(swept)).rows]
    mixes = [f"{TUNED}, {mix} %" for mix in (10, 30, 50) for _ in range(2)]
    assert names == [BASE, BASE, *mixes]


def test_the_command_prints_the_tables_and_writes_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "240")
    result = CliRunner().invoke(app, ["table", str(LOGS), "--csv", str(tmp_path / "t.csv")])
    assert result.exit_code == 0, result.output
    for said in ("26.0 % (14.3 to 42.7)", "+25.0 points (+11.5 to +39.6)", "+1.6 (+0.2 to +3.0)"):
        assert said in result.output
    with (tmp_path / "t.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    [cost] = [line for line in lines if line["metric"] == "first_score_less_base"]
    assert float(cost["value"]) == 1.59375 and cost["boost"] == "off"
    base = next(LOGS.glob("*_esr_*.eval"))
    refused = CliRunner().invoke(app, ["table", str(base)])
    assert refused.exit_code == 1 and "fine-tuned subject" in refused.output


def test_an_adapter_tells_of_its_training_by_its_facts_or_its_card(tmp_path):
    shipped = adapter_facts("embedded:smollm2-135m-esr")
    told = {"mix_percent": 40, "examples": 392, "steps": 98, "preset": "embedded", "boosted": True}
    assert shipped.model_dump() == told
    assert adapter_facts("someone/self-correction") is None
    (tmp_path / "README.md").write_text("# Another's adapter\n\n| steps | many |\n")
    assert adapter_facts(str(tmp_path)) is None


def _tuned(one):
    return bool(one.runtime.get("adapter"))


def _as_mix(one, mix):
    """The condition as if its adapter had been trained on this mix."""
    header = one.log.header.model_copy(deep=True)
    header.eval.metadata["adapter"] = {"mix_percent": mix}
    header.eval.metadata["runtime"]["adapter"] = f"/somewhere/mix-{mix}"
    return replace(one, log=replace(one.log, header=header))
