"""Other people's architectures: contract, parity, roll-out gradient, memory, round trip, training on ethanol.

    dyntrain aimd ethanol --temperature 300 --runs 3 --steps 699 --output ethanol/train
    dyntrain aimd ethanol --temperature 300 --runs 4 --steps 1600 --seed 100 --output ethanol/held-out
    python benchmarks/adapters.py mace --minutes 5 --seeds 2 --train ethanol/train --held-out ethanol/held-out

measures one family (a row) in the environment that has its package, keeps its numbers in
benchmarks/adapters.json and writes the table of all rows measured so far to benchmarks/adapters.md. NAME is a
family (mace, nequip, allegro, sevennet, chgnet, torchani) or a pretrained model (sevennet-0, chgnet-0.3.0),
which is fine-tuned. Four arms are trained: one-step, one-step with noise, stop-gradient and DT, at equal
labelled frames and evaluations, as many as fit into MINUTES of CPU time, with every seed. The same command
goes on after a kill; a row's finished columns are kept (remove it from the file to measure them again).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import torch
from adapters_training import (
    FILE_ENDING,
    boxed,
    ethanol,
    round_trip,
    trained_arms,
    training_config,
    training_table,
)
from ase import Atoms
from ase.build import bulk, molecule

from dyntrain.adapters.exporting import compare
from dyntrain.atomic import write_text
from dyntrain.errors import UserError
from dyntrain.integrators import VelocityVerlet
from dyntrain.models.files import build_model, load_model, set_precision
from dyntrain.potential import Conservative
from dyntrain.rollout import Adjoint, Backprop, Full, rollout
from dyntrain.state import State, concatenate
from dyntrain.testing import check_potential
from dyntrain.units import FS

HERE = Path(__file__).resolve().parent
ELEMENTS = [1, 6, 8]

SETTINGS: dict[str, dict[str, Any]] = {
    "mace": {"num_channels": 32, "max_L": 1, "correlation": 2, "max_ell": 2, "radial_MLP": [32, 32]},
    "nequip": {},
    "allegro": {},
    "sevennet": {"channel": 32, "lmax": 1, "num_convolution_layer": 3},
    "chgnet": {},
    "torchani": {},
}
"""Of the new models; what is not named is the package's own default."""


ENERGIES = torch.tensor([-13.6, -1030.0, -2040.0], dtype=torch.float64)
"""Of the elements, eV, as DFT counts them."""


def new_potential(name: str, precision: str) -> Conservative:
    """A new model of a family with weights of seed 0 at the scale of ethanol, or a pretrained one."""
    if name not in SETTINGS:
        return load_model(name, precision=precision)
    torch.manual_seed(0)
    model = build_model(name, elements=ELEMENTS, cutoff=5.0, **SETTINGS[name])
    model.set_statistics(ENERGIES, 1.0, 8.0)
    set_precision(model, precision)
    return Conservative(model).eval()


def structures() -> dict[str, Atoms]:
    """Molecules in a box, and a small crystal whose atoms see many images of each other."""
    diamond = bulk("C", a=3.6)
    diamond.rattle(0.05, seed=3)
    return {"ethanol": boxed(ethanol()), "water": boxed(molecule("H2O")), "diamond": diamond}


# --- one number a function ------------------------------------------------------------------------------


def contract(name: str) -> str:
    """ "passes (float64)", or the complaint."""
    potential = new_potential(name, "float64")
    if name in SETTINGS:
        # In finite differences of thousands of eV a model's own part would drown in rounding.
        potential.energy_model.shift_energies(-ENERGIES)
    try:
        check_potential(potential, State.from_ase(ethanol()))
    except (AssertionError, UserError) as complaint:
        return str(complaint)
    return "passes (float64)"


def parity(name: str) -> dict[str, Any]:
    """Largest relative differences from the package's own calculator, in its best precision."""
    potential = new_potential(name, "float64")
    model = potential.energy_model
    precision = model.native_precisions[-1]
    potential = new_potential(name, precision)
    model = potential.energy_model
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{FILE_ENDING.get(model.family, '.pt')}"
        model.export(path)
        calculator = model.native_calculator(path, "cpu", precision)
        found = [compare(potential, calculator, atoms) for atoms in structures().values()]
    return {
        "precision": precision,
        "energy": max(one.energy for one in found),
        "forces": max(one.forces for one in found),
    }


def rollout_gradient_error(name: str) -> float:
    """Gradient through four frames against finite differences, along random weights: relative difference."""
    potential, state = new_potential(name, "float64"), State.from_ase(ethanol())
    parameters = [p for p in potential.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    along = [
        torch.randn(p.shape, generator=generator, dtype=p.dtype)
        * p.detach().norm()
        / max(p.numel(), 1) ** 0.5
        for p in parameters
    ]

    def loss() -> torch.Tensor:
        frames = rollout(potential, state, VelocityVerlet(0.5 * FS), 3, backprop=Full())
        return torch.stack([frame.prediction.forces.square().mean() for frame in frames]).sum()

    gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
    slope = sum(
        float((g * a).sum()) for g, a in zip(gradients, along, strict=True) if g is not None and g.numel()
    )
    step, values = 1e-5, {}
    for way in (-2, -1, 1, 2):
        with torch.no_grad():
            for parameter, direction in zip(parameters, along, strict=True):
                parameter.add_(direction, alpha=way * step)
            values[way] = float(loss())
            for parameter, direction in zip(parameters, along, strict=True):
                parameter.add_(direction, alpha=-way * step)
    difference = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * step)
    return abs(slope - difference) / abs(difference)


def peak_mebibytes(name: str, way: str, length: int) -> float:
    """Resident memory beyond what loading the model takes, of 4 ethanols over so many frames."""
    potential = new_potential(name, "float32")
    state = concatenate([State.from_ase(ethanol(seed)) for seed in range(4)])
    backprops: dict[str, Backprop] = {"adjoint": Adjoint(), "full": Full()}

    def step(n_frames: int) -> None:
        frames = rollout(potential, state, VelocityVerlet(0.01 * FS), n_frames - 1, backprop=backprops[way])
        torch.stack([frame.prediction.forces.square().mean() for frame in frames]).sum().backward()

    step(1)  # compiles what the package scripts
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step(length)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024.0


def memory(name: str) -> dict[str, float]:
    """Peak of each way and length, MiB, each in a process of its own."""
    found = {}
    for way, length in (("adjoint", 4), ("adjoint", 32), ("full", 4), ("full", 32)):
        command = [sys.executable, __file__, name, "--peak", way, str(length)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        found[f"{way} {length}"] = float(done.stdout.splitlines()[-1])
    return found


def untrained_round_trip(name: str) -> dict[str, float]:
    """Of a model after three steps of Adam, so that no weight is as it was made."""
    potential, state = new_potential(name, "float32"), State.from_ase(ethanol())
    optimizer = torch.optim.Adam([p for p in potential.parameters() if p.requires_grad], lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        frames = rollout(potential, state, VelocityVerlet(0.5 * FS), 1, backprop=Adjoint())
        torch.stack([frame.prediction.forces.square().mean() for frame in frames]).sum().backward()
        optimizer.step()
    return round_trip(potential)


COLUMNS = {
    "contract": contract,
    "parity": parity,
    "rollout_gradient": rollout_gradient_error,
    "memory": memory,
    "round_trip": untrained_round_trip,
}

# --- the table --------------------------------------------------------------------------------------------


def package_version(name: str) -> str:
    family = name.split("-")[0]
    packages = {"mace": "mace-torch", "allegro": "nequip-allegro", "sevennet": "sevenn"}
    return f"{packages.get(family, family)} {version(packages.get(family, family))}"


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """One row of the first table."""
    parity, peaks = row["parity"], row["memory"]
    tuned = "" if name in SETTINGS else " (pretrained)"
    flat = "; ".join(f"{peaks[f'{way} 4']:.0f} → {peaks[f'{way} 32']:.0f}" for way in ("adjoint", "full"))
    trip = row.get("training", row)["round_trip"]
    return [
        f"{name}{tuned}, {row['package']}",
        row["contract"],
        f"{parity['precision']}: {parity['energy']:.0e}, {parity['forces']:.0e}",
        f"{row['rollout_gradient']:.0e}",
        flat,
        f"{trip['calculator']:.0e}, {trip['back']:.0e}",
    ]


HEAD = (
    "model",
    "contract",
    "parity with its own calculator (energy, forces; relative)",
    "gradient through a roll-out against finite differences",
    "memory beyond the model, MiB, 4 ethanols, S = 4 → 32: Adjoint; Full",
    "round trip (forces; relative): its own calculator, read back here",
)


def markdown(rows: dict[str, Any]) -> str:
    """All rows with their columns, then a table of each training."""
    lines = [" | ".join(HEAD), " | ".join("---" for _ in HEAD)]
    lines += [" | ".join(cells(name, row)) for name, row in rows.items()]
    text = "# Other people's architectures\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"
    trainings = {name: row["training"] for name, row in rows.items() if "training" in row}
    return text + "".join(training_table(name, trained) for name, trained in trainings.items())


def keep(results: Path, name: str, row: dict[str, Any]) -> dict[str, Any]:
    """Write a row beside those of other families; returns all."""
    rows: dict[str, Any] = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    rows[name] = row
    write_text(results, json.dumps(rows, indent=1) + "\n")
    return rows


def measure_columns(results: Path, name: str) -> dict[str, Any]:
    """The row of a model; what was measured of this version of its package before is kept."""
    rows = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    package = package_version(name)
    row: dict[str, Any] = rows.get(name, {})
    if row.get("package") != package:
        row = {"package": package}
    for key, measured in COLUMNS.items():
        if key not in row:
            row[key] = measured(name)
            print(f"{key}: {row[key]}", flush=True)
            keep(results, name, row)
    return row


def main() -> None:
    families = sorted(point.name for point in entry_points(group="dyntrain.models"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help=f"one of {', '.join(families)}, or a pretrained model")
    parser.add_argument("--minutes", type=float, default=0.0, help="of CPU time, of training an arm; 0: none")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--starts", type=int, default=32)
    parser.add_argument("--train", nargs="*", default=[], help="runs to train on")
    parser.add_argument("--held-out", nargs="*", default=[], help="runs to measure on")
    parser.add_argument("--output", default="adapters-output", help="folder of the trainings")
    parser.add_argument("--results", type=Path, default=HERE / "adapters.json")
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "S"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = arguments.name
    if arguments.peak:
        print(peak_mebibytes(name, arguments.peak[0], int(arguments.peak[1])))
        return
    if arguments.minutes > 0 and not (arguments.train and arguments.held_out):
        parser.error("give --train and --held-out with --minutes")
    row = measure_columns(arguments.results, name)
    if arguments.minutes > 0:
        own = {"model": {"name": name, "cutoff": 5.0, "settings": SETTINGS.get(name)}}
        config = training_config(
            own if name in SETTINGS else {"start_from": name},
            arguments.train,
            arguments.held_out,
            Path(arguments.output) / name,
            arguments.minutes,
        )
        row["training"] = trained_arms(config, arguments.minutes, arguments.seeds, arguments.starts)
    rows = keep(arguments.results, name, row)
    # Rows of measurements that were cut short wait.
    whole = {of: found for of, found in rows.items() if COLUMNS.keys() <= found.keys()}
    write_text(arguments.results.with_suffix(".md"), markdown(whole))
    print(markdown({name: row}))


if __name__ == "__main__":
    main()
