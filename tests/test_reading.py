"""Activations read over finished answers: what generation read, alone as in a batch, by latent."""

import anyio
import numpy as np
import pytest
import torch
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, get_model

from esr_eval.errors import EsrError
from esr_eval.solvers import runtime_of
from esr_eval.spec import Boost, Readout, Steering
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling

pytestmark = pytest.mark.model
LAYER = 14
CHAT = [{"role": "user", "content": "Explain how to bake bread."}]
ANSWER = "First, mix flour and water. Then knead the dough — “well” — and let it rise."


def steering(backend, *readouts, edits=()):
    return Steering(runtime=backend.runtime, edits=edits, readouts=readouts)


def test_reading_agrees_with_what_was_read_while_generating(backend):
    latent = 5
    boost = Boost(latent=latent, strength=40.0, layer=LAYER)
    readout = Readout(latents=(latent, 34), layer=LAYER, reduce="tokens", positions="generated")
    spec = steering(backend, readout, edits=(boost,))
    sampling = Sampling(
        seed=1, temperature=0.6, top_p=None, top_k=None, repetition_penalty=1.1, max_tokens=20
    )
    row = Row(tuple(backend.encode_chat(CHAT, None)), sampling, spec)
    [made] = backend.generate([row])
    text = backend.decode(made.tokens)
    passage = backend.passage(CHAT, text, spec)
    if passage.answer != tuple(made.tokens):
        pytest.skip("this text has another tokenisation than the one that was generated")
    [reading] = backend.read([passage])
    # The last token is chosen but never fed back while generating.
    known = np.array(made.readouts[0].values)
    np.testing.assert_allclose(reading.values[0][:, : known.shape[1]], known, rtol=1e-3, atol=1e-2)
    assert reading.edited_positions == reading.expected_positions == made.edited_positions + 1


def test_the_whole_sae_agrees_with_single_latents_and_their_reductions(backend):
    every = Readout(latents="all", layer=LAYER, reduce="tokens")
    passage = backend.passage(CHAT, ANSWER, steering(backend, every))
    [reading] = backend.read([passage])
    whole = reading.values[0]
    positions = len(passage.prompt) + len(passage.answer) - backend.runtime.skip_first
    assert whole.shape == (4096, positions) and whole.dtype == np.float32
    some = tuple(int(i) for i in np.argsort(-whole.max(1))[:3])
    readouts = [Readout(latents=some, layer=LAYER, reduce=r) for r in ("max", "mean", "rate")]
    [few] = backend.read([backend.passage(CHAT, ANSWER, steering(backend, *readouts))])
    chosen = whole[list(some)]
    expected = (chosen.max(1), chosen.mean(1), (chosen > 0).mean(1))
    for value, wanted in zip(few.values, expected, strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-4, atol=1e-3)


def test_norms_equal_those_of_the_models_own_hidden_states(backend):
    readouts = [
        Readout(latents="norm", layer=LAYER, reduce=how, positions=where)
        for how, where in (("tokens", "all"), ("mean", "generated"), ("max", "prompt"))
    ]
    spec = steering(backend, *readouts)
    passages = [backend.passage(CHAT, ANSWER * times, spec) for times in (1, 3)]
    skip = backend.runtime.skip_first
    assert skip > 0
    for passage, reading in zip(passages, backend.read(passages), strict=True):
        backend.check(passage)
        ids = torch.tensor([[*passage.prompt, *passage.answer]])
        with torch.inference_mode():
            states = backend._model(ids, output_hidden_states=True).hidden_states[LAYER + 1]
        norms, first = states[0].norm(dim=-1).numpy(), len(passage.prompt)
        wanted = norms[None, skip:], norms[None, first:].mean(1), norms[None, skip:first].max(1)
        for value, want in zip(reading.values, wanted, strict=True):
            assert value.shape == want.shape and value.dtype == np.float32
            np.testing.assert_allclose(value, want, rtol=1e-4)


def test_norms_are_read_of_the_edited_residual_in_a_batch_as_alone(backend):
    readout = Readout(latents="norm", layer=LAYER, reduce="tokens")
    rows = [
        Row(
            tuple(backend.encode_chat([{"role": "user", "content": "Hello! " * times}], None)),
            Sampling(times, 0.6, None, None, 1.1, 6),
            steering(backend, readout, edits=edits),
        )
        for times in (1, 20)
        for edits in ((), (Boost(latent=7, strength=500.0, layer=LAYER),))
    ]
    together = backend.generate(rows)
    for row, one in zip(rows, together, strict=True):
        [alone] = backend.generate([row])
        assert one.readouts[0].positions == alone.readouts[0].positions > len(row.prompt)
        np.testing.assert_allclose(one.readouts[0].values, alone.readouts[0].values, rtol=1e-4)
    plain, boosted = (np.median(one.readouts[0].values) for one in together[:2])
    assert boosted > plain + 100


def test_a_passage_reads_the_same_alone_and_beside_others(backend):
    readout = Readout(latents="all", layer=LAYER)
    plain = steering(backend, readout)
    boosted = steering(backend, readout, edits=(Boost(latent=7, strength=50.0, layer=LAYER),))
    passages = [
        backend.passage(CHAT, ANSWER, plain),
        backend.passage(CHAT, ANSWER * 3, boosted),
        backend.passage(CHAT, "", plain),
    ]
    together = backend.read(passages)
    for passage, reading in zip(passages, together, strict=True):
        [alone] = backend.read([passage])
        np.testing.assert_allclose(alone.values[0], reading.values[0], rtol=1e-3, atol=1e-2)
        assert alone.edited_positions == reading.edited_positions
    assert together[0].edited_positions == 0 < together[1].edited_positions


def test_offsets_point_at_the_tokens_of_the_answer(backend):
    passage = backend.passage(CHAT, ANSWER, steering(backend))
    pieces = [ANSWER[start:end] for start, end in passage.offsets]
    assert pieces[0] == "First" and ANSWER.endswith(pieces[-1])
    assert (np.diff(passage.offsets[:, 0]) >= 0).all()


def test_the_boost_shows_in_its_own_latent(backend):
    latent = 7
    readout = Readout(latents=(latent,), layer=LAYER, reduce="mean", positions="generated")
    plain = backend.passage(CHAT, ANSWER, steering(backend, readout))
    boost = Boost(latent=latent, strength=60.0, layer=LAYER)
    steered = backend.passage(CHAT, ANSWER, steering(backend, readout, edits=(boost,)))
    without, with_boost = (reading.values[0][0] for reading in backend.read([plain, steered]))
    assert with_boost > without + 20


def test_reading_through_the_provider_and_what_it_refuses():
    model = get_model("esr/smollm2-135m", device="cpu", memoize=False)
    runtime = runtime_of(model)
    chat = [ChatMessageUser(content="Hello"), ChatMessageAssistant(content="Good day.")]
    readout = Readout(latents="all", layer=LAYER)
    spec = Steering(runtime=runtime, readouts=(readout,))

    async def both():
        other = Steering(runtime=runtime.model_copy(update={"dtype": "bfloat16"}))
        with pytest.raises(EsrError, match="another runtime"):
            await model.api.read(chat, other)
        with pytest.raises(EsrError, match="no answer"):
            await model.api.read(chat[:1], spec)
        with pytest.raises(EsrError, match="read over the finished answer"):
            await model.generate(chat[:1], config={"extra_body": spec.to_extra_body()})
        norm = Readout(latents="norm", layer=LAYER, positions="generated")
        asked = Steering(runtime=runtime, readouts=(norm,)).to_extra_body()
        made = await model.generate(chat[:1], config={"extra_body": asked, "max_tokens": 3})
        [told] = made.metadata["readouts"]
        assert told["latents"] == "norm" and told["positions"] == 2 and told["values"][0] > 1
        return await model.api.read(chat, spec)

    reading = anyio.run(both)
    assert (
        reading.values[0].shape == (4096,) and torch.isfinite(torch.tensor(reading.values[0])).all()
    )
    assert reading.answer_tokens == len(reading.offsets)
