"""The output folder of `dyntrain improve`: what lies where, and whether it belongs to the present settings.

config.yaml            resolved settings
data/                  the runs of the training, validation and test, as stores
reference/             every result of the reference
round_00/              training/ (a normal training folder), result.json
  committee_1/ …       further networks of the same data, where a committee is asked for
round_01/ …            explored.json, segments/ (task, new runs), segments.h5, training/, result.json
improve.json, improve.html
"""

from __future__ import annotations

from pathlib import Path

from dyntrain.atomic import write_text
from dyntrain.config import Config, dump_config, read_config
from dyntrain.data.readers import read_trajectories
from dyntrain.data.splits import Split
from dyntrain.data.store import write_store
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.training import setup

_MAY_CHANGE = {"data", "dt", "keys", "output", "max_time", "device", "logger"}
_MAY_CHANGE_IN_IMPROVE = {"calls", "workers"}


class ImproveFolder:
    """Paths, and the data as they were when the folder was begun."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reference = path / "reference"
        self.json = path / "improve.json"
        self.page = path / "improve.html"
        self._config = path / "config.yaml"
        self._data = path / "data"
        self._fingerprint = self._data / "fingerprint"

    def round(self, number: int) -> Path:
        return self.path / f"round_{number:02d}"

    def training(self, number: int) -> Path:
        return self.round(number) / "training"

    def member(self, number: int, member: int) -> Path:
        return self.round(number) / f"committee_{member}"

    def result(self, number: int) -> Path:
        return self.round(number) / "result.json"

    def explored(self, number: int) -> Path:
        return self.round(number) / "explored.json"

    def segments(self, number: int) -> Path:
        return self.round(number) / "segments"

    def new_runs(self, number: int) -> Path:
        return self.round(number) / "segments.h5"

    def begin(self, config: Config) -> None:
        """Store settings and data, or hold those of an earlier call against the present ones.

        Raises:
            UserError: the folder was begun with other settings or other data, or by another command.
        """
        if self._config.exists() and not self._fingerprint.exists():
            raise UserError(
                f"{self._config} is there already and not of `dyntrain improve` (of a training, or your "
                "own): choose another output"
            )
        split, _ = setup.load_split(config)
        if not self._config.exists():
            self._data.mkdir(exist_ok=True)
            for name in ("train", "validation", "test"):
                if runs := getattr(split, name):
                    write_store(runs, self._data / f"{name}.h5")
            write_text(self._fingerprint, setup.fingerprint(split) + "\n")
        else:
            self._check_same(config, split)
        write_text(self._config, dump_config(config))

    def _check_same(self, config: Config, split: Split) -> None:
        now, then = config.model_dump(), read_config(self._config).model_dump()
        changed = {key for key in now if now[key] != then[key]} - _MAY_CHANGE
        if "improve" in changed and now["improve"] and then["improve"]:
            changed.remove("improve")
            inner = {key for key in now["improve"] if now["improve"][key] != then["improve"][key]}
            changed |= {f"improve.{key}" for key in inner - _MAY_CHANGE_IN_IMPROVE}
        if self._fingerprint.read_text(encoding="utf-8").strip() != setup.fingerprint(split):
            changed.add("data")
        if changed:
            raise UserError(
                f"{self.path} was begun with other settings or data (`{min(changed)}` differs): give the "
                "same to go on, or another output to begin anew"
            )

    def files(self, name: str) -> list[str]:
        """The store of a part of the data, as it stands in a configuration; none where there is none."""
        path = self._data / f"{name}.h5"
        return [str(path)] if path.exists() else []

    def runs(self, name: str) -> list[Trajectory]:
        """The runs of a part of the data."""
        files = self.files(name)
        return read_trajectories(files) if files else []
