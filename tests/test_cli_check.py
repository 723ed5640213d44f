"""`dyntrain check`: tables, advice, JSON and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase.io import write

from dyntrain.cli import main
from made_runs import as_atoms, ase_run, chosen, morse_run

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


def test_the_page_shows_every_run_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = morse_run(60)
    write(tmp_path / "a.traj", as_atoms(run))
    write(tmp_path / "b.traj", as_atoms(chosen(run, np.r_[0:30, 40:60]), time_stamps=False))
    (tmp_path / "cut.traj").write_bytes((tmp_path / "a.traj").read_bytes()[:5000])
    page = tmp_path / "page.html"
    assert check(monkeypatch, tmp_path, "--report", page) == 2
    html = page.read_text(encoding="utf-8")
    assert "2 of 3 reference runs can be used" in html
    assert "the run is not continuous at 1 frame(s) (30)" in html
    assert "ASE cannot read it" in html
    for title, number in (
        ("Energy", 2),
        ("Kicks", 2),
        ("Closest distance", 2),
        ("Forces", 2),
        ("Friction", 0),
    ):
        assert html.count(f"<h3>{title}</h3>") == number
    for figure in re.findall(r'<script type="application/json">(.*?)</script>', html, flags=re.S):
        assert json.loads(figure)["data"]
    assert "http" not in re.sub(r"<script>.*?</script>", "", html, flags=re.S)


def test_the_page_shows_the_friction_of_a_thermostat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "bath.traj", as_atoms(ase_run("nose-hoover")))
    page = tmp_path / "page.html"
    assert check(monkeypatch, tmp_path, "--report", page) == 0
    html = page.read_text(encoding="utf-8")
    assert "it explains this run (nose-hoover)" in html
    assert check(monkeypatch, tmp_path, "--report", tmp_path / "no" / "where.html") == 2


def test_runs_of_another_energy_zero_are_told_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for seed, shift in ((0, 0.0), (1, 500.0)):
        run = morse_run(60, seed=seed)
        run.energies = run.energies + shift
        write(tmp_path / f"{seed}.traj", as_atoms(run))
    assert check(monkeypatch, tmp_path, "--json", tmp_path / "report.json") == 0
    first, second = json.loads((tmp_path / "report.json").read_text())
    assert [[f["code"] for f in run["findings"]] for run in (first, second)] == [[], ["another_energy_zero"]]
    assert "which holds the same CH2O" in " ".join(capsys.readouterr().out.split())


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
    assert "where.json cannot be written: there is no folder" in capsys.readouterr().err


def test_a_run_in_the_place_of_an_output_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """`--json runs/*.traj`: the shell gives the first run to the option."""
    for name in ("a.traj", "b.traj"):
        write(tmp_path / name, as_atoms(morse_run(10)))
    before = (tmp_path / "a.traj").read_bytes()
    for option in ("--json", "--report"):
        assert check(monkeypatch, option, tmp_path / "a.traj", tmp_path / "b.traj") == 2
        assert f"{option} would replace" in capsys.readouterr().err
        assert (tmp_path / "a.traj").read_bytes() == before
    for _ in range(2):  # its own file is replaced
        assert check(monkeypatch, tmp_path / "a.traj", "--json", tmp_path / "a.json") == 0


COMMAND = [sys.executable, "-c", "from dyntrain.cli import main; main()"]


@pytest.mark.parametrize("stdout", ["-", "/dev/stdout"])
def test_json_on_stdout_has_it_for_itself(
    stdout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    write("a.traj", as_atoms(morse_run(20)))
    assert check(monkeypatch, "a.traj", "--json", stdout) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)[0]["file"] == "a.traj"
    assert "a.traj: usable" in err
    assert os.listdir() == ["a.traj"]


@pytest.mark.parametrize("arguments", [["check", "a.traj"], ["schema"]])
def test_a_full_disk_behind_stdout_is_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    write(tmp_path / "a.traj", as_atoms(morse_run(10)))
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, timeout=60
        )
    assert done.returncode == 2
    last = done.stderr.decode().splitlines()[-1]
    assert last == "dyntrain: cannot write to stdout (No space left on device); redirect it elsewhere"
    assert b"Traceback" not in done.stderr and b"ignored" not in done.stderr


def test_a_reader_that_has_had_enough_is_no_mistake() -> None:
    read, written = os.pipe()
    os.close(read)
    with os.fdopen(written, "wb") as pipe:
        done = subprocess.run([*COMMAND, "schema"], stdout=pipe, stderr=subprocess.PIPE, timeout=60)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_terminal_that_lacks_characters_ends_nothing(tmp_path: Path) -> None:
    write(tmp_path / "a.traj", as_atoms(morse_run(10)))
    command = [*COMMAND, "check", str(tmp_path / "a.traj")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"closest, ?" in done.stdout
