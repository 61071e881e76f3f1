"""The one error users see: a sentence that says what is wrong and the way out."""

import click

from esr_eval.text import harmless


class EsrError(click.ClickException):
    """A mistake the user can mend, told in one sentence.

    It is a click exception because both `inspect` and `esr-eval` are click programs: they print
    the sentence alone, without a traceback, and exit with status 1. Labels and paths in it are
    others' text: nothing of it is obeyed by whatever shows it.
    """

    def __init__(self, message: str) -> None:
        """Take the sentence."""
        super().__init__(harmless(message))

    def __str__(self) -> str:
        return self.message
