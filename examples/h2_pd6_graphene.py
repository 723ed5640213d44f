"""The paper's experiment: H2 on Pd6 at a graphene vacancy, S = 1 … 7, judged along runs it never saw.

    python examples/h2_pd6_graphene.py ../shared/data/h2pd6gra

The folder holds six NVE runs (h2pd6gra_000.traj …): 000–003 train, 004 validates, 005 tests. Without options
it is the published recipe cut down for a CPU (what was changed is printed and written on the page); --full is
the recipe itself and prints what it will cost. The same command after an interruption goes on.
"""

from __future__ import annotations

import argparse
import base64
import html
import math
import shutil
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

import dyntrain
from dyntrain.atomic import write_text
from dyntrain.cli.train import TrainingBar
from dyntrain.config import Config, parse_config
from dyntrain.data.readers import read_trajectories
from dyntrain.data.segments import collate
from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate import MARKS_FS, RolloutErrors, rollout_errors
from dyntrain.loss import counts
from dyntrain.models.files import load_model
from dyntrain.observables import quantile_over_starts
from dyntrain.potential import Potential
from dyntrain.simulate import simulate
from dyntrain.threads import limit_threads
from dyntrain.training import setup, train
from dyntrain.training.logs import read_log
from dyntrain.training.step import loss_and_gradient

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ON_CPU: dict[str, Any] = {
    "model": {"settings": {"width": 64}},
    "validation": {"n_starts": 32},
    "curriculum": {"patience": 4},
}
SHORT: dict[str, Any] = {
    "model": {"settings": {"width": 16, "n_frequencies": 32}},
    "training_points": 8,
    "batch_size": 8,
    "validation": {"n_starts": 2, "n_steps": 4},
    "curriculum": {"patience": 1, "max_length": 2, "floor": 9e-4, "restart_lr": 1e-3},
    "max_epochs": 8,
}
ELEMENTS = {"H": 1, "C": 6, "Pd": 46}


def main() -> None:
    given = options()
    settings = configuration(given)
    n_steps, n_starts = (40, 4) if given.short else (800, 8)
    limit_threads(settings.batch_size * 58)  # atoms of a structure
    changes = changed_from_published(settings)
    print("the published recipe" + (", changed here:" if changes else ""), *changes, sep="\n  ")
    if not given.short:
        print(expected_cost(settings))
    if given.full and not given.yes and input("start? [y/N] ").strip().lower() != "y":
        return
    ended = trained(settings, given.output)
    print(f"training: {ended}")
    models = {int(p.stem.removeprefix("model_S")): load_model(p) for p in given.output.glob("model_S*.pt")}
    models = dict(sorted(models.items()))
    test = read_trajectories([str(given.data / "h2pd6gra_005.traj")])
    horizon_fs = min(150.0, n_steps * test[0].dt_fs)
    judged = {
        length: rollout_errors(model, test, horizon_fs=horizon_fs, n_starts=n_starts)
        for length, model in models.items()
    }
    draw_training(given.output)
    draw_forces(given.output, judged)
    draw_distances(given.output, models, test[0], n_steps)
    print(f"page: {write_page(given.output, changes, ended, judged)}")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of h2pd6gra_000.traj … 005.traj")
    parser.add_argument("--output", type=Path, default=Path("h2-pd6-graphene"))
    parser.add_argument("--full", action="store_true", help="the published recipe, nothing changed")
    parser.add_argument("--yes", action="store_true", help="start --full without asking")
    parser.add_argument("--short", action="store_true", help="seconds instead of hours: shows that it runs")
    parser.add_argument("--max-time", help="train for at most so long in this call (10m, 2h), then judge")
    return parser.parse_args()


# --- the recipe ---------------------------------------------------------------------------------------------


def configuration(given: argparse.Namespace) -> Config:
    """The published recipe with what the options change."""
    runs = [str(given.data / f"h2pd6gra_{number:03d}.traj") for number in range(6)]
    changes = {} if given.full else SHORT if given.short else ON_CPU
    return parse_config(
        {
            "data": {"train": runs[:4], "validation": [runs[4]], "test": [runs[5]]},
            "output": str(given.output),
            "preset": "paper",
            "max_time": given.max_time,
            **changes,
        }
    )


def changed_from_published(settings: Config) -> list[str]:
    """Each key that is not as published, in words."""
    published = flat(parse_config({"data": ["-"], "preset": "paper"}).model_dump())
    here = flat(settings.model_dump())
    defaults = {"model.settings.width": 128, "model.settings.n_frequencies": 256}
    about_this_call = ("data", "output", "max_time", "preset", "device")
    return [
        f"{key}: {value} instead of {published.get(key, defaults.get(key))}"
        for key, value in here.items()
        if not key.startswith(about_this_call) and value != published.get(key)
    ]


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested keys as one, joined by points."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
        found |= inner
    return found


def expected_cost(settings: Config) -> str:
    """Least time of the whole curriculum, from a few optimiser steps at S = 1 and at the largest S."""
    curriculum = settings.curriculum
    assert curriculum.kind == "plateau" and settings.training_points is not None
    split, _ = setup.load_split(settings)
    potential, loss, backprop = (
        setup.make_potential(settings, split.train), setup.make_loss(settings), setup.make_backprop(settings)
    )  # fmt: skip

    def seconds(length: int) -> float:
        """Of one training evaluation of one structure."""
        found = setup.training_segments(settings, split.train, length)
        batch = collate(found[: min(4, settings.batch_size)], split.train)
        taken = []
        for _ in range(3):
            begin = time.perf_counter()
            loss_and_gradient(potential, batch, loss, backprop, counts(batch.state))
            taken.append((time.perf_counter() - begin) / (length * batch.state.n_systems))
        return min(taken)

    one, along = seconds(1), seconds(curriculum.max_length)
    validation = settings.validation.n_starts * (settings.validation.n_steps + 1) * along / 3.0
    total = 0.0
    for length in range(1, curriculum.max_length + 1):
        start = curriculum.lr if length == 1 else curriculum.restart_lr
        reductions = math.floor(math.log(curriculum.floor / start) / math.log(curriculum.factor))
        epochs = (reductions + 1) * curriculum.patience
        total += epochs * (settings.training_points * length * (one if length == 1 else along) + validation)
    return (
        f"expected cost: at least {total / 3600:.1f} h on this machine, more where validation goes on "
        f"improving ({1e3 * one:.0f} ms an evaluation at S = 1, {1e3 * along:.0f} ms at S = "
        f"{curriculum.max_length})"
    )


# --- training -----------------------------------------------------------------------------------------------


class CopyingBar(TrainingBar):
    """The progress bar of `dyntrain train`; keeps the best model there was when S grows."""

    def __init__(self, output: Path) -> None:
        super().__init__()
        self.output, self.length = output, 0

    def validated(self, row: dict[str, Any]) -> None:
        if self.length and row["segment_length"] > self.length:
            keep_model(self.output, self.length)  # model.pt is still that of the epoch before
        self.length = row["segment_length"]
        super().validated(row)


def trained(settings: Config, output: Path) -> str:
    """Train or go on training, leave model_S*.pt, and say how it ended."""
    with CopyingBar(output) as bar:
        result = train(settings, observer=bar)
    length = result.progress.segment_length
    keep_model(output, length)
    return result.finished or f"stopped by --max-time at S = {length}; the same command goes on"


def keep_model(output: Path, length: int) -> None:
    shutil.copyfile(output / "model.pt", output / f"model_S{length}.pt")


# --- figures ------------------------------------------------------------------------------------------------


def colours(lengths: list[int]) -> dict[int, Any]:
    shades = plt.get_cmap("viridis")(np.linspace(0.0, 0.85, max(len(lengths), 2)))
    return dict(zip(lengths, shades, strict=False))


def draw_training(output: Path) -> None:
    """Validation force error along roll-outs versus epoch, one colour for each S."""
    rows = [row for row in read_log(output / "log.csv") if row["validation_force_mae"] is not None]
    lengths = sorted({int(row["segment_length"] or 1) for row in rows})
    figure, axes = plt.subplots(figsize=(7, 3.6))
    for length, colour in colours(lengths).items():
        here = [row for row in rows if row["segment_length"] == length]
        x, y = [row["epoch"] for row in here], [row["validation_force_mae"] for row in here]
        axes.plot(x, y, marker="o", ms=3, color=colour, label=f"S = {length}")
    axes.set(xlabel="epoch", ylabel="force MAE (eV/Å)")
    finish(figure, output / "training.png")


def draw_forces(output: Path, judged: dict[int, RolloutErrors]) -> None:
    """Force error of each element along roll-outs beside the test run, one line for each S."""
    figure, panels = plt.subplots(1, len(ELEMENTS), figsize=(11, 3.6), sharex=True)
    shades = colours(list(judged))
    for axes, symbol in zip(panels, ELEMENTS, strict=True):
        for length, found in judged.items():
            median = quantile_over_starts(found.force_mae_per_element[symbol], 0.5)
            shown = np.where(np.isfinite(median), median, np.nan)
            axes.plot(found.times_fs, shown, color=shades[length], label=f"S = {length}")
        axes.set(title=symbol, xlabel="time (fs)", ylim=(0, None))
    panels[0].set_ylabel("force MAE (eV/Å), median over starts")
    finish(figure, output / "forces.png")


def draw_distances(output: Path, models: dict[int, Potential], run: Trajectory, n_steps: int) -> None:
    """H–H and the shortest H–Pd distance along the test run and along each model's own run from its start."""
    figure, panels = plt.subplots(2, 1, figsize=(8, 6), sharex=True)
    n_frames = min(n_steps + 1, run.n_frames)
    times = run.dt_fs * np.arange(n_frames)
    shades = colours(sorted(models))
    for length, model in sorted(models.items()):
        frames = list(simulate(model, run.state(0), run.dt, n_frames - 1))
        made = np.array([frame.state.positions.numpy() for frame in frames])
        for axes, distances in zip(panels, h_distances(run, made), strict=True):
            axes.plot(times[: len(made)], distances, color=shades[length], label=f"S = {length}")
    for axes, distances in zip(panels, h_distances(run, run.positions[:n_frames]), strict=True):
        axes.plot(times, distances, color="black", lw=1.2, ls="--", label="AIMD")
    panels[0].set(ylabel="H–H (Å)")
    panels[1].set(ylabel="shortest H–Pd (Å)", xlabel="time (fs)")
    finish(figure, output / "distances.png")


def h_distances(run: Trajectory, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """H–H and shortest H–Pd distance to the nearest image, each [n_times] Å."""
    hydrogen = np.flatnonzero(run.atomic_numbers == ELEMENTS["H"])
    palladium = np.flatnonzero(run.atomic_numbers == ELEMENTS["Pd"])
    cell = run.cell if run.cell.ndim == 2 else run.cell[0]

    def shortest(vectors: np.ndarray) -> np.ndarray:
        shifts = np.round(vectors @ np.linalg.inv(cell)) * run.pbc
        lengths = np.linalg.norm(vectors - shifts @ cell, axis=-1)
        return lengths.reshape(len(vectors), -1).min(1)

    first, second = hydrogen
    to_palladium = positions[:, palladium, None] - positions[:, None, hydrogen]
    return shortest(positions[:, [second]] - positions[:, [first]]), shortest(to_palladium)


def finish(figure: Any, file: Path) -> None:
    for axes in figure.axes:
        axes.grid(color="#eee")
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=150)
    plt.close(figure)


# --- the page -----------------------------------------------------------------------------------------------

CAPTIONS = {
    "training": "Validation: force error along roll-outs of the published length from held-out starts.",
    "forces": "Force error by element along roll-outs beside the test run, which training never saw.",
    "distances": "H–H and shortest H–Pd distance: the test run (dashed) and each model's own run from its "
    "first frame. Runs of a chaotic system part sooner or later, also under the true forces.",
}


PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>H2 on Pd6 at graphene</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; }} figure {{ margin: 1.5rem 0; }} figcaption {{ color: #5c6670; font-size: .9rem; }}
table {{ border-collapse: collapse; }}
th, td {{ padding: .3rem 1rem; border-bottom: 1px solid #ddd; text-align: right; font-weight: 400; }}
</style></head><body>
<h1>H<sub>2</sub> on Pd<sub>6</sub> at a graphene vacancy</h1>
<p>Training: {ended}. S = n is the best model there was when training at S = n ended.</p>
<table>{table}</table>
{pictures}
<h2>Changed from the published recipe</h2><ul>{changes}</ul>
<p>dyntrain {version}</p>
</body></html>
"""


def write_page(output: Path, changes: list[str], ended: str, judged: dict[int, RolloutErrors]) -> Path:
    """One HTML file with the numbers, the figures and what was changed from the published recipe."""
    marks = [mark for mark in MARKS_FS if any(found.index_at(mark) is not None for found in judged.values())]
    head = "".join(f"<th>{mark:g} fs</th>" for mark in marks)
    table = f"<tr><th>force MAE (eV/Å) after</th>{head}</tr>"
    for length, found in judged.items():
        errors = found.at_marks(found.force_mae, marks).values()
        cells = "".join(f"<td>{'burst' if error is None else f'{error:.3g}'}</td>" for error in errors)
        table += f"<tr><th>S = {length}</th>{cells}</tr>"
    pictures = ""
    for name, caption in CAPTIONS.items():
        data = base64.b64encode((output / f"{name}.png").read_bytes()).decode()
        pictures += f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
        pictures += f"<figcaption>{caption}</figcaption></figure>"
    page = output / "page.html"
    write_text(
        page,
        PAGE.format(
            ended=html.escape(ended),
            table=table,
            pictures=pictures,
            changes="".join(f"<li>{html.escape(change)}</li>" for change in changes or ["nothing"]),
            version=dyntrain.__version__,
        ),
    )
    return page


if __name__ == "__main__":
    main()
