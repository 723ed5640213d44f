"""Alike: energies of two runs can be compared where their structures come close, whatever turned them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dyntrain.data.alike import energy_offset
from dyntrain.data.compare import find_other_zeros
from dyntrain.data.readers import read_trajectories
from dyntrain.data.trajectory import Trajectory
from made_runs import morse_trajectory

FIRST, SECOND = (morse_trajectory(300, seed=seed) for seed in (0, 1))


def turned(run: Trajectory, order: list[int]) -> Trajectory:
    """The run rotated and shifted, its atoms in another order."""
    turn = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    arrays = {name: (getattr(run, name) @ turn)[:, order] for name in ("positions", "velocities", "forces")}
    arrays["positions"] = arrays["positions"] + 3.0
    return run.replace(**arrays, atomic_numbers=run.atomic_numbers[order], masses=run.masses[order])


def test_runs_on_one_energy_surface_have_no_offset() -> None:
    offset = energy_offset(FIRST, SECOND)
    assert offset is not None
    assert abs(offset.mean) < offset.scatter < 0.005
    # The energies alone say nothing at this distance.
    assert np.ptp(FIRST.energies) > 0.1
    assert find_other_zeros([FIRST, SECOND]) == {}


def test_a_shifted_zero_is_found_in_any_orientation_and_order() -> None:
    plain = energy_offset(SECOND, FIRST)
    shifted = turned(SECOND, [2, 3, 1, 0]).replace(energies=SECOND.energies + 0.03, file="shifted")
    offset = energy_offset(shifted, FIRST)
    assert plain is not None and offset is not None
    assert offset.mean == pytest.approx(plain.mean + 0.03, abs=1e-6)
    assert offset.scatter == pytest.approx(plain.scatter, abs=1e-6)
    (finding,) = find_other_zeros([FIRST, shifted])["shifted"]
    assert finding.code == "another_energy_zero"
    assert "at like structures" in finding.message


def test_crystals_are_compared_across_the_boundary() -> None:
    box = 2.6 * np.eye(3)
    first, second = FIRST.replace(cell=box), SECOND.replace(cell=box)
    moved = second.replace(positions=second.positions + box[0] * (np.arange(4) == 2)[:, None])
    plain, wrapped = energy_offset(first, second), energy_offset(first, moved)
    assert plain is not None and wrapped is not None
    assert wrapped.mean == pytest.approx(plain.mean, abs=1e-6)
    assert energy_offset(first, second.replace(cell=1.1 * box)) is None


def test_too_few_frames_or_other_atoms_are_not_compared() -> None:
    assert energy_offset(FIRST.slice(0, 19), SECOND) is None
    assert energy_offset(morse_trajectory(60, numbers=(6, 1, 8, 8)), SECOND) is None


@pytest.mark.shared
def test_the_methane_runs_have_another_zero(shared_data: Path) -> None:
    """Their means are 0.02 eV apart, at two temperatures; at the same structure they are 0.14 eV apart."""
    runs = [
        run
        for name in ("ch4_nve_dft", "ch4_nvt_dft")
        for run in read_trajectories(shared_data / "data" / name)
    ]
    offset = energy_offset(*runs)
    assert offset is not None
    assert offset.mean == pytest.approx(0.1407, abs=1e-3)
    assert offset.scatter < 0.002
    assert [f.code for f in find_other_zeros(runs)[runs[1].file]] == ["another_energy_zero"]
    assert find_other_zeros([run.slice(0, 450) for run in runs[:1]] + [runs[0].slice(500, 950)]) == {}
