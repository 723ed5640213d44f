"""The demo: from electronic structure to a verdict on dynamic training, in one command and a few minutes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from dyntrain import __version__
from dyntrain.atomic import write_text
from dyntrain.config import PRESETS, BudgetConfig, Config, dump_config, parse_config
from dyntrain.data.readers import read_trajectories
from dyntrain.data.run_report import RunReport
from dyntrain.errors import UserError
from dyntrain.evaluate import EvaluationSettings, ModelResult, Verdict, evaluate_models, judge
from dyntrain.models.files import load_model
from dyntrain.reference import AimdProgress, AimdSettings, generate_aimd
from dyntrain.report import LearningCurve, require_report_extra, write_report
from dyntrain.training import Observer, TrainingResult, setup, train
from dyntrain.training.budget import measure_budget
from dyntrain.training.logs import read_log

ARMS = {
    "one_step": [{"segment_length": 1, "share": 1.0}],
    "dynamic": PRESETS["dynamic"]["curriculum"]["stages"],
}
"""What the two trainings differ in, and all they differ in: the segment lengths over the budget."""


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of the demo; the short form is the same code with smaller numbers."""

    n_training_runs: int = 3
    n_steps: int = 1000
    n_held_out_steps: int = 2000
    n_validation_steps: int = 400
    training_time: str = "95s"
    epochs: int = 16
    n_starts: int = 16
    n_free_runs: int = 8
    free_length_fs: float = 5000.0
    seed: int = 0


SHORT = DemoSettings(
    n_training_runs=3,
    n_steps=250,
    n_held_out_steps=400,
    n_validation_steps=100,
    training_time="9s",
    epochs=4,
    free_length_fs=250.0,
)


class DemoObserver(Protocol):
    """Is told how the demo goes; the command line shows it."""

    def say(self, text: str) -> None: ...

    def aimd(self, what: str) -> AbstractContextManager[Callable[[AimdProgress], None]]: ...

    def checked(self, report: RunReport) -> None: ...

    def training(self, name: str) -> AbstractContextManager[Observer]: ...

    def evaluating(self) -> AbstractContextManager[Callable[[str, int, int], None]]: ...

    def result(self, results: list[ModelResult], verdict: Verdict) -> None: ...


@dataclass(frozen=True)
class _Files:
    """The runs of the demo by their part."""

    train: list[Path]
    validation: list[Path]
    held_out: list[Path]


def run_demo(output: Path, settings: DemoSettings, observer: DemoObserver) -> Path:
    """Make AIMD, check it, train twice at equal frames and budget, judge both; returns the page's path.

    The same call after an interruption goes on; a finished training is not repeated.

    Raises:
        UserError: tblite or the report packages missing, or a folder that cannot be used.
    """
    require_report_extra()
    begun = time.perf_counter()
    stages: dict[str, float] = {}

    @contextmanager
    def stage(name: str, text: str) -> Iterator[None]:
        observer.say(text)
        begin = time.perf_counter()
        yield
        stages[name] = round(time.perf_counter() - begin, 2)

    with stage("aimd", "1. AIMD of ethanol with GFN2-xTB (tblite), NVE after thermalising at 500 K"):
        files = _make_aimd(output / "aimd", settings, observer)
    with stage("check", "2. What `dyntrain check` finds"):
        _check(files, observer)
    with stage("budget", "3. The same network twice: same start, same frames, same budget"):
        budget = _budget(output, files, settings)
    trained: dict[str, TrainingResult] = {}
    for name in ARMS:
        with stage(f"train_{name}", f"   {name.replace('_', '-')} training"), observer.training(name) as bar:
            config = arm_config(name, output, files, settings, budget)
            write_text(output / f"{name}.yaml", dump_config(config))
            trained[name] = train(config, observer=bar)
    with stage("evaluate", "4. Roll-outs beside the held-out run (its kicks applied), then free runs"):
        results = _evaluate(trained, files, settings, observer)
    verdict = judge(results)
    observer.result(results, verdict)
    page = output / "report.html"
    write_report(
        page,
        "Dynamic against one-step training: ethanol",
        verdict,
        results,
        learning_curves=[_learning_curve(name, output) for name in ARMS],
        provenance=_provenance(files, settings, budget, trained),
    )
    summary = _summary(results, verdict, budget, trained)
    summary |= {"wall_s": round(time.perf_counter() - begun, 1), "wall_s_by_stage": stages}
    write_text(output / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return page


def _make_aimd(folder: Path, settings: DemoSettings, observer: DemoObserver) -> _Files:
    def make(part: str, n_runs: int, n_steps: int, number: int) -> list[Path]:
        aimd = AimdSettings(system="ethanol", n_steps=n_steps, seed=3 * settings.seed + number)
        with observer.aimd(f"{part}: {n_runs} × {n_steps} steps of 0.5 fs") as progress:
            return generate_aimd(
                aimd, folder / part, n_runs=n_runs, workers=min(2, n_runs), progress=progress
            )

    return _Files(
        train=make("train", settings.n_training_runs, settings.n_steps, 0),
        validation=make("validation", 1, settings.n_validation_steps, 1),
        held_out=make("held_out", 1, settings.n_held_out_steps, 2),
    )


def _check(files: _Files, observer: DemoObserver) -> None:
    from dyntrain.data.diagnose import diagnose, refuse_unusable

    for run in read_trajectories([*files.train, *files.validation, *files.held_out]):
        report = diagnose(run)
        observer.checked(report)
        refuse_unusable(report)


def arm_config(
    name: str, output: Path, files: _Files, settings: DemoSettings, budget: BudgetConfig | None
) -> Config:
    """The configuration of one arm; without a budget, one that buys ``training_time``."""
    values: dict[str, Any] = {
        "data": {
            "train": [str(f) for f in files.train],
            "validation": [str(f) for f in files.validation],
        },
        "output": str(output / name),
        "seed": settings.seed,
        "curriculum": {"kind": "schedule", "stages": ARMS[name], "epochs": settings.epochs},
    }
    if budget is None:
        values["max_time"] = settings.training_time
    else:
        values["budget"] = budget.model_dump()
    return parse_config(values, f"demo arm {name}")


def _budget(output: Path, files: _Files, settings: DemoSettings) -> BudgetConfig:
    """The budget of both arms: measured once, then read from ``budget.json``."""
    path = output / "budget.json"
    if path.exists():
        try:
            return BudgetConfig.model_validate_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is damaged: remove it to measure the budget again") from error
    config = arm_config("dynamic", output, files, settings, None)
    split, _ = setup.load_split(config)
    held_out = setup.validation_segments(config, split.validation)
    budget = measure_budget(
        config,
        setup.make_potential(config, split.train),
        setup.make_loss(config),
        setup.make_backprop(config),
        split.train,
        len(held_out) * held_out.length,
        torch.device("cpu"),
    )
    write_text(path, budget.model_dump_json(indent=1) + "\n")
    return budget


def _evaluate(
    trained: dict[str, TrainingResult], files: _Files, settings: DemoSettings, observer: DemoObserver
) -> list[ModelResult]:
    held_out = read_trajectories(files.held_out)
    with observer.evaluating() as progress:
        return evaluate_models(
            {name: load_model(result.model) for name, result in trained.items()},
            held_out,
            EvaluationSettings(
                n_starts=settings.n_starts,
                n_free_runs=settings.n_free_runs,
                free_length_fs=settings.free_length_fs,
                seed=settings.seed,
            ),
            progress=progress,
        )


def _learning_curve(name: str, output: Path) -> LearningCurve:
    rows = [r for r in read_log(output / name / "log.csv") if r["validation_force_mae"] is not None]
    return LearningCurve(
        name=name,
        cost=[r["evaluations"] or 0.0 for r in rows],
        error=[r["validation_force_mae"] or 0.0 for r in rows],
        segment_length=[int(r["segment_length"] or 1) for r in rows],
        cost_label="training evaluations, weighted by cost",
        error_label="validation force error along roll-outs (eV/Å)",
    )


def _provenance(
    files: _Files, settings: DemoSettings, budget: BudgetConfig, trained: dict[str, TrainingResult]
) -> dict[str, str]:
    frames = settings.n_training_runs * (settings.n_steps + 1)
    return {
        "reference": "GFN2-xTB by tblite; ethanol, gas phase, NVE at about 500 K, 0.5 fs",
        "labelled frames of each arm": f"{frames} of {settings.n_training_runs} runs",
        "held-out run": f"{files.held_out[0]}, {settings.n_held_out_steps + 1} frames",
        "budget of each arm": f"{budget.evaluations:g} evaluations (cost of one in a roll-out: "
        f"{budget.costs.rollout:g})",
        "time spent training": ", ".join(
            f"{name} {result.progress.wall_s:.0f} s wall, {result.progress.cpu_s:.0f} s CPU"
            for name, result in trained.items()
        ),
        "seed": str(settings.seed),
        "dyntrain": __version__,
        "to repeat": "budget.json, one_step.yaml, dynamic.yaml and aimd/ lie beside this page",
    }


def _summary(
    results: list[ModelResult], verdict: Verdict, budget: BudgetConfig, trained: dict[str, TrainingResult]
) -> dict[str, Any]:
    records = {result.name: result.to_dict() for result in results}
    keys = ("force_mae_eV_A", "drift_meV_atom_ps", "time_to_failure_fs")
    return {
        **{key: {name: record[key] for name, record in records.items()} for key in keys},
        "verdict": verdict.headline,
        "winner": verdict.winner,
        "budget": budget.model_dump(),
        "evaluations": {name: result.progress.evaluations for name, result in trained.items()},
        "training_wall_s": {name: round(r.progress.wall_s, 1) for name, r in trained.items()},
        "training_cpu_s": {name: round(r.progress.cpu_s, 1) for name, r in trained.items()},
        "dyntrain": __version__,
    }
