"""Times dyntrain, the published code and rival networks side by side; writes results.json and results.md.

    make bench-rivals                  makes the rivals' models once, each in its own environment
    make bench                         measures
    make bench REFERENCE=path          the published code too, from a checkout of it

Every contestant is a process of its own on one thread. They take turns, one case each, and each figure is
the median over the rounds; a ratio is the median of the rounds' ratios, so that other work on the computer,
which hits all alike, does not count. Times are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
BATCH_SIZE = 8
QUOTED = {"train 1": 1.44, "train 3": 3.83, "train 7": 11.3, "md": 0.052}
"""CPU seconds of the published code: a training step of batch 8 by S, one structure's MD step."""
QUOTED_MEMORY = {1: 1.5e9, 3: 3.3e9, 7: 6.9e9}
RIVALS = {
    "mace_scalar": ".venv-mace",
    "mace_vector": ".venv-mace",
    "nequip": ".venv-e3nn",
    "nequip_scalar": ".venv-e3nn",
    "sevennet": ".venv-e3nn",
    "sevennet_scalar": ".venv-e3nn",
}
MD_STEPS = 10


class Worker:
    """A process that answers lines; started when first asked."""

    def __init__(self, command: Sequence[str | Path]) -> None:
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
        )
        self._read("ready")

    def _read(self, expected: str | None = None) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if expected is None or line.strip() == expected:
                return line
        raise SystemExit(f"{self.process.args} ended with status {self.process.wait()}")

    def ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return json.loads(self._read())

    def run(self, case: str, **order: Any) -> dict[str, float]:
        return self.ask(json.dumps({"case": case, **order}))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def ours() -> Worker:
    return Worker([sys.executable, HERE / "bench_cases.py"])


def in_turns(contestants: dict[str, Any], n_rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each by round; a first round, which loads code and fills caches, is not counted.

    Each round begins with another of them: what runs before leaves its traces in caches and memory.
    """
    names = list(contestants)
    found: dict[str, list[float]] = {name: [] for name in names}
    for number in range(n_rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            seconds = contestants[name]()
            if number:
                found[name].append(seconds)
    return found


def ratio(slow: list[float], fast: list[float]) -> float:
    return statistics.median(s / f for s, f in zip(slow, fast, strict=True))


def row(what: str, target: str, measured: str, holds: bool | None, **numbers: Any) -> dict[str, Any]:
    print(f"{what}: {measured} (target {target})", file=sys.stderr, flush=True)
    return {"what": what, "target": target, "measured": measured, "holds": holds, **numbers}


# --- the rows ---------------------------------------------------------------------------------------


def training_rows(worker: Worker, reference: Worker | None, n_rounds: int) -> list[dict[str, Any]]:
    rows = []
    for length in (1, 3, 7):
        order = {"length": length, "way": "StopGradient"}

        def ask(network: str, order: dict[str, Any] = order) -> float:
            return worker.run("train", network=network, **order)["cpu"]

        contestants = {name: lambda name=name: ask(name) for name in ("paper", "egnn", "plain")}
        if reference is not None:
            contestants["reference"] = lambda order=order: reference.run("train", **order)["cpu"]
        found = in_turns(contestants, n_rounds if length < 7 else 1)
        for name, times in (("paper", 5.0), ("egnn", 20.0)):
            if reference is not None:
                faster, how = ratio(found["reference"], found[name]), "the published code beside it"
            else:
                faster = QUOTED[f"train {length}"] / statistics.median(found[name])
                how = "quoted figures of the published code"
            plain = ratio(found["plain"], found[name])
            measured = (
                f"{statistics.median(found[name]):.3f} s; {faster:.1f} × less than {how}, {plain:.1f} × "
            )
            measured += "less than our plain evaluation"
            network = "paper's network" if name == "paper" else "default network"
            what = f"training step, {network}, S = {length}"
            rows.append(row(what, f"≥ {times:g} × less CPU", measured, faster >= times, seconds=found))
    return rows


def md_rows(worker: Worker, reference: Worker | None, n_rounds: int) -> list[dict[str, Any]]:
    """Batched roll-outs without gradient, per structure and step."""
    each = BATCH_SIZE * (MD_STEPS + 1)

    def ask(network: str) -> float:
        return worker.run("md", network=network, n_steps=MD_STEPS)["cpu"] / each

    networks = ("paper", "paper with tables", "egnn", "plain")
    contestants = {name: lambda name=name: ask(name) for name in networks}
    if reference is not None:
        contestants["reference"] = lambda: reference.run("md", n_steps=MD_STEPS)["cpu"] / each
    found = in_turns(contestants, n_rounds)
    rows = []
    titles = {
        "paper": "paper's network",
        "paper with tables": "the same with tables",
        "egnn": "default network",
    }
    for name, times in (("paper", 6.0), ("paper with tables", 9.0), ("egnn", 20.0)):
        mine = statistics.median(found[name])
        faster = ratio(found["reference"], found[name]) if reference is not None else QUOTED["md"] / mine
        how = (
            "the published code beside it"
            if reference is not None
            else "quoted figures of the published code"
        )
        measured = f"{1e3 * mine:.2f} ms a structure and step; {faster:.1f} × less than {how}, "
        measured += f"{ratio(found['plain'], found[name]):.1f} × less than our plain evaluation"
        what = f"batched roll-out without gradient, {titles[name]}"
        rows.append(row(what, f"≥ {times:g} × less CPU", measured, faster >= times, seconds=found))
    return rows


def compiled_rows(worker: Worker, n_rounds: int) -> list[dict[str, Any]]:
    """What compiled loops are worth, and a second thread, in wall time: waiting threads take CPU time."""
    steps = {
        "training step": {"case": "train", "length": 1, "way": "StopGradient"},
        "batched roll-out without gradient": {"case": "md", "n_steps": MD_STEPS},
    }

    def wall(**order: Any) -> float:
        return worker.run(**order)["wall"]

    rows = []
    for what, step in steps.items():
        for network, title in {"paper": "paper's network", "egnn": "default network"}.items():
            contestants = {
                f"{kind} {threads}": partial(
                    wall, network=network, threads=threads, compiled=kind == "compiled", **step
                )
                for threads in (1, 2)
                for kind in ("compiled", "plain")
            }
            found = in_turns(contestants, 2 * n_rounds)
            one, two = (ratio(found[f"compiled {n}"], found[f"plain {n}"]) for n in (1, 2))
            threads = ratio(found["compiled 2"], found["compiled 1"])
            measured = f"{one:.2f} of the time of PyTorch's operations on one thread, {two:.2f} on two; "
            measured += f"two threads take {threads:.2f} of the time of one"
            rows.append(row(f"compiled loops, {what}, {title}", "", measured, None, seconds=found))
    return rows


def growth_rows(worker: Worker, n_rounds: int) -> list[dict[str, Any]]:
    rows = []
    for way, allowed in (("StopGradient", 1.05), ("Adjoint", 1.6)):
        for length in (4, 8):

            def ask(length: int, way: str = way) -> float:
                return worker.run("train", network="egnn", length=length, way=way)["cpu"]

            contestants = {
                # As often as S, so that both meet the same load of the computer.
                "S times 1": lambda length=length, ask=ask: sum(ask(1) for _ in range(length)),
                "S": lambda length=length, ask=ask: ask(length),
            }
            found = in_turns(contestants, n_rounds + 2)
            grows = ratio(found["S"], found["S times 1"])
            what = f"cost of S = {length} over {length} × that of S = 1, {way}"
            rows.append(row(what, f"≤ {allowed}", f"{grows:.2f}", grows <= allowed, seconds=found))
    return rows


def memory_of(n_steps: int, **order: Any) -> float:
    """Bytes that the first training steps of a fresh process take, the loading of code among them.

    The median of three: where the C library happens to lay arrays moves single ones by a tenth.
    """
    taken = []
    for _ in range(3):
        worker = ours()
        taken.append(sum(worker.run("train", **order)["bytes"] for _ in range(n_steps)))
        worker.close()
    return statistics.median(taken)


def memory_rows() -> list[dict[str, Any]]:
    taken = memory_of(1, network="paper", length=7, way="StopGradient")
    measured = f"{taken / 1e9:.2f} GB; the published code (quoted) {QUOTED_MEMORY[7] / 1e9} GB"
    holds = taken <= QUOTED_MEMORY[7] / 5
    rows = [row("memory of the training step, paper's network, S = 7", "≤ 1/5", measured, holds, bytes=taken)]
    # As many evaluations: the peak is that of the one whose arrays happen to lie worst.
    one, many = (memory_of(128 // n, network="paper", length=n, way="Adjoint") for n in (1, 128))
    measured = f"{one / 1e6:.0f} MB in 128 steps at S = 1, {many / 1e6:.0f} MB in one at S = 128"
    what = "memory of Adjoint, paper's network, S = 128 over S = 1"
    rows.append(row(what, "≤ 1.3", measured, many <= 1.3 * one, bytes=[one, many]))
    return rows


def overhead_rows(worker: Worker, n_rounds: int) -> list[dict[str, Any]]:
    """More rounds than elsewhere: differences of a few per cent are sought."""
    rows = []
    for network, rounds in (("paper", 5 * n_rounds), ("egnn", 30 * n_rounds)):
        steps = {"of known frames": True, "of frames never met": False}
        contestants = {
            kind: lambda network=network, known=known: worker.run(
                "whole_training_step", network=network, met_before=known
            )["cpu"]
            for kind, known in steps.items()
        }
        contestants["bare"] = lambda network=network: worker.run("bare_training_step", network=network)["cpu"]
        found = in_turns(contestants, rounds)
        for kind in steps:
            more = ratio(found[kind], found["bare"]) - 1.0
            what = f"training step {kind} over the bare network, {network}"
            rows.append(row(what, "≤ 5 %", f"{100 * more:.1f} %", more <= 0.05, seconds=found))
        contestants = {
            "whole": lambda network=network: worker.run("md", network=network, n_steps=MD_STEPS)["cpu"],
            "bare": lambda network=network: worker.run("bare_evaluations", network=network, n_steps=MD_STEPS)[
                "cpu"
            ],
        }
        found = in_turns(contestants, rounds)
        more = ratio(found["whole"], found["bare"]) - 1.0
        what = f"batched MD step over the bare network, {network}"
        rows.append(row(what, "≤ 15 %", f"{100 * more:.1f} %", more <= 0.15, seconds=found))
    return rows


def size_rows() -> list[dict[str, Any]]:
    """57 to 20 577 atoms: time and memory an atom, in fresh processes."""
    found = {}
    for times in (5, 10, 19):
        worker = ours()
        worker.run("repeated", network="egnn", times=1)
        first = worker.run("repeated", network="egnn", times=times)
        again = [worker.run("repeated", network="egnn", times=times)["cpu"] for _ in range(9)]
        worker.close()
        found[57 * times**2] = {"cpu": statistics.median(again), "bytes": first["bytes"]}
    (small, least), (middle, more), (large, most) = found.items()
    time_grows = most["cpu"] / least["cpu"] * small / large
    # Of the atoms that come on top: the first fit into memory that the process has had from its start.
    last = (most["bytes"] - more["bytes"]) / (large - middle)
    memory_grows = last / ((more["bytes"] - least["bytes"]) / (middle - small))
    what = f"cost an atom of {large} atoms over that of {small}, default network"
    measured = f"time {time_grows:.2f}, memory of further atoms {memory_grows:.2f}"
    measured += f" ({most['cpu']:.2f} s, {most['bytes'] / 1e9:.2f} GB)"
    return [row(what, "1 (linear); ≤ 1.25", measured, time_grows < 1.25 and memory_grows < 1.25, found=found)]


def rival_rows(environments: Path, n_rounds: int) -> list[dict[str, Any]]:
    """One MD step of the slab through each package's own ASE calculator."""
    commands = {
        "egnn": [sys.executable],
        **{name: [environments / venv / "bin" / "python"] for name, venv in RIVALS.items()},
    }
    made = {name: HERE / "models" / f"{name}.json" for name in commands}
    present = {name: json.loads(file.read_text()) for name, file in made.items() if file.is_file()}
    if set(present) <= {"egnn"}:
        return [row("MD step through ASE", "≥ 3 × faster", "no rivals made: make bench-rivals", None)]
    script = [HERE / "rivals.py", "--serve"]
    workers = {name: Worker([*commands[name], *script, name]) for name in present}
    # About a second each: what MD costs once it runs, not its first steps after others had the caches.
    n_steps = {name: max(10, round(10 / worker.ask("10"))) for name, worker in workers.items()}
    asks = {
        name: lambda worker=worker, n=n_steps[name]: worker.ask(str(n)) / n
        for name, worker in workers.items()
    }
    found = in_turns(asks, n_rounds)
    for worker in workers.values():
        worker.close()
    rows = []
    for name, facts in present.items():
        milliseconds = 1e3 * statistics.median(found[name])
        error = f"{1e3 * facts['force_error']:.0f} meV/Å after {facts['cpu_seconds']:.0f} CPU s of training"
        if name == "egnn":
            rows.append(row("MD step through ASE, dyntrain", "", f"{milliseconds:.1f} ms, {error}", None))
            continue
        faster = ratio(found[name], found["egnn"])
        worse = facts["force_error"] > present["egnn"]["force_error"]
        measured = f"{milliseconds:.1f} ms, {error} ({'more' if worse else 'less'} than ours): "
        measured += f"ours is {faster:.1f} × faster"
        what, target = f"MD step through ASE, {facts['title']}", "≥ 3 × faster at equal error"
        rows.append(row(what, target, measured, faster >= 3.0, seconds=found))
    return rows


def start_rows() -> list[dict[str, Any]]:
    def seconds(*command: str) -> float:
        begin = os.times()
        subprocess.run([sys.executable, *command], check=True, capture_output=True, cwd=ROOT)
        end = os.times()
        return end.children_user + end.children_system - begin.children_user - begin.children_system

    cli = "import sys; sys.argv = ['dyntrain', '--help']; from dyntrain.cli import main; main()"
    found = {"help": [], "torch": [], "dyntrain": []}
    for _ in range(3):
        found["help"].append(seconds("-c", cli))
        found["torch"].append(seconds("-c", "import torch"))
        found["dyntrain"].append(seconds("-c", "import dyntrain, dyntrain.models.files, dyntrain.rollout"))
    shows = statistics.median(found["help"])
    beyond = statistics.median(found["dyntrain"]) - statistics.median(found["torch"])
    return [
        row("dyntrain --help", "< 0.5 s", f"{shows:.2f} s", shows < 0.5, seconds=found),
        row("import dyntrain beyond torch", "< 1.5 s", f"{beyond:.2f} s", beyond < 1.5),
    ]


# --- the page ----------------------------------------------------------------------------------------


def processor() -> str:
    """Its name, as far as the system tells it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def page(rows: list[dict[str, Any]]) -> str:
    marks = {True: "yes", False: "**no**", None: "–"}
    lines = [
        "# Speed",
        "",
        "H2 on Pd6 at a graphene vacancy (57 atoms, periodic, 1630 directed neighbour pairs within 5 Å), "
        "batches of 8, single precision, one thread, CPU time. Contestants take turns; figures are medians, "
        "ratios medians of the rounds' ratios, so that other work on the computer does not count. "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}. Made by `make bench`.",
        "",
        "| what | target | measured | holds | processor |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['what']} | {r['target']} | {r['measured']} | {marks[r['holds']]} | {r['processor']} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reference", type=Path, help="checkout of the published code")
    parser.add_argument("--environments", type=Path, default=ROOT, help="folder of .venv-mace and .venv-e3nn")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="measure these groups again, the rest stays as it was")
    arguments = parser.parse_args()
    reference = None
    if arguments.reference is not None:
        python = arguments.environments / ".venv-e3nn" / "bin" / "python"  # it has torch-geometric
        reference = Worker([python, HERE / "bench_reference.py", arguments.reference.resolve()])
    worker, n_rounds = ours(), arguments.rounds
    groups = {
        "training": lambda: training_rows(worker, reference, n_rounds),
        "md": lambda: md_rows(worker, reference, n_rounds),
        "compiled": lambda: compiled_rows(worker, n_rounds),
        "growth": lambda: growth_rows(worker, n_rounds),
        "overhead": lambda: overhead_rows(worker, n_rounds),
        "memory": memory_rows,
        "size": size_rows,
        "rivals": lambda: rival_rows(arguments.environments, n_rounds),
        "start": start_rows,
    }
    file = HERE / "results.json"
    found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() and arguments.only else {}
    for name, rows in groups.items():
        if not arguments.only or name in arguments.only:
            found[name] = [{**row, "processor": processor()} for row in rows()]
    worker.close()
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    text = page([row for name in groups for row in found.get(name, [])])
    (HERE / "results.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
