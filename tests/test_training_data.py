"""What the data hold, training follows: odd keys, coarse steps, fixed atoms and changing cells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import units

from dyntrain.config import parse_config
from dyntrain.data.keys import KeyMap
from dyntrain.data.readers import read_trajectories
from dyntrain.errors import UserError
from dyntrain.training import setup
from dyntrain.units import FS
from made_runs import as_atoms, morse, morse_run
from training_runs import log_rows, run, small_config, write_run, write_runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return write_runs(tmp_path_factory.mktemp("runs"), n_frames=60)


def test_coarse_steps_train(data: dict[str, list[str]], tmp_path: Path) -> None:
    result = run(data, tmp_path / "coarse", stride=4)
    assert result.finished == "the budget is spent"
    rows = log_rows(tmp_path / "coarse")
    assert rows[-1]["segment_length"] == "3"
    assert float(rows[-1]["validation_force_mae"]) < float(rows[0]["validation_force_mae"])


def test_steps_that_are_too_coarse_are_refused(data: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"too long for its fastest motion .* use a stride of at most"):
        run(data, tmp_path / "too_coarse", stride=15)


def test_a_run_split_by_time_leaves_a_gap_as_long_as_a_coarse_segment(tmp_path: Path) -> None:
    file = write_run(tmp_path / "one.traj", n_frames=120, seed=0)
    config = parse_config(small_config([file], tmp_path / "out", stride=5))
    split, _ = setup.load_split(config)
    (train,), (validation,) = split.train, split.validation
    assert config.max_span == 11
    assert validation.first_frame - train.n_frames == 11


def test_fixed_atoms_and_changing_cells_train(tmp_path: Path) -> None:
    """A molecule of which one atom is held, in a box that grows: both come from the file alone."""
    files = []
    for seed in range(3):
        frames = as_atoms(held_run(seed))
        ase.io.write(tmp_path / f"held_{seed}.traj", frames)
        files.append(str(tmp_path / f"held_{seed}.traj"))
    config = parse_config(small_config(files, tmp_path / "out"))
    split, reports = setup.load_split(config)
    assert all(r.fixed_atoms == (0,) for r in reports)
    assert all(r.fixed_atoms == (0,) and not r.fixed_cell for r in split.train)
    assert run(files, tmp_path / "out").finished is not None
    assert np.isfinite(float(log_rows(tmp_path / "out")[-1]["train_loss"]))


def test_odd_keys_and_units_are_named_in_the_configuration(tmp_path: Path) -> None:
    frames = as_atoms(morse_run(60))
    plain, odd = tmp_path / "plain.traj", tmp_path / "odd.extxyz"
    ase.io.write(plain, frames)
    for atoms in frames:
        atoms.info["E"] = atoms.get_potential_energy() / (units.kcal / units.mol)
        atoms.arrays["F"] = atoms.get_forces() / (units.kcal / units.mol)
        atoms.calc = None
    ase.io.write(odd, frames)
    keys = {"energy": "E", "forces": "F", "units": {"energy": "kcal/mol", "forces": "kcal/mol/Å"}}
    (run_of_odd,), (run_of_plain,) = (
        read_trajectories([file], None, KeyMap.from_mapping(named))
        for file, named in ((odd, keys), (plain, {}))
    )
    np.testing.assert_allclose(run_of_odd.forces, run_of_plain.forces, atol=1e-6)
    config = parse_config(small_config([str(odd)], tmp_path / "out", keys=keys))
    split, _ = setup.load_split(config)
    np.testing.assert_allclose(split.train[0].energies[0], run_of_plain.energies[0], atol=1e-6)
    with pytest.raises(UserError, match="the forces seem to be kcal/mol/Å"):
        setup.load_split(parse_config(small_config([str(odd)], tmp_path / "out")))


def held_run(seed: int) -> Any:
    """A Morse run that is followed again with its first atom infinitely heavy, in a growing box."""
    made = morse_run(60, seed=seed)
    inertia = made.masses.copy()
    inertia[0] = np.inf
    dt = 0.5 * FS
    r, v = made.positions[0].copy(), made.velocities[0].copy()
    v[0] = 0.0
    energy, force = morse(r)
    frames = []
    for _ in range(60):
        frames.append((r, v, force, energy))
        r = r + v * dt + 0.5 * force / inertia[:, None] * dt**2
        energy, new = morse(r)
        v = v + 0.5 * (force + new) / inertia[:, None] * dt
        force = new
    made.positions, made.velocities, made.forces, made.energies = (
        np.array(x) for x in zip(*frames, strict=True)
    )
    made.cell = made.cell * np.linspace(1.0, 1.02, 60)[:, None, None]
    return made
