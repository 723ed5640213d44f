"""The comparisons of examples/improve_*.py: short forms (the same code, no meaning) and their tables."""

from __future__ import annotations

import importlib
import json
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from dyntrain.data.readers import read_trajectories
from dyntrain.reference.systems import suited_settings

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
ALL_ARMS = [
    "start",
    "old frames",
    "ordinary AIMD",
    "improve",
    "segments",
    "mixed",
    "structures",
    "committee",
    "dynamic",
]


@pytest.fixture(autouse=True)
def examples_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def short_form(name: str, output: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    """The figures of each arm that a short form leaves."""
    monkeypatch.setattr(sys, "argv", [name, "--short", "--output", str(output), *options])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    (by_arm,) = json.loads((output / "results.json").read_text()).values()
    for result in by_arm.values():
        assert result["deviation_eV_A"]["0"] > 0 and result["audit_eV_A"]["0"] > 0
        assert 0 <= result["n_failed"] <= result["n_runs"]
    return by_arm


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "arms", "most_calls"),
    [
        ("improve_ethanol.py", ALL_ARMS, 4 * 8),
        ("improve_water.py", ["start", "improve"], 2 * 3),
        ("improve_h2pd6gra.py", ["start", "structures", "improve"], 2 * 3),
    ],
)
def test_the_short_comparison_has_all_arms(
    name: str,
    arms: list[str],
    most_calls: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert list(short_form(name, tmp_path, monkeypatch, "--arms", *arms)) == arms
    improved = json.loads((tmp_path / "seed_0" / "improve" / "improve.json").read_text())
    # A segment whose forces turn out beyond reason ends at its first frame.
    assert 2 <= improved["rounds"][-1]["calls"] <= most_calls and improved["finished"]
    assert "| improve |" in capsys.readouterr().out


@pytest.mark.slow
def test_a_small_model_learns_from_a_big_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = list(short_form("improve_distil.py", tmp_path, monkeypatch))
    assert arms == ["big", "start", "AIMD frames", "the big model's runs", "coarse segments", "improve"]
    seed = tmp_path / "seed_0"
    record = json.loads((seed / "improve" / "improve.json").read_text())
    assert record["reference"].endswith("big/model.pt") and record["rounds"][-1]["calls"] == 128
    (told,) = json.loads((seed / "improve" / "same_method.json").read_text()).values()
    assert told < 1e-5  # the big model labelled its own runs
    assert "| molecules | big: ms a step |" in capsys.readouterr().out


# --- the frames ---------------------------------------------------------------------------------------------


def test_the_slab_has_the_settings_of_its_data() -> None:
    slab = importlib.import_module("improve_h2pd6gra")
    suited = suited_settings(slab.SYSTEM.name)
    assert (slab.SYSTEM.method, slab.SYSTEM.options) == (suited["method"], suited["calculator_options"])
    assert slab.SYSTEM.options == {"electronic_temperature": 1000.0, "accuracy": 0.05}


@pytest.mark.shared
def test_recorded_runs_are_shared_out(shared_data: Path, tmp_path: Path) -> None:
    slab = importlib.import_module("improve_h2pd6gra")
    recorded = shared_data / "data" / "h2pd6gra"
    comparison = comparison_module().Comparison(tmp_path, 0, slab.SYSTEM, slab.SIZES, recorded)
    train, ordinary = (read_trajectories(files) for files in (comparison.train, comparison.ordinary))
    assert [run.n_frames for run in train] == [32] * 8 and [run.n_frames for run in ordinary] == [8] * 16
    assert [path.stem[-1] for path in (*comparison.validation, *comparison.test)] == ["4", "5"]
    first, last = (read_trajectories([recorded / f"h2pd6gra_00{n}.traj"])[0] for n in (0, 3))
    assert np.array_equal(train[0].positions, first.positions[:32])
    assert any(np.array_equal(run.positions, last.positions[-8:]) for run in ordinary)


def test_too_few_recorded_runs_are_refused(tmp_path: Path) -> None:
    from dyntrain.errors import UserError

    comparison, slab = comparison_module(), importlib.import_module("improve_h2pd6gra")
    with pytest.raises(UserError, match="holds 0 runs"):
        comparison.Comparison(tmp_path / "out", 0, slab.SYSTEM, slab.SIZES, tmp_path)


def comparison_module() -> ModuleType:
    return importlib.import_module("improve_comparison")


# --- the tables ---------------------------------------------------------------------------------------------


def figures(error: float | None, failure_fs: list[float], length_fs: float = 1000.0) -> dict[str, Any]:
    return {
        "deviation_eV_A": {"0": 0.05, "50": error},
        "audit_eV_A": {"0": 0.05},
        "failure_fs": failure_fs,
        "failed": [time_fs < length_fs for time_fs in failure_fs],
        "run_length_fs": length_fs,
    }


def rows_of(results: Any) -> dict[str, list[str]]:
    """First cell → the others; a second row of the same name (the shares) as `name*`."""
    found: dict[str, list[str]] = {}
    for line in importlib.import_module("improve_tables").tables(results).splitlines():
        name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
        found[f"{name}*" if name in found else name] = cells
    return found


def test_seeds_give_a_mean_with_its_standard_error() -> None:
    whole = [1000.0, 1000.0]
    results = {
        "0": {"ordinary AIMD": figures(0.2, whole), "improve": figures(0.1, whole)},
        "1": {"ordinary AIMD": figures(0.4, whole), "improve": figures(0.3, whole)},
    }
    rows = rows_of(results)
    assert rows["ordinary AIMD"][:2] == ["0.050 ± 0.000", "0.300 ± 0.100"]
    assert rows["improve*"][1] == "0.62 ± 0.12"  # of the ratios of each seed, 0.5 and 0.75
    assert rows["arm"] == ["beside: 0 fs", "50", "own: 0 fs", "failed", "median ps"]


def test_one_seed_has_no_error_and_a_missing_value_no_mean() -> None:
    results = {"0": {"start": figures(0.2, [1000.0])}, "1": {"start": figures(None, [1000.0])}}
    assert rows_of({"0": results["0"]})["start"][1] == "0.200"
    assert rows_of(results)["start"][1] == "–"


def test_failures_are_counted_within_the_time_that_all_seeds_ran() -> None:
    results = {
        "0": {"start": figures(0.2, [100.0, 300.0])},
        "1": {"start": figures(0.2, [500.0, 2000.0], length_fs=3000.0)},
    }
    assert rows_of(results)["start"][-2:] == ["3 of 4 in 1 ps", "0.30"]
    assert rows_of({"1": results["1"]})["start"][-2:] == ["2 of 2 in 3 ps", "0.50"]
