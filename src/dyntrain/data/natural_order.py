"""Natural order: numbers in names count as numbers, so that run_2 stands before run_10."""

from __future__ import annotations

import re


def natural_order(name: object) -> list[tuple[int, int | str]]:
    """What to sort names (or paths) by."""
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", str(name)) if p]
