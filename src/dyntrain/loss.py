"""The loss along a roll-out: named terms, each a sum divided by counts of the whole (joined) batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from dyntrain.data.segments import Targets
from dyntrain.rollout import Frame
from dyntrain.state import State

Kind = Literal["l1", "l2", "huber"]
Quantity = Literal["forces", "energy", "positions", "velocities", "stress"]

_N_ELEMENTS = 119


@dataclass(frozen=True)
class Term:
    """One term of the loss.

    quantity:    what is compared: forces (eV/Å), energy (eV per atom), positions (Å), velocities
                 (Å/ASE time), stress (eV/Å³, only while S = 1: it is not the roll-out that teaches it);
                 positions and velocities are zero at step 0 by construction
    kind:        mean |Δ|, mean Δ² or mean Huber(Δ; delta) over components
    per_element: mean over each element's atoms first, then the sum over elements (METHOD: so that two H
                 weigh as much as 49 C)
    only_single_frames: the term counts only while S = 1 (METHOD: energies)
    as_force: positions and velocities only: compared is the constant force error that makes the deviation in
                 the time t since the segment's start, 2 m Δr/t² or m Δv/t, eV/Å. Late steps then weigh as
                 early ones, and errors that last weigh more than those that change sign on the way.
    """

    quantity: Quantity
    weight: float = 1.0
    kind: Kind = "l1"
    per_element: bool = False
    delta: float = 0.1
    only_single_frames: bool = False
    as_force: bool = False


@dataclass(frozen=True)
class StepWeights:
    """Weight of step 0 and of each later one (METHOD: 50 and 1); with S = 1 the weight is 1."""

    first: float = 1.0
    later: float = 1.0

    def at(self, step: int, segment_length: int) -> float:
        if segment_length == 1:
            return 1.0
        return self.first if step == 0 else self.later

    def total(self, segment_length: int) -> float:
        """Sum of the weights of all steps."""
        return sum(self.at(step, segment_length) for step in range(segment_length))


def counts(state: State) -> Tensor:
    """How many things a batch averages over: atoms of each element, then systems; float64 [120].

    Counted before the roll-out and summed over processes, so that the loss and its gradient are those of
    the joined batch however it is divided, and a segment that bursts leaves the others' weight alone.
    """
    return _counted(state.atomic_numbers, state.n_systems)


@lru_cache(maxsize=16)
def _counted(atomic_numbers: Tensor, n_systems: int) -> Tensor:
    """Kept: batches of the same runs have one and the same tensor of atomic numbers (``collate``)."""
    found = torch.bincount(atomic_numbers, minlength=_N_ELEMENTS + 1).double()
    found[-1] = n_systems
    return found


def no_counts(device: torch.device | str = "cpu") -> Tensor:
    """``counts`` of nothing."""
    return torch.zeros(_N_ELEMENTS + 1, dtype=torch.float64, device=device)


def _deviation(delta: Tensor, term: Term) -> Tensor:
    if term.kind == "l1":
        return delta.abs()
    if term.kind == "l2":
        return delta * delta
    return torch.nn.functional.huber_loss(delta, torch.zeros_like(delta), reduction="none", delta=term.delta)


def _force_of_deviation(quantity: Quantity, frame: Frame, dt: Tensor | None) -> Tensor:
    """[n_atoms]: times a deviation this is the constant force error that makes it in the frame's time."""
    if dt is None:
        raise ValueError("a term with as_force needs the time between the frames")
    time = (frame.step * dt[frame.systems])[frame.state.system_idx]
    return frame.state.masses * (2.0 / time**2 if quantity == "positions" else 1.0 / time)


def _counted_atoms(state: State, totals: Tensor, term: Term) -> Tensor:
    """How many atoms the mean is over: of each atom's element [n_atoms, 1], or all []."""
    if term.per_element:
        return totals.index_select(0, state.atomic_numbers)[:, None]
    return totals[:_N_ELEMENTS].sum()


class Loss:
    """Σ_steps w(step) Σ_terms weight · mean deviation (METHOD: loss = Σ_k w(k) L(F̂(k), F_AIMD(k))).

    Args:
        terms: what is compared.
        step_weights: w(k).
    """

    def __init__(self, terms: Sequence[Term], step_weights: StepWeights | None = None) -> None:
        self.terms = tuple(terms)
        self.step_weights = step_weights or StepWeights()

    def active_terms(self, segment_length: int) -> list[Term]:
        return [
            t
            for t in self.terms
            if segment_length == 1 or not (t.only_single_frames or t.quantity == "stress")
        ]

    def stress_term(self, segment_length: int = 1) -> Term | None:
        """The term of the stress, where it counts."""
        return next((t for t in self.active_terms(segment_length) if t.quantity == "stress"), None)

    def at(
        self,
        frame: Frame,
        targets: Targets,
        start: State,
        totals: Tensor,
        segment_length: int,
        dt: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """This step's part of the loss by term, weights included; their sum is to be differentiated.

        A stress, which frames do not hold, is left to ``at_stress``. Forces that were not recorded count as
        if they were right.

        Args:
            frame: of a roll-out begun at ``start``.
            targets: reference along the whole segments.
            start: the batch's first frames (numbering of atoms and systems).
            totals: ``counts`` of the joined batch.
            segment_length: S.
            dt: time between the frames of each of the batch's systems, [n_systems]; needed by ``as_force``.
        """
        weight = self.step_weights.at(frame.step, segment_length)
        whole = frame.systems.numel() == start.n_systems
        atoms = None if whole else start.atoms_of(frame.systems)

        def of_frame(of_start: Tensor) -> Tensor:
            return of_start if atoms is None else of_start[atoms]

        parts: dict[str, Tensor] = {}
        for term in self.active_terms(segment_length):
            if term.quantity == "stress":
                continue
            if term.quantity == "energy":
                reference = targets.energies[frame.step][frame.systems]
                delta = (frame.prediction.energy - reference) / frame.state.n_atoms_per_system()
                value = weight * term.weight * (_deviation(delta, term).sum() / totals[-1])
            else:
                found = {
                    "forces": frame.prediction.forces,
                    "positions": frame.state.positions,
                    "velocities": frame.state.velocities,
                }[term.quantity]
                delta = found - of_frame(getattr(targets, term.quantity)[frame.step])
                if term.quantity == "forces" and targets.unlabelled is not None:
                    delta = delta.masked_fill(of_frame(targets.unlabelled)[:, None], 0.0)
                if term.as_force and frame.step > 0:
                    delta = delta * _force_of_deviation(term.quantity, frame, dt)[:, None]
                counted = _counted_atoms(frame.state, totals, term)
                value = (_deviation(delta, term) * (weight * term.weight / 3.0 / counted)).sum()
            parts[term.quantity] = value
        return parts

    @staticmethod
    def at_stress(term: Term, stress: Tensor, frame: Frame, targets: Targets, totals: Tensor) -> Tensor:
        """The stress's part of the loss, weight included: mean over the six components and all systems.

        Args:
            stress: of the frame's systems, [n_systems, 6] eV/Å³.
        """
        if targets.stress is None:
            raise ValueError("a loss of the stress needs runs with a stress")
        delta = stress - targets.stress[frame.step][frame.systems]
        return term.weight * _deviation(delta, term).mean(-1).sum() / totals[-1]
