"""Structures of no run: training sets of any atoms, read, joined, stored, and trained on beside runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import ase.io
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from array_writers import write_deepmd
from dyntrain.config import parse_config
from dyntrain.data.keys import KeyMap
from dyntrain.data.raw import RawRun
from dyntrain.data.readers import read_trajectories
from dyntrain.data.store import write_store
from dyntrain.data.structures import joined, read_structure, read_structures
from dyntrain.errors import UserError
from dyntrain.training.setup import load_split
from format_writers import write_ml_ab
from made_runs import as_atoms, morse_run, morse_trajectory
from training_runs import run, small_config, write_run, write_runs

SMALL, LARGE = morse_run(12, numbers=(6, 1)), morse_run(12, numbers=(6, 1, 8, 1), seed=1)


def write_set(path: Path, choice: list[tuple[bool, int]]) -> Path:
    """A training set: frames of two molecules as they come."""
    frames = {False: as_atoms(SMALL), True: as_atoms(LARGE)}
    ase.io.write(path, [frames[large][number] for large, number in choice])
    return path


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 11)), min_size=1, max_size=12))
def test_a_training_set_is_read_molecule_by_molecule(choice: list[tuple[bool, int]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = read_structures([write_set(Path(folder) / "set.extxyz", choice)])
    order = list(dict.fromkeys(large for large, _ in choice))
    assert [each.n_atoms == 4 for each in found] == order and all(each.alone for each in found)
    for large, each in zip(order, found, strict=True):
        numbers = [number for of_large, number in choice if of_large is large]
        of = LARGE if large else SMALL
        np.testing.assert_allclose(each.positions, of.positions[numbers], atol=1e-7)
        np.testing.assert_allclose(each.forces, of.forces[numbers], atol=1e-7)
        np.testing.assert_allclose(each.energies, of.energies[numbers], atol=1e-7)


def test_of_runs_and_stores_every_frame_is_taken_for_itself(tmp_path: Path) -> None:
    file, store = write_run(tmp_path / "run.traj", n_frames=9), tmp_path / "runs.h5"
    (whole,) = read_trajectories(file)
    write_store([whole.replace(breaks=(4,))], store)
    (found,) = read_structures([file, store])
    assert found.n_frames == 18 and found.breaks == tuple(range(1, 18))
    np.testing.assert_array_equal(found.forces, np.tile(whole.forces, (2, 1, 1)))


@pytest.mark.parametrize("write", [write_ml_ab, write_deepmd], ids=["ML_AB", "DeePMD"])
def test_files_of_codes_need_no_time_step_here(write: Callable[[Path, RawRun], Path], tmp_path: Path) -> None:
    (found,) = read_structures([write(tmp_path, LARGE)])
    assert found.alone and not found.velocities.any()
    np.testing.assert_allclose(found.forces, LARGE.forces, atol=1e-7)


def test_an_ml_ab_may_be_of_several_systems(tmp_path: Path) -> None:
    parts = []
    for number, molecule in enumerate((LARGE, SMALL)):
        (folder := tmp_path / str(number)).mkdir()
        parts.append(write_ml_ab(folder, molecule).read_text())
    head, configurations = re.split(r"(?=\n[^\n]*\n\s*Configuration num)", parts[0], maxsplit=1)
    _, others = re.split(r"(?=\n[^\n]*\n\s*Configuration num)", parts[1], maxsplit=1)
    file = tmp_path / "ML_AB"
    file.write_text(head + configurations + others)
    found = read_structures([file])
    assert [(each.n_atoms, each.n_frames) for each in found] == [(4, 12), (2, 12)]
    np.testing.assert_allclose(found[1].forces, SMALL.forces, atol=1e-7)
    with pytest.raises(UserError, match="an ML_AB of several systems is no run, name it under"):
        read_trajectories([file], 0.5)


def test_times_that_do_not_rise_are_no_matter_here(tmp_path: Path) -> None:
    frames = as_atoms(SMALL)[:4]
    for frame, time in zip(frames, (0.0, 5.0, 1.0, 1.0), strict=True):
        frame.info["time_fs"] = time
    del frames[2].info["time_fs"]
    ase.io.write(tmp_path / "set.extxyz", frames)
    (found,) = read_structures([tmp_path / "set.extxyz"])
    assert found.n_frames == 4


def test_masses_are_restated(tmp_path: Path) -> None:
    file = write_set(tmp_path / "set.extxyz", [(False, 0), (True, 0)])
    for each in read_structures([file], KeyMap.from_mapping({"masses": {"H": 2.014}})):
        assert set(each.masses[each.atomic_numbers == 1]) == {2.014}


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ("label", r"set.extxyz, frame 2 has no .*forces"),
        ("nan", r"set.extxyz, frame \d: forces of atom 0 is nan"),
        ("cut", r"set.extxyz is cut off in its last line"),
        ("empty", r"set.extxyz"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(damage: str, sentence: str, tmp_path: Path) -> None:
    frames = [*as_atoms(SMALL)[:2], *as_atoms(LARGE)[:2]]
    file = tmp_path / "set.extxyz"
    if damage == "label":
        frames[2].calc.results.pop("forces")
    elif damage == "nan":
        frames[3].calc.results["forces"][0, 0] = np.nan
    ase.io.write(file, frames)
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-3])
    elif damage == "empty":
        file.write_bytes(b"")
    with pytest.raises(UserError, match=sentence):
        read_structures([file])


def test_a_single_calculation_takes_the_motion_of_what_it_labels(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "one.extxyz", as_atoms(SMALL)[5])
    velocities = np.full((2, 3), 0.1)
    found = read_structure(tmp_path / "one.extxyz", velocities, 0.5, fixed_atoms=[1])
    assert found.alone and found.n_frames == 1 and found.fixed_atoms == (1,)
    assert found.dt_fs == pytest.approx(0.5)
    np.testing.assert_array_equal(found.velocities[0], velocities)


def test_structures_of_the_same_atoms_are_joined_and_stored(tmp_path: Path) -> None:
    one, other = morse_trajectory(10), morse_trajectory(10, seed=3)
    other = other.replace(masses=2 * other.masses)
    structures = [each.replace(alone=True).slice(k, k + 1) for k in (3, 0, 7) for each in (one, other)]
    write_store(joined(structures), tmp_path / "structures.h5")
    first, second = read_trajectories([tmp_path / "structures.h5"])
    assert (first.alone, first.n_frames, first.breaks) == (True, 3, (1, 2))
    np.testing.assert_array_equal(first.forces, one.forces[[3, 0, 7]])
    np.testing.assert_array_equal(first.cell, one.cell)
    np.testing.assert_array_equal(second.positions, other.positions[[3, 0, 7]])


# --- beside runs --------------------------------------------------------------------------------------------


def test_structures_are_trained_on_beside_runs(tmp_path: Path) -> None:
    data = write_runs(tmp_path / "runs")
    file = write_set(tmp_path / "set.extxyz", [(k % 2 == 0, k) for k in range(10)])
    config = parse_config(small_config({**data, "structures": [str(file)]}, tmp_path / "out"))
    split, reports = load_split(config)
    assert [each.alone for each in split.train] == [False] * 3 + [True] * 2
    assert [found.code for found in reports[3].findings] == ["alone"]
    assert run({**data, "structures": [str(file)]}, tmp_path / "out").finished is not None
    assert len(load_split(parse_config(small_config(data, tmp_path / "out")))[0].train) == 3


def test_structures_are_never_taken_to_validate(tmp_path: Path) -> None:
    data = {"train": write_runs(tmp_path / "runs")["train"]}
    file = write_set(tmp_path / "set.extxyz", [(True, k) for k in range(10)])
    split, _ = load_split(parse_config(small_config({**data, "structures": [str(file)]}, tmp_path / "out")))
    assert [each.alone for each in split.train] == [False, False, True]
    assert [each.alone for each in split.validation] == [False]


def test_structures_alone_make_no_segment(tmp_path: Path) -> None:
    data = write_runs(tmp_path / "runs")
    file = write_set(tmp_path / "set.extxyz", [(True, k) for k in range(10)])
    (structures,) = read_structures([file])
    write_store([structures], tmp_path / "set.h5")
    with pytest.raises(UserError, match="No training run holds a segment of 3 frames"):
        run({**data, "train": [str(tmp_path / "set.h5")]}, tmp_path / "out")
