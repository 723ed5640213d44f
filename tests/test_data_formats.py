"""Formats: each code's files give back the run they were written from, in our units."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import shutil
from pathlib import Path
from typing import Any

import ase.io
import h5py
import numpy as np
import pytest
from ase.stress import voigt_6_to_full_3x3_stress
from ase.units import kcal, mol

from array_writers import WRITERS, write_dialect, write_vaspout
from dyntrain.data.diagnose import diagnose
from dyntrain.data.formats.ipi import read_ipi
from dyntrain.data.formats.outcar import read_outcar
from dyntrain.data.formats.table import find_format
from dyntrain.data.formats.vasprun import read_vasprun
from dyntrain.data.keys import KeyMap
from dyntrain.data.readers import expand_paths, read_trajectory
from dyntrain.data.store import write_store
from dyntrain.errors import UserError
from dyntrain.units import BOHR, FS, HARTREE, KB
from format_writers import (
    write_cp2k,
    write_cpx,
    write_ipi,
    write_outcar,
    write_pwscf,
    write_vasprun,
    write_xdatcar,
)
from made_runs import as_atoms, chosen, morse_run

RUN = morse_run(20, dt_fs=0.5)
DATA = Path(__file__).parent / "data"

# format → (name of the reader, digits of positions Å, forces eV/Å and energies eV, velocities).
EXPECTED: dict[str, tuple[str, float, float, float, str]] = {
    "vasprun": ("VASP vasprun.xml", 2e-7, 1e-8, 1e-8, "rebuilt"),
    "vaspout": ("VASP vaspout.h5", 1e-12, 1e-12, 1e-12, "rebuilt"),
    "outcar": ("VASP OUTCAR", 1e-5, 1e-6, 1e-8, "rebuilt"),
    "ml_ab": ("VASP ML_AB", 1e-12, 1e-12, 1e-12, "rebuilt"),
    "cp2k": ("CP2K", 1e-10, 1e-8, 3e-8, "read"),
    "pwscf": ("Quantum ESPRESSO pw.x", 2e-6, 1e-6, 2e-7, "rebuilt"),
    "cpx": ("Quantum ESPRESSO cp.x", 1e-12, 1e-12, 1e-11, "read"),
    "aims": ("FHI-aims", 1e-8, 1e-12, 1e-12, "read"),
    "ipi": ("i-PI", 1e-4, 1e-4, 1e-6, "read"),
    "md17": ("npz (MD17, sGDML)", 1e-12, 1e-12, 1e-12, "rebuilt"),
    "deepmd": ("DeePMD npy", 1e-12, 1e-12, 1e-12, "rebuilt"),
    "h5md": ("H5MD", 1e-12, 1e-12, 1e-12, "read"),
    "traj": ("ase", 1e-12, 1e-12, 1e-12, "read"),
    "db": ("ase", 1e-12, 1e-12, 1e-12, "read"),
    "extxyz": ("ase", 1e-8, 1e-8, 1e-8, "read"),
}
# These state no dt.
WITHOUT_TIME = ("ml_ab", "md17", "deepmd")


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_gives_back_the_run(tmp_path: Path, name: str) -> None:
    reader, r_digits, f_digits, e_digits, velocities = EXPECTED[name]
    found = read_trajectory(WRITERS[name](tmp_path, RUN), 0.5 if name in WITHOUT_TIME else None)
    assert (found.reader, found.velocities_origin) == (reader, velocities)
    assert found.dt_origin == ("given" if name in WITHOUT_TIME else "file")
    assert found.dt_fs == pytest.approx(0.5, rel=1e-2 if name == "pwscf" else 1e-6)
    np.testing.assert_allclose(found.positions, RUN.positions, rtol=0, atol=2 * r_digits)
    np.testing.assert_allclose(found.forces, RUN.forces, rtol=0, atol=2 * f_digits)
    np.testing.assert_allclose(found.energies, RUN.energies, rtol=0, atol=2 * e_digits)
    np.testing.assert_array_equal(found.atomic_numbers, RUN.atomic_numbers)
    np.testing.assert_allclose(found.masses, RUN.masses, rtol=1e-5 if name != "ipi" else 1e-4)
    if name not in ("md17",):
        np.testing.assert_allclose(found.cell, RUN.cell, rtol=1e-7)
        assert found.pbc.all()
    assert RUN.velocities is not None
    speed = np.abs(RUN.velocities).mean()
    allowed = {"outcar": 0.2, "pwscf": 0.02, "vasprun": 5e-3, "ipi": 1e-5}.get(name, 1e-6)
    assert np.abs(found.velocities - RUN.velocities).mean() < allowed * speed


@pytest.mark.parametrize("name", WRITERS)
def test_each_format_passes_the_check(tmp_path: Path, name: str) -> None:
    report = diagnose(read_trajectory(WRITERS[name](tmp_path, RUN), 0.5))
    # Five or six digits of the positions leave the motion of half a femtosecond in noise.
    if name not in ("outcar", "ipi"):
        assert report.usable
        assert report.dt_fs_inferred == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("suffix", "pack"), [(".gz", gzip.compress), (".bz2", bz2.compress), (".xz", lzma.compress)]
)
@pytest.mark.parametrize("name", ["vasprun", "cp2k", "pwscf", "cpx", "ipi", "md17", "traj", "db", "extxyz"])
def test_compressed_files_read_the_same(tmp_path: Path, name: str, suffix: str, pack: Any) -> None:
    file = WRITERS[name](tmp_path, RUN)
    plain = read_trajectory(file)
    for path in [path for path in tmp_path.iterdir() if path.suffix not in (".in", ".inp")]:
        path.with_name(path.name + suffix).write_bytes(pack(path.read_bytes()))
        path.unlink()
    packed = file.with_name(file.name + suffix)
    found = read_trajectory(packed)
    np.testing.assert_array_equal(found.positions, plain.positions)
    assert found.file == str(packed)
    packed.write_bytes(packed.read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged or cut off"):
        read_trajectory(packed)


def test_a_real_cp2k_run() -> None:
    """CP2K 2023.1's own files; `tests/data/cp2k_water/README.md` says what is known of them."""
    found = read_trajectory(DATA / "cp2k_water" / "water-frc-1.xyz")
    assert (found.n_frames, found.dt_fs, found.velocities_origin) == (61, pytest.approx(0.5), "read")
    np.testing.assert_array_equal(found.masses, [15.9994, 1.00794, 1.00794])
    np.testing.assert_array_equal(np.diag(found.cell), [5.5, 6.0, 6.5])
    assert found.energies[0] == pytest.approx(-17.218142728 * 27.211386, rel=1e-8)
    report = diagnose(found)
    assert report.usable and report.ensemble == "nve" and not report.findings
    assert report.kick_ratio is not None and report.kick_ratio < 1e-5
    assert report.temperature_K == pytest.approx(150, rel=0.5)
    assert expand_paths([DATA / "cp2k_water"]) == [DATA / "cp2k_water" / "water-pos-1.xyz"]
    assert "CP2K run read from water-pos-1.xyz, water-frc-1.xyz, water-vel-1.xyz" in found.notes[0]


def test_a_real_ipi_run() -> None:
    """i-PI 3.3's own files; `tests/data/ipi_trap/README.md` says what is known of them."""
    found = read_trajectory(DATA / "ipi_trap" / "trap.for_0.xyz")
    assert (found.n_frames, found.dt_fs, found.velocities_origin) == (61, pytest.approx(0.5), "read")
    assert found.notes[0] == ("i-PI run read from trap.pos_0.xyz, trap.for_0.xyz, trap.vel_0.xyz, trap.out.")
    spring = 0.05 * HARTREE / BOHR**2
    np.testing.assert_allclose(found.forces, -spring * found.positions, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(found.energies, 0.5 * spring * (found.positions**2).sum((1, 2)), rtol=2e-5)
    report = diagnose(found)
    assert report.usable
    assert report.temperature_K == pytest.approx(report.temperature_from_positions_K, rel=0.05)
    assert report.dt_fs_inferred == pytest.approx(0.5, rel=1e-2)
    assert expand_paths([DATA / "ipi_trap"]) == [DATA / "ipi_trap" / "trap.pos_0.xyz"]


def test_cp2ks_stress_is_that_of_the_potential_alone(tmp_path: Path) -> None:
    """A real run of four argon atoms, whose virial is summed up here pair by pair."""
    run = read_trajectory(DATA / "cp2k_argon" / "argon-pos-1.xyz")
    epsilon, sigma = 119.8 * KB, 3.405
    assert run.stress is not None
    for r, stress in zip(run.positions, run.stress, strict=True):
        vectors = (r[:, None] - r)[np.triu_indices(4, k=1)]
        six = (sigma / np.linalg.norm(vectors, axis=1)) ** 6
        pull = 24 * epsilon * (2 * six**2 - six) / (vectors**2).sum(axis=1)
        virial = np.einsum("p,pa,pb->ab", pull, vectors, vectors)
        expected = -virial / np.linalg.det(run.cell)
        np.testing.assert_allclose(voigt_6_to_full_3x3_stress(stress), expected, rtol=0, atol=2e-9)
    folder = shutil.copytree(DATA / "cp2k_argon", tmp_path / "run")
    (folder / "argon-vel-1.xyz").unlink()
    assert "No stress: argon-1.stress needs" in " ".join(read_trajectory(folder / "argon-pos-1.xyz").notes)


def test_a_dcd_of_cp2k_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_cp2k(tmp_path, RUN, "run").rename(tmp_path / "run-pos-1.dcd")
    with pytest.raises(UserError, match=r"single precision, too coarse .* FORMAT XYZ"):
        read_trajectory(tmp_path / "run-frc-1.xyz")


# VASP


STRESS = np.random.default_rng(5).normal(scale=0.05, size=(RUN.positions.shape[0], 6))


@pytest.mark.parametrize(
    ("write", "digits"),
    [(write_vasprun, 1e-9), (write_outcar, 1e-8), (write_vaspout, 1e-12), (write_pwscf, 1e-6)],
    ids=["vasprun", "outcar", "vaspout", "pwscf"],
)
def test_the_stress_has_ases_sign_order_and_unit(tmp_path: Path, write: Any, digits: float) -> None:
    """Codes print −σ in kbar or Ry/bohr³; all but the last test of the sign would pass with σ."""
    file = write(tmp_path, chosen(RUN, slice(None), stress=STRESS))
    found = read_trajectory(file)
    np.testing.assert_allclose(found.stress, STRESS, rtol=0, atol=digits)
    if write in (
        write_vasprun,
        write_outcar,
    ):  # ASE's own readers agree (that of pw.x needs more of the output)
        (first, *_) = ase.io.read(file, ":2")
        np.testing.assert_allclose(found.stress[0], first.get_stress(), rtol=0, atol=digits)
    assert read_trajectory(write(tmp_path, RUN)).stress is None


def test_the_stress_of_ase_files_and_of_a_key(tmp_path: Path) -> None:
    frames = as_atoms(RUN)
    for atoms, stress in zip(frames, STRESS, strict=True):
        atoms.calc.results["stress"] = stress
        atoms.info["dft_stress"] = 2 * voigt_6_to_full_3x3_stress(stress)
    for name in ("run.traj", "run.extxyz"):
        ase.io.write(tmp_path / name, frames)
        np.testing.assert_allclose(read_trajectory(tmp_path / name).stress, STRESS, atol=1e-8)
    named = read_trajectory(tmp_path / "run.extxyz", keys=KeyMap(stress="dft_stress"))
    np.testing.assert_allclose(named.stress, 2 * STRESS, atol=1e-8)
    with pytest.raises(UserError, match="frame 0 has no `other_stress`, where its stress should be"):
        read_trajectory(tmp_path / "run.extxyz", keys=KeyMap(stress="other_stress"))


def test_the_stride_is_read_where_the_file_tells_it(tmp_path: Path) -> None:
    for name in ("outcar", "pwscf", "cp2k", "cpx", "ipi", "h5md"):
        assert read_trajectory(WRITERS[name](tmp_path, RUN)).stride == 1, name
    for name in ("vasprun", "vaspout", "traj", "extxyz", "aims"):
        assert read_trajectory(WRITERS[name](tmp_path, RUN)).stride is None, name
    every_fifth = as_atoms(chosen(RUN, slice(None, None, 5), dt_fs=2.5))
    for k, atoms in enumerate(every_fifth):
        atoms.info["step"] = 100 + 5 * k
    ase.io.write(tmp_path / "fifth.extxyz", every_fifth)
    found = read_trajectory(tmp_path / "fifth.extxyz")
    assert found.stride == 5
    write_store([found], tmp_path / "store.h5")
    assert read_trajectory(tmp_path / "store.h5").stride == 5
    cp2k = write_cp2k(tmp_path, RUN, "strided")
    for file in tmp_path.glob("strided-*.xyz"):  # i = 0, 10, 20 …
        file.write_text(re.sub(r"i =(\s+)(\d+)", lambda m: f"i ={m[1]}{m[2]}0", file.read_text()))
    (tmp_path / "strided-1.ener").unlink()
    assert read_trajectory(cp2k).stride == 10


def test_vaspout_in_all_its_variants(tmp_path: Path) -> None:
    file = write_vaspout(tmp_path, RUN, velocities=True)
    found = read_trajectory(file)
    assert found.velocities_origin == "read"
    np.testing.assert_allclose(found.velocities, RUN.velocities, rtol=1e-12)
    np.testing.assert_array_equal(found.forces, RUN.forces)
    every_fifth = chosen(RUN, slice(None, None, 5))
    strided = read_trajectory(write_vaspout(tmp_path, every_fifth, ML_OUTBLOCK=5))
    assert (strided.stride, strided.dt_fs) == (5, 2.5)
    restated = read_trajectory(write_vaspout(tmp_path, RUN, POMASS="12.011 1.008 15.999 1.009"))
    assert restated.masses[3] == 1.009
    with h5py.File(write_vaspout(tmp_path, RUN), "r+") as h5:
        del h5["input/potcar/content"]
        h5["results/positions/scale"][...] = 2.0
        h5["intermediate/ion_dynamics/lattice_vectors"][...] /= 2.0
    plain = read_trajectory(file)
    assert "standard atomic masses (POTCARs have H 1.000 u)" in " ".join(plain.notes)
    np.testing.assert_allclose(plain.positions, RUN.positions, rtol=1e-12)


@pytest.mark.parametrize(
    ("gone", "expected"),
    [
        ("intermediate/ion_dynamics/forces", "has no intermediate/ion_dynamics/forces"),
        ("intermediate/ion_dynamics/energies_tags", "no energy TOTEN"),
        ("results/positions/ion_types", "does not tell the elements"),
        ("intermediate", "is HDF5 but not a vaspout.h5"),
    ],
)
def test_an_incomplete_vaspout_is_refused(tmp_path: Path, gone: str, expected: str) -> None:
    file = write_vaspout(tmp_path, RUN)
    with h5py.File(file, "r+") as h5:
        del h5[gone]
    with pytest.raises(UserError, match=expected):
        read_trajectory(file)
    with pytest.raises(UserError, match="IBRION = 2, so this is no molecular dynamics"):
        read_trajectory(write_vaspout(tmp_path, RUN, IBRION=2))


def test_nblock_thins_the_forces_of_an_outcar_and_the_positions_of_a_vaspout(tmp_path: Path) -> None:
    run = morse_run(60, dt_fs=0.5)
    found = read_trajectory(write_outcar(tmp_path, run, nblock=5))
    assert (found.n_frames, found.stride, found.breaks) == (12, 5, ())
    assert found.dt_fs == pytest.approx(2.5)
    np.testing.assert_allclose(found.energies, run.energies[4::5], atol=1e-7)
    assert not any("incomplete" in note for note in found.notes)
    file = write_vaspout(tmp_path, run)
    with h5py.File(file, "r+") as h5:
        steps = h5["intermediate/ion_dynamics"]
        thinned = steps["position_ions"][4::5]
        del steps["position_ions"]
        steps["position_ions"] = thinned
    with pytest.raises(UserError, match=r"positions of 12 steps but forces of 60: with NBLOCK > 1"):
        read_trajectory(file)


def test_of_a_run_that_vasp_wrote_three_times_one_is_read(tmp_path: Path) -> None:
    for write, name in (
        (write_outcar, "OUTCAR"),
        (write_vasprun, "vasprun.xml"),
        (write_vaspout, "vaspout.h5"),
    ):
        write(tmp_path, RUN)
        assert [file.name for file in expand_paths([tmp_path])] == [name]


def test_xdatcar_gives_its_digits_to_the_outcar(tmp_path: Path) -> None:
    write_outcar(tmp_path, RUN)
    xdatcar = write_xdatcar(tmp_path, RUN)
    for file in (xdatcar, tmp_path / "OUTCAR"):
        found = read_trajectory(file)
        assert "Positions are those of XDATCAR, which has more digits than OUTCAR." in found.notes
        np.testing.assert_allclose(found.positions, RUN.positions, rtol=0, atol=2e-7)
    other = chosen(RUN, slice(None), positions=RUN.positions + 0.01)
    write_xdatcar(tmp_path, other)
    assert "XDATCAR has other positions" in " ".join(read_trajectory(tmp_path / "OUTCAR").notes)


def test_xdatcar_with_vasprun_and_alone(tmp_path: Path) -> None:
    xdatcar = write_xdatcar(tmp_path, RUN)
    with pytest.raises(
        UserError, match=r"XDATCAR: vasprun.xml or OUTCAR is missing beside it; an XDATCAR has no"
    ):
        read_trajectory(xdatcar)
    write_vasprun(tmp_path, RUN)
    found = read_trajectory(xdatcar)
    assert "Read from vasprun.xml" in " ".join(found.notes)
    assert [file.name for file in expand_paths([tmp_path])] == ["vasprun.xml"]


def test_vasp_notes_fixed_atoms_and_masses_of_the_incar(tmp_path: Path) -> None:
    found = read_trajectory(write_vasprun(tmp_path, RUN, selective=["T T T", "F F F", "T T F", "T T T"]))
    assert "Selective dynamics: 1 atoms are fixed, 1 partly." in found.notes
    heavy = read_outcar(write_outcar(tmp_path, RUN, incar_masses=[12.01, 2.00, 16.0, 2.00]))
    np.testing.assert_allclose(heavy.masses, [12.01, 2.0, 16.0, 2.0])
    assert "Masses are those set in the INCAR" in " ".join(heavy.notes)


def test_a_killed_vasp_job_keeps_its_whole_frames(tmp_path: Path) -> None:
    for file in (write_vasprun(tmp_path, RUN), write_outcar(tmp_path, RUN)):
        text = file.read_text()
        file.write_text(text[: len(text) - 400])
        found = read_trajectory(file)
        assert found.n_frames == 19
        assert "The last frame is incomplete (the run was cut off); it is left out." in found.notes


def test_a_relaxation_is_no_run(tmp_path: Path) -> None:
    for file, old, new in (
        (write_vasprun(tmp_path, RUN), 'name="IBRION">     0', 'name="IBRION">     2'),
        (write_outcar(tmp_path, RUN), "IBRION =      0", "IBRION =      2"),
    ):
        file.write_text(file.read_text().replace(old, new))
        with pytest.raises(UserError, match="IBRION = 2, so this is no molecular dynamics"):
            read_trajectory(file)


def test_a_changing_cell_is_read_frame_by_frame(tmp_path: Path) -> None:
    file = write_vasprun(tmp_path, RUN)
    whole, last = file.read_text().rsplit("<calculation>", 1)
    file.write_text(whole + "<calculation>" + last.replace("20.00000000", "20.10000000"))
    found = read_vasprun(file)
    assert found.cell.shape == (20, 3, 3)
    np.testing.assert_allclose(np.diag(found.cell[19]), [20.1] * 3)
    np.testing.assert_allclose(found.positions[19], RUN.positions[19] * 20.1 / 20, rtol=0, atol=2e-7)


# Quantum ESPRESSO


@pytest.mark.parametrize("unit", ["alat", "bohr", "angstrom", "crystal"])
def test_pwscf_positions_in_any_unit(tmp_path: Path, unit: str) -> None:
    found = read_trajectory(write_pwscf(tmp_path, RUN, unit))
    np.testing.assert_allclose(found.positions[1:], RUN.positions[1:], rtol=0, atol=2e-7)
    assert found.notes == ("Velocities rebuilt from positions and forces by the velocity-Verlet relation.",)


def test_pwscf_tells_of_a_killed_job_and_refuses_an_scf(tmp_path: Path) -> None:
    file = write_pwscf(tmp_path, RUN)
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    found = read_trajectory(file)
    np.testing.assert_allclose(found.forces, RUN.forces[: found.n_frames], rtol=0, atol=1e-6)
    assert "pw.x did not end by itself: the complete steps before are used." in found.notes
    file.write_text(text.split("     Molecular Dynamics Calculation")[0])
    with pytest.raises(UserError, match=r"no step of molecular dynamics is in this pw\.x output"):
        read_trajectory(file)


# Runs in several files


@pytest.mark.parametrize(
    ("write", "gone", "sentence"),
    [
        (
            write_cp2k,
            "made-frc-1.xyz",
            r"made-frc-1\.xyz is missing beside it; switch &TRAJECTORY and &FORCES on",
        ),
        (write_cp2k, "made.inp", "made-1.cell, the input .* is missing beside it; the cell is in none"),
        (write_cpx, "made.for", "made.for is missing beside it; cp.x writes them all"),
        (write_cpx, "made.in", "no input beside it names the prefix made; put one there"),
        (write_ipi, "simulation.for_0.xyz", "simulation.forces_0.xyz is missing beside it"),
        (write_ipi, "simulation.out", r"simulation.out \(properties step, time and potential\) is missing"),
    ],
)
def test_missing_files_of_a_run_are_named(tmp_path: Path, write: Any, gone: str, sentence: str) -> None:
    file = write(tmp_path, RUN)
    (tmp_path / gone).unlink()
    with pytest.raises(UserError, match=sentence):
        read_trajectory(file)


@pytest.mark.parametrize(
    ("write", "velocities"),
    [(write_cp2k, "made-vel-1.xyz"), (write_cpx, "made.vel"), (write_ipi, "simulation.vel_0.xyz")],
)
def test_velocities_that_are_not_there_are_rebuilt(tmp_path: Path, write: Any, velocities: str) -> None:
    file = write(tmp_path, RUN)
    (tmp_path / velocities).unlink()
    assert read_trajectory(file).velocities_origin == "rebuilt"


@pytest.mark.parametrize(("write", "shorter"), [(write_cp2k, "made-frc-1.xyz"), (write_cpx, "made.for")])
def test_files_that_end_early_give_the_common_frames(tmp_path: Path, write: Any, shorter: str) -> None:
    file = write(tmp_path, RUN)
    text = (tmp_path / shorter).read_text()
    (tmp_path / shorter).write_text(text[:-90])
    found = read_trajectory(file)
    assert found.n_frames == 19
    assert f"Only the first 19 frames are used, as many as {shorter} has" in " ".join(found.notes)


def test_files_of_other_steps_are_refused(tmp_path: Path) -> None:
    file = write_cp2k(tmp_path, RUN)
    forces = tmp_path / "made-frc-1.xyz"
    forces.write_text(forces.read_text().replace(" i =        7,", " i =       70,"))
    with pytest.raises(UserError, match=r"frame 7 is step 7 in made-pos-1.xyz but 70 in made-frc-1.xyz"):
        read_trajectory(file)


def test_cp2k_settings_come_from_the_input_or_the_log(tmp_path: Path) -> None:
    for file in (DATA / "cp2k_water").iterdir():
        if file.name not in ("water-1.cell", "README.md"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    named = tmp_path / "water-pos-1.xyz"
    for note in ("water.out.xz, water.inp.", "water.out.xz."):
        found = read_trajectory(named)
        np.testing.assert_allclose(np.diag(found.cell), [5.5, 6.0, 6.5])
        np.testing.assert_array_equal(found.masses, [15.9994, 1.00794, 1.00794])
        assert found.pbc.all() and found.notes[0].endswith(note)
        (tmp_path / "water.inp").unlink(missing_ok=True)


def test_deuterium_has_its_own_mass(tmp_path: Path) -> None:
    file = write_ipi(tmp_path, RUN)
    for path in tmp_path.glob("*.xyz"):
        path.write_text(path.read_text().replace("       H ", "       D "))
    assert read_ipi(file).masses.tolist() == pytest.approx([12.0107, 2.0141, 15.9994, 2.0141], rel=1e-4)


def test_cp2k_without_ener_and_with_a_restart(tmp_path: Path) -> None:
    file = write_cp2k(tmp_path, RUN, ener=False)
    assert read_trajectory(file).dt_fs == pytest.approx(0.5)
    for what in ("pos", "frc", "vel"):
        path = tmp_path / f"made-{what}-1.xyz"
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[:60] + lines[54:]))  # frames 9 and … stand twice: 6 lines a frame
    assert read_trajectory(file).breaks == (10,)


# Extended XYZ


@pytest.mark.parametrize("owner", ["REF_", "dft_", "MACE_", "DFT_", "qm-"])
def test_dialects_are_understood(tmp_path: Path, owner: str) -> None:
    found = read_trajectory(write_dialect(tmp_path, RUN, owner))
    np.testing.assert_allclose(found.forces, RUN.forces, rtol=0, atol=1e-8)
    assert f"The key `{owner}energy` is taken as the energy." in found.notes
    assert f"The key `{owner}forces` is taken as the forces." in found.notes


def test_rivals_are_refused_unless_the_user_chooses(tmp_path: Path) -> None:
    file = write_dialect(tmp_path, RUN, "REF_", mace_energy=RUN.energies + 1)
    with pytest.raises(
        UserError, match=r"several energy that differ \(`REF_energy`, `mace_energy`\): say with `keys"
    ):
        read_trajectory(file)
    keys = KeyMap.from_mapping({"energy": "REF_energy"})
    np.testing.assert_allclose(read_trajectory(file, keys=keys).energies, RUN.energies, rtol=0, atol=1e-7)
    same = write_dialect(tmp_path, RUN, "REF_", copy_energy=RUN.energies)
    assert read_trajectory(same).n_frames == 20
    other = write_dialect(tmp_path, RUN, "REF_", kinetic_energy=RUN.energies * 0, energy_std=RUN.energies)
    assert read_trajectory(other).n_frames == 20


def test_units_of_the_user(tmp_path: Path) -> None:
    unit = kcal / mol
    scaled = chosen(RUN, slice(None), energies=RUN.energies / unit, forces=RUN.forces / unit)
    assert RUN.velocities is not None
    scaled.velocities = RUN.velocities * FS
    file = write_dialect(tmp_path, scaled, "odd_", momenta=True)
    keys = KeyMap.from_mapping(
        {
            "units": {
                "energy": "kcal/mol",
                "forces": "kcal/mol/Å",
                "velocities": "Å/fs",
                "positions": "angstrom",
            }
        }
    )
    found = read_trajectory(file, keys=keys)
    np.testing.assert_allclose(found.energies, RUN.energies, rtol=0, atol=1e-7)
    np.testing.assert_allclose(found.forces, RUN.forces, rtol=0, atol=1e-8)
    np.testing.assert_allclose(found.velocities, RUN.velocities, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="the forces seem to be kcal/mol/Å"):
        read_trajectory(file)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"enrgy": "E"}, "keys: unknown key `enrgy`; did you mean `energy`?"),
        ({"energy": 3}, "keys: `energy` should be the name of a key in the file, got 3"),
        (
            {"units": {"energy": "kcal"}},
            "keys.units: unknown unit 'kcal' of the energy; did you mean kcal/mol?",
        ),
        ({"units": {"speed": "m/s"}}, "keys.units: unknown key `speed`"),
        (["energy"], r"keys: should be keys and values"),
    ],
)
def test_a_wrong_mapping_is_refused(values: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")):
        KeyMap.from_mapping(values)


def test_a_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = write_dialect(tmp_path, RUN, "REF_")
    for quantity in ("energy", "forces", "velocities"):
        with pytest.raises(UserError, match=f"frame 0 has no `gone`, where its {quantity} should be"):
            read_trajectory(file, keys=KeyMap.from_mapping({quantity: "gone"}))


def test_a_cut_last_line_is_no_number(tmp_path: Path) -> None:
    file = WRITERS["extxyz"](tmp_path, RUN)
    file.write_text(file.read_text()[:-8])
    found = read_trajectory(file)
    assert found.n_frames == 19
    assert "The last frame is incomplete (the run was cut off); it is left out." in found.notes


def test_contents_tell_the_format_where_names_do_not(tmp_path: Path) -> None:
    for name, renamed in (("vasprun", "first.xml"), ("aims", "first.txt"), ("h5md", "first.dat")):
        file = WRITERS[name](tmp_path, RUN)
        other = file.rename(tmp_path / renamed)
        assert find_format(other).name == EXPECTED[name][0]
    assert write_pwscf(tmp_path, RUN) in expand_paths([tmp_path])
