"""Times as a configuration writes them: 5m on the clock, 1ps of motion."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: Any) -> float:
    """``90s``, ``5m``, ``2h``, ``1.5h`` or ``1d`` in seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"a time is a number with s, m, h or d behind it (90s, 5m, 2h), got {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def _checked_time(text: Any) -> str:
    seconds(text)
    return str(text)


Duration = Annotated[str, BeforeValidator(_checked_time)]

_FEMTOSECONDS = {"fs": 1.0, "ps": 1e3, "ns": 1e6}


def femtoseconds(text: Any) -> float:
    """``500fs``, ``1ps``, ``1.5 ps`` or ``1ns`` in fs."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(fs|ps|ns)\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise ValueError(
            f"a time of motion is a number with fs, ps or ns behind it (500fs, 1ps), got {text!r}"
        )
    return float(match[1]) * _FEMTOSECONDS[match[2]]


def _checked_motion_time(text: Any) -> str:
    femtoseconds(text)
    return str(text)


MotionTime = Annotated[str, BeforeValidator(_checked_motion_time)]
