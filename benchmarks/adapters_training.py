"""The training part of benchmarks/adapters.py: four arms at equal frames and evaluations, on ethanol."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule

from dyntrain import Calculator
from dyntrain.adapters.exporting import compare, export
from dyntrain.atomic import write_text
from dyntrain.compare import run_comparison
from dyntrain.compare.arms import DYNAMIC, arm_config
from dyntrain.compare.run import Comparison
from dyntrain.config import BudgetConfig, Config, parse_config
from dyntrain.evaluate import EvaluationSettings
from dyntrain.models.files import load_model, set_precision
from dyntrain.potential import Conservative
from dyntrain.training import Silent, setup
from dyntrain.training.budget import measure_budget
from dyntrain.units import KB

MARKS = ("0", "10", "25", "50")
_HORIZON_FS = 60.0
FILE_ENDING = {"nequip": ".nequip.zip", "allegro": ".nequip.zip"}
_N_VALIDATIONS = 10
_MEASURED_SHARE = 0.8
"""Of max_time, or a little more, which ``measure_budget`` plans for; here the whole time is meant."""


class Told(Silent):
    """Says on the terminal which training or measurement is going on."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    @contextmanager
    def training(self, name: str) -> Iterator[Silent]:
        print(f"training {name}", flush=True)
        yield Silent()

    @contextmanager
    def progress(self) -> Iterator[Any]:
        print("measuring", flush=True)
        yield lambda what, done, total: None


def training_config(
    start: dict[str, Any], train: list[str], held_out: list[str], output: Path, minutes: float
) -> Config:
    """Segments of 1, 4 and 8 frames in turn; the budget is so many minutes of CPU time, measured once.

    Args:
        start: the ``model`` block, or ``start_from``.
    """
    values: dict[str, Any] = {
        "data": {"train": train, "test": held_out},
        "output": str(output),
        "batch_size": 8,
        "device": "cpu",
        "backprop": "adjoint",
        "max_time": f"{60.0 * minutes / _MEASURED_SHARE}s",
        "validation": {"n_starts": 16, "n_steps": 40},
        "curriculum": {
            "stages": [{"segment_length": s, "share": w} for s, w in ((1, 0.6), (4, 0.2), (8, 0.2))],
            "epochs": _N_VALIDATIONS,
            **({"lr": 5e-4} if "model" in start else {}),
        },
        **start,
    }
    file = output / "budget.json"
    if not file.exists():
        output.mkdir(parents=True, exist_ok=True)
        budget = _budget_in_cpu_time(parse_config(values))
        write_text(file, json.dumps({"minutes": minutes, **budget.model_dump()}) + "\n")
    kept = json.loads(file.read_text(encoding="utf-8"))
    if kept.pop("minutes") != minutes:
        raise SystemExit(f"{output} was begun with other --minutes: give another --output, or remove it")
    return parse_config({**values, "max_time": None, "budget": kept})


def _budget_in_cpu_time(config: Config) -> BudgetConfig:
    """What ``max_time`` buys on a core of one's own, however busy the computer is."""
    of_arm = arm_config(config, DYNAMIC, config.seed)
    split, _ = setup.load_split(of_arm)
    held_out = setup.validation_segments(of_arm, split.validation)
    potential = setup.potential_to_train(of_arm, split.train)
    wall, cpu = time.perf_counter(), time.process_time()
    budget = measure_budget(
        of_arm,
        potential,
        setup.make_loss(of_arm),
        setup.make_backprop(of_arm),
        split.train,
        len(held_out) * held_out.length,
        torch.device("cpu"),
    )
    stretch = (time.perf_counter() - wall) / (time.process_time() - cpu)
    return budget.model_copy(update={"evaluations": float(f"{budget.evaluations * stretch:.4g}")})


def trained_arms(config: Config, minutes: float, n_seeds: int, n_starts: int) -> dict[str, Any]:
    """All arms trained and measured, as plain numbers; the same call goes on after a kill."""
    settings = EvaluationSettings(horizon_fs=_HORIZON_FS, n_starts=n_starts, n_free_runs=0)
    found = run_comparison(config, n_seeds, settings, Told())
    dynamic = found.trained[DYNAMIC][0]
    return {
        "minutes": minutes,
        "seeds": n_seeds,
        "n_starts": found.plan.settings.n_starts,
        "labelled_frames": dynamic.labelled_frames,
        "evaluations": found.measured.evaluations,
        "rollout_cost": found.measured.rollout_cost,
        "headline": found.verdict.headline,
        "tests": [dataclasses.asdict(test) for test in found.tests],
        "arms": {arm: _of_arm(found, arm) for arm in found.arms},
        "round_trip": round_trip(load_model(dynamic.model)),
    }


def _of_arm(found: Comparison, arm: str) -> dict[str, Any]:
    """Median force error over the starts by mark, eV/Å, and CPU minutes: one number a seed."""
    marks = [one.at_marks("force") for one in found.held_out[arm]]
    return {
        "force_error": {mark: [of_seed.get(mark) for of_seed in marks] for mark in MARKS},
        "cpu_minutes": [one.cpu_s / 60.0 for one in found.trained[arm]],
    }


def round_trip(potential: Conservative) -> dict[str, float]:
    """Exported: relative difference of forces of the package's calculator, and of the file read back here."""
    model = potential.energy_model
    atoms = boxed(ethanol(9))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"trained{FILE_ENDING.get(model.family, '.pt')}"
        agreement = export(potential, path, atoms)
        back = type(model).from_file(path)
    set_precision(back, str(next(model.parameters()).dtype).removeprefix("torch."))
    again = compare(Conservative(back).eval(), Calculator(potential), atoms)
    return {"calculator": agreement.forces, "back": again.forces}


def ethanol(seed: int = 0) -> Atoms:
    """At about 300 K."""
    atoms, random = molecule("CH3CH2OH"), np.random.default_rng(seed)
    atoms.positions += random.normal(scale=0.03, size=atoms.positions.shape)
    atoms.set_velocities(
        np.sqrt(KB * 300.0 / atoms.get_masses())[:, None] * random.normal(size=atoms.positions.shape)
    )
    return atoms


def boxed(atoms: Atoms) -> Atoms:
    """In a periodic box, which some calculators need."""
    atoms = atoms.copy()
    atoms.center(vacuum=8.0)
    atoms.pbc = True
    return atoms


def training_table(name: str, trained: dict[str, Any]) -> str:
    """Force errors by arm and time, and the tests, in Markdown."""
    text = (
        f"\n## {name}: force error beside held-out ethanol, eV/Å\n"
        f"{trained['minutes']:g} CPU minutes an arm ({trained['evaluations']:.0f} evaluations), "
        f"{trained['seeds']} seed(s), {trained['labelled_frames']} labelled frames, {trained['n_starts']} "
        f"held-out starts; median over the starts, mean of the seeds (± their standard error). "
        f"{trained['headline']}\n\n"
    )
    text += "| arm | " + " | ".join(f"{mark} fs" for mark in MARKS) + " | CPU minutes |\n"
    text += "|---" * (len(MARKS) + 2) + "|\n"
    for arm, measured in trained["arms"].items():
        numbers = [_with_error(measured["force_error"][mark]) for mark in MARKS]
        minutes = ", ".join(f"{value:.1f}" for value in measured["cpu_minutes"])
        text += f"| {arm} | " + " | ".join(numbers) + f" | {minutes} |\n"
    for test in trained["tests"]:
        if test["ratio"] is not None and test["low"] is not None:
            p = "" if test["p"] is None else f", p = {test['p']:.2g}"
            text += (
                f"\n{test['quantity']}, dynamic over {test['control']}: {test['ratio']:.2f} "
                f"[{test['low']:.2f}, {test['high']:.2f}]{p}\n"
            )
    return text


def _with_error(of_seeds: list[float | None]) -> str:
    if not of_seeds or None in of_seeds:
        return "–"
    values = np.array(of_seeds, float)
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{values.mean():.3f} ± {values.std(ddof=1) / len(values) ** 0.5:.3f}"
