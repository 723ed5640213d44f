"""The comparison from a training configuration to numbers: train every arm and seed, measure, test, judge."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dyntrain.compare.arms import (
    DYNAMIC,
    NOISE,
    ONE_STEP,
    Measured,
    arm_config,
    arms_of,
    dynamic_config,
    labelled_frames,
)
from dyntrain.compare.held_out import (
    HeldOut,
    Plan,
    held_out_runs,
    make_plan,
    measure,
)
from dyntrain.compare.measuring import device_for, keep, measured_or_kept, rms_drift
from dyntrain.compare.statistics import PairedTest
from dyntrain.compare.trained import Trained
from dyntrain.compare.verdict import judge, paired_tests
from dyntrain.config import Config
from dyntrain.data.splits import Split
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.evaluate import EvaluationSettings, Reference, Verdict, check_reference
from dyntrain.models.files import load_model
from dyntrain.training import Observer, setup, train


@dataclass(frozen=True, eq=False)
class Comparison:
    """All that was measured; ``trained`` and ``held_out`` by arm, one entry a seed.

    where:        which runs are held out, in words
    plan:         how they were measured and what was to be tested
    """

    config: Config
    seeds: list[int]
    arms: list[str]
    measured: Measured
    runs: list[Trajectory]
    where: str
    plan: Plan
    trained: dict[str, list[Trained]]
    held_out: dict[str, list[HeldOut]]
    tests: list[PairedTest]
    verdict: Verdict


class CompareObserver(Protocol):
    """Is told how the comparison goes; the command line shows it."""

    def say(self, text: str) -> None: ...

    def training(self, name: str) -> AbstractContextManager[Observer]: ...

    def progress(self) -> AbstractContextManager[Callable[[str, int, int], None]]: ...


def run_comparison(
    config: Config,
    n_seeds: int,
    settings: EvaluationSettings,
    observer: CompareObserver,
    reference: Reference | None = None,
) -> Comparison:
    """Train all arms at equal labelled frames and equal budget, measure them on held-out runs and judge.

    Every training has a folder of its own in ``config.output``; the same call after an interruption goes on,
    and what is finished is not repeated.

    Args:
        n_seeds: trainings of each arm, with the configuration's seed and those after it.
        settings: of the evaluation; fewer starts are taken where they would overlap.
        reference: audits the structures that the models' free runs visit.

    Raises:
        UserError: a configuration that cannot be compared, or anything that ``train`` refuses.
    """
    config = dynamic_config(config)
    split, _ = setup.load_split(config)
    runs, where = held_out_runs(split)
    if reference is not None:
        check_reference(reference, runs)  # now, not after hours of training
    plan = make_plan(runs, settings)
    seeds = [config.seed + number for number in range(n_seeds)]
    _check_equal_frames(config, split, seeds)
    _make(Path(config.output))
    observer.say(f"{len(arms_of(config))} arms × {n_seeds} seed(s), measured on {where}.")
    observer.say(_stated(plan.mark_fs))
    trained, measured = _train_all(config, seeds, split, observer)
    data = setup.fingerprint(Split(split.train, runs, [], ""))
    device = device_for(config)
    with observer.progress() as progress:
        held_out = {
            arm: [
                measure(
                    f"{arm}, seed {seed}", one.model, device, runs, plan.settings, data, reference, progress
                )
                for seed, one in zip(seeds, of_arm, strict=True)
            ]
            for arm, of_arm in trained.items()
        }
    tests = paired_tests(held_out, plan.mark_fs)
    verdict = judge(tests, trained, held_out, plan.mark_fs)
    arms = list(trained)
    return Comparison(config, seeds, arms, measured, runs, where, plan, trained, held_out, tests, verdict)


def _train_all(
    config: Config, seeds: Sequence[int], split: Split, observer: CompareObserver
) -> tuple[dict[str, list[Trained]], Measured]:
    """All arms of the first seed, then of the next; each noise is measured on its one-step model."""
    file = Path(config.output) / "measured.json"
    measured = measured_or_kept(config, split, file)
    trained: dict[str, list[Trained]] = {arm: [] for arm in arms_of(config)}
    for seed in seeds:
        for arm, of_arm in trained.items():
            if arm == NOISE and seed not in measured.noise:
                model = load_model(trained[ONE_STEP][-1].model, device=device_for(config))
                drift = rms_drift(model, arm_config(config, DYNAMIC, seed), split.train)
                measured = dataclasses.replace(measured, noise={**measured.noise, seed: drift})
                keep(measured, config, file)
            of_arm.append(_train(arm_config(config, arm, seed, measured), arm, split.train, observer))
    return trained, measured


def _make(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output: cannot make the folder {output} ({error.strerror})") from error


def _stated(mark: float | None) -> str:
    if mark is None:
        return (
            "The held-out runs are too short for six roll-outs of 10 fs that do not overlap: force "
            "deviations will be shown but not tested."
        )
    return f"Tested will be, fixed now: force deviation after {mark:g} fs, and time to failure of free runs."


def _check_equal_frames(config: Config, split: Split, seeds: Sequence[int]) -> None:
    """That all arms learn from the same labelled frames: without it nothing that follows means anything."""
    for seed in seeds if config.training_points is not None else seeds[:1]:
        sets = [
            labelled_frames(arm_config(config, arm, seed), split.train).tolist() for arm in arms_of(config)
        ]
        if any(found != sets[0] for found in sets):
            raise RuntimeError(f"the arms would learn from different labelled frames (seed {seed})")


def _train(config: Config, arm: str, runs: Sequence[Trajectory], observer: CompareObserver) -> Trained:
    with observer.training(f"{arm}, seed {config.seed}") as bar:
        result = train(config, observer=bar)
    return Trained.from_result(result, len(labelled_frames(config, runs)))
