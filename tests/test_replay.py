"""Trials of one log run again: the main task, real model, real logs."""

from pathlib import Path

import pytest
from evals import embedded

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError
from esr_eval.logs.replay import replay_log


def trials(log):
    return [Trial.model_validate(sample.metadata) for sample in log.samples]


@pytest.mark.model
def test_replay_pairs_conditions_trial_by_trial(tmp_path):
    first = embedded("esr", tmp_path, n_latents=2, trials_per_latent=2, strength="1.5x", seed=3)
    again = embedded("esr", tmp_path, replay=first.location)
    assert trials(again) == trials(first)
    assert [s.output.completion for s in again.samples] == [
        s.output.completion for s in first.samples
    ]
    assert again.eval.metadata["replay"]["eval_id"] == first.eval.eval_id

    off = embedded("esr", tmp_path, replay=first.location, steering=False)
    for mine, theirs in zip(trials(off), trials(first), strict=True):
        assert (mine.latent, mine.topic, mine.seed) == (theirs.latent, theirs.topic, theirs.seed)
        assert (mine.condition, mine.strength) == ("unsteered", 0.0)
    assert [s.id for s in off.samples] == [s.id for s in first.samples]
    with pytest.raises(EsrError, match="no strengths to replay"):
        replay_log(off.location, "steered")
    with pytest.raises(EsrError, match="leave out n_latents"):
        embedded("esr", tmp_path, replay=first.location, n_latents=2)


def test_what_cannot_be_replayed_is_one_sentence(tmp_path):
    with pytest.raises(EsrError, match="There is no log"):
        replay_log(str(tmp_path / "none.eval"))
    broken = Path(tmp_path / "broken.eval")
    broken.write_text("not a log", "utf-8")
    with pytest.raises(EsrError, match="cannot be read"):
        replay_log(str(broken))
