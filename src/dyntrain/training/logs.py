"""What a run writes down: log.csv (truncated to the checkpoint on resume), TensorBoard, wandb or MLflow."""

from __future__ import annotations

import csv
import io
import os
import uuid
import warnings
from pathlib import Path
from typing import Any, Protocol

from dyntrain.atomic import write_text
from dyntrain.config import Config
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
    "train_stress",
    "gradient_norm",
    "validation_loss",
    "validation_force_mae_first",
    "validation_force_mae",
    "validation_energy_mae",
    "validation_stress_mae",
    "burst_training",
    "burst_validation",
    "steps_skipped",
    "wall_s",
)
"""Columns of log.csv: energies eV/atom, forces eV/Å, stress eV/Å³, times s; empty where a term is absent.

Losses are those of a mean step (Σ w(k) L(k) / Σ w(k)), so that they compare across segment lengths."""


class CsvLog:
    """log.csv with one row an epoch: none twice and none missing, whatever happened in between."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, n_bytes: int) -> None:
        """Take the file back to the length that belongs to the checkpoint (0: begin anew).

        Raises:
            UserError: the file is gone, or shorter than that.
        """
        if n_bytes == 0:
            self.path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
            return
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size < n_bytes:
            raise UserError(
                f"{self.path} has {size} bytes but the checkpoint beside it knows of {n_bytes}: put the log "
                "back, or remove the checkpoint to begin anew"
            )
        if size > n_bytes:
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
    """Takes one row an epoch; after a resume it may be given its last rows again."""

    def log(self, row: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


def open_loggers(folder: Path, config: Config, logged_step: int) -> list[MetricLogger]:
    """TensorBoard and what the configuration names.

    Args:
        logged_step: step of the last row that stands; 0: none.

    Raises:
        UserError: the package of a logger is not installed, or it does not start (no login, no server).
    """
    loggers: list[MetricLogger] = [TensorBoardLog(folder / "tensorboard", logged_step)]
    chosen = config.logger
    if chosen is None:
        return loggers
    try:
        if chosen.name == "wandb":
            loggers.append(WandbLog(folder, chosen.project, config.model_dump(mode="json")))
        else:
            loggers.append(MlflowLog(folder, chosen.project))
    except UserError:
        raise
    except Exception as error:  # whatever they raise; each has classes of its own
        raise UserError(f"logger {chosen.name} does not start: {' '.join(str(error).split())}") from error
    return loggers


class TensorBoardLog:
    """Event files for TensorBoard; rows after ``logged_step`` in earlier files are purged."""

    def __init__(self, folder: Path, logged_step: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of packages that tensorboard imports
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(folder), purge_step=logged_step + 1)

    def log(self, row: dict[str, Any]) -> None:
        for name, value in _numbers(row).items():
            self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if value is not None and name != "step"}


class WandbLog:
    """Weights & Biases; the run id lies in the output folder, so a resumed run goes on in the same one."""

    def __init__(self, folder: Path, project: str, config: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("logger wandb needs the package wandb: pip install wandb") from error
        id_file = folder / "wandb_id"
        if not id_file.exists():
            write_text(id_file, uuid.uuid4().hex)
        run_id = id_file.read_text(encoding="utf-8")
        self._run = wandb.init(project=project, id=run_id, resume="allow", dir=str(folder), config=config)

    def log(self, row: dict[str, Any]) -> None:
        self._run.log(_numbers(row), step=int(row["step"]))

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
        write_text(id_file, run.info.run_id)
        # MLflow keeps every value it is given; a repeated row has the same numbers, so it is left out.
        history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "epoch")
        self._logged_step = max((metric.step for metric in history), default=0)

    def log(self, row: dict[str, Any]) -> None:
        if row["step"] > self._logged_step:
            self._mlflow.log_metrics(_numbers(row), step=int(row["step"]))

    def close(self) -> None:
        self._mlflow.end_run()
