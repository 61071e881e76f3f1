"""Steered tokens on the shapes of real models equal those of a plain forward hook.

Random weights, but the real fields: number of layers, grouped heads, soft-caps, sliding windows, scaled
embeddings, rotary scaling, several end tokens, a vision tower beside the text model.
"""

import json

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    LlamaConfig,
)

from esr_eval.backends.local import LocalBackend
from esr_eval.model.loading import load_tokenizer
from esr_eval.spec import AddVector, Readout, Runtime, Steering
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling
from esr_eval.subjects import find_subject

pytestmark = pytest.mark.model
VOCABULARY, WIDTH = 49152, 64
HEADS = {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 8}
SMALL = {"hidden_size": WIDTH, "intermediate_size": 128, "vocab_size": VOCABULARY, **HEADS}
LLAMA = {
    **SMALL,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 8.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
    },
    "max_position_embeddings": 131072,
}
GEMMA_3 = {
    **SMALL,
    "num_hidden_layers": 34,
    "sliding_window": 16,
    "query_pre_attn_scalar": 256,
    "max_position_embeddings": 131072,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 34,  # as many as the text has, so that their number tells nothing
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
SHAPES = {
    "llama-70b": (LlamaConfig(**LLAMA, num_hidden_layers=80), 33, 1.2, "model.layers"),
    "llama-8b": (LlamaConfig(**LLAMA, num_hidden_layers=32), 19, 1.15, "model.layers"),
    "gemma-2b": (
        Gemma2Config(
            **SMALL,
            num_hidden_layers=26,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=30.0,
            sliding_window=16,
            query_pre_attn_scalar=1,
            max_position_embeddings=8192,
        ),
        16,
        1.1,
        "model.layers",
    ),
    "gemma-3-4b": (
        Gemma3Config(text_config=GEMMA_3, vision_config=VISION, mm_tokens_per_image=4),
        20,
        1.1,
        "model.language_model.layers",
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(find_subject("smollm2-135m").runtime())


def plain_tokens(model, layers, layer, direction, prompt, penalty, ends, count):
    """Greedy tokens of plain transformers under a forward hook, one forward pass a token."""

    def hook(module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        x = x + direction
        return (x, *output[1:]) if isinstance(output, tuple) else x

    handle = model.get_submodule(layers)[layer].register_forward_hook(hook)
    tokens = list(prompt)
    try:
        with torch.inference_mode():
            for _ in range(count):
                logits = model(input_ids=torch.tensor([tokens])).logits[0, -1].float()
                seen = torch.tensor(sorted(set(tokens)))
                punished = torch.where(
                    logits[seen] > 0, logits[seen] / penalty, logits[seen] * penalty
                )
                logits[seen] = punished
                chosen = int(logits.argmax())
                if chosen in ends:
                    break
                tokens.append(chosen)
    finally:
        handle.remove()
    return tokens[len(prompt) :]


def plain_norms(model, layers, layer, direction, ids):
    """Norms behind a layer in one forward pass of plain transformers, with and without a push."""
    seen = []

    def hook(module, args, output):
        x = output[0] if isinstance(output, tuple) else output
        seen.append((x[0] + direction).norm(dim=-1))

    handle = model.get_submodule(layers)[layer].register_forward_hook(hook)
    with torch.inference_mode():
        model(input_ids=torch.tensor([ids]))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("name", SHAPES)
def test_steered_tokens_and_norms_equal_a_plain_forward_hook(name, tmp_path, tokenizer):
    config, layer, penalty, layers = SHAPES[name]
    torch.manual_seed(1)
    kind = (
        Gemma3ForConditionalGeneration if isinstance(config, Gemma3Config) else AutoModelForCausalLM
    )
    made = kind(config) if kind is not AutoModelForCausalLM else kind.from_config(config)
    for parameter in made.parameters():  # random weights of the usual size say one word for ever
        if parameter.ndim > 1:
            parameter.data *= 3
    made.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    ends = [tokenizer.eos_token_id, 1, 4]
    settings = {"eos_token_id": ends, "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (tmp_path / "generation_config.json").write_text(json.dumps(settings), "utf-8")

    backend = LocalBackend(Runtime(subject=name, model=str(tmp_path), steering_layer=layer), "cpu")
    generator = torch.Generator().manual_seed(layer)
    direction = torch.randn(WIDTH, generator=generator)
    edit = AddVector(vector=tuple(direction.tolist()), strength=4.0, layer=layer)
    norms = Readout(latents="norm", layer=layer, reduce="tokens")
    mean = Readout(latents="norm", layer=layer, reduce="mean", positions="generated")
    rows = [
        Row(
            tuple(backend.encode_chat([{"role": "user", "content": text}], None)),
            Sampling(0, 0.0, None, None, penalty, 12),
            Steering(
                runtime=backend.runtime, edits=(edit,) if steered else (), readouts=(norms, mean)
            ),
        )
        for text in ("Hi", "How do you boil an egg so that it is neither hard nor raw?")
        for steered in (True, False)
    ]
    answers = backend.generate(rows)
    assert GenerationConfig.from_pretrained(tmp_path).eos_token_id == ends
    plain = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    for row, answer in zip(rows, answers, strict=True):
        push = 4.0 * direction if row.steering.edits else torch.zeros(WIDTH)
        want = plain_tokens(plain, layers, layer, push, row.prompt, penalty, backend.ends, 12)
        assert answer.tokens == want
        assert answer.edited_positions == answer.expected_positions
        every, generated = answer.readouts
        fed = [*row.prompt, *answer.tokens][: every.positions]
        assert every.latents == "norm" and every.positions >= len(row.prompt) + len(want) - 1
        made = plain_norms(plain, layers, layer, push, fed)
        torch.testing.assert_close(torch.tensor(every.values), made[None], rtol=1e-4, atol=1e-4)
        assert generated.positions == every.positions - len(row.prompt) > 0
        rest = made[len(row.prompt) :].mean().item()
        assert generated.values == [pytest.approx(rest, rel=1e-4)]
    assert answers[0].tokens != answers[1].tokens
