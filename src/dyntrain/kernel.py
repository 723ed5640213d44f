"""Loops compiled for the CPU by numba (extra ``fast``): when they are used, and how they are compiled."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

MOST_THREADS = 8
"""Up to which compiled loops, which run on one thread, are taken: PyTorch's operations use them all."""


def is_of_use(like: Tensor) -> bool:
    """Whether compiled loops work on such tensors: the CPU's, few threads, and numba is there."""
    return like.device.type == "cpu" and torch.get_num_threads() <= MOST_THREADS and is_installed()


@cache
def is_installed() -> bool:
    """Whether numba is there."""
    return find_spec("numba") is not None


def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Sums in any order, for vector instructions, but nothing that would let NaN and infinity pass unseen.

    A kernel makes no array of its own. So numba need not count who uses one (``_nrt`` is its switch for it),
    which took up to half of the time where it was done for each row or pair.
    """
    return _compiled(kernel, fastmath=_ANY_ORDER, _nrt=False)


def compiled_for_sizes(make: Callable[..., Callable[..., Any]]) -> Callable[..., Callable[..., Any]]:
    """``compiled`` for a kernel that is compiled anew for sizes: ``make(*sizes)`` gives it.

    For a loop over parts of rows to become vector instructions, none may overlap another. Where the parts
    begin at constants, a few comparisons of addresses show that; else it takes too many, and is not done.
    """

    @cache
    def compiled_for(*sizes: int) -> Callable[..., Any]:
        return compiled(make(*sizes))

    return compiled_for


def compiled_part(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function for kernels to call: it becomes a part of each of them, sizes that are constant there too.

    Numba keeps a kernel on disk until its own file changes: who changes a part in another one, deletes the
    compiled kernels (``make clean-kernels``).
    """
    from numba import njit

    options: dict[str, Any] = {"fastmath": _ANY_ORDER, "error_model": "numpy", "_nrt": False}
    return njit(forceinline=True, **options)(function)


def compiled_with_arrays(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The same for one that makes arrays."""
    return _compiled(kernel, fastmath=_ANY_ORDER)


def compiled_as_written(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Every operation by itself and in its order, rounded as NumPy and PyTorch do; it may make arrays."""
    return _compiled(kernel, fastmath=set())


_ANY_ORDER = {"reassoc", "contract", "arcp", "nsz"}


def _compiled(kernel: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    from numba import njit

    options["error_model"] = "numpy"
    try:
        return njit(cache=True, **options)(kernel)
    except RuntimeError:  # no folder to keep it in: compiled anew in each process
        return njit(**options)(kernel)


def reads(*tensors: Tensor) -> list[Any]:
    """NumPy's arrays of tensors that a kernel reads, C-contiguous: copies where it takes them."""
    return [_detached(tensor).contiguous().numpy() for tensor in tensors]


def writes(*tensors: Tensor) -> list[Any]:
    """NumPy's views of tensors that a kernel changes.

    Raises:
        ValueError: one of them is not contiguous, so that the kernel would change a copy, or be slow.
    """
    if not all(tensor.is_contiguous() for tensor in tensors):
        raise ValueError("a kernel can only write to contiguous tensors")
    return [_detached(tensor).numpy() for tensor in tensors]


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach() if tensor.requires_grad else tensor
