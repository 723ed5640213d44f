"""Other readers understand the files that the tests write: their layout is the codes' own, not just ours."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from array_writers import WRITERS
from made_runs import morse_run

RUN = morse_run(6, dt_fs=0.5)


@pytest.mark.parametrize(
    ("name", "ase_format", "digits"),
    [("vasprun", "vasp-xml", 2e-7), ("outcar", "vasp-out", 1e-5), ("pwscf", "espresso-out", 2e-6)],
)
def test_ase_reads_the_same_numbers(tmp_path: Path, name: str, ase_format: str, digits: float) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ASE's own deprecations
        frames = read(WRITERS[name](tmp_path, RUN), ":", format=ase_format)
    assert len(frames) == 6
    for k, atoms in enumerate(frames):
        np.testing.assert_allclose(atoms.get_positions(), RUN.positions[k], rtol=0, atol=digits)
        np.testing.assert_allclose(atoms.get_forces(apply_constraint=False), RUN.forces[k], rtol=0, atol=2e-6)
        energy = atoms.get_potential_energy(force_consistent=True)
        assert energy == pytest.approx(RUN.energies[k], abs=1e-6)


@pytest.mark.parametrize(
    ("name", "file", "dpdata_format"),
    [("cpx", "made", "qe/cp/traj"), ("deepmd", "system", "deepmd/npy")],
)
def test_dpdata_reads_the_same_numbers(tmp_path: Path, name: str, file: str, dpdata_format: str) -> None:
    dpdata = pytest.importorskip("dpdata")
    WRITERS[name](tmp_path, RUN)
    system = dpdata.LabeledSystem(str(tmp_path / file), fmt=dpdata_format)
    np.testing.assert_allclose(system["coords"], RUN.positions, rtol=1e-8)
    np.testing.assert_allclose(system["forces"], RUN.forces, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(system["energies"], RUN.energies, rtol=1e-7)
    np.testing.assert_allclose(system["cells"][0], RUN.cell, rtol=1e-7)
