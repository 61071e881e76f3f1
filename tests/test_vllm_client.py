"""The vLLM backend without a server: what the plugin does there, payload, retries, and sentences."""

import asyncio
import json
import subprocess
import sys
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from esr_eval.backends.base import Chat
from esr_eval.backends.remote import RemoteArgs
from esr_eval.backends.vllm import OURS, code_digest, routes
from esr_eval.backends.vllm.client import Server, ServerFaultError
from esr_eval.backends.vllm.payload import Found, request_body
from esr_eval.backends.vllm.preflight import at_once, check_server
from esr_eval.backends.vllm.sampler import BatchSampler
from esr_eval.backends.vllm.steerer import ROWS, Steerer
from esr_eval.backends.vllm.wire import Asked, read_rows, rows_body
from esr_eval.backends.vllm.wire import Row as SAERow
from esr_eval.errors import EsrError
from esr_eval.sae.encoder import LatentEncoder, norm_scale, spread
from esr_eval.sae.sparse import open_sae
from esr_eval.spec import AddVector, Boost, Clamp, Readout, Steering
from esr_eval.steering.edits import Change, LayerEdits, Term
from esr_eval.steering.kernel import Intervention
from esr_eval.steering.plan import plan_batch
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import RowSampler, Sampling, scores
from esr_eval.subjects import find_subject

LAYER, N_LAYERS, D_MODEL = 14, 30, 576
RUNTIME = find_subject("smollm2-135m").runtime().model_copy(update={"backend": "vllm"})
EVERY = {"layers": [LAYER], "width": D_MODEL}


class Engine:
    """vLLM around the plugin: its HTTP process's desk, and one worker that it asks."""

    def __init__(self, facts=EVERY, fixed=False):
        like = torch.empty(facts["width"])
        self.worker = Steerer(facts["layers"], like, torch.zeros(64).long(), 64, fixed)
        self.desk = routes.Desk(self, facts)

    async def collective_rpc(self, name, args):
        if name == "esr_put":
            return [self.worker.put(args[0], read_rows(args[1]).values())]
        return [[self.worker.fetch(ours, fed) for ours, fed in args[0]]]

    def begin(self, plan, name="a"):
        """Have a request begun: its rows registered, its plan checked."""
        told, rows = asked(plan)
        if rows:
            assert asyncio.run(self.desk.put(rows_body(rows))) == (200, "")
        placed = {**self.desk.plan(Asked.from_json(told)), "id": name}
        self.worker.admit(name, json.loads(json.dumps(placed)), [])

    def step(self, *parts, lost=False, skips=False):
        """One forward pass over `(request, first position, residuals)`, residuals in two parts."""
        names, starts, residuals = zip(*parts, strict=True)
        counts = np.array([len(one) for one in residuals])
        at = [torch.arange(first, first + n) for first, n in zip(starts, counts, strict=True)]
        self.worker.positions[: counts.sum()] = torch.cat(at)
        self.worker.step(names, np.array(starts), counts)
        x = torch.cat(residuals)
        hidden, residual = x / 4, x - x / 4
        if not skips:
            self.worker.edit(LAYER, hidden, residual)
        received = x / 4 if lost else hidden
        self.worker.confirm(LAYER, received, residual)
        self.worker.after(hidden)
        return torch.split(hidden + residual, counts.tolist())

    def found(self, name="a", fed=64):
        told = json.loads(json.dumps(routes.joined([self.worker.fetch(name, fed)])))
        return Found.in_answer({"kv_transfer_params": {OURS: {**told, "fed": fed}}})


def asked(plan=None, sampling=None):
    """What a request brings to the plugin, and the rows that it names."""
    body, rows = request_body("m", [1], 1, plan, sampling)
    return body["vllm_xargs"][OURS], rows


@pytest.fixture(scope="module")
def sae():
    return open_sae(RUNTIME.sae)


def plan_of(wanted, sae):
    return plan_batch([wanted], sae, lambda layer: torch.device("cpu"))


def row(*edits, readouts=(), prompt=8):
    return Row(
        tuple(range(prompt)),
        Sampling(0, 0.0, None, None, 1.1, 16),
        Steering(runtime=RUNTIME, edits=edits, readouts=readouts),
    )


EDITS = (
    Clamp(latent=20, value=30.0, layer=LAYER),
    Clamp(latent=21, layer=LAYER, until_token=2),
    Boost(latent=8, strength=50.0, layer=LAYER, from_token=1),
    AddVector(vector=tuple([0.5] * D_MODEL), strength=2.0, layer=LAYER, positions="prompt"),
)
CLOSE = {"rtol": 1e-5, "atol": 1e-3}


GRAPHS = pytest.mark.parametrize("fixed", [False, True], ids=["free", "as in a graph"])


@GRAPHS
def test_the_plugin_does_what_the_local_backend_does(sae, fixed):
    wanted, engine = row(*EDITS), Engine(fixed=fixed)
    plan = plan_of(wanted, sae)
    engine.begin(plan)
    engine.begin(plan_of(row(EDITS[2]), sae), "b")
    torch.manual_seed(0)
    x, other = torch.randn(13, D_MODEL) * 20, torch.randn(13, D_MODEL) * 20
    # The prompt comes in two chunks, then token by token, beside an unsteered request and another.
    for first, end in [(0, 5), (5, 8), *((i, i + 1) for i in range(8, 13))]:
        at = torch.arange(first, end).unsqueeze(0)
        want = x[first:end] + plan.edits[LAYER].delta(x[None, first:end], at)[0]
        free, edited, _ = engine.step(
            ("free", 3, other[:1]), ("a", first, x[first:end]), ("b", first, other[first:end])
        )
        assert torch.equal(free, other[:1])
        torch.testing.assert_close(edited, want, **CLOSE)
    assert engine.found("a", 13).counted(13) == {LAYER: (12, 0)}
    assert engine.found("b", 11).counted(11) == {
        LAYER: (2, 0)
    }  # a token more was fed than returned


@pytest.mark.parametrize("how", ["none", "constant_norm_rescale", "layer_norm"])
@pytest.mark.parametrize("boosted", [True, False])
@GRAPHS
def test_encoders_scales_and_what_clamps_need_not_change_are_the_local_ones(how, boosted, fixed):
    torch.manual_seed(1)
    encoder = LatentEncoder(
        torch.randn(D_MODEL, 3) / 24,
        torch.tensor([0.1, -0.2, -999.0]),
        torch.tensor([0.0, 0.3, 0.0]),
        torch.randn(D_MODEL),
        how,
    )
    directions = torch.randn(4, D_MODEL) / 24
    terms = [
        Term(directions[0], 3.0, 5, None, clamp_slot=0),
        Term(directions[1], 0.0, 2, 6, clamp_slot=1),
        Term(directions[2], 0.0, 0, None, clamp_slot=2),  # never active: nothing to change
        *([Term(directions[3], 5.0, 3, None)] if boosted else []),
        Term(directions[3], 2.0, 7, 9, sae_scaled=False),
    ]
    scale = {"constant_norm_rescale": norm_scale, "layer_norm": spread}.get(how)
    edits, engine = LayerEdits([terms], encoder, scale), Engine(fixed=fixed)
    engine.begin(Intervention(1, {LAYER: edits}, {}))
    x = torch.randn(1, 12, D_MODEL) * 4
    at = torch.arange(12).unsqueeze(0)
    after = x + edits.delta(x, at)
    (got,) = engine.step(("a", 0, x[0]))
    torch.testing.assert_close(got, after[0], **CLOSE)
    change = Change(edits, x, after, at)
    due = int(change.arrived(after).sum()), int(change.held().sum())
    assert engine.found(fed=12).counted(12) == {LAYER: due}
    assert due[1] > 0 and (due[0] > 4)
    # What was due is due no more when the request is gone.
    engine.worker.leave(["a"])
    (free,) = engine.step(("other", 0, x[0]))
    assert torch.equal(free, x[0])


def test_a_request_computed_anew_is_edited_where_it_was_and_counted_once(sae):
    engine = Engine()
    readout = Readout(latents="norm", layer=LAYER, reduce="tokens", positions="generated")
    boost = Boost(latent=8, strength=50.0, layer=LAYER, positions="generated")
    wanted = row(boost, readouts=(readout,))
    engine.begin(plan_of(wanted, sae))
    x = torch.randn(12, D_MODEL)
    for first, end in [(0, 8), (8, 9), (9, 10), (0, 10), (10, 11)]:
        (edited,) = engine.step(("a", first, x[first:end]))
        assert torch.equal((edited != x[first:end]).any(-1), torch.arange(first, end) >= 8)
    found = engine.found(fed=11)
    assert found.counted(11) == {LAYER: (3, 0)}
    assert found.residuals(LAYER, 8, 11).shape == (3, D_MODEL)


@pytest.mark.parametrize("fault", ["lost", "skips"])
def test_an_edit_that_was_not_made_or_never_arrived_is_no_receipt(sae, fault):
    engine = Engine()
    engine.begin(plan_of(row(EDITS[2]), sae))
    x = torch.randn(3, D_MODEL)
    for at in (9, 10, 11):
        engine.step(("a", at, x[at - 9 : at - 8]), **{fault: at == 10})
    assert engine.found(fed=12).counted(12) == {LAYER: (2, 0)}


def test_a_model_that_computes_no_numbers_says_so_for_its_own_request(sae):
    engine = Engine()
    engine.begin(plan_of(row(EDITS[2]), sae))
    engine.begin(plan_of(row(EDITS[2]), sae), "b")
    engine.step(("a", 9, torch.full((1, D_MODEL), float("nan"))), ("b", 9, torch.ones(1, D_MODEL)))
    assert not engine.found("a").finite and engine.found("b").finite


def test_every_worker_that_has_a_layer_must_have_edited():
    def told(**counts):
        return {"counts": counts, "finite": True, "reads": {}}

    ranks = [told(**{"3": [5, 1]}), None, told(**{"3": [4, 1], "9": [2, 0]})]
    assert routes.joined(ranks)["counts"] == {"3": [4, 1], "9": [2, 0]}
    with pytest.raises(RuntimeError, match="could not steer the request"):
        routes.joined([None])


def test_readouts_come_back_by_position(sae):
    readout = Readout(latents=(8, 20), layer=LAYER, reduce="tokens")
    norm = Readout(latents="norm", layer=LAYER, reduce="tokens", until_token=0)
    engine = Engine()
    engine.begin(plan_of(row(readouts=(readout, norm)), sae))
    x = torch.randn(10, D_MODEL) * 20
    for first, end in [(0, 6), (6, 9), (9, 10)]:
        engine.step(("a", first, x[first:end]))
    found = engine.found(fed=10)
    torch.testing.assert_close(found.residuals(LAYER, 1, 10), x[1:10])
    assert found.counted(10) == {}
    with pytest.raises(RuntimeError, match="read 9 positions where 11 were due"):
        found.residuals(LAYER, 1, 12)
    with pytest.raises(RuntimeError, match="read 0 positions where 2 were due"):
        found.residuals(3, 0, 2)


GOOD_TERM = ["d", 1.0, 0, 5, False]


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ("no json", "malformed: .*Invalid JSON"),
        (7, "malformed: .*should be"),
        ({"more": {}}, "malformed: more: Extra inputs"),
        ({"edits": {"14": [GOOD_TERM]}}, "rows that are not here: d"),
        ({"edits": {"14": [["d", 1.0, 0]]}}, "malformed: edits.14.0.3: Field required"),
        ({"edits": {"14": [["d", float("nan"), 0, 5, False]]}}, "malformed: .*a finite number"),
        ({"edits": {"14": [["d", 1.0, -3, 5, False]]}}, "malformed: .*greater than or equal to 0"),
        ({"edits": {"14": [["d", "1", 0, 5, False]]}}, "malformed: .*a valid number"),
        ({"edits": {"14": [[["d"], 1.0, 0, 5, False]]}}, "malformed: .*a valid string"),
        ({"reads": {"15": [0, 5]}}, r"layer 15 is not prepared \(--layer\), but 14"),
        ({"reads": {"x": [0, 5]}}, "malformed: .*a valid integer"),
        ({"sampling": {"seed": 1}}, "malformed: sampling.temperature: Field required"),
        ({"sampling": {**asdict(Sampling(0, 0.0, None, None, 1.1, 1)), "top_k": 0}}, "top_k=0"),
        ([], "malformed"),
    ],
)
def test_what_cannot_be_steered_is_refused_before_it_runs(told, sentence):
    engine, ran = Engine(), []

    async def original(*args, **kwargs):
        ran.append(1)
        yield None

    async def ask():
        text = json.dumps(told) if isinstance(told, dict | list) else told
        params = SimpleNamespace(extra_args={OURS: text}, n=1)
        async for _ in engine.desk.generate(original, {}, params, "a"):
            pass

    with pytest.raises(ValueError, match=f"cannot serve this request: .*{sentence}"):
        asyncio.run(ask())
    assert not ran


def test_requests_end_with_their_receipt_and_those_given_up_are_forgotten(sae):
    engine = Engine()
    told, rows = asked(plan_of(row(EDITS[2]), sae))
    began, salts, go = [], set(), []

    async def original(prompt, params, name):
        began.append(name)
        salts.add(prompt["cache_salt"])
        assert params.skip_reading_prefix_cache
        engine.worker.admit(name, params.extra_args[OURS], [])
        await go[0].wait()
        engine.step((name, 9, torch.ones(1, D_MODEL)))
        made = [SimpleNamespace(token_ids=[1])]
        yield SimpleNamespace(finished=True, prompt_token_ids=[0] * 10, outputs=made)

    async def ask(name):
        params = SimpleNamespace(extra_args={OURS: told}, n=1)
        outs = engine.desk.generate(original, {"type": "t"}, params, name)
        return [out async for out in outs]

    async def all_of_them():
        go.append(asyncio.Event())
        assert await engine.desk.put(rows_body(rows)) == (200, "")
        tasks = [asyncio.create_task(ask(name)) for name in "abc"]
        await asyncio.sleep(0.05)
        assert began == ["a", "b", "c"] and len(engine.worker.known) == 3
        tasks[0].cancel()
        await asyncio.sleep(0.05)
        assert len(engine.worker.known) == 2
        go[0].set()
        return [(await task)[0].kv_transfer_params[OURS] for task in tasks[1:]]

    for found in asyncio.run(all_of_them()):
        assert found["counts"] == {str(LAYER): [1, 0]} and found["fed"] == 10
    assert len(salts) == 1 and not engine.worker.known and not +engine.desk.used


def test_requests_that_end_together_are_asked_for_together_even_if_one_is_given_up(sae):
    engine, asked_for = Engine(), []
    rpc = engine.collective_rpc

    async def counted(name, args):
        asked_for.append(sorted(ours for ours, _ in args[0]))
        await asyncio.sleep(0.02)
        return await rpc(name, args)

    async def all_of_them():
        engine.collective_rpc = counted
        for name in "abcd":
            placed = {"sampling": None, "edits": {}, "reads": {}, "id": name}
            engine.worker.admit(name, placed, [])
        tasks = {}
        for name in "abcd":
            tasks[name] = asyncio.shield(engine.desk._ask(name, 1))
            if name == "a":
                await asyncio.sleep(0.01)
        tasks["b"].cancel()
        return [(await tasks[name])[name] for name in "acd"]

    for [found] in asyncio.run(all_of_them()):
        assert found == {"counts": {}, "finite": True, "reads": {}}
    assert asked_for == [["a"], ["b", "c", "d"]]


def test_a_request_given_up_leaves_vllm_before_it_is_forgotten(sae):
    engine, known = Engine(), []
    told, rows = asked(plan_of(row(EDITS[2]), sae))

    async def original(prompt, params, name):
        engine.worker.admit(name, params.extra_args[OURS], [])
        try:
            yield SimpleNamespace(finished=False)
        finally:
            known.append(len(engine.worker.known))

    async def ask():
        assert await engine.desk.put(rows_body(rows)) == (200, "")
        params = SimpleNamespace(extra_args={OURS: told}, n=1)
        outs = engine.desk.generate(original, {"type": "t"}, params, "a")
        await anext(outs)
        await outs.aclose()
        await asyncio.sleep(0.01)
        return len(engine.worker.known)

    assert asyncio.run(ask()) == 0 and known == [1]


def test_places_are_used_again_and_more_are_made_when_all_are_taken(sae):
    engine = Engine()
    plan = plan_of(row(EDITS[2]), sae)
    for i in range(20):
        engine.begin(plan, f"kept{i}")
        engine.begin(plan, f"gone{i}")
        engine.step(*((name, 9, torch.ones(1, D_MODEL)) for name in (f"kept{i}", f"gone{i}")))
        assert engine.found(f"gone{i}", 10).counted(10) == {LAYER: (1, 0)}
        engine.worker.leave([f"gone{i}"])
    for i in range(20):
        assert engine.found(f"kept{i}", 10).counted(10) == {LAYER: (1, 0)}
    assert len({one.place for one in engine.worker._requests.values()}) == 20
    assert len(engine.worker.layers[LAYER].flags) < 45


def test_rows_are_refused_when_damaged_and_make_room_when_idle():
    engine = Engine(facts={"layers": [LAYER], "width": 4})

    def put(*rows):
        named = {one.digest(): one for one in rows}
        return asyncio.run(engine.desk.put(rows_body(named))), list(named)

    def vector(number, width=4, last=0.0):
        vectors = torch.stack([torch.full((width,), float(number)), torch.zeros(width)])
        return SAERow(vectors, torch.tensor([0.0, 0.0, last]))

    for wrong, sentence in (
        (vector(1, width=5), "not of this model"),
        (vector(float("inf")), "not finite"),
        (vector(1, last=7.0), "unknown normalisation"),
        (vector(1)._replace(numbers=torch.zeros(4)), "not of this model"),
    ):
        (status, said), _ = put(wrong)
        assert status == 400 and sentence in said
    damaged = rows_body({"0" * 32: vector(1)})
    for body in (damaged, b"junk", b""):
        assert asyncio.run(engine.desk.put(body))[0] == 400
    (status, _), first = put(*(vector(i) for i in range(ROWS)))
    assert status == 200
    engine.desk.used.update(first[1:])  # requests are served with all but the first
    (status, said), _ = put(vector(-1), vector(-2))
    assert status == 503 and "no room" in said
    assert put(vector(3), vector(4))[0] == (200, "")  # they are there
    (status, _), new = put(vector(-1))
    assert status == 200
    told = json.dumps({"edits": {LAYER: [[new[0], 1.0, 0, 9, False]]}})
    place = engine.desk.plan(Asked.from_json(told))["edits"][LAYER][0][0]
    assert torch.equal(engine.worker.bank.directions[place], torch.full((4,), -1.0))
    with pytest.raises(ValueError, match="rows that are not here"):
        engine.desk.plan(Asked.from_json(told.replace(new[0], first[0])))


def test_the_plugin_needs_nothing_of_this_package_but_its_own_files(tmp_path):
    from esr_eval.servers.vllm import _lay_out_plugin

    folder = _lay_out_plugin(tmp_path / "plugin")
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import esr_eval.backends.vllm.plugin, esr_eval.backends.vllm.routes as routes\n"
        "from importlib.metadata import distributions\n"
        "[one] = distributions(name='esr_eval-vllm', path=[sys.argv[1]])\n"
        "print(routes.__file__, routes.code_digest(), [e.group for e in one.entry_points])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True, cwd="/"
    )
    assert done.stdout.split()[:2] == [
        str(folder / "esr_eval/backends/vllm/routes.py"),
        code_digest(),
    ]
    assert "vllm.general_plugins" in done.stdout and "vllm.endpoint_plugins" in done.stdout


@pytest.mark.parametrize(("sharded", "speculative"), [(True, None), (False, object())])
def test_what_would_pass_our_sampler_by_is_refused_before_weights_load(sharded, speculative):
    from esr_eval.backends.vllm import plugin

    parallel = SimpleNamespace(enable_batch_sharded_sampling=sharded)
    config = SimpleNamespace(parallel_config=parallel, speculative_config=speculative)
    with pytest.raises(ValueError, match="without speculative decoding"):
        plugin._loads(lambda: pytest.fail("loaded"), SimpleNamespace(vllm_config=config))


def test_bytes_of_a_request_at_the_width_of_the_70b(tmp_path):
    edits = [
        Boost(latent=0, strength=7.0, layer=33),
        *(Clamp(latent=i, layer=33) for i in range(1, 27)),
    ]
    for exact, most in ((True, 900_000), (False, 1_780_000)):
        sae = wide_sae(tmp_path / str(exact), exact)
        steering = Steering(runtime=RUNTIME, edits=tuple(edits))
        wanted = Row((1, 2, 3), Sampling(0, 0.6, None, None, 1.2, 9), steering)
        told, rows = asked(plan_of(wanted, sae), wanted.sampling)
        assert most * 0.9 < len(rows_body(rows)) < most  # once
        assert len(told) < 2_500  # every request


def test_rows_on_the_server_are_sampled_like_local_ones():
    torch.manual_seed(2)
    settings = [
        Sampling(5, 0.8, None, None, 1.2, 9),
        Sampling(6, 0.0, None, None, 1.3, 9),
        Sampling(7, 1.0, 0.9, 12, 1.1, 9),
        Sampling(8, 1.0, None, 3, 1.0, 9),
    ]
    prompts = [[1, 2, 3], [4, 4], [5], [6, 7]]
    logits = torch.randn(4, 7, 50) * 2  # (request, step, token)
    want = []
    for i, one in enumerate(settings):
        seen = torch.zeros(1, 50, dtype=torch.bool)
        seen[0, prompts[i]] = True
        chosen, rows = [], RowSampler([one])
        for step in range(7):
            token = int(rows.choose(logits[i, step][None], seen, torch.tensor([step])))
            seen[0, token] = True
            chosen.append(token)
        want.append(chosen)

    book = Steerer([], torch.empty(1), torch.zeros(1).long(), 1, fixed=False)
    sampler, got = BatchSampler(torch.device("cpu"), 50, torch.float32), [[], [], [], []]
    orders = [[0], [0, 1], [1, 0], [2, 1, 0], [0, 2, 3], *([[3, 0, 2, 1]] * 20)]
    for order in orders:
        for i in order:
            book.admit(str(i), sampled(settings[i]), prompts[i])  # the second time it is known
        wanted = [i for i in order if len(got[i]) < 7]
        # A foreign row stands first, and a request in the midst of its prompt last.
        requests = known(book, ["foreign", *map(str, wanted), "0"])
        sampler.step(requests, np.array([True] * (len(requests) - 1) + [False]))
        batch = torch.stack([logits[i, len(got[i])] for i in wanted] or [torch.zeros(50)])
        batch = torch.cat([torch.zeros(1, 50), batch, torch.ones(1, 50)])
        out = sampler.chosen(batch)
        assert torch.equal(out[0], torch.zeros(50)) and torch.equal(out[-1], torch.ones(50))
        for at, i in enumerate(wanted, 1):
            got[i].append(int(out[at].argmax()))
    assert got == want
    book.leave(["0", "1", "2", "3", "foreign"])
    book.admit("new", sampled(settings[1]), prompts[1])
    sampler.step(known(book, ["new"]), [True])
    assert int(sampler.chosen(logits[1, :1].clone()).argmax()) == want[1][0]


def sampled(sampling):
    """The plan of an unsteered request, as it comes to a worker."""
    told, _ = asked(sampling=sampling)
    return {**Engine().desk.plan(Asked.from_json(told)), "id": None}


def known(book, names):
    return book.step(names, np.zeros(len(names), np.int64), np.ones(len(names), np.int64))


def broken(*args):
    raise RuntimeError("no compiler")


@pytest.mark.parametrize(
    ("compiled", "used"), [(scores, True), (lambda *args: -scores(*args), False), (broken, False)]
)
def test_a_compiler_that_chooses_other_tokens_is_not_used(monkeypatch, caplog, compiled, used):
    asked = []

    def counted(*args):
        asked.append(len(args[0]))
        return compiled(*args)

    monkeypatch.setattr("torch.compile", lambda function, dynamic: counted)
    book = Steerer([], torch.empty(1), torch.zeros(1).long(), 1, fixed=False)
    sampler = BatchSampler(torch.device("cpu"), 100, torch.bfloat16)
    assert ("chooses tokens uncompiled" in caplog.text) != used
    for name in "abc":
        book.admit(name, sampled(Sampling(1, 0.8, None, None, 1.2, 9)), [1, 2])
    sampler.step(known(book, "abc"), [True] * 3)
    out = sampler.chosen(torch.zeros(3, 100))
    assert asked == ([7, 3] if used else [7])
    assert len(set(out.argmax(-1).tolist())) == 1  # of the same seed


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
    remote = RemoteArgs(answers.url, wait=wait)
    server = Server(remote, lambda label, value: said.append(value))
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
    server = Server(RemoteArgs("http://127.0.0.1:9", wait=0.2))
    with pytest.raises(EsrError, match=r"did not come back within 0 s .*inspect eval-retry"):
        server.post_patiently("/v1/completions", {})


MODELS = {"data": [{"id": "smollm2-135m", "root": "/weights", "max_model_len": 8192}]}
FACTS = {
    "code": code_digest(),
    "layers": [LAYER],
    "n_layers": N_LAYERS,
    "width": D_MODEL,
    "dtype": "float32",
    "device": "cpu",
    "torch": "2",
    "runner": "V1",
}


@pytest.fixture(scope="module")
def chat():
    return Chat(RUNTIME)


def checked(url, chat):
    server = Server(RemoteArgs(url, wait=600.0))
    with at_once(server):
        return check_server(server, chat)


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        ([(404, "no")], "is no vLLM server"),
        ([(200, {"version": "1"}), (401, {})], "does not accept the key"),
        ([(200, {"version": "1"}), (200, {"data": [{"id": "gpt2"}]})], "serves gpt2, not package:"),
        ([(200, {"version": "1"}), (200, MODELS), (404, "")], "without this project's plugin"),
        *(
            ([(200, {"version": "0.30.0"}), (200, MODELS), (200, {**FACTS, **other})], sentence)
            for other, sentence in (
                ({"code": "00ff"}, "another version of esr-eval"),
                ({"n_layers": 12}, "a model of 12 layers and width 576, and .* has 30 and 576"),
                ({"width": 99}, "a model of 30 layers and width 99"),
                ({"dtype": "bfloat16"}, "computes in bfloat16, but float32 is asked for"),
                ({"layers": [3]}, "not started for layer 14, .* with --layer 3 --layer 14"),
            )
        ),
    ],
)
def test_each_check_of_a_server_has_its_sentence(answers, chat, told, sentence):
    answers.told[:] = told
    with pytest.raises(EsrError, match=sentence):
        checked(answers.url, chat)
    assert not answers.told


def test_a_version_of_vllm_that_was_not_tried_is_warned_about(answers, chat, caplog):
    answers.told[:] = [(200, {"version": "9.9"}), (200, MODELS), (404, "")]
    with pytest.raises(EsrError):
        checked(answers.url, chat)
    assert "vLLM 9.9" in caplog.text and "0.30.0 was" in caplog.text


def test_a_server_that_is_down_is_told_at_once(chat):
    with pytest.raises(EsrError, match=r"No vLLM server answers at .* `esr-eval serve vllm start`"):
        checked("http://127.0.0.1:9", chat)


def test_what_is_no_address_is_told_in_one_sentence():
    with pytest.raises(EsrError, match=r"no address of a server: .*--model-base-url"):
        Server(RemoteArgs("http://127.0.0.1:80:"))
