"""Whole small trainings: every option does what it says, bursts and NaN are counted and reach no weight."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from torch import Tensor

from dyntrain.data.readers import read_trajectories
from dyntrain.errors import UserError
from dyntrain.models.analytic import Morse
from dyntrain.models.egnn import EGNN
from dyntrain.models.files import MODELS, load_model, read_record
from dyntrain.neighbors import NeighborList, neighbor_list
from dyntrain.potential import Conservative
from dyntrain.state import State
from dyntrain.training import budget, loop, setup, train
from dyntrain.training.logs import read_log
from dyntrain.training.step import StepResult
from dyntrain.training.validation import _LARGEST_BATCH, USELESS
from made_runs import as_atoms, morse_run
from training_runs import Recorder, assert_same_training, config_of, log_rows, run, weights, write_runs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    return write_runs(tmp_path_factory.mktemp("runs"))


def one_length(length: int, epochs: int = 1) -> dict[str, Any]:
    return {"stages": [{"segment_length": length, "share": 1}], "epochs": epochs}


# --- learning -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_it_learns_and_keeps_the_best_model(data: dict[str, list[str]], tmp_path: Path) -> None:
    changes = {
        "curriculum": {**one_length(1, epochs=6), "lr": 1e-2},
        "budget": {"evaluations": 1200, "costs": {"rollout": 1}},
        "ema": 0.9,
    }
    result = run(data, tmp_path, **changes)
    rows = read_log(tmp_path / "log.csv")
    losses = [row["validation_loss"] or math.inf for row in rows]
    assert losses[-1] < 0.7 * losses[0]
    header = read_record(result.model)[0]
    assert header["provenance"]["validation_loss"] == min(losses)
    assert header["provenance"]["config"]["batch_size"] == 4
    # What the log says of the best model is what the model file gives.
    potential = load_model(result.model)
    (held_out,) = read_trajectories(data["validation"])
    segments = setup.validation_segments(config_of(data, tmp_path, **changes), [held_out])
    errors = []
    for start in segments.starts:
        state = held_out.state(int(start))
        with torch.no_grad():
            forces = potential(state, neighbor_list(state, potential.cutoff)).forces
        errors.append(np.abs(forces.numpy() - held_out.forces[int(start)]).mean())
    best = rows[losses.index(min(losses))]
    assert np.mean(errors) == pytest.approx(best["validation_force_mae_first"], rel=1e-6)


def test_full_and_adjoint_end_with_the_same_weights(data: dict[str, list[str]], tmp_path: Path) -> None:
    """In float64 they differ by rounding; in float32 the other backprops train as well."""
    changes: dict[str, Any] = {"precision": "float64", "curriculum": one_length(4)}
    for backprop in ("full", "adjoint", "stop_gradient"):
        run(data, tmp_path / backprop, backprop=backprop, **changes)
    full, adjoint, cut = (weights(tmp_path / name) for name in ("full", "adjoint", "stop_gradient"))
    for name, tensor in full.items():
        size = float(tensor.abs().max())
        assert float((adjoint[name] - tensor).abs().max()) <= 1e-11 * size, name
    assert any(float((cut[name] - t).abs().max()) > 1e-6 * float(t.abs().max()) for name, t in full.items())


@pytest.mark.slow
@pytest.mark.parametrize("backprop", ["stop_gradient", {"truncated": 2}, "full", "adjoint"], ids=str)
def test_every_backprop_learns(backprop: Any, data: dict[str, list[str]], tmp_path: Path) -> None:
    observer = Recorder()
    run(
        data,
        tmp_path,
        observer,
        backprop=backprop,
        curriculum={**one_length(4, epochs=4), "lr": 1e-2},
        budget={"evaluations": 1600, "costs": {"rollout": 1}},
        ema=0.9,
    )
    assert set(observer.lengths) == {4}
    losses = [row["validation_loss"] for row in observer.rows]
    assert losses[-1] < 0.8 * losses[0]


def test_every_term_and_kind_of_loss_trains(data: dict[str, list[str]], tmp_path: Path) -> None:
    terms = {
        "forces": {"kind": "huber", "per_element": True},
        "energy": {"kind": "l2", "weight": 0.1, "only_single_frames": True},
        "positions": {"weight": 10.0},
        "velocities": {"weight": 5.0, "kind": "l2"},
    }
    run(data, tmp_path, loss=terms)
    rows = read_log(tmp_path / "log.csv")
    assert [row["segment_length"] for row in rows] == [1, 3, 3]
    assert rows[0]["train_energy"] is not None and rows[0]["train_positions"] == 0.0
    # Epoch 2 saw both lengths; in the last one there are roll-outs alone.
    assert rows[2]["train_energy"] is None
    assert (rows[2]["train_positions"] or 0) > 0 and (rows[2]["train_velocities"] or 0) > 0
    parts = ("forces", "positions", "velocities")
    assert rows[2]["train_loss"] == pytest.approx(sum(rows[2][f"train_{part}"] or 0 for part in parts))


def test_the_same_seed_gives_the_same_training_and_another_does_not(
    data: dict[str, list[str]], tmp_path: Path
) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.manual_seed(len(name) + seed)  # what was drawn before plays no part
        run(data, tmp_path / name, seed=seed)
    assert_same_training(tmp_path / "a", tmp_path / "b")
    assert log_rows(tmp_path / "a") != log_rows(tmp_path / "c")


# --- curriculum ---------------------------------------------------------------------------------------------


def test_the_plateau_curriculum_grows_the_segments(data: dict[str, list[str]], tmp_path: Path) -> None:
    """A rate so small that nothing improves: S grows after each wait; converged at the last S it ends."""
    curriculum = {
        "max_length": 3,
        "patience": 1,
        "lr": 1e-9,
        "restart_lr": 1e-10,
        "factor": 0.1,
        "floor": 1e-10,
    }
    observer = Recorder()
    result = run(
        data,
        tmp_path,
        observer,
        curriculum=curriculum,
        training_points=8,
        budget=None,
        ema=0.0,
        backprop="stop_gradient",
        loss={"energy": None},
    )
    assert result.finished == "converged: no better score for the patience given"
    lengths = [row["segment_length"] for row in observer.rows]
    assert sorted(set(lengths)) == [1, 2, 3] and lengths == sorted(lengths)
    # One pass over the 8 points an epoch, in batches of 4.
    assert len(observer.lengths) == 2 * len(observer.rows)
    assert {row["lr"] for row in observer.rows if row["segment_length"] > 1} == {1e-10}
    assert observer.shares == [None] * len(observer.shares)


def test_max_epochs_ends_a_plateau_training_and_tells_its_share(
    data: dict[str, list[str]], tmp_path: Path
) -> None:
    observer = Recorder()
    result = run(
        data, tmp_path, observer, curriculum={"max_length": 2}, training_points=8, max_epochs=2, budget=None
    )
    assert result.finished == "max_epochs (2) reached"
    assert len(observer.rows) == 2
    # Shares before the position of the step is compared with the whole pass: half an epoch a step.
    assert observer.shares == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_the_schedule_spends_its_budget_in_shares(data: dict[str, list[str]], tmp_path: Path) -> None:
    observer = Recorder()
    stages = [{"segment_length": s, "share": w} for s, w in ((1, 2), (2, 1), (4, 1))]
    budget_values = {"evaluations": 400, "costs": {"one_step": 1.0, "rollout": 1.25}}
    result = run(data, tmp_path, observer, curriculum={"stages": stages, "epochs": 4}, budget=budget_values)
    spent = {s: 4 * s * (1.25 if s > 1 else 1.0) * observer.lengths.count(s) for s in (1, 2, 4)}
    assert spent[1] == pytest.approx(200, abs=4) and spent[2] == pytest.approx(100, abs=10)
    assert spent[4] == pytest.approx(100, abs=30)
    # Passes end with smaller batches, which cost less.
    assert 400 <= result.progress.evaluations <= sum(spent.values())
    assert [row["epoch"] for row in observer.rows] == [1, 2, 3, 4]
    assert [row["segment_length"] for row in observer.rows] == [1, 1, 2, 4]


def test_a_budget_smaller_than_a_step_is_one_step_and_one_validation(
    data: dict[str, list[str]], tmp_path: Path
) -> None:
    run(data, tmp_path, budget={"evaluations": 1, "costs": {"rollout": 1}})
    assert [row["step"] for row in log_rows(tmp_path)] == ["1"]


def test_early_stopping(data: dict[str, list[str]], tmp_path: Path) -> None:
    curriculum = {**one_length(1, epochs=10), "lr": 1e-12, "floor": 1e-13, "stop_after": 2}
    result = run(data, tmp_path, curriculum=curriculum, ema=0.0, loss={"energy": None})
    assert result.finished == "converged: no better score for the patience given"
    assert result.progress.epoch < 10


def test_weights_are_averaged_unless_ema_is_zero(data: dict[str, list[str]], tmp_path: Path) -> None:
    for name, ema in (("plain", 0.0), ("averaged", 0.5)):
        run(data, tmp_path / name, ema=ema)
    plain, averaged = log_rows(tmp_path / "plain"), log_rows(tmp_path / "averaged")
    # The average is validated, it does not steer.
    assert [r["train_loss"] for r in plain] == [r["train_loss"] for r in averaged]
    assert [r["validation_loss"] for r in plain] != [r["validation_loss"] for r in averaged]


# --- where it starts ----------------------------------------------------------------------------------------


def test_it_starts_from_a_given_model(data: dict[str, list[str]], tmp_path: Path) -> None:
    first = run(data, tmp_path / "first")
    still = {"curriculum": {**one_length(1), "lr": 1e-12, "floor": 1e-13}, "ema": 0.0}
    run(data, tmp_path / "second", start_from=str(first.model), **still)
    for name, tensor in weights(tmp_path / "first").items():
        torch.testing.assert_close(weights(tmp_path / "second")[name], tensor, rtol=1e-6, atol=1e-8)


def test_a_model_that_lacks_an_element_cannot_be_started_from(
    data: dict[str, list[str]], tmp_path: Path
) -> None:
    hydrocarbon = {"train": [data["train"][1]], "validation": []}
    first = run(hydrocarbon, tmp_path / "first", max_epochs=1)
    with pytest.raises(UserError, match="does not know O, which the training runs hold"):
        run(data, tmp_path / "second", start_from=str(first.model))
    with pytest.raises(UserError, match="there is no model file"):
        run(data, tmp_path / "third", start_from=str(tmp_path / "none.pt"))


def test_the_network_begins_with_the_statistics_of_the_data(
    data: dict[str, list[str]], tmp_path: Path
) -> None:
    runs = read_trajectories(data["train"])
    shifts = setup.energy_shifts(runs, [1, 6, 8])
    for trajectory in runs:
        columns = [[1, 6, 8].index(z) for z in trajectory.atomic_numbers]
        # Three compositions, three elements: each mean energy is met exactly.
        assert float(shifts[columns].sum()) == pytest.approx(float(trajectory.energies.mean()), rel=1e-9)
    components = np.concatenate([trajectory.forces.ravel() for trajectory in runs])
    assert setup.rms_force(runs) == pytest.approx(np.sqrt(np.mean(components**2)))
    # All atoms of a molecule see each other within 4 Å.
    mean = sum(n * (n - 1) for n in (4, 2, 3)) / sum((4, 2, 3))
    assert setup.mean_neighbors(runs, 4.0) == pytest.approx(mean)


# --- what cannot work, and what comes out other than asked for ----------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"loss": {"forces": None, "energy": None}}, "give forces or energy a weight above 0"),
        ({"loss": {"forces": {"weight": 0}, "energy": None, "positions": {}}}, "give forces or energy"),
        (
            {"loss": {"forces": None, "energy": {"only_single_frames": True}}},
            "nor does a term that counts only at S = 1",
        ),
        ({"loss": {"positions": {}}, "backprop": "stop_gradient"}, "loss.positions: without a gradient from"),
        (
            {"loss": {"positions": {}}, "backprop": {"truncated": 1}},
            "loss.positions: without a gradient from",
        ),
        ({"model": {"settings": {"widht": 8}}}, "has no setting `widht`: did you mean `width`?"),
        ({"model": {"settings": {"cutoff": 8}}}, "the cutoff belongs under model.cutoff"),
        ({"curriculum": one_length(40)}, "No training run holds a segment of 40 frames"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    changes: dict[str, Any], sentence: str, data: dict[str, list[str]], tmp_path: Path
) -> None:
    with pytest.raises(UserError) as error:
        run(data, tmp_path, **changes)
    assert sentence in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_path_is_no_config() -> None:
    with pytest.raises(UserError, match=r"a Config is expected, got str; dyntrain\.config\.read_config"):
        train("config.yaml")  # type: ignore[arg-type]


def test_what_comes_out_other_than_asked_for_is_said(data: dict[str, list[str]], tmp_path: Path) -> None:
    observer = Recorder()
    asked = {"validation": {"n_starts": 6, "n_steps": 50}, "training_points": 500}
    run(data, tmp_path / "a", observer, max_epochs=1, **asked)
    assert observer.notes == [
        "Validation roll-outs take 29 steps instead of 50: no validation run is longer.",
        "Validation starts from 1 instead of 6 frames: the runs hold no more.",
        "Training uses 84 points instead of 500: the runs hold no more segments of 3 frames.",
    ]
    observer = Recorder()
    run(data, tmp_path / "b", observer, max_epochs=1)
    assert observer.notes == []


def test_a_batch_of_validation_starts_is_small_where_structures_are_large(
    data: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill in a validation costs a batch; the numbers do not depend on how it is divided."""
    run(data, tmp_path / "a", validation={"n_starts": 6, "n_steps": 5, "batch_size": 6}, max_epochs=1)
    monkeypatch.setitem(_LARGEST_BATCH, "cpu", 60)
    seen = []
    monkeypatch.setattr(Recorder, "validating", lambda self, share: seen.append(share))
    run(
        data,
        tmp_path / "b",
        Recorder(),
        validation={"n_starts": 6, "n_steps": 5, "batch_size": 6},
        max_epochs=1,
    )
    assert seen == pytest.approx([1 / 3, 2 / 3, 1.0])
    (one,), (other,) = read_log(tmp_path / "a" / "log.csv"), read_log(tmp_path / "b" / "log.csv")
    assert one["validation_loss"] == pytest.approx(other["validation_loss"], rel=1e-5)


# --- bursts -------------------------------------------------------------------------------------------------


class Exploding(EGNN):
    """NaN for systems of three atoms, whatever their weights."""

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        broken = state.n_atoms_per_system() == 3
        return super().forward(state, neighbors) * torch.where(broken, torch.nan, 1.0)


class AllExploding(EGNN):
    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        return super().forward(state, neighbors) * torch.nan


def test_bursts_are_counted_and_the_weights_stay_finite(
    data: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "egnn", Exploding)
    run(data, tmp_path, validation={"n_starts": 4, "n_steps": 3})
    rows = read_log(tmp_path / "log.csv")
    # A third of all segments is of the exploding kind.
    assert all(0 < (row["burst_training"] or 0) < 40 for row in rows)
    assert sum(row["burst_training"] or 0 for row in rows) > 10
    assert [row["burst_validation"] for row in rows] == [0, 0, 0]
    assert all(row["train_loss"] is not None and math.isfinite(row["train_loss"]) for row in rows)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(tmp_path).values())


class Dead(EGNN):
    """As where a learning rate too high has driven every SiLU to zero."""

    def forward(self, state: State, neighbors: NeighborList) -> Tensor:
        return 1e-6 * super().forward(state, neighbors)


def test_a_network_that_has_died_is_told_of(
    data: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    observer = Recorder()
    run(data, tmp_path / "alive", observer)
    assert observer.notes == []
    monkeypatch.setitem(MODELS, "egnn", Dead)
    run(data, tmp_path / "dead", observer)
    assert observer.notes == [USELESS]


def test_where_everything_bursts_nothing_is_learnt_and_all_is_counted(
    data: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MODELS, "egnn", AllExploding)
    result = run(data, tmp_path, validation={"n_starts": 4, "n_steps": 3}, ema=0.0)
    rows = read_log(tmp_path / "log.csv")
    assert sum(row["steps_skipped"] or 0 for row in rows) == result.progress.step == 20
    assert [row["burst_validation"] for row in rows] == [4, 4, 4]
    for row in rows:
        assert row["train_loss"] is row["validation_loss"] is row["gradient_norm"] is None
    begun = setup.make_potential(config_of(data, tmp_path), read_trajectories(data["train"]))
    for name, tensor in begun.energy_model.state_dict().items():
        assert torch.equal(weights(tmp_path)[name], tensor)


def test_a_gradient_that_is_not_finite_skips_the_update_and_is_counted(
    data: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = loop.loss_and_gradient
    calls = []

    def spoilt(potential: Any, *arguments: Any) -> StepResult:
        result = original(potential, *arguments)
        calls.append(result)
        if len(calls) == 5:
            next(p.grad for p in potential.parameters() if p.grad is not None).fill_(math.inf)
        return result

    monkeypatch.setattr(loop, "loss_and_gradient", spoilt)
    run(data, tmp_path)
    assert [row["steps_skipped"] for row in log_rows(tmp_path)] == ["1", "0", "0"]
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights(tmp_path).values())


# --- budget -------------------------------------------------------------------------------------------------


def test_max_time_buys_what_the_clock_says(
    data: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a clock that each evaluation at S = 1 moves by 10 ms, one in a roll-out by 15 ms."""
    now = [0.0]

    def work(potential: Any, batch: Any, *_: Any) -> None:
        now[0] += batch.length * batch.state.n_systems * (0.010 if batch.length == 1 else 0.015)

    monkeypatch.setattr(budget, "loss_and_gradient", work)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    config = config_of(data, tmp_path, budget=None, max_time="100s", curriculum=one_length(8))
    runs = read_trajectories(data["train"])
    potential = setup.make_potential(config, runs)
    arguments = (config, potential, setup.make_loss(config), setup.make_backprop(config), runs, 900)
    found = budget.measure_budget(*arguments, torch.device("cpu"))
    assert (found.costs.one_step, found.costs.rollout) == (1.0, 1.5)
    # Six probes of four segments at S = 1 and S = 4: 1.68 s; validations: 900 × 10/3 ms = 3 s.
    assert found.evaluations == pytest.approx((0.85 * (100 - 1.68) - 3) / 0.010, rel=1e-3)
    later = budget.measure_budget(*arguments, torch.device("cpu"), spent_s=20.0)
    assert later.evaluations == pytest.approx((0.85 * (80 - 1.68) - 3) / 0.010, rel=1e-3)
    halves = budget.measure_budget(*arguments, torch.device("cpu"), n_processes=2)
    assert halves.evaluations == pytest.approx((0.85 * (100 - 0.84) - 1.5) / 0.005, rel=1e-3)
    assert found.validations is None
    # Twenty validations would take 60 s: six are what a fifth of the time buys.
    often = (config_of(data, tmp_path, max_time="100s", curriculum=one_length(8, 20)), *arguments[1:])
    fewer = budget.measure_budget(*often, torch.device("cpu"))
    assert fewer.validations == 6
    assert fewer.evaluations == pytest.approx((0.85 * (100 - 1.68) - 18) / 0.010, rel=1e-3)


def test_measuring_ends_soon_on_a_slow_machine(
    data: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, calls = [0.0], []

    def work(potential: Any, batch: Any, *_: Any) -> None:
        now[0] += 8.0
        calls.append(batch.length)

    monkeypatch.setattr(budget, "loss_and_gradient", work)
    monkeypatch.setattr(budget.time, "perf_counter", lambda: now[0])
    config = config_of(data, tmp_path, budget=None, max_time="1h", curriculum=one_length(8))
    runs = read_trajectories(data["train"])
    budget.measure_budget(
        config,
        setup.make_potential(config, runs),
        setup.make_loss(config),
        setup.make_backprop(config),
        runs,
        0,
        torch.device("cpu"),
    )
    assert calls == [1, 4, 1, 4]


# --- real data ----------------------------------------------------------------------------------------------


def test_the_paper_recipe_runs_on_the_slab(tmp_path: Path) -> None:
    """One epoch of the published recipe on a short real run, with fewer points and starts."""
    observer = Recorder()
    result = run(
        [str(Path(__file__).parent / "data" / "h2pd6gra_80.traj")],
        tmp_path,
        observer,
        preset="paper",
        model={"settings": {"width": 16, "n_frequencies": 32}},
        curriculum={"kind": "plateau"},
        training_points=8,
        max_epochs=1,
        validation={"n_starts": 2, "n_steps": 4},
        budget=None,
    )
    assert result.finished == "max_epochs (1) reached"
    assert read_record(result.model)[0]["network"] == "paper_egnn"
    assert [row["segment_length"] for row in observer.rows] == [1]
    assert observer.rows[0]["lr"] == 1e-3


@pytest.mark.shared
@pytest.mark.slow
def test_training_on_the_reference_runs(shared_data: Path, tmp_path: Path) -> None:
    files = sorted((shared_data / "data" / "h2pd6gra").rglob("*.traj"))[:2]
    assert files
    config = config_of(
        [str(f) for f in files],
        tmp_path,
        model={},
        batch_size=2,
        budget={"evaluations": 40, "costs": {"rollout": 1.2}},
        validation={"n_starts": 2, "n_steps": 5},
    )
    result = train(config)
    assert result.finished == "the budget is spent"
    assert [row["burst_validation"] for row in log_rows(tmp_path)] == ["0"] * 3


def test_a_stress_is_trained_validated_and_asked_for_in_vain(tmp_path: Path) -> None:
    truth = Conservative(Morse(1.0, 1.5, 1.3, cutoff=9.0))
    frames = as_atoms(morse_run(n_frames=30))
    plain, full = tmp_path / "plain.traj", tmp_path / "full.traj"
    ase.io.write(plain, frames)
    for atoms in frames:
        state = State.from_ase(atoms)
        atoms.calc.results["stress"] = truth.stress(state, neighbor_list(state, 9.0))[0].detach().numpy()
    ase.io.write(full, frames)
    loss = {"stress": {"weight": 100.0}}
    run([str(full)], tmp_path / "out", loss=loss)
    rows = log_rows(tmp_path / "out")
    assert all(float(row["validation_stress_mae"]) > 0 for row in rows)
    assert float(rows[0]["train_stress"]) > 0
    with pytest.raises(UserError, match=r"loss.stress: .*plain.traj holds no stress; leave the term out, or"):
        run([str(plain)], tmp_path / "other", loss=loss)
