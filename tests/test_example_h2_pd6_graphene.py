"""The paper's experiment in its short form: it trains past S = 1, judges and draws."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from dyntrain.models.files import load_model
from training_runs import log_rows

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "h2_pd6_graphene.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    specification = importlib.util.spec_from_file_location("h2_pd6_graphene", SCRIPT)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def given(**options: object) -> SimpleNamespace:
    chosen = {"data": Path("runs"), "output": Path("out"), "full": False, "short": False, "max_time": None}
    return SimpleNamespace(**{**chosen, **options})


def test_full_changes_nothing_of_the_published_recipe(example: ModuleType) -> None:
    assert example.changed_from_published(example.configuration(given(full=True))) == []


def test_the_cpu_form_lists_each_change(example: ModuleType) -> None:
    assert example.changed_from_published(example.configuration(given())) == [
        "model.settings.width: 64 instead of 128",
        "curriculum.patience: 4 instead of 15",
        "validation.n_starts: 32 instead of 256",
    ]


def test_distances_are_to_the_nearest_image(example: ModuleType) -> None:
    cell = np.array([[10.0, 0, 0], [-5, 8.66, 0], [0, 0, 20]])
    numbers = np.array([1, 1, 46, 46, 6])
    positions = np.array([[[0, 0, 0], [0, 0, 0.8], [9.0, 0, 0], [5, 4, 3], [0, 5, 0]]], float)
    run = SimpleNamespace(atomic_numbers=numbers, cell=cell, pbc=np.array([True, True, False]))
    between, to_palladium = example.h_distances(run, positions)
    np.testing.assert_allclose(between, [0.8])
    np.testing.assert_allclose(to_palladium, [1.0])


@pytest.mark.slow
@pytest.mark.shared
def test_the_short_form_runs(
    example: ModuleType, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object
) -> None:
    folder = tmp_path / "out"
    monkeypatch.setattr(
        sys, "argv", ["x", str(shared_data / "data" / "h2pd6gra"), "--short", "--output", str(folder)]
    )
    example.main()
    rows = log_rows(folder)
    assert {row["segment_length"] for row in rows} == {"1", "2"}
    for length in (1, 2):
        assert list(load_model(folder / f"model_S{length}.pt").elements or ()) == [1, 6, 46]
    for name in ("training.png", "forces.png", "distances.png"):
        assert (folder / name).stat().st_size > 10_000
    page = (folder / "page.html").read_text(encoding="utf-8")
    assert "S = 2" in page and "curriculum.patience: 1 instead of 15" in page
