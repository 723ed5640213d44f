"""Making AIMD with an ASE calculator (tblite by default): seeded, resumable, in full precision."""

from dyntrain.reference.aimd import AimdProgress, generate_aimd
from dyntrain.reference.settings import AimdSettings, settings_for
from dyntrain.reference.systems import build_system

__all__ = ["AimdProgress", "AimdSettings", "build_system", "generate_aimd", "settings_for"]
