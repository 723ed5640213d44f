"""Threads for a batch, and memory that is kept."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import pytest
import torch

from dyntrain.threads import keep_freed_memory, limit_threads, return_freed_memory


def test_small_batches_get_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    limit_threads(9)
    limit_threads(10_000)
    assert chosen == [1]
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    limit_threads(9)
    assert chosen == [1]


def test_what_the_user_set_for_the_allocator_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1")
    assert not keep_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_glibc_is_told_to_keep_what_was_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    assert keep_freed_memory()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="reads Linux's /proc, trims glibc's heap")
def test_holes_in_the_heap_are_handed_back() -> None:
    def resident_pages() -> int:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])

    assert keep_freed_memory()
    # Freed between others that stay: a hole, which no lowering of the heap's end gives back.
    arrays = [torch.ones(250_000) for _ in range(64)]
    del arrays[::2]
    before = resident_pages()
    return_freed_memory()
    assert before - resident_pages() > 16 * 10**6 // os.sysconf("SC_PAGE_SIZE")
