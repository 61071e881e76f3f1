"""The vLLM backend against a real server on loopback: batches, receipts, faults, adapters."""

import base64
import json
import pickle
import re
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from inspect_ai import eval as inspect_eval
from inspect_ai.model import get_model
from parity_cases import cases, rows
from vllm_serving import connect

from esr_eval.dataset import prompts
from esr_eval.errors import EsrError
from esr_eval.solvers import steering_config
from esr_eval.spec import Boost, Steering
from esr_eval.steering.plan import plan_batch
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling, gumbel_noise

pytestmark = [pytest.mark.vllm, pytest.mark.model]
LAYER = 14


def boosted(engine, seed=0, text="How do you water a garden?", n=24, temperature=0.6):
    prompt = tuple(engine.encode_chat([{"role": "user", "content": text}], None))
    edits = (Boost(latent=8, strength=50.0, layer=LAYER),)
    return Row(
        prompt,
        Sampling(seed, temperature, None, None, 1.1, n),
        Steering(runtime=engine.runtime, edits=edits),
    )


def test_a_row_beside_others_equals_the_row_alone(vllm_backend):
    wanted = rows(vllm_backend.encode_chat, vllm_backend.runtime)[::3]
    with ThreadPoolExecutor(len(wanted)) as pool:
        together = list(pool.map(lambda row: vllm_backend.generate([row])[0], wanted))
    assert together == [vllm_backend.generate([row])[0] for row in wanted]
    assert len({case.sampled for case in cases()[::3]}) == 2


def test_a_token_limit_reached_and_an_end_of_the_models_own(vllm_backend):
    row = boosted(vllm_backend, n=16)
    whole = vllm_backend.generate([row])[0]
    assert (whole.stop_reason, len(whole.tokens)) == ("max_tokens", 16)
    at = next(i for i in range(4, 16) if whole.tokens[i] not in whole.tokens[:i])
    try:
        ends, vllm_backend.ends = vllm_backend.ends, [whole.tokens[at]]
        cut = vllm_backend.generate([row])[0]
    finally:
        vllm_backend.ends = ends
    assert (cut.stop_reason, cut.tokens) == ("stop", whole.tokens[:at])
    assert cut.edited_positions == cut.expected_positions == len(row.prompt) - 1 + at


def test_the_server_listens_on_loopback_alone_and_checks_itself(vllm_server):
    assert all(ip == "127.0.0.1" for ip, _ in vllm_server.listening())
    told = vllm_server.check()
    assert "smollm2-135m in float32" in told and "moved the logits" in told
    assert re.search(r"sampler esr-eval \w{16}", told)


def failing_hook():
    """Somebody else's hook, which raises at our layer: vLLM-lens then drops the whole batch."""

    class Failing:
        def __reduce__(self):
            return eval, ("lambda ctx, hidden: 1 / 0",)

    code = base64.b64encode(pickle.dumps(Failing())).decode()
    return json.dumps([{"fn": {"cloudpickle": code}, "layer_indices": [LAYER], "pre": False}])


@pytest.mark.parametrize("ours_first", [False, True])
def test_an_edit_that_the_server_dropped_fails_the_sample(vllm_server, vllm_backend, ours_first):
    foreign = {
        "model": "smollm2-135m",
        "prompt": [1, 2, 3],
        "max_tokens": 40,
        "ignore_eos": True,
        "vllm_xargs": {"apply_hooks": failing_hook()},
    }

    def disturb():
        with httpx.Client(trust_env=False, timeout=120) as client:
            client.post(f"{vllm_server.url}/v1/completions", json=foreign).raise_for_status()

    row = boosted(vllm_backend, n=60 if ours_first else 16)
    alone = vllm_backend.generate([row])[0]
    with ThreadPoolExecutor(2) as pool:
        first, second = (
            (lambda: vllm_backend.generate([row])[0], disturb)
            if ours_first
            else (disturb, lambda: vllm_backend.generate([row])[0])
        )
        one = pool.submit(first)
        time.sleep(0.7)
        other = pool.submit(second)
        result = (one if ours_first else other).result()
        one.result(), other.result()
    assert result.edited_positions < result.expected_positions
    again = vllm_backend.generate([row])[0]
    assert again == alone and again.edited_positions == again.expected_positions


def test_inspects_sample_fails_when_the_receipt_is_short(vllm_server, monkeypatch):
    import anyio

    model = get_model(
        "esr/smollm2-135m", backend="vllm", base_url=vllm_server.url, wait=60, memoize=False
    )
    edits = (Boost(latent=8, strength=50.0, layer=LAYER),)
    config = steering_config(model, edits=edits, seed=0, max_tokens=4)
    assert anyio.run(lambda: model.generate("Hi", config=config)).metadata["edited_positions"] > 0
    # The server's own confirmation of the last position goes missing.
    monkeypatch.setattr(
        "esr_eval.backends.vllm.payload.Saved._sure", lambda saved, key: set(range(5))
    )
    with pytest.raises(Exception, match="not steered as asked"):
        anyio.run(lambda: model.generate("Hi", config=config))


def test_a_hook_that_fails_on_the_server_fails_its_own_request_only(vllm_backend, monkeypatch):
    good, bad = boosted(vllm_backend), boosted(vllm_backend, seed=1)
    alone = vllm_backend.generate([good])[0]

    def narrow(rows, *args):
        plan = plan_batch(rows, *args)
        if rows[0] is bad:
            plan.edits[LAYER].directions = plan.edits[LAYER].directions[..., :99]
        return plan

    monkeypatch.setattr("esr_eval.backends.vllm.backend.plan_batch", narrow)
    with ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(vllm_backend.generate, [row]) for row in (good, bad))
        assert one.result()[0] == alone
        with pytest.raises(RuntimeError, match="hook failed on the vLLM server"):
            other.result()


def test_what_does_not_fit_the_server_is_told_at_the_connection(vllm_server, monkeypatch):
    from esr_eval import subjects

    known = subjects.subjects()["smollm2-135m"]
    adapter = subjects.subjects()["smollm2-135m-esr"].adapter
    for changes, sentence in [
        ({"dtype": "bfloat16"}, "computes in float32, but bfloat16 is asked for"),
        ({"adapter": adapter}, f"without the adapter {adapter}"),
    ]:
        other = known.model_copy(update=changes)
        monkeypatch.setattr(subjects, "subjects", lambda other=other: {"smollm2-135m": other})
        with pytest.raises(EsrError, match=sentence):
            connect(vllm_server, "smollm2-135m")


def test_mean_residuals_equal_the_local_ones(vllm_backend, backend):
    passages = [
        vllm_backend.passage([{"role": "user", "content": "Hi"}], text, Steering(runtime=e.runtime))
        for e, text in ((vllm_backend, "Good day to you."), (vllm_backend, "No."))
    ]
    for got, want in zip(
        vllm_backend.mean_residuals(passages, LAYER),
        backend.mean_residuals(passages, LAYER),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def forty(log_dir, **model):
    [log] = inspect_eval(
        "esr_eval/esr",
        model="esr/smollm2-135m",
        task_args={"n_latents": 10, "trials_per_latent": 4, "seed": 7},
        max_tokens=24,
        log_dir=str(log_dir),
        display="none",
        **model,
    )
    assert log.status == "success", log.error
    return log


def check_that_rounding_parted(backend, vllm_backend, sample):
    """The first token that differs is second best here, by a hair's breadth.

    vLLM's kernels round differently, by some 1e-5 of a logit.
    """
    [asked] = [e for e in sample.events if e.event == "model" and e.model == "esr/smollm2-135m"]
    chat = [{"role": m.role, "content": m.text} for m in asked.input]

    def row(engine):
        spec = Steering.from_extra_body(asked.config.extra_body)
        runtime = spec.runtime.model_copy(update={"backend": engine.runtime.backend})
        return Row(
            tuple(engine.encode_chat(chat, None)),
            Sampling(asked.config.seed, asked.config.temperature, None, None, 1.1, 24),
            spec.model_copy(update={"runtime": runtime}),
        )

    got = vllm_backend.generate([row(vllm_backend)])[0].tokens
    want = backend.generate([row(backend)])[0].tokens
    if got == want:  # by itself the request comes out alike
        return
    at = next(i for i, pair in enumerate(zip(got, want, strict=False)) if len(set(pair)) > 1)

    def tilted(keys, steps, vocabulary):
        noise = gumbel_noise(keys, steps, vocabulary)
        noise[steps == at, got[at]] += 3e-4
        return noise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esr_eval.steering.sampling.gumbel_noise", tilted)
        assert backend.generate([row(backend)])[0].tokens[at] == got[at], (at, got[at], want[at])


def test_a_server_killed_in_the_middle_of_40_samples_and_restarted(
    vllm_server, vllm_backend, backend, tmp_path
):
    done = "vllm:request_success_total"

    def finished():
        with httpx.Client(trust_env=False, timeout=20) as client:
            text = client.get(f"{vllm_server.url}/metrics").text
        return sum(float(n) for n in re.findall(rf"^{done}{{.*}} (\S+)$", text, re.MULTILINE))

    before, at_kill = finished(), []

    def kill_and_bring_back():
        while (now := finished()) < before + 18:
            time.sleep(0.2)
        at_kill.append(now - before)
        vllm_server.kill()
        vllm_server.bring_back()

    fault = threading.Thread(target=kill_and_bring_back)
    fault.start()
    try:
        remote = forty(
            tmp_path / "vllm",
            model_args={"backend": "vllm", "wait": 500},
            model_base_url=vllm_server.url,
            max_connections=8,
        )
    finally:
        fault.join(timeout=600)
    # Some were done before the fault (the checks at the connection are 5 requests), not all.
    assert 18 <= at_kill[0] < 45
    local = forty(tmp_path / "local", model_args={"device": "cpu"})

    samples = remote.samples
    assert len(samples) == len({(one.id, one.epoch) for one in samples}) == 40
    assert not any(one.error or one.error_retries for one in samples)
    for sample in samples:
        made = [e for e in sample.events if e.event == "model" and e.model == "esr/smollm2-135m"]
        assert len(made) == 1
        assert sample.output.metadata["edited_positions"] > 0
        assert sample.output.metadata["versions"]["sampler"].startswith("esr-eval")
    want = {sample.id: sample.output.completion for sample in local.samples}
    assert set(want) == {sample.id for sample in samples}
    parted = [sample for sample in samples if sample.output.completion != want[sample.id]]
    assert len(parted) <= 1
    for sample in parted:
        check_that_rounding_parted(backend, vllm_backend, sample)

    [file] = (tmp_path / "vllm").glob("*.eval")
    with zipfile.ZipFile(file) as log:
        text = b"".join(log.read(name) for name in log.namelist())
    assert not re.search(rb"apply_hooks|cloudpickle|vllm_xargs|esr_sampling", text)


@pytest.fixture(scope="module")
def foreign_server(tmp_path_factory):
    """As others would start one: prefix cache on, without our sampler, and with an adapter."""
    from esr_eval.servers.vllm import VLLMServer

    server = VLLMServer(tmp_path_factory.mktemp("foreign"))
    server.start("smollm2-135m-esr", options=["--enable-prefix-caching"], our_sampler=False)
    yield server
    server.stop()


def test_a_foreign_server_is_refused_for_its_prefix_cache_and_else_used(
    foreign_server, monkeypatch
):
    from esr_eval.backends.local import LocalBackend
    from esr_eval.subjects import find_subject

    with pytest.raises(EsrError, match="keeps a prefix cache, through which"):
        connect(foreign_server, "smollm2-135m-esr")
    # A server that keeps quiet about it is caught at work.
    monkeypatch.setattr("esr_eval.backends.vllm.preflight._check_prefix_cache", lambda server: None)
    with pytest.raises(EsrError, match="keeps a prefix cache, through which"):
        connect(foreign_server, "smollm2-135m-esr")
    # vLLM on a CPU would apply the adapter to the plain model's requests, too.
    with pytest.raises(EsrError, match="needs a server without adapters"):
        connect(foreign_server, "smollm2-135m")
    monkeypatch.setattr("esr_eval.backends.vllm.preflight.SAME_SHARE", float("inf"))
    engine = connect(foreign_server, "smollm2-135m-esr")
    assert engine.runtime.adapter == "embedded:smollm2-135m-esr"
    assert engine.info.versions["sampler"] == "vllm"
    # Greedy tokens are the local ones all the same, adapter and repetition penalty included.
    texts = [prompt.text for prompt in prompts()[:3]]
    wanted = [boosted(engine, text=text, temperature=0.0) for text in texts]
    local = LocalBackend(find_subject("smollm2-135m-esr").runtime(), device="cpu")
    got = engine.generate(wanted)
    assert [one.tokens for one in got] == [one.tokens for one in local.generate(wanted)]
    assert [one.edited_positions for one in got] == [one.expected_positions for one in got]
    sampled = boosted(engine, temperature=1.0)
    assert engine.generate([sampled]) == engine.generate([sampled])
