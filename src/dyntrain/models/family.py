"""FamilyModel: what an energy model offers so that configurations, model files and commands can use it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from dyntrain.errors import UserError
from dyntrain.potential import EnergyModel

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

    from dyntrain.models.native import FileContents

DTYPES = {"float32": torch.float32, "float64": torch.float64}
"""Precisions of a network by name; positions, energies and sums are float64 always."""


class FamilyModel(EnergyModel):
    """An energy model that is known by the name of its family (``mace``, ``egnn`` …).

    A family registers its class as an entry point of the group ``dyntrain.models``; the entry point's name is
    the family's. ``cls(elements=…, cutoff=…, **settings)`` makes a new model from torch's current random
    state, and ``cls(**model.config)`` followed by ``load_state_dict`` an old one: ``config`` is JSON and
    names the whole architecture. All buffers that a user may have set (energy shifts, scales) belong in the
    state dict.
    """

    family: ClassVar[str]
    native_precisions: ClassVar[tuple[str, ...]] = ("float32", "float64")
    """Those that the family's own format and calculator have."""
    files_name_code: ClassVar[bool] = False
    """Whether what builds a model from the family's files calls functions that the file names."""
    may_be_zero: ClassVar[frozenset[str]] = frozenset()
    """Settings that are numbers and need not be above 0."""

    @property
    def elements(self) -> tuple[int, ...]:
        """Atomic numbers the model knows, in the order of its energy shifts."""
        raise NotImplementedError

    # --- the data's statistics ------------------------------------------------------------------------

    def set_statistics(self, energy_shifts: Tensor, force_scale: float, mean_neighbors: float) -> None:
        """Start a new model at the scale of its data.

        Args:
            energy_shifts: energy of each of ``elements``, [n_elements] eV, float64.
            force_scale: root mean square of the force components, eV/Å.
            mean_neighbors: of an atom within the cutoff.
        """
        raise NotImplementedError

    def shift_energies(self, shifts: Tensor) -> None:
        """Add an energy to every atom of each of ``elements``, [n_elements] eV, float64.

        It goes into the model's own parameters or buffers, so that ``export`` keeps it.

        Raises:
            UserError: the family has no place for it (default).
        """
        raise UserError(f"the {self.family} family has no energy per element that could be aligned")

    # --- precision ------------------------------------------------------------------------------------

    def set_precision(self, precision: str) -> None:
        """Cast the network; energies and sums are float64 whatever it is.

        This default casts parameters alone. Modules that mix parameters with buffers override it.

        Args:
            precision: ``float32`` or ``float64``.

        Raises:
            UserError: the family cannot be computed so.
        """
        for parameter in self.parameters():
            parameter.data = parameter.data.to(DTYPES[precision])

    # --- other people's files -------------------------------------------------------------------------

    @classmethod
    def recognises(cls, contents: FileContents) -> bool:
        """Whether a file, whose contents were listed without running any of it, is of this family."""
        return False

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """The model of a file in the family's own format; the caller has seen to it that this is trusted.

        Raises:
            UserError: the file cannot be read, or is of a kind that cannot be trained.
        """
        raise UserError(f"{path}: the {cls.family} family has no file format beside dyntrain's own model.pt")

    @classmethod
    def pretrained_names(cls) -> tuple[str, ...]:
        """Names of the models that come with the family's package, as ``sevennet-0``."""
        return ()

    @classmethod
    def pretrained(cls, name: str) -> Self:
        """One of the models that come with the family's package."""
        raise UserError(_NO_SUCH_PRETRAINED.format(family=cls.family, name=name, known=_listed(cls)))

    def export(self, path: Path) -> None:
        """Write the family's own format, whole or not at all; its own tools load it unchanged."""
        raise UserError(
            f"a model of the {self.family} family has no format beside dyntrain's own: its model.pt is what "
            "dyntrain's commands and dyntrain.Calculator load"
        )

    @staticmethod
    def native_calculator(path: Path, device: str = "cpu", precision: str = "float64") -> Calculator:
        """The family's own ASE calculator on a file that ``export`` wrote."""
        raise NotImplementedError


_NO_SUCH_PRETRAINED = "the {family} family has no pretrained model {name!r}; {known}"


def _listed(family: type[FamilyModel]) -> str:
    names: Sequence[str] = family.pretrained_names()
    return f"it has {', '.join(names)}" if names else "its package ships none"
