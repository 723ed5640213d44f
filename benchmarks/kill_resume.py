"""Kill a training with SIGKILL at random moments, call it again, and compare with one left alone.

    python benchmarks/kill_resume.py

prints the table and writes it to benchmarks/kill_resume.md. Each training is the real command in a process of
its own; only the time between checkpoints is shorter than the usual 20 s, so that a run of seconds has some.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from dyntrain.models.files import read_record
from dyntrain.training.checkpoint import load_checkpoint

CHECKPOINT_EVERY_S = 1.0
PROGRAM = (
    f"from dyntrain.training import loop; loop.CHECKPOINT_EVERY_S = {CHECKPOINT_EVERY_S}; "
    "from dyntrain.cli import main; main()"
)
DATA = Path(__file__).resolve().parents[1] / "tests" / "data" / "h2pd6gra_80.traj"


class Outcome(NamedTuple):
    """One killed and resumed training: a row of the table."""

    killed_after_s: float
    where: str
    lost_s: float
    n_rows: int
    same_model: bool
    same_log: bool


def write_config(folder: Path) -> Path:
    """A training of some 100 steps at S = 1, 2 and 4 with five validations."""
    values: dict[str, Any] = {
        "data": [str(DATA)],
        "output": str(folder / "out"),
        "device": "cpu",
        "model": {"settings": {"width": 16, "n_channels": 8}},
        "batch_size": 4,
        "curriculum": {
            "stages": [{"segment_length": s, "share": w} for s, w in ((1, 2), (2, 1), (4, 1))],
            "epochs": 5,
        },
        "validation": {"n_starts": 4, "n_steps": 11, "batch_size": 1},
        "budget": {"evaluations": 800, "costs": {"rollout": 1.2}},
    }
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    return config


def start(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "train", str(config)],
        stdout=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def begun(process: subprocess.Popen[bytes], output: Path) -> float:
    """The time at which the training begins: with its first checkpoint."""
    while not (output / "checkpoint.pt").exists():
        if process.poll() is not None:
            raise SystemExit(f"the training in {output} ended with exit code {process.returncode}")
        time.sleep(0.01)
    return time.monotonic()


def finish(process: subprocess.Popen[bytes]) -> None:
    if (code := process.wait()) != 0:
        raise SystemExit(f"a training ended with exit code {code}")


def rows(output: Path) -> list[dict[str, str]]:
    """log.csv without the wall time."""
    with (output / "log.csv").open(encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "wall_s"} for row in csv.DictReader(file)]


def where_it_was(output: Path, now: float) -> tuple[str, float]:
    """What the last checkpoint says, and how old it is."""
    path = output / "checkpoint.pt"
    progress, _ = load_checkpoint(path)
    batch = progress.validation_batch
    what = f"step {progress.step}" if batch is None else f"validation {progress.epoch + 1}, batch {batch}"
    return what, now - path.stat().st_mtime


def killed_and_resumed(folder: Path, after_s: float, reference: Path) -> Outcome | None:
    """None where the training was over before it could be killed."""
    config, output = write_config(folder), folder / "out"
    process = start(config)
    begun(process, output)
    try:
        process.wait(after_s)
        return None
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
    where, lost = where_it_was(output, time.time())
    finish(start(config))
    one, other = (read_record(path / "model.pt")[1] for path in (output, reference))
    same_model = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    found = rows(output)
    return Outcome(after_s, where, lost, len(found), same_model, found == rows(reference))


def table(outcomes: list[Outcome], duration: float) -> str:
    lines = [
        f"Left alone the training takes {duration:.1f} s after its start; a checkpoint every "
        f"{CHECKPOINT_EVERY_S:g} s.",
        "",
        "| killed after (s) | last checkpoint | its age (s) | rows of log.csv | model | log |",
        "|---:|---|---:|---:|---|---|",
    ]
    for o in outcomes:
        same = ["to the last digit" if equal else "DIFFERS" for equal in (o.same_model, o.same_log)]
        lines.append(
            f"| {o.killed_after_s:.2f} | {o.where} | {o.lost_s:.2f} | {o.n_rows} | {same[0]} | {same[1]} |"
        )
    n_same = sum(o.same_model and o.same_log for o in outcomes)
    return "\n".join([*lines, "", f"{n_same} of {len(outcomes)} ended as if left alone."]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill and resume trainings at random moments.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        alone = start(write_config(folder / "alone"))
        begin = begun(alone, folder / "alone" / "out")
        finish(alone)
        duration = time.monotonic() - begin
        outcomes: list[Outcome] = []
        number = 0
        while len(outcomes) < options.kills:
            number += 1
            after_s = chance.uniform(0.0, duration)
            outcome = killed_and_resumed(folder / str(number), after_s, folder / "alone" / "out")
            if outcome is not None:
                outcomes.append(outcome)
                print(*outcome, sep="  ", flush=True)
    text = table(outcomes, duration)
    options.output.write_text(text, encoding="utf-8")
    print(text)
    if not all(o.same_model and o.same_log for o in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
