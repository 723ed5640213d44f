"""A box of liquid water to start AIMD from: rigid TIP3P molecules, shaken into place by Monte Carlo."""

from __future__ import annotations

import numpy as np
from ase import Atoms
from scipy.spatial.transform import Rotation

from dyntrain.errors import UserError
from dyntrain.units import BOHR, HARTREE, KB

# TIP3P: W. L. Jorgensen et al., J. Chem. Phys. 79, 926 (1983). Sites O, H, H; Å, elementary charges, eV.
_ANGLE = np.radians(104.52 / 2)
_MOLECULE = 0.9572 * np.array(
    [[0, 0, 0], [np.sin(_ANGLE), np.cos(_ANGLE), 0], [-np.sin(_ANGLE), np.cos(_ANGLE), 0]]
)
_CHARGES = np.array([-0.834, 0.417, 0.417])
_SIGMA, _EPSILON = 3.1506, 0.006596

_MASS_G_PER_CM3 = 18.015 / 0.602214  # of one molecule in one Å³
_KT = 300 * KB
_N_SWEEPS = 400
_LARGEST_MOVE, _LARGEST_TURN = 0.15, 0.3  # Å, rad: about half of the trials are accepted
_SMALLEST_N = 8  # a smaller box is no wider than two molecules: each would meet its own images


def water_box(n_molecules: int, density: float = 0.997, seed: int = 0) -> Atoms:
    """Water at 300 K as TIP3P has it: the hydrogen bonds are there, the rest is for the thermalisation.

    Args:
        n_molecules: at least 8. The time grows as its square: 0.5 s for 16, 3 s for 64.
        density: g/cm³.
        seed: same seed, same box (to 1e-6 Å, to which the positions are rounded, on any machine).

    Returns:
        O, H, H of one molecule after the other, molecules whole, in a periodic cube.

    Raises:
        UserError: too few molecules or a density that is not that of a liquid.
    """
    if n_molecules < _SMALLEST_N:
        raise UserError(f"a water box needs at least {_SMALLEST_N} molecules, got {n_molecules}")
    if not 0.5 <= density <= 1.5:
        raise UserError(f"the density of a water box must be 0.5 to 1.5 g/cm³, got {density}")
    random = np.random.default_rng([seed, n_molecules])
    length = (n_molecules * _MASS_G_PER_CM3 / density) ** (1 / 3)
    molecules = _on_a_grid(n_molecules, length, random)
    for _ in range(_N_SWEEPS):
        _sweep(molecules, length, random)
    molecules -= length * np.floor(molecules[:, :1] / length)
    return Atoms("OH2" * n_molecules, molecules.reshape(-1, 3).round(6), cell=[length] * 3, pbc=True)


def _on_a_grid(n_molecules: int, length: float, random: np.random.Generator) -> np.ndarray:
    """Molecules [n_molecules, 3 sites, 3] at random points of a cubic grid, turned at random."""
    per_side = int(np.ceil(round(n_molecules ** (1 / 3), 6)))
    points = np.stack(np.unravel_index(random.permutation(per_side**3)[:n_molecules], [per_side] * 3), axis=1)
    turns = Rotation.random(n_molecules, random).as_matrix()
    return _MOLECULE @ turns + (points * length / per_side)[:, None]


def _sweep(molecules: np.ndarray, length: float, random: np.random.Generator) -> None:
    """One Metropolis trial for each molecule: a small move and turn together."""
    n_molecules = len(molecules)
    moves = random.uniform(-_LARGEST_MOVE, _LARGEST_MOVE, (n_molecules, 1, 3))
    turns = Rotation.from_rotvec(random.uniform(-_LARGEST_TURN, _LARGEST_TURN, (n_molecules, 3))).as_matrix()
    thresholds = -_KT * np.log(1 - random.random(n_molecules))
    for number in range(n_molecules):
        now = molecules[number]
        trial = (now - now[0]) @ turns[number] + now[0] + moves[number]
        others = np.delete(molecules, number, axis=0)
        if _energy(trial, others, length) - _energy(now, others, length) <= thresholds[number]:
            molecules[number] = trial


def _energy(molecule: np.ndarray, others: np.ndarray, length: float) -> float:
    """TIP3P energy (eV) of one molecule [3, 3] with the nearest image of each of the others [n, 3, 3]."""
    apart = molecule[0] - others[:, :1]
    others = others + length * np.round(apart / length)
    distances = np.linalg.norm(molecule[:, None] - others[:, None], axis=-1)
    coulomb = HARTREE * BOHR * (np.outer(_CHARGES, _CHARGES) / distances).sum()
    attraction = (_SIGMA / distances[:, 0, 0]) ** 6
    return float(coulomb + 4 * _EPSILON * (attraction**2 - attraction).sum())
