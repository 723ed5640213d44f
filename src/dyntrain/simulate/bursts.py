"""Systems that leave a run because their next step is beyond reason: when, which atom, why."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from ase.data import chemical_symbols
from torch import Tensor

from dyntrain.potential import Prediction
from dyntrain.rollout import BurstGuard, Frame
from dyntrain.state import State


@dataclass(frozen=True)
class Burst:
    """A system that left the run, because its next step was beyond reason.

    system: its number in the start
    step:   its last sound step; −1: already the start was not sound
    atom:   the atom that broke it, numbered within the system; None where the energy did
    reason: one sentence
    """

    system: int
    step: int
    atom: int | None
    reason: str


def atom_name(state: State, atom: int) -> str:
    return f"atom {atom} ({chemical_symbols[int(state.atomic_numbers[atom])]})"


class WatchedGuard:
    """A guard for ``rollout`` that notes why it takes a system out.

    Attributes:
        bursts: of the systems lost so far.
        frame: the last sound frame, to be kept up to date by who iterates the roll-out.
    """

    def __init__(self, guard: BurstGuard, n_systems: int) -> None:
        self.bursts: list[Burst] = []
        self.frame: Frame | None = None
        self._guard = guard
        self._alive = list(range(n_systems))

    def resume(self, frame: Frame, bursts: list[Burst]) -> None:
        """Go on after a frame of an earlier run."""
        self.frame, self.bursts, self._alive = frame, list(bursts), frame.systems.tolist()

    def moves_in_bounds(self, old: State, new: State) -> Tensor:
        """As ``BurstGuard``; the systems that are out are noted."""
        fine = self._guard.moves_in_bounds(old, new)
        way = (new.positions - old.positions).norm(dim=-1)
        self._note(fine, [self._too_far(old, way, place) for place in _places(~fine)])
        return fine

    def prediction_in_bounds(self, state: State, prediction: Prediction, start_energy: Tensor) -> Tensor:
        """As ``BurstGuard``; the systems that are out are noted."""
        fine = self._guard.prediction_in_bounds(state, prediction, start_energy)
        limit = self._guard.max_energy
        self._note(
            fine, [_unsound(state, prediction, start_energy, place, limit) for place in _places(~fine)]
        )
        return fine

    def _note(self, fine: Tensor, explained: list[tuple[int | None, str]]) -> None:
        step = -1 if self.frame is None else self.frame.step
        for place, (atom, reason) in zip(_places(~fine), explained, strict=True):
            self.bursts.append(Burst(self._alive[place], step, atom, reason))
        self._alive = [self._alive[place] for place in _places(fine)]

    def _too_far(self, old: State, way: Tensor, place: int) -> tuple[int, str]:
        atoms = _atoms_of(old, place)
        atom = int(way[atoms].argmax())  # argmax takes NaN for the largest
        force = self._force(self._alive[place], atom)
        return atom, (
            f"{atom_name(old.select([place]), atom)} would move {float(way[atoms][atom]):.3g} Å in one step, "
            f"more than {self._guard.max_step:g} Å (force on it {force:.3g} eV/Å)"
        )

    def _force(self, system: int, atom: int) -> float:
        """The force that moved an atom: the one of the last sound frame."""
        assert self.frame is not None  # something moved, so there was a frame
        place = self.frame.systems.tolist().index(system)
        return float(self.frame.prediction.forces[_atoms_of(self.frame.state, place)][atom].norm())


def _unsound(
    state: State, prediction: Prediction, start_energy: Tensor, place: int, limit: float
) -> tuple[int | None, str]:
    broken = (~torch.isfinite(prediction.forces[_atoms_of(state, place)]).all(-1)).nonzero()
    if broken.numel():
        atom = int(broken[0])
        return atom, f"the force on {atom_name(state.select([place]), atom)} is not finite"
    energy = float(prediction.energy[place])
    if not math.isfinite(energy):
        return None, "the energy is not finite"
    change = (energy - float(start_energy[place])) / int(state.n_atoms_per_system()[place])
    return None, (
        f"the potential energy would differ from the start's by {change:.3g} eV per atom, more than {limit:g}"
    )


def _places(chosen: Tensor) -> list[int]:
    return chosen.nonzero().squeeze(1).tolist()


def _atoms_of(state: State, place: int) -> Tensor:
    return state.atoms_of(torch.tensor([place], device=state.device))
