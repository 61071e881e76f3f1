import anyio
import pytest
from inspect_ai.model import ChatMessageUser, get_model
from inspect_ai.solver import TaskState

from esr_eval.data.trial import Trial
from esr_eval.errors import EsrError
from esr_eval.solvers import boost_of, provider_of, runtime_of, steered_generate, steering_config
from esr_eval.spec import Boost, Steering

TRIAL = Trial(
    condition="steered", latent=4, label="rain", strength=55.0, topic="plan a party", seed=9
)
UNSTEERED = TRIAL.model_copy(update={"condition": "unsteered", "strength": 0.0})


def model(**args):
    return get_model("esr/smollm2-135m", memoize=False, **args)


def test_the_trial_becomes_a_boost_at_the_steering_layer():
    runtime = runtime_of(model(steering_layer=20))
    assert boost_of(TRIAL, runtime) == (Boost(latent=4, strength=55.0, layer=20),)
    assert boost_of(UNSTEERED, runtime) == ()


def test_the_config_carries_the_whole_spec_and_leaves_length_to_the_task():
    subject = model(dtype="bfloat16")
    config = steering_config(subject, edits=boost_of(TRIAL, runtime_of(subject)), seed=9)
    spec = Steering.from_extra_body(config.extra_body)
    assert spec.runtime == runtime_of(subject) and spec.runtime.dtype == "bfloat16"
    assert (config.seed, config.max_tokens, config.temperature) == (9, None, None)


def test_only_our_provider_can_be_steered():
    with pytest.raises(EsrError, match="--model esr/NAME"):
        provider_of(get_model("mockllm/model"))


@pytest.mark.parametrize("trial", [TRIAL, UNSTEERED])
def test_steered_generate_asks_with_the_trials_seed_and_another_one_each_epoch(monkeypatch, trial):
    subject, asked = model(), []

    async def answer(messages, config):
        asked.append(config)
        from inspect_ai.model import ModelOutput

        return ModelOutput.from_content("esr/smollm2-135m", "An answer.")

    monkeypatch.setattr(subject, "generate", answer)
    monkeypatch.setattr("esr_eval.solvers.get_model", lambda: subject)
    for epoch in (1, 2):
        state = TaskState(
            model="esr/smollm2-135m",
            sample_id="x",
            epoch=epoch,
            input="How?",
            messages=[ChatMessageUser(content="How?")],
            metadata=trial.model_dump(),
        )
        state = anyio.run(steered_generate(), state, None)
        assert state.output.completion == state.messages[-1].text == "An answer."
    assert asked[0].seed == 9 and asked[1].seed not in (9, 10)
    edits = Steering.from_extra_body(asked[0].extra_body).edits
    assert edits == boost_of(trial, runtime_of(subject))
