"""Conservation of the total energy, and the scores that stability benchmarks make of runs."""

from __future__ import annotations

from dyntrain.observables.arrays import FloatArray, slope


def energy_drift(times_fs: FloatArray, total_energy: FloatArray, n_atoms: int) -> float:
    """Drift of the total energy: slope of the least-squares line, meV/atom/ps (as ml-peg reports it).

    Args:
        times_fs: [n_times] fs.
        total_energy: potential + kinetic energy of one system, [n_times] eV.

    Raises:
        ValueError: fewer than three times.
    """
    if len(times_fs) < 3:
        raise ValueError(f"a drift needs at least 3 times, got {len(times_fs)}")
    return 1e6 * slope(times_fs, total_energy) / n_atoms


def nve_score(times_fs: FloatArray, total_energy: FloatArray, kinetic_energy: FloatArray) -> float:
    """|drift over the run| / σ(kinetic energy): MLIPAudit's measure of an NVE run, good below 1.0.

    The drift is that of the least-squares line through the total energy, from the first to the last time;
    σ is what potential and kinetic energy exchange anyway.

    Args:
        times_fs, total_energy: as in ``energy_drift``.
        kinetic_energy: [n_times] eV.

    Raises:
        ValueError: fewer than three times, or a kinetic energy that does not fluctuate.
    """
    if len(times_fs) < 3:
        raise ValueError(f"a drift needs at least 3 times, got {len(times_fs)}")
    spread = float(kinetic_energy.std())
    if spread == 0.0:
        raise ValueError("the kinetic energy does not fluctuate, so a drift cannot be measured in its units")
    return abs(slope(times_fs, total_energy) * float(times_fs[-1] - times_fs[0])) / spread


def stability_score(n_steps: int, exploded_at: int | None, hydrogen_lost_at: int | None) -> float:
    """MLIPAudit's stability score of one run: 1 for a whole one.

    ½ f_e/N for a run that explodes at step f_e; else ½ + ½ f_h/N for one that loses a hydrogen at step f_h.

    Args:
        n_steps: N, steps the run was to have (MLIPAudit: 100 000 at 300 K).
    """
    if exploded_at is not None:
        return 0.5 * exploded_at / n_steps
    if hydrogen_lost_at is not None:
        return 0.5 + 0.5 * hydrogen_lost_at / n_steps
    return 1.0
