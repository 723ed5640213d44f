"""The README tells the truth: its commands and options exist, and its code blocks run as written."""

from __future__ import annotations

from pathlib import Path

import pytest

from markdown_blocks import ROOT, commands, commands_of, run_blocks, script, unknown_options

README = ROOT / "README.md"


@pytest.mark.parametrize("words", commands_of(README), ids=" ".join)
def test_command_and_options_exist(words: list[str]) -> None:
    assert not unknown_options(words), "README uses what the command line does not have"


@pytest.mark.slow
def test_blocks_run(tmp_path: Path) -> None:
    run_blocks(README, tmp_path)


def test_the_rules_of_this_test() -> None:
    body = "git clone X\nmake demo    # page\nmake test\ndyntrain aimd water \\\n  --output runs # three\n"
    assert script(body) == "dyntrain demo --short    # page\ndyntrain aimd water \\\n  --output runs # three"
    assert commands(body) == [["aimd", "water", "--output", "runs"]]
    assert unknown_options(["train", "--no-such"]) == {"--no-such"}
    assert unknown_options(["no-such-command"]) == {"no-such-command"}
