import json
import random
import re

import anyio
import pytest
from inspect_ai.model import ModelOutput, ModelUsage, get_model
from typer.testing import CliRunner

from esr_eval.cli.finetune import app
from esr_eval.dataset import load_latents, prompts
from esr_eval.errors import EsrError
from esr_eval.finetune import hosted
from esr_eval.finetune.card import PRESETS, model_card
from esr_eval.finetune.examples import (
    IGNORED,
    Checker,
    Example,
    Journal,
    Segment,
    TrainingBoost,
    encode,
    mix,
    off_topic_subjects,
    read_examples,
    training_tasks,
    write_examples,
)
from esr_eval.finetune.offline import (
    OPENINGS,
    RESUMPTIONS,
    OfflineSettings,
    Wanted,
    allowed_latents,
    cut,
    make_examples,
)
from esr_eval.finetune.train import PUSH_KEY, boosted, make_collator, split, train
from esr_eval.scorers.phrases import find_restarts
from esr_eval.subjects import embedded_path, find_subject

DRIFT = "The lighthouse keeper climbs the tower at dusk and lights the great lamp for the ships. "
ANSWER = (
    "To brew green tea, heat fresh water until it steams but does not boil. Put one teaspoon of "
    "green tea leaves in a cup, pour the water over the leaves, and steep the tea for two minutes."
)
PROMPT = "Explain how to brew green tea."
FUNCTION_WORDS = {
    *("a", "an", "and", "at", "by", "do", "does", "for", "from", "how", "in", "into", "of", "off"),
    *("on", "or", "properly", "the", "to", "up", "with", "your", "you", "what", "why", "is", "are"),
    *("explain", "describe", "effective", "good"),
}


def content_words(text):
    """The words that carry a topic."""
    return frozenset(re.findall(r"[a-z]+", text.lower())) - FUNCTION_WORDS


def overlapping_tasks(share=0.5):
    """Pairs of a training topic and an evaluated one of whose content words so many are the same."""
    sets = ("main", "detector_discovery", "held_out")
    evaluated = {prompt.topic for which in sets for prompt in prompts(which)}
    return [
        (topic, other)
        for topic in {task.topic for task in training_tasks()}
        for other in evaluated
        for ours, theirs in [(content_words(topic), content_words(other))]
        if len(ours & theirs) >= share * len(ours | theirs)
    ]


def correction(
    drift=DRIFT, words="Wait, that's not right. Let me start over. ", answer=ANSWER, **more
):
    return Example(
        **{
            "id": "c",
            "kind": "correction",
            "prompt": PROMPT,
            "topic": "brew green tea",
            "segments": (
                Segment(part="off_topic", text=drift, trained=False),
                Segment(part="correction", text=words, trained=True),
                Segment(part="on_topic", text=answer, trained=True),
            ),
            "ended": True,
            "subject": "lighthouses and their keepers",
            "writer": "hand",
        }
        | more
    )


def plain(answer=ANSWER, **more):
    return Example(
        **{
            "id": "p",
            "kind": "plain",
            "prompt": PROMPT,
            "topic": "brew green tea",
            "segments": (Segment(part="on_topic", text=answer, trained=True),),
            "ended": True,
            "writer": "hand",
        }
        | more
    )


def test_training_asks_nothing_that_an_evaluation_asks():
    assert overlapping_tasks() == []
    assert len({task.topic for task in training_tasks()}) >= 60
    assert len(set(off_topic_subjects())) == 50


def test_an_overlap_would_be_found():
    ours, evaluated = content_words("write a short resume"), content_words("write a resume")
    assert len(ours & evaluated) >= 0.5 * len(ours | evaluated)
    assert overlapping_tasks(share=0.3)  # a laxer measure finds pairs that share a verb


def test_every_correction_is_explicit():
    ends = [". ", "... ", "\n\n", " — "]
    for row, opening in enumerate(OPENINGS):
        for column, resumption in enumerate(RESUMPTIONS):
            # Every opening and every resumption behind every end; to read each fourfold takes long.
            end, words = ends[(row + column) % 4], f"{opening} {resumption}".strip()
            text = f"The keeper climbs the tower at dusk and lights the lamp{end}{words} {ANSWER}"
            assert len(find_restarts(text)) == 1, words


def test_segments_must_fit_the_kind():
    with pytest.raises(ValueError, match="never trained"):
        correction(
            segments=(Segment(part="off_topic", text="x", trained=True), *correction().segments[1:])
        )
    with pytest.raises(ValueError, match="cannot have the parts"):
        plain(segments=correction().segments)


def test_files_keep_examples_and_tell_the_bad_line(tmp_path):
    file = tmp_path / "e.jsonl"
    write_examples(file, [correction(), plain()])
    assert read_examples(file) == [correction(), plain()]
    file.write_text(file.read_text("utf-8") + '{"id": "x"}\n', "utf-8")
    with pytest.raises(EsrError, match="Line 3"):
        read_examples(file)


def test_a_journal_drops_a_line_cut_short(tmp_path):
    journal = Journal(tmp_path / "j.jsonl")
    journal.append([{"a": 1}, {"a": 2}])
    with journal.path.open("a", encoding="utf-8") as file:
        file.write('{"a": 3')
    again = Journal(journal.path)
    again.append([{"a": 4}])
    assert Journal(journal.path).entries == [{"a": 1}, {"a": 2}, {"a": 4}]


CHECKS = [
    (correction(), None),
    (plain(), None),
    (correction(drift=ANSWER + " "), "off-topic part is on topic"),
    (correction(words="The keeper climbs the stairs once more. "), "correction not explicit"),
    (correction(answer=DRIFT * 3), "answer is not about its task"),
    (correction(drift="Ships. "), "off-topic part too short"),
    (correction(answer="Heat water."), "answer too short"),
    (
        correction(answer=ANSWER + " Wait, that's not right. Let me start over. " + ANSWER),
        "restarts somewhere else than in the correction",
    ),
    (
        plain(DRIFT + "Wait, that's not right. Let me start over. " + ANSWER),
        "restarts where nothing is to be corrected",
    ),
]


@pytest.mark.model
def test_checks_refuse_what_is_no_example():
    checker = Checker()
    for example, reason in CHECKS:
        assert checker.why_not(example) == reason, reason


def test_mixes_have_the_share_asked_for():
    pool = [correction(id=f"c{i}") for i in range(60)] + [plain(id=f"p{i}") for i in range(60)]
    for percent in (0, 10, 25, 50, 90, 100):
        chosen = mix(pool, percent, 40, seed=1)
        assert len(chosen) == 40 == len({e.id for e in chosen})
        assert sum(e.kind == "correction" for e in chosen) == round(0.4 * percent)
    assert mix(pool, 50, 40, seed=1) == mix(pool, 50, 40, seed=1) != mix(pool, 50, 40, seed=2)
    assert len(mix(pool, 50)) == 120 and len(mix(pool, 80)) == 75
    with pytest.raises(EsrError, match="at most 60"):
        mix(pool, 100, 61)
    with pytest.raises(EsrError, match="0 to 100"):
        mix(pool, 120)


def test_validation_shares_no_topic_with_training():
    pool = [plain(id=f"p{i}", topic=f"topic {i % 20}") for i in range(100)]
    training, held = split(pool, 0.1, seed=3)
    assert len(held) == 10 and len(training) == 90
    assert not {e.topic for e in training} & {e.topic for e in held}


def test_a_cut_keeps_a_beginning():
    text = "Ships sail at night. The lamp is lit by the keeper. Waves break on the rocks below"
    for seed in range(50):
        got = cut(text, random.Random(seed))
        kept = got.rstrip(" .—\n")
        assert text.startswith(kept) and 15 <= len(kept) < len(text) and got[-1] in " \n"
    assert cut("Too short", random.Random(0)) is None


class Topical:
    """Stands in for MiniLM: a text is about its task when it shares the task's words."""

    def __call__(self, text, task, label):
        return 90.0 if content_words(text) & content_words(task) else 10.0


def test_offline_examples_come_from_the_subjects_own_words():
    asked = {"prompt": PROMPT, "topic": "brew green tea", "seed": 1, "max_tokens": 40}
    answers = [
        (
            Wanted("drift", **asked, boost=TrainingBoost(latent=3, strength=60.0), label="ships"),
            DRIFT * 2,
            False,
        ),
        (
            Wanted("drift", **asked, boost=TrainingBoost(latent=4, strength=60.0), label="ships"),
            ANSWER,
            False,
        ),
        (Wanted("answer", **asked, boost=None), ANSWER, True),
    ]
    good, rejects = make_examples(answers, Checker(Topical()), seed=0)
    made = {e.kind: e for e in good}
    assert made["plain"].answer == ANSWER
    assert made["correction"].boost == TrainingBoost(latent=3, strength=60.0)
    assert made["correction"].text_of("on_topic") == ANSWER
    assert (DRIFT * 2).startswith(made["correction"].text_of("off_topic").rstrip(" .—\n"))
    assert rejects.good == 2 and rejects.reasons == {"off-topic part is on topic": 1}


def test_no_evaluated_latent_is_trained_on():
    subject = find_subject("smollm2-135m")
    settings = OfflineSettings()
    pool = {one.index for one in allowed_latents(subject, subject.runtime(), settings)}
    evaluated = {one.index for one in load_latents(subject)}
    labelled = {one.index for one in load_latents(subject, settings.spared)}
    assert len(pool) > 100 and evaluated and len(labelled) == 67
    assert not pool & (evaluated | labelled)


def writer(reply):
    def respond(messages, tools, choice, config):
        made = ModelOutput.from_content("mock", reply(messages[0].text))
        made.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)
        return made

    return get_model("mockllm/writer", custom_outputs=respond)


def hosted_examples(model, folder, count=6):
    return anyio.run(
        lambda: hosted.write_hosted(
            model, hosted.orders(count, 5, seed=0), folder, checker=Checker(Topical())
        )
    )


def reply(request):
    task = request.split('"')[1]
    answer = f"Here is what to do about it: {task} " + "Take your time and do it step by step. " * 2
    if "three parts" not in request:
        return json.dumps({"on_topic": answer})
    parts = {
        "off_topic": "Zzz qqq xxx vvv kkk jjj.",
        "correction": "Wait, that's not right.",
        "on_topic": answer,
    }
    return "Sure:\n```json\n" + json.dumps(parts) + "\n```"


def test_a_hosted_writer_is_asked_once_and_its_rejects_are_counted(tmp_path):
    asked = []

    def flaky(request):
        asked.append(request)
        return "I cannot do that." if len(asked) == 3 else reply(request)

    good, rejects = hosted_examples(writer(flaky), tmp_path)
    assert len(asked) == 11 and rejects.good == 10 == len(good)
    assert rejects.reasons == {"writer's reply is not the JSON asked for": 1}
    assert {e.kind for e in good} == {"correction", "plain", "subject"}
    assert all(not s.trained for e in good for s in e.segments if s.part == "off_topic")
    assert hosted_examples(writer(flaky), tmp_path)[0] == good  # nothing is asked again
    assert len(asked) == 11


def test_a_hosted_writer_that_fails_can_be_gone_on_with(tmp_path):
    def broken(request):
        raise RuntimeError("no credit left")

    with pytest.raises(EsrError, match="no credit left"):
        hosted_examples(writer(broken), tmp_path)
    good, _ = hosted_examples(writer(reply), tmp_path)
    assert len(good) == 11


def test_the_command_tells_mistakes_in_a_sentence(tmp_path):
    ran = CliRunner().invoke(app, ["train", str(tmp_path / "no.jsonl"), str(tmp_path / "a")])
    assert ran.exit_code == 1 and "there is no such file" in ran.output
    write_examples(tmp_path / "e.jsonl", [correction(), plain()])
    ran = CliRunner().invoke(
        app, ["train", str(tmp_path / "e.jsonl"), str(tmp_path / "a"), "--preset", "none"]
    )
    assert ran.exit_code == 1 and "no preset" in ran.output


@pytest.mark.model
def test_only_correction_and_answer_are_trained(backend):
    one = encode(correction(), backend.tokenizer, 512)
    trained = backend.tokenizer.decode([t for t in one.labels if t != IGNORED])
    assert trained.strip() == correction().answer[len(DRIFT) :] + "<|im_end|>"
    assert len(one.input_ids) == len(one.labels)
    assert backend.tokenizer.decode(one.input_ids[: one.labels.count(IGNORED)]).endswith(
        DRIFT.strip()
    )
    with pytest.raises(EsrError, match="nothing to train"):
        encode(correction(), backend.tokenizer, 40)


@pytest.mark.model
def test_the_boost_in_training_is_the_boost_of_an_evaluation(backend):
    """Logits under the training hook equal those under the engine's own edit."""
    import torch

    from esr_eval.steering.edits import LayerEdits, Term

    runtime, model = backend.runtime, backend._model
    examples = [correction(boost=TrainingBoost(latent=143, strength=60.0)), plain()]
    rows = [encode(e, backend.tokenizer, 128)._asdict() for e in examples]
    batch = make_collator(0, runtime, backend.sae.decoder_row, 576)(rows)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    layer = backend._layers[runtime.steering_layer]
    with torch.inference_mode():
        untouched = model(input_ids=ids, attention_mask=mask).logits
        with boosted(model, layer, runtime.skip_first):
            ours = model(**batch).logits
        edits = LayerEdits([[Term(backend.sae.decoder_row(143), 60.0, 1, None)], []])
        positions = torch.arange(ids.shape[1]).expand(2, -1)
        hook = layer.register_forward_hook(
            lambda m, a, x: (
                x + edits.delta(x, positions)
                if torch.is_tensor(x)
                else (x[0] + edits.delta(x[0], positions), *x[1:])
            )
        )
        theirs = model(input_ids=ids, attention_mask=mask).logits
        hook.remove()
        after = model(input_ids=ids, attention_mask=mask).logits
    assert PUSH_KEY in batch
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours[0], untouched[0], atol=0.5)
    assert torch.allclose(ours[1], untouched[1], atol=1e-4)
    assert torch.equal(after, untouched)


@pytest.mark.model
def test_training_lowers_the_loss_resumes_and_writes_a_loadable_adapter(tmp_path):
    from esr_eval.backends.local import LocalBackend

    runtime = find_subject("smollm2-135m").runtime()
    small = {"micro_batch": 4, "epochs": 8, "val_fraction": 0.0, "sequence_len": 96, "lora_r": 2}
    preset = PRESETS["embedded"].model_copy(update=small | {"warmup_steps": 0})
    push = TrainingBoost(latent=143, strength=60.0)
    examples = [
        correction(id="a", boost=push),
        correction(id="b", boost=push),
        plain(id="c"),
        plain(id="d"),
    ]
    folder = tmp_path / "adapter"
    begun = train(examples, runtime, preset, folder, device="cpu", max_steps=3)
    assert begun.steps == 3
    with pytest.raises(EsrError, match="holds an adapter already"):
        train(examples, runtime, preset, folder, device="cpu")
    with pytest.raises(EsrError, match="other examples"):
        train(examples[:3], runtime, preset, folder, device="cpu", resume=True)
    done = train(examples, runtime, preset, folder, device="cpu", resume=True)
    assert done.steps == 8
    assert done.boosted_examples == 2 and done.layer == 14
    state = next(folder.glob("checkpoints/*-8/trainer_state.json")).read_text("utf-8")
    losses = [entry["loss"] for entry in json.loads(state)["log_history"] if "loss" in entry]
    assert len(losses) == 8 and losses[-1] < losses[0] - 0.2
    assert (folder / "README.md").read_text("utf-8") == model_card(done)
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == runtime.model
    assert min(config["layers_to_transform"]) == 15
    assert config["lora_alpha"] == preset.saved_alpha != preset.lora_alpha
    tuned = LocalBackend(runtime.model_copy(update={"adapter": str(folder)}), "cpu")
    trained = {n: p for n, p in tuned._model.named_parameters() if "lora_B" in n}
    assert len(trained) == 15 * 7
    assert all(bool(p.abs().sum() > 0) for p in trained.values())


def test_the_shipped_adapter_is_small_and_names_no_place_of_its_making():
    folder = embedded_path("embedded:smollm2-135m-esr")
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10 * 2**20
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    assert config["base_model_name_or_path"] == find_subject("smollm2-135m").model
    spared = {
        one.index for one in load_latents(find_subject("smollm2-135m"), OfflineSettings().spared)
    }
    examples = read_examples(folder / "examples.jsonl")
    boosted_latents = {e.boost.latent for e in examples if e.boost}
    assert len(boosted_latents) > 50 and not boosted_latents & spared


@pytest.mark.model
def test_the_shipped_adapter_leaves_the_layers_that_the_sae_reads_alone(backend):
    """Below and at the steered layer the tuned model computes what the base model does."""
    import torch

    from esr_eval.backends.local import LocalBackend

    tuned = LocalBackend(find_subject("smollm2-135m-esr").runtime(), "cpu")
    ids = torch.tensor([backend.encode_chat([{"role": "user", "content": PROMPT}], None)])
    with torch.inference_mode():
        base, ours = (
            one._model(input_ids=ids, output_hidden_states=True) for one in (backend, tuned)
        )
    layer = backend.runtime.steering_layer
    assert torch.equal(base.hidden_states[layer + 1], ours.hidden_states[layer + 1])
    assert not torch.allclose(base.logits, ours.logits, atol=0.1)
