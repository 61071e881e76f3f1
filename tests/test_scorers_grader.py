import anyio
import pytest
from inspect_ai import Task
from inspect_ai import eval as inspect_eval
from inspect_ai.model import get_model
from inspect_ai.solver import generate
from scoring import TASK, grader, output, trial, verdict

from esr_eval.errors import EsrError
from esr_eval.scorers.attempts import MAX_TOKENS, ask, attempts
from esr_eval.scorers.grader import (
    BATCH_RATES,
    batch_rate,
    check_batches,
    default_grader,
    grader_model,
    in_batches,
)

RESPONSE = "Find a common denominator, then add the numerators."
GOOD = verdict(("Find a common", "add the numerators.", 92))


def judge(answers, response=RESPONSE):
    return anyio.run(ask, grader(answers), TASK, "fire", response)


def test_a_good_verdict_is_taken_at_once():
    found = judge([GOOD])
    assert [a.score for a in found.value.attempts] == [92]
    assert (found.retries, found.reason) == (0, None)


def test_a_bad_verdict_is_asked_for_once_more_and_told_why():
    seen = []

    def answer(messages, tools, choice, config):
        seen.append((messages, config))
        return "not json" if len(seen) == 1 else GOOD

    found = judge(answer)
    assert found.retries == 1 and found.value.attempts
    assert seen[0][1].temperature == 0 and seen[0][1].max_tokens == MAX_TOKENS
    assert seen[0][1].response_schema.name == "attempts"
    assert [m.role for m in seen[1][0]] == ["system", "user", "assistant", "user"]
    assert "not one JSON object" in seen[1][0][-1].text


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("I cannot grade this.", "refusal"),
        ("nonsense", "invalid_json"),
        (verdict(("Find a", "numerators.", 200)), "score_out_of_range"),
        (verdict(("Lose a", "numerators.", 20)), "quote_not_found"),
        (output("{", "max_tokens"), "truncated"),
        (output("", "content_filter"), "content_filter"),
        ("", "empty_output"),
    ],
)
def test_two_bad_verdicts_leave_the_trial_unscored(answer, reason):
    found = judge([answer, answer])
    assert (found.value, found.reason, found.retries) == (None, reason, 1)
    assert found.problem


def test_the_retry_after_truncation_has_more_room():
    rooms = []

    def answer(messages, tools, choice, config):
        rooms.append(config.max_tokens)
        return output("{", "max_tokens") if len(rooms) == 1 else GOOD

    assert judge(answer).value.attempts
    assert rooms == [MAX_TOKENS, 4 * MAX_TOKENS]


def test_the_retry_after_a_provider_error_drops_the_schema():
    schemas = []

    def answer(messages, tools, choice, config):
        schemas.append(config.response_schema)
        if len(schemas) == 1:
            raise ValueError("output_format is not supported")
        return GOOD

    assert judge(answer).value.attempts
    assert schemas[0] is not None and schemas[1] is None


def test_a_provider_that_keeps_failing_leaves_the_trial_unscored():
    def answer(messages, tools, choice, config):
        raise ValueError("down")

    found = judge(answer)
    assert found.reason == "grader_error" and "down" in found.problem


def test_a_grader_that_cannot_work_at_all_is_told_to_the_user():
    def answer(messages, tools, choice, config):
        raise EsrError("install it")

    with pytest.raises(EsrError, match="install it"):
        judge(answer)


def test_default_graders():
    hosted = "anthropic/claude-haiku-4-5-20251001"
    assert default_grader("esr/smollm2-135m") == "esr-judge/offline"
    assert default_grader("esr/llama-70b") == hosted
    assert default_grader("esr/Qwen/Qwen3-4B") == hosted
    assert default_grader("esr/gone") == hosted
    assert default_grader("mockllm/model") == hosted


def test_missing_key_is_one_sentence(monkeypatch):
    for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EsrError) as caught:
        grader_model("esr/llama-70b")
    assert "set ANTHROPIC_API_KEY" in str(caught.value)
    assert "--model-role grader=" in str(caught.value) and "\n" not in str(caught.value)


def test_the_embedded_subject_needs_no_key():
    assert str(grader_model("esr/smollm2-135m")) == "esr-judge/offline"


def test_a_grader_keeps_its_own_token_limit():
    rooms = []

    def answer(messages, tools, choice, config):
        rooms.append(config.max_tokens)
        return output(GOOD)

    from inspect_ai.model import GenerateConfig

    model = get_model(
        "mockllm/grader", custom_outputs=answer, config=GenerateConfig(max_tokens=9000)
    )
    anyio.run(ask, model, TASK, "fire", RESPONSE)
    assert rooms == [9000]


# Batch mode


def test_a_judge_in_batches_asks_so_and_the_model_under_test_does_not(monkeypatch, tmp_path):
    monkeypatch.setitem(BATCH_RATES, "mockllm", 0.5)
    asked = {}

    def saying(who, text):
        def answer(messages, tools, choice, config):
            asked[who] = config.batch
            return output(text)

        return answer

    judge = in_batches("mockllm/judge")
    judge.api.outputs = saying("judge", GOOD)
    [log] = inspect_eval(
        Task(dataset=[trial(RESPONSE)], solver=generate(), scorer=attempts()),
        model=get_model("mockllm/model", custom_outputs=saying("model", RESPONSE)),
        model_roles={"grader": judge},
        display="none",
        log_dir=str(tmp_path),
    )
    assert log.status == "success", log.error
    assert asked == {"model": None, "judge": True}


@pytest.mark.parametrize(
    ("name", "rate"),
    [
        ("anthropic/claude-haiku-4-5-20251001", 0.5),
        ("openai/gpt-5-mini", 0.5),
        ("google/gemini-3-flash", 0.5),
        ("together/meta-llama/Llama-3.3-70B", 1.0),
        ("anthropic/bedrock/claude", None),
        ("google/vertex/gemini", None),
        ("hf/some/model", None),
        ("esr-judge/offline", None),
        ("esr-judge/self", None),
    ],
)
def test_only_a_provider_with_a_batch_mode_is_asked_in_batches(name, rate):
    assert batch_rate(name) == rate
    if rate is None:
        with pytest.raises(EsrError, match=f"{name} cannot be asked in batches") as caught:
            check_batches(name)
        assert "--model-role grader=" in str(caught.value) and "\n" not in str(caught.value)
    else:
        check_batches(name)


def test_batches_that_a_role_asks_for_are_not_silently_left_out():
    with pytest.raises(EsrError, match="runs on this machine and costs nothing"):
        in_batches("esr-judge/offline")
