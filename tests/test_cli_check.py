"""`dyntrain check`: tables, advice, JSON and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

from dyntrain.cli import main
from made_runs import as_atoms, chosen, morse_run

# Others build on these keys.
KEYS = {
    "file", "n_frames", "n_atoms", "dt_fs_stated", "dt_fs_inferred", "dt_correlation", "stride", "ensemble",
    "wrapped", "shuffled", "breaks", "fixed_atoms", "velocities", "kick_ratio", "usable", "findings",
}  # fmt: skip


def check(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run `dyntrain check …` and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["dyntrain", "check", *(str(a) for a in arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_sound_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    run = morse_run(60)
    write(tmp_path / "a.traj", as_atoms(run))
    write(tmp_path / "b.traj", as_atoms(chosen(run, np.r_[0:30, 40:60]), time_stamps=False))
    assert check(monkeypatch, tmp_path, "--json", tmp_path / "report.json") == 0
    first, second = json.loads((tmp_path / "report.json").read_text())
    assert first.keys() >= KEYS
    assert (first["dt_fs_stated"], first["ensemble"], first["velocities"]) == (0.5, "nve", "read")
    assert (second["dt_fs_stated"], second["breaks"], second["usable"]) == (None, [30], True)
    (finding,) = second["findings"]
    assert set(finding) == {"code", "severity", "message", "frames"}
    shown = " ".join(capsys.readouterr().out.split())
    assert "a.traj: usable" in shown
    assert "CH2O, 4 atoms, 60 frames" in shown
    assert "the run is not continuous at 1 frame(s) (30)" in shown


def test_unusable_runs_exit_with_2_and_the_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    run = morse_run(60)
    write(tmp_path / "good.traj", as_atoms(run))
    (tmp_path / "cut.traj").write_bytes((tmp_path / "good.traj").read_bytes()[:5000])
    assert check(monkeypatch, tmp_path, "--json", tmp_path / "report.json") == 2
    broken, good = json.loads((tmp_path / "report.json").read_text())
    assert broken.keys() >= KEYS
    assert (broken["usable"], good["usable"]) == (False, True)
    assert broken["findings"][0]["severity"] == "error"
    said = capsys.readouterr()
    assert said.err.startswith(f"dyntrain: {tmp_path}/cut.traj, frame 0: ASE cannot read it")
    assert "Traceback" not in said.err + said.out

    shuffled = chosen(run, np.random.default_rng(0).permutation(60))
    write(tmp_path / "shuffled.traj", as_atoms(shuffled, time_stamps=False))
    assert check(monkeypatch, tmp_path / "shuffled.traj", "--dt", "0.5") == 2
    assert "the frames are not in the order of time" in capsys.readouterr().err
    assert check(monkeypatch, tmp_path) == 2
    assert "2 of 3 runs cannot be used; the reasons stand above." in capsys.readouterr().err


def test_paths_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert check(monkeypatch, tmp_path / "gone.traj") == 2
    assert "There is no file" in capsys.readouterr().err
    write(tmp_path / "run.traj", as_atoms(morse_run(10)))
    assert check(monkeypatch, tmp_path / "run.traj", "--json", tmp_path / "no" / "where.json") == 2
    assert "where.json cannot be written: No such file or directory." in capsys.readouterr().err
