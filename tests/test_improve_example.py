"""The comparison of examples/improve_ethanol.py in its short form: the same code, without meaning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "improve_ethanol.py"


@pytest.mark.slow
def test_the_short_comparison_has_all_arms(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--short", "--output", str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (by_arm,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert list(by_arm) == ["start", "old frames", "ordinary AIMD", "single frames", "improve"]
    for result in by_arm.values():
        assert result["deviation_eV_A"]["0"] > 0 and result["audit_eV_A"]["0"] > 0
        assert 0 <= result["n_failed"] <= result["n_runs"]
    improved = json.loads((tmp_path / "seed_0" / "improve" / "improve.json").read_text())
    # Up to four segments of eight frames: one whose forces turn out beyond reason ends at its first.
    assert 8 <= improved["rounds"][-1]["calls"] <= 4 * 8 and improved["finished"]
    assert done.stdout.splitlines()[-1].startswith("| improve |")
