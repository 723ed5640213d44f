"""Levers for data that cannot be extended: what does further training gain, at equal frames and equal cost?

Every arm goes on from the same one-step model (or begins with random weights, `--evaluations 0 N`), on the
same frames, for the same number of model evaluations, those named longer apart; the arms are plain overrides
of one configuration, each of which works in a user's YAML as well.
Measured beside held-out runs (force error of roll-outs, kicks applied, the same starts for all arms and
seeds), on free runs (how many fail) and, where tblite made the data, against it on these runs (the audit).

    python benchmarks/levers.py --output levers --seeds 0 1 2
    python benchmarks/levers.py --output ch4 --train ch4.extxyz:0-600 --validation ch4.extxyz:620-720 ...

prints Markdown tables (levers_table.py) and writes results.json; stopped at any moment, the same command goes
on. `--short` is the same code with small numbers.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from levers_table import draw, tables

from dyntrain.atomic import write_text
from dyntrain.config import parse_config
from dyntrain.data.readers import read_trajectories
from dyntrain.data.store import write_store
from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate import MARKS_FS, rollout_errors
from dyntrain.evaluate.audit import audit
from dyntrain.improve.rounds import own_runs
from dyntrain.models.files import load_model
from dyntrain.potential import Potential
from dyntrain.reference import AimdSettings, generate_aimd
from dyntrain.reference.cache import StoredReference
from dyntrain.threads import limit_threads
from dyntrain.training import train

NETWORKS: dict[str, dict[str, Any]] = {
    "default": {"name": "egnn"},
    "egnn": {"name": "egnn", "settings": {"width": 32, "n_channels": 16}},
    "tiny": {"name": "egnn", "settings": {"width": 8, "n_channels": 2}},
    "paper_egnn": {"name": "paper_egnn", "settings": {"width": 32}},
    "mace": {"name": "mace", "cutoff": 5.0, "settings": {"num_channels": 8, "max_L": 0}},
    "nequip": {
        "name": "nequip",
        "cutoff": 5.0,
        "settings": {"num_layers": 2, "l_max": 1, "num_features": 8},
    },
}
"""Other people's need their package, whose environment may lack tblite: then give the data."""

ADJOINT_COST = 1.4
"""One more evaluation a step, without gradient; else a roll-out costs what as large a one-step batch does."""

_LATE = 0.6
"""Share of one-step training before what comes *late*."""


def scheduled(shares: dict[int, float]) -> dict[str, Any]:
    """Segment length → share of the budget, in this order."""
    return {"stages": [{"segment_length": s, "share": share} for s, share in shares.items()]}


def stages(*lengths: int) -> dict[str, Any]:
    """Segment lengths one after the other, each for the same share of the budget."""
    return scheduled(dict.fromkeys(lengths, 1.0))


def late(length: int) -> dict[str, Any]:
    """One-step training, then segments while the learning rate falls to zero."""
    return scheduled({1: _LATE, length: 1 - _LATE})


COARSE = {"curriculum": late(16), "stride": 4}  # the stride of --coarse is set where dt is known
AS_FORCE = {"weight": 1.0, "as_force": True}
CONTROL = "one-step"
LONGER = {
    "one-step, twice as long": 2.0,
    "one-step, 4 times as long": 4.0,
    "S = 16 coarse, 4 times as long": 4.0,
}
ARMS: dict[str, dict[str, Any]] = {
    CONTROL: {},
    "one-step, twice as long": {},
    "one-step, 4 times as long": {},
    "one-step, 32 a step": {"batch_size": 32},
    "one-step, noise 0.003 Å": {"noise": 0.003},
    "one-step, forces by element": {"loss": {"forces": {"per_element": True}}},
    "S = 8, stop-gradient": {"curriculum": stages(8), "backprop": "stop_gradient"},
    "S = 2, 4, 8": {"curriculum": stages(2, 4, 8)},
    "S = 1, late 2, 4, 8": {"curriculum": scheduled({1: _LATE, 2: 0.1, 4: 0.1, 8: 0.2})},
    "S = 1, late 8": {"curriculum": late(8)},
    "S = 1, late 64, adjoint": {"curriculum": late(64), "backprop": "adjoint"},
    "S = 16": {"curriculum": stages(16)},
    "S = 8 coarse": {**COARSE, "curriculum": stages(8)},
    "S = 16 coarse": {**COARSE, "curriculum": stages(16)},
    "S = 16 coarse, 4 times as long": {**COARSE, "curriculum": stages(16)},
    "S = 32 coarse": {**COARSE, "curriculum": stages(32)},
    "S = 16 coarse, stop-gradient": {**COARSE, "curriculum": stages(16), "backprop": "stop_gradient"},
    "S = 16 coarse, velocities": {**COARSE, "curriculum": stages(16), "loss": {"velocities": AS_FORCE}},
    "S = 1, late 16 coarse": COARSE,
    "S = 1, late 16 coarse, positions": {**COARSE, "loss": {"positions": {"weight": 10.0}}},
    "S = 1, late 16 coarse, velocities": {**COARSE, "loss": {"velocities": AS_FORCE}},
    "S = 1, late 32 coarse": {**COARSE, "curriculum": late(32)},
    "S = 16 coarse, velocities, 2 a step": {
        **COARSE,
        "curriculum": stages(16),
        "batch_size": 2,
        "loss": {"velocities": AS_FORCE},
    },
    "S = 8 coarse, velocities, 1 a step": {
        **COARSE,
        "curriculum": stages(8),
        "batch_size": 1,
        "loss": {"velocities": AS_FORCE},
    },
}


@dataclass(frozen=True)
class Sizes:
    """Sizes of the comparison."""

    network: str = "tiny"
    frames: int = 4096
    runs: int = 8
    start_evaluations: float = 40_000
    evaluations: float = 16_000
    lr: tuple[float, float] = (2e-2, 1e-2)
    thermalise_steps: int = 500
    held_out_steps: int = 1000
    n_starts: int = 48
    horizon_fs: float = 150.0
    n_free: int = 16
    free_fs: float = 200.0
    kelvin: float | None = None
    coarse_fs: float = 2.0


SHORT = Sizes(
    network="tiny",
    frames=100,
    runs=1,
    start_evaluations=512,
    evaluations=128,
    thermalise_steps=20,
    held_out_steps=120,
    n_starts=4,
    horizon_fs=25.0,
    n_free=2,
    free_fs=20.0,
)


class Levers:
    """One seed: its data, its start model, and the arms."""

    def __init__(self, output: Path, seed: int, sizes: Sizes, given: dict[str, list[str]] | None) -> None:
        self.folder, self.seed, self.sizes = output / f"seed_{seed}", seed, sizes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reference: StoredReference | None = None
        if given is not None:
            self.files = {name: cut(parts, output / "data" / name) for name, parts in given.items()}
            self.dt_fs = read_trajectories(self.files["train"][:1])[0].dt_fs
            return
        self.dt_fs = AimdSettings(system="ethanol").dt_fs
        self.reference = StoredReference("GFN2-xTB", {}, output / "reference")
        self.files = {
            "train": self._ethanol(
                self.folder / "train", sizes.runs, sizes.frames // sizes.runs - 1, 10 * seed
            ),
            "validation": self._ethanol(
                self.folder / "validation", 1, sizes.held_out_steps // 3, 10 * seed + 1
            ),
            "test": self._ethanol(output / "test", min(2, sizes.runs), sizes.held_out_steps, 2),
        }

    def _ethanol(self, folder: Path, n_runs: int, n_steps: int, seed: int) -> list[Path]:
        """Runs of ethanol (GFN2-xTB, NVE from 500 K, 0.5 fs), made if they are not there yet."""
        thermalise = self.sizes.thermalise_steps
        settings = AimdSettings(system="ethanol", n_steps=n_steps, thermalise_steps=thermalise, seed=seed)
        return generate_aimd(settings, folder, n_runs=n_runs)

    @property
    def start_model(self) -> Path:
        """From which all arms go on, where they do not begin with random weights."""
        return self.folder / slug(None) / "model.pt"

    def config(self, arm: str | None) -> dict[str, Any]:
        """The configuration of an arm; None: that of the model from which all of them go on."""
        overrides = {} if arm is None else ARMS[arm]
        sizes, is_start, longer = self.sizes, arm is None, LONGER.get(arm or "", 1.0)
        curriculum = {"lr": sizes.lr[0 if is_start else 1], "epochs": 5}
        if "stride" in overrides:
            overrides = overrides | {"stride": max(1, round(sizes.coarse_fs / self.dt_fs))}
        cost = ADJOINT_COST if overrides.get("backprop") == "adjoint" else 1.0
        return {
            "data": {name: [str(f) for f in self.files[name]] for name in ("train", "validation")},
            "output": str(self.folder / slug(arm)),
            "seed": self.seed,
            "start_from": None if is_start or not sizes.start_evaluations else str(self.start_model),
            "model": NETWORKS[sizes.network],
            "batch_size": 8 if sizes.start_evaluations else 16,
            "validation": {"n_starts": 16, "n_steps": min(40, sizes.held_out_steps // 18)},
            "budget": {
                "evaluations": sizes.start_evaluations if is_start else longer * sizes.evaluations,
                "costs": {"rollout": cost},
            },
            **overrides,
            "curriculum": overrides.get("curriculum", stages(1)) | curriculum,
        }

    def result(self, arm: str | None) -> dict[str, Any]:
        """The figures of an arm, trained and measured if they are not there yet."""
        path = self.folder / f"{slug(arm)}.json"
        if not path.exists():
            done = train(parse_config(self.config(arm)))
            trained = {"updates": done.progress.step, "cpu_s": round(done.progress.cpu_s, 1)}
            record = trained | self.measured(load_model(done.model))
            write_text(path, json.dumps(record, indent=1) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))

    def measured(self, potential: Potential) -> dict[str, Any]:
        """Roll-outs: mark → force error of each start (None: burst); audit: time → that of each free run."""
        sizes, test = self.sizes, read_trajectories(self.files["test"])
        free = own_runs(
            potential,
            test,
            horizon_fs=sizes.free_fs,
            temperature=sizes.kelvin,
            n_runs=sizes.n_free,
            seed=0,
        )
        own: dict[str, list[float | None]] = {}
        if self.reference is not None:
            found = audit(potential, free, self.reference)
            own = {f"{t:g}": _plain(row) for t, row in zip(found.times_fs, found.force_mae, strict=True)}
        return {
            "deviation_eV_A": rolled_out(potential, test, sizes.n_starts, sizes.horizon_fs),
            "audit_eV_A": own,
            "n_failed": int(free.failed.sum()),
            "n_free": free.n_runs,
            "free_fs": free.run_length_fs,
        }


def slug(arm: str | None) -> str:
    return "start" if arm is None else re.sub(r"\W+", "_", arm)


def cut(parts: Sequence[str], folder: Path) -> list[Path]:
    """Files as given, or pieces of them (``FILE:first-last``, frames, the last not included) as stores."""
    found = []
    for number, part in enumerate(parts):
        piece = re.fullmatch(r"(.+):(\d+)-(\d+)", part)
        if piece is None:
            found.append(Path(part))
            continue
        file = folder / f"{number}.h5"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            (run,) = read_trajectories([Path(piece[1])])
            write_store([run.slice(int(piece[2]), int(piece[3]))], file)
        found.append(file)
    return found


def rolled_out(
    potential: Potential, test: Sequence[Trajectory], n_starts: int, horizon_fs: float
) -> dict[str, list[float | None]]:
    """Force MAE (eV/Å) of each start at the marks, beside held-out runs; every seed and arm has the same."""
    found = rollout_errors(potential, test, horizon_fs=horizon_fs, n_starts=n_starts)
    places = {f"{mark:g}": found.index_at(mark) for mark in MARKS_FS}
    return {mark: _plain(found.force_mae[k]) for mark, k in places.items() if k is not None}


def _plain(values: np.ndarray) -> list[float | None]:
    return [round(float(value), 6) if np.isfinite(value) else None for value in values]


def parsed() -> argparse.Namespace:
    defaults = Sizes()
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("levers"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--network", choices=list(NETWORKS), default=defaults.network)
    parser.add_argument("--frames", type=int, default=defaults.frames, help="of ethanol to train on")
    parser.add_argument("--runs", type=int, default=defaults.runs, help="that they lie in")
    for name in ("train", "validation", "test"):
        parser.add_argument(f"--{name}", nargs="+", help="runs instead of ethanol's: FILE or FILE:first-last")
    parser.add_argument(
        "--evaluations",
        type=float,
        nargs=2,
        default=(defaults.start_evaluations, defaults.evaluations),
        help="of the start (0: none, the arms begin with random weights, 16 structures a step) and of an arm",
    )
    parser.add_argument(
        "--lr",
        type=float,
        nargs=2,
        default=defaults.lr,
        help="largest learning rate of the start and of each arm",
    )
    parser.add_argument("--starts", type=int, default=defaults.n_starts, help="of the roll-outs")
    parser.add_argument("--horizon", type=float, default=defaults.horizon_fs, help="of the roll-outs, fs")
    parser.add_argument(
        "--free", type=float, nargs=2, default=(defaults.n_free, defaults.free_fs), help="runs, of fs"
    )
    parser.add_argument("--kelvin", type=float, help="draw the free runs' velocities; else the recorded ones")
    parser.add_argument("--coarse", type=float, default=defaults.coarse_fs, help="length of coarse steps, fs")
    parser.add_argument("--figure", type=Path, help="draw error versus time here (.svg)")
    parser.add_argument("--short", action="store_true")
    return parser.parse_args()


def main() -> None:
    asked = parsed()
    limit_threads(9)
    sizes = Sizes(
        network=asked.network,
        frames=asked.frames,
        runs=asked.runs,
        start_evaluations=asked.evaluations[0],
        evaluations=asked.evaluations[1],
        lr=tuple(asked.lr),
        n_starts=asked.starts,
        horizon_fs=asked.horizon,
        n_free=int(asked.free[0]),
        free_fs=asked.free[1],
        kelvin=asked.kelvin,
        coarse_fs=asked.coarse,
    )
    if asked.short:
        sizes = SHORT
    given = {name: getattr(asked, name) for name in ("train", "validation", "test")} if asked.train else None
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for seed in asked.seeds:
        levers = Levers(asked.output, seed, sizes, given)
        for arm in [None, *asked.arms] if sizes.start_evaluations else asked.arms:
            print(f"seed {seed}: {arm or 'start'}", flush=True)
            results.setdefault(arm or "start", {})[str(seed)] = levers.result(arm)
            write_text(asked.output / "results.json", json.dumps(results) + "\n")
    print(tables(results, CONTROL))
    if asked.figure:
        draw(results, CONTROL, asked.figure)


if __name__ == "__main__":
    main()
