"""Files of labels as people have them: which latents have one, and what was left out.

A CSV with the columns index_in_sae,label; a Neuronpedia export: JSON or JSON lines, gzipped or not,
one file or a folder of batches; or JSON sections of `vectors` with an index and labels each. What
is left out or chosen among is counted and told. An error names the row and the column and never
what the file holds, which may be anything.
"""

import csv
import gzip
import io
import json
import logging
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from esr_eval._util.output import uncell, write_csv
from esr_eval.errors import EsrError
from esr_eval.spec import Runtime

logger = logging.getLogger(__name__)

SUFFIXES = (".csv", ".json", ".jsonl", ".gz")
COLUMNS = ("index_in_sae", "label")
FIELDS = ("index", "description")
MOST_BYTES = 2**29
"""No SAE has as many labels; a larger file is something else, or unpacks without end."""
FORMS = (
    "a CSV needs the columns index_in_sae,label; a Neuronpedia export needs the fields index and "
    "description"
)
NOT_RESIDUAL = {"att", "attn", "mid", "mlp", "transcoder", "transcoders", "tres"}
"""Words of Neuronpedia's SAE ids that name another place than a layer's output or input."""
ON_INPUT = {"jb", "pre"}
"""Words of ids of SAEs that may be of a layer's input, the output of the layer before."""

_INDEX = re.compile(r"[0-9]{1,9}")
_BATCH = re.compile(r"batch-(\d+)\.jsonl?(\.gz)?")
_SAE_ID = re.compile(r"(?P<layer>\d{1,3})(?:-[\w.-]{1,60})?")
_WIDTH = re.compile(r"\d+[km]\b")
_NAME = re.compile(r"[\w.:/-]{1,60}(, [\w.:/-]{1,60})?")


class Labels(NamedTuple):
    """What a file of labels holds.

    Attributes:
        by_index: Each latent's label, in the order of the file.
        notes: What was left out or chosen, a few words each; empty where nothing was.
        origin: Where they were fetched, when and what (see `neuronpedia`); None for a given file.
    """

    by_index: dict[int, str]
    notes: tuple[str, ...]
    origin: dict[str, Any] | None = None


class Entry(NamedTuple):
    """One explanation; `sae` and `model` as Neuronpedia names them, empty where it does not."""

    latent: int
    label: str
    sae: str
    model: str
    method: str


def read_labels(path: Path, runtime: Runtime) -> Labels:
    """Read a file or folder of labels; what is left out is logged as a warning.

    Args:
        path: The file, or a folder of Neuronpedia batches.
        runtime: Its SAE decides whose labels are meant where a file holds those of several.

    Raises:
        EsrError: It cannot be read, is damaged, holds no label, or those of other SAEs.
    """
    try:
        files, notes = _files(path)
        stamps = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    except OSError as error:
        raise EsrError(f"The labels {path} cannot be read: {error.strerror}.") from None
    # Several steps of a command ask for the same file: it is read, and told of, once.
    return _read(path, stamps, tuple(notes), runtime)


@lru_cache(maxsize=4)
def _read(
    path: Path, stamps: tuple[tuple[Path, int, int], ...], notes: tuple[str, ...], runtime: Runtime
) -> Labels:
    entries, without = labelled(entry for file, _, _ in stamps for entry in read_entries(file))
    if not entries:
        because = f" (rows without a label: {without})" if without else ""
        raise EsrError(f"{path} lists no latents{because}: {FORMS}.")
    kept, chosen = _of_this_sae(path, entries, runtime)
    by_index, several = one_each(kept)
    told = [*notes, *without_label(without), *chosen, *several]
    if told:
        logger.warning("Labels of %s: %d latents; %s.", path, len(by_index), "; ".join(told))
    return Labels(by_index, tuple(told))


def _files(path: Path) -> tuple[list[Path], list[str]]:
    """The files to read, in order, and what is to be said of the folder that they lie in."""
    if path.is_file():
        return [path], []
    if not path.is_dir():
        raise EsrError(f"{path} is neither a file nor a folder of labels.")
    # Neuronpedia keeps the batches of one SAE in SOURCE/explanations.
    folder = path / "explanations" if (path / "explanations").is_dir() else path
    # A decompressed copy beside its archive is the same batch.
    found: dict[int, list[Path]] = {}
    others = 0
    for file in sorted(folder.iterdir()):
        batch = _BATCH.fullmatch(file.name)
        if batch and file.is_file():
            found.setdefault(int(batch[1]), []).append(file)
        else:
            others += not file.name.startswith(".")
    if not found:
        raise EsrError(
            f"The folder {path} holds no labels: it needs batch-0.jsonl.gz and so on, as "
            "Neuronpedia's exports have them, or name a file."
        )
    notes = missing_batches(found)
    if twice := [number for number, files in found.items() if len(files) > 1]:
        notes.append(f"batches that lie there twice, read once: {len(twice)}")
    if others:
        notes.append(f"other files of the folder left aside: {others}")
    return [found[number][0] for number in sorted(found)], notes


def missing_batches(numbers: Collection[int]) -> list[str]:
    """A note of the batches that lack among those from 0 to the last; none where none do."""
    last = max(numbers)
    gaps = sorted(set(range(last)) - set(numbers)) if last < 10**6 else []
    if not gaps:
        return []
    some = ", ".join(map(str, gaps[:10])) + (", ..." if len(gaps) > 10 else "")
    return [f"batches missing among 0 to {last}: {len(gaps)} ({some})"]


def labelled(entries: Iterable[Entry]) -> tuple[list[Entry], int]:
    """The entries that have a label, and how many have none."""
    kept, without = [], 0
    for entry in entries:
        if _is_blank(entry.label):
            without += 1
        else:
            kept.append(entry)
    return kept, without


def without_label(rows: int) -> list[str]:
    """A note of the rows that have none; none where all have."""
    return [f"rows without a label (null, empty or blank) left out: {rows}"] if rows else []


def read_entries(file: Path, passed_over: list[str] | None = None) -> Iterator[Entry]:
    """The explanations in a file, blank ones among them.

    Args:
        file: The file; its content tells what form it has.
        passed_over: Filled with the complaints about single rows that cannot be used, which are
            passed over; None: the first one is raised.

    Raises:
        EsrError: The file cannot be read, or is damaged.
    """
    text = _text(file)
    start = text.lstrip()[:1]
    if not start and ".json" in file.name.lower():
        return  # a batch without a latent
    if file.name.lower().removesuffix(".gz").endswith(".csv") or start not in ("[", "{"):
        rows, names = _csv_rows(file, text), COLUMNS
    else:
        rows, names = _json_rows(file, text), FIELDS
    for number, row in rows:
        try:
            entry = _entry(file, number, row, names)
        except EsrError as error:
            if passed_over is None:
                raise
            passed_over.append(error.message)
            continue
        yield entry


def _text(file: Path) -> str:
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            content = (gzip.GzipFile(fileobj=raw) if packed else raw).read(MOST_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise EsrError(f"{file} is damaged or cut short (gzip): download it again.") from None
    except OSError as error:
        raise EsrError(f"The labels {file} cannot be read: {error.strerror}.") from None
    if len(content) > MOST_BYTES:
        raise EsrError(
            f"{file} holds more than {MOST_BYTES // 2**20} MiB: it is no list of labels."
        )
    # Spreadsheets save "Unicode text" as UTF-16, with a mark at its beginning.
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise EsrError(
            f"{file} is not text in UTF-8 (byte {error.start + 1}): {FORMS}, or name a folder of "
            "Neuronpedia batches."
        ) from None


def _csv_rows(file: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows by the number that a spreadsheet shows, the header being row 1."""
    number = 1
    try:
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        header = [cell.strip() for cell in next(reader, [])]
        if missing := [name for name in COLUMNS if name not in header]:
            raise EsrError(f"{file} has no column {' and no column '.join(missing)}: {FORMS}.")
        for number, cells in enumerate(reader, 2):
            if not any(cells):
                continue
            while len(cells) > len(header) and not cells[-1].strip():
                cells.pop()
            if len(cells) < len(header):
                raise EsrError(
                    f"{file}, row {number} is cut short ({len(cells)} of {len(header)} cells): "
                    "complete or delete it."
                )
            if len(cells) > len(header):
                raise EsrError(
                    f"{file}, row {number} has {len(cells)} cells for {len(header)} columns: put "
                    "a label with a comma in double quotes."
                )
            yield number, dict(zip(header, map(uncell, cells), strict=True))
    except csv.Error:
        raise EsrError(
            f"{file}, row {number + 1} or after it: a quoted cell does not end as it should (is "
            "the file cut short?)."
        ) from None


def _json_rows(file: Path, text: str) -> Iterator[tuple[int, Any]]:
    """Elements of one JSON list by their number, or JSON lines by theirs."""
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("["):
            at = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise EsrError(f"{file}{at}: this is not JSON (is the file cut short?).") from None
    else:
        rows = whole if isinstance(whole, list) else [whole]
        yield from enumerate(_of_sections(rows) if _has_sections(rows) else rows, 1)
        return
    # Not str.splitlines: JSON may hold U+2028 and its like as they are.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise EsrError(
                f"{file}, line {number}: this is not JSON (is the line cut short?)."
            ) from None
        yield number, entry


def _has_sections(rows: list[Any]) -> bool:
    return bool(rows) and all(
        isinstance(row, dict) and isinstance(row.get("vectors"), list) for row in rows
    )


def _of_sections(sections: list[dict[str, Any]]) -> Iterator[Any]:
    """Rows of the form that github.com/agencyenterprise/selfie-adapters keeps labels in.

    A section has metadata (the layer among them), and for each of its vectors an index and a list
    of labels.
    """
    for section in sections:
        about = section.get("metadata")
        layer = about.get("layer") if isinstance(about, dict) else None
        for vector in section["vectors"]:
            labels = vector.get("labels") if isinstance(vector, dict) else None
            if not isinstance(labels, list):
                yield vector
                continue
            for label in labels or [None]:
                yield {"index": vector.get("index"), "description": label, "layer": layer}


def _entry(file: Path, number: int, row: Any, names: tuple[str, str]) -> Entry:
    index_name, label_name = names
    if not isinstance(row, dict) or index_name not in row:
        raise EsrError(f"{file}, row {number} has no {index_name}: {FORMS}.")
    index, label = row[index_name], row.get(label_name)
    digits = "" if isinstance(index, bool) else str(index).strip()
    if not (isinstance(index, int | str) and _INDEX.fullmatch(digits)):
        raise EsrError(
            f"{file}, row {number}: {index_name} is not the index of a latent (a whole number, 0 "
            "or more)."
        )
    if not isinstance(label, str | None):
        raise EsrError(f"{file}, row {number}: {label_name} is not text.")
    try:
        (label or "").encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which nothing could write again
        raise EsrError(f"{file}, row {number}: {label_name} holds a broken character.") from None
    method = ", ".join(filter(None, (_word(row, "typeName"), _word(row, "explanationModelName"))))
    # A label is one line: graders and tables are shown it.
    line = " ".join(filter(None, map(str.strip, (label or "").splitlines())))
    return Entry(int(digits), line, _word(row, "layer"), _word(row, "modelId"), method)


def _word(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    if value is None:
        return ""
    return str(value).strip() if isinstance(value, str | int) else ""


def _is_blank(label: str) -> bool:
    """Whether nothing of it can be seen; zero-width characters cannot."""
    return not any(sign.isprintable() and not sign.isspace() for sign in label)


def _of_this_sae(
    path: Path, entries: list[Entry], runtime: Runtime
) -> tuple[list[Entry], list[str]]:
    """The entries of the runtime's SAE, as far as the file says whose they are."""
    counts = Counter((entry.model, entry.sae) for entry in entries)
    chosen = _chosen_source(path, list(counts), runtime)
    notes = []
    if others := [sae for model, sae in counts if (model, sae) != chosen]:
        left = len(entries) - counts[chosen]
        notes.append(
            f"rows of other SAEs ({_named(others)}) left out: {left}, those of "
            f"{_named([chosen[1]])} kept, as this run's SAE reads layer {runtime.feature_layer}"
        )
    if chosen[0] and not _same_model(chosen[0], runtime):
        notes.append(f"they are of the model {_named([chosen[0]])}: see that it is this run's")
    return [entry for entry in entries if (entry.model, entry.sae) == chosen], notes


def _chosen_source(
    path: Path, sources: Sequence[tuple[str, str]], runtime: Runtime
) -> tuple[str, str]:
    """Model and SAE whose labels are meant, as Neuronpedia names them.

    Raises:
        EsrError: None of them is the runtime's, or more than one may be.
    """
    way_out = "name a file with the labels of this run's own SAE"
    left = [source for source in sources if not NOT_RESIDUAL & _words(source[1])]
    if not left:
        raise EsrError(
            f"{path} has labels of {_named(sae for _, sae in sources)}, which is not of the "
            f"residual stream: {way_out}."
        )
    if runtime.feature_layer is not None:
        fit = [source for source in left if runtime.feature_layer in _layers(source[1])]
        # An id without a number says nothing of the layer.
        fit = fit or [source for source in left if not _layers(source[1])]
        if not fit:
            raise EsrError(
                f"{path} has labels of {_named(sae for _, sae in left)}, but this run's SAE reads "
                f"layer {runtime.feature_layer}: {way_out}, or pass -M feature_layer=."
            )
        left = fit
    ours = f"{runtime.sae.release} {runtime.sae.sae_id}".lower() if runtime.sae else ""
    widths = set(_WIDTH.findall(ours))
    if len(left) > 1:
        left = [source for source in left if widths & set(_WIDTH.findall(source[1]))] or left
    if len(left) > 1:
        left = [source for source in left if _same_model(source[0], runtime)] or left
    if len(left) > 1:
        raise EsrError(
            f"{path} has labels of {len(left)} SAEs ({_named(sae for _, sae in left)}), and "
            f"nothing tells which is this run's: {way_out} alone."
        )
    return left[0]


def _words(sae: str) -> set[str]:
    return set(re.split(r"[-_./]", sae.lower()))


def _layers(sae: str) -> set[int]:
    """Layers on whose output the SAE may have been trained; none where its id has no number."""
    found = _SAE_ID.fullmatch(sae)
    if found is None:
        return set()
    layer = int(found["layer"])
    # Some are of a layer's input and bear that layer's number (6-res-jb).
    return {layer, layer - 1} if _words(sae) & ON_INPUT else {layer}


def _same_model(theirs: str, runtime: Runtime) -> bool:
    short = re.sub(r"-(it|pt|instruct|chat|base|small)$", "", theirs.lower())
    return _letters(short) in _letters(f"{runtime.model} {runtime.subject}".lower())


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text)


PREFERENCE = (
    "of a latent's labels that of the method (typeName and explanationModelName) with labels for "
    "the most latents, of methods alike in this the first by name; of one method's the first in "
    "the order of the files"
)
"""Which one `one_each` keeps."""


def one_each(entries: Sequence[Entry]) -> tuple[dict[int, str], list[str]]:
    """One label for each latent, by the rule `PREFERENCE`, and notes of what was chosen among."""
    latents_of = Counter(method for _, method in {(e.latent, e.method) for e in entries})
    # Sorted once, and Python's sort is stable: the first of a latent's entries is the one kept.
    best = sorted(entries, key=lambda e: (-latents_of[e.method], e.method))
    kept: dict[int, Entry] = {}
    repeated, unlike = 0, set()
    for entry in best:
        first = kept.setdefault(entry.latent, entry)
        if first.label != entry.label:
            unlike.add(entry.latent)
        elif first is not entry:
            repeated += 1
    notes = []
    if unlike:
        methods = {entry.method for entry in entries} - {""}
        how = (
            f"that of {_named([best[0].method])} (the method with most of them) or else the next"
            if len(methods) > 1
            else "the first in the file"
        )
        notes.append(f"latents with several labels: {len(unlike)}, of which {how} is kept")
    if repeated:
        notes.append(f"rows that say the same again left out: {repeated}")
    return {index: kept[index].label for index in dict.fromkeys(e.latent for e in entries)}, notes


def _named(ids: Iterable[str]) -> str:
    """Ids of a file, as far as they are ids: anything else in their place is not shown."""
    known = [name if _NAME.fullmatch(name) else "an unnamed one" for name in dict.fromkeys(ids)]
    return ", ".join(known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")


def write_labels(path: Path, labels: Iterable[tuple[int, str]]) -> None:
    """Write latents' indices and labels as `read_labels` reads them.

    Raises:
        EsrError: The file cannot be written.
    """
    write_csv(path, [COLUMNS, *labels])
