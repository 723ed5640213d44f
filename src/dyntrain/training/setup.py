"""From a configuration to what the loop needs: runs, network with the data's statistics, loss, curriculum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from dyntrain.config import Config, DataFiles, PlateauConfig
from dyntrain.curriculum import Curriculum, PlateauCurriculum, ScheduleCurriculum, Stage
from dyntrain.data.diagnose import RunReport, usable_runs
from dyntrain.data.readers import read_trajectories
from dyntrain.data.segments import Segments, find_segments
from dyntrain.data.splits import Split, automatic_split, explicit_split
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.loss import Loss, StepWeights, Term
from dyntrain.models.files import build_model, load_model, set_precision
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative
from dyntrain.rollout import Adjoint, Backprop, Full, StopGradient, Truncated


def load_split(config: Config) -> tuple[Split, list[RunReport]]:
    """Read and check all runs, mark the breaks that windows must not cross, and divide them."""
    reports: list[RunReport] = []

    def read(paths: Sequence[str]) -> list[Trajectory]:
        if not paths:
            return []
        runs, found = usable_runs(read_trajectories(paths, config.dt))
        reports.extend(found)
        return runs

    if not isinstance(config.data, DataFiles):
        return automatic_split(read(config.data), config.max_length), reports
    files = config.data
    test = read(files.test)
    if files.validation:
        return explicit_split(read(files.train), read(files.validation), test), reports
    split = automatic_split(read(files.train), config.max_length)
    return Split(split.train, split.validation, test, split.how), reports


def fingerprint(runs: Sequence[Trajectory]) -> str:
    """A short hash of what was read, so that a resumed run cannot silently go on with other data."""
    digest = hashlib.sha256()
    for run in runs:
        digest.update(np.int64([run.n_frames, run.n_atoms]).tobytes())
        digest.update(np.ascontiguousarray(run.energies).tobytes())
        digest.update(np.ascontiguousarray(run.positions[-1]).tobytes())
        digest.update(np.float64(run.dt).tobytes())
    return digest.hexdigest()[:16]


def make_potential(config: Config, training: Sequence[Trajectory]) -> Conservative:
    """The network to train: a new one with the data's statistics, or ``start_from``.

    Weights depend on ``config.seed`` alone.
    """
    elements = sorted({int(z) for run in training for z in run.atomic_numbers})
    if config.start_from is not None:
        potential = load_model(config.start_from, precision=config.precision)
        unknown = set(elements) - set(potential.elements or elements)
        if unknown:
            raise UserError(
                f"start_from: {config.start_from} does not know the elements {sorted(unknown)} of the training runs"
            )
        return potential.train()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        settings = {"elements": elements, "cutoff": config.model.cutoff, **config.model.settings}
        model = build_model(config.model.name, **settings)
    if hasattr(model, "set_statistics"):
        model.set_statistics(
            energy_shifts(training, elements), rms_force(training), mean_neighbors(training, model.cutoff)
        )
    set_precision(model, config.precision)
    return Conservative(model)


def energy_shifts(runs: Sequence[Trajectory], elements: Sequence[int]) -> torch.Tensor:
    """Energy of each element that together explain the runs' mean energies best, [n_elements] eV.

    Smallest-norm least squares: a single composition cannot tell its elements apart, only its sum.
    """
    composition = np.array([[(run.atomic_numbers == z).sum() for z in elements] for run in runs], float)
    mean_energy = np.array([run.energies.mean() for run in runs])
    return torch.from_numpy(np.linalg.lstsq(composition, mean_energy, rcond=None)[0])


def rms_force(runs: Sequence[Trajectory]) -> float:
    """Root mean square of all force components, eV/Å."""
    squares = sum(float(np.einsum("kax,kax->", run.forces, run.forces)) for run in runs)
    return float(np.sqrt(squares / sum(run.forces.size for run in runs)))


def mean_neighbors(runs: Sequence[Trajectory], cutoff: float) -> float:
    """Mean number of neighbours of an atom within the cutoff, over a few frames of each run."""
    pairs = atoms = 0
    for run in runs:
        for frame in np.linspace(0, run.n_frames - 1, num=min(3, run.n_frames), dtype=int):
            pairs += neighbor_list(run.state(int(frame)), cutoff).n_pairs
            atoms += run.n_atoms
    return 2.0 * pairs / atoms


def make_loss(config: Config) -> Loss:
    terms = []
    for quantity in ("forces", "energy", "positions", "velocities"):
        term = getattr(config.loss, quantity)
        if term is not None and term.weight > 0:
            terms.append(Term(quantity=quantity, **term.model_dump()))
    single_only = [t for t in terms if t.only_single_frames]
    along = [t for t in terms if t.quantity in ("positions", "velocities")]
    if not terms or len(terms) == len(along) or (config.max_length > 1 and len(terms) == len(single_only)):
        raise UserError(
            "loss: give forces or energy a weight above 0; positions and velocities alone say nothing about a "
            "single frame, nor does a term that counts only at S = 1 say anything about a longer segment"
        )
    return Loss(terms, StepWeights(config.loss.first_step_weight, config.loss.later_step_weight))


def make_curriculum(config: Config) -> Curriculum:
    curriculum = config.curriculum
    if isinstance(curriculum, PlateauConfig):
        return PlateauCurriculum(**curriculum.model_dump(exclude={"kind"}))
    stages = [Stage(stage.segment_length, stage.share) for stage in curriculum.stages]
    return ScheduleCurriculum(
        stages, curriculum.lr, curriculum.floor, curriculum.warmup, curriculum.stop_after
    )


def make_backprop(config: Config) -> Backprop:
    chosen = config.backprop
    if isinstance(chosen, str):
        return {"stop_gradient": StopGradient(), "full": Full(), "adjoint": Adjoint()}[chosen]
    return Truncated(chosen.truncated)


def training_segments(config: Config, runs: Sequence[Trajectory], length: int) -> Segments:
    """The windows trained on at segment length ``length``.

    With ``training_points``: so many starts drawn once (by the seed, the same at every S), as published;
    else every window of the runs.
    """
    if config.training_points is None:
        return find_segments(runs, length, "training")
    longest = find_segments(runs, config.max_length, "training")
    if config.training_points >= len(longest):
        return longest.shortened(length)
    drawn = np.random.default_rng([config.seed, 1]).choice(
        len(longest), config.training_points, replace=False
    )
    return longest.take(np.sort(drawn)).shortened(length)


def validation_segments(config: Config, runs: Sequence[Trajectory]) -> Segments:
    """Held-out starts for roll-outs, evenly spread; shorter ones where the runs are shorter than asked."""
    longest = max(stop - first for run in runs for first, stop in run.stretches)
    length = min(config.validation.n_steps + 1, longest)
    found = find_segments(runs, length, "validation")
    n_starts = min(config.validation.n_starts, len(found))
    return found.take(np.linspace(0, len(found) - 1, num=n_starts, dtype=int))
