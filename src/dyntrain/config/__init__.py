"""The YAML configuration: its sections, the whole (schema.py), how it is read and written (reading.py)."""

from dyntrain.config.presets import PRESETS
from dyntrain.config.reading import dump_config, parse_config, read_config
from dyntrain.config.schema import Config
from dyntrain.config.sections import (
    BudgetConfig,
    CostsConfig,
    DataFiles,
    FinetuneConfig,
    ImproveConfig,
    PlateauConfig,
    ScheduleConfig,
    TruncatedConfig,
)

__all__ = [
    "PRESETS",
    "BudgetConfig",
    "Config",
    "CostsConfig",
    "DataFiles",
    "FinetuneConfig",
    "ImproveConfig",
    "PlateauConfig",
    "ScheduleConfig",
    "TruncatedConfig",
    "dump_config",
    "parse_config",
    "read_config",
]
