"""The roll-out: frames, and gradients through all of it, for each way of going backward."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dyntrain.integrators import Kicks, VelocityVerlet
from dyntrain.models.analytic import LennardJones
from dyntrain.neighbors import FrozenNeighbors, NeighborList, VerletNeighbors, neighbor_list
from dyntrain.potential import Conservative, Potential, Prediction
from dyntrain.rollout import Adjoint, Backprop, Frame, Full, StopGradient, Truncated, rollout
from dyntrain.state import State, concatenate
from dyntrain.units import FS
from systems import argon_cluster, argon_crystal

DT = 10.0 * FS
EVERY_BACKPROP = [StopGradient(), Truncated(3), Full(), Adjoint()]
every_backprop = pytest.mark.parametrize("backprop", EVERY_BACKPROP, ids=repr)
through_all = pytest.mark.parametrize("backprop", [Full(), Adjoint()], ids=repr)


def lennard_jones() -> Conservative:
    return Conservative(LennardJones(cutoff=7.0))


def random_kicks(state: State, n_steps: int, seed: int = 0) -> Kicks:
    random = np.random.default_rng(seed)
    shape = (n_steps, state.n_atoms, 3)
    return Kicks(
        torch.from_numpy(random.normal(scale=0.01, size=shape)),
        torch.from_numpy(random.normal(scale=0.002, size=shape)),
    )


def frame_loss(frame: Frame) -> Tensor:
    """Something of everything, different in each step, in numbers of about one."""
    step, state, prediction = frame.step, frame.state, frame.prediction
    target = torch.linspace(-0.02, 0.02, 3 * state.n_atoms, dtype=torch.float64).view(-1, 3)
    return (
        1e4 * (prediction.forces - target * np.cos(step)).pow(2).sum()
        + 1e-2 * (state.positions - target).pow(2).sum()
        + 1e3 * (state.velocities * target).sum()
        + (1.0 + step) * prediction.energy.pow(2).sum()
    )


def backward_by_blocks(frames: Iterable[Frame], block: int | None) -> None:
    """What a trainer does: backward as soon as the graph is cut, and at the end."""
    pending: list[Tensor] = []
    for frame in frames:
        pending.append(frame_loss(frame))
        if block is not None and (frame.step + 1) % block == 0:
            torch.stack(pending).sum().backward()
            pending = []
    if pending:
        torch.stack(pending).sum().backward()


def gradients_of(
    backprop: Backprop,
    start: State,
    n_steps: int,
    potential: Potential | None = None,
    **options: object,
) -> list[Tensor]:
    """With respect to start positions, start velocities and each parameter."""
    potential = potential or lennard_jones()
    start = start.replace(
        positions=start.positions.clone().requires_grad_(),
        velocities=start.velocities.clone().requires_grad_(),
    )
    frames = rollout(potential, start, VelocityVerlet(DT), n_steps, backprop=backprop, **options)
    backward_by_blocks(frames, backprop.block)
    tensors = [start.positions, start.velocities, *potential.parameters()]
    return [torch.zeros_like(t) if t.grad is None else t.grad for t in tensors]


def relative_error(found: Tensor, expected: Tensor) -> float:
    assert float(expected.abs().max()) > 0.0
    return float((found - expected).abs().max() / expected.abs().max())


# --- frames -------------------------------------------------------------------------------------------


@every_backprop
def test_the_frames_are_the_steps_of_velocity_verlet(backprop: Backprop) -> None:
    start, potential, integrator = argon_cluster(5), lennard_jones(), VelocityVerlet(DT)
    kicks = random_kicks(start, 6)
    frames = list(rollout(potential, start, integrator, 4, backprop=backprop, kicks=kicks))
    assert [frame.step for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.systems.tolist() for frame in frames] == [[0]] * 5
    state = start
    for k, frame in enumerate(frames):
        prediction = potential(state, neighbor_list(state, potential.cutoff))
        for found, expected in (
            (frame.state.positions, state.positions),
            (frame.state.velocities, state.velocities),
            (frame.prediction.forces, prediction.forces),
            (frame.prediction.energy, prediction.energy),
        ):
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
        moved = integrator.drift(state, prediction.forces, kicks.positions[k]).detach()
        new = potential(moved, neighbor_list(moved, potential.cutoff)).forces
        state = integrator.finish(moved, prediction.forces, new, kicks.velocities[k]).detach()


@every_backprop
def test_no_steps_give_the_start(backprop: Backprop) -> None:
    start = argon_cluster(5)
    (frame,) = rollout(lennard_jones(), start, VelocityVerlet(DT), 0, backprop=backprop)
    assert torch.equal(frame.state.positions, start.positions)
    assert frame.prediction.forces.requires_grad


@every_backprop
def test_kicks_shorter_than_the_roll_out_are_refused(backprop: Backprop) -> None:
    start = argon_cluster(3)
    with pytest.raises(ValueError, match="a roll-out of 5 steps needs as many kicks, got 4"):
        rollout(
            lennard_jones(), start, VelocityVerlet(DT), 5, backprop=backprop, kicks=random_kicks(start, 4)
        )


@every_backprop
def test_without_grad_nothing_keeps_a_graph(backprop: Backprop) -> None:
    start = argon_cluster(5)
    start = start.replace(positions=start.positions.clone().requires_grad_())
    with torch.no_grad():
        for frame in rollout(lennard_jones(), start, VelocityVerlet(DT), 3, backprop=backprop):
            results = (frame.state.velocities, frame.prediction.forces, frame.prediction.energy)
            assert not any(tensor.requires_grad for tensor in results)
            assert frame.state.positions.grad_fn is None


@every_backprop
def test_each_system_of_a_batch_moves_as_it_does_alone(backprop: Backprop) -> None:
    parts = [argon_cluster(5), argon_crystal(), argon_cluster(3, seed=1)]
    batch = concatenate(parts)
    kicks = random_kicks(batch, 10)
    together = list(rollout(lennard_jones(), batch, VelocityVerlet(DT), 10, backprop=backprop, kicks=kicks))
    for number, part in enumerate(parts):
        atoms = batch.atoms_of(torch.tensor([number]))
        alone = rollout(
            lennard_jones(),
            part,
            VelocityVerlet(DT),
            10,
            backprop=backprop,
            kicks=Kicks(kicks.positions[:, atoms], kicks.velocities[:, atoms]),
        )
        for frame, in_batch in zip(alone, together, strict=True):
            for found, expected in (
                (in_batch.state.positions[atoms], frame.state.positions),
                (in_batch.state.velocities[atoms], frame.state.velocities),
                (in_batch.prediction.forces[atoms], frame.prediction.forces),
                (in_batch.prediction.energy[number], frame.prediction.energy[0]),
            ):
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@through_all
def test_frozen_neighbors_are_used_in_every_step(backprop: Backprop) -> None:
    """Also where the adjoint evaluates again."""
    seen: list[NeighborList] = []

    class Watching(Conservative):
        def forward(self, state: State, neighbors: NeighborList) -> Prediction:
            seen.append(neighbors)
            return super().forward(state, neighbors)

    neighbors = FrozenNeighbors(7.0)
    gradients_of(
        backprop, argon_cluster(8), 4, potential=Watching(LennardJones(cutoff=7.0)), neighbors=neighbors
    )
    assert len(seen) == (10 if isinstance(backprop, Adjoint) else 5)
    assert all(used is seen[0] for used in seen)


# --- gradients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kicked", [False, True], ids=["free", "kicked"])
@through_all
def test_the_gradient_of_a_whole_roll_out_is_that_of_finite_differences(
    backprop: Backprop, kicked: bool
) -> None:
    """Each start coordinate, start velocity and parameter, to 1e-8 of the largest in its tensor."""
    n_steps, h = 8, 1e-3
    start, potential = argon_cluster(4), lennard_jones()
    kicks = random_kicks(start, n_steps) if kicked else None
    found = gradients_of(backprop, start, n_steps, potential=potential, kicks=kicks)
    variables = [start.positions, start.velocities, *(p.data for p in potential.parameters())]

    @torch.no_grad()
    def loss() -> Tensor:
        frames = rollout(potential, start, VelocityVerlet(DT), n_steps, backprop=StopGradient(), kicks=kicks)
        return torch.stack([frame_loss(frame) for frame in frames]).sum()

    for variable, gradient in zip(variables, found, strict=True):
        flat, expected = variable.view(-1), torch.zeros_like(gradient)
        # A velocity moves an atom by velocity × dt; a depth of 0.01 eV wants a step to match.
        step = h * float(flat.abs().max().clamp(max=1.0))
        for k in range(flat.numel()):
            value, values = float(flat[k]), {}
            for multiple in (-2, -1, 1, 2):
                flat[k] = value + multiple * step
                values[multiple] = loss()
            flat[k] = value
            near, far = values[1] - values[-1], values[2] - values[-2]
            expected.view(-1)[k] = (8.0 * near - far) / (12.0 * step)
        assert relative_error(gradient, expected) < 1e-8


def test_adjoint_gives_the_gradient_of_full() -> None:
    """A batch of systems of other sizes and cells, over enough steps for neighbours to change."""
    batch = concatenate([argon_cluster(8), argon_crystal(), argon_cluster(3, seed=1, speed=0.1)])
    kicks = random_kicks(batch, 40)
    neighbors = VerletNeighbors(7.0, skin=0.3)
    by_full = gradients_of(Full(), batch, 40, kicks=kicks, neighbors=neighbors)
    assert neighbors.n_rebuilds > 3
    by_adjoint = gradients_of(Adjoint(), batch, 40, kicks=kicks)
    for full, adjoint in zip(by_full, by_adjoint, strict=True):
        assert relative_error(adjoint, full) < 1e-12


@through_all
def test_the_gradient_of_a_batch_is_the_sum_of_those_alone(backprop: Backprop) -> None:
    parts = [argon_cluster(5), argon_crystal(), argon_cluster(3, seed=1)]

    def by_parameters(state: State) -> list[Tensor]:
        potential = lennard_jones()
        frames = rollout(potential, state, VelocityVerlet(DT), 10, backprop=backprop)
        # frame_loss has a target that counts atoms through; energies and forces alone are a sum of systems.
        loss = torch.stack([f.prediction.forces.pow(2).sum() for f in frames]).sum()
        return list(torch.autograd.grad(loss, list(potential.parameters())))

    alone = [by_parameters(part) for part in parts]
    for together, *separate in zip(by_parameters(concatenate(parts)), *alone, strict=True):
        assert relative_error(together, torch.stack(separate).sum(0)) < 1e-12


@pytest.mark.parametrize("every", [1, 2, 3, 5, 9])
def test_truncated_is_a_chain_of_whole_gradients(every: int) -> None:
    """Detach by hand after so many frames: the same gradient."""
    start, n_steps, integrator = argon_cluster(5), 7, VelocityVerlet(DT)
    kicks = random_kicks(start, n_steps)
    found = gradients_of(Truncated(every), start, n_steps, kicks=kicks)

    potential = lennard_jones()
    first = state = start.replace(
        positions=start.positions.clone().requires_grad_(),
        velocities=start.velocities.clone().requires_grad_(),
    )
    prediction = potential(state, neighbor_list(state.detach(), potential.cutoff))
    losses = [frame_loss(Frame(0, state, prediction, torch.tensor([0])))]
    for k in range(n_steps):
        forces = prediction.forces
        if (k + 1) % every == 0:
            state, forces = state.detach(), forces.detach()
        moved = integrator.drift(state, forces, kicks.positions[k])
        prediction = potential(moved, neighbor_list(moved.detach(), potential.cutoff))
        state = integrator.finish(moved, forces, prediction.forces, kicks.velocities[k])
        losses.append(frame_loss(Frame(k + 1, state, prediction, torch.tensor([0]))))
    by_hand = torch.autograd.grad(
        torch.stack(losses).sum(), [first.positions, first.velocities, *potential.parameters()]
    )
    for gradient, expected in zip(found, by_hand, strict=True):
        assert relative_error(gradient, expected) < 1e-13


def test_stop_gradient_is_truncated_after_every_frame_and_truncated_in_the_long_run_full() -> None:
    start = argon_cluster(5)
    for one, other in ((StopGradient(), Truncated(1)), (Truncated(8), Full())):
        pairs = zip(gradients_of(one, start, 7), gradients_of(other, start, 7), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


class _FirstForce(Potential):
    """Lennard-Jones with a trainable addition to the forces at the start, and only there."""

    cutoff = 7.0

    def __init__(self, start: State) -> None:
        super().__init__()
        self.rest = lennard_jones()
        self.start = start
        self.addition = nn.Parameter(torch.zeros_like(start.positions))

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        energy, forces = self.rest(state, neighbors)
        at_start = torch.equal(state.positions.detach(), self.start.positions)
        return Prediction(energy, forces + self.addition if at_start else forces)


@pytest.mark.parametrize(
    ("backprop", "depends"),
    [(Full(), True), (Adjoint(), True), (Truncated(6), True), (Truncated(3), False), (StopGradient(), False)],
    ids=repr,
)
def test_the_last_loss_depends_on_the_first_force(backprop: Backprop, depends: bool) -> None:
    start = argon_cluster(5)

    def last_loss(potential: Potential) -> Tensor:
        *_, last = rollout(potential, start, VelocityVerlet(DT), 5, backprop=backprop)
        return frame_loss(last)

    potential = _FirstForce(start)
    (gradient,) = torch.autograd.grad(last_loss(potential), [potential.addition], allow_unused=True)
    if not depends:
        assert gradient is None
        return
    along = torch.from_numpy(np.random.default_rng(0).normal(size=start.positions.shape))
    values = []
    for h in (1e-5, -1e-5):
        with torch.no_grad():
            potential.addition.copy_(h * along)
            values.append(last_loss(potential))
    change = (values[0] - values[1]) / 2e-5
    torch.testing.assert_close((gradient * along).sum(), change, rtol=1e-6, atol=0)


@every_backprop
def test_the_gradient_is_the_same_however_often_it_is_taken(backprop: Backprop) -> None:
    """To the last bit: nothing is left over from the roll-out before."""
    potential, start, neighbors = lennard_jones(), argon_crystal(), VerletNeighbors(7.0, skin=0.2)
    taken = []
    for _ in range(3):
        potential.zero_grad()
        taken.append(gradients_of(backprop, start, 10, potential=potential, neighbors=neighbors))
        taken[-1] = [gradient.clone() for gradient in taken[-1]]
    for again in taken[1:]:
        assert all(torch.equal(a, b) for a, b in zip(taken[0], again, strict=True))


# --- the adjoint's own --------------------------------------------------------------------------------


def test_adjoint_evaluates_each_frame_once_forward_and_once_backward() -> None:
    potential = lennard_jones()
    with_graph: list[bool] = []
    potential.register_forward_hook(lambda *_: with_graph.append(torch.is_grad_enabled()))
    frames = list(rollout(potential, argon_cluster(5), VelocityVerlet(DT), 6, backprop=Adjoint()))
    assert with_graph == [False] * 7
    frame_loss(frames[-1]).backward()
    assert with_graph == [False] * 7 + [True] * 7


def test_adjoint_refuses_parameters_that_changed_before_the_backward_pass() -> None:
    """It would evaluate the new ones: autograd's own refusal for saved tensors."""
    potential = lennard_jones()
    *_, last = rollout(potential, argon_cluster(5), VelocityVerlet(DT), 2, backprop=Adjoint())
    with torch.no_grad():
        potential.energy_model.sigma.mul_(1.01)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        frame_loss(last).backward()


def test_adjoint_refuses_a_gradient_of_its_gradient() -> None:
    potential = lennard_jones()
    *_, last = rollout(potential, argon_cluster(5), VelocityVerlet(DT), 2, backprop=Adjoint())
    parameters = list(potential.parameters())
    first = torch.autograd.grad(frame_loss(last), parameters, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first[0].backward()


def test_adjoint_serves_a_potential_without_parameters() -> None:
    start = argon_cluster(5)
    frozen = lennard_jones().requires_grad_(False)
    gradients: dict[Backprop, Tensor] = {}
    for backprop in (Full(), Adjoint()):
        positions = start.positions.clone().requires_grad_()
        moving = start.replace(positions=positions)
        *_, last = rollout(frozen, moving, VelocityVerlet(DT), 5, backprop=backprop)
        (gradients[backprop],) = torch.autograd.grad(frame_loss(last), [positions])
    assert relative_error(gradients[Adjoint()], gradients[Full()]) < 1e-12


def test_truncated_needs_at_least_one_frame() -> None:
    with pytest.raises(ValueError, match=r"Truncated\(every\) needs every >= 1, got 0"):
        Truncated(0)


@every_backprop
def test_fixed_atoms_never_move(backprop: Backprop) -> None:
    fixed = torch.tensor([True, False, True, False, False])
    start = argon_cluster(5)
    start = start.replace(fixed=fixed, velocities=start.velocities.masked_fill(fixed[:, None], 0.0))
    frames = list(rollout(lennard_jones(), start, VelocityVerlet(DT), 20, backprop=backprop))
    for frame in frames:
        assert torch.equal(frame.state.positions[fixed], start.positions[fixed])
        assert not frame.state.velocities[fixed].any()
    assert (frames[-1].state.positions[~fixed] != start.positions[~fixed]).all()


def test_adjoint_gives_the_gradient_of_full_with_fixed_atoms() -> None:
    start = argon_cluster(5)
    start = start.replace(fixed=torch.tensor([True, False, True, False, False]))
    full, adjoint = (gradients_of(backprop, start, 8) for backprop in (Full(), Adjoint()))
    for a, b in zip(full, adjoint, strict=True):
        assert torch.isfinite(a).all()
        assert relative_error(b, a) < 1e-12


@every_backprop
def test_a_roll_out_follows_the_recorded_cells(backprop: Backprop) -> None:
    """A crystal that is squeezed and jiggled at will: with its kicks and cells the true potential follows."""
    crystal, potential, random = argon_crystal(), lennard_jones(), np.random.default_rng(0)
    positions, velocities, forces, cells = [], [], [], []
    for k in range(6):
        cell = crystal.cell * (1.0 - 0.004 * k)
        r = crystal.positions * (1.0 - 0.004 * k) + 0.02 * torch.from_numpy(random.normal(size=(8, 3)))
        state = crystal.replace(positions=r, cell=cell)
        with torch.no_grad():
            forces.append(potential(state, neighbor_list(state, potential.cutoff)).forces)
        positions.append(r)
        velocities.append(0.01 * torch.from_numpy(random.normal(size=(8, 3))))
        cells.append(cell)
    start = crystal.replace(positions=positions[0], velocities=velocities[0])
    verlet = VelocityVerlet(DT)
    kicks = verlet.record_kicks(torch.stack(positions), torch.stack(velocities), torch.stack(forces), start)
    followed = Kicks(kicks.positions, kicks.velocities, torch.stack(cells[1:]))
    frames = list(rollout(potential, start, verlet, 5, backprop=backprop, kicks=followed))
    for k, frame in enumerate(frames):
        assert torch.equal(frame.state.cell, cells[k])
        torch.testing.assert_close(frame.prediction.forces, forces[k], rtol=0, atol=1e-12)
    without = list(rollout(potential, start, verlet, 5, backprop=backprop, kicks=kicks))
    assert (without[-1].prediction.forces - forces[-1]).abs().max() > 1e-3
