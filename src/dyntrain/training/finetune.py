"""Fine-tuning a model that was trained elsewhere: energy zero, frozen parts, replay of what it knew."""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Sequence

import numpy as np
import torch
from ase.data import chemical_symbols

from dyntrain.config import Config
from dyntrain.data.diagnose import usable_runs
from dyntrain.data.structures import read_runs_and_structures
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.models.family import FamilyModel
from dyntrain.models.files import network_of
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Potential

_FRAMES = 64
"""Of all runs together, on which energies are compared: the mean of an MD run is known well with a few."""


def element_shifts(potential: Potential, runs: Sequence[Trajectory]) -> dict[int, float]:
    """Energy by element, eV, that added to the model's energies explains the runs' best.

    Smallest-norm least squares: a single composition cannot tell its elements apart, only their sum.
    """
    elements = sorted({int(z) for run in runs for z in run.atomic_numbers})
    composition = np.array([[(run.atomic_numbers == z).sum() for z in elements] for run in runs], float)
    missing = [_mean_difference(potential, run, -(-_FRAMES // len(runs))) for run in runs]
    shifts = np.linalg.lstsq(composition, np.array(missing), rcond=None)[0]
    return dict(zip(elements, shifts.tolist(), strict=True))


def _mean_difference(potential: Potential, run: Trajectory, n_frames: int) -> float:
    """Mean of reference energy − model's energy over some frames of a run, eV."""
    frames = np.unique(np.linspace(0, run.n_frames - 1, num=min(n_frames, run.n_frames), dtype=int))
    device = next(potential.parameters()).device
    differences = []
    for frame in frames:
        state = run.state(int(frame)).to(device)
        with torch.no_grad():
            energy = potential(state, neighbor_list(state, potential.cutoff)).energy
        differences.append(float(run.energies[frame]) - float(energy))
    return float(np.mean(differences))


def align_energies(potential: Potential, runs: Sequence[Trajectory]) -> None:
    """Move the model's energy per element to the zero of the runs' energies, in its own parameters.

    Raises:
        UserError: the model has no place for it.
    """
    network = network_of(potential)
    if not isinstance(network, FamilyModel):
        raise UserError("finetune.align_energies: a network of your own must align its energies itself")
    shifts = element_shifts(potential, runs)
    network.shift_energies(torch.tensor([shifts.get(z, 0.0) for z in network.elements], dtype=torch.float64))


def freeze(potential: Potential, patterns: Sequence[str]) -> None:
    """Keep the parameters whose names match a pattern (``*`` and ``?`` as in file names) as they are.

    Names are those of the family's own module.

    Raises:
        UserError: a pattern that matches none, with the names that come nearest; or there is nothing to
            learn, or nothing is left.
    """
    named = {
        name.removeprefix("module."): parameter
        for name, parameter in network_of(potential).named_parameters()
    }
    for pattern in patterns:
        matching = fnmatch.filter(named, pattern)
        if not matching:
            near = difflib.get_close_matches(pattern, named, n=3, cutoff=0.0)
            raise UserError(
                f"finetune.freeze: no parameter of the model matches {pattern!r}; near it are "
                f"{', '.join(near)}"
            )
        for name in matching:
            named[name].requires_grad_(False)
    if not named:
        raise UserError(
            "the potential has no parameters (no nn.Module holds any), so there is nothing to train"
        )
    if not any(parameter.requires_grad for parameter in named.values()):
        raise UserError("finetune.freeze: these patterns freeze every parameter, so nothing is left to learn")


def replay_runs(config: Config, potential: Potential) -> list[Trajectory]:
    """Runs and structures of ``finetune.replay``, their energies moved to the model's zero.

    Labels of the model's former training have the zero it had then, per element.

    Raises:
        UserError: the runs cannot be read, or hold an element the model does not know.
    """
    replay = config.finetune.replay
    if replay is None:
        return []
    runs, _ = usable_runs(read_runs_and_structures(replay.data, replay.structures))
    check_elements(potential, runs, "finetune.replay: the model")
    shifts = element_shifts(potential, runs)
    return [
        dataclasses.replace(run, energies=run.energies - sum(shifts[int(z)] for z in run.atomic_numbers))
        for run in runs
    ]


def check_elements(potential: Potential, runs: Sequence[Trajectory], model: str) -> None:
    """Refuse runs with elements that the model, in words, does not know.

    Raises:
        UserError: naming them.
    """
    elements = {int(z) for run in runs for z in run.atomic_numbers}
    unknown = sorted(elements - set(potential.elements or elements))
    if unknown:
        symbols = ", ".join(chemical_symbols[z] for z in unknown)
        raise UserError(
            f"{model} does not know {symbols}, which the training runs hold; start from a model of all their "
            "elements, or from none"
        )
