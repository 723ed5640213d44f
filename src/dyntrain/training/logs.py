"""What a run writes down: log.csv (truncated to the checkpoint on resume), TensorBoard, wandb or MLflow."""

from __future__ import annotations

import csv
import io
import os
import warnings
from pathlib import Path
from typing import Any, Protocol

from dyntrain.errors import UserError

COLUMNS = (
    "epoch",
    "step",
    "evaluations",
    "segment_length",
    "lr",
    "train_loss",
    "train_forces",
    "train_energy",
    "train_positions",
    "train_velocities",
    "gradient_norm",
    "validation_loss",
    "validation_force_mae_first",
    "validation_force_mae",
    "validation_energy_mae",
    "burst_training",
    "burst_validation",
    "steps_skipped",
    "wall_s",
)
"""Columns of log.csv: energies eV/atom, forces eV/Å, times s; empty where a term is absent."""


class CsvLog:
    """log.csv with one row an epoch: none twice and none missing, whatever happened in between."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, n_bytes: int) -> None:
        """Take the file back to the length that belongs to the checkpoint (0: begin anew)."""
        if n_bytes == 0:
            self.path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
            return
        with self.path.open("r+b") as file:
            file.truncate(n_bytes)

    def append(self, row: dict[str, Any]) -> int:
        """Write a row to disk and return the file's new length."""
        text = io.StringIO()
        csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n").writerow(row)
        with self.path.open("ab") as file:
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())
            return file.tell()


def read_log(path: Path | str) -> list[dict[str, float | None]]:
    """Rows of a log.csv as numbers (None: empty)."""
    with Path(path).open(encoding="utf-8") as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


class MetricLogger(Protocol):
    """Takes one row an epoch."""

    def log(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class TensorBoardLog:
    """Event files for TensorBoard; rows after the checkpoint are purged on resume."""

    def __init__(self, folder: Path, step: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)  # type: ignore[no-untyped-call]

    def log(self, row: dict[str, Any]) -> None:
        for name, value in row.items():
            if value is not None and name != "step":
                self._writer.add_scalar(name, value, row["step"])  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class WandbLog:
    """Weights & Biases; the run id lies in the output folder, so a resumed run goes on in the same one."""

    def __init__(self, folder: Path, project: str, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("logger wandb needs the package wandb: pip install wandb") from error
        id_file = folder / "wandb_id"
        if not id_file.exists():
            id_file.write_text(wandb.util.generate_id(), encoding="utf-8")
        self._run = wandb.init(
            project=project,
            id=id_file.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder),
            config=config,
        )

    def log(self, row: dict[str, Any]) -> None:
        self._run.log({k: v for k, v in row.items() if v is not None}, step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()


class MlflowLog:
    """MLflow; the run id lies in the output folder, so a resumed run goes on in the same one."""

    def __init__(self, folder: Path, project: str) -> None:
        try:
            import mlflow
        except ImportError as error:
            raise UserError("logger mlflow needs the package mlflow: pip install mlflow") from error
        self._mlflow = mlflow
        mlflow.set_experiment(project)
        id_file = folder / "mlflow_id"
        known = id_file.read_text(encoding="utf-8") if id_file.exists() else None
        run = mlflow.start_run(run_id=known)
        id_file.write_text(run.info.run_id, encoding="utf-8")

    def log(self, row: dict[str, Any]) -> None:
        self._mlflow.log_metrics(
            {k: float(v) for k, v in row.items() if v is not None}, step=int(row["step"])
        )

    def close(self) -> None:
        self._mlflow.end_run()
