"""Compare: energies of another zero, seen only where several runs of one composition lie side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from dyntrain.data.run_report import Finding, finding
from dyntrain.data.trajectory import Trajectory

# Runs differ by another zero where their mean energies lie so many spreads (of both runs) apart, and at least
# this far apart for each atom (eV): isomers and adsorption stay below, another functional or code does not.
_SPREADS, _LEAST_PER_ATOM = 10.0, 0.05


def find_other_zeros(runs: Sequence[Trajectory]) -> dict[str, tuple[Finding, ...]]:
    """Findings by file: the runs whose energies lie far from those of the other runs of their composition.

    The run is told whose mean is farthest from the median of its composition's runs; of two runs, the second.
    """
    by_formula: dict[str, list[Trajectory]] = defaultdict(list)
    for run in runs:
        by_formula[run.formula].append(run)
    found: dict[str, tuple[Finding, ...]] = {}
    for formula, alike in by_formula.items():
        means = np.array([run.energies.mean() for run in alike])
        spreads = np.array([run.energies.std() for run in alike])
        reference = int(np.argsort(means, kind="stable")[(len(alike) - 1) // 2]) if len(alike) > 2 else 0
        for run, mean, spread in zip(alike, means, spreads, strict=True):
            gap = abs(mean - means[reference])
            if gap > max(_SPREADS * (spread + spreads[reference]), _LEAST_PER_ATOM * run.n_atoms):
                found[run.file] = (_another_zero(run, alike[reference], mean - means[reference], formula),)
    return found


def _another_zero(run: Trajectory, other: Trajectory, gap: float, formula: str) -> Finding:
    sure = "very likely" if abs(gap) > run.n_atoms else "likely"
    return finding(
        "another_energy_zero",
        "warning",
        sure,
        f"the mean energy lies {gap:+.4g} eV from that of {other.file}, which holds the same {formula}, far "
        "beyond what either varies by: another zero of the energy or other settings, or else another isomer",
        training="no network fits both energies, and forces of other settings differ as well",
        mend="use runs of one code and setting, or leave the energy out of the loss",
    )
