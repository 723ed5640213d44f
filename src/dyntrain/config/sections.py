"""The sections of a configuration: every key with its type, default and unit."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dyntrain.config.durations import MotionTime, femtoseconds


class Section(BaseModel):
    """Unknown keys, nan and infinity are refused."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class DataFiles(Section):
    """Runs by the split they belong to."""

    train: list[str] = Field(description="files, folders or patterns of training runs")
    validation: list[str] = Field(
        default=[],
        description="runs for validation during training; none: some of the training runs are taken",
    )
    test: list[str] = Field(default=[], description="runs that training never sees")
    structures: list[str] = Field(
        default=[],
        description="labelled structures of no run (a training set, single calculations), trained on beside "
        "the runs where the segment length is 1",
    )


class KeysConfig(Section):
    """Which keys of the files hold what, where their names do not say it."""

    energy: str | None = None
    forces: str | None = None
    velocities: str | None = None
    positions: str | None = None
    atomic_numbers: str | None = None
    stress: str | None = None
    units: dict[str, str] = Field(
        default={}, description="quantity → unit, as energy: kcal/mol, velocities: Å/fs"
    )
    masses: dict[str, float] = Field(
        default={}, description="element → mass in u, where the AIMD's was another than the file's (H: 2.014)"
    )


class ModelConfig(Section):
    """The network."""

    name: str = Field(
        default="egnn",
        description="egnn: smooth, extensive default; paper_egnn; mace, nequip, allegro, sevennet, chgnet, "
        "torchani where their packages are installed",
    )
    cutoff: float = Field(default=5.0, gt=0, description="Å")
    settings: dict[str, Any] = Field(
        default={}, description="further arguments of the network, as width or n_channels (see the API)"
    )


class ReplayConfig(Section):
    """Runs and structures from the model's former training, so that it keeps what it knew."""

    data: list[str] = Field(default=[], description="files, folders or patterns of these runs")
    structures: list[str] = Field(
        default=[], description="structures of no run, as of `data`; where the segment length is 1"
    )
    share: float = Field(default=0.2, gt=0, lt=1, description="of the segments of each pass")

    @model_validator(mode="after")
    def _has_some(self) -> Self:
        if not self.data and not self.structures:
            raise ValueError("give `data` (runs) or `structures` to replay")
        return self


class FinetuneConfig(Section):
    """What is kept of a model that training starts from."""

    freeze: list[str] = Field(
        default=[], description="parameters that stay as they are: names or patterns as interactions.0.*"
    )
    align_energies: bool | None = Field(
        default=None,
        description="move the model's energy per element to the zero of the data's energies before training; "
        "null: where start_from is not dyntrain's own model",
    )
    replay: ReplayConfig | None = None


class TermConfig(Section):
    """One term of the loss."""

    weight: float = Field(default=1.0, ge=0)
    kind: Literal["l1", "l2", "huber"] = "l1"
    delta: float = Field(default=0.1, gt=0, description="where Huber turns linear (the quantity's unit)")


class AtomTermConfig(TermConfig):
    """One term of the loss that is a mean over atoms."""

    per_element: bool = Field(
        default=False, description="mean within each element, then the sum over elements"
    )


class AlongTermConfig(AtomTermConfig):
    """A term of the loss that grows along the roll-out."""

    as_force: bool = Field(
        default=False,
        description="as the constant force error that makes it in the time t: 2 m Δr/t², m Δv/t (eV/Å)",
    )


class EnergyTermConfig(TermConfig):
    """The energy term, per atom."""

    only_single_frames: bool = Field(default=False, description="only while the segment length is 1")


class LossConfig(Section):
    """Terms by name (null: absent) and the weights of the steps."""

    forces: AtomTermConfig | None = Field(default=AtomTermConfig(), description="eV/Å")
    energy: EnergyTermConfig | None = Field(default=EnergyTermConfig(), description="eV per atom")
    positions: AlongTermConfig | None = Field(default=None, description="Å, along the roll-out")
    velocities: AlongTermConfig | None = Field(default=None, description="Å/ASE time, along the roll-out")
    stress: TermConfig | None = Field(
        default=None, description="eV/Å³ (ASE's sign), while the segment length is 1; the runs must have it"
    )
    first_step_weight: float = Field(default=1.0, gt=0, description="weight of step 0 once S > 1")
    later_step_weight: float = Field(default=1.0, gt=0, description="weight of each later step")


class PlateauConfig(Section):
    """S grows by one whenever learning has converged, as published."""

    kind: Literal["plateau"] = "plateau"
    max_length: int = Field(default=7, ge=1, description="largest segment length S, frames")
    lr: float = Field(default=1e-3, gt=0, description="learning rate at S = 1")
    factor: float = Field(default=0.33, gt=0, lt=1)
    patience: int = Field(default=15, ge=1, description="epochs without improvement before the rate falls")
    floor: float = Field(default=2e-6, gt=0, description="converged below this rate")
    restart_lr: float = Field(default=1e-4, gt=0, description="learning rate after each growth of S")


class StageConfig(Section):
    """A share of the budget at one segment length."""

    segment_length: int = Field(ge=1, description="S, frames")
    share: float = Field(gt=0, description="share of the budget (all shares are scaled to 1)")


class ScheduleConfig(Section):
    """S and the learning rate follow the share of the budget that is spent."""

    kind: Literal["schedule"] = "schedule"
    stages: list[StageConfig] = Field(
        default=[StageConfig(segment_length=1, share=1.0)],
        min_length=1,
        description="one after the other; by default single frames only: ahead wherever more training still "
        "helped (docs/research.md)",
    )
    lr: float | None = Field(
        default=None,
        gt=0,
        description="largest learning rate; null: 1e-2 for a new egnn, 1e-3 for paper_egnn, else 3e-3",
    )
    floor: float = Field(default=1e-6, gt=0, description="learning rate at the end")
    warmup: float = Field(default=0.01, ge=0, lt=1, description="share of the budget with a rising rate")
    epochs: int = Field(default=20, ge=1, description="validations, evenly over the budget")
    stop_after: int | None = Field(
        default=None, ge=1, description="end after so many epochs without a better score"
    )


class ValidationConfig(Section):
    """Roll-outs from held-out starts, the run's kicks applied."""

    n_starts: int = Field(default=32, ge=1)
    n_steps: int = Field(default=60, ge=0, description="shortened, and said, where the runs are shorter")
    batch_size: int = Field(
        default=32, ge=1, description="starts unrolled together, fewer where structures are large"
    )


class CostsConfig(Section):
    """Cost of one training evaluation of one structure, in units of the first."""

    one_step: float = Field(default=1.0, gt=0, description="at S = 1")
    rollout: float = Field(gt=0, description="in a roll-out of S > 1")


class BudgetConfig(Section):
    """What the training may cost; measured once, then kept, so that a rerun does the same."""

    evaluations: float = Field(
        gt=0, description="training evaluations of one structure at S = 1, or their worth"
    )
    costs: CostsConfig
    validations: int | None = Field(
        default=None, ge=1, description="so many, where the schedule's would take too much of max_time"
    )


class LoggerConfig(Section):
    """An extra logger; CSV and TensorBoard are always written."""

    name: Literal["wandb", "mlflow"]
    project: str = "dyntrain"


class ImproveConfig(Section):
    """`dyntrain improve`: new reference segments where the model goes, and where it fails."""

    reference: str = Field(
        default="tblite",
        description="what made the training runs' labels: tblite, an ASE calculator by name, a model file of "
        "dyntrain's (.pt), or files: structures are written out and finished runs are waited for",
    )
    method: str | None = Field(default=None, description="of tblite; null: GFN2-xTB")
    options: dict[str, Any] = Field(default={}, description="keywords of the reference calculator")
    calls: int = Field(default=2048, ge=1, description="reference calculations to train on, in all")
    horizon: MotionTime = Field(default="1ps", description="how long the model must be right in free motion")
    segments: int = Field(default=32, ge=1, description="new segments a round")
    segment_length: int = Field(
        default=32, ge=1, description="frames (reference calculations) of each; 1: single structures"
    )
    elsewhere: Literal["structures", "segments"] | None = Field(
        default=None,
        description="what the calls go to that are not spent before failures: single structures, or segments "
        "as well; null: segments while a free run fails or where the curriculum trains along them, else "
        "structures",
    )
    temperature: float | None = Field(
        default=None,
        gt=0,
        lt=1e5,
        description="K of the velocities drawn for the model's free runs; null: the recorded velocities",
    )
    committee: int = Field(
        default=0,
        ge=0,
        description="further networks of the same data, for a quarter of the cost each: segments begin where "
        "their forces differ most; 0: at random times",
    )
    n_runs: int = Field(default=32, ge=1, description="free runs, from held-out frames, that judge a model")
    workers: int = Field(default=1, ge=1, description="reference calculations at the same time")

    @property
    def horizon_fs(self) -> float:
        """``horizon`` in fs."""
        return femtoseconds(self.horizon)


class TruncatedConfig(Section):
    """Gradients through so many frames."""

    truncated: int = Field(ge=1)
