"""The comparison of benchmarks/levers.py in its short form: the same code, without meaning."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dyntrain.data.segments import Targets
from dyntrain.loss import counts
from dyntrain.potential import Prediction
from dyntrain.rollout import Frame
from made_runs import morse_trajectory

BENCHMARK = Path(__file__).resolve().parents[1] / "benchmarks" / "levers.py"
ARMS = ["one-step", "S = 8 coarse, velocities, 1 a step"]


def _run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_short_comparison_pairs_arms_by_start(tmp_path: Path) -> None:
    asked = ["--short", "--output", str(tmp_path), "--arms", *ARMS]
    printed = _run(*asked)
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["start", *ARMS]
    for by_seed in results.values():
        (measured,) = by_seed.values()
        assert [len(errors) for errors in measured["deviation_eV_A"].values()] == [4, 4, 4]
        assert measured["audit_eV_A"]["0"][0] > 0
    # The same table again, from what is stored.
    assert _run(*asked, "--figure", str(tmp_path / "ratio.svg")) == printed
    assert "force error" in (tmp_path / "ratio.svg").read_text()
    one, control = (results[arm]["0"]["deviation_eV_A"]["25"] for arm in reversed(ARMS))
    product = 1.0
    for a, b in zip(one, control, strict=True):
        product *= (a / b) ** 0.25
    assert f"{product:.3f}" in printed.splitlines()[-1]


# --- weights by mode ---------------------------------------------------------------


@pytest.fixture(autouse=True)
def benchmarks_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARK.parent))


def mode_loss(power: float) -> Any:
    mode_weights = importlib.import_module("mode_weights")
    return mode_weights.ByMode([morse_trajectory(80), morse_trajectory(80, seed=1)], power)


def error_of(loss: Any, positions: torch.Tensor, error: torch.Tensor) -> float:
    """The loss of forces that are off by `error` [n_atoms, 3] at a structure."""
    run = morse_trajectory(2)
    start = run.state(0).replace(positions=positions)
    n_atoms = len(positions)
    none = torch.zeros(1, n_atoms, 3, dtype=torch.float64)
    targets = Targets(positions[None], none, none, torch.zeros(1, 1, dtype=torch.float64))
    prediction = Prediction(torch.zeros(1, dtype=torch.float64), error)
    frame = Frame(0, start, prediction, torch.tensor([0]))
    return float(loss.at(frame, targets, start, counts(start), 1)["forces"])


def test_a_turned_molecule_has_the_same_loss() -> None:
    loss, run = mode_loss(1.0), morse_trajectory(80)
    positions, error = torch.from_numpy(run.positions[7]), torch.from_numpy(run.forces[3])
    turn, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.manual_seed(0)))
    turn *= torch.linalg.det(turn)
    turned = error_of(loss, positions @ turn.T + 2.0, error @ turn.T)
    assert turned == pytest.approx(error_of(loss, positions, error), rel=1e-9)


def test_slow_modes_weigh_more() -> None:
    loss = mode_loss(1.0)
    root = loss.masses.sqrt()[:, None]
    along = [root * loss.modes[:, k].reshape(-1, 3) for k in (6, -1)]
    slow, fast = (error_of(loss, loss.reference, mode) for mode in along)
    assert slow > 2 * fast
    alike = mode_loss(0.0)
    slow, fast = (error_of(alike, alike.reference, mode) for mode in along)
    assert slow == pytest.approx(fast, rel=1e-6)
