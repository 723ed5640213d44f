"""Molecular dynamics with a potential, batched and without gradient: starts, the run, its files."""

from dyntrain.simulate.bursts import Burst, atom_name
from dyntrain.simulate.checkpoint import checkpoint_path, fingerprint, load_checkpoint, save_checkpoint
from dyntrain.simulate.files import TrajectoryFiles, TrajectoryWriter, frame_to_ase, trajectory_paths
from dyntrain.simulate.motion import (
    degrees_of_freedom,
    draw_velocities,
    internal_temperature,
    without_rigid_motion,
)
from dyntrain.simulate.run import RunState, Simulation, device_of, simulate
from dyntrain.simulate.start import Start, check_start, largest_forces

__all__ = [
    "Burst",
    "RunState",
    "Simulation",
    "Start",
    "TrajectoryFiles",
    "TrajectoryWriter",
    "atom_name",
    "check_start",
    "checkpoint_path",
    "degrees_of_freedom",
    "device_of",
    "draw_velocities",
    "fingerprint",
    "frame_to_ase",
    "internal_temperature",
    "largest_forces",
    "load_checkpoint",
    "save_checkpoint",
    "simulate",
    "trajectory_paths",
    "without_rigid_motion",
]
