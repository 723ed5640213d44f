"""The contract that every potential passes, as plain checks to run on your own model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from dyntrain.integrators import VelocityVerlet
from dyntrain.neighbors import FrozenNeighbors, Neighbors, VerletNeighbors, neighbor_list
from dyntrain.potential import Potential, Prediction
from dyntrain.rollout import Adjoint, Backprop, Full, rollout
from dyntrain.state import State, concatenate
from dyntrain.units import FS

SMALLEST_FORCE = 1e-3
"""eV/Å: errors are relative to the largest force of a system, or to this where it is at rest."""

JUMP_WINDOW = 1e-7
"""Å on either side of the cutoff: so little that what is smooth does not change over it."""


@dataclass(frozen=True)
class Tolerances:
    """How closely numbers must agree. All but ``step`` are relative (forces: to the largest force).

    step:       of the finite differences, Å; for parameters in units of their root mean square
    derivative: finite differences against autograd
    same:       one system computed alone, in a batch, with and without a graph
    symmetry:   the same physics in other coordinates; ``Adjoint`` against ``Full``
    jump:       of energy (per Å) and forces as a pair crosses the cutoff
    """

    step: float
    derivative: float
    same: float
    symmetry: float
    jump: float

    @classmethod
    def of(cls, potential: Potential) -> Tolerances:
        """Those of the coarsest parameter; without parameters those of float64."""
        coarsest = max((torch.finfo(p.dtype).eps for p in potential.parameters()), default=0.0)
        return FLOAT64 if coarsest <= torch.finfo(torch.float64).eps else FLOAT32


FLOAT64 = Tolerances(step=1e-4, derivative=1e-7, same=1e-12, symmetry=1e-10, jump=1e-6)
FLOAT32 = Tolerances(step=1e-3, derivative=1e-2, same=1e-5, symmetry=1e-4, jump=1e-4)


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
    """
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


# --- what it gives and what it leaves alone -----------------------------------------------------------


def check_input_untouched(potential: Potential, state: State) -> None:
    """The potential changes neither the state, nor the neighbour list, nor any ``.grad``."""
    state = state.replace(**{name: tensor.detach().clone() for name, tensor in _tensors(state).items()})
    neighbors = neighbor_list(state, potential.cutoff)
    tensors = {f"state.{name}": tensor for name, tensor in _tensors(state).items()}
    tensors |= {f"neighbors.{name}": tensor for name, tensor in vars(neighbors).items()}
    parameters = dict(potential.named_parameters())
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    gradients = {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}
    for grad_enabled in (True, False):
        with torch.set_grad_enabled(grad_enabled):
            potential(state, neighbors)
        for name, tensor in tensors.items():
            _require(torch.equal(tensor, copies[name]), f"input untouched: {name} was changed in place")
            _require(not tensor.requires_grad, f"input untouched: {name} was made to require a gradient")
        for name, parameter in parameters.items():
            before, after = gradients[name], parameter.grad
            same = before is after if before is None or after is None else torch.equal(before, after)
            _require(same, f"input untouched: .grad of parameter {name} was changed by an evaluation")


def check_output(potential: Potential, state: State) -> None:
    """Energy [n_systems] and forces [n_atoms, 3], float64 and finite."""
    prediction = _predict(potential, state)
    for name, shape in (("energy", (state.n_systems,)), ("forces", (state.n_atoms, 3))):
        tensor = getattr(prediction, name)
        found = tuple(tensor.shape)
        _require(found == shape, f"output: {name} must have shape {shape}, got {found}")
        _require(tensor.dtype == torch.float64, f"output: {name} must be float64, got {tensor.dtype}")
        bad = int((~torch.isfinite(tensor)).sum())
        _require(bad == 0, f"output: {bad} of {tensor.numel()} numbers of {name} are not finite")


def check_graph(potential: Potential, state: State, tolerances: Tolerances | None = None) -> None:
    """A graph is kept exactly where gradients are enabled, and the numbers do not depend on it."""
    moving = state.replace(positions=state.positions.detach().clone().requires_grad_())
    neighbors = neighbor_list(state.detach(), potential.cutoff)
    with torch.enable_grad():
        kept = potential(moving, neighbors)
    with torch.no_grad():
        dropped = potential(moving, neighbors)
    for name in ("energy", "forces"):
        _require(getattr(kept, name).requires_grad, f"graph: {name} has none where gradients are enabled")
        _require(not getattr(dropped, name).requires_grad, f"graph: {name} keeps one under torch.no_grad()")
    if _trained(potential):
        with torch.enable_grad():
            forces = potential(state.detach(), neighbors).forces
        _require(forces.requires_grad, "graph: at detached positions the forces do not reach the parameters")
    tolerance = (tolerances or Tolerances.of(potential)).same
    _require_same("graph: with and without it", dropped, kept, tolerance)


# --- derivatives --------------------------------------------------------------------------------------
# Finite differences keep the neighbour list of the start: a pair that crosses the cutoff on the way is
# the matter of check_smooth_cutoff.


def check_forces(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """F = −∂E/∂r of each system, along random directions."""
    tolerances = tolerances or Tolerances.of(potential)
    random = _Random(state, seed)
    neighbors = neighbor_list(state.detach(), potential.cutoff)
    moving = state.detach().replace(positions=state.positions.detach().clone())
    forces = _predict(potential, state).forces
    for _ in range(3):
        along = random.like(forces)
        work = (forces * along).sum(-1)
        change = _slope(
            lambda: potential(moving, neighbors).energy, [moving.positions], [along], tolerances.step
        )
        scale = _sum_by_system(state, work**2).sqrt().clamp(min=SMALLEST_FORCE)
        _require_close(
            "finite-difference forces: −F·u and the change of the energy along u",
            -_sum_by_system(state, work),
            change,
            tolerances.derivative * scale,
            "eV/Å",
        )


def check_second_derivatives(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """∂F/∂r by autograd, along random directions: what carries a gradient from one step to the next."""
    tolerances = tolerances or Tolerances.of(potential)
    random = _Random(state, seed)
    neighbors = neighbor_list(state.detach(), potential.cutoff)
    moving = state.detach().replace(positions=state.positions.detach().clone())
    positions = moving.positions.clone().requires_grad_()
    with torch.enable_grad():
        forces = potential(moving.replace(positions=positions), neighbors).forces
    for _ in range(3):
        along, weights = random.like(forces), random.like(forces)
        (gradient,) = torch.autograd.grad(
            (forces * weights).sum(), [positions], retain_graph=True, allow_unused=True
        )
        if gradient is None:
            raise AssertionError(
                "second derivatives: the forces have no graph to the positions, so no gradient can pass from "
                "one step of a roll-out to the next; the model detached or re-wrapped its input"
            )
        change = _slope(
            lambda: potential(moving, neighbors).forces, [moving.positions], [along], tolerances.step
        )
        _require_slope(
            "second derivatives: autograd and finite differences of the forces",
            [gradient],
            [along],
            (change * weights).sum(),
            tolerances,
        )


def check_parameter_gradients(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """Gradients of an energy loss and of a force loss with respect to all trainable parameters."""
    tolerances = tolerances or Tolerances.of(potential)
    parameters = _trained(potential)
    random = _Random(state, seed)
    state = state.detach()
    neighbors = neighbor_list(state, potential.cutoff)

    def loss(name: str, weights: Tensor) -> Tensor:
        return (getattr(potential(state, neighbors), name) * weights).sum()

    for name, of_its_shape in (("energy", state.cell[:, 0, 0]), ("forces", state.positions)):
        loss_of_name = partial(loss, name, random.like(of_its_shape))
        if parameters:
            with torch.enable_grad():
                gradients = _gradients(loss_of_name(), parameters)
            along = [random.like_parameter(p) for p in parameters]
            change = _slope(loss_of_name, parameters, along, tolerances.step)
            what = f"parameter gradients: autograd and finite differences of a loss of the {name}"
            _require_slope(what, gradients, along, change, tolerances)


# --- physics ------------------------------------------------------------------------------------------


def check_rotation(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """Turned with its cell, a system has the same energy and turned forces."""
    turn = _Random(state, seed).rotation()
    turned = state.replace(
        positions=state.positions @ turn.T, velocities=state.velocities @ turn.T, cell=state.cell @ turn.T
    )
    energy, forces = _predict(potential, state)
    tolerance = (tolerances or Tolerances.of(potential)).symmetry
    expected = Prediction(energy, forces @ turn.T)
    _require_same("rotation: of the turned system", _predict(potential, turned), expected, tolerance)


def check_translation(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """Nothing depends on the origin, nor on which periodic image of an atom is given."""
    random = _Random(state, seed)
    tolerance = (tolerances or Tolerances.of(potential)).symmetry
    expected = _predict(potential, state)
    shift = 10.0 * random.like(state.cell[:, 0])
    moved = state.replace(positions=state.positions + shift[state.system_idx])
    _require_same("translation: of the shifted system", _predict(potential, moved), expected, tolerance)
    images = random.whole_numbers(state.n_atoms, 3) * state.pbc[state.system_idx]
    to_image = torch.einsum("ns,nsx->nx", images, state.cell[state.system_idx])
    moved = state.replace(positions=state.positions + to_image)
    _require_same("translation: of other periodic images", _predict(potential, moved), expected, tolerance)


def check_permutation(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """The order of the atoms in a system does not matter."""
    order = (state.system_idx + 0.5 * _Random(state, seed).fractions(state.n_atoms)).argsort()
    permuted = _with_atoms(state, order)
    energy, forces = _predict(potential, state)
    tolerance = (tolerances or Tolerances.of(potential)).symmetry
    expected = Prediction(energy, forces[order])
    _require_same("permutation: of reordered atoms", _predict(potential, permuted), expected, tolerance)


def check_batch(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """No cross-talk: each system of a batch is as it is alone, among others of any size, element and cell."""
    tolerance = (tolerances or Tolerances.of(potential)).same
    systems = [state.select([number]) for number in range(state.n_systems)]
    systems += _companions(systems[0], _Random(state, seed))
    batch = concatenate(systems)
    energy, forces = _predict(potential, batch)
    for number, alone in enumerate(systems):
        found = Prediction(energy[number : number + 1], forces[batch.system_idx == number])
        what = f"batch: of system {number} of {batch.n_systems} and of it alone"
        _require_same(what, found, _predict(potential, alone), tolerance)


def check_smooth_cutoff(
    potential: Potential, state: State, tolerances: Tolerances | None = None, seed: int = 0
) -> None:
    """Energy and forces are continuous as two clusters approach and their first pair enters the cutoff."""
    tolerances = tolerances or Tolerances.of(potential)
    cluster = _cluster(state.select([0]).detach())
    direction = _Random(state, seed).rotation()[0]
    contact = _contact(cluster, direction, potential.cutoff)
    outside = _two_copies(cluster, (contact + JUMP_WINDOW) * direction)
    inside = _two_copies(cluster, (contact - JUMP_WINDOW) * direction)
    _require_same(
        f"smooth cutoff: on the two sides of a pair's way through {potential.cutoff:g} Å",
        _predict(potential, inside),
        _predict(potential, outside),
        tolerances.jump,
        energy_matters=False,
    )


def check_extensive(potential: Potential, state: State, tolerances: Tolerances | None = None) -> None:
    """Two copies far apart have twice the energy; so has a periodic system described by a doubled cell."""
    tolerance = (tolerances or Tolerances.of(potential)).symmetry
    for number in range(state.n_systems):
        system = state.select([number]).detach()
        cluster = _cluster(system)
        size = torch.pdist(cluster.positions).max() if cluster.n_atoms > 1 else 0.0
        apart = cluster.positions.new_tensor([1.0, 0.0, 0.0]) * (size + 2.0 * potential.cutoff)
        twice = _twice(_predict(potential, cluster))
        found = _predict(potential, _two_copies(cluster, apart))
        _require_same(f"extensive: of two far copies of system {number}", found, twice, tolerance)
        for axis in system.pbc[0].nonzero().flatten().tolist():
            double = _two_copies(system, system.cell[0, axis])
            cell = system.cell.clone()
            cell[0, axis] *= 2.0
            found = _predict(potential, double.replace(cell=cell))
            twice = _twice(_predict(potential, system))
            what = f"extensive: of system {number} doubled along its cell vector {'abc'[axis]}"
            _require_same(what, found, twice, tolerance)


# --- roll-outs ----------------------------------------------------------------------------------------


def check_rollout_gradient(
    potential: Potential,
    state: State,
    tolerances: Tolerances | None = None,
    dt: float = 0.5 * FS,
    n_steps: int = 3,
    seed: int = 0,
) -> None:
    """The gradient through a whole roll-out (``Full``) against finite differences."""
    tolerances = tolerances or Tolerances.of(potential)
    neighbors = FrozenNeighbors(potential.cutoff)
    loss = _RolloutLoss(potential, state.detach(), dt, n_steps, seed)
    for name, gradients in loss.gradients(Full(), neighbors).items():
        variables = loss.variables[name]
        draw = loss.random.like_parameter if name == "parameters" else loss.random.like
        along = [draw(variable) for variable in variables]
        change = _slope(lambda: loss(Full(), neighbors), variables, along, tolerances.step)
        what = f"roll-out gradient: autograd and finite differences over {n_steps} steps in the {name}"
        _require_slope(what, gradients, along, change, tolerances)


def check_adjoint(
    potential: Potential,
    state: State,
    tolerances: Tolerances | None = None,
    dt: float = 0.5 * FS,
    n_steps: int = 3,
    seed: int = 0,
) -> None:
    """``Adjoint``, which evaluates the potential again to go backward, gives the gradient of ``Full``."""
    tolerance = (tolerances or Tolerances.of(potential)).symmetry
    loss = _RolloutLoss(potential, state.detach(), dt, n_steps, seed)
    by_full = loss.gradients(Full(), VerletNeighbors(potential.cutoff))
    by_adjoint = loss.gradients(Adjoint(), VerletNeighbors(potential.cutoff))
    for name in by_full:
        full, adjoint = _flat(by_full[name]), _flat(by_adjoint[name])
        allowed = tolerance * float(full.abs().max())
        _require_close(f"adjoint: the gradients of Adjoint and Full in the {name}", adjoint, full, allowed)


class _RolloutLoss:
    """A random linear function of all that a roll-out yields, and the variables it depends on."""

    def __init__(self, potential: Potential, state: State, dt: float, n_steps: int, seed: int) -> None:
        self.potential, self.integrator, self.n_steps = potential, VelocityVerlet(dt), n_steps
        self.random = random = _Random(state, seed)
        per_atom, per_system = state.positions, state.cell[:, 0, 0]
        self.weights = [
            [random.like(t) for t in (per_atom, per_atom, per_atom, per_system)] for _ in range(n_steps + 1)
        ]
        self.start = state.replace(
            positions=state.positions.clone().requires_grad_(),
            velocities=state.velocities.clone().requires_grad_(),
        )
        self.variables: dict[str, list[Tensor]] = {
            "start positions": [self.start.positions],
            "start velocities": [self.start.velocities],
        }
        if trained := _trained(potential):
            self.variables["parameters"] = trained

    def gradients(self, backprop: Backprop, neighbors: Neighbors) -> dict[str, list[Tensor]]:
        """By the name of the variables."""
        everything = [variable for group in self.variables.values() for variable in group]
        with torch.enable_grad():
            found = iter(_gradients(self(backprop, neighbors), everything))
        return {name: [next(found) for _ in group] for name, group in self.variables.items()}

    def __call__(self, backprop: Backprop, neighbors: Neighbors) -> Tensor:
        total = self.start.positions.new_zeros(())
        frames = rollout(
            self.potential, self.start, self.integrator, self.n_steps, backprop=backprop, neighbors=neighbors
        )
        for frame, weights in zip(frames, self.weights, strict=True):
            state, prediction = frame.state, frame.prediction
            results = (state.positions, state.velocities, prediction.forces, prediction.energy)
            for result, weight in zip(results, weights, strict=True):
                total = total + (result * weight).sum()
        return total


# --- structures made of the one given -----------------------------------------------------------------


def _cluster(system: State) -> State:
    """The same atoms without periodic images."""
    return system.replace(cell=torch.zeros_like(system.cell), pbc=torch.zeros_like(system.pbc))


def _tensors(state: State) -> dict[str, Tensor]:
    """Fields of the state by name, without those that are absent."""
    return {name: tensor for name, tensor in vars(state).items() if tensor is not None}


def _with_atoms(state: State, atoms: Tensor) -> State:
    """The state with these of its atoms, in this order, each as often as it is named."""
    per_atom = ("positions", "velocities", "masses", "atomic_numbers", "system_idx", "fixed")
    found = _tensors(state)
    return state.replace(**{name: found[name][atoms] for name in per_atom if name in found})


def _two_copies(system: State, offset: Tensor) -> State:
    """One system that holds the atoms of ``system`` twice, the second time moved by ``offset`` [3]."""
    atoms = torch.arange(system.n_atoms, device=system.device)
    twice = _with_atoms(system, atoms.repeat(2))
    return twice.replace(positions=torch.cat([system.positions, system.positions + offset]))


def _twice(prediction: Prediction) -> Prediction:
    return Prediction(2.0 * prediction.energy, prediction.forces.repeat(2, 1))


def _companions(system: State, random: _Random) -> list[State]:
    """Systems of other size, elements, cell and periodicity than ``system``."""
    strained = system.replace(positions=1.03 * system.positions, cell=1.03 * system.cell)
    moved = system.positions + 0.02 * random.like(system.positions)
    exchanged = _cluster(system).replace(positions=moved, atomic_numbers=system.atomic_numbers.flip(0))
    if system.n_atoms == 1:
        return [strained, exchanged]
    smaller = _with_atoms(system, torch.arange(system.n_atoms - 1, device=system.device))
    return [smaller, strained, exchanged]


def _contact(cluster: State, direction: Tensor, cutoff: float) -> float:
    """How far a copy is moved along ``direction`` when its first pair with the original is at the cutoff.

    |r + t e| = cutoff for r = r_j − r_i has the later root t = −r·e + √((r·e)² + cutoff² − r²).
    """
    r = (cluster.positions[None, :] - cluster.positions[:, None]).reshape(-1, 3)
    along = r @ direction
    inside_root = along**2 + cutoff**2 - (r**2).sum(-1)
    meets = inside_root >= 0
    return float((-along[meets] + inside_root[meets].sqrt()).max())


class _Random:
    """Reproducible random numbers on the device of a state."""

    def __init__(self, state: State, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._device = state.device

    def _normal(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64).to(self._device)

    def like(self, tensor: Tensor) -> Tensor:
        return self._normal(tensor.shape)

    def like_parameter(self, parameter: Tensor) -> Tensor:
        """Of the size of the parameter's numbers, so that one step suits all parameters."""
        size = float(parameter.detach().double().square().mean().sqrt()) or 1.0
        return (size * self._normal(parameter.shape)).to(parameter.dtype)

    def fractions(self, n: int) -> Tensor:
        return torch.rand(n, generator=self._generator, dtype=torch.float64).to(self._device)

    def whole_numbers(self, *shape: int) -> Tensor:
        return torch.randint(-2, 3, shape, generator=self._generator).double().to(self._device)

    def rotation(self) -> Tensor:
        q, _ = torch.linalg.qr(self._normal((3, 3)))
        return q * torch.linalg.det(q)  # det is ±1, and −1 to the third power turns it


# --- numbers ------------------------------------------------------------------------------------------


def _predict(potential: Potential, state: State) -> Prediction:
    state = state.detach()
    with torch.no_grad():
        return potential(state, neighbor_list(state, potential.cutoff))


def _trained(potential: Potential) -> list[Tensor]:
    return [parameter for parameter in potential.parameters() if parameter.requires_grad]


def _sum_by_system(state: State, per_atom: Tensor) -> Tensor:
    return per_atom.new_zeros(state.n_systems).index_add(0, state.system_idx, per_atom)


def _slope(
    function: Callable[[], Tensor], variables: Sequence[Tensor], along: Sequence[Tensor], h: float
) -> Tensor:
    """Change of a function per move of its variables along a direction; the error goes with h⁴."""

    def between(way: float) -> Tensor:
        with _moved(variables, along, way):
            ahead = function()
        with _moved(variables, along, -way):
            return ahead - function()

    with torch.no_grad():
        return (8.0 * between(h) - between(2.0 * h)) / (12.0 * h)


def _gradients(value: Tensor, variables: Sequence[Tensor]) -> list[Tensor]:
    """Gradients; zero for a variable that the value does not depend on."""
    return list(torch.autograd.grad(value, list(variables), allow_unused=True, materialize_grads=True))


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


@contextmanager
def _moved(variables: Sequence[Tensor], along: Sequence[Tensor], h: float) -> Iterator[None]:
    """The variables moved by h times a direction, and afterwards exactly as they were."""
    before = [variable.detach().clone() for variable in variables]
    with torch.no_grad():
        for variable, direction in zip(variables, along, strict=True):
            variable.add_(direction, alpha=h)
        try:
            yield
        finally:
            for variable, old in zip(variables, before, strict=True):
                variable.copy_(old)


def _require(condition: bool, complaint: str) -> None:
    # Not a bare assert: python -O would drop it.
    if not condition:
        raise AssertionError(complaint)


def _require_slope(
    what: str,
    gradients: Sequence[Tensor],
    along: Sequence[Tensor],
    difference: Tensor,
    tolerances: Tolerances,
) -> None:
    """Gradient · direction equals the finite difference, relative to the size the product has by chance."""
    products = _flat(gradients) * _flat(along)
    scale = max(float(products.norm()), float(difference.abs()))
    _require_close(what, products.sum(), difference, tolerances.derivative * scale)


def _require_same(
    what: str, found: Prediction, expected: Prediction, tolerance: float, *, energy_matters: bool = True
) -> None:
    """Energies agree relative to their size (or to a force times 1 Å), forces to the largest force."""
    force = max(float(expected.forces.detach().abs().max()), SMALLEST_FORCE)
    energy = expected.energy.detach().abs().clamp(min=force) if energy_matters else force
    _require_close(f"{what}: the energies", found.energy, expected.energy, tolerance * energy, "eV")
    _require_close(f"{what}: the forces", found.forces, expected.forces, tolerance * force, "eV/Å")


def _require_close(
    what: str, found: Tensor, expected: Tensor, allowed: Tensor | float, unit: str = ""
) -> None:
    error = (found.detach() - expected.detach()).abs()
    allowed = torch.as_tensor(allowed, dtype=error.dtype, device=error.device).expand_as(error)
    # NaN compares False: it is not close to anything.
    if bool((error <= allowed).all()):
        return
    worst = (error - allowed).nan_to_num(nan=torch.inf).argmax()
    values = [float(t.detach().flatten()[worst]) for t in (found, expected, error, allowed)]
    numbers = f"{values[0]:.10g} and {values[1]:.10g}, differ by {values[2]:.1e} (allowed {values[3]:.1e})"
    raise AssertionError(f"{what}: {numbers}{' ' + unit if unit else ''}")
