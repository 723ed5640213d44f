"""Writers of array formats (npz, DeePMD, H5MD) and of what ASE writes, and the table of all writers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from ase.units import kcal, kJ, mol

from dyntrain.data.raw import RawRun
from dyntrain.units import FS, KBAR
from format_writers import (
    pressure,
    symbols,
    wrapped_fractions,
    write_aims,
    write_cp2k,
    write_cpx,
    write_ipi,
    write_ml_ab,
    write_outcar,
    write_pwscf,
    write_vasprun,
)


def write_md17(folder: Path, run: RawRun, **changes: Any) -> Path:
    """An npz of sGDML in kcal/mol; other fields by name (None leaves one out)."""
    unit = kcal / mol
    fields = {
        "R": run.positions,
        "F": run.forces / unit,
        "E": run.energies[:, None] / unit,
        "z": run.atomic_numbers.astype(np.uint8),
        "r_unit": "Ang",
        "e_unit": "kcal/mol",
        "name": "made",
        **changes,
    }
    file = folder / "md17.npz"
    np.savez(file, **{name: value for name, value in fields.items() if value is not None})
    return file


def write_deepmd(folder: Path, run: RawRun, *, velocities: bool = False, n_sets: int = 2) -> Path:
    """A DeePMD system of some sets of consecutive frames."""
    system = folder / "system"
    system.mkdir()
    labels = symbols(run)
    kinds = list(dict.fromkeys(labels))
    (system / "type.raw").write_text("".join(f"{kinds.index(s)}\n" for s in labels))
    (system / "type_map.raw").write_text("\n".join(kinds) + "\n")
    n_frames = len(run.positions)
    for number, frames in enumerate(np.array_split(np.arange(n_frames), n_sets)):
        part = system / f"set.{number:03d}"
        part.mkdir()
        np.save(part / "coord.npy", run.positions[frames].reshape(len(frames), -1))
        np.save(part / "force.npy", run.forces[frames].reshape(len(frames), -1))
        np.save(part / "energy.npy", run.energies[frames])
        np.save(part / "box.npy", np.tile(run.cell.reshape(1, 9), (len(frames), 1)))
        if velocities:
            assert run.velocities is not None
            np.save(part / "velocity.npy", run.velocities[frames].reshape(len(frames), -1))
    return system


def write_vaspout(folder: Path, run: RawRun, *, velocities: bool = False, **incar: Any) -> Path:
    """vaspout.h5 of VASP 6: fractional positions in full precision, one type an atom; tags by name."""
    labels, n_frames = symbols(run), len(run.positions)
    file = folder / "vaspout.h5"
    energies = np.stack([run.energies, np.full(n_frames, 0.3), np.full(n_frames, 500.0)], axis=1)
    tags = np.array(
        ["ion-electron   TOTEN    ", "kinetic energy EKIN   ", "temperature    TEIN    "], dtype="S"
    )
    with h5py.File(file, "w") as h5:
        for tag, value in {"IBRION": 0, "POTIM": run.dt_fs, **incar}.items():
            h5[f"input/incar/{tag}"] = value
        potcar = "".join(f"   POMASS ={m:9.3f}; ZVAL   =    4.000    mass and valenz\n" for m in run.masses)
        h5["input/potcar/content"] = potcar
        h5["results/positions/ion_types"] = np.array([f"{s:2s}" for s in labels], dtype="S")
        h5["results/positions/number_ion_types"] = np.ones(len(labels), dtype=np.int32)
        h5["results/positions/scale"] = 1.0
        steps = h5.create_group("intermediate/ion_dynamics")
        steps["position_ions"] = wrapped_fractions(run)
        steps["lattice_vectors"] = np.broadcast_to(run.cell, (n_frames, 3, 3))
        steps["forces"] = run.forces
        steps["energies"], steps["energies_tags"] = energies, tags
        if velocities:
            assert run.velocities is not None
            steps["ion_velocities"] = run.velocities * FS
        if run.stress is not None:
            steps["stress"] = np.stack([pressure(run, k) / KBAR for k in range(n_frames)])
    return file


def write_h5md(folder: Path, run: RawRun) -> Path:
    """H5MD in the units of biomolecular codes: nm, ps, kJ/mol."""
    assert run.dt_fs is not None and run.velocities is not None
    file = folder / "other.h5"
    times = np.arange(len(run.positions)) * run.dt_fs / 1000
    per_mole = kJ / mol
    with h5py.File(file, "w") as h5:
        h5.create_group("h5md").attrs["version"] = [1, 1]
        atoms = h5.create_group("particles/all")
        for name, values, unit in (
            ("position", run.positions / 10, "nm"),
            ("velocity", run.velocities * FS * 100, "nm ps-1"),
            ("force", run.forces / per_mole * 10, "kJ mol-1 nm-1"),
        ):
            atoms[f"{name}/value"] = values
            atoms[f"{name}/value"].attrs["unit"] = unit
            atoms[f"{name}/step"] = np.arange(len(times))
            atoms[f"{name}/time"] = times
            atoms[f"{name}/time"].attrs["unit"] = "ps"
        atoms["species"], atoms["mass"] = run.atomic_numbers, run.masses
        box = atoms.create_group("box")
        box.attrs["dimension"], box.attrs["boundary"] = 3, ["periodic"] * 3
        box["edges"] = np.diag(run.cell) / 10
        box["edges"].attrs["unit"] = "nm"
        h5["observables/potential_energy/value"] = run.energies / per_mole
        h5["observables/potential_energy/value"].attrs["unit"] = "kJ mol-1"
    return file


def write_traj(folder: Path, run: RawRun) -> Path:
    return _write_ase(folder / "run.traj", run)


def write_db(folder: Path, run: RawRun) -> Path:
    """An ASE database with the time as a key-value pair."""
    from ase.db import connect

    from made_runs import as_atoms

    file = folder / "run.db"
    with connect(file) as database:
        for atoms in as_atoms(run):
            database.write(atoms, time_fs=atoms.info["time_fs"])
    return file


def write_extxyz(folder: Path, run: RawRun) -> Path:
    return _write_ase(folder / "run.extxyz", run)


def _write_ase(file: Path, run: RawRun) -> Path:
    from ase.io import write

    from made_runs import as_atoms

    write(file, as_atoms(run))
    return file


def write_dialect(folder: Path, run: RawRun, owner: str, *, momenta: bool = True, **info: Any) -> Path:
    """Extended XYZ with `<owner>energy` and `<owner>forces` as only labels."""
    from ase.calculators.calculator import Calculator
    from ase.io import write

    from made_runs import as_atoms

    frames = as_atoms(run, momenta=momenta)
    for k, atoms in enumerate(frames):
        atoms.calc = Calculator()
        atoms.info[f"{owner}energy"] = run.energies[k]
        atoms.info.update({name: value[k] for name, value in info.items()})
        atoms.set_array(f"{owner}forces", run.forces[k])
    file = folder / "dialect.extxyz"
    write(file, frames)
    return file


WRITERS: dict[str, Callable[[Path, RawRun], Path]] = {
    "vaspout": write_vaspout,
    "vasprun": write_vasprun,
    "outcar": write_outcar,
    "ml_ab": write_ml_ab,
    "cp2k": write_cp2k,
    "pwscf": write_pwscf,
    "cpx": write_cpx,
    "aims": write_aims,
    "ipi": write_ipi,
    "md17": write_md17,
    "deepmd": write_deepmd,
    "h5md": write_h5md,
    "traj": write_traj,
    "db": write_db,
    "extxyz": write_extxyz,
}
"""A writer of each format; a run of several files gives the one a user would name."""
