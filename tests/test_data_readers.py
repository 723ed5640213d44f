"""Readers: what was written comes back, what is missing is rebuilt, what is wrong is refused."""

from __future__ import annotations

import dataclasses
import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import units
from ase.io import write
from hypothesis import given, settings
from hypothesis import strategies as st

from dyntrain.data.diagnose import diagnose
from dyntrain.data.formats.frames import restated_masses
from dyntrain.data.keys import KeyMap
from dyntrain.data.raw import RawRun, to_trajectory
from dyntrain.data.readers import expand_paths, read_trajectories, read_trajectory
from dyntrain.data.store import write_store
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.units import BOHR, FS, HARTREE
from made_runs import MASSES, as_atoms, ase_run, chosen, morse_run

RUN = morse_run(30)


def written(path: Path, run: RawRun = RUN, **choices: bool) -> Path:
    write(path, as_atoms(run, **choices))
    return path


def same(found: Trajectory, run: RawRun, digits: float) -> None:
    for name in ("positions", "velocities", "forces", "energies"):
        np.testing.assert_allclose(getattr(found, name), getattr(run, name), rtol=0, atol=digits)
    np.testing.assert_array_equal(found.atomic_numbers, run.atomic_numbers)
    np.testing.assert_allclose(found.masses, run.masses, rtol=1e-12)
    np.testing.assert_array_equal(found.pbc, run.pbc)
    np.testing.assert_array_equal(found.cell, run.cell)
    assert run.dt_fs is not None
    assert found.dt == pytest.approx(run.dt_fs * FS, rel=1e-12)


# What comes back


@pytest.mark.parametrize(("suffix", "digits"), [("traj", 1e-15), ("extxyz", 2e-8), ("extxyz.gz", 2e-8)])
def test_round_trip(tmp_path: Path, suffix: str, digits: float) -> None:
    (found,) = read_trajectories(written(tmp_path / f"run.{suffix}"))
    same(found, RUN, digits)
    assert (found.reader, found.velocities_origin, found.dt_origin) == ("ase", "read", "file")


@settings(max_examples=15)
@given(
    n_frames=st.integers(3, 8),
    numbers=st.lists(st.sampled_from([1, 6, 8]), min_size=1, max_size=5),
    dt_fs=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 99),
    periodic=st.booleans(),
)
def test_round_trip_of_any_run(
    tmp_path_factory: pytest.TempPathFactory,
    n_frames: int,
    numbers: list[int],
    dt_fs: float,
    seed: int,
    periodic: bool,
) -> None:
    run = morse_run(n_frames, tuple(numbers), dt_fs, seed)
    if not periodic:
        run.cell, run.pbc = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    file = tmp_path_factory.mktemp("any") / "run.traj"
    same(read_trajectory(written(file, run), dt_fs), run, 1e-15)


def test_velocities_may_stand_in_a_column(tmp_path: Path) -> None:
    frames = as_atoms(RUN, momenta=False)
    assert RUN.velocities is not None
    for atoms, velocities in zip(frames, RUN.velocities, strict=True):
        atoms.set_array("velocities", velocities)
    write(tmp_path / "run.extxyz", frames)
    same(read_trajectory(tmp_path / "run.extxyz"), RUN, 2e-8)


def test_the_free_energy_is_taken_where_a_file_has_both(tmp_path: Path) -> None:
    frames = as_atoms(RUN)
    for atoms in frames:
        atoms.calc.results["free_energy"] = atoms.calc.results["energy"] - 0.25
    write(tmp_path / "run.traj", frames)
    found = read_trajectory(tmp_path / "run.traj")
    np.testing.assert_allclose(found.energies, RUN.energies - 0.25)
    assert "Energies are the free energies, of which the forces are the gradient." in found.notes


def paper_layout(folder: Path, index: int, run: RawRun) -> Path:
    """The run as the paper keeps it: positions in .traj, velocities in fractions of the cell."""
    assert run.velocities is not None and run.dt_fs is not None
    write(folder / f"traj_{index}.traj", as_atoms(run, momenta=False, time_stamps=False))
    v_fs = run.velocities * FS  # Å/fs
    numbers = v_fs * run.dt_fs @ np.linalg.inv(run.cell)
    np.savetxt(folder / f"velall-{index}", numbers.reshape(-1, 3), fmt="%.16e")
    return folder / f"traj_{index}.traj"


@pytest.mark.parametrize("dt_fs", [0.5, None])
def test_the_papers_layout(tmp_path: Path, dt_fs: float | None) -> None:
    skewed = np.array([[12.3, 0, 0], [-6.15, 10.65, 0], [0, 0, 25.2]])
    runs = {i: morse_run(20, seed=i, cell=skewed) for i in (2, 10)}
    for i, run in runs.items():
        paper_layout(tmp_path, i, run)
    found = read_trajectories(tmp_path, dt_fs)
    assert [Path(run.file).name for run in found] == ["traj_2.traj", "traj_10.traj"]
    for run, original in zip(found, runs.values(), strict=True):
        same(run, original, 1e-14)
        assert run.reader == "paper layout"
        assert run.dt_origin == ("inferred" if dt_fs is None else "given")


def test_the_papers_layout_with_other_numbers_is_refused(tmp_path: Path) -> None:
    file = paper_layout(tmp_path, 0, RUN)
    lines = (tmp_path / "velall-0").read_text().splitlines(keepends=True)
    for text, sentence in [
        ("".join(lines[:-1]), "velall-0 has 119 lines; traj_0.traj with 30 frames of 4 atoms needs 120"),
        ("", "velall-0 has 0 lines"),
        ("1 2\n", "must have 3 numbers a line, got 2"),
        ("a b c\n", "velall-0 cannot be read as lines of 3 numbers"),
        ("".join(["nan 0 0\n", *lines[1:]]), "frame 0: velocities of atom 0 is nan"),
    ]:
        (tmp_path / "velall-0").write_text(text)
        with pytest.raises(UserError, match=sentence):
            read_trajectory(file)


def test_keys_count_in_the_papers_layout_too(tmp_path: Path) -> None:
    file = paper_layout(tmp_path, 0, RUN)
    kcal = 23.060548
    scaled = read_trajectory(file, keys=KeyMap(units={"energy": "kcal/mol"}))
    np.testing.assert_allclose(scaled.energies * kcal, RUN.energies, rtol=1e-6)
    with pytest.raises(UserError, match="its velocities are those of velall-0, fractions of the cell a step"):
        read_trajectory(file, keys=KeyMap(units={"velocities": "Å/fs"}))


# Masses


def test_masses_of_the_user_take_the_place_of_the_files(tmp_path: Path) -> None:
    file = written(tmp_path / "run.traj")
    found = read_trajectory(file, keys=KeyMap.from_mapping({"masses": {"H": 1.00794, "N": 14.0}}))
    np.testing.assert_allclose(found.masses, [12.011, 1.00794, 15.999, 1.00794])
    assert "Masses as you state them: H 1.00794 u, N 14 u." in found.notes
    of_file = np.array([12.0, 1.008, 2.01, 3.02])
    isotopes = restated_masses(np.array([6, 1, 1, 1]), of_file, {"H": 1.0, "D": 2.0, "T": 3.0})
    assert isotopes.tolist() == [12.0, 1.0, 2.0, 3.0]
    for wrong, sentence in [
        ({"Hh": 1.0}, "keys.masses: unknown key `Hh`"),
        ({"H": -1}, "should be a mass in u"),
    ]:
        with pytest.raises(UserError, match=sentence):
            KeyMap.from_mapping({"masses": wrong})
    write_store([found], tmp_path / "store.h5")
    with pytest.raises(UserError, match="is stored with its masses; convert again to change them"):
        read_trajectory(tmp_path / "store.h5", keys=KeyMap(masses={"H": 1.0}))


def test_the_right_masses_mend_a_run_of_deuterium(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MASSES, 1, 2.014)
    deuterated = morse_run(60, numbers=(1, 1, 8, 1))
    said = chosen(deuterated, slice(None), masses=np.array([1.008, 1.008, 15.999, 1.008]))
    file = written(tmp_path / "run.traj", said, momenta=False)
    with pytest.raises(UserError, match="deuterium"):
        read_trajectory(file)
    ratio = diagnose(read_trajectory(file, keys=KeyMap(masses={"H": 2.014}))).kick_ratio
    assert ratio is not None and ratio < 1e-6


# Paths


def test_folders_and_patterns_come_in_order(tmp_path: Path) -> None:
    for name in ("run_10.traj", "run_2.traj", "other.extxyz.gz", "notes.txt"):
        (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    names = [file.name for file in expand_paths([tmp_path])]
    assert names == ["other.extxyz.gz", "run_2.traj", "run_10.traj"]
    assert [f.name for f in expand_paths([f"{tmp_path}/run_*.traj"])] == ["run_2.traj", "run_10.traj"]


def test_paths_to_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run.traj").touch()
    for paths, sentence in [
        ([tmp_path / "gone.traj"], r"There is no file .*gone\.traj"),
        ([f"{tmp_path}/*.xyz"], r"No file matches .*\*\.xyz"),
        ([tmp_path / "empty"], "holds no runs"),
        ([], "No files with reference runs are given"),
        ([tmp_path / "run.traj", f"{tmp_path}/run.*"], "run.traj is listed twice"),
    ]:
        with pytest.raises(UserError, match=sentence):
            expand_paths(paths)


# Damaged and incomplete files


def lines_of(tmp_path: Path) -> list[str]:
    return written(tmp_path / "run.extxyz").read_text().splitlines(keepends=True)


def replaced(old: str, new: str, count: int = -1) -> Callable[[list[str]], str]:
    return lambda lines: "".join(lines).replace(old, new, count)


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda lines: "".join([*lines[:20], *lines[21:]]), r"frame \d+: ASE cannot read it"),
        (lambda lines: "".join(lines[:4]), "frame 0: ASE cannot read it"),
        (lambda lines: "".join(lines[:6]), r"holds 1 frame\(s\); a run needs at least 2"),
        (lambda lines: "", "frame 0: ASE cannot read it .*Empty file"),
        (lambda lines: "hello\nworld\n", "frame 0: ASE cannot read it"),
        (replaced(":forces:", ":REF_forces:"), "the energy is in `energy` but the forces in `REF_forces`"),
        (replaced(" energy=", " REF_energy="), "the energy is in `REF_energy` but the forces in `forces`"),
        (replaced(" energy=", " energy=nan x=", 1), "frame 0: energy is nan"),
        (replaced(" energy=", " energy=low x=", 1), "frame 0: the energy is no number: 'low'"),
        (replaced("20.0 0.0 0.0 0.0", "0.0 0.0 0.0 0.0"), "frame 0: pbc is on along a but that cell vector"),
        (
            lambda lines: "".join(
                s[s.index("Properties") :] if s.startswith("Lattice") else s for s in lines
            ),
            "pbc is on along a but that cell vector is zero or missing",
        ),
        (lambda lines: "".join(lines[:6]) + "".join(lines[6:]).replace("\nO ", "\nN "), "the atoms change"),
        (replaced("time_fs=3.5", "time_fs=soon"), "`time_fs` is no number"),
        (replaced("time_fs=3.5", ""), "frame 7 has no `time_fs`, but other frames have"),
        (replaced("time_fs=3.5", "time_fs=nan"), "frame 7: `time_fs` is nan"),
    ],
)
def test_damaged_files_are_refused_in_a_sentence(
    tmp_path: Path, damage: Callable[[list[str]], str], sentence: str
) -> None:
    text = damage(lines_of(tmp_path))
    (tmp_path / "run.extxyz").write_text(text)
    with pytest.raises(UserError, match=sentence) as refusal:
        read_trajectory(tmp_path / "run.extxyz")
    assert "run.extxyz" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("masses", [12.0, 0.0, 16.0, 1.0], "frame 0: every mass must be positive, got 0 u"),
        ("masses", ["a", "b", "c", "d"], "frame 0: masses are no numbers"),
        ("velocities", [1.0, 2.0, 3.0, 4.0], r"velocities must have shape \(4, 3\), got \(4,\)"),
        ("velocities", [["x", "y", "z"]] * 4, "frame 0: velocities are no numbers"),
    ],
)
def test_columns_of_another_kind_are_refused(
    tmp_path: Path, column: str, values: list[Any], sentence: str
) -> None:
    frames = as_atoms(RUN, momenta=False)
    for atoms in frames:
        atoms.arrays.pop(column, None)
        atoms.set_array(column, np.array(values))
    write(tmp_path / "run.extxyz", frames)
    with pytest.raises(UserError, match=sentence):
        read_trajectory(tmp_path / "run.extxyz")


@pytest.mark.parametrize("kept", [0, 20, 3000, -100])
def test_a_truncated_traj_is_refused(tmp_path: Path, kept: int) -> None:
    whole = written(tmp_path / "run.traj").read_bytes()
    (tmp_path / "run.traj").write_bytes(whole[:kept])
    with pytest.raises(UserError, match=r"run\.traj, frame \d+: ASE cannot read it"):
        read_trajectory(tmp_path / "run.traj")


def test_frames_without_velocities_among_others_are_refused(tmp_path: Path) -> None:
    frames = as_atoms(RUN)
    del frames[12].arrays["momenta"]
    write(tmp_path / "run.traj", frames)
    with pytest.raises(UserError, match="frame 12 has no velocities, but frame 0 has"):
        read_trajectory(tmp_path / "run.traj")


def test_a_folder_cannot_be_mistaken_for_an_index(tmp_path: Path) -> None:
    assert read_trajectory(written(tmp_path / "run@2.extxyz")).n_frames == 30


# Time step


def test_dt_is_the_users_then_the_files_then_inferred() -> None:
    own = to_trajectory(RUN, 0.499)
    assert (own.dt_fs, own.dt_origin) == (pytest.approx(0.499), "given")
    assert "dt = 0.499 fs as you state it; the file's time stamps say 0.5 fs." in own.notes
    assert to_trajectory(RUN).dt_origin == "file"
    inferred = to_trajectory(chosen(RUN, slice(None), dt_fs=None))
    assert (inferred.dt_fs, inferred.dt_origin) == (pytest.approx(0.5, rel=1e-12), "inferred")
    assert "dt = 0.5 fs inferred from positions and forces" in inferred.notes[0]


@given(st.sampled_from([0.1, 0.25, 0.48377, 0.75, 1.0, 1.5]), st.integers(0, 5), st.booleans())
def test_inferred_dt_is_exact(dt_fs: float, seed: int, boosted: bool) -> None:
    run = morse_run(12, dt_fs=dt_fs, seed=seed)
    if boosted:
        run.positions = run.positions + 0.01 * np.arange(12)[:, None, None]
    run.dt_fs = None
    run.velocities = None
    assert to_trajectory(run).dt_fs == pytest.approx(dt_fs, rel=1e-9)


@pytest.mark.parametrize(
    ("run", "sentence"),
    [
        (
            chosen(RUN, slice(None, None, 4), dt_fs=None),
            r"dt cannot be inferred safely \(nearest: [\d.]* fs\)",
        ),
        (chosen(RUN, slice(0, 2), dt_fs=None), "positions and forces of 2 frames are too few"),
        (
            chosen(RUN, np.random.default_rng(0).permutation(30), dt_fs=None),
            "dt cannot be inferred safely",
        ),
    ],
)
def test_dt_that_cannot_be_inferred_is_refused(run: RawRun, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        to_trajectory(run)


@pytest.mark.parametrize(
    ("changes", "dt_fs", "sentence"),
    [
        ({}, 0.0005, r"you state 0.0005 fs .* say 0.5 fs \(factor 1000, .*\); dt seems to be given in ps"),
        ({}, 0.5 * FS, "dt seems to be given in ASE time"),
        ({}, 0.25, "perhaps one frame in 2 was saved"),
        ({"dt_fs": 0.55}, None, "its time stamps say 0.55 fs .* overrides the time stamps"),
        ({"forces": RUN.forces / 51.422}, None, "the forces seem to be hartree/bohr"),
        ({"forces": RUN.forces / 25.711}, None, "the forces seem to be rydberg/bohr"),
        ({"forces": RUN.forces * 23.0605}, None, "the forces seem to be kcal/mol/Å"),
        ({"forces": -RUN.forces}, None, "the file seems to hold gradients dE/dr"),
        ({}, -1.0, "dt must be a positive number of fs, got -1"),
        ({}, float("nan"), "dt must be a positive number of fs, got nan"),
    ],
)
def test_a_stated_dt_that_contradicts_the_data_is_refused(
    changes: dict[str, Any], dt_fs: float | None, sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        to_trajectory(chosen(RUN, slice(None), **changes), dt_fs)


@pytest.mark.parametrize(
    ("times", "breaks", "note"),
    [
        ([0, 1, 2, 3, 50, 51, 52, 53, 54, 55, 56, 57], (4,), "Time jumps at 1 frames, first at 4"),
        ([0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9, 10], (4,), "Time jumps"),
        ([0.0, 1.1, 1.9, 3.0, 4.1, 5.0, 6.0, 7.1, 8.0, 9.0, 9.9, 11.0], (), ""),
    ],
)
def test_jumps_of_the_time_stamps_are_breaks(
    tmp_path: Path, times: list[float], breaks: tuple[int, ...], note: str
) -> None:
    frames = as_atoms(morse_run(12, dt_fs=1.0))
    for atoms, t in zip(frames, times, strict=True):
        atoms.info["time_fs"] = t
    write(tmp_path / "run.extxyz", frames)
    run = read_trajectory(tmp_path / "run.extxyz")
    assert (run.dt_fs, run.breaks) == (pytest.approx(1.0), breaks)
    assert any(note in said for said in run.notes) or not note


def test_uneven_time_stamps_are_refused(tmp_path: Path) -> None:
    frames = as_atoms(RUN)
    for atoms, t in zip(frames, np.random.default_rng(1).permutation(30), strict=True):
        atoms.info["time_fs"] = t
    write(tmp_path / "run.extxyz", frames)
    with pytest.raises(UserError, match="the time stamps `time_fs` do not rise evenly"):
        read_trajectory(tmp_path / "run.extxyz")


# Velocities


def test_missing_velocities_are_rebuilt_exactly() -> None:
    found = to_trajectory(chosen(RUN, slice(None), velocities=None))
    assert found.velocities_origin == "rebuilt"
    assert RUN.velocities is not None
    np.testing.assert_allclose(found.velocities, RUN.velocities, rtol=0, atol=1e-13)
    assert "Velocities rebuilt from positions and forces by the velocity-Verlet relation." in found.notes


def test_velocities_that_are_all_zero_are_not_believed() -> None:
    found = to_trajectory(chosen(RUN, slice(None), velocities=np.zeros_like(RUN.positions)))
    assert found.velocities_origin == "rebuilt"
    assert "All velocities in the file are zero although the atoms move; they are not used." in found.notes


@pytest.mark.parametrize("sign", [1, -1])
def test_half_step_velocities_are_shifted(sign: int) -> None:
    assert RUN.velocities is not None
    half = 0.5 * 0.5 * FS * RUN.forces / RUN.masses[:, None]
    found = to_trajectory(chosen(RUN, slice(None), velocities=RUN.velocities + sign * half))
    assert found.velocities_origin == "shifted"
    np.testing.assert_allclose(found.velocities, RUN.velocities, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("factor", "sentence"),
    [
        (FS, r"the velocities are 0\.09823 times what the finite differences .*; they look like Å/fs"),
        (1000 * FS, "98.23 times .* they look like Å/ps"),
        (100 * FS, "they look like nm/ps"),
        (FS / 0.529177, "they look like bohr/fs"),
        (FS / 0.529177 / 41.341374, "they look like atomic units"),
        (3.0, "3 times .* check their unit, and dt"),
        (-1.0, "the velocities point against the motion"),
    ],
)
def test_velocities_in_another_unit_are_refused(factor: float, sentence: str) -> None:
    assert RUN.velocities is not None
    with pytest.raises(UserError, match=sentence):
        to_trajectory(chosen(RUN, slice(None), velocities=RUN.velocities * factor))


@pytest.mark.parametrize(
    ("power", "sentence"),
    [(1, "they look like momenta: divide them by the masses"), (-1, "the momenta seem to hold velocities")],
)
def test_momenta_and_velocities_are_not_confused(power: int, sentence: str) -> None:
    assert RUN.velocities is not None
    with pytest.raises(UserError, match=sentence):
        to_trajectory(chosen(RUN, slice(None), velocities=RUN.velocities * RUN.masses[:, None] ** power))


def test_velocities_of_a_thermostatted_or_strided_run_are_believed() -> None:
    for name in ("langevin", "csvr"):
        assert to_trajectory(ase_run(name)).velocities_origin == "read"
    strided = chosen(ase_run("nve"), slice(None, None, 5), dt_fs=2.5)
    assert to_trajectory(strided).velocities_origin == "read"


# Wrapped positions


@given(st.integers(0, 20), st.booleans())
def test_wrapped_positions_are_unwrapped(seed: int, slab: bool) -> None:
    cell = np.array([[4.0, 0.0, 0.0], [-1.0, 5.0, 0.0], [0.5, 0.3, 4.5]])
    pbc = np.array([True, True, not slab])
    if slab:
        cell[2] = 0.0
    vectors = cell if not slab else np.vstack([cell[:2], [0.0, 0.0, 1.0]])
    run = morse_run(40, dt_fs=1.0, seed=seed, cell=cell, pbc=pbc)
    drifting = run.positions + 0.2 * np.arange(40)[:, None, None]
    fractional = drifting @ np.linalg.inv(vectors)
    wrapped = np.where(pbc, fractional % 1, fractional) @ vectors
    found = to_trajectory(chosen(run, slice(None), positions=wrapped, velocities=None))
    assert found.wrapped
    assert "Positions were wrapped into the cell" in found.notes[0]
    shift = drifting[0] - found.positions[0]
    np.testing.assert_allclose(found.positions + shift, drifting, rtol=0, atol=1e-12)


def test_unwrapped_positions_stay_as_they_are() -> None:
    found = to_trajectory(RUN)
    assert not found.wrapped
    np.testing.assert_array_equal(found.positions, RUN.positions)


def test_ases_units_are_ours() -> None:
    assert units.fs == FS


@pytest.mark.parametrize("suffix", ["traj", "extxyz"])
def test_damaged_bytes_are_refused_told_or_harmless(tmp_path: Path, suffix: str) -> None:
    """60 files, cut or with flipped bits; the seed is all that is needed to see a case again."""
    file = tmp_path / f"run.{suffix}"
    whole, clean = written(file).read_bytes(), read_trajectory(file)
    random = np.random.default_rng(20)
    for _ in range(60):
        damaged = bytearray(whole)
        for position in random.integers(0, len(whole), 2):
            damaged[position] ^= 1 << random.integers(8)
        file.write_bytes(damaged[: random.integers(len(whole))] if random.random() < 0.3 else damaged)
        try:
            found = read_trajectory(file)
        except UserError as refusal:
            assert "\n" not in str(refusal)
            continue
        report = diagnose(found)
        whole_run = (found.n_frames, found.formula) == (clean.n_frames, clean.formula)
        harmless = whole_run and all(
            np.abs(getattr(found, name) - getattr(clean, name)).max() < 1e-5
            for name in ("positions", "velocities", "forces", "energies")
        )
        assert harmless or report.findings or found.n_frames < clean.n_frames


def test_a_contradicted_dt_is_laid_to_masses_or_units() -> None:
    """Positions and forces of hydrogen told as deuterium, and of a run in bohr or all atomic units."""
    made = morse_run(200)
    heavy = np.where(made.atomic_numbers == 1, 2.014, made.masses)
    with pytest.raises(UserError, match=r"H moves like 1\.008 u, that is natural hydrogen"):
        to_trajectory(dataclasses.replace(made, masses=heavy))
    in_bohr = {"positions": made.positions / BOHR, "cell": made.cell / BOHR, "velocities": None}
    with pytest.raises(UserError, match="the positions seem to be in bohr"):
        to_trajectory(dataclasses.replace(made, **in_bohr))
    with pytest.raises(UserError, match="positions and forces seem to be in atomic units"):
        to_trajectory(dataclasses.replace(made, forces=made.forces * BOHR / HARTREE, **in_bohr))


@pytest.mark.parametrize("lost", [3, 30, 200, 350])
@pytest.mark.parametrize("suffix", [".extxyz", ".extxyz.gz"])
def test_the_frame_that_a_killed_job_left_incomplete_is_left_out(
    tmp_path: Path, lost: int, suffix: str
) -> None:
    text = written(tmp_path / "whole.extxyz").read_bytes()
    last = len(text) - text.rindex(b"Lattice")  # of the last frame, without the number of atoms
    assert last > 350
    cut = text[:-lost] if lost < 350 else text[: -last + 10]
    (tmp_path / f"run{suffix}").write_bytes(gzip.compress(cut) if suffix.endswith("gz") else cut)
    run = read_trajectory(tmp_path / f"run{suffix}")
    assert run.n_frames == 29
    assert "The last frame is incomplete (the run was cut off); it is left out." in run.notes
