"""Compare: energies of another zero, seen only where several runs of one composition lie side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dyntrain.data.alike import energy_offset
from dyntrain.data.run_report import Finding, finding
from dyntrain.data.trajectory import Trajectory

# Runs differ by another zero where their mean energies lie so many spreads (of both runs) apart, and at least
# this far apart for each atom (eV): isomers and adsorption stay below, another functional or code does not.
_SPREADS, _LEAST_PER_ATOM = 10.0, 0.05
# At like structures far less is enough: so many times the scatter over these, and so much for each atom (eV).
_SCATTERS, _LEAST_AT_LIKE_STRUCTURES = 5.0, 0.001


def find_other_zeros(runs: Sequence[Trajectory]) -> dict[str, tuple[Finding, ...]]:
    """Findings by file: the runs whose energies have another zero than those of their composition's others.

    By their means, or where these are near, by what energies and forces say at like structures. The run is
    told whose mean is farthest from the median of its composition's runs; of two runs, the second.
    """
    by_formula: dict[str, list[Trajectory]] = defaultdict(list)
    for run in runs:
        by_formula[run.formula].append(run)
    found: dict[str, tuple[Finding, ...]] = {}
    for alike in by_formula.values():
        means = np.array([run.energies.mean() for run in alike])
        reference = int(np.argsort(means, kind="stable")[(len(alike) - 1) // 2]) if len(alike) > 2 else 0
        others = [run for run in alike if run is not alike[reference]]
        found |= {run.file: (zero,) for run in others if (zero := _another_zero(run, alike[reference]))}
    return found


def _another_zero(run: Trajectory, other: Trajectory) -> Finding | None:
    gap = float(run.energies.mean() - other.energies.mean())
    spread = float(run.energies.std() + other.energies.std())
    if abs(gap) > max(_SPREADS * spread, _LEAST_PER_ATOM * run.n_atoms):
        sure = "very likely" if abs(gap) > run.n_atoms else "likely"
        what = (
            f"the mean energy lies {gap:+.4g} eV from that of {other.file}, which holds the same "
            f"{run.formula}, far beyond what either varies by: another zero of the energy or other settings, "
            "or else another isomer"
        )
        return _finding(sure, what)
    offset = energy_offset(run, other)
    if offset is None:
        return None
    least = max(_SCATTERS * offset.scatter, _LEAST_AT_LIKE_STRUCTURES * run.n_atoms)
    if abs(offset.mean) < least:
        return None
    what = (
        f"at like structures ({offset.distance:.2g} Å apart, the forces' work between them taken off) the "
        f"energies lie {offset.mean:+.4g} ± {offset.scatter:.1g} eV from those of {other.file}: another zero "
        "of the energy or other settings"
    )
    return _finding("very likely", what)


def _finding(sure: str, what: str) -> Finding:
    return finding(
        "another_energy_zero",
        "warning",
        sure,
        what,
        training="no network fits both energies, and forces of other settings differ as well",
        mend="use runs of one code and setting, or leave the energy out of the loss",
    )
