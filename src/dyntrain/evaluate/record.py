"""The plain form of an evaluation, for JSON; docs/verdict.md says what each key means."""

from __future__ import annotations

import dataclasses
from typing import Any

from dyntrain import observables
from dyntrain.evaluate.audit import AuditCurve
from dyntrain.evaluate.distributions import MotionComparison
from dyntrain.evaluate.free import FreeRuns
from dyntrain.evaluate.rollouts import OneStepErrors, RolloutErrors
from dyntrain.evaluate.speed import Speed
from dyntrain.observables import FloatArray

_QUARTILES = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}


def plain_record(
    rollout: RolloutErrors,
    free: FreeRuns | None,
    audit: AuditCurve | None,
    motion: MotionComparison | None,
    speed: Speed | None,
) -> dict[str, Any]:
    """Plain numbers and words; null where there is no finite number (too many runs have burst)."""
    marks = rollout.at_marks(rollout.force_mae)
    return {
        "one_step": _one_step(rollout.one_step),
        "rollout": _rollout(rollout),
        "force_mae_eV_A": {f"{mark:g}": value for mark, value in marks.items()},
        "drift_meV_atom_ps": free.drift_meV_atom_ps if free else None,
        "nve_score": free.nve_score if free else None,
        "stability_score": free.stability_score if free else None,
        "time_to_failure_fs": free.time_to_failure() if free else None,
        "free_runs": _free(free) if free else None,
        "audit": _audit(audit) if audit else None,
        "motion": _motion(motion) if motion else None,
        "speed": dataclasses.asdict(speed) if speed else None,
    }


def _one_step(one: OneStepErrors) -> dict[str, Any]:
    return {
        "n_frames": one.n_frames,
        "force_mae_eV_A": one.force_mae,
        "force_rmse_eV_A": one.force_rmse,
        "force_mae_per_element_eV_A": one.force_mae_per_element,
        "energy_mae_meV_atom": one.energy_mae,
        "energy_mae_shifted_meV_atom": one.energy_mae_shifted,
    }


def _rollout(rollout: RolloutErrors) -> dict[str, Any]:
    curves = {
        "force_mae_eV_A": rollout.force_mae,
        "force_rmse_eV_A": rollout.force_rmse,
        "position_rmsd_A": rollout.position_rmsd,
        "energy_error_meV_atom": rollout.energy_error,
        "twin_distance_A": rollout.twin_distance,
    }
    return {
        "kicks_applied": True,
        "kick_share": rollout.kick_share,
        "horizon_fs": rollout.horizon_fs,
        "horizon_asked_fs": rollout.horizon_asked_fs,
        "n_starts": rollout.n_starts,
        "starts": [{"file": file, "frame": frame} for file, frame in rollout.starts],
        "doubling_time_fs": rollout.doubling_time_fs,
        "times_fs": rollout.times_fs.tolist(),
        "n_alive": rollout.n_alive.tolist(),
        **{name: _quartiles(errors) for name, errors in curves.items()},
        "force_mae_per_element_eV_A": {
            symbol: _quartiles(errors) for symbol, errors in rollout.force_mae_per_element.items()
        },
    }


def _quartiles(errors: FloatArray) -> dict[str, list[float | None]]:
    return {name: _plain(observables.quantile_over_starts(errors, q)) for name, q in _QUARTILES.items()}


def _plain(values: FloatArray) -> list[float | None]:
    return [observables.finite_or_none(value) for value in values]


def _free(free: FreeRuns) -> dict[str, Any]:
    return {
        "criterion": str(free.criterion),
        "criterion_kind": free.criterion.kind,
        "temperature_K": free.temperature_K,
        "dt_fs": free.dt_fs,
        "wall_s": free.wall_s,
        "failure_fs": free.failure_fs.tolist(),
        "failed": free.failed.tolist(),
        "reasons": {str(run): reason for run, reason in free.reasons.items()},
        "drift_meV_atom_ps": _plain(free.drift),
        "nve_scores": _plain(free.nve_scores),
        "stability_scores": _plain(free.stability),
    }


def _audit(audit: AuditCurve) -> dict[str, Any]:
    return {
        "reference": audit.reference,
        "agreement": observables.finite_or_none(audit.agreement),
        "runs": audit.runs.tolist(),
        "times_fs": audit.times_fs.tolist(),
        "n_whole": audit.n_whole.tolist(),
        "n_failed_calculations": len(audit.failures),
        "failures": list(audit.failures),
        "force_mae_eV_A": {name: _plain(audit.quantile(q)) for name, q in _QUARTILES.items()},
        "force_mae_of_runs_eV_A": [_plain(row) for row in audit.force_mae],
        "force_rmse_of_runs_eV_A": [_plain(row) for row in audit.force_rmse],
        "energy_error_of_runs_meV_atom": [_plain(row) for row in audit.energy_error],
    }


def _motion(motion: MotionComparison) -> dict[str, Any]:
    return {
        "left_out": dict(motion.left_out),
        "curves": [
            {
                "kind": curve.kind,
                "label": curve.label,
                "x": curve.x.tolist(),
                "recorded": _plain(curve.recorded.mean),
                "recorded_error": _plain(curve.recorded.error),
                "model": _plain(curve.model.mean),
                "model_error": _plain(curve.model.error),
                "difference": observables.finite_or_none(curve.difference),
                "difference_by_chance": observables.finite_or_none(curve.by_chance),
            }
            for curve in motion.curves
        ],
    }
