"""Free runs beside a recording: alike for the same potential, and left out where it has no sense."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate import FreeRuns, compare_motion, criterion_for, draw_starts, free_runs, pick_starts
from dyntrain.evaluate.criteria import RdfCounts, closest_limits, molecules_of, pair_distances, rdf_reference
from dyntrain.models.analytic import LennardJones
from dyntrain.potential import Conservative
from dyntrain.simulate import simulate
from dyntrain.units import FS
from evaluations import FAR, TRUE, record
from systems import argon_crystal

RUNS = [record(540)]
LIQUID_DT = 10.0 * FS


@pytest.fixture(scope="module")
def own() -> FreeRuns:
    return free_runs(TRUE, pick_starts(RUNS, 3), RUNS[0].dt, 260.0)


@pytest.fixture(scope="module")
def argon() -> Trajectory:
    """A crystal of argon in a periodic cell: each atom is a molecule of its own."""
    potential = Conservative(LennardJones())
    start = argon_crystal(3, speed=0.03)
    frames = list(simulate(potential, start, LIQUID_DT, 25))
    return Trajectory(
        np.array([f.state.positions.numpy() for f in frames]),
        np.array([f.state.velocities.numpy() for f in frames]),
        np.array([f.prediction.forces.numpy() for f in frames]),
        np.array([float(f.prediction.energy[0]) for f in frames]),
        start.cell[0].numpy(),
        [True] * 3,
        start.atomic_numbers.numpy(),
        start.masses.numpy(),
        LIQUID_DT,
    )


def test_the_same_potential_makes_the_same_distributions(own: FreeRuns) -> None:
    found = compare_motion(own, RUNS)
    kinds = {curve.kind for curve in found.curves}
    assert kinds == {"bond", "angle", "distance", "vdos"} and set(found.left_out) == {"RDF", "MSD"}
    other = free_runs(FAR, pick_starts(RUNS, 3), RUNS[0].dt, 260.0)
    spectra = [
        next(curve for curve in compare_motion(free, RUNS).curves if curve.kind == "vdos")
        for free in (own, other)
    ]
    assert spectra[0].difference < spectra[1].difference
    for curve in found.curves:
        width = curve.x[1] - curve.x[0]
        for side in (curve.recorded, curve.model):
            assert side.mean.sum() * width == pytest.approx(1.0, abs=0.02)
            # 270 fs are one spectrum, and one sample has no error bar.
            assert np.isfinite(side.error).all() or curve.kind == "vdos"
        assert 0 <= curve.difference <= 1


def test_what_cannot_be_compared_says_why(own: FreeRuns) -> None:
    hot = dataclasses.replace(own, temperature_K=900.0)
    assert compare_motion(hot, RUNS).left_out.popitem()[1].startswith("the free runs are hotter")
    middle = free_runs(TRUE, pick_starts(RUNS, 2), RUNS[0].dt, 120.0)
    assert "too short to tell frequencies apart" in compare_motion(middle, RUNS).left_out["VDOS"]
    assert middle.motion is not None
    failed = dataclasses.replace(
        middle.motion, whole=middle.motion.whole & (middle.motion.times_fs < 50)[:, None]
    )
    early = compare_motion(dataclasses.replace(middle, motion=failed), RUNS)
    assert "no free run stayed whole" in early.left_out.popitem()[1]


def test_the_rdf_of_a_crystal_by_brute_force(argon: Trajectory) -> None:
    edges = np.linspace(0.0, 6.0, 61)
    counts = RdfCounts(argon.atomic_numbers, edges)
    volume = abs(np.linalg.det(argon.cell))
    counts.add(*pair_distances(argon.state(0), 6.0), volume)
    shifts = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T @ argon.cell
    apart = argon.positions[0][:, None, None] - argon.positions[0][None, :, None] + shifts
    distances = np.linalg.norm(apart, axis=-1).ravel()
    found = np.histogram(distances[distances > 1e-9], edges)[0]
    n = argon.n_atoms
    expected = found / (n * (n - 1)) * volume / (4 / 3 * np.pi * np.diff(edges**3))
    np.testing.assert_allclose(counts.functions()[18, 18], expected, rtol=1e-12)


def test_a_liquid_is_told_and_fails_by_its_own_criterion(argon: Trajectory) -> None:
    assert len(set(molecules_of(argon.state(0)).tolist())) == argon.n_atoms
    criterion = criterion_for([argon])
    assert (criterion.kind, criterion.bond_change, criterion.apart) == ("liquid", None, 1.2)
    assert criterion.rdf is not None
    potential = Conservative(LennardJones())
    calm = free_runs(potential, pick_starts([argon], 2), LIQUID_DT, 1050.0, criterion=criterion)
    assert not calm.failed.any()
    # Melted far above its boiling point, the crystal's g(r) is lost over the first ps; no pair comes close.
    hot = draw_starts(pick_starts([argon], 1), 3000.0, 0)
    never_near = dataclasses.replace(criterion, apart=None, energy_change=None, rdf_mae=1.0)
    melted = free_runs(potential, hot, LIQUID_DT, 1050.0, criterion=never_near)
    assert melted.failed.all() and melted.failure_fs[0] == pytest.approx(1000.0)
    assert "radial distribution function is off" in melted.reasons[0]


def test_molecules_that_touch_have_failed(argon: Trajectory) -> None:
    starts = pick_starts([argon], 1)
    velocities = torch.zeros_like(starts.velocities)
    apart = starts.positions[1] - starts.positions[0]
    velocities[0] = 0.3 * apart / apart.norm() / FS  # fast enough to be within 1.2 Å before repulsion acts
    runs = free_runs(
        Conservative(LennardJones(epsilon=1e-9)),
        starts.replace(velocities=velocities),
        0.5 * FS,
        20.0,
        criterion=dataclasses.replace(criterion_for([argon]), energy_change=None),
    )
    assert runs.reasons == {0: "two molecules are closer than 1.2 Å"}
    expected = (float(apart.norm()) - 1.2) / 0.3
    assert runs.failure_fs[0] == pytest.approx(expected, abs=0.5)


def test_the_smallest_distances_are_the_recording_s_by_element_pair(argon: Trajectory) -> None:
    assert closest_limits(RUNS)[6, 8] == pytest.approx(
        0.8 * min(np.linalg.norm(p[0] - p[2]) for run in RUNS for p in run.positions), rel=1e-3
    )
    assert rdf_reference([argon, RUNS[0]]) is None
