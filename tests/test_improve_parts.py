"""The parts of `dyntrain improve`: where segments begin, which reference is refused, runs made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.emt import EMT

from dyntrain.calculator import Calculator
from dyntrain.config import ImproveConfig, parse_config
from dyntrain.data.readers import read_trajectories
from dyntrain.errors import UserError
from dyntrain.evaluate import FailureCriterion, FreeRuns
from dyntrain.evaluate.free import Motion
from dyntrain.improve import RoundResult, improve, task, worker
from dyntrain.improve.committee import Doubt, disagreement
from dyntrain.improve.explore import (
    AT_RANDOM,
    BEFORE_FAILURE,
    IN_DOUBT,
    LEAD_FS,
    choose_places,
    free_starts,
    segments_elsewhere,
)
from dyntrain.improve.reference import Reference, ReferencePotential, check_same_method
from dyntrain.improve.task import Task, carry_out, outcomes, write_task
from dyntrain.models.analytic import LennardJones
from dyntrain.models.egnn import EGNN
from dyntrain.models.files import save_model
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative
from dyntrain.reference.cache import Label
from dyntrain.report.improve_page import _axis
from dyntrain.simulate import TrajectoryFiles, internal_temperature, simulate
from dyntrain.state import concatenate
from test_improve import DT_FS, Told, data, emt_run, inside, run, values_of

__all__ = ["data"]  # a fixture


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_workers", inside)


# --- where ------------------------------------------------------------------------------------------------


def free_runs_with(failure_fs: list[float | None], length_fs: float = 1000.0) -> FreeRuns:
    n = len(failure_fs)
    return FreeRuns(
        times_fs=np.array([0.0]),
        total_energy=np.zeros((1, n)),
        kinetic_energy=np.zeros((1, n)),
        failure_fs=np.array([length_fs if fs is None else fs for fs in failure_fs]),
        failed=np.array([fs is not None for fs in failure_fs]),
        reasons={run: "broke" for run, fs in enumerate(failure_fs) if fs is not None},
        run_length_fs=length_fs,
        dt_fs=0.5,
        criterion=FailureCriterion(),
        wall_s=0.0,
        stability=np.zeros(n),
    )


def test_half_of_the_places_lie_before_failures() -> None:
    free = free_runs_with([None, 500.0, 600.0, 700.0, 20.0, None, 800.0, None])
    places = choose_places(free, 6, np.random.default_rng(0))
    before = [place for place in places if place.why == BEFORE_FAILURE]
    assert len(before) == 3 and len(places) == 6
    for place in before:
        assert place.time_fs == free.failure_fs[place.run] - LEAD_FS and place.told == "broke"
    others = [place for place in places if place.why == AT_RANDOM]
    assert len({place.run for place in others}) == 3
    for place in others:
        assert 200.0 <= place.time_fs <= free.failure_fs[place.run]
        assert not free.failed[place.run] or place.time_fs <= free.failure_fs[place.run] - LEAD_FS
    assert all(place.run != 4 for place in places)  # it broke before anything could be begun


def test_without_failures_all_places_are_at_random_times() -> None:
    places = choose_places(free_runs_with([None] * 5), 5, np.random.default_rng(1))
    assert [place.why for place in places] == [AT_RANDOM] * 5
    assert np.ptp([place.time_fs for place in places]) > 100


def test_more_places_than_runs_are_spread_over_the_runs() -> None:
    places = choose_places(free_runs_with([None, None, 500.0, 90.0]), 10, np.random.default_rng(0))
    before = [(place.run, place.time_fs) for place in places if place.why == BEFORE_FAILURE]
    earlier = {2: [450.0, 460.0, 470.0], 3: [40.0, 50.0, 60.0]}  # of one of the runs two, of the other three
    assert [time for run, time in before if run == 2] in (earlier[2], earlier[2][1:])
    assert [time for run, time in before if run == 3] in (earlier[3], earlier[3][1:])
    assert len(before) == 5
    others = [place.run for place in places if place.why == AT_RANDOM]
    assert sorted(np.bincount(others, minlength=4).tolist()) == [0, 1, 2, 2]  # run 3 ends too early
    assert len({place.time_fs for place in places}) == 10


def test_what_is_not_spent_before_failures_goes_to_single_structures() -> None:
    free = free_runs_with([None, 500.0, 600.0, None])
    places = choose_places(free, 100, np.random.default_rng(0), lengths=(20, 1))
    told = [(place.why, place.n_frames) for place in places]
    assert told == [(BEFORE_FAILURE, 20)] * 2 + [(AT_RANDOM, 1)] * 60
    for number in range(4):
        chosen = [place.time_fs for place in places if (place.run, place.why) == (number, AT_RANDOM)]
        whole = 1000.0 if free.reasons.get(number) is None else free.failure_fs[number] - LEAD_FS
        # One in each fifteenth of the time while the run is whole.
        parts = np.floor((np.array(chosen) - 200) / (whole - 200) * 15)
        assert np.array_equal(parts, np.arange(15))


@pytest.mark.parametrize(("n_failed", "undecided"), [(0, False), (1, True), (4, True)])
def test_segments_are_asked_for_while_runs_fail(n_failed: int, undecided: bool) -> None:
    free = free_runs_with([300.0] * n_failed + [None] * (4 - n_failed))
    assert segments_elsewhere(free, None) is undecided
    assert segments_elsewhere(free, "segments") and not segments_elsewhere(free, "structures")


def test_where_all_break_at_once_there_is_no_place() -> None:
    assert choose_places(free_runs_with([35.0, 20.0]), 2, np.random.default_rng(0)) == []


def test_short_lived_runs_are_used_where_no_others_are_left() -> None:
    places = choose_places(free_runs_with([80.0, 90.0]), 2, np.random.default_rng(0))
    assert [place.why for place in places] == [BEFORE_FAILURE, AT_RANDOM]
    assert all(0 < place.time_fs <= 60 for place in places)


def doubt_of(spread: np.ndarray, every_fs: float = 10.0) -> Doubt:
    return Doubt(every_fs * np.arange(len(spread)), spread, n_members=3)


def test_places_are_where_the_committee_disagrees_most_in_each_run() -> None:
    spread = np.full((101, 4), 0.1)
    spread[70, 0], spread[72, 0], spread[30, 1], spread[50, 2] = 0.9, 0.8, 0.5, 0.4
    spread[10, 1] = spread[90, 2] = 2.0  # too early; after its failure
    spread[85:, 2] = np.nan
    free = free_runs_with([None, None, 850.0, 20.0])
    places = choose_places(free, 5, np.random.default_rng(0), doubt_of(spread))
    assert [(p.run, p.time_fs, p.why) for p in places] == [
        (2, 810.0, BEFORE_FAILURE),
        (2, 820.0, BEFORE_FAILURE),
        (0, 700.0, IN_DOUBT),
        (1, 300.0, IN_DOUBT),
        (2, 500.0, IN_DOUBT),
    ]
    assert "3 networks lie 0.9 eV/Å apart" in places[2].told


def test_the_next_place_in_doubt_of_a_run_is_another_place() -> None:
    spread = np.full((101, 1), 0.1)
    spread[70], spread[72], spread[50] = 0.9, 0.8, 0.5
    places = choose_places(free_runs_with([None]), 2, np.random.default_rng(0), doubt_of(spread))
    assert [place.time_fs for place in places] == [700.0, 500.0]


def test_what_the_committee_does_not_fill_is_drawn_at_random() -> None:
    places = choose_places(
        free_runs_with([None]), 4, np.random.default_rng(0), doubt_of(np.ones((4, 1)), 100.0)
    )
    assert [place.why for place in places] == [IN_DOUBT, IN_DOUBT, AT_RANDOM, AT_RANDOM]


def test_disagreement_is_the_spread_of_the_forces_on_the_worst_atom(data: Any) -> None:
    starts = free_starts(read_trajectories(data["train"]), 3, None, 0)
    members = [Conservative(LennardJones(0.1 * factor, 2.2, cutoff=6.0)) for factor in (1.0, 2.0, 4.0)]
    positions = torch.stack([starts.positions, 1.1 * starts.positions]).numpy().astype(np.float32)
    whole = np.array([[True, True, True], [True, False, True]])
    motion = Motion(np.array([0.0, 10.0]), positions, np.zeros_like(positions), whole, starts)
    found = disagreement(members, motion)
    assert found.n_members == 3 and found.times_fs.tolist() == [0.0, 10.0]
    assert np.isnan(found.spread[1, 1]) and np.isfinite(found.spread).sum() == 5
    for row, run_number in ((0, 0), (0, 2), (1, 2)):
        atoms = starts.atoms_of(torch.tensor([run_number]))
        alone = starts.select([run_number]).replace(
            positions=torch.from_numpy(positions[row]).double()[atoms]
        )
        forces = members[0](alone, neighbor_list(alone, 6.0)).forces.detach()
        # Forces F, 2 F and 4 F lie sqrt(14)/3 |F| apart.
        expected = float(forces.norm(dim=1).max()) * 14**0.5 / 3
        assert found.spread[row, run_number] == pytest.approx(expected, rel=1e-6)


def test_velocities_are_those_recorded_or_drawn_for_a_temperature(data: Any) -> None:
    runs = read_trajectories(data["train"])
    recorded, drawn = free_starts(runs, 3, None, 0), free_starts(runs, 3, 700.0, 0)
    assert torch.equal(recorded.positions, drawn.positions)
    for number in range(3):
        assert internal_temperature(drawn.select([number])) == pytest.approx(700.0)
        assert internal_temperature(recorded.select([number])) < 500.0


# --- the reference ----------------------------------------------------------------------------------------


def test_another_method_is_refused(data: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is another method than that of"):
        run(data, tmp_path / "out", improve={"reference": "lj", "options": {"sigma": 2.2, "epsilon": 0.5}})
    assert not (tmp_path / "out" / "round_00").exists()


def test_another_zero_of_energy_is_refused_where_energies_are_trained_on(data: Any, tmp_path: Path) -> None:
    shifted = [emt_run(tmp_path / f"{seed}.traj", seed, shift_eV=-3.0) for seed in (0, 1)]
    runs, labels = read_trajectories(shifted), Reference("emt").labels(tmp_path / "store")
    with pytest.raises(UserError, match=r"differ from those of the training runs by 0\.75 eV per atom"):
        check_same_method(labels, runs, with_energy=True)
    assert check_same_method(labels, runs, with_energy=False) < 1e-6


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"reference": "emt", "method": "GFN2-xTB"}, "a method of tblite, but the reference is 'emt'"),
        ({"reference": "model.pt", "options": {"a": 1}}, "a model file as the reference takes none"),
        ({"reference": "no-such"}, "cannot make a calculator for the method 'no-such'"),
        ({"segment_length": 4}, "cannot be trained on with windows of 5 frames"),
        ({"horizon": "1h"}, "a number with fs, ps or ns behind it"),
    ],
)
def test_mistakes_are_told_before_anything_is_done(
    data: Any, tmp_path: Path, section: dict[str, Any], message: str
) -> None:
    stages = {"stages": [{"segment_length": 5, "share": 1}]}
    with pytest.raises(UserError, match=message):
        run(data, tmp_path / "out", improve=section, curriculum=stages)
    assert not (tmp_path / "out" / "round_00").exists()


def test_a_section_is_needed(data: Any, tmp_path: Path) -> None:
    values = values_of(data, tmp_path / "out")
    del values["improve"]
    with pytest.raises(UserError, match="`improve` is missing"):
        improve(parse_config(values), Told())


def test_tblite_is_the_default() -> None:
    assert Reference.of(ImproveConfig()) == Reference("tblite", "GFN2-xTB")
    assert Reference.of(ImproveConfig(method="GFN1-xTB")).method == "GFN1-xTB"


def test_a_model_is_a_reference_too(tmp_path: Path) -> None:
    """Distillation: the structures' labels are those of the model."""
    file = tmp_path / "model.pt"
    save_model(Conservative(EGNN(elements=[29], cutoff=4.0, width=8, n_channels=4)), file)
    atoms = Atoms("Cu4", 2.4 * np.random.default_rng(0).random((4, 3)) + 2 * np.eye(4, 3))
    label = Reference.of(ImproveConfig(reference=str(file))).labels(tmp_path).label(atoms)
    atoms.calc = Calculator(file)
    assert label.energy == atoms.get_potential_energy()
    np.testing.assert_array_equal(label.forces, atoms.get_forces())


def test_a_small_model_learns_from_runs_of_a_big_one(data: Any, tmp_path: Path) -> None:
    """Distillation as the page tells it: runs written by `dyntrain md`, their model as the reference."""
    big, runs = tmp_path / "big.pt", read_trajectories(data["train"])
    potential = Conservative(EGNN(elements=[29], cutoff=4.0, width=8, n_channels=4))
    save_model(potential, big)
    starts = concatenate([each.state(0) for each in runs])
    files = TrajectoryFiles(tmp_path / "md.traj", starts, runs[0].dt, every=1)
    motion = simulate(potential, starts, runs[0].dt, 30)
    for frame in motion:
        files.write(frame, motion.conserved_energy())
    files.close(finished=True)
    told = dict(zip(("train", "validation"), ([str(path)] for path in files.paths), strict=True))
    found = run(told, tmp_path / "out", improve={"reference": str(big), "calls": 18})
    assert [each.calls for each in found.rounds] == [0, 18]
    (new, *_) = read_trajectories([tmp_path / "out" / "round_01" / "segments.h5"])
    atoms = Atoms(new.symbols, new.positions[2], calculator=Calculator(big))
    np.testing.assert_allclose(new.forces[2], atoms.get_forces(), atol=1e-9)


class Failing:
    """Labels that fail from the third structure on, or have forces beyond reason."""

    name = "failing"

    def __init__(self, force: float) -> None:
        self.force, self.calls = force, 0

    def label(self, atoms: Atoms) -> Label:
        self.calls += 1
        if self.calls > 2:
            raise RuntimeError("SCF is not converged")
        return Label(0.0, np.full((len(atoms), 3), self.force))


@pytest.mark.parametrize(
    ("force", "reason", "calls"),
    [(1e-3, "failed: SCF is not converged", 3), (50.0, r"dropped: a force of 86.6 eV/Å \(limit 10\)", 1)],
)
def test_what_the_reference_cannot_do_is_counted_and_told(
    tmp_path: Path, force: float, reason: str, calls: int, data: Any
) -> None:
    start = ase.io.read(data["train"][0], 0)
    start.info["n_frames"] = 6
    write_task(tmp_path, Task(Reference("emt"), DT_FS, 10.0), [start])
    worker._continue(Task.read(tmp_path), tmp_path, 0, start, ReferencePotential(Failing(force)))
    (outcome,) = outcomes(tmp_path)
    assert outcome.run is None and outcome.calls == calls
    assert outcome.reason is not None and re.match(reason, outcome.reason)


def test_starts_of_an_older_version_are_refused(tmp_path: Path, data: Any) -> None:
    write_task(tmp_path, Task(Reference("emt"), DT_FS, 10.0), [ase.io.read(data["train"][0], 0)])
    with pytest.raises(UserError, match="an older version of dyntrain stopped in the middle"):
        carry_out(tmp_path, tmp_path / "store", 1, lambda *_: None)


def test_fixed_atoms_stay_where_they_are(tmp_path: Path, data: Any) -> None:
    from ase.constraints import FixAtoms

    start = ase.io.read(data["train"][0], 0)
    start.set_velocities(np.where(np.arange(4)[:, None] == 0, 0.0, start.get_velocities()))
    start.set_constraint(FixAtoms([0]))
    start.info["n_frames"] = 4
    write_task(tmp_path, Task(Reference("emt"), DT_FS, 100.0), [start])
    (outcome,) = carry_out(tmp_path, tmp_path / "store", 1, lambda *_: None)
    frames = ase.io.read(outcome.run, ":")
    np.testing.assert_array_equal(frames[-1].positions[0], start.positions[0])
    assert np.abs(frames[-1].positions[1:] - start.positions[1:]).max() > 1e-3


# --- by hand ----------------------------------------------------------------------------------------------


def answer(folder: Path, number: int, n_frames: int = 6, moved: float = 0.0) -> None:
    """The user's own calculation of one structure."""
    from ase.md.verlet import VelocityVerlet
    from ase.units import fs

    atoms = ase.io.read(folder / "to_compute" / f"{number:03d}.extxyz")
    assert atoms.info["n_steps"] == 5 and atoms.info["dt_fs"] == DT_FS
    np.testing.assert_allclose(atoms.arrays["velocities"], atoms.get_velocities() * fs, atol=1e-6)
    atoms = Atoms(atoms.symbols, atoms.positions + moved, velocities=atoms.get_velocities())
    atoms.calc = EMT()
    with ase.io.Trajectory(folder / "finished" / f"{number:03d}.traj", "w") as file:
        dynamics = VelocityVerlet(atoms, DT_FS * fs)
        for step in range(n_frames):
            atoms.info["time_fs"] = step * DT_FS
            atoms.get_forces()
            file.write(atoms)
            dynamics.run(1)


def test_structures_are_written_out_and_finished_runs_taken_in(data: Any, tmp_path: Path) -> None:
    section, output, told = {"reference": "files", "calls": 18}, tmp_path / "out", Told()
    first = run(data, output, told, improve=section)
    assert first.finished is None and "3 structures in" in told.said[-1]
    segments = output / "round_01" / "segments"
    assert sorted(p.name for p in (segments / "to_compute").iterdir()) == [
        "000.extxyz",
        "001.extxyz",
        "002.extxyz",
        "README.txt",
    ]
    answer(segments, 0)
    answer(segments, 1, n_frames=9)  # what is too long is cut
    told = Told()
    run(data, output, told, improve=section)
    assert "1 structures in" in told.said[-1]
    (segments / "finished" / "002.failed").touch()
    last = run(data, output, improve=section)
    record = json.loads((output / "improve.json").read_text())
    assert [each["calls"] for each in record["rounds"]] == [0, 12]
    assert record["rounds"][1]["audit_eV_A"] == {} and record["rounds"][1]["n_new"] == 2
    assert "segment 002 failed" in record["rounds"][1]["reference_failures"][0]
    assert last.finished is None  # six calls are left: the next structure is waited for
    assert len(list((output / "round_02" / "segments" / "to_compute").glob("*.extxyz"))) == 1


def test_single_structures_are_labelled_elsewhere(data: Any, tmp_path: Path) -> None:
    section = {"reference": "files", "calls": 3, "segment_length": 1}
    one_step = {"stages": [{"segment_length": 1, "share": 1}], "epochs": 2}
    output = tmp_path / "out"
    run(data, output, improve=section, curriculum=one_step)
    segments = output / "round_01" / "segments"
    assert "n_steps=0   energy and forces" in (segments / "to_compute" / "README.txt").read_text()
    forces = []
    for number in range(3):
        asked = ase.io.read(segments / "to_compute" / f"{number:03d}.extxyz")
        assert asked.info["n_steps"] == 0
        atoms = Atoms(
            asked.symbols, asked.positions
        )  # as a code writes it: without velocities or a time step
        atoms.calc = EMT()
        forces.append(atoms.get_forces())
        ase.io.write(segments / "finished" / f"{number:03d}.extxyz", atoms)
    assert run(data, output, improve=section, curriculum=one_step).finished is not None
    (found,) = read_trajectories([output / "round_01" / "segments.h5"])
    np.testing.assert_allclose(found.forces, forces, atol=1e-7)


def test_a_run_from_elsewhere_must_continue_its_structure(data: Any, tmp_path: Path) -> None:
    section, output = {"reference": "files", "calls": 6}, tmp_path / "out"
    run(data, output, improve=section)
    answer(output / "round_01" / "segments", 0, moved=0.1)
    with pytest.raises(UserError, match=r"000.traj does not begin at the structure .* 0.1 Å away"):
        run(data, output, improve=section)


# --- when it ends -----------------------------------------------------------------------------------------


def result_with(audit: list[float | None], n_failed: int = 0) -> RoundResult:
    curve = {"times_fs": [0.0, 50.0, 100.0], "median": audit, "lower": audit, "upper": audit}
    failed = [True] * n_failed + [False] * (4 - n_failed)
    return RoundResult(1, 18, 3, {}, curve, [100.0] * 4, failed, {}, 100.0, "")


def test_flat_is_as_right_at_the_end_as_at_the_start() -> None:
    assert result_with([0.02, 0.025, 0.029]).is_flat
    assert not result_with([0.02, 0.025, 0.031]).is_flat
    assert not result_with([0.02, 0.02, 0.02], n_failed=1).is_flat
    assert not result_with([0.02, 0.02, None]).is_flat


def test_a_round_must_lower_the_audit_to_be_worth_another() -> None:
    before = result_with([0.02, 0.03, 0.04])
    assert result_with([0.016, 0.024, 0.030]).is_lower_than(before)
    assert not result_with([0.019, 0.029, 0.040]).is_lower_than(before)


# --- the page ---------------------------------------------------------------------------------------------


def test_a_model_that_explodes_does_not_press_the_others_flat() -> None:
    quiet = {"times_fs": [0.0, 50.0], "median": [0.1, 0.2]}
    assert _axis([quiet, {}]) == _axis([]) == {"rangemode": "tozero"}
    assert _axis([quiet, {"times_fs": [0.0, 50.0], "median": [0.3, 10.5]}]) == {"type": "log"}


def test_the_folder_of_a_training_is_left_alone(data: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.yaml").write_text("data: [a.traj]\n")
    with pytest.raises(UserError, match=r"config\.yaml is there already and not of `dyntrain improve`"):
        run(data, tmp_path / "out")
    assert (tmp_path / "out" / "config.yaml").read_text() == "data: [a.traj]\n"
