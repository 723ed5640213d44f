"""A committee of networks of the same data: where their forces differ, the data do not say what they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from dyntrain.evaluate import Progress
from dyntrain.evaluate.free import Motion
from dyntrain.neighbors import VerletNeighbors
from dyntrain.observables import FloatArray
from dyntrain.potential import Potential
from dyntrain.simulate import device_of

SHARE = 0.25
"""What a further member's training costs, as a share of the model's: members only have to be independent."""

_EVERY_FS = 10.0
"""Forces of one vibration are compared once or more often: what is sought lasts longer."""


@dataclass(frozen=True, eq=False)
class Doubt:
    """How far the forces of a committee lie apart along free runs.

    times_fs:  [n_times]
    spread:    [n_times, n_runs] eV/Å, of the atom that they differ most on; NaN where a run had failed
    n_members: networks, the model itself among them
    """

    times_fs: FloatArray
    spread: FloatArray
    n_members: int


@torch.no_grad()
def disagreement(members: Sequence[Potential], motion: Motion, progress: Progress | None = None) -> Doubt:
    """Spread of the members' forces along free runs: sqrt(mean over members of |F − mean F|²) of the atom
    where it is largest (the model deviation of DP-GEN: Zhang et al., Phys. Rev. Mater. 3, 023804, 2019).

    Args:
        members: at least two, on one device.
        progress: called after each time.
    """
    device = device_of(members[0])
    starts = motion.starts.to(device)
    spacing = float(motion.times_fs[1] - motion.times_fs[0]) if len(motion.times_fs) > 1 else _EVERY_FS
    kept = list(range(0, len(motion.times_fs), max(1, round(_EVERY_FS / spacing))))
    neighbors = [VerletNeighbors(member.cutoff) for member in members]
    spread = np.full((len(kept), starts.n_systems), np.nan)
    for row, place in enumerate(kept):
        whole = np.flatnonzero(motion.whole[place]).tolist()
        if not whole:
            break
        now = starts.replace(positions=torch.from_numpy(motion.positions[place]).to(starts.positions))
        now = now if len(whole) == starts.n_systems else now.select(whole)
        forces = torch.stack(
            [member(now, near(now)).forces for member, near in zip(members, neighbors, strict=True)]
        )
        apart = (forces - forces.mean(0)).square().sum(-1).mean(0).sqrt()
        largest = apart.new_zeros(now.n_systems).scatter_reduce_(0, now.system_idx, apart, "amax")
        spread[row, whole] = largest.cpu().numpy()
        if progress is not None:
            progress(row + 1, len(kept))
    return Doubt(motion.times_fs[kept], spread, len(members))
