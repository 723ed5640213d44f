"""Code blocks of Markdown pages: found, checked against the command line, and run as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[1]

# A fenced block, and the HTML comment right above it, if any. The blocks run in order, in one folder.
# `<!-- not run in tests: WHY -->` leaves a block out of the run (its commands are still checked);
# a yaml or python block is written to the file that its first line names: `# NAME.yaml`, `# NAME.py`.
BLOCK = re.compile(r"(?:<!--(?P<note>[^\n]*)-->\n+)?```(?P<language>\w+)\n(?P<body>.*?)```", re.DOTALL)
NAMED = re.compile(r"# ([\w.-]+\.(?:ya?ml|py))\n")
NOT_RUN = "not run in tests:"

# Lines that would install or test this package within its own test, and the short form of long ones.
LEFT_OUT = re.compile(r"^(make|git clone|cd|pip install|python3? -m pip)\b(?! demo)")
SHORTENED = [
    (re.compile(r"^make demo\b"), "dyntrain demo --short"),
    (re.compile(r"^dyntrain demo\b(?! --short)"), "dyntrain demo --short"),
]


def blocks(page: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text(encoding="utf-8")))


def commands(body: str) -> list[list[str]]:
    """The words of every `dyntrain …` line of a bash block, comments dropped, continued lines joined."""
    lines = body.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.lstrip().startswith("dyntrain ")]
    return [line[1:] for line in words]


def commands_of(page: Path) -> list[list[str]]:
    """Every `dyntrain …` command of a page, run in tests or not."""
    return [
        words for block in blocks(page) if block["language"] == "bash" for words in commands(block["body"])
    ]


def unknown_options(words: list[str]) -> set[str]:
    """What of a command the command line does not have: its name, or some of its options."""
    from dyntrain.cli import app

    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="dyntrain")
    command = group
    if not words[0].startswith("-"):
        command = group.get_command(context, words[0])  # type: ignore[attr-defined]
        if command is None:
            return {words[0]}
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    return {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)} - {"--help"} - known


def script(body: str) -> str:
    """A bash block as it is run here: without what installs and tests, the long demo in its short form."""
    lines = [line for line in body.splitlines() if not LEFT_OUT.match(line)]
    for pattern, short in SHORTENED:
        lines = [pattern.sub(short, line) for line in lines]
    return "\n".join(lines)


def run_blocks(page: Path, folder: Path) -> None:
    """Run a page's bash and python blocks in order; fails with the first that does."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks(page):
        body, language = block["body"], block["language"]
        named = NAMED.match(body)
        if named and language in ("yaml", "python"):
            (folder / named[1]).write_text(body, encoding="utf-8")
        if language not in ("bash", "python") or NOT_RUN in (block["note"] or ""):
            continue
        call = (
            ["bash", "-euo", "pipefail", "-c", script(body)]
            if language == "bash"
            else [sys.executable, named[1] if named else "-c", *([] if named else [body])]
        )
        done = subprocess.run(
            call, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, (
            f"this block of {page.name} failed:\n{body}\n{done.stdout}\n{done.stderr}"
        )
