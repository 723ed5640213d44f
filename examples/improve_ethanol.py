"""Does `dyntrain improve` beat the same number of other reference calculations? Ethanol, GFN2-xTB.

Every arm starts from the same one-step model and takes the same number of further model evaluations:

    old frames       nothing new
    ordinary AIMD    as many new frames of ordinary AIMD, as warm as what the others explore
    single frames    as many single structures of the model's own free runs, at random times, in two rounds
    improve          `dyntrain improve`: segments on the model's own free runs, half before failures

and is measured alike: force error beside a held-out run, force error against the reference on its own free
runs from held-out frames (the audit), and how many free runs fail.

    python examples/improve_ethanol.py --output few --frames 256 --kelvin 1000
    python examples/improve_ethanol.py --output paper --network paper_egnn --kelvin 1000

writes results.json and prints the table; stopped at any moment, the same command goes on. `--short` is the
same code with small numbers, for a look in under a minute; nothing can be concluded from its figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from dyntrain.atomic import write_text
from dyntrain.config import parse_config
from dyntrain.data.readers import read_trajectories
from dyntrain.data.store import write_store
from dyntrain.data.trajectory import Trajectory
from dyntrain.evaluate import MARKS_FS, criterion_for, free_runs
from dyntrain.evaluate.audit import to_atoms
from dyntrain.improve import RoundResult, improve
from dyntrain.improve.explore import AT_RANDOM, Place, free_starts, place_state, whole_until
from dyntrain.improve.rounds import at_marks, audited, beside_recorded, own_runs
from dyntrain.models.files import load_model
from dyntrain.observables import median_time_to_failure
from dyntrain.potential import Potential
from dyntrain.reference import AimdSettings, generate_aimd
from dyntrain.reference.cache import StoredReference
from dyntrain.threads import limit_threads
from dyntrain.training import Silent, train
from dyntrain.units import FS

NETWORKS: dict[str, dict[str, Any]] = {
    "egnn": {"name": "egnn", "settings": {"width": 32, "n_channels": 16}},
    "paper_egnn": {"name": "paper_egnn", "settings": {"width": 32}},
}
ARMS = ("start", "old frames", "ordinary AIMD", "single frames", "improve")


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the comparison."""

    network: str = "egnn"
    n_steps: int = 1023
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

    @property
    def round_calls(self) -> int:
        return self.segments * self.segment_length


SHORT = Sizes(
    n_steps=63,
    thermalise_steps=50,
    held_out_steps=60,
    start_evaluations=2400,
    round_evaluations=200,
    n_rounds=1,
    segments=4,
    segment_length=8,
    explored_ps=0.1,
    drawn_K=1000.0,
    n_runs=4,
    run_length_fs=60.0,
    n_audited=2,
    audit_fs=50.0,
)


class Example:
    """One seed of the comparison in a folder of its own."""

    def __init__(self, output: Path, seed: int, sizes: Sizes) -> None:
        self.folder, self.seed, self.sizes = output / f"seed_{seed}", seed, sizes
        self.folder.mkdir(parents=True, exist_ok=True)
        self.reference = StoredReference("GFN2-xTB", {}, self.folder / "reference")
        # Velocities drawn at T from frames of 500 K settle half-way: so warm is the ordinary AIMD, too.
        warm = 0.5 * (500.0 + (sizes.drawn_K or 500.0))
        self.train = self._aimd("train", 500.0, 2, sizes.n_steps, 0)
        self.validation = self._aimd("validation", 500.0, 1, sizes.held_out_steps // 3, 1)
        self.test = self._aimd("test", 500.0, 1, sizes.held_out_steps, 2)
        n_new = sizes.n_rounds * sizes.round_calls
        self.ordinary = self._aimd("ordinary", warm, 2, n_new // 2 - 1, 3)

    def _aimd(self, name: str, kelvin: float, n_runs: int, n_steps: int, number: int) -> list[Path]:
        settings = AimdSettings(
            system="ethanol",
            temperature_K=kelvin,
            n_steps=n_steps,
            thermalise_steps=self.sizes.thermalise_steps,
            seed=10 * self.seed + number,
        )
        return generate_aimd(settings, self.folder / "aimd" / name, n_runs=n_runs)

    # --- the arms ------------------------------------------------------------------------------------

    def model(self, arm: str) -> Path:
        """The model of an arm, trained if it is not there yet."""
        if arm == "start":
            return self._trained(arm, self.train, None, self.sizes.start_evaluations)
        if arm == "improve":
            return self._improved()
        start = self.model("start")
        budget = self.sizes.n_rounds * self.sizes.round_evaluations
        if arm == "old frames":
            return self._trained(arm, self.train, start, budget)
        if arm == "ordinary AIMD":
            return self._trained(arm, [*self.train, *self.ordinary], start, budget)
        data, model = list(self.train), start
        for number in range(1, self.sizes.n_rounds + 1):
            data.append(self._single_frames(model, number))
            model = self._trained(f"{arm} {number}", data, model, self.sizes.round_evaluations)
        return model

    def _config(self, name: str, data: list[Path], start: Path | None, evaluations: float) -> dict[str, Any]:
        return {
            "data": {"train": [str(f) for f in data], "validation": [str(f) for f in self.validation]},
            "output": str(self.folder / name.replace(" ", "_")),
            "seed": self.seed,
            "model": NETWORKS[self.sizes.network],
            "batch_size": 32,
            "start_from": None if start is None else str(start),
            "curriculum": {"stages": [{"segment_length": 1, "share": 1}], "epochs": 5},
            "validation": {"n_starts": 16, "n_steps": min(40, self.sizes.held_out_steps // 6)},
            "budget": {"evaluations": evaluations, "costs": {"rollout": 1.0}},
        }

    def _trained(self, name: str, data: list[Path], start: Path | None, evaluations: float) -> Path:
        return train(parse_config(self._config(name, data, start, evaluations))).model

    def _improved(self) -> Path:
        sizes = self.sizes
        values = self._config("improve", self.train, self.model("start"), sizes.round_evaluations)
        values["improve"] = {
            "reference": "tblite",
            "method": "GFN2-xTB",
            "calls": sizes.n_rounds * sizes.round_calls,
            "horizon": f"{sizes.explored_ps}ps",
            "segments": sizes.segments,
            "segment_length": sizes.segment_length,
            "temperature": sizes.drawn_K,
            "n_runs": min(8, sizes.n_runs),
        }
        return improve(parse_config(values), Quiet()).model

    def _single_frames(self, model: Path, number: int) -> Path:
        """Structures of the model's own free runs at random times, labelled: as many as a round has calls."""
        file = self.folder / f"single_{number}.h5"
        if file.exists():
            return file
        sizes, runs = self.sizes, read_trajectories(self.train)
        free = free_runs(
            load_model(model),
            free_starts(runs, sizes.n_runs, sizes.drawn_K, 1000 * self.seed + number),
            runs[0].dt,
            1000 * sizes.explored_ps,
            criterion=criterion_for(runs),
        )
        assert free.motion is not None
        random, last = np.random.default_rng([self.seed, number]), whole_until(free)
        early = np.minimum(0.2 * free.run_length_fs, last)
        frames = []
        for drawn in range(sizes.round_calls):
            run = drawn % free.n_runs
            time_fs = float(random.uniform(early[run], last[run]))
            atoms = to_atoms(place_state(free.motion, Place(run, time_fs, AT_RANDOM))[1])
            frames.append((atoms, self.reference.label(atoms)))
        write_store([_in_pairs(frames, str(file))], file)
        return file

    # --- what is measured ----------------------------------------------------------------------------

    def result(self, arm: str) -> dict[str, Any]:
        """The figures of an arm, measured if they are not there yet."""
        path = self.folder / f"{arm.replace(' ', '_')}.json"
        if not path.exists():
            write_text(path, json.dumps(self._measured(load_model(self.model(arm))), indent=1) + "\n")
        return json.loads(path.read_text(encoding="utf-8"))

    def _measured(self, potential: Potential) -> dict[str, Any]:
        sizes, test, seed = self.sizes, read_trajectories(self.test), self.seed
        free = own_runs(
            potential, test, horizon_fs=sizes.audit_fs, temperature=None, n_runs=sizes.n_audited, seed=seed
        )
        curve, _, failures = audited(potential, free, self.reference)
        if sizes.drawn_K is not None:  # these may fail: so many and so long as can tell
            free = own_runs(
                potential,
                test,
                horizon_fs=sizes.run_length_fs,
                temperature=sizes.drawn_K,
                n_runs=sizes.n_runs,
                seed=seed,
            )
        return {
            "deviation_eV_A": at_marks(beside_recorded(potential, test, seed), MARKS_FS),
            "audit_eV_A": at_marks(curve, curve["times_fs"]),
            "audit_failures": failures,
            "n_failed": int(free.failed.sum()),
            "n_runs": free.n_runs,
            "run_length_fs": free.run_length_fs,
            "failure_fs": free.failure_fs.tolist(),
            "failed": free.failed.tolist(),
            "median_time_to_failure_fs": median_time_to_failure(free.failure_fs, free.failed),
        }


def _in_pairs(frames: list[Any], name: str) -> Trajectory:
    """Single structures as a run, to be trained on one by one (S = 1).

    A frame alone belongs to no run, so each is followed by itself 0.001 fs later, with the same label (the
    forces change by less than 0.001 eV/Å); no window crosses from one structure to the next.
    """
    dt, first = 0.001 * FS, frames[0][0]
    positions = np.array([atoms.positions for atoms, _ in frames])
    velocities = np.array([atoms.get_velocities() for atoms, _ in frames])
    return Trajectory(
        positions=np.stack([positions, positions + velocities * dt], axis=1).reshape(-1, len(first), 3),
        velocities=np.repeat(velocities, 2, axis=0),
        forces=np.repeat([label.forces for _, label in frames], 2, axis=0),
        energies=np.repeat([label.energy for _, label in frames], 2),
        cell=first.cell.array,
        pbc=first.pbc,
        atomic_numbers=first.numbers,
        masses=first.get_masses(),
        dt=dt,
        breaks=tuple(range(2, 2 * len(frames), 2)),
        file=name,
    )


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


def table(results: dict[str, dict[str, Any]]) -> str:
    """Rows of a Markdown table, one an arm; several seeds as their values side by side."""
    columns = [("deviation_eV_A", mark) for mark in ("0", "50", "100", "150")]
    columns += [("audit_eV_A", mark) for mark in ("0", "100", "200", "500", "1000")]
    names = [f"{'own ' if key.startswith('audit') else ''}{mark} fs" for key, mark in columns]
    lines = [f"| arm | {' | '.join(names)} | failed | median ps |", "|---" * (len(names) + 3) + "|"]
    for arm in ARMS:
        seeds = [by_arm[arm] for by_arm in results.values() if arm in by_arm]
        cells = [", ".join(_number(s[key].get(mark)) for s in seeds) for key, mark in columns]
        cells.append(", ".join(f"{s['n_failed']}/{s['n_runs']}" for s in seeds))
        medians = [s["median_time_to_failure_fs"] for s in seeds]
        cells.append(", ".join("beyond" if m is None else f"{m / 1000:.2f}" for m in medians))
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("improve-ethanol"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--network", choices=NETWORKS, default="egnn")
    parser.add_argument("--frames", type=int, default=2048, help="of the start, in two runs")
    parser.add_argument(
        "--evaluations", type=float, nargs=2, default=(20_000, 10_000), help="of the start and of each round"
    )
    parser.add_argument("--kelvin", type=float, help="draw the free runs' velocities; else the recorded ones")
    parser.add_argument(
        "--segments",
        type=int,
        nargs=2,
        default=(32, 32),
        help="of `improve`: how many a round, of how many frames",
    )
    parser.add_argument("--short", action="store_true")
    arguments = parser.parse_args()
    limit_threads(9)
    sizes = Sizes(
        network=arguments.network,
        n_steps=arguments.frames // 2 - 1,
        start_evaluations=arguments.evaluations[0],
        round_evaluations=arguments.evaluations[1],
        drawn_K=arguments.kelvin,
        segments=arguments.segments[0],
        segment_length=arguments.segments[1],
    )
    results: dict[str, dict[str, Any]] = {}
    for seed in arguments.seeds:
        example = Example(arguments.output, seed, SHORT if arguments.short else sizes)
        for arm in arguments.arms:
            print(f"seed {seed}: {arm}", flush=True)
            results.setdefault(str(seed), {})[arm] = example.result(arm)
            write_text(arguments.output / "results.json", json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
