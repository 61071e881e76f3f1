"""The one error users see: a sentence that says what is wrong and the way out."""

import click


class EsrError(click.ClickException):
    """A mistake the user can mend, told in one sentence.

    It is a click exception because both `inspect` and `esr-eval` are click programs: they print
    the sentence alone, without a traceback, and exit with status 1.
    """

    def __str__(self) -> str:
        return self.message
