"""A small fast network, taught by a big one along its own runs: is it right where it goes? Ethanol, GFN2-xTB.

    python examples/improve_distil.py --output distil

The big network (egnn) is trained on ordinary AIMD. Each small network starts from the same one-step model on
the same frames, and goes on for the same number of model evaluations:

    AIMD frames           on the same frames
    the big model's runs  on free runs of the big model, labelled by it: many times as many frames
    coarse segments       on the same free runs, along segments of 8 steps of 2 fs, not single structures
    improve               `dyntrain improve` with the big model as the reference: its first runs, and segments
                          on the small model's own runs, as many frames in all

All are measured against GFN2-xTB itself, and for speed. `--short` is the same code with small numbers, for a
look in under a minute; nothing can be concluded from its figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from improve_comparison import SHORT, Comparison, Quiet, Sizes, System
from improve_tables import tables

from dyntrain.atomic import write_text
from dyntrain.config import parse_config
from dyntrain.data.readers import read_trajectories
from dyntrain.evaluate.speed import measure_speed
from dyntrain.improve import improve
from dyntrain.improve.explore import free_starts
from dyntrain.models.files import load_model
from dyntrain.potential import Potential
from dyntrain.simulate import TrajectoryFiles, simulate
from dyntrain.threads import limit_threads
from dyntrain.training import train

BIG, AIMD, RUNS, SEGMENTS, IMPROVE = (
    "big",
    "AIMD frames",
    "the big model's runs",
    "coarse segments",
    "improve",
)
ARMS = (BIG, "start", AIMD, RUNS, SEGMENTS, IMPROVE)
_SEGMENT_LENGTH, _STRIDE = 8, 4
NETWORKS = {
    BIG: {"name": "egnn", "settings": {"width": 64, "n_channels": 16}},
    "small": {"name": "egnn", "settings": {"width": 8, "n_channels": 4}},
}


@dataclasses.dataclass(frozen=True)
class Teaching:
    """Model evaluations of the big network, of the small start and of what follows; frames labelled by it."""

    big_evaluations: float = 100_000
    start_evaluations: float = 100_000
    further_evaluations: float = 100_000
    n_frames: int = 8192


SIZES = Sizes(drawn_K=1000.0, explored_ps=0.5, n_runs=16, run_length_fs=500.0, n_audited=8, audit_fs=500.0)
SHORT_SIZES = dataclasses.replace(SHORT, drawn_K=100.0)
QUICK = Teaching(2000, 2500, 300, 256)


class Distillation(Comparison):
    """One seed, in a folder of its own."""

    def __init__(self, output: Path, seed: int, sizes: Sizes, teaching: Teaching) -> None:
        super().__init__(output, seed, System("ethanol", "GFN2-xTB", kelvin=500.0, n_atoms=9), sizes)
        self.teaching = teaching

    def model(self, arm: str) -> Path:
        """The model of an arm, trained if it is not there yet."""
        teaching = self.teaching
        if arm == BIG:
            return self._taught(arm, self.train, None, teaching.big_evaluations)
        if arm == "start":
            return self._taught(arm, self.train, None, teaching.start_evaluations)
        if arm == AIMD:
            return self._taught(arm, self.train, self.model("start"), teaching.further_evaluations)
        if arm in (RUNS, SEGMENTS):
            data = [self._runs_of_big(teaching.n_frames)]
            return self._taught(arm, data, self.model("start"), teaching.further_evaluations)
        return self._improved(arm)

    def _settings(
        self, name: str, data: list[Path], start: Path | None, evaluations: float
    ) -> dict[str, Any]:
        values = self._config(name, data, start, evaluations)
        values["model"] = NETWORKS[BIG if name == BIG else "small"]
        if name == SEGMENTS:
            values["stride"] = _STRIDE
            values["curriculum"]["stages"] = [{"segment_length": _SEGMENT_LENGTH, "share": 1}]
        return values

    def _taught(self, name: str, data: list[Path], start: Path | None, evaluations: float) -> Path:
        return train(parse_config(self._settings(name, data, start, evaluations))).model

    def _improved(self, arm: str) -> Path:
        teaching, sizes = self.teaching, self.sizes
        calls = teaching.n_frames // 2
        length = sizes.segment_length
        data = [self._runs_of_big(teaching.n_frames - calls)]
        values = self._settings(arm, data, self.model("start"), teaching.further_evaluations / sizes.n_rounds)
        values["improve"] = {
            "reference": str(self.model(BIG)),
            "calls": calls,
            "segments": calls // sizes.n_rounds // length,
            "segment_length": length,
            "elsewhere": "segments",
            "horizon": f"{sizes.explored_ps}ps",
            "temperature": sizes.drawn_K,
            "n_runs": min(8, sizes.n_runs),
        }
        return improve(parse_config(values), Quiet()).model

    def _runs_of_big(self, n_frames: int) -> Path:
        """Free runs of the big model from training frames, as warm as those that the small one explores."""
        file = self.folder / f"big_{n_frames}.h5md"
        if not file.exists():
            runs, n_runs = read_trajectories(self.train), 8
            starts = free_starts(runs, n_runs, self.sizes.drawn_K, self.seed)
            motion = simulate(load_model(self.model(BIG)), starts, runs[0].dt, n_frames // n_runs - 1)
            files = TrajectoryFiles(file, starts, runs[0].dt, every=1)
            for frame in motion:
                files.write(frame, motion.conserved_energy())
            files.close(finished=True)
        return file

    def speeds(self) -> str:
        """ms for a step of one molecule and of many, side by side."""
        runs = read_trajectories(self.test)
        models: list[Potential] = [load_model(self.model(arm)) for arm in (BIG, "start")]
        lines = ["| molecules | big: ms a step | small: ms a step |", "|---|---|---|"]
        for n_molecules in (1, 32, 256):
            starts = free_starts(runs, n_molecules, None, self.seed)
            big, small = measure_speed(models, starts, runs[0].dt)
            lines.append(f"| {n_molecules} | {big.ms_per_step:.2f} | {small.ms_per_step:.2f} |")
        return "\n".join(lines)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("improve-distil"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--short", action="store_true")
    given = parser.parse_args()
    limit_threads(9)
    sizes = SHORT_SIZES if given.short else SIZES
    teaching = QUICK if given.short else Teaching()
    results: dict[str, dict[str, Any]] = {}
    for seed in given.seeds:
        distillation = Distillation(given.output, seed, sizes, teaching)
        for arm in ARMS:
            print(f"seed {seed}: {arm}", flush=True)
            results.setdefault(str(seed), {})[arm] = distillation.result(arm)
            write_text(given.output / "results.json", json.dumps(results, indent=1) + "\n")
    print(tables(results, control=AIMD))
    print(f"\n{distillation.speeds()}")


if __name__ == "__main__":
    main()
