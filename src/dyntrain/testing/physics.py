"""Symmetries, independence of the systems in a batch, smoothness and size."""

from __future__ import annotations

import torch

from dyntrain.potential import Potential, Prediction
from dyntrain.state import State, concatenate
from dyntrain.testing.agreement import Tolerances, require_same
from dyntrain.testing.differences import predict
from dyntrain.testing.structures import (
    Random,
    companions,
    contact_distance,
    doubled,
    two_copies,
    with_atoms,
    without_images,
)

JUMP_WINDOW = 1e-7
"""Å on either side of the cutoff: so little that what is smooth does not change over it."""


def check_rotation(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """Turned with its cell, a system has the same energy and turned forces."""
    turn = Random(state, seed).rotation()
    turned = state.replace(
        positions=state.positions @ turn.T, velocities=state.velocities @ turn.T, cell=state.cell @ turn.T
    )
    energy, forces = predict(potential, state)
    tolerance = (tolerances or Tolerances.of(potential)).symmetry
    expected = Prediction(energy, forces @ turn.T)
    require_same("rotation: of the turned system", predict(potential, turned), expected, tolerance)


def check_translation(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """Nothing depends on the origin, nor on which periodic image of an atom is given."""
    random = Random(state, seed)
    tolerance = (tolerances or Tolerances.of(potential)).symmetry
    expected = predict(potential, state)
    shift = 10.0 * random.like(state.cell[:, 0])
    moved = state.replace(positions=state.positions + shift[state.system_idx])
    require_same("translation: of the shifted system", predict(potential, moved), expected, tolerance)
    images = random.whole_numbers(state.n_atoms, 3) * state.pbc[state.system_idx]
    to_image = torch.einsum("ns,nsx->nx", images, state.cell[state.system_idx])
    moved = state.replace(positions=state.positions + to_image)
    require_same("translation: of other periodic images", predict(potential, moved), expected, tolerance)


def check_permutation(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """The order of the atoms in a system does not matter."""
    order = (state.system_idx + 0.5 * Random(state, seed).fractions(state.n_atoms)).argsort()
    permuted = with_atoms(state, order)
    energy, forces = predict(potential, state)
    tolerance = (tolerances or Tolerances.of(potential)).symmetry
    expected = Prediction(energy, forces[order])
    require_same("permutation: of reordered atoms", predict(potential, permuted), expected, tolerance)


def check_batch(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """No cross-talk: each system of a batch is as it is alone, among others of any size, element and cell."""
    tolerance = (tolerances or Tolerances.of(potential)).same
    systems = [state.select([number]) for number in range(state.n_systems)]
    systems += companions(systems[0], Random(state, seed))
    batch = concatenate(systems)
    energy, forces = predict(potential, batch)
    for number, alone in enumerate(systems):
        found = Prediction(energy[number : number + 1], forces[batch.system_idx == number])
        what = f"batch: of system {number} of {batch.n_systems} and of it alone"
        require_same(what, found, predict(potential, alone), tolerance)


def check_smooth_cutoff(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """Energy and forces are continuous as two clusters approach and their first pair enters the cutoff."""
    tolerances = tolerances or Tolerances.of(potential)
    cluster = without_images(state.select([0]).detach())
    direction = Random(state, seed).rotation()[0]
    contact = contact_distance(cluster, direction, potential.cutoff)
    outside = two_copies(cluster, (contact + JUMP_WINDOW) * direction)
    inside = two_copies(cluster, (contact - JUMP_WINDOW) * direction)
    require_same(
        f"smooth cutoff: on the two sides of a pair's way through {potential.cutoff:g} Å",
        predict(potential, inside),
        predict(potential, outside),
        tolerances.jump,
        energy_matters=False,
    )


def check_extensive(potential: Potential, state: State, tolerances: Tolerances | None = None) -> None:
    """Two copies far apart have twice the energy; so has a periodic system described by a doubled cell."""
    tolerance = (tolerances or Tolerances.of(potential)).symmetry
    for number in range(state.n_systems):
        system = state.select([number]).detach()
        cluster = without_images(system)
        size = torch.pdist(cluster.positions).max() if cluster.n_atoms > 1 else 0.0
        apart = cluster.positions.new_tensor([1.0, 0.0, 0.0]) * (size + 2.0 * potential.cutoff)
        twice = doubled(predict(potential, cluster))
        found = predict(potential, two_copies(cluster, apart))
        require_same(f"extensive: of two far copies of system {number}", found, twice, tolerance)
        for axis in system.pbc[0].nonzero().flatten().tolist():
            double = two_copies(system, system.cell[0, axis])
            cell = system.cell.clone()
            cell[0, axis] *= 2.0
            found = predict(potential, double.replace(cell=cell))
            twice = doubled(predict(potential, system))
            what = f"extensive: of system {number} doubled along its cell vector {'abc'[axis]}"
            require_same(what, found, twice, tolerance)
