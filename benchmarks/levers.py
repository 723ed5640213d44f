"""Levers for data that cannot be extended: what does further training gain, at equal frames and equal cost?

Every arm goes on from the same one-step model, on the same frames of ethanol (GFN2-xTB), for the same cost in
model evaluations (those in a roll-out weighted with their cost); the arms are plain overrides of one
configuration, each of which works in a user's YAML as well. Measured beside a held-out run (force error of
roll-outs, kicks applied) and on the model's own free runs (the audit).

    python benchmarks/levers.py --output levers --seeds 0 1

prints a Markdown table and writes results.json; stopped at any moment, the same command goes on. `--arms`
names some of the arms only, `--short` is the same code with small numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from dyntrain.atomic import write_text
from dyntrain.config import parse_config
from dyntrain.data.readers import read_trajectories
from dyntrain.evaluate import MARKS_FS
from dyntrain.improve.rounds import at_marks, audited, beside_recorded, own_runs
from dyntrain.models.files import load_model
from dyntrain.reference import AimdSettings, generate_aimd
from dyntrain.reference.cache import StoredReference
from dyntrain.threads import limit_threads
from dyntrain.training import train

ADJOINT_COST = 1.4
"""One more evaluation a step, without gradient; a roll-out otherwise costs what single frames do."""


def stages(*lengths: int) -> dict[str, Any]:
    """Segment lengths one after the other, each for the same share of the budget."""
    return {"stages": [{"segment_length": length, "share": 1} for length in lengths], "epochs": 5}


ARMS: dict[str, dict[str, Any]] = {
    "one-step": {},
    "one-step, noise 0.01 Å": {"noise": 0.01},
    "one-step, no EMA": {"ema": 0.0},
    "one-step, forces by element": {"loss": {"forces": {"per_element": True}}},
    "S = 8, stop-gradient": {"curriculum": stages(8), "backprop": "stop_gradient"},
    "S = 2, 4, 8": {"curriculum": stages(2, 4, 8)},
    "S = 1, then 64, adjoint": {"curriculum": stages(1, 64), "backprop": "adjoint"},
    "S = 16 of 2 fs (stride 4)": {"curriculum": stages(16), "stride": 4},
    "the same + positions, velocities": {
        "curriculum": stages(16),
        "stride": 4,
        "loss": {"positions": {"weight": 1.0}, "velocities": {"weight": 1.0}},
    },
}


class Levers:
    """One seed: its data, its start model, and the arms."""

    def __init__(self, output: Path, seed: int, *, short: bool) -> None:
        self.folder, self.seed = output / f"seed_{seed}", seed
        self.folder.mkdir(parents=True, exist_ok=True)
        self.start_evaluations, self.evaluations = (1000, 300) if short else (40_000, 30_000)
        self.audit_fs, self.n_audited = (50.0, 2) if short else (1000.0, 16)
        self.reference = StoredReference("GFN2-xTB", {}, self.folder / "reference")
        n_steps, held_out = (130, 60) if short else (1023, 1500)
        self.train = self._aimd("train", 2, n_steps, 0)
        self.validation = self._aimd("validation", 1, held_out // 3, 1)
        self.test = self._aimd("test", 1, held_out, 2)

    def _aimd(self, name: str, n_runs: int, n_steps: int, number: int) -> list[Path]:
        settings = AimdSettings(system="ethanol", n_steps=n_steps, seed=10 * self.seed + number)
        return generate_aimd(settings, self.folder / "aimd" / name, n_runs=n_runs)

    def model(self, arm: str | None) -> Path:
        """The model of an arm, trained if it is not there yet; None: that from which all of them go on."""
        overrides = {} if arm is None else ARMS[arm]
        adjoint = overrides.get("backprop") == "adjoint"
        values = {
            "data": {"train": [str(f) for f in self.train], "validation": [str(f) for f in self.validation]},
            "output": str(self.folder / ("start" if arm is None else f"arm_{list(ARMS).index(arm)}")),
            "seed": self.seed,
            "start_from": None if arm is None else str(self.model(None)),
            "model": {"settings": {"width": 32, "n_channels": 16}},
            "batch_size": 32 if overrides.get("curriculum") is None else 8,
            "curriculum": stages(1),
            "validation": {"n_starts": 16, "n_steps": 10 if self.audit_fs < 100 else 40},
            "budget": {
                "evaluations": self.start_evaluations if arm is None else self.evaluations,
                "costs": {"rollout": ADJOINT_COST if adjoint else 1.0},
            },
        }
        return train(parse_config({**values, **overrides})).model

    def result(self, arm: str | None) -> dict[str, Any]:
        """The figures of an arm, measured if they are not there yet."""
        path = self.folder / ("start.json" if arm is None else f"arm_{list(ARMS).index(arm)}.json")
        if not path.exists():
            potential, test = load_model(self.model(arm)), read_trajectories(self.test)
            free = own_runs(
                potential,
                test,
                horizon_fs=self.audit_fs,
                temperature=None,
                n_runs=self.n_audited,
                seed=self.seed,
            )
            curve, _, failures = audited(potential, free, self.reference)
            record = {
                "deviation_eV_A": at_marks(beside_recorded(potential, test, self.seed), MARKS_FS),
                "audit_eV_A": at_marks(curve, curve["times_fs"]),
                "audit_failures": failures,
                "n_failed": int(free.failed.sum()),
            }
            write_text(path, json.dumps(record, indent=1) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Rows of a Markdown table, one an arm; the seeds' values side by side."""
    columns = [("deviation_eV_A", mark) for mark in ("0", "25", "50", "100", "150")]
    columns += [("audit_eV_A", mark) for mark in ("0", "200", "1000")]
    names = [f"{'own ' if key == 'audit_eV_A' else ''}{mark} fs" for key, mark in columns]
    lines = [f"| arm | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for arm, seeds in results.items():
        cells = [", ".join(_number(s[key].get(mark)) for s in seeds) for key, mark in columns]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("levers"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    limit_threads(9)
    results: dict[str, list[dict[str, Any]]] = {}
    for seed in arguments.seeds:
        levers = Levers(arguments.output, seed, short=arguments.short)
        for arm in [None, *arguments.arms]:
            print(f"seed {seed}: {arm or 'start'}", flush=True)
            results.setdefault(arm or "start", []).append(levers.result(arm))
            write_text(arguments.output / "results.json", json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
