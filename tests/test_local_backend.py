"""The local engine on the embedded subject: parity, invariance, receipts, spans, readouts."""

import sys

import pytest
import torch

from esr_eval.dataset import prompts
from esr_eval.errors import EsrError
from esr_eval.spec import AddVector, Boost, Clamp, Readout, Steering
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling, scores

pytestmark = pytest.mark.model
LAYER = 14


def chat(backend, text, prefill=None):
    return tuple(backend.encode_chat([{"role": "user", "content": text}], prefill))


def sampling(seed=0, temperature=0.6, n=24, penalty=1.1):
    return Sampling(seed, temperature, None, None, penalty, n)


def spec(backend, *edits, readouts=()):
    return Steering(runtime=backend.runtime, edits=edits, readouts=readouts)


def different_rows(backend, count, temperature):
    """Rows that differ in prompt, edits, seed and length."""
    rows = []
    for i in range(count):
        edits = [
            (),
            (Boost(latent=10 + i, strength=40.0 + 5 * i, layer=LAYER),),
            (
                Clamp(latent=20 + i, value=30.0, layer=LAYER),
                Boost(latent=21 + i, strength=50.0, layer=LAYER, until_token=6),
            ),
            (Boost(latent=5 + i, strength=60.0, layer=LAYER, positions="prompt"),),
        ][i % 4]
        text = prompts()[i].text * (1 + i % 3)
        rows.append(
            Row(
                chat(backend, text),
                sampling(seed=i, temperature=temperature, n=12 + 3 * (i % 5)),
                spec(backend, *edits) if edits else None,
            )
        )
    return rows


def test_a_row_alone_equals_the_row_in_a_batch_of_16(backend):
    rows = different_rows(backend, 16, 0.6)
    together = backend.generate(rows)
    alone = [backend.generate([row])[0] for row in rows]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    assert [one.edited_positions for one in together] == [one.edited_positions for one in alone]
    assert all(len(one.tokens) > 0 for one in together)


def test_threads_take_short_turns_only_while_rows_are_generated(backend, monkeypatch):
    before, seen = sys.getswitchinterval(), []
    trace = backend._trace

    def watched(*args):
        seen.append(sys.getswitchinterval())
        return trace(*args)

    monkeypatch.setattr(backend, "_trace", watched)
    backend.generate([Row(chat(backend, "Say hi."), sampling(n=2), None)])
    assert seen[0] < before == sys.getswitchinterval()


def test_scores_that_were_compiled_choose_the_same_tokens(backend, monkeypatch):
    rows = different_rows(backend, 4, 0.6)
    want, asked = backend.generate(rows), []
    assert backend._compiled is None  # on a CPU

    def compiled(*args):
        asked.append(len(args[0]))
        return scores(*args)

    monkeypatch.setattr(backend, "_compiled", compiled)
    assert backend.generate(rows) == want
    assert set(asked) == {4}
    assert backend.generate(rows[:1]) == want[:1] and set(asked) == {4}


def test_unsteered_greedy_equals_plain_transformers(backend):
    row = Row(chat(backend, prompts()[0].text), sampling(temperature=0.0, n=32, penalty=1.0))
    ids = torch.tensor([row.prompt])
    plain = backend._model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False
    )
    ours = backend.generate([row])[0]
    want = plain[0, len(row.prompt) :].tolist()
    assert ours.tokens == [token for token in want if token not in backend.ends]


def test_a_boost_equals_a_plain_forward_hook(backend):
    latent, strength = 33, 70.0
    direction = backend.sae.decoder_row(latent) * strength
    row = Row(
        chat(backend, prompts()[3].text),
        sampling(temperature=0.0, n=24, penalty=1.0),
        spec(backend, Boost(latent=latent, strength=strength, layer=LAYER)),
    )
    first = True

    def hook(module, args, output):
        nonlocal first
        edited = output + direction
        if first:  # position 0 is an attention sink that this subject leaves alone
            edited[:, 0] = output[:, 0]
        first = False
        return edited

    ids = torch.tensor([row.prompt])
    handle = backend._model.model.layers[LAYER].register_forward_hook(hook)
    try:
        plain = backend._model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False
        )
    finally:
        handle.remove()
    ours = backend.generate([row])[0]
    want = plain[0, len(row.prompt) :].tolist()
    assert ours.tokens == [token for token in want if token not in backend.ends]
    unsteered = backend.generate([Row(row.prompt, row.sampling)])[0]
    assert ours.tokens != unsteered.tokens


def test_a_steered_row_leaves_no_trace_in_later_ones(backend):
    row = Row(chat(backend, prompts()[1].text), sampling(seed=3))
    before = backend.generate([row])
    steered = Row(
        row.prompt, row.sampling, spec(backend, Boost(latent=9, strength=90, layer=LAYER))
    )
    assert backend.generate([steered])[0].tokens != before[0].tokens
    assert backend.generate([row]) == before


def test_strength_zero_is_no_steering(backend):
    row = Row(chat(backend, prompts()[1].text), sampling(seed=3))
    zero = Row(row.prompt, row.sampling, spec(backend, Boost(latent=9, strength=0.0, layer=LAYER)))
    assert backend.generate([zero])[0].tokens == backend.generate([row])[0].tokens


def test_adding_a_decoder_row_as_a_vector_is_the_boost(backend):
    boost = Boost(latent=12, strength=65.0, layer=LAYER)
    vector = AddVector(
        vector=tuple(backend.sae.decoder_row(12).tolist()), strength=65.0, layer=LAYER
    )
    prompt = chat(backend, prompts()[2].text)
    one, other = backend.generate(
        [Row(prompt, sampling(5), spec(backend, edit)) for edit in (boost, vector)]
    )
    assert one.tokens == other.tokens


def test_early_end_of_one_row_loses_nothing_of_the_others(backend):
    short = Row(chat(backend, "Answer with one word only: what colour is the sky?"), sampling(n=60))
    long = Row(chat(backend, prompts()[0].text), sampling(seed=1, n=60))
    limited = Row(long.prompt, sampling(seed=1, n=7))
    results = backend.generate([short, long, limited])
    assert results[1].tokens[:7] == results[2].tokens
    assert (results[2].stop_reason, len(results[2].tokens)) == ("max_tokens", 7)
    assert results[1].tokens == backend.generate([long])[0].tokens
    assert results[0].tokens == backend.generate([short])[0].tokens


def test_a_row_that_ends_by_itself_is_cut_there_and_counted_right(backend, monkeypatch):
    boost = Boost(latent=8, strength=50.0, layer=LAYER)
    row = Row(chat(backend, prompts()[0].text), sampling(n=30), spec(backend, boost))
    companion = Row(chat(backend, prompts()[1].text), sampling(n=30))
    tokens = backend.generate([row])[0].tokens
    # A token that the row is known to choose becomes the end token.
    at = next(i for i in range(5, 30) if tokens[i] not in tokens[:i])
    monkeypatch.setattr(backend, "ends", [tokens[at]])
    for result in (backend.generate([row])[0], backend.generate([companion, row])[1]):
        assert result.stop_reason == "stop"
        assert result.tokens == tokens[:at]
        assert result.edited_positions == result.expected_positions
        assert result.edited_positions == len(row.prompt) - 1 + at


def test_from_token_changes_nothing_before_it(backend):
    prompt = chat(backend, prompts()[4].text)
    late = Boost(latent=40, strength=120.0, layer=LAYER, from_token=10)
    plain, steered = backend.generate(
        [Row(prompt, sampling(2, n=30)), Row(prompt, sampling(2, n=30), spec(backend, late))]
    )
    # Token 10 is edited as it goes in, so the first changed choice is token 11.
    assert plain.tokens[:11] == steered.tokens[:11]
    assert plain.tokens != steered.tokens
    assert steered.edited_positions == len(steered.tokens) - 1 - 10


def test_prefill_continues_the_text(backend):
    prefix = "To make coffee, first"
    prompt = chat(backend, "How do you make coffee?", prefill=prefix)
    assert backend.tokenizer.decode(prompt).endswith(prefix)
    result = backend.generate([Row(prompt, sampling(n=8))])[0]
    assert len(result.tokens) == 8


def test_long_prompts_keep_their_place_beside_short_ones(backend):
    long = Row(chat(backend, "word " * 600 + "Summarise this."), sampling(1, n=6))
    short = Row(
        chat(backend, "Hi"),
        sampling(2, n=6),
        spec(backend, Boost(latent=3, strength=60, layer=LAYER)),
    )
    together = backend.generate([long, short])
    assert together[0] == backend.generate([long])[0]
    assert together[1] == backend.generate([short])[0]


def test_readouts_see_the_boost_and_equal_the_dense_encode(backend):
    from sae_lens import SAE

    latent, strength = 33, 55.0
    prompt = chat(backend, prompts()[0].text)
    readout = Readout(latents=(latent, 34), layer=LAYER, reduce="tokens")
    row = Row(
        prompt,
        sampling(temperature=0.0, n=6),
        spec(backend, Boost(latent=latent, strength=strength, layer=LAYER), readouts=(readout,)),
    )
    plain = Row(prompt, sampling(temperature=0.0, n=6), spec(backend, readouts=(readout,)))
    boosted, unboosted = backend.generate([row, plain])
    assert boosted.readouts[0].positions == len(prompt) - 1 + 5
    mean = [sum(r.readouts[0].values[0]) / r.readouts[0].positions for r in (boosted, unboosted)]
    assert mean[0] > mean[1] + strength / 4

    sae = SAE.load_from_disk(backend.sae.config.folder, device="cpu", dtype="float32")
    ids = torch.tensor([[*prompt, *unboosted.tokens[:5]]])
    with torch.no_grad():
        hidden = backend._model(ids, output_hidden_states=True).hidden_states[LAYER + 1]
        dense = sae.encode(hidden)[0, 1:, latent]
    assert torch.allclose(
        torch.tensor(unboosted.readouts[0].values[0]), dense, rtol=1e-3, atol=1e-2
    )


@pytest.mark.parametrize("layer", [LAYER, LAYER - 4])
def test_the_saes_fit_is_that_of_sae_lens_on_the_models_own_states(backend, layer):
    from sae_lens import SAE

    # An edit in the spec is not made: what is measured is the stream that the SAE describes.
    steering = spec(backend, Boost(latent=3, strength=500.0, layer=layer))
    passages = [
        backend.passage([{"role": "user", "content": prompt.text}], answer, steering)
        for prompt, answer in zip(
            prompts(), ("Mix flour and water, and wait.", "No."), strict=False
        )
    ]
    fit = backend.sae_fit(passages, layer)
    sae = SAE.load_from_disk(backend.sae.config.folder, device="cpu", dtype="float32")
    found = []
    with torch.no_grad():
        for one in passages:
            ids = torch.tensor([[*one.prompt, *one.answer]])
            states = backend._model(ids, output_hidden_states=True).hidden_states
            found.append(states[layer + 1][0, len(one.prompt) :])
        x = torch.cat(found)
        latents = sae.encode(x)
        explained = 1 - (x - sae.decode(latents)).square().sum() / (x - x.mean(0)).square().sum()
    assert fit.explained_variance == pytest.approx(explained.item(), abs=1e-4)
    assert fit.l0 == pytest.approx((latents > 0).sum(-1).double().mean().item(), rel=1e-3)
    assert fit.median_norm == pytest.approx(x.norm(dim=-1).median().item(), rel=1e-4)
    assert (fit.layer, fit.tokens) == (layer, len(x))


def test_a_fit_of_no_answer_or_no_layer_is_refused(backend):
    chat = [{"role": "user", "content": "Hello"}]
    with pytest.raises(EsrError, match="no activations"):
        backend.sae_fit([backend.passage(chat, "", spec(backend))], LAYER)
    with pytest.raises(EsrError, match="Layer 77"):
        backend.sae_fit([backend.passage(chat, "Yes.", spec(backend))], 77)


def test_a_request_that_cannot_be_carried_out_is_told_before_it_joins_a_batch(backend):
    prompt = chat(backend, "Hi")
    narrow = AddVector(vector=(1.0, 2.0), strength=1.0, layer=LAYER)
    for edit, word in [
        (Boost(latent=999_999, strength=1, layer=LAYER), "Latent 999999"),
        (Boost(latent=1, strength=1, layer=77), "Layer 77"),
        (narrow, "2 values"),
    ]:
        with pytest.raises(EsrError, match=word):
            backend.check(Row(prompt, sampling(), spec(backend, edit)))
    readout = Readout(latents=(4, 999_999), layer=LAYER)
    with pytest.raises(EsrError, match="Latent 999999"):
        backend.check(Row(prompt, sampling(), spec(backend, readouts=(readout,))))
    with pytest.raises(EsrError, match="lower --max-tokens"):
        backend.check(Row(prompt, sampling(n=8192)))
    backend.check(Row(prompt, sampling(), spec(backend, Boost(latent=1, strength=1, layer=3))))


def test_the_self_check_catches_an_edit_that_does_not_arrive(backend, monkeypatch):
    assert "moved the logits" in backend.info.self_check
    monkeypatch.setattr("esr_eval.backends.base.PROBE_STRENGTH", 0.0)
    with pytest.raises(EsrError, match="silently lost"):
        backend._self_check()


def test_the_models_own_generation_settings_have_no_say(backend, monkeypatch):
    row = Row(chat(backend, prompts()[3].text), sampling(1, n=16))
    [want] = backend.generate([row])
    for setting, value in (("repetition_penalty", 1.9), ("no_repeat_ngram_size", 1)):
        monkeypatch.setattr(backend._model.generation_config, setting, value)
    assert backend.generate([row]) == [want]
