"""Kicks: what recorded runs do beside velocity Verlet, and what training and validation are without it.

    python benchmarks/kicks.py [FOLDER]

reads every run below FOLDER (default ../shared/data), prints a table and writes it to benchmarks/kicks.md.
The second part trains the default network twice on a thermostatted run, with the run's kicks and with kicks
set to zero, for the same number of steps, and validates both ways; `--no-training` leaves it out. All in
about a minute and a half.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dyntrain.config import Config
from dyntrain.data.diagnose import RunReport, usable_runs
from dyntrain.data.readers import expand_paths, read_runs
from dyntrain.data.segments import Batch, collate, find_segments
from dyntrain.data.trajectory import Trajectory
from dyntrain.integrators import Kicks, VelocityVerlet
from dyntrain.loss import counts
from dyntrain.neighbors import NeighborList
from dyntrain.potential import Potential, Prediction
from dyntrain.rollout import Full, StopGradient, rollout
from dyntrain.state import State
from dyntrain.training.learner import Learner
from dyntrain.training.setup import make_loss, make_potential
from dyntrain.training.step import loss_and_gradient

STAGES = ((1, 250, 3e-3), (8, 60, 1e-3), (16, 50, 5e-4))
"""Segment length S, optimiser steps, learning rate."""

BATCH_SIZE, VALIDATION_STEPS, VALIDATION_STARTS = 8, 100, 8
HORIZONS = (0, 10, 25, 50, 100)


class Playback(Potential):
    """The recorded forces, frame after frame, wherever the atoms are."""

    cutoff = 0.1

    def __init__(self, energies: Tensor, forces: Tensor) -> None:
        super().__init__()
        self.frames: Iterator[tuple[Tensor, Tensor]] = zip(energies, forces, strict=True)

    def forward(self, state: State, neighbors: NeighborList) -> Prediction:
        energy, forces = next(self.frames)
        return Prediction(energy[None], forces)


def deviation(run: Trajectory, first: int, stop: int, *, kicks: bool) -> float:
    """Largest distance of an atom from its recorded place in a roll-out with the recorded forces, Å."""
    energies, forces = (torch.from_numpy(x[first:stop].copy()) for x in (run.energies, run.forces))
    frames = rollout(
        Playback(energies, forces),
        run.state(first),
        VelocityVerlet(run.dt),
        stop - first - 1,
        backprop=StopGradient(),
        kicks=run.kicks(first, stop) if kicks else None,
    )
    with torch.no_grad():
        gaps = [
            np.linalg.norm(frame.state.positions.numpy() - run.positions[first + frame.step], axis=1).max()
            for frame in frames
        ]
    return float(max(gaps))


def row(run: Trajectory, report: RunReport) -> str:
    """One line of the first table."""
    first, stop = max(run.stretches, key=lambda s: s[1] - s[0])
    kicks = run.kicks(first, stop)
    largest = float(kicks.positions.norm(dim=-1).max())
    largest_turn = float((kicks.velocities * run.dt).norm(dim=-1).max())
    free = deviation(run, first, min(stop, first + round(100 / run.dt_fs) + 1), kicks=False)
    cells = (
        f"{Path(run.file).name}",
        report.ensemble,
        f"{run.dt_fs:g}",
        f"{report.kick_ratio:.1e}",
        f"{largest:.1e}",
        f"{largest_turn:.1e}",
        f"{stop - first - 1}",
        f"{deviation(run, first, stop, kicks=True):.1e}",
        f"{free:.1e}",
    )
    return "| " + " | ".join(cells) + " |"


def kicks_table(runs: Sequence[Trajectory], reports: Sequence[RunReport]) -> list[str]:
    """The first part of the page."""
    lines = [
        "| run | ensemble | dt, fs | kick ratio | largest δr, Å | largest δv·dt, Å | steps | with kicks, Å | "
        "without, first 100 fs, Å |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for run, report in zip(runs, reports, strict=True):
        lines.append(row(run, report))
        print(lines[-1], file=sys.stderr)
    return lines


def without_kicks(batch: Batch) -> Batch:
    """The same windows with kicks of zero (a changing cell is followed all the same)."""
    zero = torch.zeros_like(batch.kicks.positions)
    return dataclasses.replace(batch, kicks=Kicks(zero, zero, batch.kicks.cells))


def train(run: Trajectory, config: Config, *, kicks: bool) -> Potential:
    """The default network after `STAGES`."""
    potential, loss = make_potential(config, [run]), make_loss(config)
    learner = Learner(potential, config.gradient_clip, config.ema)
    random = np.random.default_rng(config.seed)
    step = 0
    for length, n_steps, lr in STAGES:
        found = find_segments([run], length)
        for _ in range(n_steps):
            batch = collate(list(found.take(random.choice(len(found), BATCH_SIZE, replace=False))), [run])
            batch = batch if kicks else without_kicks(batch)
            learner.optimizer.zero_grad()
            loss_and_gradient(potential, batch, loss, Full(), counts(batch.state))
            learner.update(lr, step)
            step += 1
    return learner.averaged


@torch.no_grad()
def errors(potential: Potential, run: Trajectory, *, kicks: bool) -> list[float]:
    """Force MAE against the recording at `HORIZONS` steps, eV/Å, over evenly spread starts."""
    found = find_segments([run], VALIDATION_STEPS + 1)
    chosen = np.linspace(0, len(found) - 1, VALIDATION_STARTS).astype(int)
    batch = collate(list(found.take(chosen)), [run])
    frames = rollout(
        potential,
        batch.state,
        VelocityVerlet(batch.dt),
        VALIDATION_STEPS,
        backprop=StopGradient(),
        kicks=batch.kicks if kicks else None,
    )
    along = [float((f.prediction.forces - batch.targets.forces[f.step]).abs().mean()) for f in frames]
    return [along[k] for k in HORIZONS]


def training_table(run: Trajectory) -> list[str]:
    """The second part of the page: train on the first 70 % of the run, validate on the rest."""
    cut = int(0.7 * run.n_frames)
    training, held_out = run.slice(0, cut), run.slice(cut, run.n_frames)
    config = Config(data=[run.file], output="unused")
    stages = ", ".join(f"{n} steps at S = {length}" for length, n, _ in STAGES)
    lines = [
        f"Default network, {stages}, batches of {BATCH_SIZE}, on the first {cut} frames of "
        f"{Path(run.file).name}; force MAE (eV/Å) along {VALIDATION_STARTS} roll-outs from the other "
        f"{run.n_frames - cut} frames, after so many steps of {run.dt_fs:g} fs. One seed.",
        "",
        "| trained | validated | " + " | ".join(str(k) for k in HORIZONS) + " |",
        "|---|---|" + "--:|" * len(HORIZONS),
    ]
    for trained in (True, False):
        start = time.process_time()
        potential = train(training, config, kicks=trained)
        print(f"{time.process_time() - start:.0f} CPU-s", file=sys.stderr)
        for validated in (True, False):
            cells = [f"{error:.3f}" for error in errors(potential, held_out, kicks=validated)]
            names = [f"{'with' if with_kicks else 'without'} kicks" for with_kicks in (trained, validated)]
            lines.append("| " + " | ".join([*names, *cells]) + " |")
            print(lines[-1], file=sys.stderr)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    parser.add_argument("--no-training", action="store_true", help="only the table of the runs")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    folders = sorted(path for path in arguments.folder.iterdir() if path.is_dir())
    runs, reports = usable_runs([run for file in expand_paths(folders) for run in read_runs(file)])
    lines = [
        "# Kicks",
        "",
        "What each run does beside velocity Verlet with its own forces (`Trajectory.kicks`), over its "
        "longest stretch without a break: rms of the kicks over rms of dt²F/m, the largest ones, and how far "
        "the roll-out with the AIMD's own forces leaves the recording, with the kicks and without them. With "
        "kicks it must be rounding (0: to the last digit).",
        "",
        *kicks_table(runs, reports),
        "",
        "Made by `python benchmarks/kicks.py`.",
    ]
    thermostatted = [
        run
        for run, report in zip(runs, reports, strict=True)
        if report.ensemble not in ("nve", "unknown") and run.n_frames > 5 * VALIDATION_STEPS
    ]
    if thermostatted and not arguments.no_training:
        smallest = min(thermostatted, key=lambda run: run.n_atoms)
        lines += ["", "## Training with and without kicks", "", *training_table(smallest)]
    page = "\n".join(lines) + "\n"
    Path(__file__).with_suffix(".md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
