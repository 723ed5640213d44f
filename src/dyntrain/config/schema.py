"""The configuration as a whole, and which form a section has that can have several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from dyntrain.config.durations import Duration, seconds
from dyntrain.config.sections import (
    BudgetConfig,
    DataFiles,
    FinetuneConfig,
    ImproveConfig,
    KeysConfig,
    LoggerConfig,
    LossConfig,
    ModelConfig,
    PlateauConfig,
    ScheduleConfig,
    Section,
    TruncatedConfig,
    ValidationConfig,
)


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


class Config(Section):
    """A training run. ``data`` alone is enough."""

    data: Data = Field(description="AIMD files: a list (split automatically) or by split")
    dt: float | None = Field(default=None, gt=0, description="fs between frames, where the files do not say")
    keys: KeysConfig | None = Field(default=None, description="names and units of the files' keys")
    output: str = Field(default="dyntrain-output", description="folder for everything written")
    seed: int = Field(default=0, ge=0, lt=2**32)
    preset: Literal["dynamic", "paper"] | None = Field(
        default=None,
        description="dynamic: segments of up to 8 frames in the last 40 % of the budget; paper: the "
        "published recipe; what else is given comes on top",
    )
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
