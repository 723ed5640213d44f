"""OpenMM with a `PythonForce` follows ASE step by step."""

from __future__ import annotations

from typing import Any

import ase.units
import numpy as np
import pytest

openmm = pytest.importorskip("openmm", reason="needs `pip install 'openmm>=8.4'`")

from engines import ARGON, DT_FS, apart, argon, run_ase  # noqa: E402

from dyntrain.deploy.openmm import make_force  # noqa: E402


def velocity_verlet() -> Any:
    """OpenMM's own integrators keep velocities of half steps; this one is ASE's."""
    integrator = openmm.CustomIntegrator(DT_FS * 1e-3)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    integrator.addComputePerDof("x", "x+dt*v")
    integrator.addComputePerDof("v", "v+0.5*dt*f/m")
    return integrator


def test_it_follows_ase_step_by_step() -> None:
    atoms = argon()
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.setDefaultPeriodicBoxVectors(*(0.1 * atoms.cell.array))
    system.addForce(make_force(ARGON, atoms.numbers, periodic=True))
    assert system.usesPeriodicBoundaryConditions()
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, velocity_verlet(), platform)
    context.setPositions(0.1 * atoms.positions)
    context.setVelocities(0.1 * 1e3 * ase.units.fs * atoms.get_velocities())  # nm/ps
    for frame in run_ase(40):
        state = context.getState(positions=True, forces=True, energy=True)
        positions = 10.0 * state.getPositions(asNumpy=True)._value
        assert apart(positions, frame.positions, frame.cell.array) < 1e-6
        forces = state.getForces(asNumpy=True)._value / 964.8533212331
        np.testing.assert_allclose(forces, frame.info["forces"], rtol=0, atol=1e-6)
        energy = state.getPotentialEnergy()._value / 96.48533212331
        assert energy == pytest.approx(frame.info["energy"], abs=1e-6)
        context.getIntegrator().step(1)
