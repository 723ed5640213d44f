"""`dyntrain train` as a user calls it: last line, exit codes, a sentence for each mistake, two processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
import yaml
from ase.calculators.singlepoint import SinglePointCalculator

from dyntrain.data.readers import read_trajectories
from dyntrain.data.store import write_store
from made_runs import as_atoms, morse_run
from training_runs import assert_same_training, log_rows, run, small_config, weights, write_run, write_runs

DYNTRAIN = [sys.executable, "-c", "from dyntrain.cli import main; main()"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return write_runs(tmp_path_factory.mktemp("runs"))


def write_config(path: Path, runs: Any, **changes: Any) -> Path:
    values = {**small_config(runs, path.parent / "out"), **changes}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def dyntrain(*arguments: Any) -> subprocess.CompletedProcess[str]:
    command = [*DYNTRAIN, *map(str, arguments)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


# --- in this process: without the start of an interpreter ---------------------------------------------------


def main(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """Exit code of the command line."""
    from dyntrain.cli import main

    monkeypatch.setattr(sys, "argv", ["dyntrain", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    code = stop.value.code
    return code if isinstance(code, int) else 0


def refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one sentence on stderr; exit code 2, nothing on stdout, no traceback."""
    assert main(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("dyntrain: ") and err.count("\n") == 1
    return err


def broken_run(path: Path, how: str) -> Path:
    frames = as_atoms(morse_run(30))
    calc = frames[7].calc
    assert isinstance(calc, SinglePointCalculator)
    if how == "missing forces":
        for atoms in frames:
            atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy())
    elif how == "NaN energy":
        calc.results["energy"] = np.nan
    elif how == "NaN force":
        calc.results["forces"][2, 1] = np.nan
    elif how == "zero cell vector":
        for atoms in frames:
            energy, forces = atoms.get_potential_energy(), atoms.get_forces()
            atoms.cell[1] = 0.0
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    ase.io.write(path, frames)
    if how == "truncated file":
        path.write_bytes(path.read_bytes()[:-3000])
    return path


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("missing forces", "forces"),
        ("NaN energy", "frame 7: energy is nan"),
        ("NaN force", "frame 7: forces of atom 2 is nan"),
        ("truncated file", "broken.traj"),
        ("zero cell vector", "pbc is on along b but that cell vector is zero or missing"),
    ],
)
def test_broken_data_get_one_sentence(
    how: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = broken_run(tmp_path / "broken.traj", how)
    message = refusal(monkeypatch, capsys, "train", write_config(tmp_path / "c.yaml", [str(file)]))
    assert sentence in message and "broken.traj" in message


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batchsize": 4}, "unknown key `batchsize`: did you mean `batch_size`?"),
        ({"batch_size": "many"}, "`batch_size`: should be a valid integer"),
        ({"curriculum": {"stages": [{"segment_length": 40, "share": 1}]}}, "segments of 40 frames"),
        ({"data": {"train": []}}, "split"),
        ({"data": []}, "There are no runs to split: give at least one file under `data`"),
        ({"data": ["none.traj"]}, "There is no file none.traj"),
        ({"device": "cuda"}, "device: cuda was asked for, but torch finds no CUDA device"),
        ({"start_from": "none.pt"}, "there is no model file none.pt"),
        ({"seed": 2**80}, "`seed`: should be less than 4294967296"),
        ({"model": {"cutoff": 0.3}}, "model.cutoff: no two atoms of the training runs are closer than 0.3"),
    ],
    ids=str,
)
def test_wrong_configurations_get_one_sentence(
    changes: dict[str, Any],
    sentence: str,
    data: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if changes.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device here")
    config = write_config(tmp_path / "c.yaml", [data["train"][0]], **changes)
    assert sentence in refusal(monkeypatch, capsys, "train", config)


def test_an_output_that_cannot_be_written_gets_one_sentence(
    data: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("no folder")
    config = write_config(tmp_path / "c.yaml", data, output=str(tmp_path / "file" / "out"))
    message = refusal(monkeypatch, capsys, "train", config)
    assert "cannot write into" in message and "choose a folder you can write to" in message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("data: [a", "is not valid YAML"),
        ("", "expected keys and values"),
        (None, "cannot read the configuration"),
    ],
)
def test_an_unreadable_configuration_gets_one_sentence(
    text: str | None,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "c.yaml"
    if text is not None:
        path.write_text(text)
    assert sentence in refusal(monkeypatch, capsys, "train", path)


def test_training_says_what_it_does_and_ends_with_the_path_of_the_model(
    data: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path / "c.yaml", data, validation={"n_starts": 6, "n_steps": 50})
    model = tmp_path / "out" / "model.pt"
    assert main(monkeypatch, "train", config) == 0
    out = capsys.readouterr().out
    flat = " ".join(out.split())
    assert out.splitlines()[-1] == str(model) and model.is_file()
    assert "apply the runs' kicks" in flat
    assert "Validation roll-outs take 29 steps instead of 50" in flat
    assert [f"epoch {n} S {s}" in flat for n, s in ((1, 1), (2, 3), (3, 3))] == [True] * 3
    assert "finished: the budget is spent (step 20" in flat
    assert main(monkeypatch, "train", config) == 0
    again = capsys.readouterr().out
    assert again.splitlines()[-1] == str(model) and "epoch" not in again
    assert main(monkeypatch, "train", write_config(tmp_path / "c.yaml", data, seed=5)) == 2
    assert "begun with other settings" in capsys.readouterr().err


def test_findings_of_one_kind_are_told_of_three_runs(
    data: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = read_trajectories(data["train"])[0].replace(alone=True)
    store = tmp_path / "structures.h5"
    write_store([run.slice(frame, frame + 2) for frame in range(0, 25, 5)], store)
    files = {**data, "train": [*data["train"], str(store)]}
    assert main(monkeypatch, "train", write_config(tmp_path / "c.yaml", files)) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("2 structure(s) of no run") == 3
    assert "likewise of 2 more" in out and "frames and 10 structures to train on" in out


def test_a_training_that_diverged_is_called_so(
    data: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stages = [{"segment_length": 1, "share": 1}]
    config = write_config(tmp_path / "c.yaml", data, curriculum={"stages": stages, "lr": 1e4, "epochs": 2})
    assert main(monkeypatch, "train", config) == 1
    assert "The training failed: in no validation" in capsys.readouterr().err


def test_a_stop_by_max_time_is_said(
    data: dict[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path / "c.yaml", data, max_time="0.001s")
    assert main(monkeypatch, "train", config) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == "max_time (0.001s) is over; the same command goes on."
    assert Path(lines[-1]).is_file()


def test_the_schema_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(monkeypatch, "schema") == 0
    assert '"additionalProperties": false' in capsys.readouterr().out


# --- in processes of their own ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_same_command_goes_on_after_a_signal(
    number: signal.Signals, data: dict[str, list[str]], tmp_path: Path
) -> None:
    """Stopped once the first validation is done."""
    changes = {"budget": {"evaluations": 600, "costs": {"rollout": 1.2}}}
    config = write_config(tmp_path / "c.yaml", data, **changes)
    with (tmp_path / "printed").open("w") as printed:
        process = subprocess.Popen([*DYNTRAIN, "train", str(config)], env=ENVIRONMENT, stdout=printed)
        deadline = time.monotonic() + 100
        while not (tmp_path / "out" / "model.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        code = process.wait(60)
    assert code == (128 + signal.SIGTERM if number == signal.SIGTERM else -signal.SIGKILL)
    assert 1 <= len(log_rows(tmp_path / "out")) < 3
    done = dyntrain("train", config)
    assert done.returncode == 0 and "Going on from the checkpoint" in done.stdout
    run(data, tmp_path / "undisturbed", **changes)
    assert_same_training(tmp_path / "out", tmp_path / "undisturbed")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Runs of unequal compositions, one of which flies 1.2 Å a step: its roll-outs count as burst."""
    folder = tmp_path_factory.mktemp("mixed")
    data = write_runs(folder)
    slow = morse_run(30, numbers=(6, 1), seed=5)
    assert slow.velocities is not None and slow.dt_fs is not None
    way = np.array([1.2, 0.0, 0.0])
    flown = way * np.arange(30)[:, None, None]
    frames = as_atoms(slow)
    from dyntrain.units import FS

    for atoms, shift in zip(frames, flown, strict=True):
        atoms.positions += shift
        atoms.set_velocities(atoms.get_velocities() + way / (slow.dt_fs * FS))
        atoms.set_pbc(False)
        atoms.set_cell(None)
        energy, forces = atoms.calc.results["energy"], atoms.calc.results["forces"]
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    ase.io.write(folder / "flying.traj", frames)
    return {**data, "train": [data["train"][0], data["train"][2], str(folder / "flying.traj")]}


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["--devices 2", "torchrun"])
def test_two_processes_train_like_one(launcher: str, mixed: dict[str, list[str]], tmp_path: Path) -> None:
    """Batches of two and one segments, unequal compositions, bursts; in float64 equal to rounding."""
    changes: dict[str, Any] = {
        "precision": "float64",
        "batch_size": 2 if launcher == "--devices 2" else 3,
        "loss": {"forces": {"per_element": True}, "energy": {"only_single_frames": True}},
        "budget": {"evaluations": 60, "costs": {"rollout": 1.2}},
    }
    config = write_config(tmp_path / "c.yaml", mixed, **changes)
    # Both start this script again for each process.
    script = tmp_path / "dyntrain"
    script.write_text("from dyntrain.cli import main\nmain()\n")
    command = [sys.executable, str(script), "train", str(config), "--devices", "2"]
    if launcher == "torchrun":
        command = [*TORCHRUN, str(script), "train", str(config)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(tmp_path / "out" / "model.pt")
    assert done.stdout.count("finished: ") == 1
    run(mixed, tmp_path / "alone", **changes)
    found, expected = weights(tmp_path / "out"), weights(tmp_path / "alone")
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= 1e-12 * float(tensor.abs().max()), name
    rows = list(zip(log_rows(tmp_path / "out"), log_rows(tmp_path / "alone"), strict=True))
    assert sum(int(row["burst_training"]) for _, row in rows) > 0
    for one, other in rows:
        for column, value in other.items():
            same = one[column] == value or float(one[column]) == pytest.approx(float(value), rel=1e-9)
            assert same, (column, one[column], value)


@pytest.mark.slow
def test_two_processes_resume_what_one_began(data: dict[str, list[str]], tmp_path: Path) -> None:
    changes: dict[str, Any] = {"precision": "float64"}
    config = write_config(tmp_path / "c.yaml", data, **changes)
    run(data, tmp_path / "out", max_time="0.001s", **changes)
    begun = len(log_rows(tmp_path / "out"))
    script = tmp_path / "dyntrain"
    script.write_text("from dyntrain.cli import main\nmain()\n")
    command = [sys.executable, str(script), "train", str(config), "--devices", "2"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Going on from the checkpoint" in done.stdout
    run(data, tmp_path / "alone", **changes)
    found, expected = weights(tmp_path / "out"), weights(tmp_path / "alone")
    assert begun < 3 == len(log_rows(tmp_path / "out"))
    for name, tensor in expected.items():
        assert float((found[name] - tensor).abs().max()) <= 1e-12 * float(tensor.abs().max()), name


@pytest.mark.slow
def test_a_mistake_is_told_once_by_two_processes(data: dict[str, list[str]], tmp_path: Path) -> None:
    write_run(tmp_path / "short.traj", n_frames=3)
    config = write_config(tmp_path / "c.yaml", {**data, "validation": [str(tmp_path / "none.traj")]})
    script = tmp_path / "dyntrain"
    script.write_text("from dyntrain.cli import main\nmain()\n")
    command = [sys.executable, str(script), "train", str(config), "--devices", "2"]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("There is no file") == 1
    assert "Traceback" not in done.stderr
