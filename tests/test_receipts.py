"""The receipt proves an effect: whatever way an edit gets lost, the sample fails."""

import json
import shutil

import anyio
import pytest
import torch
from inspect_ai.model import get_model
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from transformers import Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from esr_eval.backends.local import LocalBackend
from esr_eval.errors import EsrError
from esr_eval.model.loading import load_tokenizer
from esr_eval.solvers import steering_config
from esr_eval.spec import AddVector, Boost, Clamp, Readout, Runtime, SAERef, Steering
from esr_eval.steering.edits import LayerEdits
from esr_eval.steering.kernel import Work
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling
from esr_eval.subjects import find_subject

pytestmark = pytest.mark.model
D_MODEL, N_LAYERS, LAYER = 32, 4, 1
SHAPE = {
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 49152,
}
MODELS = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "gemma": (Gemma2ForCausalLM, Gemma2Config(**SHAPE)),
}
ZEROS, INFINITE, LOUD = 60, 61, 62
"""Latents with a decoder row of zeros, with an infinite one, and one that nothing silences."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny models by architecture, and an SAE for them."""
    root = tmp_path_factory.mktemp("tiny")
    tokenizer = load_tokenizer(find_subject("smollm2-135m").runtime())
    for name, (cls, config) in MODELS.items():
        torch.manual_seed(0)
        config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
        cls(config).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D_MODEL, d_sae=64, dtype="float32", device="cpu"))
    sae.cfg.metadata.hook_name = f"blocks.{LAYER}.hook_resid_post"
    generator = torch.Generator().manual_seed(0)
    sae.W_dec.data = torch.randn(64, D_MODEL, generator=generator)
    sae.W_enc.data = torch.randn(D_MODEL, 64, generator=generator)
    sae.b_enc.data, sae.threshold.data = torch.zeros(64), torch.full((64,), 0.01)
    sae.W_dec.data[ZEROS], sae.W_dec.data[INFINITE, 3] = 0.0, float("inf")
    sae.b_enc.data[LOUD] = 50.0
    sae.b_enc.data[:10] = -50.0  # silent
    sae.save_model(root / "sae")
    return root


def load(folder, name="llama", dtype="float32", **changes):
    runtime = Runtime(
        subject=name,
        model=str(folder / name),
        dtype=dtype,
        sae=SAERef(release=str(folder / "sae")),
        steering_layer=LAYER,
        feature_layer=LAYER,
        **changes,
    )
    return LocalBackend(runtime, "cpu")


@pytest.fixture(scope="module")
def tiny(folder):
    return load(folder)


def row(backend, *edits, n=8, readouts=(), temperature=0.0):
    prompt = tuple(backend.encode_chat([{"role": "user", "content": "Name a fruit."}], None))
    steering = Steering(runtime=backend.runtime, edits=edits, readouts=readouts)
    return Row(prompt, Sampling(1, temperature, None, None, 1.0, n), steering)


def boost(strength=20.0, latent=20, layer=LAYER, **span):
    return Boost(latent=latent, strength=strength, layer=layer, **span)


def short(result):
    """Whether the receipt falls short, so that the provider fails the sample."""
    return result.edited_positions != result.expected_positions


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_position_of_a_real_edit_counts(folder, name, dtype):
    backend = load(folder, name, dtype)
    edits = (boost(), Clamp(latent=LOUD, layer=LAYER), boost(5.0, layer=N_LAYERS - 1))
    wanted = row(backend, *edits)
    plain, steered = backend.generate([Row(wanted.prompt, wanted.sampling), wanted])
    assert (plain.edited_positions, plain.expected_positions) == (0, 0)
    assert steered.edited_positions == steered.expected_positions == 2 * (len(wanted.prompt) + 7)
    assert steered.held_positions == 0


LOSSES = {}


def loss(function):
    LOSSES[function.__name__] = function
    return function


@loss
def computed_as_zero(monkeypatch):
    zero = lambda self, x, positions: torch.zeros(x.shape)  # noqa: E731
    monkeypatch.setattr(LayerEdits, "delta", zero)


@loss
def amounts_of_zero(monkeypatch):
    amounts = LayerEdits._amounts
    monkeypatch.setattr(LayerEdits, "_amounts", lambda self, x: 0 * amounts(self, x))


@loss
def rows_of_zero(monkeypatch):
    made = LayerEdits.__init__

    def emptied(self, *args):
        made(self, *args)
        self.directions.zero_()

    monkeypatch.setattr(LayerEdits, "__init__", emptied)


@loss
def written_to_a_copy(monkeypatch):
    visit = Work.visit
    monkeypatch.setattr(Work, "visit", lambda self, layer, x, at: visit(self, layer, x.clone(), at))


@loss
def undone_behind_the_layer(monkeypatch):
    visit = Work.visit

    def undone(self, layer, x, at):
        before = x.clone()
        visit(self, layer, x, at)
        x.copy_(before)

    monkeypatch.setattr(Work, "visit", undone)


@loss
def skipped_at_one_step(monkeypatch):
    visit, arrive, calls = Work.visit, Work.arrive, []

    def skipping(self, layer, x, at):
        calls.append(layer)
        if len(calls) != 4:
            visit(self, layer, x, at)

    def arriving(self, layer, received):
        if len(calls) != 4:
            arrive(self, layer, received)

    monkeypatch.setattr(Work, "visit", skipping)
    monkeypatch.setattr(Work, "arrive", arriving)


@loss
def only_the_prompt_edited(monkeypatch):
    active = LayerEdits.active

    def at_first(self, positions):
        return active(self, positions) & (positions.shape[1] > 1)

    monkeypatch.setattr(LayerEdits, "active", at_first)


@loss
def at_another_layer(monkeypatch):
    made = Work.__init__

    def moved(self, rows, edits, *args):
        made(self, rows, {layer + 1: one for layer, one in edits.items()}, *args)

    monkeypatch.setattr(Work, "__init__", moved)


@loss
def of_another_row(monkeypatch):
    delta = LayerEdits.delta
    monkeypatch.setattr(LayerEdits, "delta", lambda self, x, at: delta(self, x, at).roll(1, 0))


@pytest.mark.parametrize("name", LOSSES)
def test_a_lost_edit_is_no_receipt(tiny, monkeypatch, name):
    wanted = [Row(row(tiny).prompt, row(tiny).sampling), row(tiny, boost())]
    assert not any(short(one) for one in tiny.generate(wanted))
    LOSSES[name](monkeypatch)
    assert short(tiny.generate(wanted)[1])


@pytest.mark.parametrize("name", ["computed_as_zero", "written_to_a_copy", "rows_of_zero"])
def test_a_lost_clamp_is_no_receipt(tiny, monkeypatch, name):
    wanted = row(tiny, Clamp(latent=LOUD, layer=LAYER))
    assert not short(tiny.generate([wanted])[0])
    LOSSES[name](monkeypatch)
    lost = tiny.generate([wanted])[0]
    # An empty row cannot be told from a clamp that finds nothing to do; loading refuses such rows.
    assert short(lost) or (name == "rows_of_zero" and lost.held_positions > 0)


def test_an_edit_cast_to_nothing_is_no_receipt(folder):
    backend = load(folder, dtype="bfloat16")
    [faint] = backend.generate([row(backend, boost(1e-7))])
    assert short(faint) and faint.edited_positions < faint.expected_positions
    [strong] = backend.generate([row(backend, boost(20.0))])
    assert not short(strong)


def test_a_clamp_that_finds_its_latent_at_the_value_is_counted_apart(tiny):
    silent = tuple(Clamp(latent=i, layer=LAYER) for i in range(5))
    wanted = row(tiny, *silent)
    [held] = tiny.generate([wanted])
    fed = len(wanted.prompt) + 7
    assert (held.edited_positions, held.expected_positions, held.held_positions) == (0, 0, fed)
    assert held.tokens == tiny.generate([Row(wanted.prompt, wanted.sampling)])[0].tokens
    mixed = row(tiny, *silent, boost(from_token=2))
    [result] = tiny.generate([mixed])
    assert (result.edited_positions, result.held_positions) == (5, fed - 5)
    assert not short(result)


def test_readings_have_the_same_receipt(tiny, monkeypatch):
    chat = [{"role": "user", "content": "Name a fruit."}]
    readout = Readout(latents=(20,), layer=LAYER)
    steering = Steering(runtime=tiny.runtime, edits=(boost(),), readouts=(readout,))
    passage = tiny.passage(chat, "An apple, or a pear.", steering)
    [reading] = tiny.read([passage])
    assert not short(reading)
    assert reading.edited_positions == len(passage.prompt) + len(passage.answer)
    written_to_a_copy(monkeypatch)
    assert short(tiny.read([passage])[0])


def test_the_self_check_goes_the_way_of_all_samples(tiny, folder, monkeypatch):
    assert "arrived at" in tiny.info.self_check
    for name in ("computed_as_zero", "written_to_a_copy", "skipped_at_one_step"):
        with monkeypatch.context() as patch:
            LOSSES[name](patch)
            with pytest.raises(EsrError, match="silently lost"):
                load(folder)


@pytest.mark.parametrize(
    ("edit", "sentence"),
    [
        (boost(latent=ZEROS), f"[Ll]atent {ZEROS}.*zero"),
        (Clamp(latent=ZEROS, layer=LAYER), f"[Ll]atent {ZEROS}.*zero"),
        (boost(latent=INFINITE), f"[Ll]atent {INFINITE}.*finite"),
        (AddVector(vector=(0.0,) * D_MODEL, strength=1.0, layer=LAYER), "vector.*zero"),
        (AddVector(vector=(1e39,) * D_MODEL, strength=1.0, layer=LAYER), "vector.*finite"),
        (boost(from_token=50), "it begins at position"),
    ],
)
def test_an_edit_without_effect_is_refused(tiny, edit, sentence):
    with pytest.raises(EsrError, match=sentence):
        tiny.check(row(tiny, edit))


def test_positions_that_leave_out_the_whole_prompt_are_refused(tiny):
    wanted = row(tiny, boost())
    skipping = tiny.runtime.model_copy(update={"skip_first": len(wanted.prompt)})
    steering = Steering(runtime=skipping, edits=(boost(),))
    with pytest.raises(EsrError, match="-M skip_first="):
        tiny.check(Row(wanted.prompt, wanted.sampling, steering))


def test_logits_that_are_no_numbers_fail_their_own_sample_alone(folder):
    model = get_model(
        f"esr/{folder}/llama",
        memoize=False,
        device="cpu",
        dtype="float16",
        sae_release=str(folder / "sae"),
        steering_layer=LAYER,
        feature_layer=LAYER,
    )

    async def both():
        found = {}
        async with anyio.create_task_group() as group:

            async def ask(strength):
                config = steering_config(
                    model, edits=(boost(strength),), seed=1, max_tokens=6, temperature=0.6
                )
                try:
                    found[strength] = await model.generate("Name a fruit.", config=config)
                except Exception as error:
                    found[strength] = error

            for strength in (2.0, 6e4):
                group.start_soon(ask, strength)
        return found

    found = anyio.run(both)
    assert isinstance(found[6e4], Exception)
    assert "no numbers" in str(found[6e4]) and "float16" in str(found[6e4])
    assert found[2.0].metadata["edited_positions"] > 6


def test_whatever_goes_wrong_while_loading_is_remembered(folder, monkeypatch):
    model = get_model(f"esr/{folder}/llama", memoize=False, device="cpu")
    calls = []

    def broken(*args):
        calls.append(1)
        raise KeyError("a part of the model")

    monkeypatch.setattr("esr_eval.backends.local.load_model", broken)
    for _ in range(3):
        with pytest.raises(EsrError, match=r"could not be loaded \(KeyError"):
            anyio.run(lambda: model.generate("Hi"))
    assert len(calls) == 1


def test_the_models_own_generation_settings_are_replaced_as_a_whole(folder, tmp_path):
    shutil.copytree(folder / "llama", tmp_path / "llama")
    plain = load(folder)
    wanted = row(plain, boost())
    [want] = plain.generate([wanted])
    settings = {
        "suppress_tokens": want.tokens[:3],
        "no_repeat_ngram_size": 1,
        "num_return_sequences": 1,
        "stop_strings": ["a"],
        "return_dict_in_generate": True,
        "min_length": 400,
        "max_time": 0.0,
        "sequence_bias": [[[want.tokens[0]], -50.0]],
    }
    (tmp_path / "llama" / "generation_config.json").write_text(json.dumps(settings), "utf-8")
    runtime = plain.runtime.model_copy(update={"model": str(tmp_path / "llama")})
    backend = LocalBackend(runtime, "cpu")
    steering = Steering(runtime=runtime, edits=(boost(),))
    assert backend.generate([Row(wanted.prompt, wanted.sampling, steering)]) == [want]


def test_what_stands_in_the_way_is_remembered_until_the_next_run_looks_again(folder, tmp_path):
    shutil.copytree(folder / "llama", tmp_path / "llama")
    weights = tmp_path / "llama" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:9000])
    model = get_model(f"esr/{tmp_path}/llama", memoize=False, device="cpu", dtype="float32")
    with pytest.raises(EsrError, match="damaged") as first:
        model.api.preflight(edits_needed=False)
    weights.write_bytes(whole)
    with pytest.raises(EsrError) as again:
        anyio.run(lambda: model.generate("Hi"))
    assert again.value is first.value
    model.api.preflight(edits_needed=False)
    assert anyio.run(lambda: model.generate("Hi")).usage.output_tokens > 0
