"""The ensembles of the thermostats, as in tests/test_ensembles.py but with more samples; prints a table.

python benchmarks/ensembles.py [--steps 6000]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import physical_validation
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from test_ensembles import COLD, HOT, sampled, unequal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6000, help="of 10 fs, 40 crystals of 8 atoms")
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    print("| thermostat | samples | kinetic mean | kinetic width | potential slope | equipartition | CPU s |")
    print("|---|---|---|---|---|---|---|")
    options = {"verbosity": 0, "bootstrap_seed": 1, "data_is_uncorrelated": True}
    for which in ("langevin", "csvr", "nose-hoover"):
        begun = time.process_time()
        pair = sampled(which, steps)
        runs = [samples.as_simulation(t) for samples, t in zip(pair, (COLD, HOT), strict=True)]
        kinetic = np.array(
            [physical_validation.kinetic_energy.distribution(run, strict=False, **options) for run in runs]
        )
        slope = physical_validation.ensemble.check(*runs, total_energy=False, **options)[0]
        halves = [unequal(samples) for samples in pair]
        cells = [*(_both(column) for column in kinetic.T), f"{slope:.1f}", _both(halves)]
        spent = time.process_time() - begun
        print(f"| {which} | {len(pair[0].kinetic)} | {' | '.join(cells)} | {spent:.0f} |", flush=True)


def _both(values: np.ndarray | list[float]) -> str:
    return ", ".join(f"{value:+.1f}" for value in values)


if __name__ == "__main__":
    main()
