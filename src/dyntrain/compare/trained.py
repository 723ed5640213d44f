"""What one training of the comparison came to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dyntrain.models.files import read_record
from dyntrain.training import TrainingResult
from dyntrain.training.logs import read_log


@dataclass(frozen=True)
class Trained:
    """One training: its model, what it cost, and its validations.

    segment_length: S at the epoch whose model was kept
    log:            rows of log.csv
    """

    model: Path
    evaluations: float
    wall_s: float
    cpu_s: float
    labelled_frames: int
    segment_length: int
    ended: str
    log: list[dict[str, float | None]]

    @classmethod
    def from_result(cls, result: TrainingResult, n_labelled: int) -> Trained:
        """What ``train`` gave back, with the model's and the log's own facts."""
        header, _ = read_record(result.model)
        return cls(
            model=result.model,
            evaluations=result.progress.evaluations,
            wall_s=result.progress.wall_s,
            cpu_s=result.progress.cpu_s,
            labelled_frames=n_labelled,
            segment_length=int(header["provenance"]["segment_length"]),
            ended=result.finished or "not finished",
            log=read_log(result.model.with_name("log.csv")),
        )
