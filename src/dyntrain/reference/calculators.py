"""The electronic structure behind the AIMD: tblite by its own interface, or an ASE calculator by name."""

from __future__ import annotations

import importlib.metadata
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import (
    CalculationFailed,
    Calculator,
    FileIOCalculator,
    InputError,
    all_changes,
    get_calculator_class,
)

from dyntrain import __version__
from dyntrain.errors import UserError
from dyntrain.units import BOHR, HARTREE, KB

TBLITE_METHODS = ("GFN2-xTB", "GFN1-xTB", "IPEA1-xTB")


def new_calculator(method: str, options: Mapping[str, Any]) -> Calculator:
    """A fresh calculator, with no memory of earlier structures.

    Args:
        method: one of ``TBLITE_METHODS``, or the name of an ASE calculator (``emt``, ``cp2k``).
        options: its keywords. tblite has ``accuracy`` (of the SCF, smaller is tighter) and
            ``electronic_temperature`` (K); an ASE calculator those of its documentation.

    Raises:
        UserError: unknown method or option, or the package behind it is not installed.
    """
    if method in TBLITE_METHODS:
        return TBLite(method, **_tblite_options(method, options))
    try:
        kind = get_calculator_class(method)
        _refuse_unknown(kind, options)
        return kind(**options)
    except UserError:
        raise
    except Exception as error:  # each calculator has its own way of saying that it is not installed
        raise UserError(
            f"cannot make a calculator for the method {method!r} ({type(error).__name__}: {error}): "
            f"give {', '.join(TBLITE_METHODS)}, or the name of an ASE calculator with the options it needs"
        ) from error


@contextmanager
def running_calculator(method: str, options: Mapping[str, Any]) -> Iterator[Calculator]:
    """A new calculator, whose program (such as CP2K's shell) is ended in the end."""
    calculator = new_calculator(method, options)
    try:
        yield calculator
    finally:
        if close := getattr(calculator, "close", None):
            close()


def _tblite_options(method: str, options: Mapping[str, Any]) -> dict[str, float]:
    for name, value in options.items():
        if name not in ("accuracy", "electronic_temperature"):
            raise UserError(f"{method} has the options accuracy and electronic_temperature, not {name!r}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < np.inf:
            raise UserError(f"{name} must be a positive number, got {value!r}")
    return dict(options)


def _refuse_unknown(kind: type[Calculator], options: Mapping[str, Any]) -> None:
    """Many calculators swallow a misspelt keyword; refuse it where their own list of keywords is complete."""
    known = {*getattr(kind, "default_parameters", ())}
    if not known or issubclass(kind, FileIOCalculator):  # those hand any keyword on to an input file
        return
    known |= set(inspect.signature(kind.__init__).parameters) - {"self", "args", "kwargs"}
    if unknown := sorted(set(options) - known):
        raise UserError(f"{kind.__name__} has no option {unknown[0]!r}: it knows {', '.join(sorted(known))}")


def versions(method: str) -> dict[str, str]:
    """The versions of the packages that decide the numbers."""
    packages = ["ase", "numpy", *(["tblite"] if method in TBLITE_METHODS else [])]
    return {"dyntrain": __version__, **{name: importlib.metadata.version(name) for name in packages}}


class TBLite(Calculator):
    """xTB energy and forces (C. Bannwarth et al., J. Chem. Theory Comput. 15, 1652 (2019) for GFN2-xTB).

    Leaner than tblite's own ASE calculator, which also fetches dipole, charges and bond orders: 1.8 against
    2.5 ms a step of ethanol. The energy is the electronic free energy, of which the forces are the gradient.
    Charge and unpaired electrons are the sums of the atoms' initial charges and magnetic moments. Periodic
    systems have the Γ point only.

    Args:
        accuracy: of the SCF; tblite's own default, 1, is too loose to conserve the energy.
        electronic_temperature: of the occupation, K.
    """

    implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 (ASE's own declaration)

    def __init__(self, method: str, accuracy: float = 0.01, electronic_temperature: float = 300.0) -> None:
        super().__init__()
        self._method, self._accuracy = method, accuracy
        self._electronic_temperature = electronic_temperature
        self._library = _tblite()
        self._engine: Any = None
        self._result: Any = None

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        atoms = self.atoms  # ASE's copy of what was given
        assert atoms is not None
        if self._engine is None or set(system_changes) - {"positions", "cell"}:
            self._engine, self._result = self._new_engine(atoms), None
        else:
            self._engine.update(positions=atoms.positions / BOHR, lattice=atoms.cell.array / BOHR)
        try:
            # The last wavefunction is the first guess of the next: half the iterations.
            self._result = self._engine.singlepoint(self._result)
        except RuntimeError as error:
            raise CalculationFailed(str(error)) from error
        energy = float(self._result.get("energy")) * HARTREE
        forces = self._result.get("gradient") * (-HARTREE / BOHR)
        self.results = {"energy": energy, "free_energy": energy, "forces": forces}

    def _new_engine(self, atoms: Atoms) -> Any:
        if atoms.pbc.any() and not atoms.pbc.all():
            # tblite takes such a system without a word, and makes it periodic in all three.
            raise UserError(
                f"{self._method} is periodic in three directions or in none, not in {atoms.pbc.sum()}: set "
                "pbc to all in the structure file, with a cell that leaves vacuum where nothing repeats"
            )
        try:
            engine = self._library.Calculator(
                self._method,
                atoms.numbers,
                atoms.positions / BOHR,
                charge=float(atoms.get_initial_charges().sum()),
                uhf=int(np.round(atoms.get_initial_magnetic_moments().sum())),
                lattice=atoms.cell.array / BOHR,
                periodic=atoms.pbc,
            )
        except RuntimeError as error:
            raise InputError(str(error)) from error
        engine.set("verbosity", 0)
        engine.set("accuracy", self._accuracy)
        engine.set("temperature", self._electronic_temperature * KB / HARTREE)
        return engine


def _tblite() -> Any:
    try:
        from tblite import interface
    except ImportError as error:
        raise UserError(
            f'AIMD with xTB needs the package tblite ({error}): pip install "dyntrain[demo]"'
        ) from error
    return interface
