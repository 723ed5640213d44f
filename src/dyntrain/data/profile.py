"""Profile: a run frame by frame, for pictures: energies, temperature, kicks, friction, distances, forces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dyntrain.data.constraints import find_held
from dyntrain.data.contents import frame_closest, kick_sizes
from dyntrain.data.diagnose import marked, measured_part
from dyntrain.data.run_report import RunReport
from dyntrain.data.thermostat import measure
from dyntrain.data.trajectory import FloatArray, IntArray, Trajectory
from dyntrain.units import FS, KB

_WITH_FRICTION = ("nose-hoover", "berendsen", "csvr", "rescaling")
_POINTS, _BINS = 2000, 80
_PAIRS = 20_000_000  # distances looked at, all frames together


@dataclass(frozen=True, eq=False)
class RunProfile:
    """What a page shows of one run; long runs are thinned to every so many frames.

    frames:      [n_shown]; `times_fs` of the same.
    temperature: Σ m v² / (3 N k_B) of the atoms that move, K, [n_shown].
    potential, total: change of the energies since the first frame, meV/atom, [n_shown].
    kicks:       of the step from each frame to the next, over the run's rms dt²F/m, [n_shown] (nan: none).
    friction:    fitted, 1/ps, [n_shown] (nan where it is not known); None where no friction explains the run.
    closest:     distance of the closest two atoms, Å, [n_shown] (nan: left out, in large systems).
    force_edges, force_counts: histogram of the sizes of all forces, eV/Å, [n_bins + 1] and [n_bins].
    """

    report: RunReport
    frames: IntArray
    times_fs: FloatArray
    temperature: FloatArray
    potential: FloatArray
    total: FloatArray
    kicks: FloatArray
    friction: FloatArray | None
    closest: FloatArray
    force_edges: FloatArray
    force_counts: IntArray


def make_profile(trajectory: Trajectory, report: RunReport) -> RunProfile:
    """The profile of a run and its report."""
    run = measured_part(marked(trajectory))
    held = find_held(run)
    shown = np.arange(0, run.n_frames, max(1, run.n_frames // _POINTS))
    twice_kinetic = np.einsum("kia,kia,i->k", run.velocities, run.velocities, run.masses)
    total = run.energies + 0.5 * twice_kinetic
    kicks = np.append(kick_sizes(run), np.nan)
    forces = np.linalg.norm(run.forces, axis=2)
    counts, edges = np.histogram(forces, bins=_BINS)
    return RunProfile(
        report=report,
        frames=shown,
        times_fs=np.asarray(shown * run.dt_fs, dtype=np.float64),
        temperature=(twice_kinetic / (3 * max(held.atoms.size, 1) * KB))[shown],
        potential=1000 * (run.energies - run.energies[0])[shown] / run.n_atoms,
        total=1000 * (total - total[0])[shown] / run.n_atoms,
        kicks=kicks[shown],
        friction=_friction(run, report, shown),
        closest=_closest(run, shown),
        force_edges=edges,
        force_counts=counts.astype(np.int64),
    )


def _closest(run: Trajectory, shown: IntArray) -> FloatArray:
    every = max(1, shown.size * run.n_atoms**2 // (2 * _PAIRS))
    closest = np.full(shown.size, np.nan)
    closest[::every] = [frame_closest(run, int(frame)) for frame in shown[::every]]
    return closest


def _friction(run: Trajectory, report: RunReport, shown: IntArray) -> FloatArray | None:
    if report.ensemble not in _WITH_FRICTION or (motion := measure(run, find_held(run))) is None:
        return None
    every = np.full(run.n_frames, np.nan)
    every[motion.frames] = motion.friction * FS * 1000
    return every[shown]
