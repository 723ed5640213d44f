"""The comparison of benchmarks/levers.py in its short form: the same code, without meaning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
