"""The command line: one module a command; heavy imports happen inside the commands, so --help is quick."""

from __future__ import annotations

import io
import sys

import typer

from dyntrain.cli.aimd import aimd
from dyntrain.cli.check import check
from dyntrain.cli.compare import compare
from dyntrain.cli.convert import convert
from dyntrain.cli.demo import demo
from dyntrain.cli.evaluate import evaluate
from dyntrain.cli.export import export
from dyntrain.cli.improve import improve
from dyntrain.cli.md import md
from dyntrain.cli.train import schema, train
from dyntrain.errors import UserError

app = typer.Typer(
    name="dyntrain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Dynamic training of machine-learning interatomic potentials on AIMD.",
)

for command in (demo, train, improve, compare, check, convert, evaluate, md, export, aimd, schema):
    app.command()(command)


def main() -> None:
    """Run the command line; a user's mistake is one sentence on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # no terminal that lacks an Å ends hours of work
    try:
        app()
    except UserError as mistake:
        print(f"dyntrain: {mistake}", file=sys.stderr)
        sys.exit(2)
