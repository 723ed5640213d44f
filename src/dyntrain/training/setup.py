"""From a configuration to what the loop needs: runs, network with the data's statistics, loss, curriculum."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from dyntrain.config import (
    Config,
    DataFiles,
    FinetuneConfig,
    PlateauConfig,
    ScheduleConfig,
    TruncatedConfig,
)
from dyntrain.curriculum import Curriculum, PlateauCurriculum, ScheduleCurriculum, Stage
from dyntrain.data.diagnose import RunReport, usable_runs
from dyntrain.data.keys import KeyMap
from dyntrain.data.segments import Segments, find_segments
from dyntrain.data.splits import Split, automatic_split, explicit_split
from dyntrain.data.store import STORE, store_stamp
from dyntrain.data.structures import read_runs_and_structures
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.loss import Loss, StepWeights, Term
from dyntrain.models.egnn import EGNN
from dyntrain.models.family import FamilyModel
from dyntrain.models.files import build_model, is_ours, load_model, network_of, read_record, set_precision
from dyntrain.models.paper_egnn import PaperEGNN
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative, Potential
from dyntrain.rollout import Adjoint, Backprop, Full, StopGradient, Truncated
from dyntrain.training.finetune import align_energies, check_elements, freeze


def load_split(config: Config) -> tuple[Split, list[RunReport]]:
    """Read and check all runs, mark the breaks that windows must not cross, and divide them."""
    reports: list[RunReport] = []
    given = config.keys.model_dump(exclude_none=True) if config.keys is not None else {}
    keys = KeyMap.from_mapping(given)

    def read(paths: Sequence[str], structures: Sequence[str] = ()) -> list[Trajectory]:
        runs, told = usable_runs(read_runs_and_structures(paths, structures, config.dt, keys))
        reports.extend(told)
        return runs

    if not isinstance(config.data, DataFiles):
        return _automatic(read(config.data), config), reports
    files = config.data
    train, validation, test = read(files.train, files.structures), read(files.validation), read(files.test)
    if validation:
        return explicit_split(train, validation, test), reports
    split = _automatic(train, config)
    return Split(split.train, split.validation, test, split.how), reports


def _automatic(training: Sequence[Trajectory], config: Config) -> Split:
    """Some of the runs validate; structures of no run all train."""
    runs, structures = ([run for run in training if run.alone is alone] for alone in (False, True))
    split = automatic_split(runs, config.max_span)
    return Split([*split.train, *structures], split.validation, split.test, split.how)


def fingerprint(split: Split, replay: Sequence[Trajectory] = ()) -> str:
    """A short hash of all that was read, so that a resumed run cannot silently go on with other data.

    Of a store, which may be larger than memory, see ``store_stamp``.
    """
    digest = hashlib.sha256()
    for part in (split.train, split.validation, *([replay] if replay else [])):
        digest.update(f"{len(part)} runs".encode())
        for run in part:
            digest.update(
                f"{run.positions.shape} {run.dt!r} {run.breaks} {run.pbc} {run.small_steps}".encode()
            )
            digest.update(run.atomic_numbers.data)
            if run.reader == STORE:
                digest.update(store_stamp(run.file).encode())
                continue
            for array in (run.positions, run.velocities, run.forces, run.energies, run.cell, run.masses):
                digest.update(np.ascontiguousarray(array).data)
            if run.stress is not None:
                digest.update(np.ascontiguousarray(run.stress).data)
    return digest.hexdigest()[:16]


def remarks(config: Config, split: Split, held_out: Segments) -> list[str]:
    """What comes out other than asked for because the data are small, one sentence each."""
    found = []
    if held_out.length < config.validation.n_steps + 1:
        found.append(
            f"Validation roll-outs take {held_out.length - 1} steps instead of {config.validation.n_steps}: "
            "no validation run is longer."
        )
    if len(held_out) < config.validation.n_starts:
        found.append(
            f"Validation starts from {len(held_out)} instead of {config.validation.n_starts} frames: the "
            "runs hold no more."
        )
    if config.budget is not None and config.budget.validations and config.curriculum.kind == "schedule":
        found.append(
            f"Validation {config.budget.validations} times instead of {config.curriculum.epochs}: more would "
            "take over a fifth of max_time."
        )
    if config.training_points is not None:
        points = training_points(config, split.train)
        if len(points) < config.training_points:
            found.append(
                f"Training uses {len(points)} points instead of {config.training_points}: the runs hold no "
                f"more segments of {points.length} frames."
            )
    return found


def make_potential(config: Config, training: Sequence[Trajectory]) -> Conservative:
    """The network to train: a new one with the data's statistics, or ``start_from``.

    Weights depend on ``config.seed`` alone.
    """
    if config.start_from is not None:
        potential = load_model(config.start_from, precision=config.precision, trust=config.trust)
        check_elements(potential, training, f"start_from: {config.start_from}")
        return potential.train()
    elements = sorted({int(z) for run in training for z in run.atomic_numbers})
    settings = config.model.settings
    if own := sorted({"elements", "cutoff"} & set(settings)):
        raise UserError(
            f"model.settings.{own[0]}: the cutoff belongs under model.cutoff, and the elements are those of "
            "the data"
        )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        model = build_model(config.model.name, elements=elements, cutoff=config.model.cutoff, **settings)
    if isinstance(model, PaperEGNN):
        model.set_mean_energy(float(np.mean([run.energies.mean() for run in training])))
    else:
        model.set_statistics(
            energy_shifts(training, elements), rms_force(training), mean_neighbors(training, model.cutoff)
        )
    set_precision(model, config.precision)
    return Conservative(model)


def potential_to_train(
    config: Config, training: Sequence[Trajectory], own: Potential | None = None
) -> Potential:
    """The configured potential, or the caller's own; energies aligned and parts frozen as configured."""
    before, align = config.start_from, config.finetune.align_energies
    if own is not None and before is not None:
        raise UserError("start_from: a potential was given to train; leave the key out")
    if own is None and before is None and config.finetune != FinetuneConfig():
        raise UserError("finetune: a new network knows nothing that could be kept; say where to start_from")
    if own is not None:
        check_elements(own, training, "the given potential")
    potential = make_potential(config, training) if own is None else own.train()
    if align is None:
        align = before is not None and not _is_our_file(before)
    if align:
        align_energies(potential, training)
    freeze(potential, config.finetune.freeze)
    return potential


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
    """Mean number of neighbours of an atom within the cutoff, over a few frames of each run.

    Raises:
        UserError: no atom has any: a cutoff in another unit, most likely.
    """
    pairs = atoms = 0
    for run in runs:
        for frame in np.linspace(0, run.n_frames - 1, num=min(3, run.n_frames), dtype=int):
            pairs += neighbor_list(run.state(int(frame)), cutoff).n_pairs
            atoms += run.n_atoms
    if not pairs and any(run.n_atoms > 1 for run in runs):
        raise UserError(
            f"model.cutoff: no two atoms of the training runs are closer than {cutoff:g} Å, so the model "
            "would learn nothing; give the cutoff in Å"
        )
    return 2.0 * pairs / atoms


def make_loss(config: Config) -> Loss:
    """The loss as configured.

    Raises:
        UserError: terms that cannot teach anything.
    """
    terms = []
    for quantity in ("forces", "energy", "positions", "velocities", "stress"):
        term = getattr(config.loss, quantity)
        if term is not None and term.weight > 0:
            terms.append(Term(quantity=quantity, **term.model_dump()))
    loss = Loss(terms, StepWeights(config.loss.first_step_weight, config.loss.later_step_weight))
    along = [t for t in terms if t.quantity in ("positions", "velocities")]
    if len(terms) == len(along) or not loss.active_terms(config.max_length):
        raise UserError(
            "loss: give forces or energy a weight above 0; positions and velocities alone say nothing about "
            "a single frame, nor does a term that counts only at S = 1 say anything about a longer segment"
        )
    if any(t.quantity == "positions" for t in terms) and make_backprop(config).block == 1:
        raise UserError(
            "loss.positions: without a gradient from step to step (`backprop`) the positions of a roll-out "
            "teach nothing; use truncated with at least 2 frames, full or adjoint, or leave the term out"
        )
    return loss


def check_stress(loss: Loss, runs: Sequence[Trajectory]) -> None:
    """Refuse runs without the stress that the loss compares.

    Raises:
        UserError: the first such run.
    """
    if loss.stress_term() is None:
        return
    for run in runs:
        if run.stress is None or not run.pbc.all():
            why = "holds no stress" if run.pbc.all() else "is not periodic in all directions"
            raise UserError(
                f"loss.stress: {run.file} {why}; leave the term out, or give runs that all have a stress "
                "(VASP: ISIF = 2; Quantum ESPRESSO: tstress = .true.; other keys: `keys: {stress: …}`)"
            )


def with_learning_rate(config: Config, own: Potential | None = None) -> Config:
    """The configuration with the largest learning rate that it leaves to the network (docs/research.md).

    The paper's network keeps its authors' when it is trained on: its read-out can die of a higher one.
    """
    curriculum = config.curriculum
    if not isinstance(curriculum, ScheduleConfig) or curriculum.lr is not None:
        return config
    network, is_new = _family(config, own), own is None and config.start_from is None
    if network == PaperEGNN.family:
        rate = 1e-3
    elif network == EGNN.family and is_new:
        rate = 1e-2
    else:
        rate = 3e-3
    return config.model_copy(update={"curriculum": curriculum.model_copy(update={"lr": rate})})


def _family(config: Config, own: Potential | None) -> str | None:
    """The family of the network that is trained; None if only its package or its maker knows."""
    if own is not None:
        network = network_of(own)
        return network.family if isinstance(network, FamilyModel) else None
    if config.start_from is None:
        return config.model.name
    return read_record(config.start_from)[0]["network"] if _is_our_file(config.start_from) else None


def _is_our_file(start_from: str) -> bool:
    """Whether it is a model file of dyntrain, not another program's nor the name of a pretrained model."""
    return Path(start_from).is_file() and is_ours(Path(start_from))


def make_curriculum(config: Config) -> Curriculum:
    curriculum = config.curriculum
    if isinstance(curriculum, PlateauConfig):
        return PlateauCurriculum(**curriculum.model_dump(exclude={"kind"}))
    assert curriculum.lr is not None  # with_learning_rate
    stages = [Stage(stage.segment_length, stage.share) for stage in curriculum.stages]
    return ScheduleCurriculum(
        stages, curriculum.lr, curriculum.floor, curriculum.warmup, curriculum.stop_after
    )


def make_backprop(config: Config) -> Backprop:
    chosen = config.backprop
    if isinstance(chosen, TruncatedConfig):
        return Truncated(chosen.truncated)
    named: dict[str, Backprop] = {"stop_gradient": StopGradient(), "full": Full(), "adjoint": Adjoint()}
    return named[chosen]


def training_segments(config: Config, runs: Sequence[Trajectory], length: int) -> Segments:
    """The windows trained on at segment length ``length``.

    Every window of the runs; with ``training_points`` the first frames of each point, as published; with
    ``point_length`` every window within a point.
    """
    if config.point_length is not None:
        return training_points(config, runs).within(length)
    if config.training_points is not None:
        return training_points(config, runs).shortened(length)
    return find_segments(runs, length, "training", config.stride)


def training_points(config: Config, runs: Sequence[Trajectory]) -> Segments:
    """The points that are trained on: all there are, or ``training_points`` drawn once by the seed.

    Raises:
        UserError: no run holds such a point, or it is shorter than the segments that are to be cut from it.
    """
    length = config.point_length or config.max_length
    if length < config.max_length:
        raise UserError(
            f"point_length: points of {length} frames hold no segment of {config.max_length}, which the "
            "curriculum asks for; give at least as many, or leave the key out"
        )
    points = find_segments(runs, length, "training", config.stride)
    if config.training_points is None or config.training_points >= len(points):
        return points
    drawn = np.random.default_rng([config.seed, 1]).choice(len(points), config.training_points, replace=False)
    return points.take(np.sort(drawn))


def validation_segments(config: Config, runs: Sequence[Trajectory]) -> Segments:
    """Held-out starts for roll-outs, evenly spread; shorter ones where the runs are shorter than asked."""
    longest = max(stop - first for run in runs for first, stop in run.stretches)
    length = min(config.validation.n_steps + 1, longest)
    found = find_segments(runs, length, "validation")
    n_starts = min(config.validation.n_starts, len(found))
    return found.take(np.linspace(0, len(found) - 1, num=n_starts, dtype=int))
