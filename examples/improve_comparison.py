"""Does `dyntrain improve` beat the same number of other reference calculations? The code of improve_*.py.

Every arm starts from the same one-step model and takes the same number of further model evaluations:

    old frames       nothing new
    ordinary AIMD    as many new frames of ordinary AIMD, as warm as what the others explore
    improve          `dyntrain improve`: on the model's own free runs, up to half of the calls for segments
                     before failures; the others at random times, for segments while any of these runs fails,
                     then for single structures
    segments         the others always for segments
    mixed            the others always for single structures
    structures       all for single structures
    committee        as segments, but not at random times but where two further networks disagree (whose
                     training comes on top, half as many evaluations again)
    dynamic          as segments, but trained along segments of up to 8 frames in the last 40 % of each round

and is measured alike: force error beside a held-out run, force error against the reference on its own free
runs from held-out frames (the audit), and how many free runs fail. Writes results.json and prints the
tables; stopped at any moment, the same command goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from improve_tables import measured, tables

from dyntrain.atomic import write_text
from dyntrain.config import PRESETS, parse_config
from dyntrain.data.readers import read_trajectories
from dyntrain.data.store import write_store
from dyntrain.errors import UserError
from dyntrain.improve import RoundResult, improve
from dyntrain.models.files import load_model
from dyntrain.reference import generate_aimd, settings_for
from dyntrain.reference.cache import StoredReference
from dyntrain.threads import limit_threads
from dyntrain.training import Silent, train

NETWORKS: dict[str, dict[str, Any]] = {
    "egnn": {"name": "egnn", "settings": {"width": 32, "n_channels": 16}},
    "paper_egnn": {"name": "paper_egnn", "settings": {"width": 32}},
}
_LARGEST_RATE = {"egnn": 1e-2, "paper_egnn": 1e-3}
"""Learning rate of new networks, as by default; kept after the start unless `--lr` says otherwise."""

_PIECE = 32
"""Frames of a piece of recorded training runs: enough to see the fastest vibration in."""

_IMPROVED = ("improve", "segments", "mixed", "structures", "committee", "dynamic")
ARMS = ("start", "old frames", "ordinary AIMD", *_IMPROVED)


@dataclasses.dataclass(frozen=True)
class System:
    """What is moved, by which reference, and how warm; ``n_atoms`` of it."""

    name: str
    method: str
    kelvin: float
    n_atoms: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the comparison; the start has ``frames`` in two runs."""

    network: str = "egnn"
    frames: int = 2048
    lr: tuple[float, float] | None = None
    thermalise_steps: int = 500
    held_out_steps: int = 1500
    start_evaluations: float = 20_000
    round_evaluations: float = 10_000
    n_rounds: int = 2
    segments: int = 32
    segment_length: int = 32
    explored_ps: float = 1.0
    drawn_K: float | None = None
    n_runs: int = 32
    run_length_fs: float = 1000.0
    n_audited: int = 16
    audit_fs: float = 1000.0
    batch_size: int = 32

    @property
    def round_calls(self) -> int:
        return self.segments * self.segment_length


SHORT = Sizes(
    frames=128,
    thermalise_steps=50,
    held_out_steps=60,
    start_evaluations=2000,
    round_evaluations=200,
    n_rounds=1,
    segments=4,
    segment_length=8,
    explored_ps=0.1,
    n_runs=4,
    run_length_fs=60.0,
    n_audited=2,
    audit_fs=50.0,
)


class Comparison:
    """One seed of the comparison in a folder of its own.

    Args:
        recorded: folder of at least five AIMD runs of the system by its reference; None: they are made.
    """

    def __init__(
        self, output: Path, seed: int, system: System, sizes: Sizes, recorded: Path | None = None
    ) -> None:
        self.folder, self.seed, self.system, self.sizes = output / f"seed_{seed}", seed, system, sizes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reference = StoredReference(system.method, system.options, self.folder / "reference")
        self.n_new = sizes.n_rounds * sizes.round_calls
        self.recorded = None if recorded is None else sorted(recorded.glob("*.traj"))
        if self.recorded is not None and len(self.recorded) < 5:
            raise UserError(f"{recorded} holds {len(self.recorded)} runs (*.traj), at least five are needed")

    # --- the frames ----------------------------------------------------------------------------------

    @cached_property
    def train(self) -> list[Path]:
        """Frames of the start, in two runs or in pieces of the first two recorded ones."""
        if self.recorded is not None:
            return [self._pieces("train", self.recorded[:2], self.sizes.frames, _PIECE)]
        return self._aimd("train", self.system.kelvin, 2, self.sizes.frames // 2 - 1, 0)

    @cached_property
    def ordinary(self) -> list[Path]:
        """New frames of ordinary AIMD, as many as the other arms get."""
        if self.recorded is not None:
            return [self._pieces("ordinary", self.recorded[2:-2], self.n_new, self.sizes.segment_length)]
        cold = self.system.kelvin
        # Velocities drawn at T from frames of another temperature settle half-way: so warm is this AIMD, too.
        warm = 0.5 * (cold + (self.sizes.drawn_K or cold))
        return self._aimd("ordinary", warm, 2, self.n_new // 2 - 1, 3)

    @cached_property
    def validation(self) -> list[Path]:
        """The last but one of the recorded runs, or a short one."""
        if self.recorded is not None:
            return [self.recorded[-2]]
        return self._aimd("validation", self.system.kelvin, 1, self.sizes.held_out_steps // 3, 1)

    @cached_property
    def test(self) -> list[Path]:
        """The last recorded run, or one."""
        if self.recorded is not None:
            return [self.recorded[-1]]
        return self._aimd("test", self.system.kelvin, 1, self.sizes.held_out_steps, 2)

    def _aimd(self, name: str, kelvin: float, n_runs: int, n_steps: int, number: int) -> list[Path]:
        settings = settings_for(
            self.system.name,
            method=self.system.method,
            calculator_options=self.system.options,
            temperature_K=kelvin,
            n_steps=n_steps,
            thermalise_steps=self.sizes.thermalise_steps,
            seed=10 * self.seed + number,
        )
        return generate_aimd(settings, self.folder / "aimd" / name, n_runs=n_runs)

    def _pieces(self, name: str, files: list[Path], n_frames: int, length: int) -> Path:
        """So many frames of runs, in pieces of a length spread evenly over them."""
        store = self.folder / f"{name}.h5"
        if not store.exists():
            runs = read_trajectories(files)
            share = n_frames // length // len(runs)
            starts = [np.linspace(0, run.n_frames - length, share).astype(int).tolist() for run in runs]
            found = [run[i : i + length] for run, at in zip(runs, starts, strict=True) for i in at]
            write_store(found, store)
        return store

    # --- the arms ------------------------------------------------------------------------------------

    def model(self, arm: str) -> Path:
        """The model of an arm, trained if it is not there yet."""
        if arm == "start":
            return self._trained(arm, self.train, None, self.sizes.start_evaluations)
        if arm in _IMPROVED:
            return self._improved(arm)
        start = self.model("start")
        budget = self.sizes.n_rounds * self.sizes.round_evaluations
        if arm == "old frames":
            return self._trained(arm, self.train, start, budget)
        return self._trained(arm, [*self.train, *self.ordinary], start, budget)

    def _config(self, name: str, data: list[Path], start: Path | None, evaluations: float) -> dict[str, Any]:
        return {
            "data": {"train": [str(f) for f in data], "validation": [str(f) for f in self.validation]},
            "output": str(self.folder / name.replace(" ", "_")),
            "seed": self.seed,
            "model": NETWORKS[self.sizes.network],
            "batch_size": self.sizes.batch_size,
            "start_from": None if start is None else str(start),
            "curriculum": {
                "stages": [{"segment_length": 1, "share": 1}],
                "epochs": 5,
                "lr": self._rates[start is not None],
            },
            "validation": {"n_starts": 16, "n_steps": min(40, self.sizes.held_out_steps // 6)},
            "budget": {"evaluations": evaluations, "costs": {"rollout": 1.0}},
        }

    @property
    def _rates(self) -> tuple[float, float]:
        """Largest learning rate of the start and of each arm."""
        usual = _LARGEST_RATE[self.sizes.network]
        return self.sizes.lr or (usual, usual)

    def _trained(self, name: str, data: list[Path], start: Path | None, evaluations: float) -> Path:
        return train(parse_config(self._config(name, data, start, evaluations))).model

    def _improved(self, arm: str) -> Path:
        sizes, system = self.sizes, self.system
        values = self._config(arm, self.train, self.model("start"), sizes.round_evaluations)
        tight_binding = system.method.endswith("xTB")
        values["improve"] = {
            "reference": "tblite" if tight_binding else system.method,
            "method": system.method if tight_binding else None,
            "options": system.options,
            "calls": self.n_new,
            "horizon": f"{sizes.explored_ps}ps",
            "segments": sizes.segments,
            "segment_length": sizes.segment_length,
            "temperature": sizes.drawn_K,
            "n_runs": min(8, sizes.n_audited, sizes.n_runs),
        }
        apart: dict[str, dict[str, Any]] = {
            "segments": {"elsewhere": "segments"},
            "mixed": {"elsewhere": "structures"},
            "structures": {"segments": sizes.round_calls, "segment_length": 1},
            "committee": {"elsewhere": "segments", "committee": 2},
        }
        values["improve"] |= apart.get(arm, {})
        if arm == "dynamic":
            values["curriculum"]["stages"] = PRESETS["dynamic"]["curriculum"]["stages"]
        return improve(parse_config(values), Quiet()).model

    def result(self, arm: str) -> dict[str, Any]:
        """The figures of an arm, measured if they are not there yet."""
        path, sizes = self.folder / f"{arm.replace(' ', '_')}.json", self.sizes
        if not path.exists():
            found = measured(
                load_model(self.model(arm)),
                read_trajectories(self.test),
                self.reference,
                n_audited=sizes.n_audited,
                audit_fs=sizes.audit_fs,
                drawn_K=sizes.drawn_K,
                n_runs=sizes.n_runs,
                run_length_fs=sizes.run_length_fs,
                seed=self.seed,
            )
            write_text(path, json.dumps(found, indent=1) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))


class Quiet:
    """Says what `dyntrain improve` says, without bars."""

    def say(self, text: str) -> None:
        print(f"    {text}", flush=True)

    @contextmanager
    def training(self, name: str) -> Iterator[Silent]:
        yield Silent()

    @contextmanager
    def progress(self) -> Iterator[Any]:
        yield lambda *_: None

    def measured(self, result: RoundResult) -> None:
        print(f"    {json.dumps(result.summary())}", flush=True)


def main(
    system: System, sizes: Sizes, short: Sizes, short_system: System | None = None, title: str = ""
) -> None:
    """The command line of an example.

    Args:
        sizes: unless options say otherwise.
        short, short_system: those of `--short`, a look at the same code in seconds.
    """
    given = _arguments(system, sizes, title)
    if given.short:
        system, sizes = short_system or system, short
    else:
        sizes = dataclasses.replace(
            sizes,
            network=given.network,
            frames=given.frames,
            lr=given.lr and tuple(given.lr),
            start_evaluations=given.evaluations[0],
            round_evaluations=given.evaluations[1],
            drawn_K=given.kelvin,
            run_length_fs=1000 * given.picoseconds,
            segments=given.segments[0],
            segment_length=given.segments[1],
        )
    limit_threads(system.n_atoms)
    results: dict[str, dict[str, Any]] = {}
    for seed in given.seeds:
        comparison = Comparison(given.output, seed, system, sizes, given.data)
        for arm in given.arms:
            print(f"seed {seed}: {arm}", flush=True)
            results.setdefault(str(seed), {})[arm] = comparison.result(arm)
            write_text(given.output / "results.json", json.dumps(results, indent=1) + "\n")
    print(tables(results))


def _arguments(system: System, sizes: Sizes, title: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--output", type=Path, default=Path(f"improve-{system.name}"))
    parser.add_argument("--data", type=Path, help="folder of at least five AIMD runs; else they are made")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--network", choices=NETWORKS, default=sizes.network)
    parser.add_argument("--frames", type=int, default=sizes.frames, help="of the start, in two runs")
    parser.add_argument(
        "--evaluations",
        type=float,
        nargs=2,
        default=(sizes.start_evaluations, sizes.round_evaluations),
        help="of the start and of each round",
    )
    parser.add_argument(
        "--lr", type=float, nargs=2, help="largest learning rate of the start and of each arm"
    )
    parser.add_argument(
        "--kelvin",
        type=float,
        default=sizes.drawn_K,
        help="draw the free runs' velocities; else the recorded ones",
    )
    parser.add_argument(
        "--picoseconds",
        type=float,
        default=sizes.run_length_fs / 1000,
        help="of the free runs that may fail, where velocities are drawn",
    )
    parser.add_argument(
        "--segments",
        type=int,
        nargs=2,
        default=(sizes.segments, sizes.segment_length),
        help="of `improve`: how many a round, of how many frames",
    )
    parser.add_argument("--short", action="store_true", help="small numbers; their figures mean nothing")
    return parser.parse_args()
