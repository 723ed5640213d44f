"""The record beside the runs: settings, start structure and versions, to repeat and to resume them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms

from dyntrain.atomic import write_text
from dyntrain.errors import UserError
from dyntrain.reference.calculators import versions
from dyntrain.reference.settings import AimdSettings
from dyntrain.reference.systems import build_system, system_name


@dataclass(frozen=True, eq=False)
class Record:
    """``<output>/<name>_aimd.json`` and the names of what lies beside it."""

    path: Path
    settings: AimdSettings
    atoms: Atoms
    versions: dict[str, str]

    @classmethod
    def of(cls, settings: AimdSettings, output: Path) -> Record:
        """The record that runs of these settings have in an output folder."""
        path = output / f"{system_name(settings.system)}_aimd.json"
        return cls(path, settings, build_system(settings.system, settings.seed), versions(settings.method))

    @classmethod
    def read(cls, path: Path) -> Record:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            settings = AimdSettings(**found["settings"])
            return cls(path, settings, _atoms(found["structure"]), found["versions"])
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(
                f"{path} is not a record of dyntrain aimd ({error}): use another folder"
            ) from error

    def write(self) -> None:
        """To a file that appears only when complete."""
        write_text(self.path, json.dumps(self.content(), indent=1) + "\n")

    def content(self) -> dict[str, Any]:
        """Plain values, from which ``read`` makes the same record."""
        return {
            "settings": dataclasses.asdict(self.settings),
            "versions": self.versions,
            "structure": _structure(self.atoms),
        }

    def trajectory(self, run: int) -> Path:
        return self.path.with_name(f"{system_name(self.settings.system)}_{run:03d}.traj")

    def pieces_folder(self, run: int) -> Path:
        """The hidden folder of an unfinished run."""
        return self.path.with_name(f".{self.trajectory(run).stem}")

    def check_same(self, stored: Record, *, unfinished: bool) -> None:
        """Refuse to go on with runs that were begun otherwise.

        Raises:
            UserError: settings or structure differ; or, while runs are unfinished, package versions.
        """
        mine, theirs = self.content(), stored.content()
        parts = ["settings", *(["versions"] if unfinished else [])]
        differences = [
            f"{name} was {theirs[part].get(name)!r}, is now {value!r}"
            for part in parts
            for name, value in mine[part].items()
            if value != theirs[part].get(name)
        ]
        if mine["structure"] != theirs["structure"]:
            differences.append(f"the structure of {self.settings.system} is another")
        if differences:
            raise UserError(
                f"{self.path.parent} holds runs with other settings ({'; '.join(differences)}): "
                "repeat the first command, or choose another output folder"
            )


def _structure(atoms: Atoms) -> dict[str, Any]:
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "masses": atoms.get_masses().tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
        "charges": atoms.get_initial_charges().tolist(),
        "magmoms": atoms.get_initial_magnetic_moments().tolist(),
    }


def _atoms(structure: dict[str, Any]) -> Atoms:
    return Atoms(**structure)
