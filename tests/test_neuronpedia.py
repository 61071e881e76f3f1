"""Published labels: fetched whole from a server on loopback, kept, resumed, and told of."""

import gzip
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import tenacity
from typer.testing import CliRunner

from esr_eval import dataset
from esr_eval.cli import app
from esr_eval.data import neuronpedia
from esr_eval.data.labels import PREFERENCE, read_labels, write_labels
from esr_eval.data.neuronpedia import fetch_labels, kept_labels
from esr_eval.dataset import (
    has_fetched_labels,
    labels_note,
    latents_at_hand,
    load_latents,
    pick_latents,
)
from esr_eval.errors import EsrError
from esr_eval.spec import SAERef
from esr_eval.subjects import find_subject

GEMMA = find_subject("gemma-2b")
RUNTIME = GEMMA.runtime()
PREFIX = "/v1/gemma-2-2b/16-gemmascope-res-16k"
FIRST = f"{PREFIX}/explanations/batch-0.jsonl.gz"


def entry(index, description, **more):
    found = {"modelId": "gemma-2-2b", "layer": "16-gemmascope-res-16k", "index": str(index)}
    return {**found, "description": description, **more}


def packed(*entries):
    lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in entries)
    return gzip.compress(lines.encode())


class Bucket:
    """A server of files by path, as S3 answers for a public bucket.

    Attributes:
        files: Content by path.
        once: Answers that come a single time, or some: lists of (status, content) by path.
        asked: Paths asked for, in order.
        missing: Status for what is not there.
        lists: Whether `?list-type=2` is answered.
        page: Names on a page of the listing.
    """

    def __init__(self):
        self.files, self.once, self.asked = {}, {}, []
        self.missing, self.lists, self.page = 404, False, 1000
        self.always = None
        bucket = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_GET(self):
                status, content = bucket.answer(self.path)
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def answer(self, target):
        parts = urlsplit(target)
        path, query = unquote(parts.path), parse_qs(parts.query)
        if "list-type" in query:
            return self.listing(query) if self.lists else (self.missing, b"")
        self.asked.append(path)
        if self.once.get(path):
            return self.once[path].pop(0)
        if self.always is not None:
            return 200, self.always(path)
        if path in self.files:
            return 200, self.files[path]
        return self.missing, b"<Error><Code>NoSuchKey</Code></Error>"

    def listing(self, query):
        keys = sorted(p[1:] for p in self.files if p[1:].startswith(query["prefix"][0]))
        start = int(query.get("continuation-token", ["0"])[0])
        page = keys[start : start + self.page]
        more = start + self.page < len(keys)
        text = "".join(f"<Contents><Key>{key}</Key><Size>1</Size></Contents>" for key in page)
        if more:
            text += f"<NextContinuationToken>{start + self.page}</NextContinuationToken>"
        xml = f'<?xml version="1.0"?><ListBucketResult xmlns="x">{text}</ListBucketResult>'
        return 200, xml.encode()

    def batches(self, *batches, folder="explanations"):
        for number, entries in enumerate(batches):
            self.files[f"{PREFIX}/{folder}/batch-{number}.jsonl.gz"] = packed(*entries)


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    bucket = Bucket()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("ESR_EVAL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ESR_EVAL_LABELS_URL", bucket.url)
    monkeypatch.setattr(neuronpedia, "WAIT", tenacity.wait_none())
    dataset._say_once.cache_clear()
    yield bucket
    bucket.server.shutdown()
    bucket.server.server_close()


def fetched(subject=GEMMA, **more):
    found = fetch_labels(subject, subject.runtime(), **more)
    return read_labels(found.path, subject.runtime()).by_index


def refused(subject=GEMMA):
    with pytest.raises(EsrError) as error:
        fetch_labels(subject, subject.runtime())
    message = error.value.message
    assert "\n" not in message and "-T latents=FILE.csv" in message
    return message


def test_every_batch_is_fetched_and_each_latent_gets_one_label(bucket):
    by_many, by_few = {"typeName": "many"}, {"typeName": "few", "explanationModelName": "m"}
    bucket.batches(
        [entry(0, " rain ", **by_many), entry(1, "few's", **by_few), entry(1, "many's", **by_many)],
        [entry(7, "two\u2028lines", **by_many), entry(8, None), entry(9, " \u200b")],
        [
            entry(16383, "=sum", **by_many),
            entry(9, "by few", **by_few),
            entry(16383, "x", **by_few),
        ],
    )
    assert fetched() == {0: "rain", 1: "many's", 7: "two lines", 9: "by few", 16383: "=sum"}
    note = labels_note(GEMMA, None)
    told = "; ".join(note["labels"])
    assert "rows without a label (null, empty or blank) left out: 2" in told
    assert "latents with several labels: 2, of which that of many" in told
    source = note["labels_source"]
    assert source["source"] == "gemma-2-2b/16-gemmascope-res-16k"
    assert source["address"] == bucket.url + PREFIX
    assert (source["batches"], source["labels"], source["preference"]) == (3, 5, PREFERENCE)
    assert len(source["sha256"]) == 64 and source["fetched"].startswith("20")
    json.dumps(note)


def test_a_run_without_labels_fetches_them_once_and_says_so_in_one_line(bucket, capsys):
    bucket.batches([entry(3, "boats"), entry(8, "rain")])
    assert [one.label for one in pick_latents(GEMMA, None, None, 0)] == ["boats", "rain"]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Labels: ")]
    assert (
        len(said) == 1 and "2 latents of Neuronpedia's gemma-2-2b/16-gemmascope-res-16k" in said[0]
    )
    asked = len(bucket.asked)
    assert [one.label for one in pick_latents(GEMMA, "8", None, 0)] == ["rain"]
    assert load_latents(GEMMA) and len(bucket.asked) == asked
    assert capsys.readouterr().err == ""


def test_what_is_in_the_cache_needs_no_network(bucket, monkeypatch):
    bucket.batches([entry(3, "boats")])
    assert latents_at_hand(GEMMA, RUNTIME) == [] and not bucket.asked
    want = fetched()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert fetched() == want and [one.index for one in latents_at_hand(GEMMA, RUNTIME)] == [3]
    # Another address is another source: what a stand-in gave is not the real thing.
    monkeypatch.delenv("ESR_EVAL_LABELS_URL")
    assert "HF_HUB_OFFLINE is set" in refused() and latents_at_hand(GEMMA, RUNTIME) == []


def test_offline_one_sentence_tells_the_ways_out(bucket, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    said = refused()
    assert "HF_HUB_OFFLINE" in said and "esr-eval latents fetch gemma-2b" in said
    assert not bucket.asked
    runtime = RUNTIME.model_copy(
        update={"sae": RUNTIME.sae.model_copy(update={"sae_id": "layer_20/width_16k/canonical"})}
    )
    with pytest.raises(EsrError, match=r"-M sae_release=gemma-.* -M sae_id=layer_20/width_16k/can"):
        fetch_labels(GEMMA, runtime)


def test_no_network_is_told_in_one_sentence(bucket, monkeypatch):
    bucket.server.shutdown()
    bucket.server.server_close()
    said = refused()
    assert "ConnectError" in said and "goes on where it ended" in said


def test_an_interrupted_fetch_goes_on_where_it_ended(bucket):
    bucket.batches([entry(0, "a")], [entry(1, "b")], [entry(2, "c")])
    second = f"{PREFIX}/explanations/batch-1.jsonl.gz"
    bucket.once[second] = [(503, b"")] * neuronpedia.TRIES
    assert "HTTP status 503; 1 batches are there" in refused()
    assert kept_labels(GEMMA, RUNTIME) is None
    del bucket.asked[:]
    assert fetched() == {0: "a", 1: "b", 2: "c"}
    assert FIRST not in bucket.asked and bucket.asked.count(second) == 1


def test_a_batch_that_the_interruption_left_damaged_is_asked_for_anew(bucket, tmp_path, capsys):
    bucket.batches([entry(0, "a")], [entry(1, "b")])
    bucket.once[f"{PREFIX}/explanations/batch-1.jsonl.gz"] = [(500, b"")] * neuronpedia.TRIES
    refused()
    (first,) = (tmp_path / "cache").rglob("batch-0.jsonl.gz")
    first.write_bytes(first.read_bytes()[:-9])
    assert fetched() == {0: "a", 1: "b"}
    assert "damaged or cut short: it is asked for anew" in capsys.readouterr().err


@pytest.mark.parametrize(
    "answer",
    [(500, b""), (429, b""), (200, packed(entry(1, "b"))[:-12]), (200, b"<html>Sorry</html>")],
    ids=["500", "429", "truncated", "html"],
)
def test_a_failure_that_passes_is_asked_again(bucket, answer):
    bucket.batches([entry(0, "a")], [entry(1, "b")])
    bucket.once[f"{PREFIX}/explanations/batch-1.jsonl.gz"] = [answer]
    assert fetched() == {0: "a", 1: "b"}


@pytest.mark.parametrize(
    "content",
    [b"<html></html>", packed(entry(0, "a"))[:-12], b'{"error": 1}'],
    ids=["a page", "cut short", "an error"],
)
def test_what_is_no_batch_is_told_and_never_kept(bucket, tmp_path, content):
    bucket.files[FIRST] = content
    assert "no batch of labels" in refused()
    assert bucket.asked.count(FIRST) == neuronpedia.TRIES
    assert not list((tmp_path / "cache").rglob("*.jsonl.gz"))


def test_single_rows_that_cannot_be_used_are_counted(bucket):
    bucket.batches([entry(0, "a"), entry("x", "b"), entry(2, 5)], [], [entry(4, "d")])
    assert fetched() == {0: "a", 4: "d"}
    assert "rows that cannot be used left out: 2" in labels_note(GEMMA, None)["labels"]


def test_rows_of_another_sae_are_left_out(bucket):
    bucket.batches([entry(0, "a"), entry(1, "b", layer="17-gemmascope-res-16k")])
    assert fetched() == {0: "a"}
    assert "rows of other SAEs left out: 1" in labels_note(GEMMA, None)["labels"]


@pytest.mark.parametrize("status", [404, 403])
def test_a_source_that_is_not_there_is_no_end_of_batches(bucket, status):
    bucket.missing = status
    said = refused()
    assert f"No labels of gemma-2b's SAE are at {bucket.url}{PREFIX} (HTTP status {status}" in said


def test_403_is_the_end_only_where_batches_are_still_to_be_had(bucket):
    bucket.batches([entry(0, "a")], [entry(1, "b")])
    bucket.missing = 403
    # The server closes itself: batch 1 is refused, and batch 0 by now as well.
    second = f"{PREFIX}/explanations/batch-1.jsonl.gz"
    bucket.once = {second: [(403, b"")], FIRST: [(200, bucket.files[FIRST]), (403, b"")]}
    assert "HTTP status 403 after explanations/batch-0" in refused()
    # A bucket without the right to list says 403 for what is not there.
    assert fetched() == {0: "a", 1: "b"}


def test_folders_of_single_methods_are_read_where_there_is_no_plain_one(bucket):
    bucket.lists = True
    bucket.batches([entry(0, "a")], [entry(2, "c")], folder="explanations-x")
    bucket.batches([entry(1, "b", typeName="y")], folder="explanations-y")
    assert fetched() == {0: "a", 1: "b", 2: "c"}
    # A mirror without a listing has the plain folder alone.
    bucket.lists = False
    assert kept_labels(GEMMA, RUNTIME)
    bucket.batches([entry(5, "plain")])
    bucket.lists = True
    assert fetched(fresh=True) == {5: "plain"}


def test_a_listing_of_several_pages_tells_missing_batches(bucket):
    bucket.lists, bucket.page = True, 2
    bucket.batches(*([entry(number, str(number))] for number in range(11)))
    del bucket.files[f"{PREFIX}/explanations/batch-4.jsonl.gz"]
    assert list(fetched()) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert "batches missing among 0 to 10: 1 (4)" in labels_note(GEMMA, None)["labels"]


def test_a_server_without_end_is_left(bucket, monkeypatch):
    bucket.always = lambda path: packed(entry(0, "a"))
    with pytest.raises(EsrError, match="gives the same file for"):
        fetched()
    monkeypatch.setattr(neuronpedia, "MOST_BATCHES", 20)
    bucket.always = lambda path: packed(entry(len(bucket.asked), "a"))
    with pytest.raises(EsrError, match="more than 20 batches and no end"):
        fetched(fresh=True)


def test_an_edited_or_lost_csv_is_made_anew_from_the_batches(bucket, monkeypatch, capsys):
    bucket.batches([entry(0, "a"), entry(1, "b")])
    want, path = fetched(), fetch_labels(GEMMA, RUNTIME).path
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = path.read_bytes()
    path.write_bytes(before.replace(b"1,b", b"1,z"))
    assert fetched() == want and path.read_bytes() == before
    assert "has been edited or damaged; it is made anew" in capsys.readouterr().err
    path.unlink()
    assert fetched() == want and "is missing; it is made anew" in capsys.readouterr().err
    # A rule that chose otherwise made another file of the same batches.
    record = path.with_name("labels.json")
    record.write_text(record.read_text("utf-8").replace(PREFERENCE, "the last"), "utf-8")
    assert fetched() == want and "older version's choice" in capsys.readouterr().err
    # Without the record nobody knows whether the batches are all.
    record.write_text("{", "utf-8")
    assert "HF_HUB_OFFLINE" in refused()
    monkeypatch.delenv("HF_HUB_OFFLINE")
    del bucket.asked[:]
    assert fetched() == want and FIRST not in bucket.asked


def test_a_fresh_fetch_replaces_all_and_a_failed_one_nothing(bucket):
    bucket.batches([entry(0, "a")], [entry(1, "b")])
    old = fetched()
    bucket.batches([entry(0, "newer")])
    del bucket.files[f"{PREFIX}/explanations/batch-1.jsonl.gz"]
    bucket.once[FIRST] = [(500, b"")] * neuronpedia.TRIES
    with pytest.raises(EsrError, match="HTTP status 500"):
        fetched(fresh=True)
    assert fetched() == old
    assert fetched(fresh=True) == {0: "newer"} == fetched()


SECTIONS = [
    {
        "metadata": {"layer": 19, "vector_type": "sae_decoder"},
        "vectors": [
            {"index": 5, "labels": ["boats", "ships"], "split": "train"},
            {"index": 9, "labels": [], "split": "val"},
            {"index": 70, "labels": ["rain"], "split": "val"},
        ],
    }
]


def test_llama_8b_has_a_source_of_its_own(bucket):
    llama = find_subject("llama-8b")
    said = refused(llama)
    assert "goodfire_8b_sae_labels.json.gz" in said and "llama3.1-8b-it/19-resid-post-gf" in said
    path = urlsplit(llama.labels).path
    bucket.files[path] = gzip.compress(json.dumps(SECTIONS).encode())
    assert fetched(llama) == {5: "boats", 70: "rain"}
    note = labels_note(llama, None)
    assert note["labels_source"]["source"] == llama.labels
    assert "rows without a label (null, empty or blank) left out: 1" in note["labels"]


def test_the_same_file_is_read_where_it_is_given(tmp_path):
    path = tmp_path / "goodfire.json.gz"
    path.write_bytes(gzip.compress(json.dumps(SECTIONS).encode()))
    llama = find_subject("llama-8b")
    assert {one.index: one.label for one in load_latents(llama, str(path))} == {
        5: "boats",
        70: "rain",
    }
    other = llama.runtime().model_copy(update={"feature_layer": 12})
    with pytest.raises(EsrError, match="this run's SAE reads layer 12"):
        load_latents(llama, str(path), other)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("gemma-2b", "gemma-2-2b/16-gemmascope-res-16k"),
        ("gemma-9b", "gemma-2-9b/26-gemmascope-res-16k"),
        ("gemma-27b", "gemma-2-27b/22-gemmascope-res-131k"),
        ("llama-70b", "llama3.3-70b-it/50-resid-post-gf"),
    ],
)
def test_the_papers_subjects_have_their_source(bucket, name, source):
    subject = find_subject(name)
    bucket.files[f"/v1/{source}/explanations/batch-0.jsonl.gz"] = packed(
        {"index": "5", "description": "boats"}
    )
    found = fetch_labels(subject, subject.runtime())
    assert found.origin.source == source
    assert ("the paper used is not public" in found.line()) == (name == "llama-70b")


def test_other_saes_are_found_by_registry_or_by_their_config(bucket, tmp_path):
    other = SAERef(release="gemma-scope-2-4b-it-res", sae_id="layer_17_width_16k_l0_medium")
    runtime = RUNTIME.model_copy(update={"sae": other, "feature_layer": 17})
    path = "/v1/gemma-3-4b-it/17-gemmascope-2-res-16k/explanations/batch-0.jsonl.gz"
    bucket.files[path] = packed({"index": 1, "description": "wind"})
    assert [one.label for one in load_latents(GEMMA, None, runtime)] == ["wind"]
    folder = tmp_path / "sae"
    folder.mkdir()
    config = {"metadata": {"neuronpedia_id": "gemma-3-4b-it/17-gemmascope-2-res-16k"}}
    (folder / "cfg.json").write_text(json.dumps(config), "utf-8")
    custom = find_subject("some/model")
    runtime = custom.runtime().model_copy(update={"sae": SAERef(release=str(folder))})
    assert [one.label for one in load_latents(custom, None, runtime)] == ["wind"]
    # A config is anybody's: its text names no place but in the bucket.
    for bad in ("../../etc/passwd", "a/../b", "http://127.0.0.1/x", 5):
        (folder / "cfg.json").write_text(json.dumps({"neuronpedia_id": bad}), "utf-8")
        with pytest.raises(EsrError, match="no source of labels is known"):
            load_latents(custom, None, runtime)
    with pytest.raises(EsrError, match="without an SAE"):
        load_latents(custom)


def test_whether_labels_are_given_or_a_whole_saes(tmp_path):
    path = tmp_path / "l.csv"
    write_labels(path, [(1, "a")])
    assert has_fetched_labels(GEMMA, None) and has_fetched_labels(GEMMA, "7,8")
    assert not has_fetched_labels(GEMMA, str(path))
    assert not has_fetched_labels(find_subject("smollm2-135m"), None)


@pytest.mark.parametrize(
    "bad", ["ftp://x", "127.0.0.1:80", "http://", "http://u:p@h", "http://h:x"]
)
def test_an_address_that_is_none_is_refused(bucket, monkeypatch, bad):
    monkeypatch.setenv("ESR_EVAL_LABELS_URL", bad)
    with pytest.raises(EsrError, match="ESR_EVAL_LABELS_URL is no plain address"):
        fetched()


def test_the_command_fetches_and_copies(bucket, tmp_path):
    bucket.batches([entry(8, "rain, hail"), entry(3, None)])
    out = tmp_path / "mine.csv"
    done = CliRunner().invoke(app, ["latents", "fetch", "gemma-2b", "-o", str(out)])
    assert done.exit_code == 0, done.output
    assert "Labels: 1 latents of Neuronpedia's" in done.output and "left out: 1" in done.output
    assert read_labels(out, RUNTIME).by_index == {8: "rain, hail"}
    chosen = ["-M", "sae_release=gemma-scope-2b-pt-res-canonical"]
    chosen += ["-M", "sae_id=layer_20/width_16k/canonical", "-M", "feature_layer=20"]
    done = CliRunner().invoke(app, ["latents", "fetch", "gemma-2b", *chosen])
    assert done.exit_code == 1 and "gemma-2-2b/20-gemmascope-res-16k" in done.output


def test_the_labels_of_a_large_sae_are_read_quickly(bucket, tmp_path):
    draw = random.Random(0)
    words = ["of", "rain", "and", "the", "ships", "code", "in", "texts", "about", "law"]
    rows = [(index, " ".join(draw.choices(words, k=9))) for index in range(131_072)]
    write_labels(tmp_path / "l.csv", rows)
    start = time.process_time()
    assert len(load_latents(GEMMA, str(tmp_path / "l.csv"))) == 131_072
    assert time.process_time() - start < 4  # 1 or so, but machines are busy
