"""Constraints: rigid molecules and barostats are seen through, and what is left is judged as ever."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk

from dyntrain.data.constraints import find_held
from dyntrain.data.diagnose import diagnose
from dyntrain.data.raw import RawRun, to_trajectory
from made_runs import ase_run, morse_trajectory, recorded


@functools.cache
def rigid_water(thermostat: str) -> RawRun:
    """Three rigid water molecules, bonds and angles held by RATTLE."""
    from ase.calculators.tip3p import TIP3P, angleHOH, rOH
    from ase.constraints import FixBondLengths
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import thermalize_momenta
    from ase.md.verlet import VelocityVerlet

    angle = np.radians(angleHOH)
    water = Atoms("OHH", [[0, 0, 0], [rOH, 0, 0], [rOH * np.cos(angle), rOH * np.sin(angle), 0]])
    water.set_cell([3.2] * 3)
    water.center()
    box = water.repeat((3, 1, 1))
    box.set_constraint(FixBondLengths([(3 * i + j, 3 * i + (j + 1) % 3) for i in range(3) for j in range(3)]))
    box.calc = TIP3P()
    thermalize_momenta(box, temperature_K=300, rng=np.random.RandomState(0))
    bath: dict[str, Any] = {"temperature_K": 300, "friction": 0.01 / units.fs, "fixcm": False}
    dynamics: Any = VelocityVerlet(box, units.fs)
    if thermostat == "langevin":
        dynamics = Langevin(box, units.fs, rng=np.random.RandomState(1), **bath)
    return recorded(box, dynamics, 80, 1.0)


@pytest.mark.parametrize("thermostat", ["nve", pytest.param("langevin", marks=pytest.mark.slow)])
def test_rigid_molecules(thermostat: str) -> None:
    run = rigid_water(thermostat)
    report = diagnose(to_trajectory(run))
    assert (report.ensemble, report.usable, report.breaks) == (thermostat, True, ())
    found = {finding.code: finding for finding in report.findings}
    assert "9 distances are rigid" in found["rigid_bonds"].message
    if thermostat == "nve":
        assert report.residual is not None and report.residual_held is not None
        assert report.residual > 0.1
        assert report.residual_held < 1e-9
        assert report.dt_correlation == pytest.approx(1.0, abs=1e-9)
        assert report.dt_fs_inferred == pytest.approx(1.0, rel=1e-6)


def test_vibrating_molecules_hold_nothing() -> None:
    for run in (to_trajectory(ase_run("nve")), morse_trajectory(60), morse_trajectory(60, dt_fs=0.02)):
        held = find_held(run)
        assert (len(held.rigid), held.is_special, held.centred) == (0, False, True)


@functools.cache
def copper(barostat: str) -> RawRun:
    """Copper 2×2×2 with EMT under one of ASE's barostats, 300 frames of 2 fs."""
    from ase.calculators.emt import EMT
    from ase.md.velocitydistribution import thermalize_momenta

    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    atoms.calc = EMT()
    thermalize_momenta(atoms, temperature_K=600, rng=np.random.RandomState(0))
    momenta = atoms.get_momenta()
    atoms.set_momenta(momenta - momenta.mean(axis=0))
    dt, stiffness = 2 * units.fs, 140 * units.GPa
    dynamics: Any
    if barostat == "NPTBerendsen":
        from ase.md.nptberendsen import NPTBerendsen

        times = {"taut": 50 * units.fs, "taup": 200 * units.fs, "compressibility_au": 1 / stiffness}
        dynamics = NPTBerendsen(atoms, dt, temperature_K=300, pressure_au=0.0, **times)
    elif barostat == "IsotropicMTKNPT":
        from ase.md.nose_hoover_chain import IsotropicMTKNPT

        times = {"tdamp": 50 * units.fs, "pdamp": 100 * units.fs}
        dynamics = IsotropicMTKNPT(atoms, dt, temperature_K=300, pressure_au=0.0, **times)
    else:
        from ase.md.melchionna import MelchionnaNPT

        factors = {"ttime": 50 * units.fs, "pfactor": (100 * units.fs) ** 2 * stiffness}
        dynamics = MelchionnaNPT(atoms, dt, temperature_K=300, externalstress=0.0, **factors)
    dynamics.run(20)
    return recorded(atoms, dynamics, 300, 2.0)


@pytest.mark.slow
@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize(
    ("barostat", "ensemble", "left"),
    [
        ("NPTBerendsen", "berendsen", 1e-4),
        ("IsotropicMTKNPT", "unknown", 1e-3),  # its thermostat's and barostat's frictions add up
        ("MelchionnaNPT", "nose-hoover", 1e-5),
    ],
)
def test_barostats_are_seen_through(barostat: str, ensemble: str, left: float, rebuilt: bool) -> None:
    run = copper(barostat)
    report = diagnose(to_trajectory(RawRun(**{**vars(run), **({"velocities": None} if rebuilt else {})})))
    assert (report.usable, report.barostat, report.ensemble, report.breaks) == (True, True, ensemble, ())
    assert report.residual_after_friction is not None
    assert report.residual_after_friction < left
    assert report.dt_fs_inferred == pytest.approx(2.0, rel=1e-4)
    codes = {finding.code: finding.severity for finding in report.findings}
    assert codes.keys() - {"thermostat"} == {"barostat", "cell_changes"}
    assert set(codes.values()) == {"info"}
