"""The elements a network knows, and the clear refusal of any other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from dyntrain.errors import UserError


class SpeciesIndex(nn.Module):
    """Atomic number → column, columns ordered by atomic number.

    Args:
        elements: atomic numbers the network is made for.
    """

    _column: Tensor

    def __init__(self, elements: Sequence[int]) -> None:
        super().__init__()
        symbols = any(isinstance(z, str) for z in elements)
        self.elements = () if symbols else tuple(sorted({int(z) for z in elements}))
        if not self.elements or self.elements[0] < 1 or self.elements[-1] >= len(chemical_symbols):
            raise UserError(f"a model needs elements given as atomic numbers 1 … 118, got {list(elements)}")
        column = torch.full((len(chemical_symbols),), -1, dtype=torch.int64)
        column[list(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("_column", column, persistent=False)

    def __len__(self) -> int:
        return len(self.elements)

    def forward(self, atomic_numbers: Tensor) -> Tensor:
        """Columns [n_atoms] of the atoms' elements.

        Raises:
            UserError: an element the model was not made for.
        """
        column = self._column.index_select(0, atomic_numbers)
        if column.numel() and int(column.min()) < 0:
            unknown = sorted({int(z) for z in atomic_numbers[column < 0]})
            found, known = (", ".join(chemical_symbols[z] for z in zs) for zs in (unknown, self.elements))
            raise UserError(
                f"the structure holds {found}, but the model knows only {known}: train a model on data with "
                "all elements"
            )
        return column
