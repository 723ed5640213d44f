"""The configuration's sections: every key with its type, default and unit."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, model_validator

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds(text: Any) -> float:
    """``90s``, ``5m``, ``2h``, ``1.5h`` or ``1d`` in seconds."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhd])\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise ValueError(f"a time is a number with s, m, h or d behind it (90s, 5m, 2h), got {text!r}")
    return float(match[1]) * _SECONDS[match[2]]


def _checked_time(text: Any) -> str:
    seconds(text)
    return str(text)


Duration = Annotated[str, BeforeValidator(_checked_time)]

_FEMTOSECONDS = {"fs": 1.0, "ps": 1e3, "ns": 1e6}


def femtoseconds(text: Any) -> float:
    """``500fs``, ``1ps``, ``1.5 ps`` or ``1ns`` in fs."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(fs|ps|ns)\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise ValueError(
            f"a time of motion is a number with fs, ps or ns behind it (500fs, 1ps), got {text!r}"
        )
    return float(match[1]) * _FEMTOSECONDS[match[2]]


def _checked_motion_time(text: Any) -> str:
    femtoseconds(text)
    return str(text)


MotionTime = Annotated[str, BeforeValidator(_checked_motion_time)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)


class DataFiles(_Section):
    """Runs by the split they belong to."""

    train: list[str] = Field(description="files, folders or patterns of training runs")
    validation: list[str] = Field(
        default=[],
        description="runs for validation during training; none: some of the training runs are taken",
    )
    test: list[str] = Field(default=[], description="runs that training never sees")


class KeysConfig(_Section):
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


class ModelConfig(_Section):
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


class ReplayConfig(_Section):
    """Runs from the model's former training, so that it keeps what it knew."""

    data: list[str] = Field(description="files, folders or patterns of these runs")
    share: float = Field(default=0.2, gt=0, lt=1, description="of the segments of each pass")


class FinetuneConfig(_Section):
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


class TermConfig(_Section):
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


class LossConfig(_Section):
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


class PlateauConfig(_Section):
    """S grows by one whenever learning has converged, as published."""

    kind: Literal["plateau"] = "plateau"
    max_length: int = Field(default=7, ge=1, description="largest segment length S, frames")
    lr: float = Field(default=1e-3, gt=0, description="learning rate at S = 1")
    factor: float = Field(default=0.33, gt=0, lt=1)
    patience: int = Field(default=15, ge=1, description="epochs without improvement before the rate falls")
    floor: float = Field(default=2e-6, gt=0, description="converged below this rate")
    restart_lr: float = Field(default=1e-4, gt=0, description="learning rate after each growth of S")


class StageConfig(_Section):
    """A share of the budget at one segment length."""

    segment_length: int = Field(ge=1, description="S, frames")
    share: float = Field(gt=0, description="share of the budget (all shares are scaled to 1)")


def _default_stages() -> list[StageConfig]:
    return [StageConfig(segment_length=s, share=w) for s, w in ((1, 0.6), (2, 0.1), (4, 0.1), (8, 0.2))]


class ScheduleConfig(_Section):
    """S and the learning rate follow the share of the budget that is spent."""

    kind: Literal["schedule"] = "schedule"
    stages: list[StageConfig] = Field(default_factory=_default_stages, min_length=1)
    lr: float | None = Field(
        default=None, gt=0, description="largest learning rate; null: 1e-2 for a new egnn, else 3e-3"
    )
    floor: float = Field(default=1e-6, gt=0, description="learning rate at the end")
    warmup: float = Field(default=0.01, ge=0, lt=1, description="share of the budget with a rising rate")
    epochs: int = Field(default=20, ge=1, description="validations, evenly over the budget")
    stop_after: int | None = Field(
        default=None, ge=1, description="end after so many epochs without a better score"
    )


class ValidationConfig(_Section):
    """Roll-outs from held-out starts, the run's kicks applied."""

    n_starts: int = Field(default=32, ge=1)
    n_steps: int = Field(default=60, ge=0, description="shortened, and said, where the runs are shorter")
    batch_size: int = Field(
        default=32, ge=1, description="starts unrolled together, fewer where structures are large"
    )


class CostsConfig(_Section):
    """Cost of one training evaluation of one structure, in units of the first."""

    one_step: float = Field(default=1.0, gt=0, description="at S = 1")
    rollout: float = Field(gt=0, description="in a roll-out of S > 1")


class BudgetConfig(_Section):
    """What the training may cost; measured once, then kept, so that a rerun does the same."""

    evaluations: float = Field(
        gt=0, description="training evaluations of one structure at S = 1, or their worth"
    )
    costs: CostsConfig
    validations: int | None = Field(
        default=None, ge=1, description="so many, where the schedule's would take too much of max_time"
    )


class LoggerConfig(_Section):
    """An extra logger; CSV and TensorBoard are always written."""

    name: Literal["wandb", "mlflow"]
    project: str = "dyntrain"


class ImproveConfig(_Section):
    """`dyntrain improve`: new reference segments where the model goes, and where it fails."""

    reference: str = Field(
        default="tblite",
        description="what made the training runs' labels: tblite, an ASE calculator by name, a model file of "
        "dyntrain's (.pt), or files: structures are written out and finished runs are waited for",
    )
    method: str | None = Field(default=None, description="of tblite; null: GFN2-xTB")
    options: dict[str, Any] = Field(default={}, description="keywords of the reference calculator")
    calls: int = Field(default=2048, ge=2, description="reference calculations to train on, in all")
    horizon: MotionTime = Field(default="1ps", description="how long the model must be right in free motion")
    segments: int = Field(default=32, ge=1, description="new segments a round")
    segment_length: int = Field(default=32, ge=2, description="frames (reference calculations) of each")
    temperature: float | None = Field(
        default=None,
        gt=0,
        lt=1e5,
        description="K of the velocities drawn for the model's free runs; null: the recorded velocities",
    )
    n_runs: int = Field(default=32, ge=1, description="free runs, from held-out frames, that judge a model")
    workers: int = Field(default=1, ge=1, description="reference calculations at the same time")

    @property
    def horizon_fs(self) -> float:
        """``horizon`` in fs."""
        return femtoseconds(self.horizon)


class TruncatedConfig(_Section):
    """Gradients through so many frames."""

    truncated: int = Field(ge=1)


def _choice(decide: Callable[[Any], str | None], wrong: str) -> Discriminator:
    """Which of several forms a value has: mistakes are then told for that form alone.

    Tags are in parentheses, which no key of ours has, so that ``_sentence`` can leave them out.
    """
    return Discriminator(decide, custom_error_type="choice", custom_error_message=wrong)


_ONLY_PLATEAU = set(PlateauConfig.model_fields) - set(ScheduleConfig.model_fields)
_ONLY_SCHEDULE = set(ScheduleConfig.model_fields) - set(PlateauConfig.model_fields)


def kind_of(curriculum: dict[str, Any], default: str) -> Any:
    """By ``kind``, else by the keys that only one kind has."""
    if "kind" in curriculum:
        return curriculum["kind"]
    if _ONLY_PLATEAU & set(curriculum):
        return "plateau"
    return "schedule" if _ONLY_SCHEDULE & set(curriculum) else default


def _curriculum_tag(value: Any) -> str | None:
    if isinstance(value, dict):
        kind = kind_of(value, default="schedule")
        return f"({kind})" if kind in ("plateau", "schedule") else None
    return f"({getattr(value, 'kind', 'schedule')})"


Data = Annotated[
    Annotated[list[str], Tag("(files)")] | Annotated[DataFiles, Tag("(splits)")],
    _choice(lambda value: "(splits)" if isinstance(value, dict | DataFiles) else "(files)", ""),
]
BackpropName = Literal["stop_gradient", "full", "adjoint"]
BackpropChoice = Annotated[
    Annotated[BackpropName, Tag("(name)")] | Annotated[TruncatedConfig, Tag("(truncated)")],
    _choice(lambda value: "(truncated)" if isinstance(value, dict | TruncatedConfig) else "(name)", ""),
]
CurriculumChoice = Annotated[
    Annotated[PlateauConfig, Tag("(plateau)")] | Annotated[ScheduleConfig, Tag("(schedule)")],
    _choice(_curriculum_tag, "kind should be 'plateau' or 'schedule'"),
]


class Config(_Section):
    """A training run. ``data`` alone is enough."""

    data: Data = Field(description="AIMD files: a list (split automatically) or by split")
    dt: float | None = Field(default=None, gt=0, description="fs between frames, where the files do not say")
    keys: KeysConfig | None = Field(default=None, description="names and units of the files' keys")
    output: str = Field(default="dyntrain-output", description="folder for everything written")
    seed: int = Field(default=0, ge=0)
    preset: Literal["paper"] | None = Field(default=None, description="paper: the published recipe")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "float64"] = Field(
        default="float32", description="of the network's weights"
    )
    start_from: str | None = Field(
        default=None,
        description="model to go on from (replaces `model`): our model.pt, a file of another program, or a "
        "pretrained model by name, as sevennet-0",
    )
    trust: bool = Field(
        default=False, description="start_from may run the program code that other programs' files can hold"
    )
    finetune: FinetuneConfig = FinetuneConfig()
    model: ModelConfig = ModelConfig()
    batch_size: int = Field(default=16, ge=1, description="segments an optimiser step, over all processes")
    training_points: int | None = Field(
        default=None,
        ge=1,
        description="so many segments, drawn once; null: every window of the training runs",
    )
    point_length: int | None = Field(
        default=None,
        ge=1,
        description="frames of a training point, every segment within which is trained on; null: those of "
        "the longest segment, and shorter segments are its first frames, as published",
    )
    noise: float = Field(
        default=0.0,
        ge=0,
        description="Å; Gaussian noise on the positions of single structures (S = 1), their labels unchanged",
    )
    stride: int = Field(
        default=1,
        ge=1,
        description="frames between the steps of a training segment: coarse steps with their own kicks reach "
        "so many times further in time for the same cost",
    )
    loss: LossConfig = LossConfig()
    backprop: BackpropChoice = Field(
        default="full", description="how gradients flow between steps; adjoint: those of full in flat memory"
    )
    curriculum: CurriculumChoice = Field(
        default=ScheduleConfig(), description="how S and the learning rate go; kind follows from the keys"
    )
    gradient_clip: float = Field(default=10.0, gt=0, description="largest norm of the gradient")
    ema: float = Field(default=0.99, ge=0, lt=1, description="decay of the averaged weights a step; 0: none")
    validation: ValidationConfig = ValidationConfig()
    max_time: Duration | None = Field(
        default=None,
        description="wall time of one call; stops cleanly, the same command goes on (90s, 5m, 2h)",
    )
    max_epochs: int | None = Field(default=None, ge=1)
    budget: BudgetConfig | None = Field(
        default=None, description="written by the first run; give it to repeat one"
    )
    logger: LoggerConfig | None = None
    improve: ImproveConfig | None = Field(
        default=None, description="what `dyntrain improve` does after the training; others leave it alone"
    )

    @model_validator(mode="after")
    def _time_or_default(self) -> Config:
        if self.max_time is None and self.budget is None and self.curriculum.kind == "schedule":
            self.max_time = "1h"
        return self

    @property
    def max_seconds(self) -> float | None:
        """``max_time`` in seconds."""
        return None if self.max_time is None else seconds(self.max_time)

    @property
    def max_span(self) -> int:
        """Frames from the first to the last of the longest segment, both included."""
        return (self.max_length - 1) * self.stride + 1

    @property
    def max_length(self) -> int:
        """Largest segment length the curriculum can reach."""
        curriculum = self.curriculum
        if curriculum.kind == "plateau":
            return curriculum.max_length
        return max(stage.segment_length for stage in curriculum.stages)


PAPER: dict[str, Any] = {
    "model": {"name": "paper_egnn", "cutoff": 5.0},
    "batch_size": 32,
    "training_points": 256,
    "loss": {
        "forces": {"weight": 1.0, "kind": "l1", "per_element": True},
        "energy": {"weight": 1.0, "kind": "l1", "only_single_frames": True},
        "first_step_weight": 50.0,
        "later_step_weight": 1.0,
    },
    "backprop": "stop_gradient",
    "curriculum": {
        "kind": "plateau",
        "max_length": 7,
        "lr": 1e-3,
        "factor": 0.33,
        "patience": 15,
        "floor": 2e-6,
        "restart_lr": 1e-4,
    },
    "gradient_clip": 1.0,
    "ema": 0.0,
    "validation": {"n_starts": 256, "n_steps": 120, "batch_size": 256},
}
"""The published recipe (METHOD); what the user's YAML says comes on top of it."""
