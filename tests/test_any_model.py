"""Models and SAEs beyond the named ones: tiny random weights, the real code."""

import copy
import itertools

import anyio
import pytest
import torch
from inspect_ai.model import get_model
from sae_lens import SAE, StandardSAE, StandardSAEConfig
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from esr_eval.errors import EsrError
from esr_eval.sae.config import local_folder, read_sae_config
from esr_eval.sae.sparse import open_sae
from esr_eval.solvers import runtime_of, steering_config
from esr_eval.spec import Boost, SAERef

pytestmark = pytest.mark.model
D_MODEL, N_LAYERS = 32, 3
SHAPE = {
    "hidden_size": D_MODEL,
    "intermediate_size": 64,
    "num_hidden_layers": N_LAYERS,
    "num_attention_heads": 4,
    "vocab_size": 49152,
}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
MODELS = [
    (LlamaForCausalLM, LlamaConfig(**SHAPE, **HEADS)),
    (Gemma2ForCausalLM, Gemma2Config(**SHAPE, **HEADS)),
    (Qwen3ForCausalLM, Qwen3Config(**SHAPE, **HEADS)),
    (GPTNeoXForCausalLM, GPTNeoXConfig(**SHAPE)),
]


@pytest.fixture(scope="module")
def tokenizer(backend):
    return backend.tokenizer


def make_sae(d_model=D_MODEL, hook="blocks.1.hook_resid_post"):
    config = StandardSAEConfig(d_in=d_model, d_sae=64, dtype="float32", device="cpu")
    config.metadata.hook_name = hook
    sae = StandardSAE(config)
    sae.W_dec.data = torch.randn(64, d_model, generator=torch.Generator().manual_seed(0))
    return sae


@pytest.mark.parametrize(("cls", "config"), MODELS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_model_by_path_is_steered_on_its_own_architecture(tmp_path, tokenizer, cls, config):
    torch.manual_seed(0)
    config.eos_token_id = config.pad_token_id = tokenizer.eos_token_id
    cls(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    make_sae().save_model(tmp_path / "sae")
    model = get_model(
        f"esr/{tmp_path}/m",
        memoize=False,
        device="cpu",
        dtype="float32",
        sae_release=str(tmp_path / "sae"),
        steering_layer=1,
        feature_layer=1,
    )

    def completion(*edits):
        config = steering_config(model, edits=edits, seed=1, max_tokens=12, temperature=0.0)
        output = anyio.run(lambda: model.generate("Hello", config=config))
        return output.completion, output.metadata["edited_positions"]

    plain, none = completion()
    steered, edited = completion(Boost(latent=3, strength=30.0, layer=1))
    assert plain != steered
    assert none == 0 and edited > 12
    assert completion() == (plain, none)
    assert runtime_of(model).steering_layer == 1


def talker(folder, tokenizer, text, template):
    """A Llama whose greedy answer is a fixed text: every token is followed by the text's next."""
    tokenizer.chat_template = template
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    last = tokenizer(asked, add_special_tokens=False)["input_ids"][-1]
    said = tokenizer(text, add_special_tokens=False)["input_ids"]
    chain = [last, *said, tokenizer.eos_token_id]
    assert len(set(chain)) == len(chain), "a token is followed by one other"
    config = LlamaConfig(
        **SHAPE | {"hidden_size": 64, "vocab_size": len(tokenizer)}, tie_word_embeddings=False
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        directions = torch.nn.functional.normalize(torch.randn(config.vocab_size, 64), dim=1)
        model.model.embed_tokens.weight.copy_(directions * 8)
        model.lm_head.weight.zero_()
        for before, after in itertools.pairwise(chain):
            model.lm_head.weight[after] = directions[before] * 20
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("thinking", [None, True])
def test_what_a_model_thinks_is_a_part_of_its_own_and_only_the_answer_is_graded(
    tmp_path, tokenizer, thinking
):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<think>", "</think>"])
    template = (
        "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}assistant{% if enable_thinking is defined and not "
        "enable_thinking %} off{% endif %}{% endif %}"
    )
    talker(tmp_path / "m", tokenizer, "<think>Wait, that is not right</think>Boil it", template)
    make_sae(d_model=64).save_model(tmp_path / "sae")
    args = {} if thinking is None else {"enable_thinking": thinking}
    model = get_model(
        f"esr/{tmp_path}/m",
        memoize=False,
        device="cpu",
        dtype="float32",
        sae_release=str(tmp_path / "sae"),
        steering_layer=1,
        feature_layer=1,
        **args,
    )
    config = steering_config(model, seed=1, max_tokens=20, temperature=0.0)
    output = anyio.run(lambda: model.generate("Hello", config=config))
    assert output.metadata["template"] == {"enable_thinking": str(bool(thinking))}
    if thinking:
        [thought, answer] = output.message.content
        assert thought.reasoning == "Wait, that is not right"
        assert answer.text == output.completion == output.message.text == "Boil it"
        cut = anyio.run(
            lambda: model.generate("Hello", config=config.model_copy(update={"max_tokens": 3}))
        )
        assert cut.completion == "" and cut.stop_reason == "max_tokens"


def test_what_does_not_fit_a_model_by_path_is_told_before_its_weights_load(
    tmp_path, tokenizer, monkeypatch
):
    cls, config = MODELS[0]
    cls(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    make_sae(d_model=48).save_model(tmp_path / "wide")
    make_sae().save_model(tmp_path / "sae")
    monkeypatch.setattr("esr_eval.backends.local.load_model", lambda *a: pytest.fail("loaded"))
    for args, sentence in [
        ({"sae_release": str(tmp_path / "sae"), "steering_layer": 3}, "layers 0 to 2"),
        ({"sae_release": str(tmp_path / "wide"), "steering_layer": 1}, "width 48"),
    ]:
        model = get_model(f"esr/{tmp_path}/m", memoize=False, **args)
        with pytest.raises(EsrError, match=sentence):
            anyio.run(lambda m=model: m.generate("Hello"))


def test_a_model_that_is_not_there_is_one_sentence():
    model = get_model("esr/nobody/nothing", memoize=False, steering_layer=1)
    with pytest.raises(
        EsrError, match=r"nobody/nothing could not be loaded: .*HF_HUB_OFFLINE"
    ) as e:
        anyio.run(lambda: model.generate("Hello"))
    # The hub is asked once, not once a sample.
    with pytest.raises(EsrError) as again:
        anyio.run(lambda: model.generate("Hello"))
    assert again.value is e.value


def test_a_registry_sae_is_converted_once_and_read_from_the_cache(tmp_path, monkeypatch):
    """Only the download is replaced; the conversion and the reading are real."""
    monkeypatch.setenv("ESR_EVAL_CACHE", str(tmp_path))
    sae, calls = make_sae(), []

    def download(release, sae_id, **kwargs):
        calls.append((release, sae_id))
        return sae

    monkeypatch.setattr(SAE, "from_pretrained", download)
    ref = SAERef(release="some-release", sae_id="layer_1")
    assert local_folder(ref) is None
    rows = [open_sae(ref).decoder_row(7) for _ in range(2)]
    assert calls == [("some-release", "layer_1")]
    assert torch.equal(rows[0], sae.W_dec[7].detach()) and torch.equal(rows[0], rows[1])
    assert read_sae_config(local_folder(ref)).layer == 1


def test_an_unknown_release_and_a_damaged_folder_are_one_sentence(tmp_path):
    with pytest.raises(EsrError, match=r"no-such-release / x could not be loaded through sae-lens"):
        open_sae(SAERef(release="no-such-release", sae_id="x"))
    with pytest.raises(EsrError, match="-M sae_id="):
        open_sae(SAERef(release="no-such-release"))
    (tmp_path / "cfg.json").write_text('{"architecture": "standard"', "utf-8")
    with pytest.raises(EsrError, match="not an SAE folder"):
        open_sae(SAERef(release=str(tmp_path)))


def test_a_resid_pre_hook_is_the_layer_before(tmp_path):
    make_sae(hook="blocks.5.hook_resid_pre").save_model(tmp_path)
    assert read_sae_config(tmp_path).layer == 4
