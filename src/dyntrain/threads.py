"""How many CPU threads a batch is worth, and what a process does with memory it has freed."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import torch

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""glibc's numbers of the options (malloc.h)."""
_LARGEST_MMAP_THRESHOLD = 32 * 1024**2
_USUAL_TOP_PAD = 128 * 1024
_KEPT = 1024**3
_RESERVED = 1024**3
_MADV_HUGEPAGE = 14
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
    """Let the C library keep freed memory (up to 1 GiB) for the next tensors, in large pages.

    Each step of a training or of MD takes and frees the same megabytes; handed back to the system, they
    come again as new pages that it has to clear: a quarter of a training step. And small pages are looked
    up again and again: a tenth, on a virtual machine. What the user has set in the environment (MALLOC_…,
    GLIBC_TUNABLES) stays.

    Returns:
        Whether the C library was told: glibc is, others know nothing of it.
    """
    global _keeps
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return False
    if not _keeps:
        # What is reserved but not yet used counts as freed.
        kept = libc.mallopt(_TRIM_THRESHOLD, _KEPT + _RESERVED - 1)
        _keeps = bool(libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD) and kept)
        _reserve_large_pages(libc)
    return _keeps


def _reserve_large_pages(libc: ctypes.CDLL) -> None:
    """Make the heap longer by 1 GiB of addresses, and ask Linux for pages of 2 MiB once they are used.

    Where it cannot be had (another system, a limit on addresses) all stays as it was.
    """
    if not hasattr(libc, "madvise"):
        return
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.mallopt(_TOP_PAD, _RESERVED)
    libc.free(libc.malloc(_LARGEST_MMAP_THRESHOLD - 4096))
    libc.mallopt(_TOP_PAD, _USUAL_TOP_PAD)
    try:
        maps = Path("/proc/self/maps").read_text(encoding="ascii", errors="replace")
    except OSError:
        return
    for start, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) .*\[heap\]$", maps, re.MULTILINE):
        length = int(end, 16) - int(start, 16)
        libc.madvise(ctypes.c_void_p(int(start, 16)), ctypes.c_size_t(length), _MADV_HUGEPAGE)


def return_freed_memory() -> None:
    """Hand the holes in the heap back to the system, where ``keep_freed_memory`` had it keep them.

    Arrays whose sizes change a little from step to step do not fit into the holes that others left: over
    some hundred steps a third more memory than is ever in use at once.
    """
    if _keeps:
        libc = ctypes.CDLL(None)
        libc.malloc_trim(0)
        _reserve_large_pages(libc)
