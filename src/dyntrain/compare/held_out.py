"""What each trained model does on the held-out runs, measured once and kept beside the model."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dyntrain.atomic import atomic_path
from dyntrain.data.segments import find_segments
from dyntrain.data.splits import Split
from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate import MARKS_FS, EvaluationSettings, ModelResult, Reference, evaluate_model
from dyntrain.evaluate.starts import common_dt_fs, longest_horizon, spread
from dyntrain.models.files import load_model
from dyntrain.observables import BoolArray, FloatArray, finite_or_none, quantile_over_starts

Progress = Callable[[str, int, int], None]

_FEWEST_STARTS = 6
"""Fewer starts cannot pass a two-sided sign test at 5 %, even if all agree (2 / 2⁶ = 0.03)."""

_PRIMARY_FS = 50.0


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Roll-outs of one model beside the held-out runs, and its free runs.

    times_fs:   [n_times]
    errors:     force (eV/Å), position (Å), energy (meV/atom): [n_times, n_starts], NaN once a start has burst
    failure_fs: time of failure of each free run, or its length, [n_runs]
    failed:     [n_runs]
    facts:      plain numbers and words beside them, as in compare.json
    """

    times_fs: FloatArray
    errors: dict[str, FloatArray]
    failure_fs: FloatArray
    failed: BoolArray
    facts: dict[str, Any]

    def index_at(self, mark_fs: float) -> int | None:
        """The frame nearest to a time, None beyond the horizon."""
        index = int(np.abs(self.times_fs - mark_fs).argmin())
        spacing = self.times_fs[1] - self.times_fs[0] if len(self.times_fs) > 1 else 0.0
        return index if abs(self.times_fs[index] - mark_fs) <= 0.5 * spacing + 1e-9 else None

    def at_marks(self, quantity: str) -> dict[str, float | None]:
        """Median over the starts at the marked times; None where half have burst."""
        medians = quantile_over_starts(self.errors[quantity], 0.5)
        places = {f"{mark:g}": self.index_at(mark) for mark in MARKS_FS}
        return {mark: finite_or_none(medians[k]) for mark, k in places.items() if k is not None}


def held_out_runs(split: Split) -> tuple[list[Trajectory], str]:
    """The runs to measure on, and which they are in words; never a training frame (``Split`` sees to it)."""
    if split.test:
        return split.test, "the test runs, which no training has seen"
    return split.validation, (
        "the validation runs, which no training has learnt from but which chose the epoch that is kept of "
        "each (give test runs to have runs that nothing has seen)"
    )


@dataclass(frozen=True)
class Plan:
    """What is measured, fixed before any model is.

    mark_fs:  time at which force deviations are tested: 50 fs, or the longest earlier mark that leaves six
              starts; None: no mark does
    settings: of the evaluation; roll-outs do not overlap up to the mark, because only such starts are
              independent enough to be counted in a test
    """

    mark_fs: float | None
    settings: EvaluationSettings


def make_plan(runs: Sequence[Trajectory], settings: EvaluationSettings) -> Plan:
    """As many starts as asked for, fewer where the runs are too short for them to be apart."""
    for mark in sorted((m for m in MARKS_FS if 0 < m <= _PRIMARY_FS), reverse=True):
        for n_starts in range(settings.n_starts, _FEWEST_STARTS - 1, -1):
            fewer = replace(settings, n_starts=n_starts)
            if _are_apart(runs, fewer, mark):
                return Plan(mark, fewer)
    return Plan(None, settings)


def _are_apart(runs: Sequence[Trajectory], settings: EvaluationSettings, mark_fs: float) -> bool:
    """Whether roll-outs can be asked for so many starts that do not overlap within ``mark_fs``."""
    dt_fs = common_dt_fs(runs)
    n_steps = longest_horizon(runs, max(round(settings.horizon_fs / dt_fs), 0), settings.n_starts)
    segments = spread(find_segments(runs, n_steps + 1, "held-out"), settings.n_starts, settings.seed)
    if n_steps * dt_fs < mark_fs - 1e-9 or len(segments) < settings.n_starts:
        return False
    same_run = segments.runs[1:] == segments.runs[:-1]
    return bool(np.all(np.diff(segments.starts)[same_run] * dt_fs >= mark_fs - 1e-9))


def measure(
    name: str,
    model: Path,
    device: torch.device,
    runs: Sequence[Trajectory],
    settings: EvaluationSettings,
    data: str,
    reference: Reference | None = None,
    progress: Progress | None = None,
) -> HeldOut:
    """Measure a model, or read what was measured of the same model, runs and settings before.

    Args:
        data: fingerprint of the runs.
        reference: for the audit of the structures the model's free runs visit.
    """
    file = model.with_name("held_out.npz")
    method = reference.name if reference is not None else None
    key = f"{hashlib.sha256(model.read_bytes()).hexdigest()} {data} {asdict(settings)} {method}"
    kept = _read(file, key)
    if kept is not None:
        return kept
    result = evaluate_model(
        name, load_model(model, device=device), runs, settings, reference=reference, progress=progress
    )
    found = _from_result(result)
    _write(file, key, found)
    return found


def _from_result(result: ModelResult) -> HeldOut:
    rollout, free, audit = result.rollout, result.free, result.audit
    facts: dict[str, Any] = {
        "one_step_force_mae_eV_A": rollout.one_step.force_mae,
        "doubling_time_fs": rollout.doubling_time_fs,
        "rollouts_burst": rollout.n_starts - int(rollout.n_alive[-1]),
        "kick_share": rollout.kick_share,
        "horizon_fs": rollout.horizon_fs,
        "drift_meV_atom_ps": None if free is None else free.drift_meV_atom_ps,
        "free_run_length_fs": None if free is None else free.run_length_fs,
        "criterion": None if free is None else str(free.criterion),
        "audit": None,
    }
    if audit is not None:
        facts["audit"] = {
            "reference": audit.reference,
            "n_runs": len(audit.runs),
            "times_fs": audit.times_fs.tolist(),
            "force_mae_eV_A": [finite_or_none(value) for value in audit.quantile(0.5)],
        }
    return HeldOut(
        rollout.times_fs,
        {"force": rollout.force_mae, "position": rollout.position_rmsd, "energy": rollout.energy_error},
        np.empty(0) if free is None else free.failure_fs,
        np.empty(0, bool) if free is None else free.failed,
        facts,
    )


def _write(file: Path, key: str, found: HeldOut) -> None:
    with atomic_path(file) as part, part.open("wb") as stream:
        np.savez_compressed(
            stream,
            header=np.array(json.dumps({"key": key, "facts": found.facts})),
            times_fs=found.times_fs,
            failure_fs=found.failure_fs,
            failed=found.failed,
            **{f"error_{name}": errors for name, errors in found.errors.items()},  # type: ignore[arg-type]
        )


def _read(file: Path, key: str) -> HeldOut | None:
    """What was measured with this key; None where nothing was, or it is damaged: it is measured again."""
    if not file.exists():
        return None
    try:
        with np.load(file, allow_pickle=False) as arrays:
            header = json.loads(str(arrays["header"]))
            if header["key"] != key:
                return None
            errors = {n.removeprefix("error_"): arrays[n] for n in arrays.files if n.startswith("error_")}
            return HeldOut(
                arrays["times_fs"], errors, arrays["failure_fs"], arrays["failed"], header["facts"]
            )
    except (ValueError, KeyError, OSError, zipfile.BadZipFile):
        return None
