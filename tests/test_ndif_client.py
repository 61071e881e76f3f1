"""The NDIF client without a server: what is sent, what errors mean, when it tries again."""

import io
import json
import pickle
import pickletools
import shutil

import pytest
import torch
import zstandard
from ndif_stand_in import StandIn, unpacked
from safetensors.torch import save_file
from transformers import LlamaConfig

from esr_eval.backends.base import Chat
from esr_eval.backends.ndif.backend import NDIFBackend, _parts, check_settings
from esr_eval.backends.ndif.client import Client, Job
from esr_eval.backends.ndif.trace import RemoteModel
from esr_eval.backends.remote import RemoteArgs
from esr_eval.errors import EsrError
from esr_eval.model.loading import model_source
from esr_eval.sae.encoder import LatentEncoder
from esr_eval.servers.loopback import free_ports
from esr_eval.spec import AddVector, Boost, Clamp, Readout, Runtime, SAERef, Steering
from esr_eval.steering.decoding import Decoding
from esr_eval.steering.edits import LayerEdits, Term
from esr_eval.steering.plan import padded, plan_batch
from esr_eval.steering.requests import Row
from esr_eval.steering.sampling import Sampling
from esr_eval.subjects import find_subject

CPU = torch.device("cpu")
WIDE, LATENTS = 8192, 64
JOB = Job("key", {}, b"payload")
RUNTIME = find_subject("smollm2-135m").runtime().model_copy(update={"backend": "ndif"})


def remote(url, wait=3.0, **more):
    return RemoteArgs(base_url=url, wait=wait, **more)


def sampling(n=16, temperature=1.0):
    return Sampling(1, temperature, None, None, 1.1, n)


# What is sent


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """The shape of the 70B, config and tokenizer alone, and a random SAE stored in 16 bits."""
    folder, sae = tmp_path_factory.mktemp("wide"), tmp_path_factory.mktemp("wide-sae")
    source, _ = model_source(RUNTIME)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (file := type(folder)(source) / name).is_file():
            shutil.copy(file, folder)
    LlamaConfig(
        hidden_size=WIDE,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=64,
        num_key_value_heads=8,
        vocab_size=49152,
        eos_token_id=2,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    numbers = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=numbers).bfloat16().float()
        for name, shape in (
            ("W_enc", (WIDE, LATENTS)),
            ("W_dec", (LATENTS, WIDE)),
            ("b_enc", (LATENTS,)),
            ("b_dec", (WIDE,)),
        )
    }
    save_file(weights, sae / "sae_weights.safetensors")
    cfg = {"architecture": "standard", "d_in": WIDE, "d_sae": LATENTS, "dtype": "float32"}
    (sae / "cfg.json").write_text(json.dumps(cfg))
    return Runtime(
        subject="wide",
        model=str(folder),
        backend="ndif",
        dtype="bfloat16",
        sae=SAERef(release=str(sae)),
        steering_layer=2,
        feature_layer=2,
    )


def payload(runtime, rows):
    chat = Chat(runtime)
    model = RemoteModel(chat)
    ids, mask = padded([row.prompt for row in rows], chat.pad, CPU)
    plan = plan_batch(rows, chat.sae, lambda layer: CPU)
    return model, model.generate(ids, mask, Decoding(rows, ids, mask, chat.ends), plan)


def paper_edits(boosted):
    clamps = tuple(Clamp(latent=i, layer=2) for i in range(26))
    return (Boost(latent=boosted, strength=7.0, layer=2), *clamps)


def test_one_boost_and_26_clamps_of_the_70b_take_less_than_a_megabyte(wide):
    row = Row(tuple(range(5, 125)), sampling(512), Steering(runtime=wide, edits=paper_edits(40)))
    model, sent = payload(wide, [row])
    assert len(sent) < 1_000_000
    assert len(unpacked(sent)) < 1_100_000
    assert {p.device.type for p in model._lm._module.parameters()} == {"meta"}


def test_rows_of_a_batch_share_the_latents_they_have_in_common(wide):
    rows = [
        Row(tuple(range(5, 125)), sampling(512), Steering(runtime=wide, edits=paper_edits(40 + b)))
        for b in range(16)
    ]
    one, all_of_them = (len(payload(wide, some)[1]) for some in (rows[:1], rows))
    assert all_of_them - one < 16 * (2 * WIDE + 4096)


def test_what_travels_is_source_and_data_and_names_no_module_of_ours():
    steering = Steering(
        runtime=RUNTIME,
        edits=(Boost(latent=3, strength=9.0, layer=14),),
        readouts=(Readout(latents="norm", layer=20),),
    )
    _, sent = payload(RUNTIME, [Row((1, 2, 3), sampling(), steering)])
    plain = unpacked(sent)
    strings, needed = [], set()
    for opcode, argument, _ in pickletools.genops(plain):
        if isinstance(argument, str):
            strings.append(argument)
        if opcode.name == "STACK_GLOBAL":
            needed.add(strings[-2] if len(strings) > 1 else "")
        if opcode.name == "GLOBAL":
            needed.add(argument.split()[0])
    # A class's or function's own `__module__` may name ours: it is no import.
    imported = {one for one in needed if one.startswith("esr_eval")}
    assert not imported
    assert not any(name in ("_make_function", "CodeType", "code") for name in strings)
    assert any("class" not in one and "def apply(self" in one for one in strings)


def test_packing_loses_nothing():
    numbers = torch.Generator().manual_seed(1)
    rows = torch.randn(3, 32, generator=numbers)
    encoder = LatentEncoder(
        torch.randn(32, 2, generator=numbers).bfloat16().float(),
        torch.zeros(2),
        torch.zeros(2),
        torch.randn(32, generator=numbers).half().float(),
        "none",
    )
    terms = [
        [Term(rows[0], 3.0, 0, None), Term(rows[1], 0.0, 1, 5, clamp_slot=1)],
        [Term(rows[0], -2.0, 2, None)],
        [Term(rows[2].bfloat16().float(), 1.5, 0, 2, sae_scaled=False)],
    ]
    edits = LayerEdits(terms, encoder)
    again = pickle.loads(pickle.dumps(edits))
    x = torch.randn(3, 6, 32, generator=numbers)
    at = torch.arange(6).repeat(3, 1)
    assert torch.equal(again.delta(x, at), edits.delta(x, at))
    assert torch.equal(again.active(at), edits.active(at))
    assert again.encode.weight.dtype == torch.float32
    assert encoder.__getstate__()["weight"].dtype == torch.bfloat16
    assert encoder.__getstate__()["centre"].dtype == torch.float16


def test_results_larger_than_their_room_are_asked_for_in_parts():
    assert _parts("aabbb", lambda one: 4, most=10) == [["a", "a"], ["b", "b"], ["b"]]
    assert _parts("ab", lambda one: 40, most=10) == [["a"], ["b"]]
    assert _parts("abc", lambda one: 0, most=10) == [["a", "b", "c"]]


def test_an_adapter_of_this_machine_is_for_a_server_of_this_machine():
    runtime = RUNTIME.model_copy(update={"adapter": "embedded:smollm2-135m-esr"})
    with pytest.raises(EsrError, match="where NDIF cannot read it"):
        NDIFBackend(runtime, remote("https://ndif.example", api_key="k"))


# Before the first request


@pytest.fixture(scope="module")
def key():
    return RemoteModel(Chat(RUNTIME)).key


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("esr_eval.backends.ndif.backend.PAUSE", 0.01)
    monkeypatch.delenv("NDIF_API_KEY", raising=False)


def other_env(package, number):
    packages = dict.fromkeys(("nnsight", "torch", "transformers"), "0")
    from importlib.metadata import version

    packages = {p: version(p) for p in packages} | {package: number}
    return 200, {"python_version": "3.12.1", "packages": packages}


@pytest.mark.parametrize(
    ("path", "answers", "sentence"),
    [
        ("/connected", [(503, {"detail": "reconnecting"})], "no models at the moment: reconnecting"),
        ("/connected", [(404, {"detail": "Not Found"})], "There is no NDIF server at"),
        ("/connected", [(500, {"detail": "oops"})], "does not work at the moment: the server is"),
        ("/request", [(401, {"detail": "Missing or invalid API key."})], "set NDIF_API_KEY to it"),
        ("/request", [(403, {"detail": "Invalid API key."})], "get one at https://login.ndif.us"),
        ("/request", [(429, {"detail": "slow down"})], "the quota is used up"),
        ("/env", [other_env("nnsight", "0.7.4")], r"nnsight 0.7.4, this machine 0.8.*pip install nn"),
        ("/env", [other_env("transformers", "4.57.0")], "pip install transformers==4.57.0"),
        ("/status", [(200, {"deployments": {}})], "is not deployed.*esr-eval serve ndif start"),
    ],
)  # fmt: skip
def test_the_preflight_says_in_one_sentence_what_is_wrong(key, path, answers, sentence):
    with StandIn(key).serving() as server:
        server.on(path, *answers)
        with pytest.raises(EsrError, match=sentence) as error:
            NDIFBackend(RUNTIME, remote(server.url))
    assert "\n" not in str(error.value)
    assert not any(asked.startswith("/response") for asked in server.asked)  # nothing was run


def test_a_model_deployed_under_another_revision_is_named(key):
    with StandIn(key).serving() as server:
        repository = json.loads(key.partition(":")[2])["repo_id"]
        other = {"repo_id": repository, "revision": "v2", "task": "text-generation"}
        server.on("/status", (200, {"deployments": {"1": {**other, "deployment_level": "HOT"}}}))
        with pytest.raises(EsrError, match=r"revision v2.*choose it with -M revision="):
            NDIFBackend(RUNTIME, remote(server.url))


def test_a_server_that_is_coming_up_is_given_a_moment(key):
    with StandIn(key).serving() as server:
        server.on("/connected", (503, {"detail": "starting"}), (200, {}))
        server.on("/status", (200, {"deployments": {}}))
        with pytest.raises(EsrError, match="is not deployed"):
            NDIFBackend(RUNTIME, remote(server.url))


def test_a_server_that_is_down_is_told_at_once(key):
    url = f"http://127.0.0.1:{free_ports(1)[0]}"
    with pytest.raises(EsrError, match=r"cannot be reached.*and that it runs"):
        NDIFBackend(RUNTIME, remote(url))


def test_ndif_itself_takes_a_key(monkeypatch):
    monkeypatch.setattr("nnsight.schema.config.CONFIG.API.APIKEY", None)
    client = Client(remote("https://ndif.example"))
    monkeypatch.setattr(client, "get", lambda path: __import__("httpx").Response(200))
    from esr_eval.backends.ndif.backend import preflight

    with pytest.raises(EsrError, match="asks for an API key: get one at"):
        preflight(client, "key", "model", lambda caption, text: None)


# While a request is under way


def result(**saved):
    plain = io.BytesIO()
    torch.save({"out": saved}, plain)
    return zstandard.ZstdCompressor().compress(plain.getvalue())


def scripted(server, *states):
    """A request that goes through these states; the result lies at /result."""
    server.on("/request", (200, {"id": "r"}))
    full = [
        state if isinstance(state, tuple) else (200, {"status": state, "description": "", **more})
        for state, more in ((s, {"data": f"{server.url}/result", "meta": {"runtime": 2.0}}) for s in states)
    ]  # fmt: skip
    server.on("/response/r", *full)
    server.on("/result", (200, result(answer=torch.arange(3))))


def error(text):
    return 200, {"status": "ERROR", "description": text}


def test_a_request_is_followed_to_its_result_and_its_course_reported():
    said = []
    with StandIn("key").serving() as server:
        scripted(server, (404, {}), "QUEUED", "RUNNING", "RUNNING", "COMPLETED")
        client = Client(remote(server.url), lambda caption, text: said.append(text))
        found = client.run(JOB)["out"]
    assert found["answer"].tolist() == [0, 1, 2]
    assert [text.split(":")[0] for text in said] == ["queued", "running", "completed", said[-1]]
    assert said[-1] == "done in 2.0 s, 2 s in all"
    assert (client.server_seconds, client.retries, client.sent_bytes) == (2.0, 0, len(b"payload"))


@pytest.mark.parametrize(
    "trouble",
    [
        error("Error submitting request to model deployment. Please try again later. Sorry."),
        error("ValueError: Cannot invoke while the model is already running."),
        error("Critical server error occurred. Please try again later."),
        error("Your job was cancelled or preempted by the server."),
    ],
)
def test_what_may_pass_is_tried_again_whole(trouble):
    with StandIn("key").serving() as server:
        scripted(server, "RUNNING", trouble, "RUNNING", "COMPLETED")
        client = Client(remote(server.url, wait=30))
        assert client.run(JOB)["out"]["answer"].tolist() == [0, 1, 2]
    assert client.retries == 1
    assert server.asked.count("/request") == 2


def test_a_known_request_that_the_server_has_forgotten_is_sent_again():
    with StandIn("key").serving() as server:
        scripted(server, "RUNNING", *[(404, {})] * 3, "RUNNING", "COMPLETED")
        client = Client(remote(server.url, wait=30))
        client.run(JOB)
    assert client.retries == 1


def test_a_result_that_is_gone_is_made_anew():
    with StandIn("key").serving() as server:
        scripted(server, "COMPLETED")
        server.on("/result", (403, {}), (200, result(answer=torch.arange(3))))
        client = Client(remote(server.url, wait=30))
        client.run(JOB)
    assert client.retries == 1


def test_an_empty_result_is_made_anew():
    plain = io.BytesIO()
    torch.save({}, plain)
    empty = zstandard.ZstdCompressor().compress(plain.getvalue())
    with StandIn("key").serving() as server:
        scripted(server, "COMPLETED")
        server.on("/result", (200, empty), (200, result(answer=torch.arange(3))))
        client = Client(remote(server.url, wait=30))
        assert client.run(JOB)["out"]["answer"].tolist() == [0, 1, 2]
    assert client.retries == 1
    assert server.asked.count("/request") == 2


def test_a_request_without_any_answer_is_lost_in_the_end():
    with StandIn("key").serving() as server:
        scripted(server, (404, {}))
        with pytest.raises(EsrError, match=r"failed \d+ times.*nothing was heard.*-M wait=SECONDS"):
            Client(remote(server.url, wait=1.0)).run(JOB)


@pytest.mark.parametrize(
    ("answer", "kind", "sentence"),
    [
        (error("x\ntorch.OutOfMemoryError: CUDA out of memory."), MemoryError, "out of memory"),
        (error("Your job exceeded the execution timeout of 3600s."), EsrError, "-M batch_size="),
        (error("The model architecture on this server doesn't match the one your code was traced"
               " against: it has no module at 'model'."), EsrError, "version of transformers"),
        (error("Could not deploy this model. 401 gated repo"), EsrError, "gated repo"),
        (error("Traceback\nModuleNotFoundError: No module named 'zoo'"), EsrError, "module zoo"),
        (error("Traceback\nRuntimeError: shapes"), EsrError, "failed on NDIF: RuntimeError: shapes"),
    ],
)  # fmt: skip
def test_what_will_not_pass_is_not_tried_again(answer, kind, sentence):
    with StandIn("key").serving() as server:
        scripted(server, "RUNNING", answer)
        client = Client(remote(server.url, wait=30))
        with pytest.raises(kind, match=sentence):
            client.run(JOB)
    assert client.retries == 0


@pytest.mark.parametrize(
    ("status", "detail", "sentence"),
    [
        (400, "Client nnsight version 0.8.1 is below the minimum", "does not accept this client"),
        (403, "Invalid API key.", "NDIF_API_KEY"),
        (413, "too large", "lower -M batch_size="),
        (404, "Not Found", "There is no NDIF server at"),
        (422, "bad", "refuses the request"),
    ],
)
def test_a_refusal_is_final(status, detail, sentence):
    with StandIn("key").serving() as server:
        server.on("/request", (status, {"detail": detail}))
        with pytest.raises(EsrError, match=sentence):
            Client(remote(server.url, wait=30)).run(JOB)
    assert server.asked == ["/request"]


def test_the_quota_is_waited_for():
    with StandIn("key").serving() as server:
        scripted(server, "COMPLETED")
        server.on("/request", (429, {"detail": "quota"}), (503, {}), (200, {"id": "r"}))
        client = Client(remote(server.url, wait=60))
        client.run(JOB)
    assert client.retries == 2


def test_what_a_server_sends_is_data_and_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (type(tmp_path).touch, (tmp_path / "evil",))

    plain = io.BytesIO()
    torch.save({"out": Evil()}, plain)
    with StandIn("key").serving() as server:
        scripted(server, "COMPLETED")
        server.on("/result", (200, zstandard.ZstdCompressor().compress(plain.getvalue())))
        with pytest.raises(EsrError, match="sent a result that is no mere data"):
            Client(remote(server.url)).run(JOB)
    assert not (tmp_path / "evil").exists()


def test_the_key_goes_to_the_server_and_nowhere_else():
    arguments = remote("http://127.0.0.1:9", api_key="secret-key")
    client = Client(arguments)
    assert client._headers()["ndif-api-key"] == "secret-key"
    assert "secret-key" not in repr(arguments) + repr(client) + str(vars(client)["url"])


def test_vectors_travel_too():
    edit = AddVector(vector=(0.5,) * 576, strength=2.0, layer=14)
    steering = Steering(runtime=RUNTIME, edits=(edit,))
    _, sent = payload(RUNTIME, [Row((1, 2, 3), sampling(), steering)])
    assert len(sent) < 40_000


@pytest.mark.parametrize("url", ["127.0.0.1:80", "http://127.0.0.1:80:", "http://", "ftp://host"])
def test_what_is_no_address_is_told_in_one_sentence(url):
    with pytest.raises(EsrError, match=r"no address of a server: .*--model-base-url"):
        Client(remote(url))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"temperature": 0.6, "top_p": 0.9, "do_sample": True, "cache_implementation": "hybrid"},
            "",
        ),
        ({"repetition_penalty": 1.3, "eos_token_id": [1, 2], "max_length": 4096}, ""),
        ({"suppress_tokens": [5]}, "suppress_tokens"),
        ({"stop_strings": ["."], "max_time": 2.0}, "max_time.*stop_strings"),
    ],
)
def test_settings_of_the_model_that_a_request_cannot_replace_are_refused(tmp_path, settings, told):
    (tmp_path / "generation_config.json").write_text(json.dumps(settings), "utf-8")
    runtime = RUNTIME.model_copy(update={"model": str(tmp_path)})
    if not told:
        check_settings(runtime)
        return
    with pytest.raises(EsrError, match=told):
        check_settings(runtime)
