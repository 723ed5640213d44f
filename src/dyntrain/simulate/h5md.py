"""Runs as H5MD: frames gathered in a plain file, which a kill cannot damage, and stored when the run ends."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np

from dyntrain.data.store import write_store
from dyntrain.data.trajectory import FloatArray, Trajectory
from dyntrain.rollout import Frame
from dyntrain.simulate.partial import Mark, PartialFile
from dyntrain.state import State

# Frames are copied in pieces of about this many numbers (8 MB).
_PIECE = 1_000_000


class H5mdWriter:
    """Writes all systems of a run to one H5MD file that ``dyntrain`` reads back, a particle group a system.

    ``<name>.partial`` holds, frame by frame, float64: energies [n_systems], positions, velocities, forces
    [n_atoms, 3] each, NaN for systems that have burst. A system with less than two frames is left out.

    Args:
        path: the file.
        start: the batch.
        interval: time between frames, ASE time.
        mark: of an earlier writer's partial file, which is cut back to it and gone on with.
    """

    def __init__(self, path: Path, start: State, interval: float, mark: Mark | None = None) -> None:
        self.path, self._start, self._interval = path, start, interval
        self._partial = PartialFile(path, mark)
        self.n_written = 0 if mark is None else mark.n_written
        self._file = self._partial.partial.open("ab")

    def write(self, frame: Frame) -> None:
        """Append one frame."""
        record = np.full(self._width(), np.nan)
        energies, vectors = self._parts(record)
        energies[frame.systems.cpu().numpy()] = frame.prediction.energy.cpu().numpy()
        atoms = self._start.atoms_of(frame.systems).cpu().numpy()
        for place, values in enumerate(
            (frame.state.positions, frame.state.velocities, frame.prediction.forces)
        ):
            vectors[place, atoms] = values.detach().cpu().numpy()
        self._file.write(record.data)  # numpy's tofile does not notice a disk that is full
        self._file.flush()
        self.n_written += 1

    def _width(self) -> int:
        return self._start.n_systems + 9 * self._start.n_atoms

    def _parts(self, records: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Views [..., n_systems] and [..., 3, n_atoms, 3] of records [..., width]."""
        n_systems = self._start.n_systems
        vectors = records[..., n_systems:].reshape(*records.shape[:-1], 3, self._start.n_atoms, 3)
        return records[..., :n_systems], vectors

    def mark(self) -> Mark:
        """Where the file stands; what was written before it is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._partial.mark(self.n_written)

    def close(self, finished: bool) -> None:
        """Make the H5MD file if the run is finished."""
        try:
            self._file.close()
        except OSError:
            self._partial.release()
            raise
        if not finished:
            self._partial.release()
            return
        if self.n_written:
            records = np.memmap(
                self._partial.partial, dtype=np.float64, mode="r", shape=(self.n_written, self._width())
            )
            # The store takes whole arrays: each in a file of its own they need no memory.
            with tempfile.TemporaryDirectory(dir=self.path.parent, prefix=f".{self.path.name}.") as folder:
                runs = [self._run(records, n, Path(folder)) for n in range(self._start.n_systems)]
                if kept := [run for run in runs if run is not None]:
                    write_store(kept, self.path)
                else:
                    self.n_written = 0
        self._partial.finish(0)

    def _run(self, records: FloatArray, system: int, folder: Path) -> Trajectory | None:
        energies, vectors = self._parts(records)
        n_frames = int(np.isfinite(energies[:, system]).sum())
        if n_frames < 2:
            return None
        one = self._start.select([system]).to("cpu")
        first = int((self._start.system_idx < system).sum())
        atoms = slice(first, first + one.n_atoms)
        arrays = []
        for place in range(3):
            file = folder / f"{system}.{place}"
            arrays.append(np.memmap(file, dtype=np.float64, mode="w+", shape=(n_frames, one.n_atoms, 3)))
            piece = max(1, _PIECE // (3 * one.n_atoms))
            for begin in range(0, n_frames, piece):
                end = min(n_frames, begin + piece)
                arrays[place][begin:end] = vectors[begin:end, place, atoms]
        positions, velocities, forces = arrays
        return Trajectory(
            positions=positions,
            velocities=velocities,
            forces=forces,
            energies=np.array(energies[:n_frames, system]),
            cell=one.cell[0].numpy(),
            pbc=one.pbc[0].numpy(),
            atomic_numbers=one.atomic_numbers.numpy(),
            masses=one.masses.numpy(),
            dt=self._interval,
            file=self.path.name,
            reader="dyntrain md",
            notes=(f"System {system} of a run of dyntrain md.",),
            fixed_atoms=() if one.fixed is None else tuple(one.fixed.nonzero().squeeze(1).tolist()),
        )
