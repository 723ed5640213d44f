"""NVE in OpenMM with a trained model, beside the same run in ASE.

pip install 'openmm>=8.4'
python examples/engines/with_openmm.py MODEL START [--steps 100]
"""

from __future__ import annotations

import ase.units
import openmm
from beside_ase import deviation, read_arguments

from dyntrain.deploy.openmm import make_force


def velocity_verlet(dt_fs: float) -> openmm.CustomIntegrator:
    """OpenMM's own integrators keep the velocities of half steps; this one is ASE's."""
    integrator = openmm.CustomIntegrator(1e-3 * dt_fs)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    integrator.addComputePerDof("x", "x+dt*v")
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    return integrator


def main() -> None:
    arguments, atoms = read_arguments(__doc__)
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    periodic = bool(atoms.pbc.all())
    if periodic:
        system.setDefaultPeriodicBoxVectors(*(0.1 * atoms.cell.array))  # nm
    system.addForce(make_force(arguments.model, atoms.numbers, periodic=periodic))
    context = openmm.Context(
        system, velocity_verlet(arguments.dt), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(0.1 * atoms.positions)
    context.setVelocities(100 * ase.units.fs * atoms.get_velocities())  # nm/ps

    def frames():
        for step in range(arguments.steps + 1):
            if step:
                context.getIntegrator().step(1)
            positions = context.getState(positions=True).getPositions(asNumpy=True)
            yield positions.value_in_unit(openmm.unit.angstrom)

    print(f"OpenMM and ASE are at most {deviation(arguments, atoms, frames()):.2g} Å apart")


if __name__ == "__main__":
    main()
