"""The ensembles of our thermostats by `physical_validation` (Merz and Shirts, PLoS ONE 13, e0202764 (2018)).

Twenty argon crystals at each of two temperatures. The seeds are fixed: a test passes always or never.
With other seeds a sound thermostat would fail about once in ten thousand runs (4.4 standard errors,
two-sided, for each of seven numbers, as far as the samples are independent).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import physical_validation
import pytest
import torch

from dyntrain.models.analytic import LennardJones
from dyntrain.potential import Conservative
from dyntrain.simulate import degrees_of_freedom, draw_velocities, simulate
from dyntrain.state import concatenate
from dyntrain.thermostats import CSVR, Langevin, NoseHooverChain, Thermostat
from dyntrain.units import FS, KB
from systems import argon_crystal

ARGON = Conservative(LennardJones(cutoff=7.0))
COLD, HOT = 24.0, 36.0
N_SYSTEMS = 20
DT_FS = 10.0
LIMIT = 4.4


@dataclass(frozen=True, eq=False)
class Samples:
    """kinetic, potential: [n_samples] eV; positions, velocities: [n_samples, n_atoms, 3] Å, Å/ASE time."""

    kinetic: np.ndarray
    potential: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    masses: np.ndarray
    constrained: int

    def as_simulation(self, temperature: float) -> Any:
        data = physical_validation.data
        n_atoms = len(self.masses)
        observables = data.ObservableData(
            kinetic_energy=self.kinetic,
            potential_energy=self.potential,
            total_energy=self.kinetic + self.potential,
        )
        return data.SimulationData(
            units=data.UnitData(
                kb=KB,
                energy_str="eV",
                energy_conversion=1.0,
                length_str="A",
                length_conversion=1.0,
                volume_str="A3",
                volume_conversion=1.0,
                temperature_str="K",
                temperature_conversion=1.0,
                pressure_str="eV/A3",
                pressure_conversion=1.0,
                time_str="ASE",
                time_conversion=1.0,
            ),
            ensemble=data.EnsembleData("NVT", natoms=n_atoms, volume=1.0, temperature=temperature),
            system=data.SystemData(
                natoms=n_atoms,
                nconstraints=0,
                ndof_reduction_tra=self.constrained,
                ndof_reduction_rot=0,
                mass=self.masses,
                molecule_idx=np.arange(n_atoms),
                nconstraints_per_molecule=np.zeros(n_atoms),
            ),
            observables=observables,
            trajectory=data.TrajectoryData(self.positions, self.velocities),
        )


@functools.cache
def sampled(which: str, n_steps: int = 630) -> tuple[Samples, Samples]:
    """Samples at the two temperatures: each system every 400 fs, after 1.5 ps."""
    crystals = [argon_crystal(2, seed=n) for n in range(2 * N_SYSTEMS)]
    temperatures = torch.tensor([COLD] * N_SYSTEMS + [HOT] * N_SYSTEMS, dtype=torch.float64)
    start = concatenate(
        [draw_velocities(c, float(t), n) for n, (c, t) in enumerate(zip(crystals, temperatures, strict=True))]
    )
    seeds = list(range(2 * N_SYSTEMS))
    n_free = torch.full((2 * N_SYSTEMS,), float(degrees_of_freedom(crystals[0])))
    thermostats: dict[str, Thermostat] = {
        "langevin": Langevin(temperatures, 200 * FS, seeds),
        "csvr": CSVR(temperatures, 100 * FS, seeds, n_free),
        "nose-hoover": NoseHooverChain(temperatures, 60 * FS, n_free),
    }
    frames = [
        frame
        for frame in simulate(ARGON, start, DT_FS * FS, n_steps, every=40, thermostat=thermostats[which])
        if frame.step >= 150
    ]
    kinetic = torch.stack([f.state.kinetic_energy() for f in frames]).numpy()
    potential = torch.stack([f.prediction.energy for f in frames]).numpy()
    shape = (len(frames) * N_SYSTEMS, 8, 3)
    positions = torch.stack([f.state.positions for f in frames]).reshape(len(frames), -1, 8, 3).numpy()
    velocities = torch.stack([f.state.velocities for f in frames]).reshape(len(frames), -1, 8, 3).numpy()
    return tuple(  # type: ignore[return-value]
        Samples(
            kinetic[:, part].ravel(),
            potential[:, part].ravel(),
            positions[:, part].reshape(shape),
            velocities[:, part].reshape(shape),
            crystals[0].masses.numpy(),
            0 if which == "langevin" else 3,
        )
        for part in (slice(N_SYSTEMS), slice(N_SYSTEMS, None))
    )


@pytest.mark.slow
@pytest.mark.parametrize("which", ["langevin", "csvr", "nose-hoover"])
def test_kinetic_and_potential_energies_are_canonical(which: str) -> None:
    cold, hot = sampled(which)
    runs = [cold.as_simulation(COLD), hot.as_simulation(HOT)]
    for run in runs:
        deviations = physical_validation.kinetic_energy.distribution(
            run, strict=False, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
        )
        assert max(np.abs(deviations)) < LIMIT, ("kinetic energy: mean, width", deviations)
    # The ratio of the two potential-energy distributions knows the temperatures only.
    ratio = physical_validation.ensemble.check(
        *runs, total_energy=False, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
    )
    assert max(np.abs(ratio)) < LIMIT, ("potential energy: slope", ratio)
    # Both halves of the atoms have the same share of the kinetic energy.
    for samples in (cold, hot):
        assert abs(unequal(samples)) < LIMIT


def unequal(samples: Samples) -> float:
    """Standard errors by which the kinetic energies of the two halves of the atoms differ."""
    per_atom = 0.5 * samples.masses * (samples.velocities**2).sum(-1)
    difference = per_atom[:, :4].sum(1) - per_atom[:, 4:].sum(1)
    return float(difference.mean() / (difference.std() / np.sqrt(difference.size)))


@pytest.mark.slow
def test_wrong_ensembles_are_found() -> None:
    """A kinetic energy that fluctuates too little, and a potential energy of another temperature."""
    cold, _ = sampled("csvr")
    mean = cold.kinetic.mean()
    narrow = dataclasses.replace(cold, kinetic=mean + 0.7 * (cold.kinetic - mean))
    deviations = physical_validation.kinetic_energy.distribution(
        narrow.as_simulation(COLD), strict=False, verbosity=0, bootstrap_seed=1, data_is_uncorrelated=True
    )
    assert max(np.abs(deviations)) > LIMIT
    shifted = dataclasses.replace(cold, potential=cold.potential[::-1])
    ratio = physical_validation.ensemble.check(
        cold.as_simulation(COLD),
        shifted.as_simulation(HOT),
        verbosity=0,
        bootstrap_seed=1,
        data_is_uncorrelated=True,
    )
    assert max(np.abs(ratio)) > LIMIT
