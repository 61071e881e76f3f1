"""Adapters on tiny models of real architectures: PEFT's own logits, or a refusal."""

import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
from peft import IA3Config, LoHaConfig, LoKrConfig, LoraConfig, PeftModel, get_peft_model
from peft.utils import load_peft_weights
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from esr_eval._util.minilm import load_encoder
from esr_eval.errors import EsrError
from esr_eval.model.adapters import check_adapter
from esr_eval.model.loading import attention_in_use, empty_model, load_model, read_ends
from esr_eval.spec import Runtime

SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 200,
}
IDS = torch.arange(12).unsqueeze(0)
KINDS = {
    "lora": LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"]),
    "rslora": LoraConfig(
        r=4, use_rslora=True, rank_pattern={"v_proj": 2}, target_modules=r".*_proj"
    ),
    "dora": LoraConfig(r=4, lora_alpha=32, use_dora=True, target_modules=["q_proj", "v_proj"]),
    "saved": LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"]),
    "embedding": LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"]),
    "tokens": LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 5]),
    "loha": LoHaConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "lokr": LoKrConfig(r=4, target_modules=["q_proj", "v_proj"]),
    "ia3": IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
}


def saved_model(folder, cls, config):
    torch.manual_seed(0)
    cls(config).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path):
    config = LlamaConfig(**SHAPE, initializer_range=0.4, tie_word_embeddings=False)
    return saved_model(tmp_path / "base", LlamaForCausalLM, config)


def trained(base, folder, config, dtype=torch.float32):
    """An adapter whose weights are far from where they began."""
    torch.manual_seed(1)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    model = get_peft_model(plain, copy.deepcopy(config))
    for weight in model.parameters():
        if weight.requires_grad:
            weight.data.add_(torch.randn_like(weight) * 0.3)
    model.save_pretrained(folder)
    return folder


def runtime(base, adapter=None, **more):
    return Runtime(subject="s", model=str(base), adapter=adapter and str(adapter), **more)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.float()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_gives_pefts_own_logits(tmp_path, base, kind):
    adapter = trained(base, tmp_path / "adapter", KINDS[kind])
    check_adapter(runtime(base, adapter), empty_model(runtime(base)))
    ours = logits(load_model(runtime(base, adapter), "cpu"))
    plain = AutoModelForCausalLM.from_pretrained(base)
    without = logits(plain)
    theirs = logits(PeftModel.from_pretrained(plain, adapter).eval())
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, without, atol=1e-2)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_so_does_one_on_a_model_in_half_precision(tmp_path, base, kind):
    adapter = trained(base, tmp_path / "adapter", KINDS[kind], torch.bfloat16)
    ours = logits(load_model(runtime(base, adapter, dtype="bfloat16"), "cpu"))
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    assert torch.equal(ours, logits(PeftModel.from_pretrained(plain, adapter).eval()))


ARCHITECTURES = [
    (Gemma2ForCausalLM, Gemma2Config(**SHAPE)),
    (Gemma3ForCausalLM, Gemma3TextConfig(**SHAPE)),
    (Qwen3ForCausalLM, Qwen3Config(**SHAPE)),
    (GptOssForCausalLM, GptOssConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2)),
]


@pytest.mark.parametrize(("cls", "config"), ARCHITECTURES, ids=lambda v: getattr(v, "__name__", ""))
def test_so_does_one_on_another_architecture(tmp_path, cls, config):
    base = saved_model(tmp_path / "base", cls, config)
    adapter = trained(base, tmp_path / "adapter", KINDS["lora"])
    check_adapter(runtime(base, adapter), empty_model(runtime(base)))
    model = load_model(runtime(base, adapter), "cpu")
    implementation = attention_in_use(model)
    plain = AutoModelForCausalLM.from_pretrained(base, attn_implementation=implementation)
    assert torch.equal(logits(model), logits(PeftModel.from_pretrained(plain, adapter).eval()))


def with_keys(change):
    def damage(folder):
        file = folder / "adapter_model.safetensors"
        save_file(dict(filter(None, map(change, sorted(load_file(file).items())))), file)

    return damage


def renamed(old, new):
    return with_keys(lambda item: (item[0].replace(old, new), item[1]))


DAMAGES = {
    "prefix": (
        renamed("model.model.layers", "model.model.language_model.layers"),
        r"12 of the adapter's 12 tensors found no place in the model \(model.*and 9 more\), "
        r"12 of the model's 12 adapter weights were not in the file",
    ),
    "no prefix": (renamed("base_model.model.model.", ""), "12 of the adapter's 12 tensors"),
    "other library": (renamed("lora_A", "lora_down"), "6 of the adapter's 12 tensors"),
    "half": (
        with_keys(lambda item: None if "v_proj" in item[0] else item),
        "6 of the model's 12 adapter weights were not in the file",
    ),
    "no B": (with_keys(lambda item: None if "lora_B" in item[0] else item), "6 of the model's 12"),
    "one layer more": (renamed("layers.2.", "layers.7."), "4 of the adapter's 12 tensors"),
    "rank": (
        with_keys(
            lambda item: (
                item[0],
                (item[1][:2] if "lora_A" in item[0] else item[1][:, :2]).contiguous(),
            )
        ),
        r"12 have another shape \(model.* \(2, 32\) instead of \(4, 32\)",
    ),
    "width": (
        with_keys(lambda i: (i[0], torch.cat([i[1], i[1]], 1) if "lora_A" in i[0] else i[1])),
        "6 have another shape",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("when", ["before the weights load", "as they load"])
def test_an_adapter_that_does_not_fit_is_refused_with_the_counts(tmp_path, base, damage, when):
    adapter = trained(base, tmp_path / "adapter", KINDS["lora"])
    change, sentence = DAMAGES[damage]
    change(adapter)
    with pytest.raises(EsrError, match=sentence):
        if when == "as they load":
            load_model(runtime(base, adapter), "cpu")
        else:
            check_adapter(runtime(base, adapter), empty_model(runtime(base)))


def test_half_a_dora_and_target_modules_that_are_not_there_are_refused(tmp_path, base):
    dora = trained(base, tmp_path / "dora", KINDS["dora"])
    with_keys(lambda item: None if "magnitude" in item[0] else item)(dora)
    with pytest.raises(EsrError, match="6 of the model's 18 adapter weights were not in the file"):
        check_adapter(runtime(base, dora), empty_model(runtime(base)))
    lora = trained(base, tmp_path / "lora", KINDS["lora"])
    config = lora / "adapter_config.json"
    config.write_text(config.read_text("utf-8").replace("q_proj", "qq").replace("v_proj", "vv"))
    with pytest.raises(EsrError, match="could not be loaded: Target modules"):
        check_adapter(runtime(base, lora), empty_model(runtime(base)))


def test_kinds_that_are_not_wholly_in_the_layers_are_refused(tmp_path, base):
    activated = LoraConfig(r=4, target_modules=["q_proj"], alora_invocation_tokens=[5])
    adapter = trained(base, tmp_path / "adapter", activated)
    with pytest.raises(EsrError, match="alora_invocation_tokens"):
        check_adapter(runtime(base, adapter), empty_model(runtime(base)))
    dora = trained(base, tmp_path / "dora", KINDS["dora"])
    with pytest.raises(EsrError, match="no plain LoRA, and vLLM applies no other"):
        check_adapter(runtime(base, dora, backend="vllm"), empty_model(runtime(base)))


def test_an_adapter_in_torchs_format_is_read_without_running_what_is_in_it(tmp_path, base):
    adapter = trained(base, tmp_path / "adapter", KINDS["lora"])
    wanted = logits(load_model(runtime(base, adapter), "cpu"))
    file = adapter / "adapter_model.safetensors"
    torch.save(load_peft_weights(str(adapter), device="cpu"), adapter / "adapter_model.bin")
    file.unlink()
    assert torch.equal(logits(load_model(runtime(base, adapter), "cpu")), wanted)

    class Hostile:
        def __reduce__(self):
            return (print, ("ran",))

    torch.save({"x": Hostile()}, adapter / "adapter_model.bin")
    with pytest.raises(EsrError, match="could not be loaded"):
        check_adapter(runtime(base, adapter), empty_model(runtime(base)))


def test_weights_that_are_in_no_file_are_not_made_up(tmp_path, base):
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(EsrError, match=r"1 of the weights of .* at random \(model.layers.1.mlp"):
        load_model(runtime(base), "cpu")


def test_transformers_never_loads_two_models_at_once(base, monkeypatch):
    under_way, most = [], []

    def load(*args, **kwargs):
        under_way.append(1)
        most.append(len(under_way))
        time.sleep(0.1)
        under_way.pop()
        raise OSError("enough")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(AutoModel, "from_pretrained", load)
    loads = [partial(load_model, runtime(base), "cpu"), partial(load_encoder, base)] * 2
    with ThreadPoolExecutor(4) as pool:
        done = [pool.submit(one) for one in loads]
    assert [type(one.exception()) for one in done] == [EsrError, OSError] * 2
    assert most == [1] * 4


@pytest.mark.parametrize(
    ("cls", "config", "eager"),
    [
        (Gemma2ForCausalLM, Gemma2Config(**SHAPE), True),
        (Gemma2ForCausalLM, Gemma2Config(**SHAPE, attn_logit_softcapping=None), False),
        (Gemma3ForCausalLM, Gemma3TextConfig(**SHAPE), False),
        (LlamaForCausalLM, LlamaConfig(**SHAPE), False),
    ],
)
def test_capped_attention_is_computed_eagerly(tmp_path, monkeypatch, cls, config, eager):
    base = saved_model(tmp_path / "base", cls, config)
    asked = {}
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **kwargs: asked.update(kwargs) or load(*args, **kwargs),
    )
    model = load_model(runtime(base), "cpu")
    # Asked for by name: transformers' own choice differs from version to version.
    assert asked.get("attn_implementation") == ("eager" if eager else None)
    assert attention_in_use(model) == "eager" or not eager


class Tokenizer:
    """All that is asked of a tokenizer here."""

    def __init__(self, end):
        self.eos_token_id = end


@pytest.mark.parametrize(
    ("generation", "config", "text", "tokenizer", "ends"),
    [
        ('{"eos_token_id": 5}', 6, None, 7, [5, 6, 7]),
        ('{"eos_token_id": [5, 6]}', [6, [8]], None, 5, [5, 6, 8]),
        ('{"eos_token_id": null}', None, [3, -1], None, [3]),
        (None, 4, 9, 7, [4, 9, 7]),
        (None, None, None, 7, [7]),  # and not the 2 of LlamaConfig
    ],
)
def test_every_end_that_a_model_names_ends_its_answers(
    tmp_path, generation, config, text, tokenizer, ends
):
    about = {"model_type": "llama", "eos_token_id": config, "text_config": {"eos_token_id": text}}
    (tmp_path / "config.json").write_text(json.dumps(about), "utf-8")
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(generation, "utf-8")
    assert read_ends(runtime(tmp_path), Tokenizer(tokenizer)) == ends


def test_a_model_that_names_no_end_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}', "utf-8")
    with pytest.raises(EsrError, match="names a token that ends a text"):
        read_ends(runtime(tmp_path), Tokenizer(None))
