"""Run report: what is known of one reference run, as `dyntrain check` tells it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dyntrain.data.thermostat import Ensemble
from dyntrain.data.trajectory import DtOrigin, VelocitiesOrigin
from dyntrain.errors import UserError

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True)
class Finding:
    """Something a user should know of a run: `error` makes it unusable, `warning` needs a look."""

    code: str
    severity: Severity
    message: str
    frames: tuple[int, ...] = ()


def finding(
    code: str,
    severity: Severity,
    sure: str,
    what: str,
    *,
    training: str,
    mend: str = "",
    frames: tuple[int, ...] = (),
) -> Finding:
    """A finding in one sentence: what and how sure, what happens in training, what to do.

    Args:
        sure: "certain", "very likely", "likely" or "a guess".
    """
    parts = [f"{what} ({sure})", training, mend]
    return Finding(code, severity, "; ".join(part for part in parts if part) + ".", frames)


@dataclass(frozen=True)
class RunReport:
    """What `dyntrain check` tells of one run; None stands for what cannot be determined.

    dt_fs: time between frames that is used; dt_fs_stated, dt_fs_inferred: as the user or file says, and as
        positions and forces say; dt_correlation: of second differences with the fitted forces.
    stride: 1 where every step was saved, n where the file says that every n-th was, else None.
    residual, residual_held, residual_after_friction: median |δ²r − dt²F/m| / |dt²F/m|: as it is; without what
        constraints, the centre of mass and a changing cell do; and with one fitted friction a frame besides.
    barostat: whether positions are scaled with a changing cell.
    fastest_period_fs: of the modes that carry kinetic energy.
    kick_ratio: rms of the kicks over rms of dt²F/m; rounding for NVE.
    temperature_K, temperature_from_positions_K: from the velocities and from finite differences (3N degrees).
    drift_meV_atom_ps: of the total energy, NVE only, fitted within the stretches between breaks, so that
        resets which restore the energy do not hide it.
    closest_A: smallest distance of each element pair, over (at most 200 of) the frames.
    energy_slope, energy_correlation: energy changes against −F·Δr; both 1 where they agree.
    breaks: frames b such that no window may hold both b − 1 and b; fixed_atoms: atoms that never move.
    """

    file: str
    n_frames: int | None = None
    n_atoms: int | None = None
    formula: str | None = None
    dt_fs: float | None = None
    dt_origin: DtOrigin | None = None
    dt_fs_stated: float | None = None
    dt_fs_inferred: float | None = None
    dt_correlation: float | None = None
    stride: int | None = None
    residual: float | None = None
    residual_held: float | None = None
    residual_after_friction: float | None = None
    fastest_period_fs: float | None = None
    ensemble: Ensemble = "unknown"
    barostat: bool | None = None
    wrapped: bool | None = None
    shuffled: bool | None = None
    breaks: tuple[int, ...] = ()
    fixed_atoms: tuple[int, ...] = ()
    velocities: VelocitiesOrigin | None = None
    kick_ratio: float | None = None
    temperature_K: float | None = None
    temperature_from_positions_K: float | None = None
    drift_meV_atom_ps: float | None = None
    closest_A: dict[str, float] | None = None
    largest_force_eV_A: float | None = None
    energy_slope: float | None = None
    energy_correlation: float | None = None
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether dynamic training can use the run."""
        return not any(finding.severity == "error" for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """Plain dictionary for JSON, `usable` included; numbers that are not finite become None."""
        finite = {
            key: None if isinstance(value, float) and not np.isfinite(value) else value
            for key, value in dataclasses.asdict(self).items()
        }
        return {**finite, "usable": self.usable}


def refused(file: str, mistake: UserError) -> RunReport:
    """The report of a run that could not even be read."""
    return RunReport(file=file, findings=(Finding("unreadable", "error", str(mistake)),))


def refuse_unusable(report: RunReport) -> None:
    """Raise the first error found as a UserError."""
    for finding in report.findings:
        if finding.severity == "error":
            message = finding.message
            raise UserError(message if message.startswith(report.file) else f"{report.file}: {message}")
