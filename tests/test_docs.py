"""The documentation tells the truth: its commands and options exist, and its blocks run as written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase.units
import pytest

from array_writers import write_deepmd, write_dialect, write_h5md, write_md17
from format_writers import write_aims, write_cpx, write_pwscf, write_vasprun
from made_runs import morse_run
from markdown_blocks import ROOT, blocks, commands_of, run_blocks, unknown_options

DOCS = ROOT / "docs"
KCAL_MOL = ase.units.kcal / ase.units.mol
PAGES = {str(page.relative_to(DOCS)): page for page in sorted(DOCS.rglob("*.md"))}
RUNNABLE = [
    name
    for name, page in PAGES.items()
    if any(block["language"] in ("bash", "python") for block in blocks(page))
]


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_exist(page: str) -> None:
    for words in commands_of(PAGES[page]):
        assert not unknown_options(words), f"{page}: dyntrain {' '.join(words)}"


@pytest.fixture(scope="session")
def quick_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the quick start leaves behind, in little: runs, held-out, trained/model.pt."""
    folder = tmp_path_factory.mktemp("quick_start")
    # By evaluations, not by the clock: a slow machine's model would be too poor to run MD with.
    budget = "budget: {evaluations: 6000, costs: {rollout: 1.2}, validations: 3}\n"
    (folder / "train.yaml").write_text(f"data: [runs]\noutput: trained\n{budget}")
    for words in (
        "aimd ethanol --output runs --runs 2 --steps 120 --seed 1",
        "aimd ethanol --output held-out --steps 120 --seed 7",
        "train train.yaml",
    ):
        done = subprocess.run(
            [Path(sys.executable).with_name("dyntrain"), *words.split()],
            cwd=folder,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
    return folder


def _beside(folder: Path, *names: str) -> None:
    for name in names:
        for file in (ROOT / "tests" / "data" / name).iterdir():
            shutil.copy(file, folder)


# What a page's reader has before its first block; every other page begins with what the quick start made.
READER_HAS: dict[str, Callable[[Path], object]] = {
    "index.md": lambda folder: None,
    "aimd/vasp.md": lambda folder: write_vasprun(folder, morse_run(200)),
    "aimd/cp2k.md": lambda folder: _beside(folder, "cp2k_water"),
    "aimd/quantum-espresso.md": lambda folder: (
        write_pwscf(folder, morse_run(200)),
        write_cpx(folder, morse_run()),
    ),
    "aimd/fhi-aims.md": lambda folder: write_aims(folder, morse_run(200)),
    "aimd/i-pi.md": lambda folder: _beside(folder, "ipi_trap"),
    "aimd/arrays.md": lambda folder: (
        write_md17(folder, morse_run()),
        write_deepmd(folder, morse_run()),
        write_h5md(folder, morse_run()),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE)
def test_blocks_run(page: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if page in READER_HAS:
        READER_HAS[page](tmp_path)
    else:
        shutil.copytree(request.getfixturevalue("quick_start"), tmp_path, dirs_exist_ok=True)
    if page == "aimd/extxyz.md":
        run = morse_run()
        in_kcal = replace(run, energies=run.energies / KCAL_MOL, forces=run.forces / KCAL_MOL)
        write_dialect(tmp_path, in_kcal, "REF_")
    run_blocks(PAGES[page], tmp_path)


@pytest.mark.slow
def test_site_builds(tmp_path: Path) -> None:
    """Strict: a broken link, a page left out of the menu or a docstring that does not parse fails."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "<math" in (tmp_path / "site" / "method.html").read_text(encoding="utf-8")
