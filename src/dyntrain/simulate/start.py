"""Looking at a start before the model is blamed for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ase.data import covalent_radii
from torch import Tensor

from dyntrain.errors import UserError
from dyntrain.neighbors import neighbor_list, pair_vectors
from dyntrain.potential import Potential
from dyntrain.simulate.bursts import atom_name
from dyntrain.simulate.motion import internal_temperature
from dyntrain.state import State

# Real bonds are longer than 0.9 of the sum of covalent radii (H2: 1.19); hot ones dip to about 0.7.
CLOSEST_SANE = 0.6
"""A pair closer than this times the sum of its covalent radii is refused as a start."""

HOTTEST_SANE = 20_000.0
"""Kinetic temperature (K) above which the velocities of a start are refused: wrong units."""


@dataclass(frozen=True)
class Start:
    """What was found in a start: internal temperature in K; closest pair in Å (None: none within 3 Å)."""

    temperature: float
    closest_distance: float | None
    closest_pair: str


def check_start(state: State, name: str) -> Start:
    """Look at a start before blaming the model for it.

    Args:
        state: one system.
        name: where it comes from, for the message.

    Raises:
        UserError: positions or velocities that are not finite, atoms on top of each other, or velocities
            that can only be in other units.
    """
    for quantity in ("positions", "velocities"):
        broken = (~torch.isfinite(getattr(state, quantity)).all(-1)).nonzero()
        if broken.numel():
            raise UserError(
                f"{name}: the {quantity} of {atom_name(state, int(broken[0]))} are not finite numbers: "
                "repair the file"
            )
    pairs = neighbor_list(state, 3.0)
    distances = pair_vectors(state, pairs).norm(dim=-1)
    radii = torch.as_tensor(covalent_radii)[state.atomic_numbers.cpu()].to(state.device)
    touching = distances < CLOSEST_SANE * (radii[pairs.i] + radii[pairs.j])
    closest, pair = None, ""
    if pairs.n_pairs:
        at = int(torch.where(touching, distances - 3.0, distances).argmin())
        closest = float(distances[at])
        pair = f"{atom_name(state, int(pairs.i[at]))} and {atom_name(state, int(pairs.j[at]))}"
        if bool(touching[at]):
            raise UserError(
                f"{name}: {pair} are only {closest:.3f} Å apart; no molecular dynamics can start there: "
                "relax or repair the structure, or check its cell and units (Å)"
            )
    temperature = internal_temperature(state)
    if temperature > HOTTEST_SANE:
        raise UserError(
            f"{name}: its velocities make {temperature:.3g} K, so they are probably in other units than "
            "ASE's (Å per ASE time, sqrt(eV/u)): convert them, or draw new ones with --temperature"
        )
    return Start(temperature, closest, pair)


def largest_forces(potential: Potential, state: State) -> tuple[Tensor, Tensor]:
    """The largest force of each system, [n_systems] eV/Å, and the atom it acts on, numbered in the batch.

    NaN counts as largest.
    """
    with torch.no_grad():
        forces = potential(state, neighbor_list(state, potential.cutoff)).forces.norm(dim=-1)
    atoms = [
        int(where[forces[where].argmax()])
        for where in (state.atoms_of(torch.tensor([s], device=state.device)) for s in range(state.n_systems))
    ]
    at = torch.tensor(atoms, device=state.device)
    return forces[at], at
