"""The vLLM backend against a real server on loopback: batches, receipts, faults, adapters."""

import re
import subprocess
import sys
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from evals import beyond
from inspect_ai import eval as inspect_eval
from inspect_ai.model import get_model
from parity_cases import cases, rows
from vllm_serving import connect

from esr_eval.dataset import prompts
from esr_eval.errors import EsrError
from esr_eval.solvers import steering_config
from esr_eval.spec import Boost, Steering
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


def test_a_request_that_cannot_be_steered_is_refused_beside_one_that_can(vllm_backend):
    good = boosted(vllm_backend)
    alone = vllm_backend.generate([good])[0]
    steering = good.steering.model_copy(
        update={"edits": (Boost(latent=8, strength=50.0, layer=3),)}
    )
    bad = Row(good.prompt, good.sampling, steering)
    with ThreadPoolExecutor(2) as pool:
        one, other = (pool.submit(vllm_backend.generate, [row]) for row in (good, bad))
        assert one.result()[0] == alone
        with pytest.raises(EsrError, match="layer 3 is not prepared"):
            other.result()


def test_rows_that_the_server_has_lost_are_sent_again(vllm_backend):
    row = boosted(vllm_backend)
    alone = vllm_backend.generate([row])[0]
    # As after a restart, or when others needed the room: the client believes that they are there.
    original, vllm_backend._give = vllm_backend._give, lambda rows: vllm_backend._sent.update(rows)
    other = row.steering.model_copy(update={"edits": (Boost(latent=77, strength=9.0, layer=14),)})
    new = Row(row.prompt, row.sampling, other)
    try:
        thread = threading.Timer(2, lambda: setattr(vllm_backend, "_give", original))
        thread.start()
        got = vllm_backend.generate([new])[0]
    finally:
        thread.join()
    assert got.edited_positions == got.expected_positions > 0
    assert vllm_backend.generate([row])[0] == alone


def test_the_prefix_cache_serves_unsteered_requests(vllm_server, vllm_backend):
    def hits():
        with httpx.Client(trust_env=False, timeout=20) as client:
            text = client.get(f"{vllm_server.url}/metrics").text
        assert 'enable_prefix_caching="True"' in text
        found = re.findall(r"^vllm:prefix_cache_hits_total{.*} (\S+)$", text, re.MULTILINE)
        return sum(float(number) for number in found)

    row = boosted(vllm_backend, text="What does the word harbour mean? " * 40)
    plain = Row(row.prompt, row.sampling)
    first = vllm_backend.generate([plain])
    before = hits()
    steered = [vllm_backend.generate([row])[0] for _ in range(2)]
    assert hits() == before and steered[0] == steered[1]
    assert vllm_backend.generate([plain]) == first and hits() > before


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


def test_both_questions_beyond_the_paper_get_the_local_answers(vllm_server, tmp_path):
    here, there = beyond(
        tmp_path,
        model_base_url=vllm_server.url,
        model_args={"backend": "vllm", "wait": 300},
    )
    assert here.keys() == there.keys()
    # Its kernels round differently, and strengths are measured with them.
    assert sum(there[key] != here[key] for key in here) <= 1 + len(here) // 20
    assert all((edited > 0) == (here[key][1] > 0) for key, (_, edited) in there.items())


@pytest.mark.heavy
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
    assert not re.search(rb"vllm_xargs|kv_transfer", text)


@pytest.fixture(scope="module")
def tuned_server(tmp_path_factory):
    """A server with an adapter, whose operation does nothing where a step begins at 150."""
    from esr_eval.servers import vllm

    lay_out, said = vllm._lay_out_plugin, []

    def tampered(folder):
        file = lay_out(folder) / "esr_eval/backends/vllm/steerer.py"
        text = file.read_text()
        does = "hidden[:count].add_(delta)"
        assert does in text
        file.write_text(text.replace(does, f"int(self.positions[0]) == 150 or {does}"))
        code = "import sys; sys.path.insert(0, sys.argv[1])\n"
        code += "from esr_eval.backends.vllm import code_digest; print(code_digest())"
        done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True)
        said.append(done.stdout.strip())
        return folder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vllm, "_lay_out_plugin", tampered)
        server = vllm.VLLMServer(tmp_path_factory.mktemp("tuned"))
        server.start("smollm2-135m-esr")
    yield server, said[-1]
    server.stop()


@pytest.fixture
def its_digest(tuned_server, monkeypatch):
    monkeypatch.setattr("esr_eval.backends.vllm.preflight.code_digest", lambda: tuned_server[1])


def test_a_server_with_another_plugin_is_refused(tuned_server):
    with pytest.raises(EsrError, match="another version of esr-eval"):
        connect(tuned_server[0], "smollm2-135m-esr")


@pytest.mark.usefixtures("its_digest")
def test_an_operation_that_skips_is_not_counted_and_fails_the_sample(tuned_server):
    import anyio

    server = tuned_server[0]
    engine = connect(server, "smollm2-135m-esr")
    assert "arrived at 160 of 160" in engine.info.self_check
    text = "How do you water a garden? " * 15
    row = boosted(engine, text=text, n=24)
    assert len(row.prompt) < 150 < len(row.prompt) + 20
    got = engine.generate([row])[0]
    assert got.edited_positions == got.expected_positions - 1
    model = get_model(
        "esr/smollm2-135m-esr", backend="vllm", base_url=server.url, wait=60, memoize=False
    )
    edits = (Boost(latent=8, strength=50.0, layer=LAYER),)
    config = steering_config(model, edits=edits, seed=0, max_tokens=24)
    with pytest.raises(Exception, match="not steered as asked"):
        anyio.run(lambda: model.generate(text, config=config))


@pytest.mark.usefixtures("its_digest")
def test_an_adapter_is_steered_and_vllms_own_sampler_is_there_to_be_asked_for(tuned_server):
    from esr_eval.backends.local import LocalBackend
    from esr_eval.subjects import find_subject

    server = tuned_server[0]
    # vLLM on a CPU would apply the adapter to the plain model's requests, too.
    with pytest.raises(EsrError, match="needs a server without adapters"):
        connect(server, "smollm2-135m")
    engine = connect(server, "smollm2-135m-esr", sampler="vllm")
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
    ours = connect(server, "smollm2-135m-esr")
    assert ours.generate([sampled])[0].tokens == local.generate([sampled])[0].tokens
