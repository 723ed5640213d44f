"""What the adapters share: directed edges from our neighbour list, sums over systems, casts."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dyntrain.errors import UserError
from dyntrain.models.family import DTYPES, FamilyModel
from dyntrain.models.species import SpeciesIndex
from dyntrain.neighbors import NeighborList
from dyntrain.state import State


class Edges(NamedTuple):
    """Every pair in both directions: r = positions[target] − positions[source] + shift_vectors.

    source, target: [n_edges] int64
    shifts:         [n_edges, 3] float64, whole numbers of lattice vectors
    shift_vectors:  [n_edges, 3] float64 Å, shifts · cell of the edge's system; zero without a cell
    """

    source: Tensor
    target: Tensor
    shifts: Tensor
    shift_vectors: Tensor

    def vectors(self, positions: Tensor) -> Tensor:
        """From source to target, [n_edges, 3] Å, differentiable in the positions.

        index_select is used because its gradient is summed in a fixed order on CPU.
        """
        ends = positions.index_select(0, self.target) - positions.index_select(0, self.source)
        return ends + self.shift_vectors


def directed_edges(state: State, neighbors: NeighborList) -> Edges:
    """Our pairs in both directions, as message-passing packages want them."""
    source, target, shifts = neighbors.both_directions()
    cell = state.cell.index_select(0, state.system_idx.index_select(0, source))
    return Edges(source, target, shifts, torch.einsum("ep,epx->ex", shifts, cell))


class AdapterModel(FamilyModel):
    """A third party's module, unmodified, as an energy model.

    Subclasses set ``family``, ``cutoff``, ``config``, ``module`` and ``species`` in ``__init__``.

    Attributes:
        module: the raw module; its parameters are what is trained.
        species: the elements it knows, ordered by atomic number.
    """

    module: nn.Module
    species: SpeciesIndex

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_leave_out_generated)
        self.register_load_state_dict_pre_hook(_keep_generated)

    @property
    def elements(self) -> tuple[int, ...]:
        return self.species.elements

    @property
    def dtype(self) -> torch.dtype:
        """That the raw module computes in."""
        return next(self.module.parameters()).dtype

    def set_precision(self, precision: str) -> None:
        """Cast the raw module, parameters and floating-point buffers alike: it mixes the two."""
        self.module.to(DTYPES[precision])


# e3nn generates code for its products, whose constants may count as tensors of the module: whether they do
# depends on a switch of e3nn's that other packages turn (importing NequIP does). They are no part of a model.
_GENERATED = "._compiled_main"


def _leave_out_generated(module: nn.Module, tensors: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in tensors if name.startswith(prefix) and _GENERATED in name]:
        del tensors[name]


def _keep_generated(module: nn.Module, tensors: dict[str, Any], prefix: str, *_: Any) -> None:
    """Files may lack constants of this module's generated code, or hold some it does not have."""
    _leave_out_generated(module, tensors, prefix, None)
    tensors.update(
        (prefix + name, tensor.detach()) for name, tensor in _all_tensors(module) if _GENERATED in name
    )


def _all_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Modules made inside take this as torch's default; what it was is put back."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def environment_variable(name: str, value: str | None) -> Iterator[None]:
    """The variable has this value inside (None: it is not set); what it was is put back."""
    before = os.environ.get(name)

    def put(text: str | None) -> None:
        if text is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = text

    put(value)
    try:
        yield
    finally:
        put(before)


@contextmanager
def without_warnings(*beginnings: str) -> Iterator[None]:
    """Warnings that begin so are not shown inside: other programs' own, which no user can mend."""
    with warnings.catch_warnings():
        for beginning in beginnings:
            warnings.filterwarnings("ignore", message=re.escape(beginning))
        yield


def require_version(package: str, minimum: str) -> None:
    """Refuse a package that is older than what the adapter was made for.

    Args:
        minimum: as ``0.3.16``.

    Raises:
        UserError: naming both versions and the way to upgrade.
    """
    found = version(package)
    if _numbers(found) < _numbers(minimum):
        raise UserError(
            f"{package} {found} is too old: dyntrain needs {minimum} or newer; "
            f'pip install --upgrade "{package}>={minimum}"'
        )


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])
