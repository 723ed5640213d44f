"""Writers of each code's files, with its layout, units and digits, from runs whose numbers are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from ase.data import chemical_symbols
from ase.stress import voigt_6_to_full_3x3_stress

from dyntrain.data.raw import RawRun
from dyntrain.units import AUT, BOHR, FS, HARTREE, KBAR

RYDBERG = HARTREE / 2


def pressure(run: RawRun, frame: int) -> np.ndarray:
    """The tensor that codes print, −σ, [3, 3] eV/Å³."""
    assert run.stress is not None
    return -np.asarray(voigt_6_to_full_3x3_stress(run.stress[frame]))


def symbols(run: RawRun) -> list[str]:
    return [chemical_symbols[z] for z in run.atomic_numbers]


def wrapped_fractions(run: RawRun) -> np.ndarray:
    return (run.positions @ np.linalg.inv(run.cell)) % 1.0


def v_rows(values: np.ndarray, digits: int = 8) -> str:
    return "".join("<v>" + "".join(f"{x:17.{digits}f}" for x in row) + " </v>\n" for row in values)


def write_vasprun(folder: Path, run: RawRun, *, selective: list[str] | None = None) -> Path:
    """vasprun.xml of VASP 6: fractional positions and forces with eight decimals."""
    labels = symbols(run)
    kinds = list(dict.fromkeys(labels))
    text = ['<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n']
    text += ['<generator>\n <i name="program" type="string">vasp </i>\n</generator>\n']
    text += [f'<incar>\n <i name="POTIM">{run.dt_fs:14.8f}</i>\n</incar>\n']
    text += ['<parameters>\n<separator name="ionic">\n <i type="int" name="IBRION">     0</i>\n']
    text += [f' <i name="POTIM">{run.dt_fs:16.8f}</i>\n</separator>\n</parameters>\n<atominfo>\n']
    text += [f' <atoms>{len(labels):8d} </atoms>\n <array name="atoms" >\n  <set>\n']
    text += [f"   <rc><c>{s:2s}</c><c>{kinds.index(s) + 1:4d}</c></rc>\n" for s in labels]
    text += ['  </set>\n </array>\n <array name="atomtypes" >\n  <set>\n']
    for kind in kinds:
        mass = run.masses[labels.index(kind)]
        text += [
            f"<rc><c>{labels.count(kind)}</c><c>{kind:2s}</c><c>{mass:16.8f}</c><c>1.0</c><c>PAW</c></rc>\n"
        ]
    text += ["  </set>\n </array>\n</atominfo>\n"]
    gamma = '<kpoints>\n<varray name="kpointlist" >\n<v> 0.0 0.0 0.0 </v>\n</varray>\n'
    text += [gamma, '<varray name="weights" >\n<v> 1.0 </v>\n</varray>\n</kpoints>\n']
    flags = "".join(f'   <v type="logical"> {row} </v>\n' for row in selective or [])
    structure = (
        ' <structure{}>\n  <crystal>\n   <varray name="basis" >\n{}   </varray>\n  </crystal>\n'
        '  <varray name="positions" >\n{}  </varray>\n{} </structure>\n'
    )
    chosen = f'  <varray name="selective" type="logical">\n{flags}  </varray>\n' if selective else ""
    fractions, cell = wrapped_fractions(run), v_rows(run.cell)
    text += [structure.format(' name="initialpos" ', cell, v_rows(fractions[0]), chosen)]
    for k in range(len(run.positions)):
        text += [
            "<calculation>\n <scstep>\n  <energy>\n",
            f'   <i name="e_fr_energy">{run.energies[k]:16.8f} </i>\n',
            f'   <i name="e_wo_entrp">{run.energies[k] + 0.2:16.8f} </i>\n',
            f'   <i name="e_0_energy">{run.energies[k] + 0.1:16.8f} </i>\n',
        ]
        text += ["  </energy>\n </scstep>\n", structure.format("", cell, v_rows(fractions[k]), "")]
        text += [f' <varray name="forces" >\n{v_rows(run.forces[k])} </varray>\n']
        if run.stress is not None:
            text += [f' <varray name="stress" >\n{v_rows(pressure(run, k) / KBAR)} </varray>\n']
        text += [f' <energy>\n  <i name="e_fr_energy">{run.energies[k]:16.8f} </i>\n']
        text += [f'  <i name="e_0_energy">{0:16.8f} </i>\n </energy>\n</calculation>\n']
    file = folder / "vasprun.xml"
    file.write_text("".join(text) + "</modeling>\n")
    return file


def _outcar_forces(run: RawRun, frame: int) -> list[str]:
    """The stress (where there is one), cell, positions and forces of a step."""
    text = []
    if run.stress is not None:
        (xx, xy, zx), (_, yy, yz), (_, _, zz) = pressure(run, frame) / KBAR
        columns = "".join(f"{x:12.5f}" for x in (xx, yy, zz, xy, yz, zx))
        text += [f"  Total  {columns}\n  in kB  {columns}\n", f"  Total+kin. {columns.replace('1', '9')}\n"]
    text += ["      direct lattice vectors                 reciprocal lattice vectors\n"]
    text += ["".join(f"{x:13.9f}" for x in (*row, 0.05, 0, 0)) + "\n" for row in run.cell]
    text += [
        " POSITION                                       TOTAL-FORCE (eV/Angst)\n",
        " " + "-" * 83 + "\n",
    ]
    for x, y in zip(run.positions[frame], run.forces[frame], strict=True):
        text += ["".join(f"{v:13.5f}" for v in x) + "   " + "".join(f"{v:14.6f}" for v in y) + "\n"]
    return [*text, " " + "-" * 83 + "\n    total drift:  0.0 0.0 0.0\n"]


def write_outcar(
    folder: Path, run: RawRun, *, incar_masses: list[float] | None = None, nblock: int = 1
) -> Path:
    """OUTCAR: five decimals for positions, six for forces (of every nblock-th step); one type an atom."""
    labels = symbols(run)
    text = [" vasp.6.4.2 20Jul23 complex\n\n", *(f" POTCAR:    PAW_PBE {s} 08Apr2002\n" for s in labels * 2)]
    for label, mass in zip(labels, run.masses, strict=True):
        text += [f"   VRHFIN ={label}: s2p2\n   POMASS ={mass:9.3f}; ZVAL   =    4.000    mass and valenz\n"]
    text += ["   ISPIN  =      1    spin polarized calculation?\n"]
    text += [f"   number of dos      NEDOS =    301   number of ions     NIONS = {len(labels):6d}\n"]
    text += ["   ions per type =  " + "".join(f"{1:4d}" for _ in labels) + "\n"]
    text += [
        "   IBRION =      0    ionic relax: 0-MD\n",
        f"   POTIM  ={run.dt_fs:7.4f}    time-step for ionic-motion\n",
    ]
    used = "".join(f"{mass:6.2f}" for mass in (incar_masses or run.masses))
    text += [f"  Mass of Ions in am\n   POMASS = {used}\n"]
    for k, energy in enumerate(run.energies):
        text += [f"{'-' * 41} Iteration {k + 1:4d}(   1)  {'-' * 39}\n"]
        text += [f"  free energy    TOTEN  = {energy + 1:18.8f} eV\n"]
        if (k + 1) % nblock == 0:
            text += _outcar_forces(run, k)
        text += ["  FREE ENERGIE OF THE ION-ELECTRON SYSTEM (eV)\n  " + "-" * 51 + "\n"]
        text += [f"  free  energy   TOTEN  = {energy:18.8f} eV\n\n"]
        text += [f"  energy  without entropy= {energy:17.8f}  energy(sigma->0) = {energy:17.8f}\n"]
    file = folder / "OUTCAR"
    file.write_text("".join(text))
    return file


def write_xdatcar(folder: Path, run: RawRun) -> Path:
    """XDATCAR: wrapped fractions with eight decimals."""
    text = ["made\n           1\n", *("".join(f"{x:12.6f}" for x in row) + "\n" for row in run.cell)]
    text += ["   " + "    ".join(symbols(run)) + "\n", "   " + "    ".join("1" for _ in run.masses) + "\n"]
    for k, frame in enumerate(wrapped_fractions(run)):
        text += [f"Direct configuration={k + 1:6d}\n"]
        text += ["".join(f"{x:12.8f}" for x in row) + "\n" for row in frame]
    file = folder / "XDATCAR"
    file.write_text("".join(text))
    return file


def write_ml_ab(folder: Path, run: RawRun) -> Path:
    """ML_AB: sections of a title, a ruler and the content."""
    stars, lines, dashes = "*" * 50 + "\n", "=" * 50 + "\n", "-" * 50 + "\n"
    labels = symbols(run)
    kinds = list(dict.fromkeys(labels))
    composition: list[tuple[str, int]] = [(label, 1) for label in labels]

    def section(title: str, content: str, ruler: str = stars) -> str:
        return f"{ruler}     {title}\n{dashes}{content}"

    masses = " ".join(f"{run.masses[labels.index(kind)]:.14f}" for kind in kinds)
    text = [" 1.0 Version\n", section("The number of configurations", f"{len(run.positions):11d}\n")]
    text += [section("The atom types in the data file", f"     {' '.join(kinds)}\n")]
    text += [section("Atomic mass", f"  {masses}\n")]

    def rows(values: np.ndarray) -> str:
        return "".join("".join(f"{x:24.16e}" for x in row) + "\n" for row in values)

    wrapped = wrapped_fractions(run) @ run.cell
    for k in range(len(run.positions)):
        text += [f"{stars}     Configuration num.{k + 1:7d}\n"]
        text += [section("System name", "     made\n", lines), section("The number of atoms", "  4\n", lines)]
        types = "".join(f"     {label:2s} {count:6d}\n" for label, count in composition)
        text += [section("Atom types and atom numbers", types), section("CTIFOR", "  2.0E-002\n", lines)]
        text += [section("Primitive lattice vectors (ang.)", rows(run.cell), lines)]
        text += [section("Atomic positions (ang.)", rows(wrapped[k]), lines)]
        text += [section("Total energy (eV)", f"{run.energies[k]:24.16e}\n", lines)]
        text += [section("Forces (eV ang.^-1)", rows(run.forces[k]), lines)]
        text += [section("Stress (kbar)", f"     XX YY ZZ\n{dashes}  0.0  0.0  0.0\n", lines)]
    file = folder / "ML_AB"
    file.write_text("".join(text))
    return file


def write_cp2k(folder: Path, run: RawRun, project: str = "made", *, ener: bool = True) -> Path:
    """The xyz files of CP2K with ten decimals, its .ener and .cell, and an input without masses."""
    assert run.dt_fs is not None and run.velocities is not None
    values = {
        "pos": run.positions,
        "frc": run.forces / (HARTREE / BOHR),
        "vel": run.velocities / (BOHR / AUT),
    }
    for what, frames in values.items():
        text = []
        for k, frame in enumerate(frames):
            energy = run.energies[k] / HARTREE
            text += [f"{len(frame):8d}\n i = {k:8d}, time = {k * run.dt_fs:12.3f}, E = {energy:20.10f}\n"]
            text += [
                f"{s:>3s}" + "".join(f"{x:20.10f}" for x in row) + "\n"
                for s, row in zip(symbols(run), frame, strict=True)
            ]
        (folder / f"{project}-{what}-1.xyz").write_text("".join(text))
    if ener:
        rows = [
            f"{k:10d}{k * run.dt_fs:20.6f}{0:20.9f}{300:20.9f}"
            f"{e / HARTREE:20.9f}{e / HARTREE:20.9f}{1:20.9f}\n"
            for k, e in enumerate(run.energies)
        ]
        (folder / f"{project}-1.ener").write_text("#     Step Nr.   Time[fs] …\n" + "".join(rows))
    abc = " ".join(f"{x:.10f}" for x in np.diag(run.cell))
    (folder / f"{project}.inp").write_text(
        f"&GLOBAL\n  PROJECT {project}\n&END GLOBAL\n&FORCE_EVAL\n  &SUBSYS\n    &CELL\n      ABC {abc}\n"
        "      PERIODIC XYZ\n    &END CELL\n    &KIND C\n      MASS 12.011\n    &END KIND\n"
        "    &KIND H\n      MASS 1.008\n    &END KIND\n    &KIND O\n      MASS 15.999 ! u\n    &END KIND\n"
        "  &END SUBSYS\n&END FORCE_EVAL\n"
    )
    return folder / f"{project}-pos-1.xyz"


def write_pwscf(folder: Path, run: RawRun, unit: str = "alat") -> Path:
    """A pw.x output: rydberg units, positions of later steps in the given unit."""
    assert run.dt_fs is not None
    labels, alat = symbols(run), run.cell[0, 0]
    # After the forces of the last step pw.x still prints where the next one would begin.
    following = [*run.positions, 2 * run.positions[-1] - run.positions[-2]]
    steps = run.dt_fs * FS / (2 * AUT)
    scales = {"alat": np.eye(3) / alat, "bohr": np.eye(3) / BOHR, "angstrom": np.eye(3)}
    scale = scales.get(unit, np.linalg.inv(run.cell))
    text = ["\n     Program PWSCF v.7.2 starts on 12Jul2024 at 10:11:16 \n\n"]
    text += [f"     lattice parameter (alat)  = {alat / BOHR:11.4f}  a.u.\n"]
    text += [f"     number of atoms/cell      = {len(labels):12d}\n\n"]
    text += [f"     celldm(1)={alat / BOHR:11.6f}  celldm(2)=   0.000000  celldm(3)=   0.000000\n\n"]
    text += ["     crystal axes: (cart. coord. in units of alat)\n"]
    for number, row in enumerate(run.cell / alat):
        text += [f"               a({number + 1}) = (" + "".join(f"{x:11.6f}" for x in row) + " )  \n"]
    text += ["\n     atomic species   valence    mass     pseudopotential\n"]
    for kind in dict.fromkeys(labels):
        text += [
            f"        {kind:2s}             4.00 {run.masses[labels.index(kind)]:11.5f}     {kind}( 1.00)\n"
        ]
    text += ["\n   Cartesian axes\n\n     site n.     atom                  positions (alat units)\n"]
    for number, (label, row) in enumerate(zip(labels, run.positions[0] / alat, strict=True)):
        xyz = "".join(f"{x:12.7f}" for x in row)
        text += [f"{number + 1:10d}           {label:2s}  tau({number + 1:4d}) = ({xyz}  )\n"]
    for k in range(len(run.positions)):
        text += [
            "\n     total energy              =     -99.00000000 Ry\n",
            "     convergence has been achieved in   3 iterations\n",
        ]
        text += [f"\n!    total energy              = {run.energies[k] / RYDBERG:16.8f} Ry\n"]
        text += ["\n     Forces acting on atoms (cartesian axes, Ry/au):\n\n"]
        for number, row in enumerate(run.forces[k] / (RYDBERG / BOHR)):
            xyz = "".join(f"{x:14.8f}" for x in row)
            text += [f"     atom {number + 1:4d} type  1   force = {xyz}\n"]
        text += ["\n     Total force =     0.057069     Total SCF correction =     0.000004\n\n"]
        if run.stress is not None:
            tensor = pressure(run, k)
            text += ["     Computing stress (Cartesian axis) and pressure\n\n"]
            text += ["          total   stress  (Ry/bohr**3)                   (kbar)     P=        1.23\n"]
            for row in tensor:
                atomic = "".join(f"{x / (RYDBERG / BOHR**3):14.8f}" for x in row)
                text += [atomic + "".join(f"{x / KBAR:14.2f}" for x in row) + "\n"]
        if k == 0:
            text += ["     Molecular Dynamics Calculation\n     mass C                =    12.01\n"]
            text += [f"     Time step             = {steps:8.2f} a.u., {run.dt_fs:7.4f} femto-seconds\n\n"]
        text += [f"     Entering Dynamics:    iteration = {k + 1:5d}\n"]
        text += [
            f"                           time      = {(k + 1) * run.dt_fs / 1000:8.4f} pico-seconds\n\n\n"
        ]
        text += [f"ATOMIC_POSITIONS ({unit})\n"]
        for label, row in zip(labels, following[k + 1] @ scale, strict=True):
            text += [f"{label:2s}    " + "".join(f"{x:14.9f}" for x in row) + "\n"]
        text += ["\n\n     kinetic energy (Ekin) =     0.00002521 Ry\n"]
    file = folder / "md.out"
    file.write_text("".join(text) + "     The maximum number of steps has been reached.\n\n   JOB DONE.\n")
    return file


def write_cpx(folder: Path, run: RawRun, prefix: str = "made") -> Path:
    """The files of cp.x (hartree units; the cell's vectors are columns) and its input."""
    assert run.dt_fs is not None and run.velocities is not None
    dt, n_frames = run.dt_fs * FS / AUT, len(run.positions)
    values = {
        "pos": run.positions / BOHR,
        "vel": run.velocities / (BOHR / AUT),
        "for": run.forces / (HARTREE / BOHR),
        "cel": np.broadcast_to(run.cell.T / BOHR, (n_frames, 3, 3)),
    }
    for suffix, frames in values.items():
        text = []
        for k, frame in enumerate(frames):
            text += [f"{k + 1:7d} {(k + 1) * run.dt_fs / 1000:11.8f}\n"]
            form = "{:14.8f}" if suffix == "cel" else "{:25.14E}"
            text += ["".join(form.format(x) for x in row) + "\n" for row in frame]
        (folder / f"{prefix}.{suffix}").write_text("".join(text))
    head = "#   nfi  time(ps)   ekinc  Tcell(K)  Tion(K)  etot  enthal  econs  econt  Volume\n"
    rows = [
        f"{k + 1:7d} {(k + 1) * run.dt_fs / 1000:11.8f} 1.0E-04 0.0 300.0 "
        f"{e / HARTREE:20.14f} 0.0 0.0 0.0 0.0 0.0\n"
        for k, e in enumerate(run.energies)
    ]
    (folder / f"{prefix}.evp").write_text(head + "".join(rows))
    species = dict(zip(symbols(run), run.masses, strict=True))
    cell = "".join(" " + " ".join(f"{x / BOHR:.8f}" for x in row) + "\n" for row in run.cell)
    (folder / f"{prefix}.in").write_text(
        f"&CONTROL\n  calculation = 'cp', prefix = '{prefix}'\n  dt = {dt:.12f}d0\n/\n&SYSTEM\n  ibrav = 0\n"
        f"  nat = {len(run.masses)}\n  ntyp = {len(species)}\n/\nCELL_PARAMETERS bohr\n{cell}"
        "ATOMIC_SPECIES\n"
        + "".join(f" {s} {m:.5f} {s}.UPF\n" for s, m in species.items())
        + "ATOMIC_POSITIONS (bohr)\n"
        + "".join(f" {s} 0.0 0.0 0.0\n" for s in symbols(run))
    )
    return folder / f"{prefix}.pos"


def write_aims(folder: Path, run: RawRun) -> Path:
    """An FHI-aims output: velocities in Å/ps, structure printed after its forces."""
    assert run.dt_fs is not None and run.velocities is not None
    labels = symbols(run)
    text = [
        "------------------------------------------------------------\n          Invoking FHI-aims ...\n\n"
    ]
    for kind in dict.fromkeys(labels):
        text += [f"  Reading configuration options for species {kind:21s}\n"]
        text += [f"  | Found atomic mass :    {run.masses[labels.index(kind)]:18.14f}     amu\n"]
    text += [f"  | Number of atoms                   : {len(labels):8d}\n"]
    for k in range(len(run.positions)):
        text += ["  Total atomic forces (unitary forces cleaned) [eV/Ang]:\n"]
        text += [
            f"  |{n + 1:5d}" + "".join(f"{x:30.15E}" for x in row) + "\n"
            for n, row in enumerate(run.forces[k])
        ]
        text += ["\n  Advancing structure using Born-Oppenheimer Molecular Dynamics:\n"]
        text += ["  Complete information for previous time-step:\n"]
        text += [f"  | Time step number             : {k:10d}\n"]
        text += [f"  | Simulation time              : {k * run.dt_fs / 1000:22.10E} ps\n"]
        text += [f"  | Electronic free energy       : {run.energies[k]:22.14E} eV\n"]
        text += ["  Atomic structure (and velocities) as used in the preceding time step:\n"]
        text += ["                         x [A]             y [A]             z [A]\n"]
        text += ["  lattice_vector" + "".join(f"{x:18.8f}" for x in row) + "\n" for row in run.cell]
        for label, r, v in zip(labels, run.positions[k], run.velocities[k] * FS * 1000, strict=True):
            text += ["            atom  " + "".join(f"{x:18.8f}" for x in r) + f"  {label}\n"]
            text += ["        velocity  " + "".join(f"{x:18.8f}" for x in v) + "\n"]
        text += ["------------------------------------------------------------\n"]
    file = folder / "aims.out"
    file.write_text("".join(text))
    return file


def write_ipi(folder: Path, run: RawRun, prefix: str = "simulation") -> Path:
    """i-PI's xyz files (six digits) in mixed units, and its table of properties."""
    assert run.dt_fs is not None and run.velocities is not None
    lengths = "".join(f"{x:10.5f}  " for x in np.diag(run.cell))
    values = {
        ("pos", "positions{angstrom}"): run.positions,
        ("vel", "velocities{m/s}"): run.velocities * (FS * 1e5),
        ("for", "forces{atomic_unit}"): run.forces / (HARTREE / BOHR),
    }
    for (name, title), frames in values.items():
        text = []
        for k, frame in enumerate(frames):
            text += [f"{len(frame)}\n# CELL(abcABC): {lengths}  90.00000    90.00000    90.00000  "]
            text += [f"Step:  {k:10d}  Bead:   {0:5d} {title}  cell{{angstrom}}\n"]
            text += [
                f"{s:>8s}" + "".join(f" {x:12.5e}" for x in row) + "\n"
                for s, row in zip(symbols(run), frame, strict=True)
            ]
        (folder / f"{prefix}.{name}_0.xyz").write_text("".join(text))
    head = (
        "# column   1     --> step : The current simulation time step.\n"
        "# column   2     --> time{picosecond} : The elapsed simulation time.\n"
        "# column   3     --> conserved{electronvolt} : The value of the conserved energy.\n"
        "# column   4     --> potential{electronvolt} : The physical system potential energy.\n"
    )
    rows = [
        f"{k:16.8e} {k * run.dt_fs / 1000:16.8e} {0:16.8e} {e:16.8e}\n" for k, e in enumerate(run.energies)
    ]
    (folder / f"{prefix}.out").write_text(head + "".join(rows))
    return folder / f"{prefix}.pos_0.xyz"
