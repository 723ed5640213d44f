"""All that was measured of one model, and its plain form for JSON."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dyntrain import observables
from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate.free import FreeRuns, criterion_for, free_runs
from dyntrain.evaluate.rollouts import RolloutErrors, rollout_errors
from dyntrain.evaluate.starts import Progress, pick_starts
from dyntrain.observables import FloatArray
from dyntrain.potential import Potential


@dataclass(frozen=True, eq=False)
class ModelResult:
    """All that was measured of one model."""

    name: str
    rollout: RolloutErrors
    free: FreeRuns | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON; null where there is no finite number (too many starts have burst)."""
        rollout, one = self.rollout, self.rollout.one_step
        curves = {
            "force_mae_eV_A": rollout.force_mae,
            "force_rmse_eV_A": rollout.force_rmse,
            "position_rmsd_A": rollout.position_rmsd,
            "energy_error_meV_atom": rollout.energy_error,
        }
        record: dict[str, Any] = {
            "name": self.name,
            "one_step": {
                "n_frames": one.n_frames,
                "force_mae_eV_A": one.force_mae,
                "force_rmse_eV_A": one.force_rmse,
                "force_mae_per_element_eV_A": one.force_mae_per_element,
                "energy_mae_meV_atom": one.energy_mae,
                "energy_mae_shifted_meV_atom": one.energy_mae_shifted,
            },
            "rollout": {
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
            },
            "force_mae_eV_A": {
                f"{mark:g}": value for mark, value in rollout.at_marks(rollout.force_mae).items()
            },
            "drift_meV_atom_ps": None,
            "time_to_failure_fs": None,
        }
        if self.free is not None:
            record["drift_meV_atom_ps"] = self.free.drift_meV_atom_ps
            record["time_to_failure_fs"] = self.free.time_to_failure()
            record["free_runs"] = {
                "criterion": self.free.criterion,
                "dt_fs": self.free.dt_fs,
                "wall_s": self.free.wall_s,
                "failure_fs": self.free.failure_fs.tolist(),
                "failed": self.free.failed.tolist(),
                "reasons": {str(run): reason for run, reason in self.free.reasons.items()},
                "drift_meV_atom_ps": [observables.finite_or_none(drift) for drift in self.free.drift],
            }
        return record


def evaluate_model(
    name: str,
    potential: Potential,
    trajectories: Sequence[Trajectory],
    *,
    horizon_fs: float = 150.0,
    n_starts: int = 16,
    n_free_runs: int = 8,
    free_length_fs: float = 1000.0,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> ModelResult:
    """Measure one model on held-out runs: roll-outs against them, then free runs from their frames.

    Args:
        name: the model's, in tables and figures.
        horizon_fs, n_starts, seed: see ``rollout_errors``; the same seed gives every model the same starts.
        n_free_runs, free_length_fs: number and length of the free runs (0 runs: none).
        progress: called with (what is done, steps done, steps in all).

    Raises:
        UserError: no run, different time steps, or an element the model does not know.
    """

    def telling(what: str) -> Progress | None:
        return None if progress is None else functools.partial(progress, f"{name}: {what}")

    against = rollout_errors(
        potential,
        trajectories,
        horizon_fs=horizon_fs,
        n_starts=n_starts,
        seed=seed,
        progress=telling("roll-outs"),
    )
    if n_free_runs < 1:
        return ModelResult(name, against)
    free = free_runs(
        potential,
        pick_starts(trajectories, n_free_runs, seed),
        trajectories[0].dt,
        free_length_fs,
        criterion=criterion_for(trajectories),
        progress=telling("free runs"),
    )
    return ModelResult(name, against, free)


def _quartiles(errors: FloatArray) -> dict[str, list[float | None]]:
    names = {"lower_quartile": 0.25, "median": 0.5, "upper_quartile": 0.75}
    return {
        name: [observables.finite_or_none(value) for value in observables.quantile_over_starts(errors, q)]
        for name, q in names.items()
    }
