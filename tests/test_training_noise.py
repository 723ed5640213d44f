"""Noise on positions and points of several frames: what single structures are trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dyntrain.data.segments import Segments, collate, find_segments
from dyntrain.errors import UserError
from dyntrain.training import setup
from dyntrain.training.sampling import displaced
from made_runs import morse_trajectory
from training_runs import assert_same_training, config_of, run, weights, write_runs


def test_noise_moves_the_positions_alone() -> None:
    runs = [morse_trajectory(10)]
    batch = collate(find_segments(runs, 1), runs)
    moved = displaced(batch, 0.02, 0, range(10))
    away = moved.state.positions - batch.state.positions
    assert float(away.std()) == pytest.approx(0.02, rel=0.2) and abs(float(away.mean())) < 0.01
    assert torch.equal(moved.targets.forces, batch.targets.forces)
    assert torch.equal(moved.targets.energies, batch.targets.energies)
    assert torch.equal(moved.state.velocities, batch.state.velocities)


def test_noise_depends_on_the_seed_and_the_place_in_the_order_alone() -> None:
    """So that any division among processes, and any interruption, gives the same."""
    runs = [morse_trajectory(10)]
    segments = find_segments(runs, 1)
    whole = displaced(collate(segments, runs), 0.02, 1, range(5, 15)).state.positions
    odd = displaced(collate(segments[1::2], runs), 0.02, 1, range(6, 15, 2)).state.positions
    assert torch.equal(whole.reshape(10, -1)[1::2], odd.reshape(5, -1))
    other = displaced(collate(segments, runs), 0.02, 2, range(5, 15)).state.positions
    assert not torch.equal(whole, other)


def test_fixed_atoms_have_no_noise() -> None:
    runs = [morse_trajectory(10).replace(fixed_atoms=(1,))]
    batch = collate(find_segments(runs, 1), runs)
    away = displaced(batch, 0.02, 0, range(10)).state.positions - batch.state.positions
    moves = away.reshape(10, 4, 3).abs().sum((0, 2))
    assert moves[1] == 0 and (moves[[0, 2, 3]] > 0).all()


def test_windows_within_points_are_each_there_once() -> None:
    points = Segments(np.array([0, 0, 1]), np.array([2, 4, 0]), 4, stride=2)
    found = points.within(3)
    assert [(s.run, s.start, s.length, s.stride) for s in found] == [
        (0, 2, 3, 2), (0, 4, 3, 2), (0, 6, 3, 2), (1, 0, 3, 2), (1, 2, 3, 2)
    ]  # fmt: skip
    with pytest.raises(ValueError, match="hold none of 5"):
        points.within(5)


def test_a_point_shorter_than_its_segments_is_refused() -> None:
    config = config_of(["none"], Path("out"), point_length=2)
    with pytest.raises(UserError, match="points of 2 frames hold no segment of 3"):
        setup.training_segments(config, [morse_trajectory(20)], 1)


@pytest.mark.slow
def test_a_training_with_noise_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    data = write_runs(tmp_path / "data")
    run(data, tmp_path / "quiet")
    run(data, tmp_path / "whole", noise=0.05)
    for epochs in (1, 2, None):
        run(data, tmp_path / "parts", noise=0.05, max_epochs=epochs)
    assert_same_training(tmp_path / "whole", tmp_path / "parts")
    quiet, noisy = weights(tmp_path / "quiet"), weights(tmp_path / "whole")
    assert any(not torch.equal(tensor, noisy[name]) for name, tensor in quiet.items())
