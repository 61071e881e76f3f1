"""The vLLM backend without a server: payload, hooks, receipts, retries, and sentences."""

import base64
import json
import pickle
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType, SimpleNamespace

import pytest
import torch

from esr_eval.backends.base import Chat
from esr_eval.backends.remote import is_loopback
from esr_eval.backends.vllm.client import Server, ServerFaultError
from esr_eval.backends.vllm.payload import HOOKS_ARG, Saved, hook_args, hook_source
from esr_eval.backends.vllm.preflight import check_trust, first_check
from esr_eval.errors import EsrError
from esr_eval.sae.sparse import open_sae
from esr_eval.spec import AddVector, Boost, Clamp, Readout, Steering
from esr_eval.steering.edits import LayerEdits, Term
from esr_eval.steering.kernel import Intervention
from esr_eval.steering.plan import plan_batch
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling
from esr_eval.subjects import find_subject

LAYER, N_LAYERS, D_MODEL = 14, 30, 576
RUNTIME = find_subject("smollm2-135m").runtime().model_copy(update={"backend": "vllm"})


class Batch:
    """The forward pass around a hook, as vLLM tells of it: starts and lengths of its requests.

    The model's layers pass on what they get, as the residual stream does.
    """

    def __init__(self, monkeypatch):
        self.context = None
        layers = [torch.nn.Identity() for _ in range(N_LAYERS)]
        self.model = torch.nn.ModuleDict({"layers": torch.nn.ModuleList(layers)})
        module = ModuleType("vllm.forward_context")
        module.get_forward_context = lambda: self.context
        monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
        monkeypatch.setitem(sys.modules, "vllm.forward_context", module)

    def part(self, rows, first, before=3):
        """`rows` as one request's part of a batch in which another request has `before` rows."""
        count = len(rows)
        metadata = SimpleNamespace(
            query_start_loc=torch.tensor([0, before, before + count]),
            seq_lens=torch.tensor([before, first + count]),
        )
        self.context = SimpleNamespace(attn_metadata={"layer": metadata})
        return torch.cat([torch.zeros(before, rows.shape[1]), rows])[before:]

    def arrive(self, rows, before=3):
        """The layer behind the hook's gets `rows` as the request's part."""
        self.model["layers"][LAYER + 1](torch.cat([torch.zeros(before, rows.shape[1]), rows]))

    def saved(self):
        return SimpleNamespace(layer_idx=LAYER, saved={}, model=self.model)


@pytest.fixture
def batch(monkeypatch):
    # A process has one model: the module that holds the hook is another in each test.
    for name in [name for name in sys.modules if name.startswith("esr_eval_hook_")]:
        monkeypatch.delitem(sys.modules, name)
    return Batch(monkeypatch)


@pytest.fixture(scope="module")
def sae():
    return open_sae(RUNTIME.sae)


def sure_positions(saved, fed):
    """Positions edited and seen to arrive, over all layers."""
    return sum(sure for sure, _ in saved.counts(fed).values())


def args_of(wanted, sae, n_layers=N_LAYERS):
    return hook_args(plan_batch([wanted], sae, lambda layer: torch.device("cpu")), n_layers)


def hook_of(args):
    """The hook as the server loads it."""
    [told] = json.loads(args[HOOKS_ARG])
    return pickle.loads(base64.b64decode(told["fn"]["cloudpickle"])), told


def row(*edits, readouts=(), prompt=8):
    return Row(
        tuple(range(prompt)),
        Sampling(0, 0.0, None, None, 1.1, 16),
        Steering(runtime=RUNTIME, edits=edits, readouts=readouts),
    )


def answer_of(ctx):
    return {"hook_results": {"0": json.loads(json.dumps(ctx.saved))}}


EDITS = (
    Clamp(latent=20, value=30.0, layer=LAYER),
    Clamp(latent=21, layer=LAYER, until_token=2),
    Boost(latent=8, strength=50.0, layer=LAYER, from_token=1),
    AddVector(vector=tuple([0.5] * D_MODEL), strength=2.0, layer=LAYER, positions="prompt"),
)


def test_the_shipped_hook_does_what_the_local_backend_does(sae, batch):
    wanted = row(*EDITS)
    edit, told = hook_of(args_of(wanted, sae))
    edit = pickle.loads(pickle.dumps(edit))  # the server sends it on to its workers
    assert told["layer_indices"] == [LAYER, N_LAYERS - 1]
    local = plan_batch([wanted], sae, lambda layer: torch.device("cpu")).edits[LAYER]
    torch.manual_seed(0)
    x = torch.randn(13, D_MODEL) * 20
    here = batch.saved()
    # The prompt comes in two chunks, then token by token, beside another request.
    for first, end in [(0, 5), (5, 8), *((i, i + 1) for i in range(8, 13))]:
        part = batch.part(x[first:end], first)
        edited = edit(here, part)
        at = torch.arange(first, end).unsqueeze(0)
        want = x[first:end] + local.delta(x[None, first:end], at)[0]
        if edited is None:  # position 0 is the sink, which is left alone
            edited = x[first:end]
        assert torch.equal(edited, want)
        batch.arrive(edited)
    saved = Saved(answer_of(here))
    assert sure_positions(saved, 13) == 12
    assert sure_positions(saved, 11) == 10  # a server may feed a token that it does not return


def test_a_request_computed_anew_is_edited_where_it_was_and_counted_once(sae, batch):
    wanted = row(Boost(latent=8, strength=50.0, layer=LAYER, positions="generated"))
    edit, _ = hook_of(args_of(wanted, sae))
    x = torch.randn(12, D_MODEL)
    here = batch.saved()
    for first, end in [(0, 8), (8, 9), (9, 10), (0, 10), (10, 11)]:
        edited = edit(here, batch.part(x[first:end], first))
        if first == 0 and end == 8:
            assert edited is None
            continue
        assert torch.equal((edited - x[first:end]).any(-1), torch.arange(first, end) >= 8)
        batch.arrive(edited)
    assert sure_positions(Saved(answer_of(here)), 11) == 3


def test_an_edit_that_the_next_layer_never_saw_is_no_receipt(sae, batch):
    edit, _ = hook_of(args_of(row(EDITS[2]), sae))
    x = torch.randn(3, D_MODEL)
    here = batch.saved()
    for at in (9, 10, 11):
        edited = edit(here, batch.part(x[at - 9 : at - 8], at))
        batch.arrive(x[at - 9 : at - 8] if at == 10 else edited)
    assert sure_positions(Saved(answer_of(here)), 12) == 2


def test_every_rank_must_have_edited():
    runs = {"edited": [[3, 0, 0, 5], [3, 1, 0, 5]], "width": 4}
    confirmed = {**runs, "arrived": [[3, 0, 0, 5], [3, 1, 0, 4]]}
    assert sure_positions(Saved({"hook_results": {"0": confirmed}}), 9) == 4
    # Behind a pipeline stage nobody confirms; the edit itself is then the receipt.
    assert sure_positions(Saved({"hook_results": {"0": runs}}), 9) == 5


def test_a_hook_that_fails_says_so_and_leaves_its_neighbours_alone(batch):
    edits = LayerEdits([[Term(torch.ones(3), 1.0, 0, None)]])
    edit, _ = hook_of(hook_args(Intervention(1, {LAYER: edits}, {}), N_LAYERS))
    here = batch.saved()
    assert edit(here, batch.part(torch.ones(2, D_MODEL), 0)) is None
    with pytest.raises(RuntimeError, match="hook failed on the vLLM server: layer 14: RuntimeErr"):
        Saved(answer_of(here))


def test_pickled_answers_are_refused():
    told = {"hook_results": {"0": {"reads": {"__type__": "cloudpickle", "data": "gASVAAA="}}}}
    with pytest.raises(RuntimeError, match="not come from this project"):
        Saved(told)


def test_readouts_come_back_by_position(sae, batch):
    readout = Readout(latents=(8, 20), layer=LAYER, reduce="tokens")
    whole = Readout(latents="all", layer=LAYER, positions="generated")
    norm = Readout(latents="norm", layer=LAYER, reduce="tokens", until_token=0)
    wanted = row(readouts=(readout, whole, norm))
    edit, _ = hook_of(args_of(wanted, sae))
    x, here = torch.randn(10, D_MODEL) * 20, batch.saved()
    for first, end in [(0, 6), (6, 9), (9, 10)]:
        assert edit(here, batch.part(x[first:end], first)) is None
    saved = Saved(answer_of(here))
    assert torch.equal(saved.read(0, 1, 9), sae.encoder((8, 20))(x[1:9]))
    assert torch.equal(saved.read(1, 8, 10), x[8:10])
    assert saved.read(1, 10, 10) is None
    torch.testing.assert_close(saved.read(2, 1, 8), x[1:8].norm(dim=-1, keepdim=True))
    with pytest.raises(RuntimeError, match="read 2 positions where 4 were due"):
        saved.read(1, 8, 12)


def test_the_hook_needs_nothing_of_this_package():
    source = hook_source()
    assert "esr_eval" not in "".join(
        line for line in source.splitlines() if line.lstrip().startswith(("import", "from"))
    )
    compile(source, "hook", "exec")


def test_bytes_of_a_request_at_the_width_of_the_70b(tmp_path):
    rows = [
        Boost(latent=0, strength=7.0, layer=33),
        *(Clamp(latent=i, layer=33) for i in range(1, 27)),
    ]
    for exact, most in ((True, 1_250_000), (False, 2_450_000)):
        sae = wide_sae(tmp_path / str(exact), exact)
        steering = Steering(runtime=RUNTIME, edits=tuple(rows))
        wanted = Row((1, 2, 3), Sampling(0, 0.6, None, None, 1.2, 9), steering)
        size = len(json.dumps(args_of(wanted, sae, 80)))
        assert most * 0.9 < size < most


def wide_sae(folder, bfloat16):
    from safetensors.torch import save_file

    folder.mkdir()
    torch.manual_seed(1)
    tensors = {
        "W_enc": torch.randn(8192, 32),
        "W_dec": torch.randn(32, 8192),
        "b_enc": torch.randn(32),
        "b_dec": torch.randn(8192),
    }
    if bfloat16:
        tensors = {name: value.bfloat16().float() for name, value in tensors.items()}
    save_file(tensors, folder / "sae_weights.safetensors")
    cfg = {"architecture": "standard", "d_in": 8192, "d_sae": 32, "sae_lens_version": "6.54"}
    (folder / "cfg.json").write_text(json.dumps(cfg))
    return open_sae(RUNTIME.sae.model_copy(update={"release": str(folder)}))


def test_hooks_go_to_this_machine_only_unless_the_server_is_trusted():
    for url in ("http://127.0.0.1:8000", "http://localhost:8000/v1", "http://[::1]:8000"):
        assert is_loopback(url)
        check_trust(url, trusted=False)
    for url in ("http://10.0.0.7:8000", "https://vllm.example.org", "http://127.0.0.1.example.org"):
        with pytest.raises(EsrError, match="trust_server=true"):
            check_trust(url, trusted=False)
        check_trust(url, trusted=True)


class Answers:
    """A loopback HTTP server that gives the answers it is told to, in order."""

    def __init__(self):
        self.told, self.asked = [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.do_POST()

            def do_POST(self):
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                outer.asked.append((self.path, json.loads(body) if body else None))
                status, text = outer.told.pop(0)
                if status is None:  # dies while it answers
                    self.connection.close()
                    return
                raw = text if isinstance(text, str) else json.dumps(text)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(raw.encode())

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def answers():
    made = Answers()
    yield made
    made.server.shutdown()
    made.server.server_close()


def ask(answers, *told, wait=20.0):
    answers.told[:] = told
    said = []
    server = Server(answers.url, None, wait, lambda label, value: said.append(value))
    checks = []
    server.check_again = lambda: checks.append(len(answers.asked))
    return server.post_patiently("/v1/completions", {"prompt": [1]}), said, checks


GOOD = (200, {"choices": [{"finish_reason": "length", "token_ids": [5]}]})
CUT = (200, {"choices": [{"finish_reason": "abort", "token_ids": [5]}]})


@pytest.mark.parametrize("fault", [(None, ""), (503, "loading"), (500, "oops"), CUT])
def test_a_request_that_died_is_sent_again_whole_after_a_new_check(answers, fault):
    got, said, checks = ask(answers, fault, GOOD)
    assert got == GOOD[1]
    assert [body for _, body in answers.asked] == [{"prompt": [1]}] * 2
    assert checks == [1]
    assert said == ["lost, trying again", "back"]


def test_what_cannot_get_better_is_not_asked_again_and_again(answers):
    refused = (400, {"error": {"message": "max_tokens is too large"}})
    with pytest.raises(EsrError, match="refuses the request: max_tokens is too large"):
        ask(answers, refused)
    with pytest.raises(EsrError, match="does not accept the key: set VLLM_API_KEY"):
        ask(answers, (401, {"error": "Unauthorized"}))
    assert len(answers.asked) == 2
    with pytest.raises(ServerFaultError, match="failed inside: oops"):
        ask(answers, *[(500, "oops")] * 3)
    assert len(answers.asked) == 5


def test_a_server_that_stays_away_is_told_in_one_sentence():
    server = Server("http://127.0.0.1:9", None, 0.2, lambda label, value: None)
    with pytest.raises(EsrError, match=r"did not come back within 0 s .*inspect eval-retry"):
        server.post_patiently("/v1/completions", {})


MODELS = {"data": [{"id": "smollm2-135m", "root": "/weights", "max_model_len": 8192}]}
METRICS = 'vllm:cache_config_info{block_size="16",enable_prefix_caching="%s"} 1.0'


@pytest.fixture(scope="module")
def chat():
    return Chat(RUNTIME)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ([(404, "no")], "is no vLLM server"),
        ([(200, {"version": "1"}), (401, {})], "does not accept the key"),
        ([(200, {"version": "1"}), (200, {"data": [{"id": "gpt2"}]})], "serves gpt2, not package:"),
        (
            [(200, {"version": "1"}), (200, MODELS), (200, METRICS % "True")],
            "keeps a prefix cache",
        ),
        (
            [
                (200, {"version": "1"}),
                (200, MODELS),
                (200, METRICS % "False"),
                (400, {"error": {"message": "esr-eval sampler 00ff"}}),
            ],
            "another version of esr-eval",
        ),
        (
            [(200, {"version": "1"}), (200, MODELS), (200, METRICS % "False"), GOOD, GOOD],
            "does not run hooks: install vllm-lens",
        ),
        (
            [(200, {"version": "1"}), (200, MODELS), (200, METRICS % "False"), GOOD, (500, "boom")],
            "has no layer 29",
        ),
        (
            [
                (200, {"version": "1"}),
                (200, MODELS),
                (200, METRICS % "False"),
                GOOD,
                (200, {**GOOD[1], "hook_results": {"0": {"width": 99, "dtype": "float32"}}}),
            ],
            "has width 99, that of .* 576",
        ),
        (
            [
                (200, {"version": "1"}),
                (200, MODELS),
                (200, METRICS % "False"),
                GOOD,
                (200, {**GOOD[1], "hook_results": {"0": {"width": 576, "dtype": "bfloat16"}}}),
            ],
            "computes in bfloat16, but float32 is asked for",
        ),
    ],
)
def test_each_check_of_a_server_has_its_sentence(answers, chat, told, sentence):
    answers.told[:] = told
    with pytest.raises(EsrError, match=sentence):
        first_check(Server(answers.url, None, 5.0, lambda label, value: None), chat)
    assert not answers.told


def test_a_server_that_is_down_is_told_at_once(chat):
    with pytest.raises(EsrError, match=r"No vLLM server answers at .* `esr-eval serve vllm start`"):
        first_check(Server("http://127.0.0.1:9", None, 600.0, lambda label, value: None), chat)


def test_what_is_no_address_is_told_in_one_sentence():
    with pytest.raises(EsrError, match=r"no address of a server: .*--model-base-url"):
        Server("http://127.0.0.1:80:", None, 1.0, lambda label, value: None)
