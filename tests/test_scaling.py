"""The cost model against brute force on the embedded model, and what the command says."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from ndif_stand_in import unpacked
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from esr_eval.backends.base import Row
from esr_eval.backends.loading import model_source
from esr_eval.backends.plan import padded, plan_batch
from esr_eval.cli import app
from esr_eval.paper.estimate import PROMPT_TOKENS, estimate
from esr_eval.sampling import Sampling
from esr_eval.scaling.costs import (
    decode_step,
    dense_edit,
    dense_memory,
    kv_bytes,
    prompt_pass,
    sparse_edit,
    sparse_memory,
)
from esr_eval.scaling.hardware import GPUS
from esr_eval.scaling.paper import full_steps, hours, judge_hours
from esr_eval.scaling.shapes import shape_of
from esr_eval.scaling.speed import LOCAL_SOFTWARE, NO_SOFTWARE, plan
from esr_eval.scaling.wire import (
    NDIF_READING,
    Batch,
    ndif_answer,
    ndif_request,
    residual_bytes,
    rows_bytes,
    vllm_request,
)
from esr_eval.spec import Boost, Clamp, Steering
from esr_eval.subjects import find_subject, subjects

SUBJECT = find_subject("smollm2-135m")
SHAPE = shape_of(SUBJECT)
LAYER = 14
FLOAT32 = 4
CPU = torch.device("cpu")
TUNED = "-esr"


@pytest.fixture(scope="module")
def eager():
    """The embedded model with attention as plain products, which the counter sees."""
    source, _ = model_source(SUBJECT.runtime())
    return AutoModelForCausalLM.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def flop_of(run):
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        result = run()
    return counter.get_total_flops(), result


def steered_rows(count, clamps, tokens=64, prompt=40):
    runtime = SUBJECT.runtime()
    held = [Clamp(latent=latent, layer=LAYER) for latent in range(clamps)]
    return [
        Row(
            tuple(range(5, 5 + prompt)),
            Sampling(row, 0.6, None, None, 1.1, tokens),
            Steering(
                runtime=runtime,
                edits=(*held, Boost(latent=100 + row, strength=5.0, layer=LAYER)),
            ),
        )
        for row in range(count)
    ]


@pytest.mark.parametrize("name", [name for name in subjects() if not name.endswith(TUNED)])
def test_shapes_have_the_subjects_numbers_of_parameters(name):
    subject = find_subject(name)
    assert shape_of(subject).parameters == pytest.approx(subject.n_parameters, rel=2e-3)


@pytest.mark.model
def test_weights_are_those_of_the_file():
    source, _ = model_source(SUBJECT.runtime())
    with safe_open(Path(source) / "model.safetensors", framework="pt") as tensors:
        sizes = [tensors.get_tensor(name).nbytes for name in tensors.keys()]  # noqa: SIM118
    assert sum(sizes) == SHAPE.parameters * FLOAT32


@pytest.mark.model
@pytest.mark.parametrize(("rows", "tokens"), [(1, 40), (3, 17)])
def test_flop_of_prompts_and_of_single_tokens(eager, rows, tokens):
    ids = torch.randint(5, 1000, (rows, tokens))
    for logits in (1, tokens):
        counted, out = flop_of(lambda n=logits: eager(ids, use_cache=True, logits_to_keep=n))
        predicted = prompt_pass(SHAPE, tokens, FLOAT32, rows, logits).flop
        assert counted == pytest.approx(predicted, rel=1e-3)
    cache = out.past_key_values
    held = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    assert held == rows * tokens * kv_bytes(SHAPE, FLOAT32)
    one = torch.full((rows, 1), 7)
    counted, _ = flop_of(lambda: eager(one, past_key_values=cache, use_cache=True))
    assert counted == pytest.approx(decode_step(SHAPE, rows, tokens + 1, FLOAT32).flop, rel=1e-3)


@pytest.mark.model
@pytest.mark.parametrize(("rows", "clamps", "positions"), [(1, 0, 1), (4, 26, 1), (2, 3, 33)])
def test_the_sparse_edit_counts_what_it_computes(backend, rows, clamps, positions):
    [edits] = plan_batch(steered_rows(rows, clamps), backend.sae, lambda layer: CPU).edits.values()
    x, at = torch.randn(rows, positions, SHAPE.d_model), torch.arange(positions).repeat(rows, 1)
    counted, _ = flop_of(lambda: edits.delta(x, at))
    cost = sparse_edit(SHAPE, positions, 1, clamps, rows)
    assert counted == cost.flop
    held = edits.directions.nbytes + (edits.encode.weight.nbytes if clamps else 0)
    assert held == cost.read == sparse_memory(SHAPE, 1, clamps, rows)


@pytest.mark.model
def test_the_dense_edit_is_one_encode_and_two_decodes(backend):
    from sae_lens import SAE

    sae = SAE.load_from_disk(backend.sae.config.folder, device="cpu", dtype="float32")
    x = torch.randn(2, 5, SHAPE.d_model)

    def dense():
        activations = sae.encode(x)
        boosted = activations.clone()
        boosted[..., 12] += 50.0
        return sae.decode(boosted) + x - sae.decode(activations)

    counted, edited = flop_of(dense)
    cost = dense_edit(SHAPE, 5, FLOAT32, rows=2)
    assert counted == cost.flop
    matrices = sae.W_enc.nbytes + sae.W_dec.nbytes
    assert dense_memory(SHAPE, FLOAT32) == matrices
    assert cost.read == sae.W_enc.nbytes + 2 * sae.W_dec.nbytes
    assert torch.allclose(edited, x + 50.0 * backend.sae.decoder_row(12), atol=1e-2)


@pytest.mark.model
@pytest.mark.parametrize(("rows", "clamps"), [(1, 0), (1, 26), (16, 26)])
def test_requests_are_as_large_as_computed(backend, rows, clamps):
    from esr_eval.backends.decoding import Decoding
    from esr_eval.backends.ndif_trace import RemoteModel
    from esr_eval.backends.vllm_payload import Payloads

    asked = steered_rows(rows, clamps)
    ids, mask = padded([row.prompt for row in asked], backend.pad, CPU)
    work = plan_batch(asked, backend.sae, lambda layer: CPU).work(rows)
    payload = RemoteModel(backend).generate(
        ids, mask, Decoding(asked, ids, mask, backend.ends), work
    )
    batch = Batch(rows, prompt=40, answer=64, boosted=rows, clamped=clamps)
    assert len(unpacked(payload)) == pytest.approx(ndif_request(SHAPE, batch), rel=0.15)
    # What 16 bits hold is hardly compressed further; code and settings are.
    assert rows_bytes(SHAPE, batch) * 0.8 < len(payload) < len(unpacked(payload)) / 1.5

    one = Batch(1, prompt=40, answer=64, clamped=clamps)
    hooks = Payloads(backend.sae, SHAPE.n_layers).hook_args(asked[0])
    assert len(json.dumps(hooks)) == pytest.approx(vllm_request(SHAPE, one), rel=0.15)


def test_readings_are_asked_for_as_the_backend_does():
    from esr_eval.backends.ndif import RESULT_BYTES

    assert NDIF_READING == RESULT_BYTES
    llama = shape_of(find_subject("llama-70b"))
    assert residual_bytes(llama, 400, 2) == 400 * 8192 * 2
    assert ndif_answer(Batch(2, prompt=10, answer=5)) == 2 * (10 + 5 + 5) * 8


def test_70b_fits_where_its_bytes_fit():
    shape = shape_of(find_subject("llama-70b"))
    h100, rtx = GPUS["h100"], GPUS["rtx4090"]
    assert plan(shape, h100, 1, "bfloat16", True) is None
    assert plan(shape, h100, 1, "fp8", True).copies == 1
    eight = plan(shape, h100, 8, "bfloat16", True)
    assert (eight.each, eight.copies) == (2, 4)
    assert plan(shape, rtx, 2, "bfloat16", False) is None
    positions = 557
    most = eight.most_rows(positions)
    held = shape.parameters * 2 + most * positions * kv_bytes(shape, 2)
    room = 0.95 * 2 * h100.memory
    assert held <= room < held + positions * kv_bytes(shape, 2)


@pytest.mark.parametrize("name", ["llama-8b", "llama-70b"])
def test_where_computing_takes_over_is_where_it_does(name):
    found = plan(shape_of(find_subject(name)), GPUS["h100"], 2, "bfloat16", True)

    def computes(rows):
        cost = decode_step(found.shape, rows, 301, 2)
        return cost.flop / found.hardware.flops >= cost.read / found.hardware.bandwidth

    bound = found.compute_bound_from(301)
    assert [computes(rows) for rows in (bound - 1, bound)] == [False, True]
    assert found.compute_bound_from(5000) is None and not computes(1)


def test_gpus_in_turn_are_no_faster_and_copies_are():
    shape = shape_of(find_subject("llama-70b"))
    together, in_turn = (plan(shape, GPUS["h100"], 2, "bfloat16", t) for t in (True, False))
    assert 1.9 < in_turn.step(32, 301) / together.step(32, 301) < 2
    four = plan(shape, GPUS["h100"], 8, "bfloat16", True)
    assert four.tokens_per_second(32, 301) == pytest.approx(4 * together.tokens_per_second(32, 301))
    small = plan(shape_of(find_subject("llama-8b")), GPUS["h100"], 1, "bfloat16", False)
    assert small.step(8, 301, LOCAL_SOFTWARE) == LOCAL_SOFTWARE.step(small.shape)
    below = small.software_bound_below(301, LOCAL_SOFTWARE)
    waits = [
        small.step(rows, 301) < LOCAL_SOFTWARE.step(small.shape) for rows in (below - 1, below)
    ]
    assert waits == [True, False]
    assert small.software_bound_below(301, NO_SOFTWARE) == 0


def test_hours_and_judge_by_hand():
    subject = find_subject("llama-8b")
    found = estimate(full_steps(subject), subject, subject.grader)
    one, eight = (plan(shape_of(subject), GPUS["h100"], n, "bfloat16", True) for n in (1, 8))
    time = hours(one, found, subject, 32)
    weights = 2 * (one.shape.layer_weights + one.shape.head_weights)
    caches = 32 * (PROMPT_TOKENS + subject.max_tokens / 2) * kv_bytes(one.shape, 2)
    step = (weights + caches) / 3.35e12
    assert time.generating == pytest.approx(found.generated / 32 * step / 3600)
    assert hours(eight, found, subject, 32).total == pytest.approx(time.total / 8)
    assert hours(one, found, subject, 10**6).rows == one.most_rows(PROMPT_TOKENS + 512)
    least, which = judge_hours(found, (50, 50_000, 10_000))
    assert which == "tokens read"
    assert least == pytest.approx(found.judge_read / 50_000 / 60)


def test_more_experiments_take_more():
    subject = find_subject("llama-8b")
    plain, more = (
        estimate(full_steps(subject, **args), subject, subject.grader)
        for args in ({}, {"tuned": True, "vectors": 10, "graders": 2})
    )
    # Calibrated anew, steered and not; ten vectors; two more judges.
    assert more.generations - plain.generations == 500 * (10 + 5) + 2 * 2500 + 10 * 40
    assert more.verdicts - plain.verdicts == 5000 + 4 * 2500 + 400 + 2000


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["llama-70b"], "does not fit on 1 x NVIDIA H100"),
        (["llama-70b", "--gpus", "2"], "1 x 2 GPUs in turn"),
        (["llama-70b", "--backend", "vllm", "--dtype", "fp8"], "llama-70b in fp8"),
        (["llama-8b", "--gpu", "rtx4090"], "RTX 4090"),
        (["gemma-2b", "--backend", "ndif"], "NDIF requests of the whole paper"),
        (["smollm2-135m"], "whole SAE"),
    ],
)
def test_the_command_says_what_it_costs(args, said):
    result = CliRunner().invoke(app, ["scaling", *args])
    assert result.exit_code == 0, result.output
    assert said in " ".join(result.output.split())
    assert "Nothing here was measured on a GPU" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["lama-8b"], "Did you mean llama-8b?"),
        (["a/b"], "The shape of a/b is not known"),
        (["llama-8b", "--gpu", "tpu"], "no figures for 'tpu'"),
        (["llama-8b", "--dtype", "fp8"], "local knows no weights in 'fp8'"),
        (["llama-8b", "--backend", "cloud"], "no backend 'cloud'"),
    ],
)
def test_mistakes_are_one_sentence(args, said):
    result = CliRunner().invoke(app, ["scaling", *args])
    assert result.exit_code == 1
    assert said in result.output


@pytest.fixture(scope="module")
def throughput():
    path = Path(__file__).parent.parent / "scripts" / "throughput.py"
    spec = importlib.util.spec_from_file_location("throughput", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["throughput"] = module
    spec.loader.exec_module(module)
    return module


def test_the_cost_of_steering_is_paired_round_by_round(throughput):
    base, boost, both = throughput.KINDS
    batches = []
    # The machine is slower every round; steering costs 2 % and 5 % all the same.
    for number, speed in enumerate((1.0, 3.0, 2.0, 7.0)):
        made = [
            throughput.Timed(kind, speed * factor, factor, tokens, 0)
            for kind, factor, tokens in ((base, 1.0, 100), (boost, 1.02, 100), (both, 0.525, 50))
        ]
        batches += made if number % 2 == 0 else reversed(made)
    found = throughput.kinds_of(batches)
    assert found[boost].wall.ratio == pytest.approx(1.02)
    assert found[both].wall.ratio == found[both].cpu.ratio == pytest.approx(1.05)
    assert found[base].tokens_per_second == pytest.approx(400 / 13)
    noisy = throughput.cost([1.0, 1.1, 0.95, 1.02])
    assert noisy.low < noisy.ratio < noisy.high


@pytest.mark.model
def test_throughput_measures_equal_work(throughput, capsys):
    args = ["--rows", "2", "--tokens", "4", "--rounds", "2", "--json", "-M", "device=cpu"]
    throughput.main(args)
    out = capsys.readouterr().out
    found = json.loads(out[out.index("{") :])
    assert [batch["kind"] for batch in found["batches"][:3]] == list(throughput.KINDS)
    assert {batch["tokens"] for batch in found["batches"]} == {2 * 4}
    assert found["kinds"]["1 boost"]["wall"]["ratio"] > 0
    assert found["versions"]["torch"]
