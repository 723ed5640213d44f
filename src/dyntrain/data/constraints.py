"""Constraints: what holds or carries a run's atoms beside forces: rigid bonds, a changing cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from dyntrain.data.motion import common_directions, moving_atoms, orthonormal, remove, strains
from dyntrain.data.trajectory import FloatArray, IntArray, Trajectory
from dyntrain.neighbors import neighbor_list

# Constrained are bonds and the sides of small rigid molecules (H–H of water); nothing longer than this, Å.
_LONGEST_RIGID = 2.0
# A distance is rigid if it varies by less than this share of itself (SHAKE's tolerances are smaller) …
_RIGID = 1e-3
# … and by less than this share of how far its vector turns: at low temperature everything varies little.
_RIGID_AGAINST_TURNING = 0.005
_FEWEST_FRAMES, _SAMPLED_FRAMES = 20, 200


@dataclass(frozen=True, eq=False)
class Held:
    """How the atoms of a run are held, seen from their positions.

    atoms:    those that move at all, [n_moving].
    free:     which of their coordinates move, bool [n_moving, 3].
    rigid:    pairs of moving atoms (numbered within `atoms`) at a constant distance, [n_rigid, 2].
    images:   lattice vectors that complete r_j − r_i to that distance, [n_rigid, 3] Å.
    strained: whether the cell changes, so that a barostat may scale the positions.
    centred:  whether all atoms are free, so that the run may remove the motion of the centre of mass.
    """

    atoms: IntArray
    free: np.ndarray
    rigid: IntArray
    images: FloatArray
    strained: bool
    centred: bool

    @property
    def partly_fixed(self) -> IntArray:
        """Atoms that move along some Cartesian directions only."""
        return np.asarray(self.atoms[~self.free.all(axis=1)])

    @property
    def is_special(self) -> bool:
        """Whether plain velocity Verlet with the forces cannot describe the motion."""
        return bool(self.strained or len(self.rigid) or not self.free.all())

    def projection(self, r: FloatArray, root_masses: FloatArray, *others: FloatArray) -> Projection:
        """What removes all that constraints (and the other directions) can do from mass-weighted arrays.

        Args:
            r: positions of the moving atoms in the frames concerned, [n, n_moving, 3] Å.
            root_masses: [n_moving, 1].
            others: more directions to remove, mass-weighted [n, n_moving, 3].
        """
        groups = self._rigid_directions(r, root_masses)
        held = Projection(groups, None, self.free)
        directions = common_directions(root_masses) if self.centred else []
        if self.strained:
            directions += strains(r, root_masses)
        rest = [held(np.broadcast_to(d, r.shape)) for d in (*directions, *others)]
        return Projection(groups, orthonormal(*rest) if rest else None, self.free)

    def _rigid_directions(self, r: FloatArray, root: FloatArray) -> list[tuple[IntArray, FloatArray]]:
        """For each group of atoms held together: the atoms and the directions of the constraints' forces."""
        if not len(self.rigid):
            return []
        links = coo_matrix((np.ones(len(self.rigid)), self.rigid.T), shape=(len(self.atoms),) * 2)
        _, labels = connected_components(links, directed=False)
        group_of_pair = labels[self.rigid[:, 0]]
        found = []
        for label in np.unique(group_of_pair):
            members = np.flatnonzero(labels == label)
            rows = []
            for pair in np.flatnonzero(group_of_pair == label):
                i, j = self.rigid[pair]
                vector = r[:, j] - r[:, i] + self.images[pair]
                row = np.zeros((r.shape[0], members.size, 3))
                row[:, np.searchsorted(members, i)] = -vector / root[i]
                row[:, np.searchsorted(members, j)] = vector / root[j]
                rows.append(row)
            found.append((members, orthonormal(*rows)))
        return found


@dataclass(frozen=True, eq=False)
class Projection:
    """Removes directions from mass-weighted arrays [n, n_moving, 3]; see ``Held.projection``."""

    groups: list[tuple[IntArray, FloatArray]]
    common: FloatArray | None
    free: np.ndarray

    def __call__(self, x: FloatArray) -> FloatArray:
        x = np.where(self.free, x, 0.0)
        for members, directions in self.groups:
            x[:, members] = remove(x[:, members], directions)
        return x if self.common is None else remove(x, self.common)


def find_held(run: Trajectory) -> Held:
    """How the atoms of a run are held."""
    atoms = moving_atoms(run.positions)
    free = (np.ptp(run.positions[:, atoms], axis=0) > 0) if atoms.size else np.empty((0, 3), bool)
    rigid, images = _rigid_pairs(run, atoms)
    everything = atoms.size == run.n_atoms and bool(free.all())
    return Held(atoms, free, rigid, images, not run.fixed_cell, everything)


def _rigid_pairs(run: Trajectory, atoms: IntArray) -> tuple[IntArray, FloatArray]:
    none = np.empty((0, 2), np.int64), np.empty((0, 3))
    if run.n_frames < _FEWEST_FRAMES or atoms.size < 2:
        return none
    pairs = neighbor_list(run.state(0), _LONGEST_RIGID)
    i, j, shifts = (x.numpy() for x in (pairs.i, pairs.j, pairs.shifts))
    moving = np.zeros(run.n_atoms, bool)
    moving[atoms] = True
    kept = moving[i] & moving[j] & (i < j)
    i, j, images = i[kept], j[kept], shifts[kept] @ run.cell_at(0)
    if not i.size:
        return none
    chosen = np.unique(np.linspace(0, run.n_frames - 1, _SAMPLED_FRAMES).astype(int))
    vectors = run.positions[np.ix_(chosen, j)] - run.positions[np.ix_(chosen, i)] + images
    length = np.linalg.norm(vectors, axis=2)
    varies, turns = np.ptp(length, axis=0), np.linalg.norm(vectors - vectors[0], axis=2).max(0)
    rigid = (varies < _RIGID * length.mean(0)) & (varies < _RIGID_AGAINST_TURNING * turns)
    number = np.full(run.n_atoms, -1, np.int64)
    number[atoms] = np.arange(atoms.size)
    return np.stack([number[i[rigid]], number[j[rigid]]], axis=1), images[rigid]
