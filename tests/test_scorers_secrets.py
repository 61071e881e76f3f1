"""Keys and tokens in foreign errors never reach a score."""

import time

import anyio
import pytest
from inspect_ai.model import get_model
from scoring import TASK, grader, output, run, trial

from esr_eval.errors import EsrError
from esr_eval.scorers.attempts import ask
from esr_eval.scorers.cleaning import without_secrets
from esr_eval.scorers.grader import judge_model
from esr_eval.scorers.improvement import improvement
from esr_eval.scorers.regions import regions
from esr_eval.scorers.replies import REASONS

SECRETS = {
    "OpenAI": ("Incorrect API key provided: {}. You can find it.", "sk-proj-abcDEF123456789_x"),
    "a key of no known form": ("Incorrect API key provided: {}.", "0a1b2c3d4e5f"),
    "Anthropic": ("invalid {} given", "sk-ant-api03-AbC-dEf_123456-xyzAA"),
    "partly masked": ("Incorrect key: {}", "sk-abcd************wxyz"),
    "bearer": ("Authorization: Bearer {}", "abc.DEF-123/+=="),
    "bearer alone": ("sent bearer {}", "abcdefghijk"),
    "basic": ('"authorization":"Basic {}"', "dXNlcjpwYXNzd29yZA=="),
    "a list of headers": ("[(b'x-api-key', b'{}'), (b'accept', b'*/*')]", "zzzz1111yyyy"),
    "header": ("headers={{'X-Api-Key': '{}', 'accept': 'x'}}", "zzzz1111yyyy"),
    "Azure": ("api-key: {}", "abcdef0123456789"),
    "escaped JSON": ('{{\\"api_key\\": \\"{}\\"}}', "qwertyuiop"),
    "environment": ("MY_SERVICE_API_KEY={} was refused", "plainvalue"),
    "Hugging Face": ("token {} is expired", "hf_abcdefGHIJKLmnopqr"),
    "Google": ("GET https://host.example/v1?alt=json&key={}", "AIzaSyD-1234567890abc"),
    "query": ("https://host.example/x?access_token={}&y=1", "short1"),
    "signed": ("https://b.example/x?X-Amz-Signature={}", "0123abcd"),
    "address": ("https://user:{}@host.example/v1 timed out", "pa55w0rd"),
    "token in an address": ("https://{}@host.example/v1", "t0ken1234"),
    "GitHub": ("bad credentials {}", "ghp_0123456789abcdefABCD"),
    "AWS": ("{} is not authorized", "AKIAIOSFODNN7EXAMPLE"),
    "AWS's second": ("aws_secret_access_key = {}", "abcDEF/ghi+12345"),
    "JWT": ("token {}", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-def_1"),
    "password": ("password: {}", "hunter22"),
}


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_secrets_are_masked_where_they_stand(text, secret):
    said = without_secrets(text.format(secret))
    assert secret not in said and secret[4:] not in said and "[secret]" in said


def test_values_of_key_variables_are_masked_however_they_are_written(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "p+q/r s=9")
    monkeypatch.setenv("HF_TOKEN", "letters only")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    said = without_secrets("p+q/r s=9, p%2Bq%2Fr%20s%3D9, p%2Bq%2Fr+s%3D9, letters only, false")
    assert said == "[secret], [secret], [secret], [secret], false"


@pytest.mark.parametrize(
    "text",
    [
        "Rate limit reached for gpt-5-mini in organization org-abc123 on tokens per min: 30000",
        "No [OPENAI_API_KEY] defined in the environment",
        "max_tokens: 4000 is too many; the key 'messages' is missing",
        "Connection refused: http://127.0.0.1:8000/v1/models?limit=10",
        "No module named 'sk-learn'; invalid x-api-key",
        "You can find your API key at https://platform.example/account",
    ],
)
def test_other_words_stay(text):
    assert without_secrets(text) == text


@pytest.mark.parametrize("part", ["sk-", "://", "?a.", "x-api-", "bearer ", "-----BEGIN KEY-----"])
def test_masking_takes_bounded_time(part):
    began = time.process_time()
    without_secrets(part * (1_000_000 // len(part)))
    assert time.process_time() - began < 10


ERROR = (
    "401: Incorrect API key provided: {0}. headers: {{'x-api-key': '{0}'}} https://u:{0}@h/?key={0}"
)


@pytest.mark.parametrize("key", ["sk-live-0123456789abcdef", "plainownkeyofnoform"])
def test_a_providers_error_is_told_without_its_key(key, monkeypatch):
    monkeypatch.setenv("PROVIDER_API_KEY", key)

    def refuse(*_):
        raise ValueError(ERROR.format(key))

    for judge in (grader(refuse), grader(lambda *_: failing(key))):
        found = anyio.run(ask, judge, TASK, "fire", "response")
        assert found.reason == "grader_error" and "401" in found.problem
        assert key not in found.problem


def failing(key):
    made = output("")
    made.error = ERROR.format(key)
    return made


def test_a_judges_own_key_is_masked_though_no_variable_has_it():
    def refuse(*_):
        raise ValueError("refused: ownkeyofnoform was sent")

    judge = get_model("mockllm/grader", custom_outputs=refuse, api_key="ownkeyofnoform")
    judge.api.api_key = "ownkeyofnoform"
    found = anyio.run(ask, judge, TASK, "fire", "response")
    assert "ownkeyofnoform" not in found.problem and "refused" in found.problem


def test_scores_of_failed_requests_hold_no_key_and_a_reason(tmp_path):
    key = "sk-live-0123456789abcdef"

    def refuse(*_):
        raise ValueError(ERROR.format(key))

    log = run([trial("text")], grader(refuse), tmp_path, scorer=[improvement(), regions()])
    for score in log.samples[0].scores.values():
        assert score.metadata["unscored_because"] in REASONS
        assert key not in score.model_dump_json() and "401" in score.explanation


def test_a_judge_that_cannot_be_built_is_told_without_its_key():
    with pytest.raises(EsrError) as caught:
        judge_model("no-such-provider/x?api_key=sk-live-0123456789abcdef")
    assert "0123456789abcdef" not in str(caught.value).split("cannot be used", 1)[1]
