"""Plain XYZ: frames of labels and three columns, as CP2K and i-PI write positions, velocities and forces."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dyntrain.data.formats.text import reading
from dyntrain.data.trajectory import FloatArray
from dyntrain.errors import UserError


@dataclass(frozen=True)
class XyzFrames:
    """comments: one a frame; labels: [n_atoms]; values: [n_frames, n_atoms, 3] in the file's unit."""

    comments: list[str]
    labels: list[str]
    values: FloatArray
    cut: bool


def read_xyz(file: Path) -> XyzFrames:
    """Read all complete frames.

    Raises:
        UserError: damaged content, or atoms that change.
    """
    comments: list[str] = []
    labels: list[str] = []
    frames: list[FloatArray] = []
    cut = False
    with reading(file, "an XYZ file") as lines:
        for head in lines:
            if not head.strip():
                continue
            n_atoms = int(head)
            if not 0 < n_atoms < 10_000_000 or (labels and n_atoms != len(labels)):
                raise UserError(
                    f"{file}, line {lines.number}: {n_atoms} atoms, expected {len(labels) or 'some'}."
                )
            rows = lines.take(n_atoms + 1)
            if rows is None:
                cut = True
                break
            words = [row.split() for row in rows[1:]]
            names = [word[0] for word in words]
            if not labels:
                labels = names
            if names != labels:
                raise UserError(f"{file}, frame {len(frames)}: the atoms differ from those of frame 0.")
            frames.append(np.array([word[1:4] for word in words], dtype=np.float64).reshape(n_atoms, 3))
            comments.append(rows[0])
        cut = cut or lines.cut
    if not frames:
        raise UserError(f"{file} holds no complete frame.")
    return XyzFrames(comments, labels, np.stack(frames), cut)
