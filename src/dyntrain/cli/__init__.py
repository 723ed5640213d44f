"""The command line: one module a command; heavy imports happen inside the commands, so --help is quick."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

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


class _Stdout(io.TextIOWrapper):
    """Standard output: what cannot be written (a full disk) ends the command in one sentence."""

    def write(self, text: str) -> int:
        with self._told():
            return super().write(text)

    def flush(self) -> None:
        with self._told():
            super().flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())  # for what still waits here
            if isinstance(error, BrokenPipeError):  # the reader has had enough: no mistake
                raise
            raise UserError(f"cannot write to stdout ({error.strerror}); redirect it elsewhere") from error


def main() -> None:
    """Run the command line; a user's mistake is one sentence on stderr and exit code 2."""
    # No terminal that lacks an Å ends hours of work.
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(errors="replace")
    if type(stdout := sys.stdout) is io.TextIOWrapper:
        sys.stdout = _Stdout(
            stdout.buffer,
            stdout.encoding,
            "replace",
            line_buffering=stdout.line_buffering,
            write_through=stdout.write_through,
        )
    try:
        try:
            app()
        finally:
            if sys.stdout is not None:  # closed by the shell
                sys.stdout.flush()
    except UserError as mistake:
        print(f"dyntrain: {mistake}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.exit(1)
