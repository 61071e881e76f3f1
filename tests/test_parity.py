"""One suite for all backends: 24 requests, mixed in one batch, must come out token for token alike."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from parity_cases import N_TOKENS, boost, cases, rows

from esr_eval.spec import Readout, Steering
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling

CASES = cases()
NAMES = [case.name for case in CASES]
CLOSE = {"rtol": 2e-4, "atol": 2e-3}


@pytest.fixture(scope="session")
def reference(backend):
    """Every request by itself on the local backend, so that no neighbour can have a hand in it."""
    return [backend.generate([row])[0] for row in rows(backend.encode_chat, backend.runtime)]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("backend", id="local", marks=pytest.mark.model),
        pytest.param("ndif_backend", id="ndif", marks=pytest.mark.ndif),
        pytest.param("vllm_backend", id="vllm", marks=pytest.mark.vllm),
        pytest.param(
            "vllm_compiled_backend",
            id="vllm-compiled",
            marks=[pytest.mark.vllm, pytest.mark.heavy],
        ),
    ],
)
def engine(request):
    return request.getfixturevalue(request.param)


def generate(engine, wanted):
    """All requests at once: one batch, or one request each at the same time."""
    if engine.runtime.backend != "vllm":
        return engine.generate(wanted)
    with ThreadPoolExecutor(len(wanted)) as pool:
        return [one[0] for one in pool.map(engine.generate, [[row] for row in wanted])]


@pytest.fixture(scope="module")
def answers(engine):
    wanted = rows(engine.encode_chat, engine.runtime)
    for row in wanted:
        engine.check(row)
    return generate(engine, wanted)


def test_the_suite_asks_what_it_claims_to_ask(backend, reference):
    wanted = rows(backend.encode_chat, backend.runtime)
    assert len(CASES) == len(set(NAMES)) == 24
    assert sum(len(row.prompt) > 512 for row in wanted) == 2
    ended = {name for name, one in zip(NAMES, reference, strict=True) if one.stop_reason == "stop"}
    assert ended == {"early end, none", "early end, small boost"}
    # Edits matter: a prompt's steered and unsteered answers part within these few tokens.
    # The two long prompts would pad all others to their length.
    short = [at for at, row in enumerate(wanted) if row.steering and len(row.prompt) <= 512]
    free = backend.generate([Row(wanted[at].prompt, wanted[at].sampling, None) for at in short])
    same = [
        NAMES[at] for at, one in zip(short, free, strict=True) if one.tokens == reference[at].tokens
    ]
    assert len(same) <= 3, same


@pytest.mark.parametrize("number", range(24), ids=NAMES)
def test_tokens_receipts_and_readouts_equal_the_local_ones(answers, reference, number):
    got, want = answers[number], reference[number]
    assert got.tokens == want.tokens
    assert got.stop_reason == want.stop_reason
    assert got.edited_positions == got.expected_positions == want.expected_positions
    assert len(got.readouts) == len(want.readouts) == len(CASES[number].readouts)
    for ours, theirs in zip(got.readouts, want.readouts, strict=True):
        assert (ours.latents, ours.positions) == (theirs.latents, theirs.positions)
        np.testing.assert_allclose(ours.values, theirs.values, **CLOSE)


def test_a_steered_request_never_changes_a_later_unsteered_one(engine, backend):
    text = [{"role": "user", "content": "Tell me how to water a garden in a dry summer."}]
    prompt = tuple(engine.encode_chat(text, None))
    sampling = Sampling(3, 0.0, None, None, 1.1, N_TOKENS)
    plain = Row(prompt, sampling)
    steered = Row(prompt, sampling, Steering(runtime=engine.runtime, edits=(boost(),)))
    want = backend.generate([plain])[0].tokens
    for _ in range(2):
        changed = generate(engine, [steered])[0]
        assert changed.tokens != want
        assert changed.edited_positions == changed.expected_positions > 0
        assert generate(engine, [plain])[0].tokens == want


def test_readings_over_a_finished_answer_equal_the_local_ones(engine, backend):
    chat = [{"role": "user", "content": "Name three colours."}]
    answer = "Red, green and blue. Wait, that is off-topic; the answer is red."
    everything = (
        Readout(latents="all", layer=14, reduce="max", positions="generated"),
        Readout(latents=(8, 20), layer=14, reduce="tokens"),
        Readout(latents="norm", layer=20, reduce="tokens"),
        # Beyond the answer's end: no position at all.
        Readout(latents="all", layer=14, reduce="mean", from_token=999),
        Readout(latents=(8, 20), layer=14, reduce="rate", from_token=999),
        Readout(latents=(8, 20), layer=14, reduce="tokens", from_token=999),
        Readout(latents="norm", layer=20, from_token=999),
        Readout(latents="norm", layer=20, reduce="tokens", from_token=999),
    )
    spec = {"edits": (boost(),), "readouts": everything}
    got = engine.read([engine.passage(chat, answer, Steering(runtime=engine.runtime, **spec))])[0]
    want = backend.read([backend.passage(chat, answer, Steering(runtime=backend.runtime, **spec))])
    assert got.edited_positions == got.expected_positions == want[0].expected_positions
    assert (got.prompt_tokens, got.answer_tokens) == (want[0].prompt_tokens, want[0].answer_tokens)
    shapes = [(4096,), (2,), (2, 0), (1,), (1, 0)]
    assert [value.shape for value in got.values[3:]] == shapes
    assert not any(value.any() for value in got.values[3:])
    for ours, theirs in zip(got.values, want[0].values, strict=True):
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, theirs, **CLOSE)
