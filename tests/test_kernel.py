"""Compiled loops: when they are used."""

from __future__ import annotations

import pytest
import torch

from dyntrain import kernel


def test_on_few_threads_of_a_cpu() -> None:
    pytest.importorskip("numba")
    threads, like = torch.get_num_threads(), torch.zeros(1)
    assert kernel.is_of_use(like)
    assert not kernel.is_of_use(like.to("meta"))
    try:
        torch.set_num_threads(kernel.MOST_THREADS + 1)
        assert not kernel.is_of_use(like)
    finally:
        torch.set_num_threads(threads)


def test_not_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel, "find_spec", lambda name: None)
    kernel.is_installed.cache_clear()
    try:
        assert not kernel.is_of_use(torch.zeros(1))
    finally:
        kernel.is_installed.cache_clear()


def test_a_kernel_that_cannot_be_kept_is_compiled_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither the package's folder nor the user's can be written to, numba refuses to cache."""
    numba = pytest.importorskip("numba")

    def refusing(*, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba, "njit", refusing)
    assert kernel.compiled(len) is len


def test_a_kernel_writes_to_no_copy() -> None:
    rows = torch.zeros(3, 2)
    kernel.writes(rows)[0][1, 0] = 1.0
    assert rows[1, 0] == 1.0
    with pytest.raises(ValueError, match="contiguous"):
        kernel.writes(rows.T)
    assert kernel.reads(rows.T)[0].flags.c_contiguous
