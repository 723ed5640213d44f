"""The loss: numbers worked out by hand, and a joined batch is the sum of its parts with the joined totals."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from dyntrain.data.segments import Targets
from dyntrain.loss import Loss, StepWeights, Term, counts, no_counts
from dyntrain.potential import Prediction
from dyntrain.rollout import Frame
from dyntrain.state import State, concatenate

H2 = State.from_arrays(np.zeros((2, 3)), [1, 1], [1.0, 1.0])
CH = State.from_arrays(np.zeros((2, 3)), [6, 1], [12.0, 1.0])
BOTH = concatenate([H2, CH])
"""Three H and one C in two systems."""


def frame(state: State, *, step: int = 0, systems: list[int] | None = None, **values: Tensor) -> Frame:
    """A frame with zero forces and energy but for what is given."""
    moved = {name: values[name] for name in ("positions", "velocities") if name in values}
    prediction = Prediction(
        values.get("energy", torch.zeros(state.n_systems, dtype=torch.float64)),
        values.get("forces", torch.zeros(state.n_atoms, 3, dtype=torch.float64)),
    )
    numbers = torch.tensor(range(state.n_systems) if systems is None else systems)
    return Frame(step, state.replace(**moved), prediction, numbers)


def no_targets(state: State, length: int = 1) -> Targets:
    per_atom = [torch.zeros(length, state.n_atoms, 3, dtype=torch.float64) for _ in range(3)]
    return Targets(*per_atom, torch.zeros(length, state.n_systems, dtype=torch.float64))


def numbers(rows: list[list[float]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_the_stress_by_hand() -> None:
    term = Term("stress", weight=2.0)
    loss = Loss([Term("forces"), term])
    assert (loss.stress_term(1), loss.stress_term(2)) == (term, None)
    reference = numbers([[1, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 6]])
    targets = replace(no_targets(BOTH), stress=reference[None])
    stress = torch.zeros(2, 6, dtype=torch.float64)
    whole, part = frame(BOTH), frame(CH, systems=[1])
    assert float(loss.at_stress(term, stress, whole, targets, counts(BOTH))) == pytest.approx(2 * 7 / 12)
    # Where a system has burst, the rest keeps its weight in the whole batch.
    assert float(loss.at_stress(term, stress[:1], part, targets, counts(BOTH))) == pytest.approx(1.0)
    assert set(loss.at(whole, targets, BOTH, counts(BOTH), 1)) == {"forces"}


@pytest.mark.parametrize("step", [1, 5])
def test_deviations_as_the_constant_force_that_makes_them(step: int) -> None:
    """Velocity Verlet under a force that is wrong by a constant; systems with time steps of their own."""
    wrong = numbers([[0.3, 0, 0], [0, -0.2, 0], [0.1, 0.1, 0], [0, 0, 0.4]])
    dt = numbers([[0.5, 2.0]])[0]
    time = (step * dt)[BOTH.system_idx][:, None]
    found = frame(
        BOTH,
        step=step,
        positions=wrong / BOTH.masses[:, None] * time**2 / 2,
        velocities=wrong / BOTH.masses[:, None] * time,
    )
    for quantity in ("positions", "velocities"):
        loss = Loss([Term(quantity, as_force=True)])
        part = loss.at(found, no_targets(BOTH, 6), BOTH, counts(BOTH), 6, dt)[quantity]
        assert float(part) == pytest.approx(float(wrong.abs().mean()), rel=1e-12)
        with pytest.raises(ValueError, match="time between the frames"):
            loss.at(found, no_targets(BOTH, 6), BOTH, counts(BOTH), 6)
        # A system that burst leaves the other's weight, and its time step, alone.
        survivor = frame(CH, step=step, systems=[1], **{quantity: getattr(found.state, quantity)[2:]})
        part = loss.at(survivor, no_targets(BOTH, 6), BOTH, counts(BOTH), 6, dt)[quantity]
        assert float(part) == pytest.approx(float(wrong[2:].abs().sum()) / 12, rel=1e-12)


def test_forces_that_were_not_recorded_teach_nothing() -> None:
    missing = replace(no_targets(BOTH), unlabelled=torch.tensor([False, False, True, False]))
    for term, value in ((Term("forces"), 2.5 / 4), (Term("forces", per_element=True), 2.5 / 3)):
        parts = Loss([term]).at(frame(BOTH, forces=FORCES), missing, BOTH, counts(BOTH), 1)
        assert float(parts["forces"]) == pytest.approx(value)
    left = Loss([Term("forces")]).at(
        frame(CH, systems=[1], forces=FORCES[2:]), missing, BOTH, counts(BOTH), 1
    )
    assert float(left["forces"]) == pytest.approx(0.5 / 4)


FORCES = numbers([[3, 0, 0], [0, -3, 0], [6, 6, 0], [0, 0, 1.5]])
# Mean |component| of each atom: 1, 1, 4 (carbon), 0.5.


@pytest.mark.parametrize(
    ("term", "value"),
    [
        (Term("forces"), (1 + 1 + 4 + 0.5) / 4),
        (Term("forces", weight=3.0), 3 * (1 + 1 + 4 + 0.5) / 4),
        (Term("forces", per_element=True), (1 + 1 + 0.5) / 3 + 4),
        (Term("forces", kind="l2"), (3 + 3 + 24 + 0.75) / 4),
        (Term("forces", kind="l2", per_element=True), (3 + 3 + 0.75) / 3 + 24),
        # Huber with δ = 2: δ (|Δ| − δ/2) beyond it, Δ²/2 below.
        (Term("forces", kind="huber", delta=2.0), (4 / 3 + 4 / 3 + 20 / 3 + 1.125 / 3) / 4),
    ],
)
def test_forces_by_hand(term: Term, value: float) -> None:
    parts = Loss([term]).at(frame(BOTH, forces=FORCES), no_targets(BOTH), BOTH, counts(BOTH), 1)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx({"forces": value})


@pytest.mark.parametrize("quantity", ["positions", "velocities"])
def test_positions_and_velocities_are_compared_like_forces(quantity: str) -> None:
    term = Term(quantity, per_element=True)  # type: ignore[arg-type]
    found = frame(BOTH, step=1, **{quantity: FORCES})
    parts = Loss([term]).at(found, no_targets(BOTH, 2), BOTH, counts(BOTH), 2)
    assert float(parts[quantity]) == pytest.approx((1 + 1 + 0.5) / 3 + 4)


def test_energies_are_per_atom_and_a_mean_over_systems() -> None:
    water = State.from_arrays(np.zeros((3, 3)), [8, 1, 1], [16.0, 1.0, 1.0])
    state = concatenate([H2, water])
    energies = torch.tensor([2.0, -6.0], dtype=torch.float64)
    for kind, value in (("l1", (1 + 2) / 2), ("l2", (1 + 4) / 2)):
        loss = Loss([Term("energy", kind=kind)])  # type: ignore[arg-type]
        parts = loss.at(frame(state, energy=energies), no_targets(state), state, counts(state), 1)
        assert float(parts["energy"]) == pytest.approx(value)


def test_steps_are_weighted_once_there_are_several() -> None:
    weights = StepWeights(50.0, 2.0)
    assert [weights.at(k, 1) for k in range(1)] == [1.0]
    assert [weights.at(k, 3) for k in range(3)] == [50.0, 2.0, 2.0]
    assert (weights.total(1), weights.total(3)) == (1.0, 54.0)
    loss = Loss([Term("forces")], weights)
    plain = (1 + 1 + 4 + 0.5) / 4
    for step, length, factor in ((0, 1, 1), (0, 3, 50), (2, 3, 2)):
        found = frame(BOTH, step=step, forces=FORCES)
        part = loss.at(found, no_targets(BOTH, length), BOTH, counts(BOTH), length)["forces"]
        assert float(part) == pytest.approx(factor * plain)


def test_a_term_of_single_frames_leaves_longer_segments() -> None:
    loss = Loss([Term("forces"), Term("energy", only_single_frames=True)])
    assert [t.quantity for t in loss.active_terms(1)] == ["forces", "energy"]
    assert [t.quantity for t in loss.active_terms(2)] == ["forces"]
    assert set(loss.at(frame(BOTH), no_targets(BOTH, 2), BOTH, counts(BOTH), 2)) == {"forces"}


def test_counts_are_atoms_by_element_and_systems() -> None:
    found = counts(BOTH)
    assert {i: int(n) for i, n in enumerate(found) if n} == {1: 3, 6: 1, len(found) - 1: 2}
    assert torch.equal(counts(H2) + counts(CH), found)
    assert torch.equal(no_counts(), 0 * found)


ALL_TERMS = [
    Term("forces", per_element=True, kind="huber"),
    Term("energy", weight=0.3),
    Term("positions", kind="l2"),
    Term("velocities", weight=2.0),
]


def random_state(elements: list[int], random: np.random.Generator) -> State:
    n = len(elements)
    return State.from_arrays(
        random.normal(size=(n, 3)), elements, np.ones(n), velocities=random.normal(size=(n, 3))
    )


def test_a_joined_batch_is_the_sum_of_its_parts_with_the_joined_totals() -> None:
    """However it is divided, also where the parts differ in size and composition."""
    random = np.random.default_rng(0)
    states = [random_state(elements, random) for elements in ([1], [6, 1, 1], [8, 8], [6, 1, 8, 1, 1])]
    length, loss = 3, Loss(ALL_TERMS, StepWeights(5.0, 0.5))
    targets, frames = [], []
    for state in states:
        n, per_atom = state.n_atoms, [torch.from_numpy(random.normal(size=(length, state.n_atoms, 3)))] * 3
        targets.append(Targets(*per_atom, torch.from_numpy(random.normal(size=(length, 1)))))
        forces, energy = (torch.from_numpy(random.normal(size=shape)) for shape in ((n, 3), (1,)))
        frames.append(frame(state, step=1, forces=forces, energy=energy))

    totals = torch.stack([counts(state) for state in states]).sum(0)

    def joined(members: list[int]) -> dict[str, Tensor]:
        state = concatenate([states[m] for m in members])
        target = Targets(
            *(
                torch.cat([getattr(targets[m], name) for m in members], dim=1)
                for name in ("positions", "velocities", "forces", "energies")
            )
        )
        prediction = Prediction(
            torch.cat([frames[m].prediction.energy for m in members]),
            torch.cat([frames[m].prediction.forces for m in members]),
        )
        whole = Frame(1, state, prediction, torch.arange(len(members)))
        return loss.at(whole, target, state, totals, length)

    whole = joined([0, 1, 2, 3])
    for division in ([[0], [1, 2, 3]], [[0, 3], [1, 2]], [[0], [1], [2], [3]]):
        parts = [joined(members) for members in division]
        for name in whole:
            torch.testing.assert_close(sum(p[name] for p in parts), whole[name], rtol=1e-14, atol=0)


def test_a_system_that_burst_contributes_nothing_and_leaves_the_others_as_they_are() -> None:
    random = np.random.default_rng(1)
    target = no_targets(BOTH, 2)
    forces = torch.from_numpy(random.normal(size=(4, 3)))
    energy = torch.tensor([3.0, 5.0], dtype=torch.float64)
    loss = Loss([Term("forces", per_element=True), Term("energy")])
    whole = frame(BOTH, step=1, forces=forces, energy=energy)
    both = loss.at(whole, target, BOTH, counts(BOTH), 2)
    left = {}
    for number, system in enumerate((H2, CH)):
        atoms = slice(2 * number, 2 * number + 2)
        survivor = frame(system, step=1, systems=[number], forces=forces[atoms], energy=energy[[number]])
        left[number] = loss.at(survivor, target, BOTH, counts(BOTH), 2)
    for name in both:
        torch.testing.assert_close(left[0][name] + left[1][name], both[name], rtol=1e-14, atol=0)
    assert float(left[1]["energy"]) == pytest.approx(5.0 / 2 / 2)
