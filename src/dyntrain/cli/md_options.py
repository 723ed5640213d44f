"""The options of `dyntrain md`, and the systems that they ask for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dyntrain.errors import UserError

if TYPE_CHECKING:
    import torch
    from ase import Atoms

    from dyntrain.state import State


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """What the system refuses while a run writes its frames, as one sentence.

    Raises:
        UserError: a full disk, a quota, a folder that has gone.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write {output}: {error.strerror or error}; what was written is in its .partial files, "
            "and the same command goes on from the last checkpoint, if there is one"
        ) from error


ENSEMBLES = ("nve", "langevin", "csvr", "nose-hoover", "npt")


@dataclass(frozen=True)
class Options:
    """What the command line said; ``temperatures`` is empty where velocities come from the files."""

    model: Path
    starts: tuple[Path, ...]
    steps: int
    output: Path
    dt: float
    every: int
    temperatures: tuple[float, ...]
    copies: int
    seed: int
    ensemble: str
    time_constant: float
    pressure: float
    keep_velocities: bool
    checkpoint_every: float
    restart: bool
    trust: bool = False

    def check(self) -> None:
        """Refuse what no structure is needed to refuse.

        Raises:
            UserError: naming the option.
        """
        if not 0 < self.dt < 100:
            raise UserError(f"--dt must be a time step in fs between 0 and 100, got {self.dt:g}")
        if self.ensemble not in ENSEMBLES:
            raise UserError(f"--ensemble must be one of {', '.join(ENSEMBLES)}, got {self.ensemble!r}")
        for temperature in self.temperatures:
            if not 0 <= temperature < 1e5:
                raise UserError(f"--temperature must lie between 0 and 100000 K, got {temperature:g}")
            if temperature == 0 and self.ensemble != "nve":
                raise UserError(f"--ensemble {self.ensemble} needs a --temperature above 0 K")
        if self.ensemble != "nve" and not self.temperatures:
            raise UserError(f"--ensemble {self.ensemble} needs a --temperature (in K)")
        if not self.dt < self.time_constant < 1e6:
            raise UserError(
                f"--time-constant must be longer than --dt ({self.dt:g} fs) and below 1e6 fs, "
                f"got {self.time_constant:g}"
            )
        if self.keep_velocities and self.ensemble == "nve":
            raise UserError("--keep-velocities is for thermostats: in NVE leave --temperature out instead")
        if self.pressure and self.ensemble != "npt":
            raise UserError(f"--pressure needs --ensemble npt, got --ensemble {self.ensemble}")
        if self.output.suffix in (".h5md", ".h5") and self.every > self.steps:
            raise UserError(
                f"{self.output} would hold one frame alone, for H5MD has those at equal intervals only: with "
                f"--steps {self.steps}, --every must be at most {self.steps}, got {self.every}"
            )
        if self.copies > 1 and not self.temperatures:
            raise UserError(
                "--copies without --temperature would run the same motion several times: give a "
                "--temperature to draw velocities from"
            )

    def check_outputs(self, paths: Sequence[Path]) -> None:
        """Refuse trajectories that would replace a start, with --restart too.

        Raises:
            UserError: naming the file.
        """
        for path in paths:
            if path.exists() and any(path.samefile(start) for start in self.starts):
                raise UserError(
                    f"{path} is a start of this run and would be replaced: choose another --output"
                )

    def settings(self) -> dict[str, Any]:
        """What a run that goes on must have alike, by the name of its option."""
        from dyntrain.simulate import fingerprint

        return {
            "MODEL": f"SHA-256 {fingerprint(self.model)[:16]}",
            "START": [f"{path.name} {fingerprint(path)[:16]}" for path in self.starts],
            "--dt": self.dt,
            "--every": self.every,
            "--temperature": list(self.temperatures),
            "--copies": self.copies,
            "--seed": self.seed,
            "--ensemble": self.ensemble,
            "--time-constant": self.time_constant,
            "--keep-velocities": self.keep_velocities,
        }


@dataclass(frozen=True, eq=False)
class System:
    """One system of the batch: its start, its seed, and its temperature (None: none was given)."""

    label: str
    state: State
    seed: int
    temperature: float | None


def read_systems(options: Options) -> list[System]:
    """Every start at every temperature, ``copies`` times, in this order.

    Raises:
        UserError: a file that holds no start.
    """
    from dyntrain.simulate import draw_velocities, without_rigid_motion

    systems: list[System] = []
    for path in options.starts:
        read = read_start(path)
        drawn = bool(options.temperatures) and not options.keep_velocities
        if not drawn and not bool(read.velocities.any()):
            raise UserError(
                f"{path} holds no velocities: draw them with --temperature (in K; 0 starts at rest), or give "
                "a file with velocities or momenta"
            )
        for temperature in options.temperatures or (None,):
            for _ in range(options.copies):
                seed = options.seed + len(systems)
                if drawn and temperature is not None:
                    state = draw_velocities(read, temperature, seed)
                elif options.ensemble in ("csvr", "nose-hoover"):
                    state = without_rigid_motion(read)
                else:
                    state = read
                label = str(path) if temperature is None else f"{path}, {temperature:g} K, seed {seed}"
                systems.append(System(label, state, seed, temperature))
    return systems


def read_start(path: Path) -> State:
    """The last frame of a structure file; atoms fixed by ASE's FixAtoms are fixed.

    Raises:
        UserError: not there, not readable, no atoms, another constraint, or no atom that can move.
    """
    import torch

    from dyntrain.state import State

    atoms = _read_atoms(path)
    state = State.from_ase(atoms)
    fixed = _fixed_atoms(atoms, path)
    if fixed is None:
        return state
    still = torch.where(fixed[:, None], 0.0, state.velocities)
    return state.replace(fixed=fixed, velocities=still)


def _read_atoms(path: Path) -> Atoms:
    import ase.io

    if not path.is_file():
        raise UserError(f"{path} is not there (a structure file was expected): check the path")
    try:
        atoms = ase.io.read(path, index=-1)
    except Exception as error:  # ASE's readers raise anything
        raise UserError(
            f"{path} cannot be read as a structure ({type(error).__name__}: {error}): give a file that "
            "ASE reads"
        ) from error
    assert isinstance(atoms, ase.Atoms)  # index −1: one frame
    if not len(atoms):
        raise UserError(f"{path} holds no atoms: give a structure to start from")
    return atoms


def _fixed_atoms(atoms: Atoms, path: Path) -> torch.Tensor | None:
    import numpy as np
    import torch
    from ase.constraints import FixAtoms

    fixed = np.zeros(len(atoms), dtype=bool)
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise UserError(
                f"{path} has the constraint {type(constraint).__name__}, but `dyntrain md` knows only "
                "FixAtoms: remove it, or run ASE's dynamics with dyntrain.Calculator"
            )
        fixed[constraint.index] = True
    if fixed.all():
        raise UserError(f"{path} fixes all its atoms, so nothing can move: free some")
    return torch.from_numpy(fixed) if fixed.any() else None
