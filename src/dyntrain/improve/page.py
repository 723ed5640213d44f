"""From the rounds' results to their page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dyntrain import __version__
from dyntrain.config import ImproveConfig
from dyntrain.improve.rounds import RoundResult, at_marks
from dyntrain.report.improve_page import ImprovedRound, write_improve_page


def write_page(
    path: Path,
    results: Sequence[RoundResult],
    told: Sequence[Mapping[str, Any]],
    reference: str,
    settings: ImproveConfig,
    finished: str | None,
) -> None:
    """Write ``improve.html``; it appears whole or not at all.

    Args:
        told: of the exploration and the reference, for round 1 and later ones.
    """
    rounds = [
        ImprovedRound(
            number=result.number,
            calls=result.calls,
            deviation=result.deviation,
            audit=result.audit,
            failure_fs=result.failure_fs,
            failed=result.failed,
            run_length_fs=result.run_length_fs,
            median_time_to_failure_fs=result.median_time_to_failure_fs,
            found=told[result.number - 1] if result.number else None,
        )
        for result in results
    ]
    temperature, committee = settings.temperature, settings.committee
    facts = {
        "reference": reference,
        "ended": finished or "not yet",
        "free runs": f"NVE, {settings.horizon}; velocities "
        + ("of the recording" if temperature is None else f"drawn at {temperature:g} K"),
        "the reference is asked": "before failures, and "
        + (f"where the model and a committee of {committee} disagree" if committee else "at random times"),
        "a free run has failed when": results[0].criterion,
        "reference calculations for the audits": str(sum(result.audit_calls for result in results)),
        "audits that the reference failed in": str(sum(len(result.audit_failures) for result in results)),
        "dyntrain": __version__,
    }
    write_improve_page(path, rounds, facts, _headline(results))


def _headline(results: Sequence[RoundResult]) -> str:
    first, last = results[0], results[-1]
    if last is first:
        return f"At the start {first.n_failed} of {len(first.failed)} free runs failed"
    before, after = (at_marks(result.deviation, (50.0, 10.0, 0.0)) for result in (first, last))
    errors = [
        f"the force error after {mark} fs is {error:.2g} eV/Å (was {before[mark]:.2g}), and "
        for mark, error in after.items()
        if error is not None and before[mark] is not None
    ]
    return (
        f"{last.calls} reference calculations later {errors[0] if errors else ''}{last.n_failed} of "
        f"{len(last.failed)} free runs fail (were {first.n_failed})"
    )
