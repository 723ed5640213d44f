"""Masses: which mass of each element the motion obeys, held against those stated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from ase.data import atomic_masses, chemical_symbols

from dyntrain.data.constraints import Held, find_held
from dyntrain.data.motion import second_difference
from dyntrain.data.thermostat import inner_frames
from dyntrain.data.trajectory import FloatArray, IntArray, Trajectory
from dyntrain.data.velocities import verlet_velocities

# A mass is called wrong when it is off by this share, by so many standard errors, and when the right one
# leaves at most this share of the motion (rms) unexplained that the stated one does not explain.
_OFF, _ERRORS, _GAIN = 1e-3, 5.0, 0.8
# Where it is not known that every step is there, right masses must explain nearly all.
SPARSE_LEFT = 0.05
# What users and codes set, by element; other values are told as numbers.
_NAMES = {
    1: {1.0: "H = 1.000", 1.008: "natural hydrogen", 2.014: "deuterium", 3.016: "tritium"},
    3: {6.015: "lithium-6", 7.016: "lithium-7"},
    6: {13.003: "carbon-13", 12.0: "carbon-12"},
    8: {18.0: "oxygen-18", 16.0: "O = 16.00"},
}
_NAME_TOLERANCE = 2e-3


@dataclass(frozen=True)
class WrongMass:
    """An element whose stated mass (mean over its atoms) the motion contradicts, u."""

    symbol: str
    stated: float
    fits: float
    error: float

    @property
    def name(self) -> str | None:
        """What the mass that fits is known as."""
        number = chemical_symbols.index(self.symbol)
        known = {**{float(atomic_masses[number]): "the natural mass"}, **_NAMES.get(number, {})}
        nearest = min(known, key=lambda mass: abs(self.fits / mass - 1))
        close = abs(self.fits / nearest - 1) < max(_NAME_TOLERANCE, 2 * self.error / self.fits)
        return known[nearest] if close else None

    def __str__(self) -> str:
        name = f", that is {self.name}" if self.name else ""
        return f"{self.symbol} moves like {self.fits:.4g} u{name} (stated: {self.stated:.4g} u)"


def find_wrong_masses(run: Trajectory, held: Held, most_left: float = _GAIN) -> tuple[WrongMass, ...]:
    """The elements whose stated masses the motion contradicts while it obeys those of the others.

    Fits 1/m of each element in δ²r = dt² F/m, a common friction, constraints and centre of mass left out.
    A factor that all elements share is the time step's or the forces' fault, and nothing is found.

    Args:
        most_left: share (rms) of what stated masses leave unexplained that right ones may leave.
    """
    numbers = run.atomic_numbers[held.atoms]
    elements = np.unique(numbers)
    frames = inner_frames(run)
    if elements.size < 2 or frames.size < 3:
        return ()
    stated = np.array([run.masses[held.atoms][numbers == z].mean() for z in elements])
    factors, errors, gain = _fit(run, held, frames, [numbers == z for z in elements])
    if not np.isfinite(factors).all() or (factors <= 0).any() or gain > most_left:
        return ()
    # One element's mass is right, and with it dt; a dt that was inferred with wrong masses is off itself.
    right = errors < 0.02 * factors
    if run.dt_origin != "inferred":
        right &= np.abs(factors - 1) < 0.05
    readings = []
    for anchor in factors[right]:
        off = np.abs(factors / anchor - 1)
        wrong = (off > _OFF) & (off > _ERRORS * errors / factors)
        readings.append(
            tuple(
                WrongMass(chemical_symbols[z], float(m), float(m * anchor / f), float(m / f * e / f))
                for z, m, f, e in zip(
                    elements[wrong], stated[wrong], factors[wrong], errors[wrong], strict=True
                )
            )
        )
    # The reading that blames the fewest elements, and for masses that have a name.
    return min(readings, key=lambda r: (len(r), sum(not w.name for w in r)), default=())


def masses_advice(
    positions: FloatArray, forces: FloatArray, masses: FloatArray, atomic_numbers: IntArray, dt: float
) -> str | None:
    """What is wrong with the masses of unwrapped frames `dt` (ASE time) apart; None where nothing is found.

    For readers, which refuse a stated dt that the motion contradicts before there is a run to diagnose.
    """
    velocities = verlet_velocities(positions, forces, masses, dt)
    nowhere = np.zeros((3, 3)), np.zeros(3, bool)
    energies = np.zeros(positions.shape[0])
    run = Trajectory(positions, velocities, forces, energies, *nowhere, atomic_numbers, masses, dt)
    return "; ".join(map(str, find_wrong_masses(run, find_held(run), SPARSE_LEFT))) or None


def _fit(
    run: Trajectory, held: Held, frames: np.ndarray, members: list[np.ndarray]
) -> tuple[FloatArray, FloatArray, float]:
    """Stated over fitted mass of each element, standard errors, and rms left over rms before."""
    atoms = held.atoms
    root = np.sqrt(run.masses[atoms])[:, None]
    r = run.positions[:, atoms]
    velocities = root * (r[2:] - r[:-2])[frames - 1]
    leave_out = held.projection(r[frames], root, velocities)
    left = leave_out(root * second_difference(r)[frames - 1])
    pulls = run.dt**2 * run.forces[frames][:, atoms] / root
    parts = [leave_out(np.where(own[:, None], pulls, 0.0)) for own in members]
    # Frames that something else struck would pull the fit.
    misfit = np.linalg.norm((left - sum(parts)).reshape(len(frames), -1), axis=1)
    kept = misfit <= 10 * np.median(misfit)
    y = left[kept].ravel()
    design = np.stack([part[kept].ravel() for part in parts], axis=1)
    normal = design.T @ design
    if np.linalg.cond(normal) > 1e10:
        return np.full(len(members), np.nan), np.full(len(members), np.inf), 1.0
    factors = np.linalg.solve(normal, design.T @ y)
    rest, before = y - design @ factors, y - design.sum(axis=1)
    errors = np.sqrt(np.diag(np.linalg.inv(normal)) * (rest @ rest) / max(y.size - len(members), 1))
    gain = float(np.sqrt((rest @ rest) / (before @ before))) if before.any() else 1.0
    return factors, errors, gain
