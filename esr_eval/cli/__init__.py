"""The command `esr-eval`: what can be run, calibrating it, and tables of what came out.

Evaluations themselves run with Inspect: `inspect eval esr_eval/esr --model esr/NAME`.
"""

import typer

from esr_eval.cli import finetune, judging, latents, reading, running, serve, vectors
from esr_eval.cli.command import Program

app = typer.Typer(
    cls=Program,
    help="Evaluations of endogenous steering resistance: does a language model notice and correct "
    "activation steering? Run them with `inspect eval esr_eval/esr --model esr/NAME`.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (running, reading, judging):
    app.add_typer(group.app)
app.add_typer(latents.app, name="latents")
app.add_typer(vectors.app, name="vectors")
app.add_typer(finetune.app, name="finetune")
app.add_typer(serve.app, name="serve")
