"""Store: what is written is read back bit for bit, as slices of the file, in the layout of H5MD."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from array_writers import write_deepmd, write_traj
from dyntrain.cli.convert import convert
from dyntrain.data.diagnose import diagnose, marked, usable_runs
from dyntrain.data.keys import KeyMap
from dyntrain.data.readers import read_runs, read_trajectories, read_trajectory
from dyntrain.data.segments import Segment, collate, find_segments
from dyntrain.data.store import STORE, _mapping, open_store, read_ahead, store_stamp, write_store
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.units import FS
from made_runs import morse_run, morse_trajectory

RUN = morse_trajectory(40).replace(breaks=(10, 25), notes=("Made.",), fixed_atoms=(), wrapped=True)


def same(found: Trajectory, expected: Trajectory) -> None:
    for field in dataclasses.fields(Trajectory):
        if field.name in ("file", "reader", "notes"):
            continue
        x, y = getattr(found, field.name), getattr(expected, field.name)
        assert np.array_equal(x, y), field.name


def test_runs_come_back_bit_for_bit(tmp_path: Path) -> None:
    small = morse_trajectory(7, numbers=(8, 1, 1), dt_fs=0.25, seed=3)
    cells = 20 * np.eye(3) + 0.01 * np.arange(40)[:, None, None]
    expanding = RUN.replace(cell=cells, pbc=np.array([True, True, True]), velocities_origin="rebuilt")
    slab = RUN.replace(pbc=np.array([True, True, False]), cell=np.diag([20.0, 20.0, 0.0]), fixed_atoms=(1, 3))
    runs = [RUN, small, expanding, slab]
    file = tmp_path / "runs.h5"
    write_store(runs, file)
    assert list(tmp_path.iterdir()) == [file]
    found = read_runs(file)
    for stored, run in zip(found, runs, strict=True):
        same(stored, run)
    assert found[0].notes == ("Stored from made_0 (read as arrays).", "Made.")
    assert [run.file for run in found] == [str(file), *(f"{file}#run_{k}" for k in (1, 2, 3))]


def test_a_stress_is_kept(tmp_path: Path) -> None:
    stressed = RUN.replace(stress=np.random.default_rng(0).normal(size=(40, 6)))
    write_store([stressed, RUN], tmp_path / "runs.h5")
    one, other = read_runs(tmp_path / "runs.h5")
    same(one, stressed)
    assert other.stress is None
    assert np.array_equal(one.slice(5, 9).stress, stressed.stress[5:9])


@pytest.mark.parametrize("tracked", [False, True])
def test_many_runs_keep_their_order(tmp_path: Path, tracked: bool) -> None:
    """By number, though HDF5 lists run_10 before run_2, or as the file tells that they were made."""
    write_store([morse_trajectory(3 + k) for k in range(12)], tmp_path / "runs.h5")
    if tracked:
        with h5py.File(tmp_path / "runs.h5") as old, h5py.File(tmp_path / "new.h5", "w") as new:
            for name in ("h5md", "observables", "parameters"):
                old.copy(name, new)
            particles = new.create_group("particles", track_order=True)
            for k in reversed(range(12)):
                old.copy(f"particles/run_{k}", particles)
    found = [run.n_frames for run in read_runs(tmp_path / ("new.h5" if tracked else "runs.h5"))]
    assert found == [3 + k for k in (reversed(range(12)) if tracked else range(12))]


def test_the_arrays_are_views_of_the_file(tmp_path: Path) -> None:
    write_store([RUN], tmp_path / "run.h5")
    (run,) = open_store(tmp_path / "run.h5")
    part = run.slice(5, 20)
    assert not run.positions.flags.writeable and not run.positions.flags.owndata
    assert np.shares_memory(part.forces, run.forces)
    one, other = (collate([Segment(0, 12, 4)], [r]) for r in (run, RUN))
    assert (one.targets.forces == other.targets.forces).all()
    assert (one.kicks.velocities == other.kicks.velocities).all()


def test_reading_ahead_changes_nothing(tmp_path: Path) -> None:
    write_store([RUN], tmp_path / "run.h5")
    (run,) = open_store(tmp_path / "run.h5")
    assert _mapping(run.slice(5, 20).forces) is not None and _mapping(RUN.forces) is None
    windows = [Segment(0, 12, 4), Segment(1, 0, 3), Segment(0, 30, 10)]
    read_ahead(windows, [run, RUN])
    np.testing.assert_array_equal(run.forces, RUN.forces)


def test_the_layout_is_h5mds(tmp_path: Path) -> None:
    write_store([RUN], tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as h5:
        assert h5["h5md"].attrs["version"].tolist() == [1, 1]
        assert h5["h5md/creator"].attrs["name"] == b"dyntrain"
        atoms = h5["particles/run_0"]
        assert atoms["position/value"].shape == (40, 4, 3)
        assert atoms["position/value"].dtype == np.float64
        units = {name: atoms[f"{name}/value"].attrs["unit"] for name in ("position", "velocity", "force")}
        assert units == {
            "position": b"Angstrom",
            "velocity": f"{FS:.17f} Angstrom fs-1".encode(),
            "force": b"eV Angstrom-1",
        }
        assert atoms["force/time"][()] == pytest.approx(0.5) and atoms["force/time"].attrs["unit"] == b"fs"
        assert atoms["box"].attrs["boundary"].tolist() == [b"periodic"] * 3
        assert h5["observables/run_0/potential_energy/value"].attrs["unit"] == b"eV"


def test_another_reader_of_h5md_understands_it(tmp_path: Path) -> None:
    """The generic reader, which knows only H5MD, gives the same run as the store's own."""
    from dyntrain.data.formats.h5md import read_h5md

    write_store([RUN], tmp_path / "run.h5")
    found = read_h5md(tmp_path / "run.h5", KeyMap())
    np.testing.assert_array_equal(found.positions, RUN.positions)
    np.testing.assert_allclose(found.velocities, RUN.velocities, rtol=1e-15)
    assert found.dt_fs == pytest.approx(0.5)


def test_damaged_stores_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.h5"
    write_store([RUN], file)
    whole = file.read_bytes()
    for kept in (0, 9, 100, 2000, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:kept])
        with pytest.raises(UserError, match=r"run\.h5"):
            read_trajectory(file)
    file.write_bytes(whole)
    with h5py.File(file, "a") as h5:
        h5["particles/run_0/force/value"][7, 2, 1] = np.nan
    with pytest.raises(UserError, match=r"run\.h5, frame 7: forces of atom 2 is nan"):
        read_trajectory(file)
    with h5py.File(file, "a") as h5:
        del h5["particles/run_0/force"]
    with pytest.raises(UserError, match=r"/particles/run_0/force/value is missing"):
        read_trajectory(file)
    with h5py.File(file, "w") as h5:
        h5["data"] = 1.0
    with pytest.raises(UserError, match="is HDF5 but not H5MD"):
        read_trajectory(file)


def test_a_store_is_checked_and_cut_into_windows_like_any_run(tmp_path: Path) -> None:
    write_store([RUN, morse_trajectory(20, seed=1)], tmp_path / "runs.h5")
    with pytest.raises(UserError, match=r"runs\.h5 holds 2 runs, where one is expected"):
        read_trajectory(tmp_path / "runs.h5")
    runs, reports = usable_runs(read_trajectories(tmp_path / "runs.h5"))
    assert [report.usable for report in reports] == [True, True]
    assert len(find_segments(runs, 5)) == (6 + 11 + 11) + 16
    with pytest.raises(UserError, match=r"is stored with dt = 0\.5 fs; convert again"):
        read_trajectory(tmp_path / "runs.h5", 1.0)


def test_long_runs_are_measured_on_their_first_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dyntrain.data.diagnose._MEASURED", 80)
    report = diagnose(RUN.replace(breaks=(30,), reader=STORE))
    assert (report.n_frames, report.breaks) == (40, (30,))
    found = {finding.code: finding.message for finding in report.findings}
    assert "all but its 1 breaks is measured on 20 frames" in found["measured_in_part"]


def invoke(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(convert)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_convert_stores_what_the_readers_read(tmp_path: Path) -> None:
    raw = morse_run(20)
    traj, system = write_traj(tmp_path, raw), write_deepmd(tmp_path, raw)
    output = tmp_path / "runs.h5"
    text = invoke(traj, system, "--dt", 0.5, "--output", output)
    assert "2 run(s), 40 frames" in text
    for stored, read in zip(read_runs(output), read_trajectories([traj, system], 0.5), strict=True):
        same(stored, marked(read))
    with pytest.raises(UserError, match="exists already; give another --output"):
        invoke(traj, "-o", output)
    invoke(output, "-o", tmp_path / "again.h5")
    invoke(traj, "-o", output, "--overwrite")
    assert len(read_runs(output)) == 1


def test_convert_takes_keys_from_yaml(tmp_path: Path) -> None:
    traj = write_traj(tmp_path, morse_run(10))
    keys = tmp_path / "keys.yaml"
    for text, sentence in [
        ("energy: [", "is not valid YAML"),
        ("enrgy: E", "unknown key `enrgy`; did you mean `energy`"),
        ("!!python/object/apply:os.system [ls]", "is not valid YAML"),
    ]:
        keys.write_text(text)
        with pytest.raises(UserError, match=sentence):
            invoke(traj, "--keys", keys, "-o", tmp_path / "run.h5")
    with pytest.raises(UserError, match="cannot be read: No such file"):
        invoke(traj, "--keys", tmp_path / "gone.yaml", "-o", tmp_path / "run.h5")
    keys.write_text("energy: energy\nunits: {energy: eV}\n")
    invoke(traj, "--keys", keys, "-o", tmp_path / "run.h5")


def test_a_store_that_does_not_fit_is_refused_beforehand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(
        UserError, match=r"runs\.h5 cannot be written: it needs \S+ MB, but 0\.001 MB are free"
    ):
        write_store([RUN], tmp_path / "runs.h5")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="there is no folder"):
        write_store([RUN], tmp_path / "no" / "runs.h5")


@pytest.mark.parametrize("whole", [True, False])
def test_the_stamp_tells_stores_apart_and_copies_not(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a store too large to read, a copy counts as another unless its time was kept."""
    if not whole:
        monkeypatch.setattr("dyntrain.data.store._READ_WHOLE", 0)
    file, copy, other = (tmp_path / name for name in ("runs.h5", "copy.h5", "other.h5"))
    write_store([RUN], file)
    shutil.copy2(file, copy)
    assert store_stamp(f"{copy}#run_1") == store_stamp(str(file))
    os.utime(copy, ns=(1, 1))
    assert (store_stamp(str(copy)) == store_stamp(str(file))) == whole
    write_store([RUN.replace(forces=np.nextafter(RUN.forces, 1.0))], other)
    assert other.stat().st_size == file.stat().st_size
    os.utime(other, ns=(file.stat().st_atime_ns, file.stat().st_mtime_ns))
    assert store_stamp(str(other)) != store_stamp(str(file))
