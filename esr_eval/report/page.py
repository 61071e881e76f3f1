"""From sections to files: one HTML page that needs nothing else, and CSV tables."""

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from esr_eval._util.spreadsheet import write_frame
from esr_eval.errors import EsrError
from esr_eval.report.section import Section
from esr_eval.text import harmless

GENERATOR = "esr-eval report"
PAGE = "index.html"
TABLES = "tables"


def write(folder: Path, sections: Sequence[Section], lead: str, notes: Sequence[str]) -> Path:
    """Write the page and its tables, in place of an earlier report's.

    Args:
        folder: Where to.
        sections: In the order of the page.
        lead: The sentence below the title.
        notes: What was left out, and why.

    Returns:
        The page.

    Raises:
        EsrError: The folder is something else, or cannot be written.
    """
    page = folder / PAGE
    try:
        _make_room(folder)
        page.write_text(render(sections, lead, notes), "utf-8", errors="replace")
        for section in sections:
            for name, table in section.tables.items():
                write_frame(folder / TABLES / f"{name}.csv", table)
    except OSError as error:
        raise EsrError(f"The report cannot be written to {folder}: {error.strerror}.") from error
    return page


def render(sections: Sequence[Section], lead: str, notes: Sequence[str]) -> str:
    """The page. Everything in it is escaped; it holds no script and asks for no other file."""
    environment = Environment(
        loader=PackageLoader("esr_eval.report"),
        autoescape=True,
        undefined=StrictUndefined,
        # Whatever a section forgot to make fit to be shown; what is markup already is ours.
        finalize=lambda value: harmless(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        sections=sections, lead=lead, notes=notes, generator=GENERATOR, tables=TABLES
    )
    return html.encode("utf-8", "replace").decode("utf-8").lstrip()


def _make_room(folder: Path) -> None:
    """Take an earlier report's tables away; leave anything else alone.

    Raises:
        EsrError: What is there is no report.
    """
    page = folder / PAGE
    if folder.exists() and not folder.is_dir():
        raise EsrError(f"{folder} is a file: name a folder with -o.")
    if page.exists():
        with page.open(encoding="utf-8", errors="replace") as file:
            if GENERATOR not in file.read(2000):
                raise EsrError(f"{page} is no report of esr-eval: name another folder with -o.")
        for table in (folder / TABLES).glob("*.csv"):
            table.unlink()
    (folder / TABLES).mkdir(parents=True, exist_ok=True)
