"""The way out to the terminal: what is printed is text, whatever names and labels hold."""

from typing import Any

import click
from rich.console import Console
from rich.text import Text

from esr_eval.text import harmless


def tell(text: object, *, err: bool = False) -> None:
    """Print a sentence on the terminal.

    Args:
        text: What is said.
        err: To standard error: what is no result.
    """
    click.echo(harmless(str(text)), err=err)


def note(text: object) -> None:
    """Print a remark, such as what was left out, where it does not mix with results."""
    tell(text, err=True)


class Terminal(Console):
    """A rich console for which text is text: no markup, no emoji codes, no control characters.

    Styles are given as `rich.text.Text`, or as arguments.
    """

    def __init__(self, **settings: Any) -> None:
        """Take the settings of `rich.console.Console`."""
        super().__init__(**settings | {"markup": False, "emoji": False})

    def render_str(self, text: str, *args: Any, **settings: Any) -> Text:
        """Every text on its way out passes here: cells, titles, captions, lines."""
        return super().render_str(
            harmless(text), *args, **settings | {"markup": False, "emoji": False}
        )
