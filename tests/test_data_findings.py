"""Findings: each fault put into a made run is told by its name, and no other is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.constraints import FixAtoms

import made_runs
from dyntrain.data.alike import energy_offset
from dyntrain.data.compare import find_other_zeros
from dyntrain.data.diagnose import diagnose, usable_runs
from dyntrain.data.masses import masses_advice
from dyntrain.data.raw import RawRun, to_trajectory
from dyntrain.data.readers import read_trajectories
from dyntrain.data.run_report import Finding, RunReport
from dyntrain.data.thermostat import noise_between_frames
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.units import BOHR, FS, HARTREE
from made_runs import ase_run, chosen, constrained_run, morse_run, morse_stress, morse_trajectory

RUN = morse_run(200)


def told(run: RawRun | Trajectory) -> tuple[RunReport, dict[str, Finding]]:
    """The report of a run and its findings by code."""
    report = diagnose(run if isinstance(run, Trajectory) else to_trajectory(run))
    return report, {finding.code: finding for finding in report.findings}


def changed(**fields: object) -> RawRun:
    return chosen(RUN, slice(None), **fields)


# Masses


@pytest.mark.parametrize(
    ("element", "mass", "sentence"),
    [
        (1, 2.014, "H moves like 2.014 u, that is deuterium (stated: 1.008 u)"),
        (1, 1.0, "H moves like 1 u, that is H = 1.000 (stated: 1.008 u)"),
        (6, 13.003, "C moves like 13 u, that is carbon-13 (stated: 12.01 u)"),
        (1, 1.5, "H moves like 1.5 u (stated: 1.008 u)"),
    ],
)
def test_wrong_masses_are_named(
    monkeypatch: pytest.MonkeyPatch, element: int, mass: float, sentence: str
) -> None:
    numbers = (6, 1, 1, 1, 8)
    stated = morse_trajectory(200, numbers=numbers).masses
    monkeypatch.setitem(made_runs.MASSES, element, mass)
    run = morse_trajectory(200, numbers=numbers).replace(masses=stated)
    report, found = told(run)
    assert sentence in found["wrong_masses"].message
    assert [code for code in found if code not in ("wrong_masses", "dt_differs")] == []
    assert report.usable


def test_wrong_masses_that_shift_an_inferred_dt_are_blamed_on_the_right_element(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    numbers = (6, 1, 1, 1, 8)
    stated = morse_run(2, numbers=numbers).masses
    monkeypatch.setitem(made_runs.MASSES, 1, 1.0)
    run = morse_run(200, numbers=numbers, masses=stated)
    _, found = told(chosen(run, slice(None), dt_fs=None))
    assert "that is H = 1.000" in found["wrong_masses"].message


def test_readers_can_ask_about_masses(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = (6, 1, 1, 1, 8)
    stated = morse_run(2, numbers=numbers).masses
    monkeypatch.setitem(made_runs.MASSES, 1, 2.014)
    run = morse_run(200, numbers=numbers)
    asked = (run.positions, run.forces)
    assert masses_advice(*asked, run.masses, run.atomic_numbers, 0.5 * FS) is None
    advice = masses_advice(*asked, stated, run.atomic_numbers, 0.5 * FS)
    assert advice == "H moves like 2.014 u, that is deuterium (stated: 1.008 u)"


@pytest.mark.parametrize("thermostat", ["nose-hoover", "csvr", "berendsen", "langevin"])
def test_masses_under_a_thermostat_are_not_blamed(thermostat: str) -> None:
    assert "wrong_masses" not in told(ase_run(thermostat))[1]


# Units


@pytest.mark.parametrize(
    ("energies", "name"),
    [
        (RUN.energies / HARTREE, "hartree"),
        (RUN.energies * 2 / HARTREE, "rydberg"),
        (RUN.energies * 23.0605, "kcal/mol"),
        (RUN.energies * 96.4853, "kJ/mol"),
        (RUN.energies / 4, "energies per atom (of 4)"),
        (-RUN.energies, "the wrong sign"),
    ],
)
def test_units_of_energies_are_named(energies: np.ndarray, name: str) -> None:
    report, found = told(changed(energies=energies))
    assert name in found["energy_unit"].message
    assert (found["energy_unit"].severity, report.usable, list(found)) == ("error", False, ["energy_unit"])


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"forces": RUN.forces * BOHR / HARTREE}, "the forces look like hartree/bohr"),
        ({"forces": RUN.forces * 2 * BOHR / HARTREE}, "the forces look like rydberg/bohr"),
        ({"forces": RUN.forces * 23.0605}, "the forces look like kcal/mol/Å"),
        ({"positions": RUN.positions / BOHR}, "the positions look like bohr"),
        ({"positions": RUN.positions / 10}, "the positions look like nm"),
    ],
)
def test_units_that_only_shift_an_inferred_dt_are_named(fields: dict[str, np.ndarray], name: str) -> None:
    _, found = told(changed(**fields, dt_fs=None, velocities=None))
    message = found["energy_unit"].message
    assert name in message
    assert "dt would then be 0.5 fs" in message


def test_atomic_units_throughout_are_guessed_from_the_distances() -> None:
    methane = molecule("CH4")
    random = np.random.default_rng(0)
    run = chosen(morse_run(60, numbers=(6, 1, 1, 1, 1)), slice(None), dt_fs=None, velocities=None)
    # Small vibrations about methane, all springs alike: exact in any units.
    times = np.arange(60)[:, None, None]
    displaced = 0.02 * random.normal(size=(1, 5, 3)) * np.cos(0.2 * times)
    run.positions = (methane.positions + displaced) / BOHR
    run.forces = -run.masses[:, None] * (2 - 2 * np.cos(0.2)) * displaced / (0.5 * FS) ** 2 * BOHR / HARTREE
    report, found = told(run)
    assert found["positions_unit"].severity == "warning"
    assert report.dt_fs_inferred == pytest.approx(0.5 / np.sqrt(BOHR * BOHR / HARTREE), rel=1e-6)


# What frames hold


@pytest.mark.parametrize(("shift", "which"), [(1, "previous"), (-1, "next")])
def test_forces_of_the_neighbouring_frame_are_recognised(shift: int, which: str) -> None:
    report, found = told(changed(forces=np.roll(RUN.forces, shift, axis=0)))
    assert f"frames hold the forces of the {which} frame" in found["forces_of_other_frames"].message
    assert not report.usable


@pytest.mark.parametrize(("decimals", "share"), [(4, "0.08"), (5, "0.008"), (6, "0.0008")])
def test_few_digits_are_told_and_kept(decimals: int, share: str) -> None:
    report, found = told(changed(positions=np.round(RUN.positions, decimals), velocities=None))
    assert f"{decimals} decimals, whose rounding is {share} of dt²F/m" in found["few_digits"].message
    assert (list(found), report.usable) == (["few_digits"], True)


def test_a_damaged_force_shows_among_rounded_positions() -> None:
    forces = RUN.forces.copy()
    forces[30, 1, 0] *= -1.0
    _, found = told(changed(positions=np.round(RUN.positions, 5), velocities=None, forces=forces))
    assert "the first frame 30" in found["odd_forces"].message


def test_too_few_digits_are_refused_by_name() -> None:
    with pytest.raises(UserError, match="the likeliest cause: the positions have only 3 decimals"):
        usable_runs([to_trajectory(changed(positions=np.round(RUN.positions, 3), velocities=None))])


def test_single_precision_is_recognised() -> None:
    single = RUN.positions.astype(np.float32).astype(float)
    assert "single precision" in told(changed(positions=single, velocities=None))[1]["few_digits"].message


def test_wrapped_positions_are_told_with_and_without_pbc() -> None:
    wrapped = changed(positions=np.mod(RUN.positions - 5.0, 20.0))
    report, found = told(wrapped)
    assert (report.wrapped, list(found), found["wrapped"].severity) == (True, ["wrapped"], "info")
    wrapped.pbc = np.zeros(3, dtype=bool)
    report, found = told(wrapped)
    assert "not marked as periodic" in found["wrapped_but_not_periodic"].message
    assert len(report.breaks) > 5


# Breaks: what happened there


def velocities_changed(change: np.ndarray | float, at: int = 100) -> RawRun:
    """A run whose velocities change at a frame, and that goes on exactly from there."""
    first = morse_run(at + 1)
    assert first.velocities is not None and first.dt_fs is not None
    r, v, dt = first.positions[-1], first.velocities[-1] + change, first.dt_fs * FS
    mass, frames = first.masses[:, None], []
    energy, force = made_runs.morse(r)
    for _ in range(80):
        frames.append((r, v, force, energy))
        r = r + v * dt + 0.5 * force / mass * dt**2
        energy, new = made_runs.morse(r)
        v, force = v + 0.5 * (force + new) / mass * dt, new
    names = ("positions", "velocities", "forces", "energies")
    joined = {
        name: np.concatenate([getattr(first, name)[:-1], np.array(part)])
        for name, part in zip(names, zip(*frames, strict=True), strict=True)
    }
    return RawRun(**{**vars(first), **joined})


@pytest.mark.parametrize("rebuilt", [False, True])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (np.array([0.01, 0.02, 0.0]), "centre-of-mass motion or rotation taken out"),
        (-0.02 * RUN.velocities[100], "velocities rescaled"),
        (np.random.default_rng(1).normal(size=(4, 3)) * 0.1, "velocities drawn anew (a restart)"),
    ],
)
def test_what_happened_at_a_break_is_told(change: np.ndarray, what: str, rebuilt: bool) -> None:
    run = velocities_changed(change)
    if rebuilt:
        run.velocities = None
    report, found = told(run)
    assert report.breaks == (100,)
    assert what in found["breaks"].message


@pytest.mark.parametrize("n", [1, 2, 50])
def test_of_structures_of_no_run_nothing_of_motion_is_said(n: int) -> None:
    (run,), (report,) = usable_runs([to_trajectory(RUN).replace(alone=True).slice(3, 3 + n)])
    assert [found.code for found in report.findings] == ["alone"]
    assert run.fixed_atoms == () and report.dt_fs_inferred is None and report.shuffled is None


def test_missing_frames_are_counted() -> None:
    _, found = told(chosen(RUN, np.r_[0:100, 103:200]))
    assert "(100): about 3 frame(s) missing" in found["breaks"].message


@pytest.mark.shared
def test_periodic_resets_are_recognised(shared_data: Path) -> None:
    (run,) = read_trajectories(shared_data / "data" / "ch4_nve_dft")
    _, found = told(run)
    assert ", every 100 frames: velocities rescaled" in found["breaks"].message
    assert found["breaks"].frames == (99, 199, 299, 399, 499, 599, 699, 799, 899)


# What holds atoms


def test_zero_forces_on_fixed_atoms_are_told_from_raw_ones() -> None:
    run = ase_run("nve")
    positions, velocities = run.positions.copy(), np.array(run.velocities)
    positions[:, 3:5], velocities[:, 3:5] = positions[0, 3:5], 0.0
    fixed = chosen(run, slice(None), positions=positions, velocities=velocities)
    assert told(fixed)[1]["fixed_atoms"].severity == "info"
    fixed.forces = fixed.forces.copy()
    fixed.forces[:, 3:5] = 0.0
    assert "constrained forces were written instead of raw ones" in (
        told(fixed)[1]["zero_forces_on_fixed_atoms"].message
    )


def test_raw_forces_on_fixed_atoms_are_no_kicks() -> None:
    from ase.constraints import FixAtoms

    report, found = told(made_runs.constrained_run(FixAtoms([1, 2])))
    assert (report.ensemble, report.fixed_atoms, list(found)) == ("nve", (1, 2), ["fixed_atoms"])
    assert report.kick_ratio is not None
    assert report.kick_ratio < 1e-10


def test_atoms_fixed_along_one_direction_are_no_error() -> None:
    from ase.constraints import FixCartesian

    report, found = told(made_runs.constrained_run(FixCartesian([3], mask=(True, False, False))))
    assert (report.ensemble, report.usable) == ("nve", True)
    assert "first atom 3" in found["partly_fixed_atoms"].message


def test_a_centre_of_mass_that_is_held_is_told() -> None:
    # Egg-box forces push the whole, and the run takes that out again.
    push = np.random.default_rng(0).normal(size=(200, 1, 3)) * 0.05
    report, found = told(changed(forces=RUN.forces + RUN.masses[:, None] * push))
    assert (report.ensemble, report.usable) == ("nve", True)
    assert "forces sum up to" in found["centre_of_mass_removed"].message


# Strides


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("rebuilt", [False, True])
def test_small_strides_are_told(n: int, rebuilt: bool) -> None:
    strided = chosen(ase_run("nve"), slice(None, None, n), dt_fs=0.5 * n)
    if rebuilt:
        strided.velocities = None
    report, found = told(strided)
    assert f"only one step in {n} of the run" in found["strided"].message
    assert (report.stride, report.usable) == (None, True)


def with_noise(run: RawRun, share: float) -> RawRun:
    """The run with forces of which this share (rms) is noise, other at each frame."""
    noise = np.random.default_rng(3).normal(size=run.forces.shape)
    return chosen(run, slice(None), forces=run.forces + share * np.sqrt((run.forces**2).mean()) * noise)


@pytest.mark.parametrize("thermostat", ["nve", "nose-hoover", "berendsen", "csvr"])
@pytest.mark.parametrize(("share", "severity"), [(0.02, "info"), (0.3, "warning")])
def test_noise_of_the_forces_is_no_stride(thermostat: str, share: float, severity: str) -> None:
    report, found = told(with_noise(ase_run(thermostat), share))
    assert set(found) <= {"noisy_forces", "close_atoms", "thermostat"}
    assert found["noisy_forces"].severity == severity
    assert report.usable and report.ensemble in ("unknown", thermostat)
    assert report.dt_fs_inferred == pytest.approx(0.5, rel=0.03)


def test_noise_as_large_as_the_forces_is_the_cause_that_is_named() -> None:
    with pytest.raises(UserError, match="the likeliest cause: the forces are noise for the most part"):
        usable_runs([to_trajectory(with_noise(ase_run("nve"), 1.0))])


@pytest.mark.parametrize("share", [0.003, 0.01, 0.03])
def test_a_stride_is_told_through_the_noise_of_the_forces(share: float) -> None:
    _, found = told(with_noise(chosen(ase_run("nve", 800), slice(None, None, 3), dt_fs=1.5), share))
    assert "strided" in found and "noisy_forces" not in found


@pytest.mark.parametrize("every", [1, 4])
def test_few_frames_leave_open_whether_steps_are_missing_or_forces_noisy(every: int) -> None:
    few = chosen(ase_run("nve"), slice(0, 7 * every, every), dt_fs=0.5 * every)
    _, found = told(few if every > 1 else with_noise(few, 0.01))
    assert "steps are missing between the saved frames, or the forces are noisy" in (
        found["strided_or_noisy"].message
    )


@pytest.mark.parametrize("thermostat", ["nve", "berendsen", "csvr"])
def test_forces_of_the_neighbouring_frame_are_no_stride(thermostat: str) -> None:
    run = ase_run(thermostat)
    _, found = told(chosen(run, slice(None), forces=np.roll(run.forces, 1, axis=0)))
    assert "forces_of_other_frames" in found and "strided" not in found


@pytest.mark.shared
def test_noise_of_the_forces_on_a_molecule_is_no_bath(shared_data: Path) -> None:
    (run,) = read_trajectories(shared_data / "data" / "ch4_nvt_dft")
    noise = np.random.default_rng(3).normal(size=run.forces.shape)
    report, found = told(run.replace(forces=run.forces + 0.05 * np.sqrt((run.forces**2).mean()) * noise))
    assert (report.ensemble, list(found)) == ("unknown", ["noisy_forces"])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["ethanol_nvt_dft", "ch4_nvt_dft"])
def test_strided_thermostatted_runs(shared_data: Path, name: str) -> None:
    (run,) = read_trajectories(shared_data / "data" / name)
    for n, rebuilt, usable, inferred in (
        (2, True, True, True),
        (3, True, False, None),
        (4, False, True, False),
        (4, True, False, False),
    ):
        report, found = told(
            RawRun(
                file=name,
                reader="made",
                positions=run.positions[::n],
                velocities=None if rebuilt else run.velocities[::n],
                forces=run.forces[::n],
                energies=run.energies[::n],
                cell=run.cell,
                pbc=run.pbc,
                atomic_numbers=run.atomic_numbers,
                masses=run.masses,
                dt_fs=n * run.dt_fs,
            )
        )
        assert (report.usable, report.stride) == (usable, None)
        assert "strided" in found
        assert ("frames_too_far_apart" in found) == (n > 2)
        if inferred is not None:
            assert ("dt_cannot_be_inferred" in found) != inferred
            assert (report.dt_fs_inferred is not None) == inferred
        if inferred:
            assert report.dt_fs_inferred == pytest.approx(2.0, rel=0.01)
        if not usable:
            sentence = found["frames_too_far_apart"].message
            assert "by its forces" in sentence
            assert "without velocities" in sentence


@pytest.mark.parametrize("thermostat", ["nve", "nose-hoover", "berendsen", "csvr", "langevin", "andersen"])
def test_noise_between_frames_far_apart_turns_the_momenta(thermostat: str) -> None:
    raw = chosen(ase_run(thermostat, n_frames=800), slice(None, None, 16), dt_fs=8.0)
    report = diagnose(to_trajectory(raw))
    noisy = thermostat in ("langevin", "andersen")
    assert noise_between_frames(to_trajectory(raw)) == noisy
    assert report.usable != noisy
    if noisy:
        (refusal,) = (f for f in report.findings if f.code == "forces_do_not_explain_motion")
        assert "noise on the atoms one by one (Langevin, Andersen) acts between frames" in refusal.message
        assert "or run NVE" in refusal.message


def test_a_held_centre_of_mass_does_not_hide_the_noise_on_a_molecule() -> None:
    raw = chosen(ase_run("langevin", n_frames=800), slice(None, None, 16), dt_fs=8.0)
    run = to_trajectory(raw)
    drift = (run.masses[:, None] * run.velocities).sum(axis=1, keepdims=True) / run.masses.sum()
    assert noise_between_frames(run.replace(velocities=run.velocities - drift))
    tied = constrained_run(FixAtoms([0, 4]), n_frames=400)
    assert not noise_between_frames(to_trajectory(chosen(tied, slice(None, None, 8), dt_fs=4.0)))
    # Net forces, as of atoms on a surface, leave it open.
    pushed = run.replace(forces=run.forces + np.random.default_rng(0).normal(size=run.forces.shape))
    assert not noise_between_frames(pushed)


def test_a_stress_that_jumps_is_told() -> None:
    stress = morse_stress(RUN)
    run = to_trajectory(changed(stress=stress))
    assert diagnose(run).findings == ()
    for frame in (0, 90, 199):
        spoilt = stress.copy()
        spoilt[frame, 3] += 0.1 * np.ptp(stress)
        (found,) = diagnose(run.replace(stress=spoilt)).findings
        assert found.code == "stress_jumps"
        assert abs(found.frames[0] - frame) <= 2
    broken = run.replace(breaks=(100,), stress=np.concatenate([stress[:100], stress[150:], stress[:50]]))
    assert "stress_jumps" not in {f.code for f in diagnose(broken.replace(breaks=(100, 150))).findings}


# Several runs


def test_a_cell_told_of_each_frame_is_one_cell_if_it_never_changes() -> None:
    runs = [morse_trajectory(250), morse_trajectory(220, seed=1)]
    told = [run.replace(cell=np.broadcast_to(run.cell, (run.n_frames, 3, 3))) for run in runs]
    assert energy_offset(*told) == energy_offset(*runs)


def test_energies_of_another_zero_are_told_when_runs_lie_side_by_side() -> None:
    runs = [morse_trajectory(50, seed=seed) for seed in (0, 1, 2)]
    assert find_other_zeros(runs) == {}
    shifted = [*runs[:2], runs[2].replace(energies=runs[2].energies + 400.0)]
    (finding,) = find_other_zeros(shifted)["made_2"]
    assert (finding.code, finding.severity) == ("another_energy_zero", "warning")
    assert "+4" in finding.message
    assert "CH2O" in finding.message
    _, reports = usable_runs(shifted)
    assert [[f.code for f in report.findings] for report in reports] == [[], [], ["another_energy_zero"]]


@pytest.mark.shared
def test_runs_of_one_zero_are_not_blamed(shared_data: Path) -> None:
    assert find_other_zeros(read_trajectories(shared_data / "data" / "h2pd6gra")) == {}
