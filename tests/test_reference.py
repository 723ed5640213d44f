"""The AIMD generator: velocity Verlet to rounding, the same digits however it is run, stopped and resumed."""

from __future__ import annotations

import fcntl
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import ase.io
import numpy as np
import pytest
import typer
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms
from typer.testing import CliRunner

from aimd_runs import TOY, arrays, equal, kicks_of
from dyntrain.errors import UserError
from dyntrain.reference import AimdProgress, AimdSettings, build_system, generate_aimd
from dyntrain.reference.aimd import _assemble
from dyntrain.reference.kinetics import remove_rigid_motion
from dyntrain.reference.record import Record
from dyntrain.reference.runs import Piece, make_pieces, plan

WATER = AimdSettings("water", n_steps=60, thermalise_steps=20, checkpoint_every=16, seed=3)


@pytest.fixture(scope="module")
def water_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    pytest.importorskip("tblite")
    return generate_aimd(WATER, tmp_path_factory.mktemp("water"), n_runs=2, workers=2)


def test_is_velocity_verlet_to_rounding(water_runs: list[Path]) -> None:
    kicks = kicks_of(water_runs[0], WATER.dt_fs)
    assert kicks.n_steps == WATER.n_steps
    assert kicks.positions.abs().max() < 1e-14
    assert kicks.velocities.abs().max() < 1e-15


def test_conserves_the_energy(water_runs: list[Path]) -> None:
    for path in water_runs:
        frames = ase.io.read(path, ":")
        total = np.array([atoms.get_total_energy() for atoms in frames]) / 3
        assert np.ptp(total) < 2e-3  # eV an atom: the ripple of velocity Verlet at 0.5 fs
        halves = total[: len(total) // 2].mean() - total[len(total) // 2 :].mean()
        assert abs(halves) < 3e-4


def test_energy_and_forces_are_those_of_the_method(water_runs: list[Path]) -> None:
    tblite = pytest.importorskip("tblite.ase")
    recorded = ase.io.read(water_runs[0], 37)
    assert isinstance(recorded, Atoms)
    again = recorded.copy()
    again.calc = tblite.TBLite(method="GFN2-xTB", accuracy=0.001, verbosity=0)
    assert recorded.get_potential_energy() == pytest.approx(again.get_potential_energy(), abs=1e-8)
    assert recorded.get_forces() == pytest.approx(again.get_forces(), abs=1e-5)


def test_starts_without_rigid_motion(water_runs: list[Path]) -> None:
    first = ase.io.read(water_runs[1], 0)
    assert np.abs(first.get_momenta().sum(0)).max() < 1e-14
    assert np.abs(first.get_angular_momentum()).max() < 1e-14
    assert 50 < first.get_temperature() < 2000


def test_a_linear_molecule_turns_no_more() -> None:
    hydrogen = molecule("H2")
    hydrogen.rotate(40, "x")
    hydrogen.set_momenta(np.random.default_rng(0).normal(size=(2, 3)))
    along = np.diff(hydrogen.get_velocities(), axis=0) @ np.diff(hydrogen.positions, axis=0).T
    remove_rigid_motion(hydrogen)
    assert np.abs(hydrogen.get_angular_momentum()).max() < 1e-15
    assert np.diff(hydrogen.get_velocities(), axis=0) @ np.diff(
        hydrogen.positions, axis=0
    ).T == pytest.approx(along)


def test_files_tell_how_they_were_made(water_runs: list[Path]) -> None:
    frames = ase.io.read(water_runs[1], ":")
    assert [path.name for path in water_runs] == ["water_000.traj", "water_001.traj"]
    assert len(frames) == WATER.n_steps + 1
    assert frames[7].info == {"dt_fs": 0.5, "time_fs": 3.5}
    made = json.loads(frames[0].info["aimd"])
    assert made["run"] == 1
    assert AimdSettings(**made["settings"]) == WATER
    assert "tblite" in made["versions"]
    assert json.loads((water_runs[0].parent / "water_aimd.json").read_text())["settings"] == made["settings"]


def test_runs_differ_but_not_with_the_workers(water_runs: list[Path], tmp_path: Path) -> None:
    (alone,) = generate_aimd(WATER, tmp_path)
    assert equal(alone, water_runs[0])
    assert not equal(alone, water_runs[1])
    more = generate_aimd(WATER, tmp_path, n_runs=2)
    assert equal(more[1], water_runs[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "water_000.traj",
        "water_001.traj",
        "water_aimd.json",
    ]


SCRIPT = """
import sys
from pathlib import Path
from dyntrain.reference import AimdSettings, generate_aimd
settings = AimdSettings("water", n_steps=300, thermalise_steps=100, checkpoint_every=10)
generate_aimd(settings, Path(sys.argv[1]), progress=lambda _: print("at work", flush=True))
"""


def _killed_after(delay: float, output: Path) -> None:
    """Start the script, wait until it works, a moment longer, and kill it as nothing can prevent."""
    with subprocess.Popen([sys.executable, "-c", SCRIPT, str(output)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
    assert process.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    moments = random.Random(5)
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    for _ in range(3):
        _killed_after(moments.uniform(0.0, 0.1), killed)
        assert not list(killed.glob("*.traj")), "the run ended before it was killed: the test shows nothing"
    for output in (killed, undisturbed):
        subprocess.run([sys.executable, "-c", SCRIPT, str(output)], check=True, capture_output=True)
    assert equal(killed / "water_000.traj", undisturbed / "water_000.traj")
    assert sorted(path.name for path in killed.iterdir()) == ["water_000.traj", "water_aimd.json"]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    reports: list[AimdProgress] = []
    (path,) = generate_aimd(TOY, tmp_path, progress=reports.append)
    assert [report.step for report in reports] == [-10, -2, 0, 8, 16, 24, 30]
    assert (reports[-1].steps_done, reports[-1].steps_total) == (40, 40)
    made, n_reports = path.stat().st_mtime_ns, len(reports)
    generate_aimd(TOY, tmp_path, progress=reports.append)
    assert path.stat().st_mtime_ns == made
    assert len(reports) == n_reports


def test_file_equals_the_pieces_to_the_last_bit(tmp_path: Path) -> None:
    record = Record.of(TOY, tmp_path)
    folder = record.pieces_folder(0)
    folder.mkdir()
    pieces = [piece for task, piece in make_pieces(TOY, record.atoms, 0, folder) if task.kind == "record"]
    _assemble(record, 0)
    read = arrays(record.trajectory(0))
    for name in ("positions", "momenta", "forces", "energies"):
        assert np.array_equal(read[name], np.concatenate([getattr(piece, name) for piece in pieces])), name
    assert np.array_equal(read["times"], 0.5 * np.arange(TOY.n_steps + 1))


@pytest.mark.parametrize(("thermalise", "steps", "every"), [(0, 1, 100), (10, 30, 8), (16, 16, 8), (3, 5, 1)])
def test_the_plan_covers_every_step_once(thermalise: int, steps: int, every: int) -> None:
    settings = AimdSettings("H2", thermalise_steps=thermalise, n_steps=steps, checkpoint_every=every)
    tasks = plan(settings)
    assert [task.last for task in tasks[:-1]] == [task.first for task in tasks[1:]]
    assert (tasks[0].first, tasks[-1].last) == (-thermalise, steps)
    assert sum(task.last - task.first for task in tasks) == settings.total_steps
    assert {task.first < 0 for task in tasks if task.kind == "record"} == {False}


def test_langevin_kicks_and_holds_the_temperature(tmp_path: Path) -> None:
    settings = AimdSettings(
        "H2", method="emt", ensemble="langevin", n_steps=3000, checkpoint_every=3000, temperature_K=400
    )
    record = Record.of(settings, tmp_path)
    record.pieces_folder(0).mkdir()
    *_, (_, piece) = make_pieces(settings, record.atoms, 0, record.pieces_folder(0))
    kelvin = [2 * (p**2 / 2 / 1.008).sum() / (6 * 8.617333e-5) for p in piece.momenta]
    assert np.mean(kelvin) == pytest.approx(400, rel=0.25)
    _assemble(record, 0)
    assert kicks_of(record.trajectory(0), settings.dt_fs).positions.abs().max() > 1e-5


def test_other_settings_are_refused(tmp_path: Path) -> None:
    generate_aimd(TOY, tmp_path)
    with pytest.raises(
        UserError, match=r"other settings \(n_steps was 30, is now 31\): repeat the first command"
    ):
        generate_aimd(AimdSettings(**{**TOY.__dict__, "n_steps": 31}), tmp_path)


def test_files_of_unknown_origin_are_refused(tmp_path: Path) -> None:
    generate_aimd(TOY, tmp_path)
    record = tmp_path / "H2_aimd.json"
    record.write_text("{}")
    with pytest.raises(UserError, match="is not a record of dyntrain aimd"):
        generate_aimd(TOY, tmp_path)
    record.unlink()
    with pytest.raises(UserError, match=r"holds H2_000.traj, but no H2_aimd.json"):
        generate_aimd(TOY, tmp_path)


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    generate_aimd(TOY, tmp_path)
    with (tmp_path / "H2_aimd.json").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another dyntrain aimd is at work"):
            generate_aimd(TOY, tmp_path, n_runs=2)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    record = Record.of(TOY, tmp_path)
    folder = record.pieces_folder(0)
    folder.mkdir()
    pieces = make_pieces(TOY, record.atoms, 0, folder)
    next(pieces)
    damaged = folder / "000000.npz"
    damaged.write_bytes(damaged.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"000000.npz is damaged .*: delete it and run again"):
        Piece.read(damaged)
    with pytest.raises(UserError, match="delete it and run again"):
        generate_aimd(TOY, tmp_path)


def test_an_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to the folder .*file"):
        generate_aimd(TOY, tmp_path / "file")


def test_a_failed_calculation_is_one_sentence(tmp_path: Path) -> None:
    unsuitable = AimdSettings("SiH4", method="emt", n_steps=5, thermalise_steps=5)
    with pytest.raises(UserError, match=r"run 0 of SiH4 stopped at thermalisation step 0: emt failed .*Si"):
        generate_aimd(unsuitable, tmp_path)


def test_a_failed_scf_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    torn = AimdSettings("water", temperature_K=300_000, dt_fs=5.0)
    with pytest.raises(UserError, match=r"run 0 of water stopped at .*: GFN2-xTB failed .*SCF not converged"):
        generate_aimd(torn, tmp_path)


def test_missing_tblite_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tblite", None)
    with pytest.raises(UserError, match=r'pip install "dyntrain\[demo\]"'):
        generate_aimd(AimdSettings("water"), tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dt_fs": 0.0}, "dt_fs must be a positive number"),
        ({"dt_fs": float("nan")}, "dt_fs must be a positive number"),
        ({"temperature_K": -1.0}, "temperature_K must not be negative"),
        ({"n_steps": 0}, "n_steps must be at least 1"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"ensemble": "npt"}, "ensemble must be one of nve, langevin, nose-hoover"),
    ],
)
def test_senseless_settings_are_refused(changes: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        AimdSettings(**{**TOY.__dict__, **changes})  # type: ignore[arg-type]


def test_systems(tmp_path: Path) -> None:
    assert build_system("Ethanol").get_chemical_formula() == "C2H6O"
    assert build_system("CH3CH2OH") == build_system("ethanol")
    file = tmp_path / "slab.xyz"
    ase.io.write(file, Atoms("MgO", [[0, 0, 0], [0, 0, 2.1]], cell=[4, 4, 4], pbc=True))
    assert build_system(str(file)).pbc.all()
    with pytest.raises(UserError, match=r"unknown system 'etanol' \(did you mean ethanol\?\)"):
        build_system("etanol")
    with pytest.raises(UserError, match="single atom"):
        build_system("H")
    file.write_text("nonsense")
    with pytest.raises(UserError, match=r"cannot read a structure from .*slab.xyz"):
        build_system(str(file))
    fixed = molecule("H2O")
    fixed.set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "fixed.traj", fixed)
    with pytest.raises(UserError, match=r"constraints \(FixAtoms\)"):
        build_system(str(tmp_path / "fixed.traj"))


def test_unknown_method() -> None:
    with pytest.raises(UserError, match=r"method 'B3LYP'.*GFN2-xTB"):
        generate_aimd(AimdSettings("water", method="B3LYP"), Path("nowhere"))
    assert not Path("nowhere").exists()


def test_command_line(tmp_path: Path) -> None:
    from dyntrain.cli.aimd import aimd

    app = typer.Typer()
    app.command()(aimd)
    command = [
        "H2",
        "--output",
        str(tmp_path),
        "--runs",
        "2",
        "--steps",
        "20",
        "--method",
        "emt",
        "--seed",
        "7",
    ]
    first = CliRunner().invoke(app, command)
    assert first.exit_code == 0, first.output
    assert first.stdout.split() == [str(tmp_path / f"H2_{run:03d}.traj") for run in range(2)]
    assert "nothing to do: all 2 runs are there" in CliRunner().invoke(app, command).stdout
