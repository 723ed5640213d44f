"""compare.json: the comparison as plain numbers (the keys are documented in docs/compare.md)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from dyntrain import __version__
from dyntrain.compare.arms import NOISE, WHAT_IT_IS
from dyntrain.compare.held_out import HeldOut
from dyntrain.compare.run import Comparison
from dyntrain.compare.trained import Trained
from dyntrain.observables import finite_or_none


def to_dict(comparison: Comparison) -> dict[str, Any]:
    """Plain numbers and words for JSON; null where there is no finite number."""
    verdict = comparison.verdict
    return {
        "dyntrain": __version__,
        "verdict": {
            "winner": verdict.winner,
            "headline": verdict.headline,
            "reasons": list(verdict.reasons),
            "primary_mark_fs": comparison.plan.mark_fs,
            "tests": [_of_test(test) for test in comparison.tests],
        },
        "arms": [
            {
                "name": arm,
                "what": WHAT_IT_IS[arm],
                "seeds": [_of_seed(comparison, arm, number) for number in range(len(comparison.seeds))],
            }
            for arm in comparison.arms
        ],
        "budget": {
            "evaluations": comparison.measured.evaluations,
            "rollout_cost": comparison.measured.rollout_cost,
        },
        "held_out": {
            "what": comparison.where,
            "files": [
                {
                    "file": run.file,
                    "first_frame": run.first_frame,
                    "n_frames": run.n_frames,
                    "dt_fs": run.dt_fs,
                }
                for run in comparison.runs
            ],
            **dataclasses.asdict(comparison.plan.settings),
        },
        "config": comparison.config.model_dump(mode="json"),
    }


def _of_test(test: Any) -> dict[str, Any]:
    record = dataclasses.asdict(test)
    return {
        key: finite_or_none(value) if isinstance(value, float) else value for key, value in record.items()
    }


def _of_seed(comparison: Comparison, arm: Any, number: int) -> dict[str, Any]:
    seed = comparison.seeds[number]
    record = {"seed": seed, **_of_training(comparison.trained[arm][number])}
    if arm == NOISE:
        record["noise_A"] = comparison.measured.noise[seed]
    return record | _of_held_out(comparison.held_out[arm][number])


def _of_training(one: Trained) -> dict[str, Any]:
    return {
        "model": str(one.model),
        "evaluations": one.evaluations,
        "seconds": round(one.wall_s, 2),
        "cpu_seconds": round(one.cpu_s, 2),
        "labelled_frames": one.labelled_frames,
        "segment_length_of_model": one.segment_length,
        "ended": one.ended,
    }


def _of_held_out(found: HeldOut) -> dict[str, Any]:
    failures = None
    if found.failed.size:
        failures = {
            "n_runs": int(found.failed.size),
            "n_failed": int(found.failed.sum()),
            "mean_fs": float(np.mean(found.failure_fs)),
            "failure_fs": found.failure_fs.tolist(),
            "failed": found.failed.tolist(),
        }
    return {
        "deviation_eV_A": found.at_marks("force"),
        "position_deviation_A": found.at_marks("position"),
        "energy_deviation_meV_atom": found.at_marks("energy"),
        "time_to_failure": failures,
        **found.facts,
    }
