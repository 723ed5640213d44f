"""How many CPU threads a batch is worth, and what a process does with memory it has freed."""

from __future__ import annotations

import ctypes
import os

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's numbers of the two options (malloc.h)."""
_LARGEST_MMAP_THRESHOLD = 32 * 1024**2
_KEPT = 1024**3
_keeps = False


def limit_threads(n_atoms: int) -> None:
    """Use one CPU thread for batches of few atoms, unless the user has set OMP_NUM_THREADS.

    Below a few hundred atoms threads mostly wait for each other; where other work shares the cores, an
    ethanol run on two threads was 40 times slower than on one.
    """
    if n_atoms <= 256 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory (up to 1 GiB) for the next tensors instead of returning it.

    Each step of a training or of MD takes and frees the same megabytes; handed back to the system, they
    come again as new pages that it has to clear: a quarter of a training step. What the user has set in the
    environment (MALLOC_…) stays.

    Returns:
        Whether the C library was told: glibc is, others know nothing of it.
    """
    global _keeps
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        return False
    _keeps = bool(mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and mallopt(_TRIM_THRESHOLD, _KEPT))
    return _keeps


def return_freed_memory() -> None:
    """Hand the holes in the heap back to the system, where ``keep_freed_memory`` had it keep them.

    Arrays whose sizes change a little from step to step do not fit into the holes that others left: over
    some hundred steps a third more memory than is ever in use at once.
    """
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)
