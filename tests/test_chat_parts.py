"""What a chat template decides, and what a model says: without weights."""

import datetime
import json

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from esr_eval.errors import EsrError
from esr_eval.model.chat import Answers, continued, render, template_settings, turn_end
from esr_eval.model.loading import TOKENIZER_PROBE, load_tokenizer
from esr_eval.spec import Runtime

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ASK = [{"role": "user", "content": "Hi"}]
WORDS = ["Boil", "the", "egg", "for", "nine", "minutes", "Wait", "plan", "é", "🥚"]


def byte_level(*special, plain=()):
    """A byte-level tokenizer, as Llama 3 and Qwen have it: every byte is a token."""
    vocabulary = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in ("<|end|>", *special)])
    tokenizer.add_tokens([AddedToken(t, special=False) for t in plain])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")
    fast.chat_template = CHATML
    return fast


def sentencepiece():
    """A tokenizer of Llama 2's kind: its decoder drops the first space of whatever it decodes."""
    vocabulary = {"<unk>": 0, "</s>": 1, "▁": 2}
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    for word in WORDS[:8]:
        vocabulary[f"▁{word}"] = len(vocabulary)
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>")


def pieces(tokenizer, text):
    """Ids of a text in a SentencePiece vocabulary without merges: whole words, else bytes."""
    ids = []
    for word in text.split(" "):
        whole = tokenizer.convert_tokens_to_ids(f"▁{word}")
        if whole:
            ids.append(whole)
        else:
            names = [f"<0x{b:02X}>" for b in word.encode()]
            ids += [2, *tokenizer.convert_tokens_to_ids(names)]
    return ids


def runtime(**more):
    return Runtime(subject="s", model="m", **more)


def settings(template, **more):
    return template_settings(runtime(**more), template)


def rendered(template, messages=ASK, **more):
    tokenizer = byte_level("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = template
    return render(tokenizer, messages, settings(template, **more), "s")


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
def test_a_text_decoded_in_two_parts_is_the_text_decoded_in_one(kind):
    text = "Boil the egg é for 🥚 nine minutes"
    if kind == "bytes":
        tokenizer = byte_level()
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    else:
        tokenizer = sentencepiece()
        ids = pieces(tokenizer, text)
        assert tokenizer.decode(ids[1:2]) == "the"  # which is why decoding in parts went wrong
    assert tokenizer.decode(ids) == text
    for cut in range(1, len(ids)):
        # A beginning is text, so what of a character is not there yet is not in it.
        begun = tokenizer.decode(ids[:cut]).rstrip("\ufffd")
        assert begun + continued(tokenizer, ids[:cut], ids[cut:]) == text


def test_a_prefilled_answer_goes_on_with_its_space_and_one_of_its_own_has_none_before_it():
    tokenizer = sentencepiece()
    answers = Answers(tokenizer, CHATML)
    prompt, more = pieces(tokenizer, "Wait Boil"), pieces(tokenizer, "the egg")
    assert answers.split(prompt, more, prefilled=True).text == " the egg"
    assert answers.split(prompt, more, prefilled=False).text == "the egg"


THINK = "<think>", "</think>"


@pytest.mark.parametrize("special", [True, False], ids=["special", "plain"])
@pytest.mark.parametrize(
    ("prompt", "said", "reasoning", "text"),
    [
        ("Hi", "<think>\nWait, no.\n</think>\n\nBoil it.", "Wait, no.", "Boil it."),
        ("Hi<think>\n", "Wait, no.\n</think>\n\nBoil it.", "Wait, no.", "Boil it."),
        ("Hi", "Wait, no.</think>Boil it.", "Wait, no.", "Boil it."),
        ("Hi<think>\n", "Wait, no. Let me", "Wait, no. Let me", ""),
        ("Hi", "<think>Wait, no. Let me", "Wait, no. Let me", ""),
        ("Hi", "<think>\n\n</think>\n\nBoil it.", "", "Boil it."),
        ("Hi", "Boil <think>hm</think>it.<think>and", "hm\n\nand", "Boil it."),
        ("Hi", "Boil it. Wait, no: 3 < 4 > 2.", "", "Boil it. Wait, no: 3 < 4 > 2."),
    ],
)
def test_thoughts_are_not_the_answer(special, prompt, said, reasoning, text):
    tokenizer = byte_level(*THINK) if special else byte_level(plain=THINK)
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, said)]
    assert Answers(tokenizer, CHATML).split(*ids, prefilled=False) == (reasoning, text)


def test_tags_that_are_spelled_out_count_where_an_answer_begins_with_them():
    tokenizer = byte_level()
    answers = Answers(tokenizer, CHATML)

    def split(said):
        ids = tokenizer(said, add_special_tokens=False)["input_ids"]
        return answers.split([], ids, prefilled=False)

    assert split("<reasoning>hm</reasoning>\nBoil it.") == ("hm", "Boil it.")
    # Nothing in template or vocabulary speaks of thoughts: this answer speaks of a tag.
    assert split("In HTML, </think> closes <think>.") == ("", "In HTML, </think> closes <think>.")


HARMONY = ("<|start|>", "<|channel|>", "<|message|>", "<|return|>", "<|call|>")


@pytest.mark.parametrize(
    ("said", "reasoning", "text"),
    [
        (
            "<|channel|>analysis<|message|>Wait, no.<|end|><|start|>assistant<|channel|>final"
            "<|message|>Boil it.",
            "Wait, no.",
            "Boil it.",
        ),
        (
            "<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>commentary"
            "<|message|>Two.<|end|><|start|>assistant<|channel|>final<|message|>Boil it.<|return|>",
            "One.\n\nTwo.",
            "Boil it.",
        ),
        ("<|channel|>analysis<|message|>Wait, no", "Wait, no", ""),
        ("<|channel|>final<|message|>Boil it.", "", "Boil it."),
        ("Boil it.<|end|>", "", "Boil it."),
    ],
)
def test_only_the_final_channel_is_the_answer(said, reasoning, text):
    tokenizer = byte_level(*HARMONY)
    ids = [
        tokenizer(p, add_special_tokens=False)["input_ids"] for p in ("<|start|>assistant", said)
    ]
    assert Answers(tokenizer, CHATML).split(*ids, prefilled=False) == (reasoning, text)


def test_a_beginning_that_is_given_belongs_to_the_answer():
    assert Answers(byte_level(*HARMONY), "").to_answer("<|start|>assistant") == (
        "<|channel|>final<|message|>"
    )
    assert Answers(byte_level(*THINK), "").to_answer("assistant\n<think>\n") == "\n</think>\n\n"
    assert Answers(byte_level(), "").to_answer("assistant\n") == ""


THINKS = (
    "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    "{% if NAME is not defined or NAME %}<think>{% else %}<think></think>{% endif %}"
)


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
def test_thinking_is_off_where_a_template_knows_it_and_on_when_asked_for(name):
    template = THINKS.replace("NAME", name)
    assert rendered(template) == "Hi<think></think>"
    assert rendered(template, template_args={name: True}) == "Hi<think>"
    assert settings(template).told == {name: "False"}


def test_a_variable_that_a_template_does_not_have_is_refused_and_the_others_are_named():
    for name in ("enable_thinkin", "messages", "bos_token", "strftime_now"):
        with pytest.raises(
            EsrError, match=rf"no variable '{name}' to set; it has: enable_thinking"
        ):
            settings(THINKS.replace("NAME", "enable_thinking"), template_args={name: True})
    with pytest.raises(EsrError, match="it has: none"):
        settings(CHATML, template_args={"enable_thinking": True})


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%-d %B %Y, 100%%", "%A"])
def test_a_template_writes_the_day_of_the_spec_whatever_the_day_is(form):
    template = f"\n{{{{ strftime_now('{form}') }}}}: {{% for m in messages %}}{{{{ m['content'] }}}}{{% endfor %}}"
    for day in (datetime.date(2024, 7, 26), datetime.date(2026, 1, 3)):
        assert rendered(template, date=day) == f"\n{day.strftime(form)}: Hi"
        assert settings(template, date=day).told == {"date": day.isoformat()}
    plain = rendered(template.replace(f"strftime_now('{form}')", "'x'"))
    assert plain == "\nx: Hi"


def test_a_template_with_a_date_of_its_own_keeps_it_and_one_without_takes_none():
    llama = (
        '{% if not date_string is defined %}{% set date_string = "26 Jul 2024" %}{% endif %}'
        "{{ date_string }}"
    )
    assert rendered(llama) == "26 Jul 2024"
    assert rendered(llama, date=datetime.date(2026, 1, 3)) == "03 Jan 2026"
    with pytest.raises(EsrError, match="writes no date: drop -M date="):
        settings(CHATML, date=datetime.date(2026, 1, 3))


def test_a_role_that_a_template_refuses_or_leaves_out_is_one_sentence():
    chat = [{"role": "system", "content": "Be brief."}, *ASK]
    gemma = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}"
    )
    with pytest.raises(EsrError, match=r"refuses .* roles system, user: System role not supported"):
        rendered(gemma + CHATML, chat)
    deaf = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(EsrError, match="leaves the system message out"):
        rendered(deaf, chat)
    assert "Be brief." in rendered(CHATML, chat)


def test_the_turns_end_ends_an_answer_where_no_known_token_does():
    tokenizer = byte_level("<|im_start|>", "<|im_end|>", *HARMONY)
    im_end, end = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|end|>"])
    assert turn_end(tokenizer, settings(CHATML), [end]) == im_end
    assert turn_end(tokenizer, settings(CHATML), [end, im_end]) is None
    spelled = CHATML.replace("<|im_end|>", "###")
    assert turn_end(tokenizer, settings(spelled), [end]) is None
    # In harmony <|end|> ends the thoughts as well.
    harmony = (
        "{% for m in messages %}<|start|>{{ m['role'] }}{% if m['role'] == 'assistant' %}"
        "<|channel|>final{% endif %}<|message|>{{ m['content'] }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    assert turn_end(tokenizer, settings(harmony), [im_end]) is None


def test_a_template_with_transformers_own_tags_is_read_too():
    template = "{% generation %}{{ messages[0]['content'] }}{% endgeneration %}{{ extra }}"
    with pytest.raises(EsrError, match="it has: extra"):
        settings(template, template_args={"other": 1})


@pytest.mark.parametrize("named", ["GPT2Tokenizer", "GPTNeoXTokenizer", "LlamaTokenizerFast"])
def test_a_tokenizer_is_the_one_of_the_models_own_file_whatever_class_is_named(tmp_path, named):
    """A class of that name may put its own way of splitting in the place of the file's."""
    from tokenizers import Regex, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,3}|\s+|[^\s\d]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    texts = ["650 841 823 x != y", "don't I'LL it's 2023: 650841823", "Hello  world  \t ok"] * 30
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    made.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": named, "chat_template": "{{ messages[0]['content'] }}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), "utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}), "utf-8")
    loaded = load_tokenizer(Runtime(subject="s", model=str(tmp_path)))
    for text in (*texts[:3], TOKENIZER_PROBE):
        ids = loaded(text, add_special_tokens=False)["input_ids"]
        assert list(ids) == made.encode(text, add_special_tokens=False).ids
    assert loaded.chat_template == settings["chat_template"]
