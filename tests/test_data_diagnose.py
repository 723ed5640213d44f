"""Diagnose: the faults of real and made runs are found without being told, and sound runs stay unblamed."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dyntrain.data.breaks import find_breaks, with_breaks
from dyntrain.data.constraints import find_held
from dyntrain.data.diagnose import diagnose, usable_runs
from dyntrain.data.raw import RawRun, to_trajectory
from dyntrain.data.readers import read_trajectories
from dyntrain.data.segments import windows
from dyntrain.data.thermostat import measure
from dyntrain.errors import UserError
from made_runs import ase_run, chosen, morse_run, morse_trajectory

SHIPPED = Path(__file__).parent / "data" / "h2pd6gra_80.traj"
RUN = morse_run(200)
assert RUN.velocities is not None


def codes(run: RawRun, dt_fs: float | None = None) -> dict[str, tuple[int, ...]]:
    """What is found in a run, and at which frames."""
    return {f.code: f.frames for f in diagnose(to_trajectory(run, dt_fs)).findings}


# The reference runs


@pytest.mark.shared
def test_the_resets_of_the_methane_run_are_found(shared_data: Path) -> None:
    (run,) = read_trajectories(shared_data / "data" / "ch4_nve_dft")
    report = diagnose(run)
    assert report.breaks == (99, 199, 299, 399, 499, 599, 699, 799, 899)
    assert report.residual == pytest.approx(1.6e-8, rel=0.1)
    assert (report.ensemble, report.stride, report.usable) == ("nve", 1, True)
    assert report.kick_ratio is not None
    assert report.kick_ratio < 3e-8
    assert report.energy_slope == pytest.approx(0.9996, abs=1e-4)
    assert report.temperature_K == pytest.approx(436, abs=1)
    (marked,), _ = usable_runs([run])
    for b in report.breaks:
        assert not any(s < b < s + 5 for s in windows(marked, 5))
    assert windows(marked, 100).tolist() == [99 + 100 * k for k in range(8)]


@pytest.mark.shared
def test_resets_are_found_without_velocities_too(shared_data: Path) -> None:
    (run,) = read_trajectories(shared_data / "data" / "ch4_nve_dft")
    rebuilt = with_breaks(run.replace(velocities_origin="rebuilt"), (1,)).replace(breaks=())
    (marked,), (report,) = usable_runs([rebuilt])
    assert report.breaks == (99, 199, 299, 399, 499, 599, 699, 799, 899)
    np.testing.assert_allclose(marked.velocities, run.velocities, rtol=0, atol=5e-9)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "temperature", "drift_below"), [("mgo_nve_dft", 546.5, 3.0), ("h2pd6gra", 320.0, 0.1)]
)
def test_nve_runs_are_recognised(
    shared_data: Path, name: str, temperature: float, drift_below: float
) -> None:
    for run in read_trajectories(shared_data / "data" / name)[:2]:
        report = diagnose(run)
        assert (report.ensemble, report.breaks, report.findings) == ("nve", (), ())
        assert report.residual is not None
        assert report.residual < 3e-12
        assert report.temperature_K == pytest.approx(temperature, rel=0.2)
        assert report.temperature_from_positions_K == pytest.approx(report.temperature_K, rel=0.01)
        assert report.drift_meV_atom_ps is not None
        assert abs(report.drift_meV_atom_ps) < drift_below


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "size", "slope"), [("ethanol_nvt_dft", 0.02, 1.0002), ("ch4_nvt_dft", 0.02, 0.9972)]
)
def test_nose_hoover_runs_are_recognised(shared_data: Path, name: str, size: float, slope: float) -> None:
    (run,) = read_trajectories(shared_data / "data" / name)
    report = diagnose(run)
    assert (report.ensemble, report.breaks, report.usable) == ("nose-hoover", (), True)
    assert report.residual == pytest.approx(size, rel=0.3)
    assert report.residual_after_friction is not None
    assert report.residual_after_friction < 2e-8
    assert report.dt_fs_inferred == pytest.approx(1.0, rel=1e-7)
    assert report.energy_slope == pytest.approx(slope, abs=1e-4)
    assert report.drift_meV_atom_ps is None  # not conserved under a thermostat
    assert [f.code for f in report.findings] == ["thermostat"]


@pytest.mark.shared
def test_the_friction_is_the_one_of_the_data(shared_data: Path) -> None:
    from ase.io import read

    from dyntrain.units import FS

    file = shared_data / "data" / "ethanol_nvt_dft" / "ethanol_nvt_300K_1fs.extxyz"
    (run,) = read_trajectories(file)
    stated = np.array([atoms.info["xi_fit_per_fs"] for atoms in read(file, ":")][1:-1])
    motion = measure(run, find_held(run))
    assert motion is not None
    # The file counts a friction that slows down as negative.
    np.testing.assert_allclose(motion.friction * FS, -stated, rtol=0, atol=1e-8)


def test_the_shipped_run_is_sound() -> None:
    (run,), (report,) = usable_runs(read_trajectories(SHIPPED))
    assert run.breaks == ()
    assert (report.ensemble, report.dt_fs_stated, report.stride, report.findings) == ("nve", None, 1, ())
    assert report.dt_fs_inferred == pytest.approx(0.5, rel=1e-12)
    assert report.dt_correlation == pytest.approx(1.0, abs=1e-12)
    assert report.closest_A is not None
    assert report.closest_A["C-C"] == pytest.approx(1.37, abs=0.05)
    text = json.dumps(report.to_json(), allow_nan=False)
    assert json.loads(text)["usable"] is True


# Thermostats, by ASE's integrators


@pytest.mark.parametrize("name", ["nve", "langevin", "berendsen", "csvr", "nose-hoover"])
def test_thermostats_are_named(name: str) -> None:
    report = diagnose(to_trajectory(ase_run(name)))
    assert (report.ensemble, report.breaks, report.usable) == (name, (), True)
    assert report.shuffled is False
    assert report.kick_ratio is not None
    assert report.kick_ratio < 1e-11 if name == "nve" else report.kick_ratio > 1e-3
    assert report.dt_fs_inferred == pytest.approx(0.5, rel=0.02 if name == "langevin" else 1e-9)


@pytest.mark.parametrize("friction_per_fs", [0.1, 0.3])
def test_strong_friction_is_no_reason_to_refuse(friction_per_fs: float) -> None:
    report = diagnose(to_trajectory(ase_run("langevin", friction_per_fs=friction_per_fs)))
    assert (report.ensemble, report.usable, report.breaks) == ("langevin", True, ())
    assert report.kick_ratio is not None and report.dt_correlation is not None
    assert report.kick_ratio > 3.5
    assert report.dt_correlation < 0.5
    assert [finding.code for finding in report.findings] == ["thermostat"]
    # The noise must not be taken for fast motion, or steps that the run itself took would be refused.
    assert report.fastest_period_fs is not None
    assert report.fastest_period_fs > 10


@pytest.mark.parametrize("friction_per_fs", [1.0, 1.5, 2.0])
def test_noise_that_hides_the_forces_is_told_of(friction_per_fs: float) -> None:
    run = ase_run("langevin", friction_per_fs=friction_per_fs)
    report = diagnose(to_trajectory(run))
    assert (report.ensemble, report.usable, report.breaks) == ("langevin", True, ())
    assert [(f.code, f.severity) for f in report.findings] == [
        ("thermostat", "info"),
        ("strong_friction", "warning"),
    ]
    motion = measure(to_trajectory(run), find_held(to_trajectory(run)))
    assert motion is not None
    assert motion.bath.friction == pytest.approx(0.5 * friction_per_fs, rel=0.2)
    assert motion.bath.force_error < 0.12


@pytest.mark.parametrize("friction_per_fs", [0.1, 1.0, 2.0])
def test_noise_excuses_no_forces_of_other_frames(friction_per_fs: float) -> None:
    run = ase_run("langevin", friction_per_fs=friction_per_fs)
    order = np.random.default_rng(0).permutation(len(run.forces))
    for forces in (run.forces[order], 0.1 * run.forces):
        report = diagnose(to_trajectory(chosen(run, slice(None), forces=forces)))
        (refusal,) = (f for f in report.findings if f.code == "forces_do_not_explain_motion")
        assert not report.usable
        assert "other frames or of another unit" in refusal.message


def test_a_random_walk_is_no_langevin_run() -> None:
    steps = np.random.default_rng(0).normal(scale=0.02, size=RUN.positions.shape)
    walk = chosen(RUN, slice(None), positions=RUN.positions[0] + steps.cumsum(0), velocities=None)
    assert not diagnose(to_trajectory(walk)).usable


def test_collisions_at_many_steps_are_neither_breaks_nor_nve() -> None:
    report = diagnose(to_trajectory(ase_run("andersen")))
    assert (report.breaks, report.usable) == ((), True)
    assert report.ensemble in ("unknown", "langevin")  # a bath of white noise, if a rare one


# Breaks


@settings(max_examples=30)
@given(st.lists(st.integers(2, 197), max_size=3, unique=True), st.booleans(), st.integers(0, 9))
def test_velocity_redraws_are_breaks(redraws: list[int], rebuilt: bool, seed: int) -> None:
    parts, edges = [], [0, *sorted(redraws), 200]
    if any(after - before < 4 for before, after in itertools.pairwise(edges)):
        return
    for k, (before, after) in enumerate(itertools.pairwise(edges)):
        parts.append(chosen(morse_run(200, seed=seed + k), slice(before, after)))
    joined = RawRun(
        **{
            **vars(RUN),
            **{
                name: np.concatenate([getattr(part, name) for part in parts])
                for name in ("positions", "velocities", "forces", "energies")
            },
        }
    )
    if rebuilt:
        joined.velocities = None
    run = to_trajectory(joined)
    marked = with_breaks(run, find_breaks(run))
    assert marked.breaks == tuple(sorted(redraws))
    expected = np.concatenate([part.velocities for part in parts if part.velocities is not None])
    np.testing.assert_allclose(marked.velocities, expected, rtol=0, atol=1e-12)


def test_a_gap_a_repeated_frame_and_an_overlap_are_breaks() -> None:
    for frames, b, n_repeated in [
        (np.r_[0:100, 103:200], 100, 0),
        (np.r_[0:100, 99:200], 100, 1),
        (np.r_[0:100, 80:200], 100, 20),
    ]:
        for velocities in (RUN.velocities, None):
            run = chosen(RUN, frames)
            found = codes(run if velocities is not None else chosen(run, slice(None), velocities=None))
            assert found["breaks"] == (b,)
            assert len(found.get("duplicates", ())) == n_repeated


def test_a_frame_with_wrong_forces_stands_alone() -> None:
    forces = RUN.forces.copy()
    forces[77] = forces[20]
    run = to_trajectory(chosen(RUN, slice(None), forces=forces))
    (marked,), (report,) = usable_runs([run])
    assert report.breaks == (77, 78)
    assert {f.code: f.frames for f in report.findings}["lone_frames"] == (77,)
    assert 77 not in windows(marked, 1)


@pytest.mark.parametrize("rebuilt", [False, True])
def test_snippets_in_one_file_are_kept_apart(rebuilt: bool) -> None:
    parts = [chosen(RUN, slice(k, k + 8)) for k in range(0, 200, 20)]
    names = ("positions", "velocities", "forces", "energies")
    joined = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
    run = to_trajectory(RawRun(**{**vars(RUN), **joined, **({"velocities": None} if rebuilt else {})}))
    (marked,), (report,) = usable_runs([run])
    assert report.breaks == tuple(range(8, 80, 8))
    assert windows(marked, 8).tolist() == list(range(0, 80, 8))
    assert report.kick_ratio is not None
    assert report.kick_ratio < 1e-10


def test_a_slightly_wrong_frame_is_told_but_stays() -> None:
    forces = RUN.forces.copy()
    forces[50] *= 1 + 1e-5
    report = diagnose(to_trajectory(chosen(RUN, slice(None), forces=forces)))
    assert report.breaks == ()
    assert [(f.code, f.severity, f.frames) for f in report.findings] == [
        ("irregular_steps", "info", (50, 51))
    ]


def test_known_breaks_are_kept() -> None:
    assert find_breaks(morse_trajectory(30).replace(breaks=(11,))) == (11,)


# What makes a run unusable, and what only needs a look


def test_shuffled_frames_are_refused() -> None:
    order = np.random.default_rng(0).permutation(200)
    for velocities in (RUN.velocities[order], None):
        run = to_trajectory(chosen(chosen(RUN, order), slice(None), velocities=velocities))
        report = diagnose(run)
        assert (report.shuffled, report.usable, report.dt_fs_inferred) == (True, False, None)
        with pytest.raises(UserError, match="the likeliest cause: the frames are not in the order of time"):
            usable_runs([run])


def test_velocities_of_other_frames_are_refused() -> None:
    assert RUN.velocities is not None
    other = chosen(RUN, slice(None), velocities=RUN.velocities[::-1])
    with pytest.raises(UserError, match="the velocities do not fit the motion of the positions"):
        usable_runs([to_trajectory(other)])


def test_a_changing_cell_is_told_and_kept() -> None:
    growing = RUN.cell * np.linspace(1.0, 1.01, 200)[:, None, None]
    (run,), (report,) = usable_runs([to_trajectory(chosen(RUN, slice(None), cell=growing))])
    assert not run.fixed_cell
    assert "cell_changes" in [finding.code for finding in report.findings]


def test_frozen_atoms_are_reported_and_a_frozen_run_is_refused() -> None:
    still = morse_run(50)
    still.positions = np.broadcast_to(still.positions[0], still.positions.shape).copy()
    still.velocities = np.zeros_like(still.positions)
    with pytest.raises(UserError, match="no atom moves in the whole run"):
        usable_runs([to_trajectory(still)])
    partly = ase_run("nve")
    positions = partly.positions.copy()
    positions[:, 3:5] = positions[0, 3:5]
    report = diagnose(to_trajectory(chosen(partly, slice(None), positions=positions, velocities=None)))
    assert report.fixed_atoms == (3, 4)


@pytest.mark.parametrize(
    ("energies", "code", "frames"),
    [
        (np.where(np.arange(200) < 100, RUN.energies, RUN.energies + 3.0), "energy_jumps", (100,)),
        (np.random.default_rng(0).permutation(RUN.energies), "energies_contradict_forces", ()),
        (RUN.energies / 27.2114, "energy_unit", ()),
        (np.zeros(200), "constant_energy", ()),
    ],
)
def test_odd_energies_are_reported(energies: np.ndarray, code: str, frames: tuple[int, ...]) -> None:
    assert codes(chosen(RUN, slice(None), energies=energies)) == {code: frames}


def test_strided_runs_are_recognised_and_their_interval_inferred() -> None:
    for n in (2, 3, 5):
        strided = chosen(ase_run("nve"), slice(None, None, n), dt_fs=0.5 * n)
        report = diagnose(to_trajectory(strided))
        assert report.dt_fs_inferred == pytest.approx(0.5 * n, rel=0.01)
        assert (report.stride, report.usable) == (None, True)
        assert "strided" in [f.code for f in report.findings]


def test_a_dt_that_is_a_little_off_is_reported() -> None:
    assert "dt_differs" in codes(chosen(ase_run("langevin"), slice(None), dt_fs=0.53))


def test_atoms_too_close_and_forces_too_large_are_reported() -> None:
    forces = RUN.forces.copy()
    forces[5, 0, 0] = 500.0
    found = codes(chosen(RUN, slice(None), forces=forces))
    assert found["large_force"] == (5,)
    squeezed = chosen(RUN, slice(None), positions=RUN.positions * 0.4, velocities=None)
    report = diagnose(to_trajectory(squeezed, 0.5 * 0.4**0.5))
    assert "close_atoms" in [f.code for f in report.findings]


def test_short_and_tiny_runs_are_judged_without_failing() -> None:
    two = diagnose(morse_trajectory(2))
    assert [f.code for f in two.findings] == ["too_short"]
    assert (two.dt_fs_inferred, two.stride, two.residual) == (None, None, None)
    for numbers in ((1, 1), (6, 8)):
        report = diagnose(morse_trajectory(30, numbers=numbers))
        assert (report.ensemble, report.usable) == ("nve", True)
        json.dumps(report.to_json(), allow_nan=False)
    with pytest.raises(UserError, match="all forces are zero"):
        usable_runs([morse_trajectory(30, numbers=(1,))])
