"""Where the model begins to be wrong: its free runs, and the places on them where the reference goes on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms

from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.evaluate import FreeRuns, Progress, criterion_for, free_runs, pick_starts
from dyntrain.evaluate.audit import to_atoms
from dyntrain.evaluate.free import Motion, draw_starts
from dyntrain.improve.committee import Doubt, disagreement
from dyntrain.observables import FloatArray
from dyntrain.potential import Potential
from dyntrain.simulate import check_start
from dyntrain.state import State

Elsewhere = Literal["structures", "segments"] | None
"""What the calls go to that are not spent before failures; None: as the free runs suggest."""

BEFORE_FAILURE, AT_RANDOM, IN_DOUBT = "before a failure", "at a random time", "where the committee disagrees"

LEAD_FS = 30.0
"""So long before a failure a segment begins: what leads there is still a sane structure."""

_EARLIER_FS = (0.0, 10.0, 20.0, 30.0)
"""Further segments before the same failure begin so much before that."""

_EARLIEST_FS = 10.0
_EARLIEST_SHARE = 0.2
"""Other segments begin after this share of the horizon: earlier the model is near known frames."""

_APART_FS = 50.0
"""Between two places of one run in doubt: nearer ones would be one place twice."""

_MOST_RUNS = 32
"""More segments than these begin at several places of the same runs."""


@dataclass(frozen=True)
class Place:
    """A place on a free run of the model where the reference is asked.

    n_frames: of the segment that begins there; 1: the structure alone
    told:     what failed, or what is in doubt
    """

    run: int
    time_fs: float
    why: str
    n_frames: int
    told: str = ""


@dataclass(frozen=True, eq=False)
class Exploration:
    """Free runs of a model, and the sane structures on them that the reference continues from.

    starts:  with momenta; ``info`` has all of its place
    dropped: why a place gave none, one sentence each
    """

    free: FreeRuns
    starts: list[Atoms]
    dropped: list[str]


def explore(
    potential: Potential,
    runs: Sequence[Trajectory],
    *,
    n_segments: int,
    segment_length: int,
    elsewhere: Elsewhere,
    horizon_fs: float,
    temperature: float | None,
    seed: int,
    committee: Sequence[Potential] = (),
    progress: Progress | None = None,
) -> Exploration:
    """Let the model run free from recorded frames and choose where the reference is asked.

    Up to half of the calls go to places ``LEAD_FS`` before failures or a little earlier, as far as there are
    any; the others between a fifth of the horizon and its end (or the failure), at random times or, with a
    committee, where it disagrees most. Measured on ethanol, the former make long runs last and the latter
    make forces right: both are needed (METHOD: idea 4).

    Args:
        runs: whose frames the free runs start from; one time step.
        n_segments, segment_length: the calls that may be spent; frames of a segment.
        elsewhere: what the calls go to that are not spent before failures, see ``segments_elsewhere``.
        temperature: K of newly drawn velocities; None: the recorded ones.
        committee: further networks of the same data.

    Raises:
        UserError: the model fails at once from everywhere.
    """
    free = free_runs(
        potential,
        free_starts(runs, min(n_segments, _MOST_RUNS), temperature, seed),
        runs[0].dt,
        horizon_fs,
        criterion=criterion_for(runs),
        temperature_K=temperature,
        progress=progress,
    )
    doubt = None
    if committee and free.motion is not None:
        doubt = disagreement([potential, *committee], free.motion, progress)
    lengths = segment_length, segment_length if segments_elsewhere(free, elsewhere) else 1
    n_calls = n_segments * segment_length
    places = choose_places(free, n_calls, np.random.default_rng([seed, 2]), doubt, lengths)
    if not places or free.motion is None:
        raise UserError(
            f"the model breaks within {LEAD_FS + _EARLIEST_FS:g} fs from every start, so there is nothing to "
            "continue from: train it longer first, or lower improve.temperature"
        )
    return Exploration(free, *_sane(places, free.motion))


def _sane(places: Sequence[Place], motion: Motion) -> tuple[list[Atoms], list[str]]:
    """The structures at these places, and a sentence for each that is not sane."""
    found, dropped = [], []
    for place in places:
        time_fs, state = place_state(motion, place)
        try:
            check_start(state, f"run {place.run} at {time_fs:g} fs, {place.why}")
        except UserError as error:
            dropped.append(str(error))
            continue
        atoms = to_atoms(state)
        if state.fixed is not None:
            atoms.set_constraint(FixAtoms(mask=state.fixed.numpy()))
        atoms.info = {**asdict(place), "time_fs": time_fs}
        found.append(atoms)
    return found, dropped


def segments_elsewhere(free: FreeRuns, elsewhere: Elsewhere) -> bool:
    """Whether the reference goes on from places that lie before no failure, and not only labels them.

    Undecided, it does while any of the runs fails: then segments made models last longer, and where none
    did single structures made them more accurate (docs/research-frames.md).
    """
    return bool(free.failed.any()) if elsewhere is None else elsewhere == "segments"


def free_starts(runs: Sequence[Trajectory], n_runs: int, temperature: float | None, seed: int) -> State:
    """Recorded frames spread over all runs; with a temperature (K), new velocities for each."""
    starts = pick_starts(runs, n_runs, seed)
    return starts if temperature is None else draw_starts(starts, temperature, seed * 1009)


def whole_until(free: FreeRuns) -> FloatArray:
    """``LEAD_FS`` before its failure for each run that failed, the end for the others, [n_runs] fs."""
    return np.where(free.failed, np.maximum(free.failure_fs - LEAD_FS, 0.0), free.run_length_fs)


def choose_places(
    free: FreeRuns,
    n_calls: int,
    random: np.random.Generator,
    doubt: Doubt | None = None,
    lengths: tuple[int, int] = (1, 1),
) -> list[Place]:
    """Half of the calls before failures, up to four places a run; the rest, spread over the runs while they
    are whole, where a committee disagrees, as far as there is one, then at random times.

    Args:
        n_calls: of the reference, in all.
        lengths: frames of a segment before a failure, and of one elsewhere.
    """
    last = whole_until(free)
    lasting = np.flatnonzero(last >= _EARLIEST_FS)
    failing = random.permutation(lasting[free.failed[lasting]]).tolist()
    before = [(run, float(last[run]) - earlier) for earlier in _EARLIER_FS for run in failing]
    before = [(run, time_fs) for run, time_fs in before if time_fs >= _EARLIEST_FS]
    before = before[: n_calls // 2 // lengths[0]]
    places = [
        Place(run, time_fs, BEFORE_FAILURE, lengths[0], free.reasons[run]) for run, time_fs in sorted(before)
    ]
    n_wanted = len(places) + (n_calls - len(places) * lengths[0]) // lengths[1]
    early = np.minimum(_EARLIEST_SHARE * free.run_length_fs, last)
    if doubt is not None:
        places += _in_doubt(doubt, lasting.tolist(), early, last, n_wanted - len(places), lengths[1])
    # The runs that last beyond `early`; where there are none, those that last longest.
    enough = [run for run in lasting.tolist() if last[run] > early[run]] or lasting.tolist()
    return places + _at_random(enough, early, last, n_wanted - len(places), lengths[1], random)


def _in_doubt(
    doubt: Doubt, runs: list[int], early: FloatArray, last: FloatArray, n_wanted: int, n_frames: int
) -> list[Place]:
    """The most doubtful place of each run, then the next of each; the most doubtful first.

    Args:
        early, last: between which times, fs, [n_runs].
    """
    ranked = []
    for run in runs:
        spread, times = doubt.spread[:, run], doubt.times_fs
        inside = np.flatnonzero(np.isfinite(spread) & (times >= early[run]) & (times <= last[run]))
        taken: list[float] = []
        for place in inside[np.argsort(-spread[inside], kind="stable")].tolist():
            if all(abs(times[place] - time_fs) >= _APART_FS for time_fs in taken):
                ranked.append((len(taken), -float(spread[place]), run, float(times[place])))
                taken.append(float(times[place]))
    return [
        Place(
            run,
            time_fs,
            IN_DOUBT,
            n_frames,
            f"the forces of {doubt.n_members} networks lie {-less:.2g} eV/Å apart",
        )
        for _, less, run, time_fs in sorted(ranked)[:n_wanted]
    ]


def _at_random(
    runs: list[int],
    early: FloatArray,
    last: FloatArray,
    n_wanted: int,
    n_frames: int,
    random: np.random.Generator,
) -> list[Place]:
    """As many places on each run as on any other, at random in equal parts of its time."""
    counts = {run: n_wanted // len(runs) for run in runs} if runs else {}
    for run in random.permutation(runs)[: n_wanted - sum(counts.values())].tolist():
        counts[run] += 1
    return [
        Place(run, float(early[run] + (last[run] - early[run]) * share), AT_RANDOM, n_frames)
        for run, n in counts.items()
        for share in ((np.arange(n) + random.uniform(size=n)) / max(n, 1)).tolist()
    ]


def place_state(motion: Motion, place: Place) -> tuple[float, State]:
    """The structure of a free run that was kept last before (or at) a time, and when that was."""
    kept = max(0, int(np.searchsorted(motion.times_fs, place.time_fs + 1e-9)) - 1)
    atoms = motion.starts.atoms_of(torch.tensor([place.run]))
    positions, velocities = (
        torch.from_numpy(array[kept].astype(np.float64))[atoms]
        for array in (motion.positions, motion.velocities)
    )
    state = motion.starts.select([place.run]).replace(positions=positions, velocities=velocities)
    return float(motion.times_fs[kept]), state
