"""Labels of a whole SAE, fetched from where they are published and kept in the cache.

Most are in Neuronpedia's public bucket, as batches from 0 on in v1/MODEL/SOURCE/explanations. The
batches are kept as they come, so that an interrupted fetch goes on; of them one CSV is made, and
beside it a record of what it is. Nothing of this is shipped: each user downloads it.
"""

import html
import json
import os
import re
import shlex
import shutil
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import httpx
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from tenacity import (
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential_jitter,
)

from esr_eval._util.files import file_sha256, write_whole
from esr_eval._util.output import Terminal, note
from esr_eval._util.paths import CACHE_ENV, cache_root
from esr_eval.data.labels import (
    PREFERENCE,
    Entry,
    labelled,
    missing_batches,
    one_each,
    read_entries,
    without_label,
    write_labels,
)
from esr_eval.data.registry import registered
from esr_eval.errors import EsrError
from esr_eval.spec import Runtime, SAERef, fingerprint
from esr_eval.subjects import Subject, given_folder
from esr_eval.text import harmless, one_line

LABELS_URL_ENV = "ESR_EVAL_LABELS_URL"
"""Environment variable that names another address with the same paths, such as a mirror."""
BUCKET = "https://neuronpedia-datasets.s3.us-east-1.amazonaws.com"
PLAIN = "explanations"
MOST_BATCHES = 8192
"""Twice what an SAE with a million latents has; an address with more tells no end."""
MOST_PAGES = 20
"""Of a listing, with 1,000 names each."""
MOST_BYTES = 2**28
MOST_SECONDS = 600.0
"""For one file, however slowly it comes."""
TRIES = 4
WAIT = wait_exponential_jitter(initial=0.5, max=10.0)
TIMEOUT = httpx.Timeout(60.0, connect=15.0)
NOT_THERE = (403, 404, 410)
"""Without the right to list a bucket, S3 answers 403 for what is not in it."""
PASSING = (408, 429)
DIRECT = ("all://127.0.0.1", "all://localhost", "all://[::1]")
"""A proxy of the environment knows nothing of this machine's loopback address."""

_ID = re.compile(r"(?!\.)[\w.-]{1,100}/(?!\.)[\w.-]{1,100}")
_FILE = r"^(?!\.)[\w.-]{1,100}(/(?!\.)[\w.-]{1,100})?$"
_BATCH = re.compile(r"(explanations(?:-[\w.-]{1,80})?)/batch-(\d{1,6})\.jsonl(?:\.gz)?")
_KEY = re.compile(r"<Key>([^<]+)</Key>")
_NEXT = re.compile(r"<NextContinuationToken>([^<]+)</NextContinuationToken>")


class Origin(BaseModel):
    """What a CSV of fetched labels was made of; lies beside it.

    Attributes:
        source: Neuronpedia's MODEL/SOURCE, or a file's address.
        address: Where it was asked for.
        fetched: The day, UTC.
        files: The batches, in order.
        labels: How many latents have one.
        notes: What was left out or chosen among.
        preference: How one of several was chosen.
        sha256: Of the CSV.
    """

    model_config = ConfigDict(frozen=True)

    source: str
    address: str
    fetched: str
    files: tuple[str, ...] = Field(min_length=1)
    labels: int
    notes: tuple[str, ...]
    preference: str
    sha256: str


class Fetched(NamedTuple):
    """Labels in the cache.

    Attributes:
        path: The CSV, index_in_sae,label.
        origin: What it was made of.
        remark: What users should know of these labels; None where there is nothing.
    """

    path: Path
    origin: Origin
    remark: str | None

    def line(self) -> str:
        """What was used, how many and from when, in one line."""
        its = self.origin
        return one_line(
            f"Labels: {its.labels:,} latents of {_shown(its.source)}, fetched {its.fetched} from "
            f"{its.address}, sha256 {its.sha256[:12]}"
            + (f" ({self.remark})." if self.remark else "."),
            limit=600,
        )

    def for_log(self) -> dict[str, Any]:
        """The same for a log's metadata."""
        found = self.origin.model_dump(mode="json", exclude={"files", "notes"})
        found["batches"] = len(self.origin.files)
        return found | ({"remark": self.remark} if self.remark else {})


class _Source(NamedTuple):
    name: str
    remark: str | None

    @property
    def is_file(self) -> bool:
        return "://" in self.name

    @property
    def address(self) -> str:
        base = _mirror()
        if self.is_file:
            return self.name if base is None else base + urlsplit(self.name).path
        return f"{base or BUCKET}/v1/{self.name}"

    @property
    def folder(self) -> Path:
        # What a stand-in once gave is never taken for the real thing.
        base = _mirror()
        at = f"@{fingerprint({'address': base})[:8]}" if base else ""
        name = self.name.replace("/", "_")
        if self.is_file:
            name = f"{self.file.split('.')[0]}-{fingerprint({'file': self.name})[:8]}"
        return cache_root() / "labels" / f"{name}{at}"

    @property
    def file(self) -> str:
        """A file's own name."""
        return urlsplit(self.name).path.rsplit("/", 1)[-1]

    def url(self, file: str) -> str:
        return self.address if self.is_file else f"{self.address}/{file}"


class _Batch(NamedTuple):
    entries: list[Entry]
    passed_over: int


class _PassingError(Exception):
    """What another try may mend."""


class _NotThereError(Exception):
    """The address has no such source."""


def fetch_labels(subject: Subject, runtime: Runtime, *, fresh: bool = False) -> Fetched:
    """The labels of a runtime's SAE, from the cache or else from where they are published.

    Args:
        subject: Whose run it is; names a source for its own SAE or not.
        runtime: Its SAE is the one whose labels are meant.
        fresh: Ask for every batch anew.

    Raises:
        EsrError: No source is known, it is not there, cannot be reached or gives no labels.
    """
    if not fresh and (kept := kept_labels(subject, runtime)):
        return kept
    missing = []
    for source in _sources(subject, runtime):
        try:
            return _fetch(source, subject, runtime, fresh)
        except _NotThereError as error:
            missing.append(f"{source.address} ({error})")
    if missing:
        raise EsrError(
            f"No labels of {subject.name}'s SAE are at {' or '.join(missing)}: {_OWN_FILE}, or "
            f"name a mirror that has them in {LABELS_URL_ENV}."
        )
    if runtime.sae is None:
        raise EsrError(
            f"{subject.name} comes without labelled latents and without an SAE: name an SAE with "
            f"-M sae_release= -M sae_id=, and {_OWN_FILE}."
        )
    raise EsrError(
        f"{subject.name} comes without labelled latents, and of its SAE "
        f"({' / '.join(filter(None, (runtime.sae.release, runtime.sae.sae_id)))}) no source of "
        f"labels is known: {_OWN_FILE}."
    )


_OWN_FILE = (
    "pass -T latents=FILE.csv with the columns index_in_sae,label, or a Neuronpedia export (JSON "
    "lines) of the SAE"
)


def kept_labels(subject: Subject, runtime: Runtime) -> Fetched | None:
    """The same where they are in the cache, whole; None where they must be fetched."""
    for source in _sources(subject, runtime):
        if found := _kept(source):
            return found
    return None


def label_sources(subject: Subject, runtime: Runtime) -> list[str]:
    """Names of where labels of the runtime's SAE may be, the surest first."""
    return [source.name for source in _sources(subject, runtime)]


def _sources(subject: Subject, runtime: Runtime) -> Iterator[_Source]:
    """Where labels of the runtime's SAE may be, the surest first."""
    sae = runtime.sae
    if sae is None:
        return
    own = sae == subject.sae
    names = set()
    if own and subject.labels is not None:
        names.add(subject.labels)
        yield _Source(subject.labels, subject.labels_remark)
    entry = registered(sae)
    for name in (entry.labels if entry else None, _of_folder(sae)):
        if name is not None and _ID.fullmatch(name) and name not in names:
            names.add(name)
            yield _Source(name, None)


def _of_folder(sae: SAERef) -> str | None:
    """What the cfg.json of an SAE's folder says."""
    folder = given_folder(sae)
    if folder is None:
        return None
    try:
        cfg = json.loads((folder / "cfg.json").read_text("utf-8"))
        about = {**cfg, **(cfg.get("metadata") or {})}
    except (OSError, ValueError, TypeError, AttributeError):
        return None  # whoever loads the SAE tells of it
    name = about.get("neuronpedia_id")
    return name if isinstance(name, str) else None


def _mirror() -> str | None:
    given = os.environ.get(LABELS_URL_ENV, "").strip().rstrip("/")
    if not given:
        return None
    try:
        parts = urlsplit(given)
        valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        httpx.URL(given)
    except (ValueError, httpx.InvalidURL):
        valid = False
    if not valid or parts.query or parts.fragment or parts.username or parts.password:
        raise EsrError(
            f"{LABELS_URL_ENV} is no plain address: one looks like http://127.0.0.1:8000/mirror."
        )
    return given


def _shown(name: str) -> str:
    return name.rsplit("/", 1)[-1] if "://" in name else f"Neuronpedia's {name}"


def _csv(folder: Path) -> Path:
    return folder / "labels.csv"


def _record(folder: Path) -> Path:
    return folder / "labels.json"


def _kept(source: _Source) -> Fetched | None:
    """A source's labels in the cache; a CSV that is not as it was made is made anew."""
    folder = source.folder
    path = _csv(folder)
    try:
        origin = Origin.model_validate_json(_record(folder).read_bytes())
    except (OSError, ValidationError):
        return None
    try:
        why = None if file_sha256(path) == origin.sha256 else "has been edited or damaged"
    except OSError:
        why = "is missing"
    if why is None and origin.preference != PREFERENCE:
        why = "was made by an older version's choice of labels"
    if why is None:
        return Fetched(path, origin, source.remark)
    note(f"The labels {path}: the file {why}; it is made anew from what was fetched.")
    found = {}
    for name in origin.files:
        batch = _batch_here(folder / "batches" / name) if re.fullmatch(_FILE, name) else None
        if batch is None:
            return None
        found[name] = batch
    return _make(source, found, origin.fetched, origin.address)


def _command(subject: Subject, runtime: Runtime) -> str:
    words = ["esr-eval", "latents", "fetch", subject.name]
    if runtime.sae is not None and runtime.sae != subject.sae:
        words += ["-M", f"sae_release={runtime.sae.release}"]
        words += ["-M", f"sae_id={runtime.sae.sae_id}"] if runtime.sae.sae_id else []
    return f"'{shlex.join(words)}'"


def _fetch(source: _Source, subject: Subject, runtime: Runtime, fresh: bool) -> Fetched:
    # As huggingface-hub reads it.
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise EsrError(
            f"The labels of {subject.name}'s SAE ({_shown(source.name)}) are not in the cache, and "
            f"HF_HUB_OFFLINE is set: unset it, or run {_command(subject, runtime)} where there is "
            f"a network (with the same cache, {CACHE_ENV}), or {_OWN_FILE}."
        )
    folder = source.folder
    came: dict[str, _Batch] = {}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(folder.name + ".lock")):
            # Another process may have fetched them meanwhile.
            if not fresh and (kept := _kept(source)):
                return kept
            note(f"Fetching the labels of {_shown(source.name)} from {source.address}.")
            batches = folder / ("anew" if fresh else "batches")
            if fresh:
                shutil.rmtree(batches, ignore_errors=True)
            _download(source, batches, came)
            if fresh:
                shutil.rmtree(folder / "batches", ignore_errors=True)
                batches.replace(folder / "batches")
            today = datetime.now(UTC).date().isoformat()
            return _make(source, came, today, source.address)
    except _PassingError as error:
        raise EsrError(
            f"The labels of {subject.name}'s SAE could not be fetched from {source.address} "
            f"({error}; {len(came)} batches are there): {_command(subject, runtime)} "
            f"goes on where it ended, or {_OWN_FILE}, or name a mirror in {LABELS_URL_ENV}."
        ) from error
    except OSError as error:
        raise EsrError(
            f"The labels could not be kept in {folder} ({error.strerror}): free space there, or "
            f"name another folder in the environment variable {CACHE_ENV}."
        ) from error


def _download(source: _Source, batches: Path, came: dict[str, _Batch]) -> None:
    """Get every batch that is not there yet.

    Args:
        source: What to get.
        batches: Folder to keep them in.
        came: Filled with what they hold, by file, also when the rest does not come.

    Raises:
        EsrError: The address gives something else than labels, or no end of it.
    """
    mounts = dict.fromkeys(DIRECT)
    with (
        httpx.Client(
            timeout=TIMEOUT,
            mounts=mounts,
            follow_redirects=True,
            max_redirects=5,
            # Batches stay packed, and the client never unpacks what has no bound.
            headers={"Accept-Encoding": "identity"},
        ) as client,
        _progress() as progress,
    ):
        listed = _listed(client, source)
        names = listed or [f"{PLAIN}/batch-{number}.jsonl.gz" for number in range(MOST_BATCHES + 1)]
        task = progress.add_task(
            harmless(_shown(source.name)), total=len(listed) if listed else None, rows="0"
        )
        rows, last = 0, ""
        for name in names:
            if len(came) >= MOST_BATCHES:
                raise EsrError(
                    f"{source.address} gives more than {MOST_BATCHES} batches and no end: it is no "
                    "bucket of labels."
                )
            file = batches / name
            batch = _batch_here(file) or _batch_from(client, source.url(name), file)
            if isinstance(batch, int):
                _check_end(client, source, batch, last, listed is not None)
                break
            alike = last.split("/")[0] == name.split("/")[0] and batch == came[last]
            if alike and batch.entries:
                file.unlink(missing_ok=True)
                raise EsrError(
                    f"{source.address} gives the same file for {last} and {name}: it is no bucket "
                    "of labels."
                )
            came[name], last = batch, name
            rows += len(batch.entries)
            progress.update(task, advance=1, rows=f"{rows:,}")


def _check_end(client: httpx.Client, source: _Source, status: int, last: str, listed: bool) -> None:
    """Tell the end of the batches, or that there are none, from what should not be.

    Raises:
        _NotThereError: There are none.
        _PassingError: The address has closed itself.
        EsrError: It answers as no bucket does, or without a batch that it lists.
    """
    if status in NOT_THERE and not last:
        raise _NotThereError(
            f"HTTP status {status}"
            + (": not there, or not open to everyone" if status == 403 else "")
        )
    if status not in NOT_THERE or listed:
        raise _PassingError(f"HTTP status {status} after {last or 'nothing'}")
    # The batch before is still to be had, or this was not about the batch.
    if status == 403 and _retried(_status, client, source.url(last)) != 200:
        raise _PassingError(f"HTTP status {status} after {last}, and now for that one too")


def _listed(client: httpx.Client, source: _Source) -> list[str] | None:
    """The batches that the bucket lists, in order; None where it lists none of this source."""
    if source.is_file:
        return [source.file]
    prefix, found, token = f"v1/{source.name}/", {}, ""
    base = source.address.removesuffix(f"/v1/{source.name}")
    for _ in range(MOST_PAGES):
        url = f"{base}/?list-type=2&prefix={quote(prefix + PLAIN, safe='')}"
        status, content = _retried(
            _get, client, f"{url}&continuation-token={token}" if token else url
        )
        text = content.decode("utf-8", "replace")
        if status != 200 or "<ListBucketResult" not in text:
            return None
        for key in _KEY.findall(text):
            path = html.unescape(key).removeprefix(prefix)
            if batch := _BATCH.fullmatch(path):
                found[batch[1], int(batch[2])] = path
        more = _NEXT.search(text)
        if more is None:
            break
        token = quote(html.unescape(more[1]), safe="")
    # Where there is no plain folder, those of single methods together have the explanations.
    if any(folder == PLAIN for folder, _ in found):
        found = {key: path for key, path in found.items() if key[0] == PLAIN}
    return [found[key] for key in sorted(found)] or None


def _retried(ask: Any, *args: Any) -> Any:
    """Ask, and ask again after failures that pass."""
    return Retrying(
        retry=retry_if_exception_type(_PassingError),
        stop=stop_after_attempt(TRIES),
        wait=WAIT,
        reraise=True,
    )(ask, *args)


def _get(client: httpx.Client, url: str) -> tuple[int, bytes]:
    """Status and, where that is 200, content.

    Raises:
        _PassingError: No or no whole answer came, or the server is out of order.
        EsrError: The answer is too large for what is asked.
    """
    until = time.monotonic() + MOST_SECONDS
    content = bytearray()
    try:
        with client.stream("GET", url) as response:
            _check_status(response)
            if response.status_code != 200:
                return response.status_code, b""
            for piece in response.iter_raw():
                content += piece
                if len(content) > MOST_BYTES:
                    raise EsrError(
                        f"{url} is larger than {MOST_BYTES // 2**20} MiB: it is no batch of labels."
                    )
                if time.monotonic() > until:
                    raise _PassingError(f"not whole after {MOST_SECONDS:.0f} s")
            return 200, bytes(content)
    except httpx.RequestError as error:
        raise _PassingError(one_line(f"{type(error).__name__}: {error}")) from error


def _status(client: httpx.Client, url: str) -> int:
    try:
        with client.stream("GET", url) as response:
            _check_status(response)
            return response.status_code
    except httpx.RequestError as error:
        raise _PassingError(one_line(f"{type(error).__name__}: {error}")) from error


def _check_status(response: httpx.Response) -> None:
    if response.status_code in PASSING or response.status_code >= 500:
        raise _PassingError(f"HTTP status {response.status_code}")


def _batch_here(file: Path) -> _Batch | None:
    """What a batch in the cache holds; None where there is none, or a damaged one."""
    if not file.is_file():
        return None
    try:
        return _read(file)
    except EsrError:
        note(f"{file} is damaged or cut short: it is asked for anew.")
        file.unlink(missing_ok=True)
        return None


def _batch_from(client: httpx.Client, url: str, file: Path) -> _Batch | int:
    """Fetch a batch into the cache: what it holds, or the status of an answer without one."""

    def once() -> _Batch | int:
        status, content = _get(client, url)
        if status != 200:
            return status
        file.parent.mkdir(parents=True, exist_ok=True)
        # Its name goes on telling what it is.
        unfinished = file.with_name(f".{uuid.uuid4().hex}.{file.name}")
        try:
            unfinished.write_bytes(content)
            batch = _read(unfinished)
            unfinished.replace(file)
        except EsrError:
            note(f"{url} came damaged, cut short or as something else: it is asked for anew.")
            raise _PassingError(f"{file.name} comes damaged, or is no batch of labels") from None
        finally:
            unfinished.unlink(missing_ok=True)
        return batch

    found: _Batch | int = _retried(once)
    return found


def _read(file: Path) -> _Batch:
    """What a batch holds; single rows that cannot be used are passed over, but not all of them.

    Raises:
        EsrError: It is no batch.
    """
    passed_over: list[str] = []
    found = list(read_entries(file, passed_over))
    if passed_over and not found:
        raise EsrError(passed_over[0])
    return _Batch(found, len(passed_over))


def _make(source: _Source, came: dict[str, _Batch], fetched: str, address: str) -> Fetched:
    """Make the CSV and its record of the batches."""
    numbers: dict[str, list[int]] = {}
    for name in came:
        if parts := _BATCH.fullmatch(name):
            numbers.setdefault(parts[1], []).append(int(parts[2]))
    notes = [one for found in numbers.values() for one in missing_batches(found)]
    if unusable := sum(batch.passed_over for batch in came.values()):
        notes.append(f"rows that cannot be used left out: {unusable}")
    every = [entry for batch in came.values() for entry in batch.entries]
    if source.is_file:
        own = every
    else:
        model, sae = source.name.split("/")
        own = [one for one in every if one.model in ("", model) and one.sae in ("", sae)]
        if len(own) < len(every):
            notes.append(f"rows of other SAEs left out: {len(every) - len(own)}")
    entries, without = labelled(own)
    notes += without_label(without)
    if not entries:
        raise EsrError(
            f"{address} holds no label of {source.name} ({'; '.join(notes) or 'no rows'}): "
            f"{_OWN_FILE}."
        )
    labels, several = one_each(entries)
    path = _csv(source.folder)
    write_labels(path, sorted(labels.items()))
    origin = Origin(
        source=source.name,
        address=address,
        fetched=fetched,
        files=tuple(came),
        labels=len(labels),
        notes=(*notes, *several),
        preference=PREFERENCE,
        sha256=file_sha256(path),
    )
    write_whole(_record(source.folder), origin.model_dump_json(indent=1).encode())
    return Fetched(path, origin, source.remark)


def _progress() -> Progress:
    console = Terminal(stderr=True)
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("batches, {task.fields[rows]} rows", markup=False),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
