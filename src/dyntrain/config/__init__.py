"""The YAML configuration: its sections (schema.py) and how it is read, told off and written (reading.py)."""

from dyntrain.config.reading import dump_config, parse_config, read_config
from dyntrain.config.schema import (
    PAPER,
    BudgetConfig,
    Config,
    CostsConfig,
    DataFiles,
    FinetuneConfig,
    ImproveConfig,
    PlateauConfig,
    ScheduleConfig,
    TruncatedConfig,
)

__all__ = [
    "PAPER",
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
