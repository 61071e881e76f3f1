"""Files of labels as people have them: what is read, what is left out and told, what is refused."""

import gzip
import json
import logging

import pytest

from esr_eval.data.labels import MOST_BYTES, write_labels
from esr_eval.dataset import is_latents_file, labels_note, load_latents, pick_latents
from esr_eval.errors import EsrError
from esr_eval.subjects import find_subject

SUBJECT = find_subject("gemma-2b")  # layer 16, 16k latents


def entry(index, description, layer="16-gemmascope-res-16k", **more):
    found = {"modelId": "gemma-2-2b", "layer": layer, "index": str(index)}
    return {**found, "description": description, **more}


def jsonl(path, *entries):
    text = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in entries)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, "utf-8", newline="")
    return str(path)


def read(path, subject=SUBJECT):
    return {one.index: one.label for one in load_latents(subject, str(path))}


def notes(path, subject=SUBJECT):
    return "; ".join(labels_note(subject, str(path)).get("labels", []))


def refused(path, subject=SUBJECT):
    with pytest.raises(EsrError) as error:
        load_latents(subject, str(path))
    message = error.value.message
    assert len(message) < 500 and "SECRET" not in message and "\n" not in message
    return message


def test_batches_are_read_packed_or_not_alone_or_as_a_folder(tmp_path):
    folder = tmp_path / "16-gemmascope-res-16k" / "explanations"
    folder.mkdir(parents=True)
    for number in (10, 2, 0, 1):
        one = entry(number, f"word {number}")
        jsonl(folder / f"batch-{number}.jsonl{'' if number == 1 else '.gz'}", one)
    assert read(folder / "batch-2.jsonl.gz") == {2: "word 2"}
    # In the order of the numbers, from either folder, and what is missing is told.
    assert list(read(folder)) == list(read(folder.parent)) == [0, 1, 2, 10]
    assert "batches missing among 0 to 10: 7 (3, 4, 5, 6, 7, 8, 9)" in notes(folder)
    # By their content: archives without the ending, and the ending without an archive.
    packed = (folder / "batch-0.jsonl.gz").read_bytes()
    (tmp_path / "labels").write_bytes(packed)
    (tmp_path / "plain.jsonl.gz").write_bytes(gzip.decompress(packed))
    assert read(tmp_path / "labels") == read(tmp_path / "plain.jsonl.gz") == {0: "word 0"}


def test_other_files_of_a_folder_and_second_copies_of_a_batch_are_told(tmp_path):
    jsonl(tmp_path / "batch-0.jsonl", entry(1, "rain"))
    jsonl(tmp_path / "batch-0.jsonl.gz", entry(1, "rain"))
    jsonl(tmp_path / "notes.jsonl", entry(2, "snow"))
    assert read(tmp_path) == {1: "rain"}
    assert "there twice, read once: 1" in notes(tmp_path)
    assert "other files of the folder left aside: 1" in notes(tmp_path)


def test_a_folder_without_labels_is_told_as_that_folder(tmp_path):
    (tmp_path / "README.md").write_text("SECRET")
    message = refused(tmp_path)
    assert str(tmp_path) in message and "batch-0.jsonl.gz" in message
    with pytest.raises(EsrError, match="holds no labels"):
        pick_latents(SUBJECT, str(tmp_path), None, 0)


@pytest.mark.parametrize("nothing", [None, "", "  ", "\u200b", "\u2028"])
def test_latents_without_a_label_are_left_out_and_counted(tmp_path, nothing, caplog):
    path = jsonl(tmp_path / "l.jsonl", entry(3, "boats"), entry(4, nothing), entry(5, nothing))
    with caplog.at_level(logging.WARNING):
        assert read(path) == {3: "boats"}
    assert "rows without a label (null, empty or blank) left out: 2" in caplog.text
    assert "left out: 2" in notes(path)
    table = tmp_path / "l.csv"
    table.write_text(f'index_in_sae,label\n3,boats\n4,"{nothing or ""}"\n', "utf-8")
    assert read(table) == {3: "boats"} and "left out: 1" in notes(table)
    none = jsonl(tmp_path / "none.jsonl", entry(4, nothing))
    assert "lists no latents (rows without a label: 1)" in refused(none)


def test_of_several_labels_that_of_the_method_with_most_is_kept_and_told(tmp_path):
    small = {"typeName": "np_max-act", "explanationModelName": "z-model"}
    large = {"typeName": "oai_token-act-pair", "explanationModelName": "gpt-4o-mini"}
    entries = [
        entry(3, "the letter b", **small),
        entry(3, "boats", **large),
        entry(4, "rain", **large),
        entry(5, "snow", **small),
        entry(6, "ice", **large),
    ]
    want = {3: "boats", 4: "rain", 5: "snow", 6: "ice"}
    for order in (entries, entries[::-1]):
        path = jsonl(tmp_path / f"{order[0]['index']}.jsonl", *order)
        assert read(path) == want
        assert "several labels: 1, of which that of oai_token-act-pair, gpt-4o-mini" in notes(path)
    # One method: the first in the file. The same again: once.
    table = tmp_path / "l.csv"
    table.write_text("index_in_sae,label\n3,boats\n3,ships\n4,rain\n4,rain\n")
    assert read(table) == {3: "boats", 4: "rain"}
    assert "several labels: 1, of which the first in the file" in notes(table)
    assert "say the same again left out: 1" in notes(table)


@pytest.mark.parametrize(
    ("ours", "others"),
    [
        ("16-res-16k", ["20-res-16k"]),
        ("16-gemmascope-res-16k", ["16-gemmascope-res-65k", "16-gemmascope-mlp-16k"]),
        ("16-res-16k", ["16-att-16k", "9-res-16k", "16-res_mid-16k"]),
    ],
)
def test_of_several_saes_the_runs_own_is_kept_and_told(tmp_path, ours, others):
    rows = [entry(3, f"of {sae}", sae) for sae in (*others, ours)]
    path = jsonl(tmp_path / "l.jsonl", *rows)
    assert read(path) == {3: f"of {ours}"}
    told = notes(path)
    assert f"left out: {len(others)}" in told and f"{ours} kept" in told and others[0] in told


@pytest.mark.parametrize(
    ("saes", "word"),
    [
        (["20-gemmascope-res-16k"], "reads layer 16"),
        (["20-res-16k", "9-res-16k"], "reads layer 16"),
        (["16-gemmascope-mlp-16k"], "not of the residual stream"),
        (["16-res-a", "16-res-b"], "nothing tells which"),
        (["SECRET \x1b[31m SECRET"] * 2 + ["20-res"], "reads layer 16"),
    ],
)
def test_labels_of_other_saes_are_refused(tmp_path, saes, word):
    path = jsonl(tmp_path / "l.jsonl", *(entry(3, "boats", sae) for sae in saes))
    if saes[0].startswith("SECRET"):
        # An id without a number may be ours; it is not shown.
        assert read(path) == {3: "boats"} and "SECRET" not in notes(path)
    else:
        assert word in refused(path)


def test_the_layer_of_the_run_decides_and_a_model_that_has_none_cannot(tmp_path):
    rows = [entry(3, "boats", "16-res-16k"), entry(3, "law", "20-res-16k")]
    path = jsonl(tmp_path / "l.jsonl", *rows)
    moved = SUBJECT.runtime().model_copy(update={"feature_layer": 20})
    assert [one.label for one in load_latents(SUBJECT, path, moved)] == ["law"]
    assert "nothing tells which" in refused(path, find_subject("org/model"))
    # An SAE on a layer's input bears that layer's number and reads the output of the one before.
    assert read(jsonl(tmp_path / "jb.jsonl", entry(1, "rain", "17-res-jb"))) == {1: "rain"}


def test_labels_of_another_model_are_told(tmp_path):
    path = jsonl(tmp_path / "l.jsonl", entry(3, "boats", modelId="llama3.1-8b"))
    assert "llama3.1-8b" in notes(path)
    assert not notes(jsonl(tmp_path / "ours.jsonl", entry(3, "boats")))


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\r\n", "\n"])
def test_separators_inside_a_label_end_no_row(tmp_path, sign):
    label = f"two{sign}lines"
    path = jsonl(tmp_path / "l.jsonl", entry(3, label), entry(4, "rain"))
    assert read(path) == {3: "two lines", 4: "rain"}
    table = tmp_path / "l.csv"
    table.write_text(f'index_in_sae,label\r\n3,"{label}"\r\n4,rain\r\n', "utf-8", newline="")
    assert read(table) == {3: "two lines", 4: "rain"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_marks_at_the_beginning_are_no_part_of_the_text(tmp_path, encoding):
    table, lines = tmp_path / "l.csv", tmp_path / "l.jsonl"
    table.write_text("index_in_sae,label\n3,mer élevée\n", encoding)
    lines.write_text(json.dumps(entry(3, "mer élevée")), encoding)
    assert read(table) == read(lines) == {3: "mer élevée"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("short.csv", "index_in_sae,label\n3,SECRET\n4\n", "row 3 is cut short (1 of 2 cells)"),
        ("comma.csv", "index_in_sae,label\n3,boats, SECRET\n", "row 2 has 3 cells"),
        ("quote.csv", 'index_in_sae,label\n3,rain\n4,"SECRET\n5,x\n', "row 3 or after it"),
        ("header.csv", "latent,name\n3,SECRET\n", "no column index_in_sae"),
        ("semicolon.csv", "index_in_sae;label\n3;SECRET\n", "no column index_in_sae"),
        ("negative.csv", "index_in_sae,label\n-3,SECRET\n", "row 2: index_in_sae is not"),
        ("word.csv", "index_in_sae,label\n3,rain\nSECRET,x\n", "row 3: index_in_sae is not"),
        ("long.csv", f"index_in_sae,label\n{'9' * 5000},SECRET\n", "row 2: index_in_sae is not"),
        ("empty.csv", "", "no column index_in_sae"),
        ("bare.csv", "index_in_sae,label\n", "lists no latents"),
        ("cut.jsonl", '{"index": 3, "description": "SECRET"}\n{"index": 4, "descr', "line 2"),
        ("cut.json", '[{"index": 3, "description": "SECRET"}, {"index"', "this is not JSON"),
        ("deep.json", "[" * 100_000, "this is not JSON"),
        ("list.json", '["SECRET"]', "row 1 has no index"),
        ("index.json", '[{"index": true, "description": "SECRET"}]', "row 1: index is not"),
        ("float.json", '[{"index": 3.5, "description": "SECRET"}]', "row 1: index is not"),
        ("minus.jsonl", '{"index": -1, "description": "SECRET"}', "row 1: index is not"),
        ("text.jsonl", '{"index": 1, "description": ["SECRET"]}', "description is not text"),
        ("half.jsonl", '{"index": 1, "description": "SECRET \\ud83d"}', "broken character"),
        ("page.html", "<html>SECRET</html>", "no column index_in_sae"),
    ],
)
def test_damaged_files_are_one_sentence_with_the_row_and_none_of_the_content(
    tmp_path, name, content, words
):
    path = tmp_path / name
    path.write_text(content, "utf-8")
    message = refused(path)
    assert words in message and str(path) in message


def test_what_is_no_text_is_not_dumped(tmp_path):
    binary = tmp_path / "l.csv"
    binary.write_bytes(b"index_in_sae,label\n3,SECRET \xff\xfe\x00")
    assert "not text in UTF-8" in refused(binary)
    packed = gzip.compress(b'{"index": 1, "description": "SECRET"}\n' * 1000)
    cut = tmp_path / "batch-0.jsonl.gz"
    for damaged in (packed[: len(packed) // 2], packed[:30] + b"SECRET" + packed[36:]):
        cut.write_bytes(damaged)
        assert "damaged or cut short (gzip)" in refused(cut)


def test_what_unpacks_without_end_is_refused(tmp_path, monkeypatch):
    assert MOST_BYTES > 2**28
    monkeypatch.setattr("esr_eval.data.labels.MOST_BYTES", 2**20)
    bomb = tmp_path / "batch-0.jsonl.gz"
    bomb.write_bytes(gzip.compress(b"\0" * 2**22))
    assert "holds more than 1 MiB" in refused(bomb)


def test_names_are_told_from_indices_and_a_mistyped_one_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    jsonl(tmp_path / "labels.jsonl", entry(3, "boats"))
    (tmp_path / "batches").mkdir()
    for name in ("labels.jsonl", "batches", "batch-0.jsonl.gz", "lables", "some.CSV", "x/y"):
        assert is_latents_file(name), name
    for indices in (None, 7, [7, 12], "7", "7,12", " 7, 12", "7;12", "-7", "7,x", ""):
        assert not is_latents_file(indices), indices
    with pytest.raises(EsrError, match="did you mean 'labels"):
        pick_latents(SUBJECT, "lables.jsonl", None, 0)
    with pytest.raises(EsrError, match="no file or folder of labels 'lables'"):
        pick_latents(SUBJECT, "lables", None, 0)
    with pytest.raises(EsrError, match="no file or folder of labels 'aaa"):
        pick_latents(SUBJECT, "a" * 5000, None, 0)
    with pytest.raises(EsrError, match="no file or folder of labels ''"):
        load_latents(find_subject("smollm2-135m"), "")


def test_what_is_written_is_read_again(tmp_path):
    rows = {3: 'a "quoted", label', 70_000: "mer élevée"}
    write_labels(tmp_path / "new" / "l.csv", rows.items())
    assert read(tmp_path / "new" / "l.csv") == rows
