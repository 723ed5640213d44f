"""Units: everything inside is ASE's (eV, Å, u, ASE time); fs and K appear only at the borders."""

from ase import units as _ase

FS = float(_ase.fs)
"""One femtosecond in ASE time, Å·sqrt(u/eV): ``dt_internal = dt_fs * FS``."""

KB = float(_ase.kB)
"""Boltzmann's constant in eV/K."""

BOHR = float(_ase.Bohr)
"""One bohr in Å."""

HARTREE = float(_ase.Hartree)
"""One hartree in eV."""

KBAR = float(0.1 * _ase.GPa)
"""One kilobar in eV/Å³."""

AUT = float(_ase._aut * _ase.second)
"""One atomic unit of time (ħ/hartree) in ASE time."""
