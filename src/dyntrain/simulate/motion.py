"""Temperature and velocities of one system: what it does beside moving and turning as a whole."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dyntrain.state import State
from dyntrain.units import KB


def degrees_of_freedom(state: State) -> int:
    """Ways in which one system can move beside moving and turning as a whole.

    3N − 6 (5 for linear molecules, 3N − 3 for periodic systems, which cannot turn), N the atoms that are
    not fixed. Fixed atoms take away the rigid motions that would move them: two leave one axis to turn
    about, a slab none. An atom that is alone keeps its 3: all it can do is move.
    """
    n_movable = _n_movable(state)
    return max(0, 3 * n_movable - _rigid_modes(state).shape[1]) or 3 * n_movable


def internal_temperature(state: State) -> float:
    """Temperature (K) of what one system does beside moving and turning as a whole.

    2 E_kin / (n k_B) of the motion without its rigid part, n its ``degrees_of_freedom``; for a single atom
    the plain kinetic temperature, for a system with all atoms fixed 0.
    """
    n_free = degrees_of_freedom(state)
    return float(2.0 * without_rigid_motion(state).kinetic_energy()[0] / (n_free * KB)) if n_free else 0.0


def draw_velocities(state: State, temperature: float, seed: int) -> State:
    """One system with Maxwell–Boltzmann velocities, at rest as a whole, its ``internal_temperature`` exact.

    Args:
        temperature: K; 0 gives rest.
    """
    random = torch.from_numpy(np.random.default_rng(seed).standard_normal((state.n_atoms, 3)))
    drawn = random.to(state.device) * torch.sqrt(KB * temperature / state.inertia())[:, None]
    if _n_movable(state) == 1 and _rigid_modes(state).shape[1] == 3:
        return state.replace(velocities=drawn)
    moving = without_rigid_motion(state.replace(velocities=drawn))
    found = internal_temperature(moving)
    return moving.replace(velocities=moving.velocities * (temperature / found) ** 0.5) if found else moving


def without_rigid_motion(state: State) -> State:
    """One system without its translation (and rotation, unless periodic); a single atom as it is."""
    basis = _rigid_modes(state)
    if basis.shape[1] == 3 * _n_movable(state):
        return state
    roots = torch.sqrt(state.masses)[:, None]
    motion = (roots * state.velocities).flatten()
    return state.replace(velocities=(motion - basis @ (basis.T @ motion)).reshape(-1, 3) / roots)


def _n_movable(state: State) -> int:
    return state.n_atoms if state.fixed is None else int((~state.fixed).sum())


def _rigid_modes(state: State) -> Tensor:
    """Orthonormal mass-weighted rigid motions that no fixed atom forbids, [3 n_atoms, n_modes]."""
    centre = (state.masses[:, None] * state.positions).sum(0) / state.masses.sum()
    axes = torch.eye(3, dtype=torch.float64, device=state.device)
    modes = [axis.expand_as(state.positions) for axis in axes]
    if not bool(state.pbc.any()):
        arms = state.positions - centre
        modes += [torch.linalg.cross(axis.expand_as(arms), arms) for axis in axes]
    motions = torch.stack(modes, dim=2)
    if state.fixed is not None and bool(state.fixed.any()):
        of_fixed = motions[state.fixed].flatten(0, 1)
        _, sizes, ways = torch.linalg.svd(of_fixed, full_matrices=True)
        n_forbidden = int((sizes > 1e-6 * sizes[0]).sum())
        motions = motions @ ways[n_forbidden:].T
        motions[state.fixed] = 0.0
    weighted = (torch.sqrt(state.masses)[:, None, None] * motions).flatten(0, 1)
    basis, sizes, _ = torch.linalg.svd(weighted, full_matrices=False)
    return basis[:, sizes > 1e-6 * sizes.max()] if sizes.numel() else basis
