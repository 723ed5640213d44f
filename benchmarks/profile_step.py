"""Where the time of a training step (S = 1) or of a batched MD step goes, function by function.

    python benchmarks/profile_step.py train paper
    python benchmarks/profile_step.py md "paper with tables"
    python benchmarks/profile_step.py md egnn --systems 1

The network as a worker of bench.py has it, one thread. A function's time is its own and that of the PyTorch
operations that it calls itself; those that autograd calls on the way back have a line of their own.
Compiled loops are functions of modules named *_kernels. Python's profiler makes a step some tenths longer.
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import pstats
import time
from collections import defaultdict
from pathlib import Path

import bench_cases
import torch

import dyntrain
from dyntrain.threads import keep_freed_memory

PACKAGE = str(Path(dyntrain.__file__).parent)
N_STEPS = 40


def steps(kind: str, network: str, n_systems: int) -> None:
    """So many steps."""
    if kind == "md":
        bench_cases.md(network, N_STEPS - 1, n_systems)
        return
    for _ in range(N_STEPS):
        bench_cases.training_step(network, 1, "StopGradient")


_Key = tuple[str, int, str]
"""File, line and name of a function, as the profiler has it."""


def own_times(stats: pstats.Stats) -> dict[str, float]:
    """Seconds by function of the package; what it calls outside of the package is its own."""
    functions = stats.stats  # type: ignore[attr-defined]
    found: dict[str, float] = defaultdict(float)

    def charge(key: _Key, seconds: float, above: frozenset[_Key]) -> None:
        """To the nearest functions of the package that call it, by their shares of its time."""
        file, line, name = key
        if file.startswith(PACKAGE) and not name.startswith("<"):
            found[f"{Path(file).stem}:{line} {name}"] += seconds
            return
        callers = {caller: times[2] for caller, times in functions[key][4].items() if caller not in above}
        total = sum(callers.values())
        if not total:
            found["autograd's backward pass, and the benchmark itself"] += seconds
        for caller, share in callers.items():
            if total:
                charge(caller, seconds * share / total, above | {caller})

    for key, (_, _, own, _, _) in functions.items():
        charge(key, own, frozenset({key}))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("step", choices=("train", "md"))
    parser.add_argument("network", choices=("paper", "paper with tables", "egnn", "plain"))
    parser.add_argument("--systems", type=int, default=bench_cases.BATCH_SIZE, help="of an MD step")
    parser.add_argument("--least", type=float, default=0.01, help="share of the time that is worth a line")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    step = (given.step, given.network, given.systems)
    steps(*step)
    gc.collect()  # a third of a second, which would fall on whichever function has it begin
    begin = time.process_time()
    steps(*step)
    plain = (time.process_time() - begin) / N_STEPS
    profile = cProfile.Profile(time.process_time)
    profile.runcall(steps, *step)
    times = own_times(pstats.Stats(profile))
    total = sum(times.values())
    loops = sum(seconds for name, seconds in times.items() if "_kernels:" in name)
    print(f"{1e3 * plain:.1f} ms a step; with the profiler {1e3 * total / N_STEPS:.1f}:")
    for name, seconds in sorted(times.items(), key=lambda item: -item[1]):
        if seconds >= given.least * total:
            print(f"{1e3 * seconds / N_STEPS:8.2f}  {seconds / total:5.1%}  {name}")
    print(f"{1e3 * loops / N_STEPS:8.2f}  {loops / total:5.1%}  all of modules *_kernels")


if __name__ == "__main__":
    main()
