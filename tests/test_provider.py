"""The provider esr/NAME through Inspect's own interface."""

import subprocess
import sys
import time

import anyio
import pytest
from inspect_ai.model import ChatMessageAssistant, ChatMessageUser, GenerateConfig, get_model

from esr_eval.errors import EsrError
from esr_eval.provider.arguments import ModelArgs
from esr_eval.solvers import runtime_of, steering_config
from esr_eval.spec import Boost, Readout

LAYER = 14


@pytest.fixture(scope="module")
def model():
    return get_model("esr/smollm2-135m", device="cpu")


def ask(model, messages, config):
    return anyio.run(lambda: model.generate(messages, config=config))


def ask_all(model, requests):
    results = [None] * len(requests)

    async def one(i, text, config):
        results[i] = await model.generate(text, config=config)

    async def main():
        async with anyio.create_task_group() as tasks:
            for i, (text, config) in enumerate(requests):
                tasks.start_soon(one, i, text, config)

    anyio.run(main)
    return results


@pytest.mark.model
def test_steered_and_unsteered_requests_share_a_batch_and_keep_their_own_results(model):
    def config(i):
        edits = (Boost(latent=i, strength=80.0, layer=LAYER),) if i % 2 else ()
        return steering_config(model, edits=edits, seed=i, max_tokens=8 + i, temperature=0.6)

    requests = [(f"How do you count to {i}?", config(i)) for i in range(5)]
    together = ask_all(model, requests)
    for output, (text, one) in zip(together, requests, strict=True):
        again = ask(model, text, one)
        assert again.completion == output.completion
        assert output.usage.output_tokens <= one.max_tokens
        assert output.usage.total_tokens == output.usage.input_tokens + output.usage.output_tokens
        assert len(output.metadata["fingerprint"]) == 16
    steered = together[1].metadata["edited_positions"]
    assert steered == together[1].usage.total_tokens - 2  # neither position 0 nor the last token
    assert together[0].metadata["edited_positions"] == 0


@pytest.mark.model
def test_prefill_stop_and_usage(model):
    config = GenerateConfig(max_tokens=24, temperature=0.0, seed=1)
    messages = [ChatMessageUser(content="Name three fruits."), ChatMessageAssistant(content="1. ")]
    output = ask(model, messages, config)
    assert output.completion and not output.completion.startswith("1. ")
    assert output.stop_reason in ("stop", "max_tokens")
    word = output.completion.split()[1]
    cut = ask(model, messages, config.merge(GenerateConfig(stop_seqs=[word])))
    assert cut.completion == output.completion.split(word)[0]
    assert cut.stop_reason == "stop"
    assert anyio.run(model.api.count_text_tokens, "Hello there") == 2


@pytest.mark.model
def test_readouts_come_back_small(model):
    config = steering_config(
        model,
        edits=(Boost(latent=5, strength=70.0, layer=LAYER),),
        readouts=(Readout(latents=(5, 6), layer=LAYER),),
        seed=0,
        max_tokens=6,
        temperature=0.0,
    )
    readout = ask(model, "Hi", config).metadata["readouts"][0]
    assert readout["latents"] == [5, 6]
    assert len(readout["values"]) == 2 and readout["values"][0] > 0


@pytest.mark.model
def test_a_receipt_that_falls_short_fails_the_sample(model, monkeypatch):
    config = steering_config(
        model, edits=(Boost(latent=1, strength=9.0, layer=LAYER),), seed=0, max_tokens=4
    )
    ask(model, "Hi", config)
    monkeypatch.setattr(
        "esr_eval.steering.requests.due_positions", lambda row, fed: {LAYER: 10_000}
    )
    with pytest.raises(Exception, match="not steered as asked"):
        ask(model, "Hi", config)


@pytest.mark.model
def test_a_spec_for_another_runtime_is_refused(model):
    config = steering_config(model, seed=0, max_tokens=4)
    config.extra_body["esr"]["runtime"]["dtype"] = "bfloat16"
    with pytest.raises(EsrError, match="dtype bfloat16 instead of float32"):
        ask(model, "Hi", config)
    config.extra_body["esr"]["edits"] = [{"kind": "boost"}]
    with pytest.raises(EsrError, match="not a steering spec"):
        ask(model, "Hi", config)


@pytest.mark.parametrize(
    ("name", "args", "sentence"),
    [
        ("llama70b", {}, "Did you mean llama-70b"),
        ("gemma-2b", {"steering_layr": 3}, "no argument -M steering_layr="),
        ("gemma-2b", {"dtype": "int3"}, "-M dtype=int3"),
        ("gemma-2b", {"backend": "cloud"}, "does not exist"),
        ("gemma-2b", {"backend": "tpu"}, "there is: local, ndif, vllm"),
        ("gemma-2b", {"backend": "vllm", "device": "cpu"}, "no meaning with backend=vllm"),
        ("gemma-2b", {"backend": "ndif", "sampler": "vllm"}, "no meaning with backend=ndif"),
        ("gemma-2b", {"sampler": "vllm"}, "no meaning with backend=local"),
        ("gemma-2b", {"requests": 3}, "no meaning with backend=local"),
        ("Qwen/Qwen3-4B", {"sae_id": "x"}, "needs -M sae_release="),
        ("Qwen/Qwen3-4B", {"enable_thinking": "perhaps"}, "-M enable_thinking=perhaps"),
        ("Qwen/Qwen3-4B", {"chat_template_args": "x"}, "-M chat_template_args=x"),
        ("Qwen/Qwen3-4B", {"date": "someday"}, "-M date=someday"),
        (
            "Qwen/Qwen3-4B",
            {"enable_thinking": True, "chat_template_args": {"enable_thinking": False}},
            "say different things",
        ),
    ],
)
def test_bad_names_and_arguments_are_one_sentence(name, args, sentence):
    with pytest.raises(EsrError, match=sentence):
        get_model(f"esr/{name}", memoize=False, **args)


@pytest.mark.parametrize(
    ("name", "args", "sentence"),
    [
        ("smollm2-135m", {"steering_layer": 30}, "layers 0 to 29"),
        ("smollm2-135m", {"feature_layer": 9}, "trained on the output of layer 14"),
        ("gemma-2b", {"sae_release": "{sae}"}, "width 576, but gemma-2b has width 2304"),
        ("smollm2-135m", {"sae_release": "{empty}"}, "not an SAE folder"),
        ("HuggingFaceTB/Anything", {}, "-M sae_release="),
    ],
)
def test_what_does_not_fit_is_found_before_loading(tmp_path, name, args, sentence):
    from esr_eval.subjects import embedded_path, find_subject

    places = {
        "sae": str(embedded_path(find_subject("smollm2-135m").sae.release)),
        "empty": str(tmp_path),
    }
    args = {k: v.format(**places) if isinstance(v, str) else v for k, v in args.items()}
    api = get_model(f"esr/{name}", memoize=False, **args).api
    started = time.monotonic()
    with pytest.raises(EsrError, match=sentence):
        api.preflight()
    assert time.monotonic() - started < 2


def test_a_subject_too_large_for_the_machine_is_refused_with_the_way_out(monkeypatch):
    monkeypatch.setattr("esr_eval.model.weights.gpu_memory_gib", list)
    monkeypatch.setattr("esr_eval.model.weights.main_memory_gib", lambda: 16.0)
    api = get_model("esr/llama-70b", memoize=False).api
    with pytest.raises(EsrError, match=r"needs about 151 GiB .* no GPU and 16 GiB .*NDIF"):
        api.preflight()
    monkeypatch.setattr("esr_eval.model.weights.gpu_memory_gib", lambda: [80.0, 80.0])
    with pytest.raises(
        EsrError, match=r"Llama-3\.3-70B-Instruct could not be loaded: HF_HUB_OFFLINE"
    ):
        api.preflight()  # large enough, but the hub is not asked here


def test_inspects_second_look_at_the_provider_is_harmless():
    for name in ("smollm2-135m", "Qwen/Qwen3-4B"):
        get_model(f"esr/{name}", api_key="__model_info_lookup__", memoize=False)


def test_arguments_are_documented():
    assert all(
        field.description or name == "repetition_penalty"
        for name, field in ModelArgs.model_fields.items()
    )


def test_tasks_scorers_and_provider_import_no_torch():
    code = (
        "import sys, esr_eval._registry, esr_eval.provider.api, esr_eval.tasks.esr;"
        "from inspect_ai.model import get_model; get_model('esr/llama-8b');"
        "print([m for m in ('torch', 'transformers', 'nnsight', 'sae_lens') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # Inspect tells of the hooks it finds first.
    assert out.stdout.strip().splitlines()[-1] == "[]"


def test_the_runtime_names_what_ran():
    runtime = runtime_of(get_model("esr/llama-70b", memoize=False, revision="abc", dtype="float16"))
    assert (runtime.revision, runtime.dtype, runtime.steering_layer) == ("abc", "float16", 33)
    assert runtime.sae.sae_id == "layer_50"


def test_template_variables_and_the_day_are_part_of_the_runtime():
    args = {"enable_thinking": False, "chat_template_args": {"effort": "low"}, "date": "2026-11-24"}
    model = get_model("esr/Qwen/Qwen3-4B", memoize=False, **args)
    runtime = runtime_of(model)
    assert runtime.template_args == {"effort": "low", "enable_thinking": False}
    assert str(runtime.date) == "2026-11-24"
    assert model.api.connection_key() != get_model("esr/Qwen/Qwen3-4B").api.connection_key()


def test_a_damaged_model_is_told_before_anything_loads(tmp_path):
    (tmp_path / "config.json").write_text("{}", "utf-8")
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(EsrError, match=r"model\.safetensors is a git-lfs pointer.*git lfs pull"):
        get_model(f"esr/{tmp_path}", memoize=False).api.preflight()
