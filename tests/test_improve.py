"""The loop of `dyntrain improve` on a copper cluster with ASE's EMT as the reference, in seconds."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.md.verlet import VelocityVerlet
from ase.units import fs

from dyntrain.config import parse_config
from dyntrain.data.readers import read_trajectories
from dyntrain.data.store import write_store
from dyntrain.errors import UserError
from dyntrain.improve import Improved, RoundResult, improve, task
from dyntrain.improve.explore import AT_RANDOM, BEFORE_FAILURE, IN_DOUBT
from dyntrain.improve.worker import work
from dyntrain.models.files import read_record
from dyntrain.training import Silent

DT_FS = 2.0


def emt_run(path: Path, seed: int, n_frames: int = 40, shift_eV: float = 0.0) -> str:
    """NVE of four copper atoms at about 300 K."""
    random = np.random.default_rng(seed)
    corners = 2.4 * np.array([[0, 0, 0], [1, 0, 0], [0.5, 0.87, 0], [0.5, 0.29, 0.82]])
    atoms = Atoms("Cu4", corners + random.normal(scale=0.03, size=(4, 3)))
    atoms.set_velocities(random.normal(scale=0.02, size=(4, 3)))
    atoms.calc = EMT()
    frames, dynamics = [], VelocityVerlet(atoms, DT_FS * fs)
    for number in range(n_frames):
        frame = atoms.copy()
        energy = atoms.get_potential_energy() + shift_eV
        frame.calc = SinglePointCalculator(frame, energy=energy, forces=atoms.get_forces())
        frame.info["time_fs"] = number * DT_FS
        frames.append(frame)
        dynamics.run(1)
    ase.io.write(path, frames)
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("copper")
    train = [emt_run(folder / f"train_{seed}.traj", seed) for seed in (0, 1)]
    return {"train": train, "validation": [emt_run(folder / "validation.traj", 2)]}


def values_of(data: Any, output: Path, **changes: Any) -> dict[str, Any]:
    """A configuration of two rounds of three segments of six frames."""
    section = {
        "reference": "emt",
        "calls": 36,
        "horizon": "100fs",
        "segments": 3,
        "segment_length": 6,
        "n_runs": 3,
        **changes.pop("improve", {}),
    }
    return {
        "data": data,
        "output": str(output),
        "device": "cpu",
        "model": {"cutoff": 4.0, "settings": {"width": 8, "n_channels": 4, "n_radial": 4}},
        "batch_size": 8,
        "curriculum": {
            "stages": [{"segment_length": 1, "share": 3}, {"segment_length": 3, "share": 1}],
            "epochs": 2,
        },
        "validation": {"n_starts": 4, "n_steps": 5},
        "budget": {"evaluations": 600, "costs": {"rollout": 1.0}},
        "improve": section,
        **changes,
    }


class Told:
    """An observer that remembers what was said, and may stop the loop at a place."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    @contextlib.contextmanager
    def training(self, name: str) -> Iterator[Silent]:
        self.said.append(f"training {name}")
        yield Silent()

    @contextlib.contextmanager
    def progress(self) -> Iterator[Any]:
        yield lambda *_: None

    def measured(self, result: RoundResult) -> None:
        self.said.append(f"measured {result.number}")


@contextlib.contextmanager
def inside(folder: Path, store: Path, n: int) -> Iterator[Iterator[str]]:
    """The reference's work without starting processes."""
    lines: list[str] = []
    for share in range(n):
        work(folder.resolve(), store.resolve(), share, n, lines.append)
    yield iter(lines)


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task, "_workers", inside)


def run(data: Any, output: Path, observer: Told | None = None, **changes: Any) -> Improved:
    return improve(parse_config(values_of(data, output, **changes)), observer or Told())


@pytest.fixture(scope="module")
def whole(data: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Improved:
    """A whole improvement, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task, "_workers", inside)
        return run(data, tmp_path_factory.mktemp("whole") / "out")


def folder_of(improved: Improved) -> Path:
    return improved.page.parent


def record_of(improved: Improved) -> dict[str, Any]:
    return json.loads((folder_of(improved) / "improve.json").read_text())


# --- what comes out -----------------------------------------------------------------------------------------


def test_the_record_has_a_round_for_each_model(whole: Improved) -> None:
    record = record_of(whole)
    assert record["finished"] == "the 36 reference calls are spent"
    assert [each["calls"] for each in record["rounds"]] == [0, 18, 36]
    for each in record["rounds"]:
        assert set(each["deviation_eV_A"]) <= {"0", "10", "50"} and "0" in each["deviation_eV_A"]
        assert list(each["audit_eV_A"]) == ["0", "50", "100"]
        assert 0 <= each["n_failed"] <= each["n_runs"] == 3 and each["run_length_fs"] == 100
    assert [each["audit_calls"] for each in record["rounds"]] == [9, 9, 9]
    assert len(record["rounds"][1]["places"]) == record["rounds"][1]["n_new"] == 3
    page = whole.page.read_text()
    assert "Round 2: where it went wrong" in page


def test_segments_are_the_references_own_motion_from_the_models_structures(whole: Improved) -> None:
    folder = folder_of(whole) / "round_01" / "segments"
    starts = ase.io.read(folder / "starts.traj", ":")
    for number, start in enumerate(starts):
        frames = ase.io.read(folder / f"{number:03d}.traj", ":")
        assert len(frames) == 6
        np.testing.assert_array_equal(frames[0].positions, start.positions)
        atoms = frames[0].copy()
        atoms.calc = EMT()
        dynamics = VelocityVerlet(atoms, DT_FS * fs)
        dynamics.run(5)
        np.testing.assert_allclose(frames[-1].positions, atoms.positions, atol=1e-9)
        np.testing.assert_allclose(frames[-1].get_forces(), atoms.get_forces(), atol=1e-7)
        assert frames[-1].get_potential_energy() == pytest.approx(atoms.get_potential_energy())
    (run, *_) = read_trajectories([folder_of(whole) / "round_01" / "segments.h5"])
    assert run.dt_fs == pytest.approx(DT_FS)
    assert float(run.kicks().positions.abs().max()) < 1e-12


def test_segments_begin_on_the_models_own_way(whole: Improved, data: dict[str, list[str]]) -> None:
    starts = ase.io.read(folder_of(whole) / "round_01" / "segments" / "starts.traj", ":")
    recorded = np.concatenate([[a.positions for a in ase.io.read(f, ":")] for f in data["train"]])
    for start in starts:
        assert start.info["time_fs"] >= (10 if start.info["why"] == AT_RANDOM else 0)
        assert np.abs(recorded - start.positions).max((1, 2)).min() > 1e-3


def test_rounds_train_on_from_the_last_weights_with_all_segments(whole: Improved) -> None:
    config = yaml.safe_load((folder_of(whole) / "round_02" / "training" / "config.yaml").read_text())
    assert [Path(f).name for f in config["data"]["train"]] == ["train.h5", "segments.h5", "segments.h5"]
    assert config["start_from"].endswith("round_01/training/model.pt")
    assert config["curriculum"]["lr"] == 1e-2  # of a new network: a round learns something new
    assert whole.model.parent.parent.name == "round_02"


def test_segments_of_one_frame_are_single_structures(data: dict[str, list[str]], tmp_path: Path) -> None:
    told = Told()
    one_step = {"stages": [{"segment_length": 1, "share": 1}], "epochs": 2}
    single = {"calls": 8, "segments": 4, "segment_length": 1}
    found = run(data, tmp_path / "out", told, improve=single, curriculum=one_step)
    record = record_of(found)
    assert [each["calls"] for each in record["rounds"]] == [0, 4, 8]
    assert "Round 1: emt labels 4 structures" in told.said
    folder = folder_of(found) / "round_01"
    (structures,) = read_trajectories([folder / "segments.h5"])
    starts = ase.io.read(folder / "segments" / "starts.traj", ":")
    assert structures.alone and structures.n_frames == len(starts) == 4
    for k, start in enumerate(starts):
        atoms = start.copy()
        atoms.calc = EMT()
        np.testing.assert_array_equal(structures.positions[k], start.positions)
        np.testing.assert_allclose(structures.forces[k], atoms.get_forces(), atol=1e-7)
        np.testing.assert_allclose(structures.velocities[k], start.get_velocities(), atol=1e-12)
    with pytest.raises(UserError, match="segments of 1 frames cannot be trained on with windows of 3 frames"):
        run(data, tmp_path / "other", improve=single)


def test_what_is_not_spent_before_failures_may_go_to_single_structures(
    data: dict[str, list[str]], tmp_path: Path
) -> None:
    told = Told()
    one_step = {"stages": [{"segment_length": 1, "share": 1}], "epochs": 2}
    section = {"horizon": "400fs", "calls": 18, "elsewhere": "structures"}
    found = run(data, tmp_path / "out", told, curriculum=one_step, improve=section)
    (_, record) = record_of(found)["rounds"]
    lengths = [place["n_frames"] for place in record["places"]]
    assert sum(lengths) == 18 and set(lengths) <= {1, 6}
    assert [place["n_frames"] == 6 for place in record["places"]] == [
        place["why"] == BEFORE_FAILURE for place in record["places"]
    ]
    (said,) = [text for text in told.said if text.startswith("Round 1: emt")]
    assert f"labels {lengths.count(1)} structures" in said
    assert f"{record['n_structures']} single structures" in found.page.read_text()
    runs = read_trajectories([folder_of(found) / "round_01" / "segments.h5"])
    assert sorted((each.alone, each.n_frames) for each in runs) == sorted(
        [(True, record["n_structures"])] + [(False, 6)] * (record["n_new"] - record["n_structures"])
    )


def test_free_runs_begin_on_runs(data: dict[str, list[str]], tmp_path: Path) -> None:
    one_step = {"stages": [{"segment_length": 1, "share": 1}], "epochs": 2}
    (structures, *_) = read_trajectories(data["train"])
    write_store([structures.replace(alone=True)], tmp_path / "set.h5")
    given = {"train": [str(tmp_path / "set.h5")], "validation": data["validation"]}
    with pytest.raises(UserError, match="free runs begin on training runs, but there are none"):
        run(given, tmp_path / "out", curriculum=one_step)


def test_calls_must_be_enough_for_a_segment(data: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"improve\.calls: 5 calls are fewer than the 6 frames of one segment"
    ):
        run(data, tmp_path / "out", improve={"calls": 5})
    assert not (tmp_path / "out" / "config.yaml").exists()


def test_single_structures_are_no_food_for_segments(data: dict[str, list[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"improve\.elsewhere: single structures cannot be trained on"):
        run(data, tmp_path / "out", improve={"elsewhere": "structures"})


def test_a_committee_begins_segments_where_it_disagrees(data: dict[str, list[str]], tmp_path: Path) -> None:
    observer = Told()
    found = run(data, tmp_path / "out", observer, improve={"committee": 2})
    folder = folder_of(found)
    assert observer.said.count("training round 1, committee 1 of 2") == 1
    assert not (folder / "round_02" / "committee_1").exists()  # nobody asks the members of the last round
    places = record_of(found)["rounds"][1]["places"]
    assert {place["why"] for place in places} <= {BEFORE_FAILURE, IN_DOUBT}
    assert "3 networks lie" in places[-1]["told"] and places[-1]["told"] in found.page.read_text()
    assert "where the model and a committee of 2 disagree" in found.page.read_text()
    configs = {
        name: yaml.safe_load((folder / name / "config.yaml").read_text())
        for name in (
            "round_00/training",
            "round_00/committee_1",
            "round_00/committee_2",
            "round_01/committee_1",
        )
    }
    assert len({configs[name]["seed"] for name in list(configs)[:3]}) == 3
    assert configs["round_00/committee_1"]["start_from"] is None
    assert configs["round_00/committee_1"]["budget"]["evaluations"] == 150
    assert configs["round_01/committee_1"]["start_from"].endswith("round_00/committee_1/model.pt")
    assert len(configs["round_01/committee_1"]["data"]["train"]) == 2


# --- interruptions ------------------------------------------------------------------------------------------


def assert_same(one: Improved, other: Improved) -> None:
    assert record_of(one) == record_of(other)
    first, second = read_record(one.model)[1], read_record(other.model)[1]
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def n_stored(folder: Path) -> int:
    return len(list((folder / "reference").rglob("*.npz")))


class _Killed(BaseException):
    pass


PLACES = [
    ("dyntrain.improve.loop.measure", 1),
    ("dyntrain.improve.loop.write_task", 1),
    ("dyntrain.improve.worker._largest_force", 9),  # in the middle of a segment
    ("dyntrain.improve.loop.write_store", 1),
    ("dyntrain.improve.loop.train", 1),
    ("dyntrain.improve.loop.write_page", 2),
    ("dyntrain.improve.task.outcomes", 1),
]


def dying(original: Any, at: int) -> Any:
    """The same function, which is killed at its n-th call."""
    calls = itertools.count(1)

    def call(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == at:
            raise _Killed
        return original(*args, **kwargs)

    return call


def test_the_same_call_after_interruptions_ends_the_same(
    data: dict[str, list[str]], whole: Improved, tmp_path: Path
) -> None:
    output = tmp_path / "out"
    for place, at in PLACES:
        module, name = place.rsplit(".", 1)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(place, dying(getattr(sys.modules[module], name), at))
            with pytest.raises(_Killed):
                run(data, output)
    assert_same(run(data, output), whole)
    assert n_stored(output) == n_stored(folder_of(whole))


def test_no_result_of_the_reference_is_calculated_twice(
    whole: Improved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = shutil.copytree(folder_of(whole), tmp_path / "out")
    config = parse_config(yaml.safe_load((output / "config.yaml").read_text()) | {"output": str(output)})
    for number in (1, 2):  # all that is made of the results
        shutil.rmtree(output / f"round_0{number}" / "training")
        for name in ("segments.h5", "result.json", "segments/000.traj"):
            (output / f"round_0{number}" / name).unlink()
    monkeypatch.setattr("dyntrain.reference.cache.StoredReference._calculate", None)
    assert_same(improve(config, Told()), whole)


def test_more_calls_go_on_and_other_settings_do_not(whole: Improved, tmp_path: Path, data: Any) -> None:
    output = shutil.copytree(folder_of(whole), tmp_path / "out")
    with pytest.raises(UserError, match=r"begun with other settings or data \(`improve.segments` differs\)"):
        run(data, output, improve={"segments": 4})
    with pytest.raises(UserError, match=r"begun with other settings or data \(`data` differs\)"):
        run({**data, "train": data["train"][:1]}, output)
    assert [each.calls for each in run(data, output, improve={"calls": 48}).rounds] == [0, 18, 36, 48]


@pytest.mark.slow
def test_killed_processes_go_on(data: dict[str, list[str]], whole: Improved, tmp_path: Path) -> None:
    """SIGKILL while the reference works, in the real command with two processes of the reference."""
    output, file = tmp_path / "out", tmp_path / "improve.yaml"
    values = values_of(data, output, improve={"workers": 2})
    file.write_text(yaml.safe_dump(values))
    command = [sys.executable, "-c", "from dyntrain.cli import main; main()", "improve", str(file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    segments = output / "round_01" / "segments"
    while not (segments / "starts.traj").exists() or not list(segments.glob("00?.traj")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = Path(done.stdout.splitlines()[-1])
    assert_same(Improved(model, [], None, output / "improve.html"), whole)
