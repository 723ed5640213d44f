"""The whole contract in one call."""

from __future__ import annotations

from dyntrain.errors import UserError
from dyntrain.potential import Potential
from dyntrain.state import State
from dyntrain.testing.agreement import Tolerances
from dyntrain.testing.derivatives import check_forces, check_parameter_gradients, check_second_derivatives
from dyntrain.testing.output import check_graph, check_input_untouched, check_output
from dyntrain.testing.physics import (
    check_batch,
    check_extensive,
    check_permutation,
    check_rotation,
    check_smooth_cutoff,
    check_translation,
)
from dyntrain.testing.rollouts import check_adjoint, check_rollout_gradient
from dyntrain.units import FS


def check_potential(
    potential: Potential,
    state: State,
    *,
    smooth_cutoff: bool = True,
    extensive: bool = True,
    dt: float = 0.5 * FS,
    n_steps: int = 3,
    tolerances: Tolerances | None = None,
    seed: int = 0,
) -> None:
    """Check that a potential is fit for molecular dynamics and for dynamic training.

    Forces, second derivatives and parameter gradients against finite differences; rotation, translation,
    permutation; no cross-talk in a batch; smooth at the cutoff; extensive; input left alone; a graph kept
    where it is wanted; the gradient through a roll-out. Each is one of the functions below. Run it on your
    own model with a structure of your own, as a test::

        check_potential(Conservative(MyNetwork()), State.from_ase(atoms))

    It evaluates the potential about 150 times, mostly on structures of the size given: take a small one
    whose atoms are not at rest. A potential marked ``conservative = False`` is not asked whether its forces
    are derivatives of its energy. A batch of several systems, periodic or not, is checked as such. Forces of
    a network with ReLU jump where a unit turns on; check such a one in float64, whose finite differences are
    short enough to miss the jumps.

    Args:
        potential: the model; left as it was.
        state: one or more systems it should describe.
        smooth_cutoff: False leaves out ``check_smooth_cutoff``: for a model with a hard cutoff, which then
            cannot conserve energy.
        extensive: False leaves out ``check_extensive``: for a model that reads out a pooled structure, which
            then knows only the sizes it has seen.
        dt: time step of the roll-out whose gradient is checked, ASE time.
        n_steps: its length.
        tolerances: default by the precision of the parameters (``FLOAT64``, ``FLOAT32``).
        seed: of the random directions.

    Raises:
        AssertionError: one sentence that names the check, what differs and by how much.
        UserError: what came is no ``Potential`` or no ``State``.
    """
    if not isinstance(potential, Potential):
        raise UserError(
            f"check_potential expects a Potential, got {type(potential).__name__}; Conservative(network) or "
            "dyntrain.potential_from makes one"
        )
    if not isinstance(state, State):
        raise UserError(
            f"check_potential expects a State, got {type(state).__name__}; State.from_ase(atoms) makes one"
        )
    tolerances = tolerances or Tolerances.of(potential)
    check_input_untouched(potential, state)
    check_output(potential, state)
    check_graph(potential, state, tolerances)
    if potential.conservative:
        check_forces(potential, state, tolerances, seed)
    check_second_derivatives(potential, state, tolerances, seed)
    check_parameter_gradients(potential, state, tolerances, seed)
    check_rotation(potential, state, tolerances, seed)
    check_translation(potential, state, tolerances, seed)
    check_permutation(potential, state, tolerances, seed)
    check_batch(potential, state, tolerances, seed)
    if smooth_cutoff:
        check_smooth_cutoff(potential, state, tolerances, seed)
    if extensive:
        check_extensive(potential, state, tolerances)
    check_rollout_gradient(potential, state, tolerances, dt, n_steps, seed)
    check_adjoint(potential, state, tolerances, dt, n_steps, seed)
