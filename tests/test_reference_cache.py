"""Reference results: computed once, found again, never taken for those of something else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.calculator import CalculationFailed
from ase.calculators.emt import EMT

from dyntrain.errors import UserError
from dyntrain.reference.cache import ReferenceFailed, StoredReference


def copper(distance: float = 2.5) -> Atoms:
    return Atoms("Cu2", [[0, 0, 0], [0, 0, distance]])


def test_no_calculation_is_made_twice(tmp_path: Path) -> None:
    reference = StoredReference("emt", None, tmp_path / "store")
    first = reference.label(copper())
    again = reference.label(copper())
    assert (reference.n_calculated, reference.n_read) == (1, 1)
    atoms = copper()
    atoms.calc = EMT()
    for label in (first, again):
        assert label.energy == atoms.get_potential_energy()
        np.testing.assert_array_equal(label.forces, atoms.get_forces())
    other = StoredReference("emt", {}, tmp_path / "store")
    other.label(copper())
    assert (other.n_calculated, other.n_read) == (0, 1)


def test_another_structure_or_another_method_is_another_result(tmp_path: Path) -> None:
    reference = StoredReference("GFN2-xTB", {"accuracy": 0.1}, tmp_path)
    charged = StoredReference("GFN2-xTB", {"accuracy": 0.1, "charge": 1, "unpaired_electrons": 1}, tmp_path)
    loose = StoredReference("GFN2-xTB", {"accuracy": 1.0}, tmp_path)
    water = molecule("H2O")
    moved = water.copy()
    moved.positions[0, 0] += 1e-6
    boxed = water.copy()
    boxed.set_cell([9, 9, 9])
    boxed.pbc = True
    paths = [reference.path_of(atoms) for atoms in (water, moved, boxed)]
    paths += [loose.path_of(water), charged.path_of(charged._with_electrons(water))]
    assert len(set(paths)) == len(paths)
    assert charged.name == "GFN2-xTB (accuracy 0.1, charge 1, unpaired_electrons 1)"
    zero = water.copy()
    zero.positions[1:, 0] = -0.0
    assert reference.path_of(zero) == reference.path_of(water)


def test_charge_reaches_the_method(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    water = molecule("H2O")
    neutral = StoredReference("tblite", None, tmp_path).label(water)
    cation = StoredReference("tblite", {"charge": 1, "unpaired_electrons": 1}, tmp_path).label(water)
    assert 8.0 < cation.energy - neutral.energy < 25.0  # an ionisation energy


def test_a_failure_is_neither_a_number_nor_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: EMT, *_: object, **__: object) -> None:
        raise CalculationFailed("no self-consistent\nfield")

    reference = StoredReference("emt", None, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(EMT, "calculate", fail)
        with pytest.raises(ReferenceFailed, match="emt failed: no self-consistent field"):
            reference.label(copper())
    assert list(tmp_path.iterdir()) == []
    assert np.isfinite(reference.label(copper()).energy)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    reference = StoredReference("emt", None, tmp_path)
    reference.label(copper())
    path = reference.path_of(copper())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"is a damaged reference result .*: delete it"):
        reference.label(copper())


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("no-such-method", {}, "cannot make a calculator for the method 'no-such-method'"),
        ("tblite", {"charge": 0.5}, "charge must be a whole number, got 0.5"),
        ("GFN2-xTB", {"acuracy": 1}, "not 'acuracy'"),
        ("emt", {"charge": 1}, "has no option 'charge'"),
    ],
)
def test_what_could_never_work_is_refused_at_once(
    tmp_path: Path, method: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        StoredReference(method, options, tmp_path)
