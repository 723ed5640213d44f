"""A quick fuzz of all readers; `python tests/fuzz_readers.py` does thousands and repeats one by its seed."""

from __future__ import annotations

import pytest

from fuzz_readers import FORMATS, fuzz


def test_damaged_files_are_refused_told_of_or_harmless() -> None:
    _, wrong = fuzz(12 * len(FORMATS), seed=0)
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
def test_two_thousand_damaged_files() -> None:
    _, wrong = fuzz(2000, seed=10_000)
    assert not wrong, "\n".join(wrong)
