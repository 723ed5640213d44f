"""ASE frames: what is read of a .traj is what ASE reads, to the last bit."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.constraints import FixAtoms

from dyntrain.data.ase_frames import of_atoms, traj_frames
from dyntrain.data.readers import read_trajectory
from dyntrain.errors import UserError
from made_runs import as_atoms, morse_run


def test_traj_frames_are_those_of_ase(tmp_path: Path) -> None:
    frames = as_atoms(morse_run(5, stress=np.ones((5, 6))))
    frames[2].set_masses([12.0, 2.0, 16.0, 1.0])
    frames[3].info["note"] = {"step": 7, "array": np.arange(3)}
    frames[4].calc = None
    ase.io.write(tmp_path / "run.traj", frames)
    found = list(traj_frames(tmp_path / "run.traj"))
    expected = [of_atoms(atoms) for atoms in ase.io.read(tmp_path / "run.traj", ":")]
    assert len(found) == len(expected) == 5
    for frame, other in zip(found, expected, strict=True):
        for name in ("numbers", "pbc", "masses", "positions", "cell"):
            np.testing.assert_array_equal(getattr(frame, name), getattr(other, name))
        np.testing.assert_array_equal(frame.arrays["momenta"], other.arrays["momenta"])
        assert frame.results.keys() == other.results.keys()
        for name, value in frame.results.items():
            np.testing.assert_array_equal(value, other.results[name])
        assert str(frame.info) == str(other.info)


def test_a_traj_of_fixed_atoms_gives_raw_forces(tmp_path: Path) -> None:
    frames = as_atoms(morse_run(30))
    for atoms in frames:
        atoms.set_constraint(FixAtoms([0]))
    ase.io.write(tmp_path / "run.traj", frames)
    np.testing.assert_array_equal(read_trajectory(tmp_path / "run.traj").forces, morse_run(30).forces)


def test_a_traj_of_changing_or_missing_atoms_is_refused(tmp_path: Path) -> None:
    frames = as_atoms(morse_run(3))
    frames[2].symbols[1] = "O"
    ase.io.write(tmp_path / "run.traj", frames)
    with pytest.raises(UserError, match=r"frame 2: the atoms change \(CH2O in frame 0, here CHO2 or another"):
        read_trajectory(tmp_path / "run.traj")
    data = (tmp_path / "run.traj").read_bytes()
    (tmp_path / "cut.traj").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"cut.traj, frame 0: ASE cannot read it"):
        read_trajectory(tmp_path / "cut.traj")
