"""`dyntrain md`: batches, ensembles, runs that were killed and go on, refusals."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import typer
from ase import Atoms
from ase.build import molecule
from ase.constraints import FixAtoms, FixBondLength
from typer.testing import CliRunner, Result

from dyntrain.cli.md import md
from dyntrain.data.readers import read_trajectories
from dyntrain.errors import UserError
from dyntrain.models.files import build_model, save_model
from dyntrain.potential import Conservative
from dyntrain.rollout import BurstGuard
from dyntrain.simulate import TrajectoryFiles
from md_runs import run_in_process

app = typer.Typer()
app.command()(md)


def run_md(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def untrained(path: Path, scale: float = 1.0) -> Path:
    """A small network that knows H and O, never trained; its forces grow with the scale."""
    torch.manual_seed(0)
    network = build_model("egnn", elements=[1, 8], width=8, n_channels=4)
    network.set_statistics(torch.zeros(2, dtype=torch.float64), scale, 2.0)
    save_model(Conservative(network), path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture
def start(tmp_path: Path) -> Path:
    ase.io.write(tmp_path / "start.xyz", molecule("H2O"))
    return tmp_path / "start.xyz"


def test_md_runs_and_repeats(model: Path, start: Path, tmp_path: Path) -> None:
    frames = {}
    for name in ("one.traj", "two.traj"):
        done = run_md(
            model, start, "--steps", 20, "--temperature", 300, "--every", 5, "--output", tmp_path / name
        )
        assert done.exit_code == 0, done.output
        frames[name] = ase.io.read(tmp_path / name, ":")
    assert "H2O, 300.0 K, closest pair 0.969 Å" in done.stdout
    assert "20 steps (10 fs)" in done.stdout and "ns/day" in done.stdout and "5 frames in" in done.stdout
    assert [atoms.info["step"] for atoms in frames["one.traj"]] == [0, 5, 10, 15, 20]
    for one, two in zip(*frames.values(), strict=True):
        assert np.array_equal(one.positions, two.positions)


def test_md_goes_on_from_a_files_velocities(model: Path, start: Path, tmp_path: Path) -> None:
    whole, first, second = (tmp_path / f"{name}.traj" for name in ("whole", "first", "second"))
    assert run_md(model, start, "--steps", 20, "--temperature", 300, "--output", whole).exit_code == 0
    assert run_md(model, start, "--steps", 10, "--temperature", 300, "--output", first).exit_code == 0
    assert run_md(model, first, "--steps", 10, "--output", second).exit_code == 0
    ends = [ase.io.read(path).positions for path in (whole, second)]
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-12)


# --- batches ------------------------------------------------------------------------------------------


def test_a_batch_is_every_start_at_every_temperature_times_copies(
    model: Path, start: Path, tmp_path: Path
) -> None:
    """And each system is the run that its seed alone makes."""
    ase.io.write(tmp_path / "oh.xyz", Atoms("OH", [[0, 0, 0], [0, 0, 1.0]]))
    words = (
        "--steps",
        12,
        "--every",
        4,
        "--temperature",
        200,
        "--temperature",
        400,
        "--precision",
        "float64",
    )
    done = run_md(model, start, tmp_path / "oh.xyz", *words, "--copies", 2, "--output", tmp_path / "run.traj")
    assert done.exit_code == 0, done.output
    assert "oh.xyz, 400 K, seed 7: HO, 400.0 K, closest pair 1.000 Å" in done.stdout
    assert "32 frames in" in done.stdout
    for system in range(8):
        frames = ase.io.read(tmp_path / f"run_{system:03d}.traj", ":")
        assert len(frames) == 4 and len(frames[0]) == (3 if system < 4 else 2)
        temperature = 400 if system % 4 >= 2 else 200
        file = start if system < 4 else tmp_path / "oh.xyz"
        alone = tmp_path / f"alone_{system}.traj"
        words = ("--steps", 12, "--every", 4, "--temperature", temperature, "--seed", system)
        words += ("--precision", "float64")
        if system in (2, 5):
            assert run_md(model, file, *words, "--output", alone).exit_code == 0
            for one, other in zip(frames, ase.io.read(alone, ":"), strict=True):
                np.testing.assert_allclose(one.positions, other.positions, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ensemble", ["langevin", "csvr", "nose-hoover"])
def test_thermostats_keep_their_temperature_and_energy(start: Path, tmp_path: Path, ensemble: str) -> None:
    """Of 16 waters as an ideal gas (no forces), within 5 standard errors of the mean temperature."""
    model = untrained(tmp_path / "model.pt", 0.0)
    words = ("--ensemble", ensemble, "--temperature", 300, "--time-constant", 10, "--copies", 16)
    done = run_md(
        model, start, *words, "--steps", 200, "--every", 4, "--dt", 1, "--output", tmp_path / "run.h5md"
    )
    assert done.exit_code == 0, done.output
    words = done.stdout.split()
    assert float(words[words.index("temperature") + 1]) == pytest.approx(300, rel=0.25)
    assert abs(float(words[words.index("drift") + 1])) < 0.01  # meV/atom/ps


def test_h5md_holds_all_systems_and_reads_back(model: Path, start: Path, tmp_path: Path) -> None:
    words = (model, start, "--steps", 22, "--every", 5, "--temperature", 300, "--copies", 3)
    assert run_md(*words, "--output", tmp_path / "run.h5md").exit_code == 0
    assert run_md(*words, "--output", tmp_path / "run.traj").exit_code == 0
    runs = read_trajectories([tmp_path / "run.h5md"])
    assert [run.n_frames for run in runs] == [5, 5, 5]  # the last frame, out of step, is left out
    for system, run in enumerate(runs):
        frames = ase.io.read(tmp_path / f"run_{system:03d}.traj", ":5")
        assert run.dt_fs == pytest.approx(2.5) and run.formula == "H2O"
        for number, atoms in enumerate(frames):
            assert np.array_equal(run.positions[number], atoms.positions)
            np.testing.assert_allclose(run.velocities[number], atoms.get_velocities(), rtol=1e-12)
            assert np.array_equal(run.forces[number], atoms.get_forces())
            assert run.energies[number] == atoms.get_potential_energy()


def test_fixed_atoms_stay_fixed(model: Path, tmp_path: Path) -> None:
    water = molecule("H2O")
    water.set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "start.traj", water)
    words = (model, tmp_path / "start.traj", "--steps", 20, "--temperature", 300, "--ensemble", "csvr")
    assert run_md(*words, "--output", tmp_path / "run.traj").exit_code == 0
    assert run_md(*words, "--output", tmp_path / "run.h5md").exit_code == 0
    *_, last = ase.io.read(tmp_path / "run.traj", ":")
    assert np.array_equal(last.positions[0], water.positions[0])
    assert not np.isclose(last.positions[1:], water.positions[1:]).all()
    assert last.constraints[0].index.tolist() == [0]
    (run,) = read_trajectories([tmp_path / "run.h5md"])
    assert run.fixed_atoms == (0,)


def test_velocities_of_the_file_can_be_kept(model: Path, start: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.traj", tmp_path / "second.traj"
    assert run_md(model, start, "--steps", 10, "--temperature", 500, "--output", first).exit_code == 0
    words = ("--ensemble", "langevin", "--temperature", 300, "--keep-velocities", "--output", second)
    done = run_md(model, first, "--steps", 10, *words)
    assert done.exit_code == 0 and ", 300.0 K, closest pair" not in done.stdout
    np.testing.assert_allclose(
        ase.io.read(second, 0).get_velocities(), ase.io.read(first, -1).get_velocities(), rtol=1e-12
    )


def test_npt_through_ase(model: Path, tmp_path: Path) -> None:
    """The cell breathes, keeps its shape, and ASE's extended energy is conserved."""
    crystal = Atoms("OH", [[0, 0, 0], [1.5, 1.5, 1.5]], cell=[3.0, 3.1, 3.2], pbc=True).repeat(2)
    ase.io.write(tmp_path / "start.xyz", crystal)
    words = ("--ensemble", "npt", "--temperature", 300, "--pressure", 2, "--time-constant", 20)
    output = ("--output", tmp_path / "run.traj")
    done = run_md(model, tmp_path / "start.xyz", *words, "--steps", 40, "--dt", 0.5, "--every", 10, *output)
    assert done.exit_code == 0, done.output
    frames = ase.io.read(tmp_path / "run.traj", ":")
    assert [atoms.info["step"] for atoms in frames] == [0, 10, 20, 30, 40]
    volumes = np.array([atoms.get_volume() for atoms in frames])
    assert volumes[-1] < 0.999 * volumes[0]  # 2 GPa, and a network that hardly resists
    np.testing.assert_allclose(frames[-1].cell.cellpar()[3:], 90, atol=1e-9)
    conserved = np.array([atoms.info["conserved_energy"] for atoms in frames])
    assert np.ptp(conserved) < 0.02 * np.ptp([atoms.get_total_energy() for atoms in frames])
    again = run_md(model, tmp_path / "start.xyz", *words, "--steps", 40, *output)
    assert "is there already" in str(again.exception)


# --- runs that fail -----------------------------------------------------------------------------------


def test_md_that_bursts_says_so_and_keeps_what_it_has(start: Path, tmp_path: Path) -> None:
    wild = untrained(tmp_path / "wild.pt", 1e6)
    output = tmp_path / "run.traj"
    done = run_md(wild, start, "--steps", 50, "--temperature", 300, "--output", output)
    assert done.exit_code == 1
    assert "the run failed after step 0 (0 fs): atom" in done.stderr
    assert "unrelaxed, or strange to the model?" in done.stdout
    assert len(ase.io.read(output, ":")) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.traj", "start.xyz", "wild.pt"]


def test_a_system_that_fails_is_named_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One dimer gets too fast for the guard; its last sound frame, out of step, is kept."""
    monkeypatch.setattr("dyntrain.simulate.run.BurstGuard", partial(BurstGuard, max_step=0.1))
    model = untrained(tmp_path / "model.pt", 200.0)
    atoms = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]])
    starts = []
    for name, speed in (("calm", 0.0), ("fast", -1.0)):
        atoms.set_velocities([[0, 0, 0.01], [0, 0, speed]])
        starts.append(tmp_path / f"{name}.traj")
        ase.io.write(starts[-1], atoms)
    done = run_md(model, *starts, "--steps", 30, "--every", 7, "--dt", 1, "--output", tmp_path / "run.traj")
    assert done.exit_code == 1
    assert "system 1 (" in done.stderr and "fast.traj) failed after step" in done.stderr
    lost = int(done.stderr.split("failed after step ")[1].split()[0])
    steps = [[a.info["step"] for a in ase.io.read(tmp_path / f"run_00{n}.traj", ":")] for n in (0, 1)]
    assert steps[0] == [0, 7, 14, 21, 28, 30]
    assert steps[1] == sorted({*range(0, lost + 1, 7), lost})


# --- runs that are stopped, or killed -----------------------------------------------------------------


def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch, number: int = signal.SIGTERM) -> None:
    """SIGTERM comes while the frame of this step is written."""
    write = TrajectoryFiles.write

    def signalled(self: TrajectoryFiles, frame: Any, *args: Any) -> None:
        write(self, frame, *args)
        if frame.step == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(TrajectoryFiles, "write", signalled)


def test_a_stopped_run_goes_on_with_the_same_command(
    model: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = (model, start, "--steps", 50, "--temperature", 300, "--output", tmp_path / "run.traj")
    with monkeypatch.context() as patched:
        stopped_at(20, patched, signal.SIGINT)
        done = run_md(*words)
    assert done.exit_code == 130
    assert "stopped by the user after step 20, the same command goes on" in done.stdout
    assert f"3 frames in {tmp_path}/run.traj.partial" in done.stdout
    assert len(ase.io.read(tmp_path / "run.traj.partial", ":", format="traj")) == 3
    again = run_md(*words)
    assert again.exit_code == 0 and "going on after step 20 (10 fs)" in again.stdout
    assert "6 frames in" in again.stdout
    assert len(ase.io.read(tmp_path / "run.traj", ":")) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.traj", "start.xyz"]


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (("--dt", 1.0), r"with another --dt (0.5, now 1.0): give the same to go on"),
        (("--temperature", 400), "with another --temperature"),
        (("--seed", 1), "with another --seed (0, now 1)"),
        (("--steps", 10), "has come to step 20, further than --steps 10"),
    ],
)
def test_a_run_goes_on_with_its_own_settings_only(
    model: Path,
    start: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changed: tuple[object, object],
    words: str,
) -> None:
    settings: dict[object, object] = {"--steps": 50, "--temperature": 300, "--output": tmp_path / "run.xyz"}
    with monkeypatch.context() as patched:
        stopped_at(20, patched)
        assert run_md(model, start, *sum(settings.items(), ())).exit_code == 130
    before = (tmp_path / "run.xyz.partial").read_bytes()
    refused = run_md(model, start, *sum((settings | dict([changed])).items(), ()))
    assert isinstance(refused.exception, UserError) and words in str(refused.exception)
    assert (tmp_path / "run.xyz.partial").read_bytes() == before
    anew = run_md(model, start, *sum((settings | dict([changed])).items(), ()), "--restart")
    assert anew.exit_code == 0 and "going on" not in anew.stdout


def test_another_model_under_a_checkpoint_is_refused(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--steps", 50, "--temperature", 300, "--output", tmp_path / "run.traj")
    with monkeypatch.context() as patched:
        stopped_at(20, patched)
        assert run_md(untrained(tmp_path / "model.pt"), start, *words).exit_code == 130
    refused = run_md(untrained(tmp_path / "model.pt", 2.0), start, *words)
    assert "with another MODEL" in str(refused.exception)
    (tmp_path / "run.traj.checkpoint").write_bytes(b"rubbish")
    refused = run_md(tmp_path / "model.pt", start, *words)
    assert "is damaged" in str(refused.exception)


def test_a_finished_trajectory_is_not_overwritten(model: Path, start: Path, tmp_path: Path) -> None:
    words = (model, start, "--steps", 2, "--temperature", 300, "--output", tmp_path / "run.traj")
    assert run_md(*words).exit_code == 0
    assert "is there already" in str(run_md(*words).exception)
    assert run_md(*words, "--restart").exit_code == 0


ENDINGS = {".traj": "nose-hoover", ".xyz": "langevin", ".h5md": "csvr"}
MOMENTS = [
    ("before a frame", 5),
    ("in a frame", 8),
    ("after a frame", 9),
    ("in a checkpoint", 1),
    ("in a checkpoint", 20),
    ("before a rename", 3),
    ("after a rename", 13),
    ("before a rename", 38),  # in the end, of a trajectory
    ("after a rename", 38),
]


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Runs that were left alone: their files, by name, for each ending."""
    found = {}
    for ending, ensemble in ENDINGS.items():
        folder = tmp_path_factory.mktemp("undisturbed")
        assert run_in_process(killable(model, folder, ending, ensemble)) == 0
        found[ending] = outputs(folder)
    return found


def killable(model: Path, folder: Path, ending: str, ensemble: str) -> list[object]:
    """Two systems in 37 steps (the last frame is out of step), with a checkpoint after each."""
    start = folder / "start.xyz"
    if not start.exists():
        ase.io.write(start, molecule("H2O"))
    words = [model, start, "--steps", 37, "--every", 5, "--temperature", 400, "--copies", 2]
    words += ["--ensemble", ensemble, "--time-constant", 10, "--output", folder / f"run{ending}"]
    return [*words, "--checkpoint-every", 0]


def outputs(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "start.xyz"}


# H5MD: one file for both systems, with fewer frames; it gets its name in another way.
CASES = [(e, m, n) for e in ENDINGS for m, n in MOMENTS if e != ".h5md" or n not in (9, 38)]


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "moment", "number"), CASES, ids=[f"{e} {m} {n}" for e, m, n in CASES])
def test_killed_and_called_again_it_writes_the_same_bytes(
    ending: str,
    moment: str,
    number: int,
    model: Path,
    undisturbed: dict[str, dict[str, bytes]],
    tmp_path: Path,
) -> None:
    words = killable(model, tmp_path, ending, ENDINGS[ending])
    assert run_in_process(words, moment, number) == -signal.SIGKILL
    assert run_in_process(words) == 0
    assert outputs(tmp_path) == undisturbed[ending]


def test_two_runs_do_not_share_an_output(model: Path, start: Path, tmp_path: Path) -> None:
    from dyntrain.simulate import TrajectoryWriter

    with TrajectoryWriter(tmp_path / "run.traj"):
        refused = run_md(model, start, "--steps", 2, "--temperature", 300, "--output", tmp_path / "run.traj")
        assert "another run is writing" in str(refused.exception)


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (None, (), "is not there"),
        (lambda path: path.write_text("rubbish"), (), "cannot be read as a structure"),
        (molecule("H2O"), (), "holds no velocities: draw them with --temperature"),
        (molecule("CH4"), ("--temperature", 300), "holds C, but the model knows only H, O"),
        (molecule("H2O"), ("--temperature", -1), "--temperature must lie between"),
        (molecule("H2O"), ("--temperature", 300, "--dt", 0), "--dt must be a time step in fs"),
        (molecule("H2O"), ("--temperature", 300, "--device", "tpu"), "--device must be one of auto, cpu"),
        (molecule("H2O"), ("--temperature", 300, "--precision", "half"), "precision must be float32"),
        (molecule("H2O"), ("--temperature", 300, "--output", "run.pdb"), "ends otherwise"),
        (Atoms("OH", [[0, 0, 0], [0, 0, 0.2]]), ("--temperature", 300), "only 0.200 Å apart"),
        (Atoms("H", [[0, 0, 0]], constraint=FixAtoms([0])), ("--temperature", 300), "fixes all its atoms"),
        (
            Atoms("OH", [[0, 0, 0], [0, 0, 1]], constraint=FixBondLength(0, 1)),
            ("--temperature", 300),
            "has the constraint FixBondLength",
        ),
        (molecule("H2O"), ("--ensemble", "nvt"), "--ensemble must be one of nve, langevin"),
        (molecule("H2O"), ("--ensemble", "csvr"), "--ensemble csvr needs a --temperature"),
        (molecule("H2O"), ("--ensemble", "csvr", "--temperature", 0), "needs a --temperature above 0 K"),
        (molecule("H2O"), ("--temperature", 300, "--time-constant", 0.1), "--time-constant must be longer"),
        (
            molecule("H2O"),
            ("--temperature", 300, "--keep-velocities"),
            "--keep-velocities is for thermostats",
        ),
        (molecule("H2O"), ("--temperature", 300, "--pressure", 1), "--pressure needs --ensemble npt"),
        (molecule("H2O"), ("--temperature", 300, "--ensemble", "npt"), "is not periodic in all directions"),
        (molecule("H2O"), ("--temperature", 300, "--ensemble", "npt", "--copies", 2), "one system at a time"),
        (molecule("H2O"), ("--copies", 2), "--copies without --temperature"),
        (molecule("H2O"), ("--temperature", 300, "--copies", 300), "more than 256: write them to one H5MD"),
    ],
)
def test_md_refuses(
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: Atoms | Callable[[Path], object] | None,
    options: tuple[object, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "start.traj"
    if isinstance(make, Atoms):
        ase.io.write(path, make)
    elif make is not None:
        make(path)
    done = run_md(model, path, "--steps", 5, *options)
    assert isinstance(done.exception, UserError), done.output
    assert words in str(done.exception)
    assert not list(tmp_path.glob("md.traj*"))


def test_a_start_is_never_replaced(model: Path, start: Path) -> None:
    before = start.read_bytes()
    words = ("--temperature", 300, "--steps", 2, "--restart", "--output", start)
    for ensemble in ("nve", "npt"):
        if ensemble == "npt":
            ase.io.write(start, molecule("H2O", cell=[9.0] * 3, pbc=True))
            before = start.read_bytes()
        done = run_md(model, start, *words, "--ensemble", ensemble)
        assert isinstance(done.exception, UserError) and "is a start of this run" in str(done.exception)
        assert start.read_bytes() == before


def test_h5md_of_a_single_frame_is_refused_before_the_run(model: Path, start: Path, tmp_path: Path) -> None:
    words = ("--temperature", 300, "--steps", 5, "--output", tmp_path / "one.h5md")
    done = run_md(model, start, *words)
    assert isinstance(done.exception, UserError)
    assert "--every must be at most 5, got 10" in str(done.exception)
    assert run_md(model, start, *words, "--every", 5).exit_code == 0
    assert read_trajectories(tmp_path / "one.h5md")[0].n_frames == 2


@pytest.mark.parametrize("ending", [".traj", ".xyz", ".h5md"])
def test_a_full_disk_ends_a_run_with_a_sentence(
    model: Path, start: Path, tmp_path: Path, ending: str
) -> None:
    words = [model, start, "--temperature", 300, "--steps", 60, "--every", 1, "--output"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))
    try:
        done = run_md(*words, tmp_path / f"md{ending}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(done.exception, UserError), done.output
    assert f"md{ending}: File too large; what was written is in its .partial" in str(done.exception)
    assert not (tmp_path / f"md{ending}").exists()
