"""The NDIF backend against the real server on loopback: equal tokens, and every fault it can have."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import torch
from evals import beyond
from inspect_ai import eval as inspect_eval
from parity_cases import boost, rows

from esr_eval.backends.ndif.backend import NDIFBackend
from esr_eval.backends.ndif.client import Client
from esr_eval.backends.remote import RemoteArgs
from esr_eval.errors import EsrError
from esr_eval.spec import Readout, Steering
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling
from esr_eval.subjects import find_subject

pytestmark = [pytest.mark.ndif, pytest.mark.model]
LONG = 150
CUT_SECONDS = 60.0


def boosted(engine, n=24, seed=0, text="How do you water a garden?"):
    prompt = tuple(engine.encode_chat([{"role": "user", "content": text}], None))
    steering = Steering(runtime=engine.runtime, edits=(boost(),))
    return Row(prompt, Sampling(seed, 0.6, None, None, 1.1, n), steering)


@pytest.fixture(scope="module")
def want(backend):
    """What the long request must come to, whatever happens on the way."""
    return backend.generate([boosted(backend, LONG)])[0]


@pytest.fixture
def asked(ndif_backend):
    """The backend with what it reports, its retries counted from 0."""
    client, said = ndif_backend._client, []
    before = client._report
    client._report, client.retries = lambda caption, text: said.append(text), 0
    yield ndif_backend, said
    client._report = before


def wait_for(condition, seconds=120.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def under_way(asked, n=LONG):
    """The long request in a thread, handed over once the model works on it."""
    engine, said = asked
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(engine.generate, [boosted(engine, n)])
        wait_for(lambda: any(text.startswith("running") for text in said))
        yield future


def check_same(got, want):
    assert got.tokens == want.tokens
    assert got.edited_positions == got.expected_positions == want.edited_positions


# As it should be


def test_the_server_listens_on_loopback_alone_and_checks_itself(ndif_server):
    ndif_server.check_loopback()
    assert len(ndif_server.listening()) >= 4
    assert "RUNNING" in ndif_server.check()


def test_the_client_holds_no_weights_and_no_sae(ndif_backend):
    module = ndif_backend._model._lm._module
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    assert ndif_backend.sae._full is None
    assert "moved the logits" in ndif_backend.info.self_check
    assert ndif_backend.info.versions["server nnsight"] == ndif_backend.info.versions["nnsight"]


def test_queue_state_and_server_seconds_are_shown(asked):
    engine, said = asked
    before = engine._client.server_seconds
    engine.generate([boosted(engine, 2)])
    assert any(text.startswith("running") for text in said)
    assert said[-1].startswith("done in ")
    assert engine._client.server_seconds > before


def test_requests_beside_each_other_keep_their_own_rows(ndif_backend):
    wanted = rows(ndif_backend.encode_chat, ndif_backend.runtime)
    wanted = [row for row in wanted if len(row.prompt) < 100][:8]
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(ndif_backend.generate, [wanted[i : i + 2] for i in range(0, 8, 2)]))
    together = ndif_backend.generate(wanted)
    assert [one for part in parts for one in part] == together


def test_a_result_of_more_than_8_mib_comes_whole(ndif_backend, backend):
    answer = " ".join(f"The {i}th jar of the shelf holds {3 * i} grams of salt." for i in range(55))
    chat = [{"role": "user", "content": "List the jars."}]
    whole = Readout(latents="all", layer=14, reduce="max")

    def passage(engine):
        spec = Steering(runtime=engine.runtime, edits=(boost(),), readouts=(whole,))
        return engine.passage(chat, answer, spec)

    assert ndif_backend._residual_bytes(passage(ndif_backend)) * 5 > 8 << 20
    got = ndif_backend.read([passage(ndif_backend)] * 5)
    [one] = backend.read([passage(backend)])
    for reading in got:
        assert reading.edited_positions == reading.expected_positions == one.edited_positions
        np.testing.assert_allclose(reading.values[0], one.values[0], rtol=2e-4, atol=2e-3)


def test_an_adapter_of_this_machine_is_read_by_the_server_of_this_machine(ndif_server):
    from esr_eval.backends.local import LocalBackend

    runtime = find_subject("smollm2-135m-esr").runtime()
    local = LocalBackend(runtime, "cpu")
    remote = NDIFBackend(
        runtime.model_copy(update={"backend": "ndif"}), RemoteArgs(base_url=ndif_server.url)
    )
    want = local.generate([boosted(local)])[0]
    check_same(remote.generate([boosted(remote)])[0], want)


def test_after_an_adapter_the_base_is_itself_again(ndif_backend, want):
    check_same(ndif_backend.generate([boosted(ndif_backend, LONG)])[0], want)


def test_another_model_than_the_deployed_one_is_refused(ndif_server, tmp_path):
    from transformers import AutoConfig, AutoTokenizer

    from esr_eval.model.loading import model_source

    runtime = find_subject("smollm2-135m").runtime()
    source, _ = model_source(runtime)
    for part in (AutoConfig, AutoTokenizer):
        part.from_pretrained(source).save_pretrained(tmp_path)
    other = runtime.model_copy(update={"backend": "ndif", "model": str(tmp_path)})
    with pytest.raises(EsrError, match="is not deployed on NDIF"):
        NDIFBackend(other, RemoteArgs(base_url=ndif_server.url))


def test_another_precision_than_the_deployed_one_is_refused(ndif_server):
    runtime = find_subject("smollm2-135m").runtime()
    other = runtime.model_copy(update={"backend": "ndif", "dtype": "bfloat16"})
    with pytest.raises(EsrError, match="in float32, not bfloat16: pass -M dtype=float32"):
        NDIFBackend(other, RemoteArgs(base_url=ndif_server.url))


def test_the_key_check_runs_nothing(ndif_server):
    client = Client(RemoteArgs(base_url=ndif_server.url))
    assert client.post({"model_key": "none"}, payload=None).status_code == 422


# Faults


def test_the_interface_killed_in_the_middle_of_a_request_and_back(asked, ndif_server, want):
    with under_way(asked) as future:
        ndif_server.kill("api")
        time.sleep(3.0)
        ndif_server.bring_back()
        # The model is still busy with the request of before: this one must wait, not fail.
        engine, _ = asked
        other = engine.generate([boosted(engine, 24)])[0]
        check_same(future.result(300)[0], want)
    assert other.tokens == want.tokens[:24]


def test_the_models_process_killed_in_the_middle_of_a_request(asked, ndif_server, want):
    with under_way(asked) as future:
        ndif_server.kill_worker()
        check_same(future.result(300)[0], want)


def test_everything_killed_in_the_middle_of_a_request_and_back(asked, ndif_server, want):
    engine, said = asked
    with under_way(asked) as future:
        ndif_server.kill()
        ndif_server.bring_back()
        check_same(future.result(300)[0], want)
    assert engine._client.retries >= 1
    assert any(text.startswith("no contact") for text in said)


def test_a_request_that_nobody_takes_is_sent_again(ndif_server, backend):
    runtime = find_subject("smollm2-135m").runtime().model_copy(update={"backend": "ndif"})
    engine = NDIFBackend(runtime, RemoteArgs(base_url=ndif_server.url, wait=30))
    row = boosted(engine, 8)
    for process in ndif_server.members("api"):
        if "spawn_main" in " ".join(process.cmdline()):
            process.kill()  # the dispatcher: the interface goes on taking requests
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(engine.generate, [row])
        wait_for(lambda: engine._client.retries == 1)
        ndif_server.kill("api")
        ndif_server.bring_back()
        [got] = future.result(300)
    assert got.tokens == backend.generate([boosted(backend, 8)])[0].tokens


class Wire:
    """A network between client and server, which can be cut."""

    def __init__(self, url):
        self._target = (urlsplit(url).hostname, urlsplit(url).port)
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open = []
        self.cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self._server.getsockname()[1]}"

    def _accept(self):
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            self._open.append(near)
            if self.cut:
                continue  # connected, and never answered
            far = socket.create_connection(self._target)
            self._open.append(far)
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=(one, other), daemon=True).start()

    def _pass(self, one, other):
        try:
            while data := one.recv(65536):
                if self.cut:
                    return
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def close(self):
        for one in (self._server, *self._open):
            one.close()


def test_the_network_cut_for_a_minute_loses_nothing(ndif_server, want):
    wire, said = Wire(ndif_server.url), []
    runtime = find_subject("smollm2-135m").runtime().model_copy(update={"backend": "ndif"})
    engine = NDIFBackend(
        runtime, RemoteArgs(base_url=wire.url, wait=300), lambda caption, text: said.append(text)
    )
    said.clear()
    try:
        with under_way((engine, said)) as future:
            wire.cut = True
            time.sleep(CUT_SECONDS)
            wire.cut = False
            check_same(future.result(300)[0], want)
    finally:
        wire.close()
    assert any(text.startswith("no contact") for text in said)
    assert engine._client.retries == 0  # its answer lay ready: nothing was run twice


def test_a_server_that_stays_away_is_an_error_in_the_end(ndif_backend):
    client = Client(RemoteArgs(base_url="http://127.0.0.1:9", wait=3.0))
    with pytest.raises(EsrError, match=r"failed \d+ times, at last because the server cannot be"):
        client.run(__import__("esr_eval.backends.ndif.client", fromlist=["Job"]).Job("k", {}, b""))


# Through Inspect


def evaluate(log_dir, model_args, base_url=None):
    [log] = inspect_eval(
        "esr_eval/esr",
        model="esr/smollm2-135m",
        model_base_url=base_url,
        model_args=model_args,
        task_args={"latents": "795,856,2115,2848,3244,3375,3711,3849", "trials_per_latent": 5},
        max_tokens=16,
        max_connections=8,
        log_dir=str(log_dir),
        display="none",
    )
    failed = [sample.error.message for sample in log.samples or [] if sample.error]
    assert log.status == "success", (log.error, failed[:1])
    return log


def answers(log):
    return {
        (s.id, s.epoch): (
            s.output.completion,
            s.output.usage.output_tokens,
            s.output.metadata["edited_positions"],
        )
        for s in log.samples
    }


def test_an_eval_outlives_its_server(ndif_server, tmp_path, monkeypatch):
    want = answers(evaluate(tmp_path / "local", {"device": "cpu", "batch_size": 8}))
    fetched, broken = [], threading.Event()
    fetch = Client._fetch

    def counting(client, done):
        fetched.append(done["id"])
        if len(fetched) == 3:
            broken.set()
        return fetch(client, done)

    def power_cut():
        assert broken.wait(300)
        ndif_server.kill()
        ndif_server.bring_back()

    monkeypatch.setattr(Client, "_fetch", counting)
    cut = threading.Thread(target=power_cut)
    cut.start()
    log = evaluate(
        tmp_path / "ndif", {"backend": "ndif", "batch_size": 8, "wait": 300}, ndif_server.url
    )
    cut.join()
    assert broken.is_set()
    got = answers(log)
    assert len(log.samples) == len(got) == 40
    assert got == want
    assert all(edited > 0 for _, _, edited in got.values())
    assert sum(tokens for _, tokens, _ in got.values()) == sum(t for _, t, _ in want.values())


def test_both_questions_beyond_the_paper_get_the_local_answers(ndif_server, tmp_path):
    here, there = beyond(
        tmp_path,
        model_base_url=ndif_server.url,
        model_args={"backend": "ndif", "batch_size": 8, "wait": 300},
    )
    assert there == here


# As NDIF runs the code of strangers: in another process than the model


@pytest.fixture(scope="module")
def sandboxed(tmp_path_factory):
    from esr_eval.servers.ndif import NDIFServer

    server = NDIFServer(tmp_path_factory.mktemp("sandboxed"))
    server.start("smollm2-135m", sandbox=True)
    yield server
    server.stop()


def test_in_a_process_apart_from_the_model_the_tokens_are_the_same(sandboxed, backend):
    runtime = find_subject("smollm2-135m").runtime().model_copy(update={"backend": "ndif"})
    engine = NDIFBackend(runtime, RemoteArgs(base_url=sandboxed.url))
    short = [
        i
        for i, row in enumerate(rows(backend.encode_chat, backend.runtime))
        if len(row.prompt) < 100
    ]
    wanted = rows(engine.encode_chat, engine.runtime)
    same = rows(backend.encode_chat, backend.runtime)
    got = engine.generate([wanted[i] for i in short])
    for one, other in zip(got, backend.generate([same[i] for i in short]), strict=True):
        check_same(one, other)
        for ours, theirs in zip(one.readouts, other.readouts, strict=True):
            np.testing.assert_allclose(ours.values, theirs.values, rtol=2e-4, atol=2e-3)
    assert torch.is_inference_mode_enabled() is False
    assert httpx.get(f"{sandboxed.url}/ping", trust_env=False).json() == "pong"
