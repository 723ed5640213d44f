"""Files appear whole or not at all, and a full disk is told in a sentence."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dyntrain.atomic import atomic_path, write_text
from dyntrain.errors import UserError


@pytest.fixture
def small_files_only() -> Iterator[None]:
    """No file may grow beyond 16 kB: what follows fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16384, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.usefixtures("small_files_only")
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    for name in ("model.pt", "numbers.json"):
        (tmp_path / name).write_text("before")
    full = pytest.raises(UserError, match=r"cannot write .*model\.pt: the disk is full")
    with full, atomic_path(tmp_path / "model.pt") as part:
        torch.save(torch.zeros(100_000), part)
    with pytest.raises(UserError, match=r"cannot write .*numbers\.json: File too large"):
        write_text(tmp_path / "numbers.json", "x" * 100_000)
    assert sorted(path.read_text() for path in tmp_path.iterdir()) == ["before", "before"]


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a defect"), atomic_path(tmp_path / "model.pt") as part:
        part.write_text("half")
        raise RuntimeError("a defect")
    assert not list(tmp_path.iterdir())
