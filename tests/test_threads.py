"""Threads for a batch, and memory that is kept."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
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


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not Path("/sys/kernel/mm/transparent_hugepage").exists(),
    reason="asks Linux for large pages of glibc's heap",
)
def test_the_heap_has_large_pages() -> None:
    assert keep_freed_memory()
    mapped = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    heap = mapped[mapped.index("[heap]") :]
    assert "hg" in heap[heap.index("VmFlags:") :].splitlines()[0].split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="limits addresses as Linux does")
def test_a_limit_on_addresses_leaves_the_heap_as_it_was() -> None:
    script = """
import resource
import torch
from dyntrain.threads import keep_freed_memory, return_freed_memory
size = 1024 * int(open("/proc/self/status").read().split("VmSize:")[1].split()[0])
resource.setrlimit(resource.RLIMIT_AS, (size + 512 * 1024**2,) * 2)
keep_freed_memory()
return_freed_memory()
print(float(torch.ones(1_000_000).sum()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1000000.0"
