"""The README tells the truth: its commands and options exist, and its code blocks run as written."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

ROOT = Path(__file__).resolve().parents[1]

# A fenced block, and the HTML comment right above it, if any. The blocks run in order, in one folder.
# `<!-- not run in tests: WHY -->` leaves a block out of the run (its commands are still checked);
# a yaml block is written to the file that its first line names: `# NAME.yaml`.
BLOCK = re.compile(r"(?:<!--(?P<note>[^\n]*)-->\n+)?```(?P<language>\w+)\n(?P<body>.*?)```", re.DOTALL)
NOT_RUN = "not run in tests:"

# Lines that would install or test this package within its own test, and the short form of long ones.
LEFT_OUT = re.compile(r"^(make (test|check)|git clone|cd|pip install|python3? -m pip)\b")
SHORTENED = [
    (re.compile(r"^make demo\b"), "dyntrain demo --short"),
    (re.compile(r"^dyntrain demo\b(?! --short)"), "dyntrain demo --short"),
]


def blocks() -> list[re.Match[str]]:
    return list(BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8")))


def commands(body: str) -> list[list[str]]:
    """The words of every `dyntrain …` line of a bash block, comments dropped, continued lines joined."""
    lines = body.replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines if line.lstrip().startswith("dyntrain ")]
    return [line[1:] for line in words]


COMMANDS = [words for block in blocks() if block["language"] == "bash" for words in commands(block["body"])]


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_command_and_options_exist(words: list[str]) -> None:
    from dyntrain.cli import app

    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="dyntrain")
    command = group
    if not words[0].startswith("-"):
        command = group.get_command(context, words[0])  # type: ignore[attr-defined]
        assert command is not None, f"README uses `dyntrain {words[0]}`, which does not exist"
    known = {
        option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
    }
    used = {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)} - {"--help"}
    assert used <= known, f"README uses {sorted(used - known)}, which `dyntrain {words[0]}` does not have"


def script(body: str) -> str:
    """A bash block as it is run here: without what installs and tests, the long demo in its short form."""
    lines = [line for line in body.splitlines() if not LEFT_OUT.match(line)]
    for pattern, short in SHORTENED:
        lines = [pattern.sub(short, line) for line in lines]
    return "\n".join(lines)


@pytest.mark.slow
def test_blocks_run(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for block in blocks():
        body, language = block["body"], block["language"]
        if language == "yaml" and (named := re.match(r"# ([\w.-]+\.ya?ml)\n", body)):
            (tmp_path / named[1]).write_text(body, encoding="utf-8")
        if language not in ("bash", "python") or NOT_RUN in (block["note"] or ""):
            continue
        call = (
            ["bash", "-euo", "pipefail", "-c", script(body)]
            if language == "bash"
            else [sys.executable, "-c", body]
        )
        done = subprocess.run(
            call, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, f"this block of README.md failed:\n{body}\n{done.stdout}\n{done.stderr}"


def test_the_rules_of_this_test() -> None:
    body = "git clone X\nmake demo    # page\nmake test\ndyntrain aimd water \\\n  --output runs # three\n"
    assert script(body) == "dyntrain demo --short    # page\ndyntrain aimd water \\\n  --output runs # three"
    assert commands(body) == [["aimd", "water", "--output", "runs"]]
