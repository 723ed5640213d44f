"""Stride: how many steps of velocity Verlet lie between the saved frames, as far as the motion tells."""

from __future__ import annotations

import numpy as np

from dyntrain.data.constraints import Held
from dyntrain.data.motion import second_difference
from dyntrain.data.thermostat import inner_frames
from dyntrain.data.trajectory import FloatArray, Trajectory

_LARGEST = 6
# A stride is told where all others leave at least this many times more of the motion unexplained.
_CLEARLY = 2.0
_ORDER = 3


def estimate_stride(run: Trajectory, held: Held) -> int | None:
    """n where every n-th step was saved and n can be told, else None.

    For a mode that n steps of velocity Verlet turn by nφ between frames, δ²F = −s F with s = 2 − 2 cos nφ and
    δ²r = H² F/m · s / [n² (2 − 2 cos φ)]. That ratio, a polynomial in s, is one in δ² for all modes together:
    each n has its own, and the one that fits is n.
    """
    frames = inner_frames(run)
    centres = frames[np.isin(frames - (_ORDER - 1), frames) & np.isin(frames + (_ORDER - 1), frames)]
    if centres.size < 20 or not held.atoms.size:
        return None
    root = np.sqrt(run.masses[held.atoms])[:, None]
    r = run.positions[:, held.atoms]
    leave_out = held.projection(r[centres], root, root * (r[centres + 1] - r[centres - 1]))
    left = leave_out(root * (r[centres + 1] - 2 * r[centres] + r[centres - 1]))
    powers, pulls = [], run.forces[:, held.atoms] / root
    for order in range(_ORDER + 1):
        powers.append(leave_out(pulls[centres - order]))
        pulls = second_difference(pulls)
    unexplained = []
    for n in range(1, _LARGEST + 1):
        right = sum(c * (-1) ** k * power for k, (c, power) in enumerate(zip(_ratio(n), powers, strict=True)))
        squared = float((left * right).sum() / (right * right).sum())
        unexplained.append(float(np.linalg.norm(left - squared * right)))
    best = int(np.argmin(unexplained))
    others = unexplained[:best] + unexplained[best + 1 :]
    return best + 1 if min(others) > _CLEARLY * unexplained[best] else None


def _ratio(n: int) -> FloatArray:
    """Coefficients in s of s / [n² (2 − 2 cos φ)] with s = 2 − 2 cos nφ, for s up to 2 (a quarter turn)."""
    s = 1 - np.cos(np.pi * (np.arange(1, 33) - 0.5) / 32)
    ratio = s / (n**2 * (2 - 2 * np.cos(np.arccos(1 - s / 2) / n)))
    higher = np.linalg.lstsq(s[:, None] ** np.arange(1, _ORDER + 1), ratio - 1, rcond=None)[0]
    return np.concatenate([[1.0], higher])
