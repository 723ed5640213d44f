"""The table of formats: which files are whose, by name and by content, and which reader takes them."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dyntrain.data.ase_files import read_ase, read_ase_structures
from dyntrain.data.formats import (
    aims,
    cp2k,
    cpx,
    deepmd,
    h5md,
    ipi,
    ml_ab,
    npz,
    outcar,
    pwscf,
    vaspout,
    vasprun,
)
from dyntrain.data.formats.text import beside, head_of, plain_name
from dyntrain.data.keys import KeyMap
from dyntrain.data.paper_layout import read_paper_layout, velocity_file
from dyntrain.data.raw import RawRun

# How far into a file its own banner is looked for.
_HEAD = 8192


@dataclass(frozen=True)
class Format:
    """name: as notes and errors say it.

    matches: whether a file is of this format, from its path (compression suffix removed) and first bytes.
    read:    the reader of a run.
    read_structures: of structures of no run, those of the same atoms together; None: the run's frames are.
    """

    name: str
    matches: Callable[[Path, bytes], bool]
    read: Callable[[Path, KeyMap], RawRun]
    read_structures: Callable[[Path, KeyMap], list[RawRun]] | None = None


def _named(pattern: str) -> Callable[[Path, bytes], bool]:
    return lambda file, _: re.fullmatch(pattern, file.name) is not None


def _begins(*marks: bytes) -> Callable[[Path, bytes], bool]:
    return lambda _, head: any(mark in head for mark in marks)


def _plain(read: Callable[[Path], RawRun]) -> Callable[[Path, KeyMap], RawRun]:
    """A reader of files that leave no choice of keys and units."""
    return lambda file, _: read(file)


def _paper(file: Path, keys: KeyMap) -> RawRun:
    velocities = velocity_file(file)
    return read_ase(file, keys) if velocities is None else read_paper_layout(file, velocities, keys)


# The first that matches takes the file; what none takes goes to ASE, which knows some hundred formats.
FORMATS = (
    Format("DeePMD npy", lambda f, _: f.is_dir() or f.name == "type.raw", deepmd.read_deepmd),
    Format("VASP vasprun.xml", _named(r".*vasprun.*\.xml"), _plain(vasprun.read_vasprun)),
    Format("VASP vaspout.h5", _named(r".*vaspout.*\.h5"), _plain(vaspout.read_vaspout)),
    Format("VASP OUTCAR", _named(r"(.*[._-])?OUTCAR.*"), _plain(outcar.read_outcar)),
    Format("VASP XDATCAR", _named(r"XDATCAR.*"), _plain(outcar.read_xdatcar)),
    Format(
        "VASP ML_AB",
        _named(r"ML_ABN?.*"),
        _plain(ml_ab.read_ml_ab),
        lambda file, _: ml_ab.read_ml_ab_structures(file),
    ),
    Format("CP2K", _named(cp2k.NAME.pattern), _plain(cp2k.read_cp2k)),
    Format("Quantum ESPRESSO cp.x", _named(r".+\.(pos|vel|for|evp|cel)"), _plain(cpx.read_cpx)),
    Format("i-PI", lambda f, head: f.suffix == ".xyz" and ipi.MARK in head, _plain(ipi.read_ipi)),
    Format("npz (MD17, sGDML)", _named(r".+\.npz"), npz.read_md17),
    Format("H5MD", lambda _, head: head.startswith(h5md.MAGIC), h5md.read_h5md),
    Format("VASP vasprun.xml", _begins(b"<modeling>"), _plain(vasprun.read_vasprun)),
    Format("Quantum ESPRESSO pw.x", _begins(b"Program PWSCF"), _plain(pwscf.read_pwscf)),
    Format("FHI-aims", _begins(b"Invoking FHI-aims"), _plain(aims.read_aims)),
    Format("the paper's layout", _named(r"traj_\w+\.traj"), _paper),
)
_ASE = Format("ASE", lambda *_: True, read_ase, read_ase_structures)


def find_format(file: Path) -> Format:
    """The format of a file or folder."""
    plain = file.with_name(plain_name(file))
    head = b"" if file.is_dir() else head_of(file, _HEAD)
    if file.is_dir():
        return FORMATS[0]
    return next((known for known in FORMATS if known.matches(plain, head)), _ASE)


RUN_SUFFIXES = (".traj", ".extxyz", ".xyz", ".db", ".npz", ".h5", ".h5md", ".hdf5")
"""Files of a folder that are taken as runs by name alone."""

_BY_NAME = re.compile(r"ML_ABN?|.+\.pos")
_OF_VASP = re.compile(r"(?P<kind>vaspout|vasprun|OUTCAR)(?P<ending>.*?)(\.h5|\.xml)?")
_BY_CONTENT = (".out", ".log", ".pwo")


def is_run(file: Path) -> bool:
    """Whether a file of a folder is a run of its own, and not one of the files beside a run."""
    name = plain_name(file)
    if name.endswith(_BY_CONTENT):
        return find_format(file) is not _ASE
    if match := cp2k.NAME.fullmatch(name):
        return match["what"] == "pos"
    if name.endswith(".xyz") and ipi.MARK in (head := head_of(file)):
        return b"positions{" in head or b"x_centroid{" in head
    if match := _OF_VASP.fullmatch(name):
        # Of a run written three times vaspout.h5 has the most digits, and OUTCAR the fewest.
        better = ("vaspout{}.h5", "vasprun{}.xml")[: {"vaspout": 0, "vasprun": 1, "OUTCAR": 2}[match["kind"]]]
        return all(beside(file, other.format(match["ending"])) is None for other in better)
    return name.endswith(RUN_SUFFIXES) or _BY_NAME.fullmatch(name) is not None
