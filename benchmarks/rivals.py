"""Makes the rival models and serves their MD steps to `bench.py`, each in its package's environment.

    python benchmarks/rivals.py --make mace_scalar     trains one on the slab; it goes to benchmarks/models
    python benchmarks/rivals.py --serve mace_scalar    answers lines "N" with the CPU seconds of N MD steps

All are trained by the same loop on the same frames; their MD steps are driven by ASE through their own
packages' calculators, ours through ``dyntrain.Calculator``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.io import read
from ase.md.verlet import VelocityVerlet

from dyntrain.models.families import family
from dyntrain.models.files import load_model, save_model
from dyntrain.neighbors import neighbor_list
from dyntrain.potential import Conservative
from dyntrain.state import State, concatenate

HERE = Path(__file__).resolve().parent
MODELS = HERE / "models"
FRAMES = HERE.parent / "tests" / "data" / "h2pd6gra_80.traj"
"""80 frames of H2 on Pd6 at a graphene vacancy (57 atoms, periodic), one a femtosecond apart or more."""
N_TRAIN, N_GAP = 60, 4
"""Training frames; then some left out, so that the test frames are not their neighbours."""
BATCH_SIZE = 4


@dataclass(frozen=True)
class Model:
    """network, settings: the family's name and arguments; lr: at the start."""

    title: str
    network: str
    settings: dict[str, Any] = field(default_factory=dict)
    lr: float = 3e-3


MODELS_BY_NAME = {
    "egnn": Model("dyntrain egnn", "egnn"),
    "paper_egnn": Model("dyntrain paper_egnn", "paper_egnn", lr=1e-3),
    "mace_scalar": Model("MACE 32x0e", "mace", {"num_channels": 32, "max_L": 0}, lr=1e-2),
    "mace_vector": Model("MACE 64x0e+64x1o", "mace", {"num_channels": 64, "max_L": 1}, lr=1e-2),
    "nequip": Model(
        "NequIP 2 layers 16x(0,1)", "nequip", {"num_layers": 2, "l_max": 1, "num_features": 16}, lr=1e-2
    ),
    "nequip_scalar": Model(
        "NequIP 2 layers 32x0", "nequip", {"num_layers": 2, "l_max": 0, "num_features": 32}, lr=1e-2
    ),
    "sevennet": Model(
        "SevenNet 2 layers 16x(0,1)",
        "sevennet",
        {"cutoff": 5.0, "channel": 16, "lmax": 1, "num_convolution_layer": 2},
        lr=1e-2,
    ),
    "sevennet_scalar": Model(
        "SevenNet 2 layers 32x0",
        "sevennet",
        {"cutoff": 5.0, "channel": 32, "lmax": 0, "num_convolution_layer": 2},
        lr=1e-2,
    ),
}


def frames() -> tuple[list[Atoms], list[Atoms]]:
    """Training and test frames: a block of time each."""
    found = read(FRAMES, ":")
    return found[:N_TRAIN], found[N_TRAIN + N_GAP :]


def batch_of(structures: list[Atoms]) -> tuple[State, torch.Tensor]:
    forces = np.concatenate([atoms.get_forces() for atoms in structures])
    return concatenate([State.from_ase(atoms) for atoms in structures]), torch.as_tensor(forces)


def start_model(model: Model, train: list[Atoms]) -> Conservative:
    torch.manual_seed(0)
    elements = sorted({int(z) for atoms in train for z in atoms.numbers})
    network = family(model.network)(elements=elements, **{"cutoff": 5.0, **model.settings})
    network.set_precision("float32")
    if model.network != "paper_egnn":
        energy = np.mean([atoms.get_potential_energy() for atoms in train]) / len(train[0])
        forces = np.concatenate([atoms.get_forces() for atoms in train])
        state = State.from_ase(train[0])
        n_neighbors = 2 * neighbor_list(state, network.cutoff).n_pairs / state.n_atoms
        shifts = torch.full((len(elements),), float(energy), dtype=torch.float64)
        network.set_statistics(shifts, float(np.sqrt((forces**2).mean())), n_neighbors)
    return Conservative(network)


def force_error(potential: Conservative, structures: list[Atoms]) -> float:
    """Root mean square error of the force components, eV/Å."""
    squares = []
    for start in range(0, len(structures), BATCH_SIZE):
        state, forces = batch_of(structures[start : start + BATCH_SIZE])
        with torch.no_grad():
            found = potential(state, neighbor_list(state, potential.cutoff)).forces
        squares.append((found - forces).square().flatten())
    return float(torch.cat(squares).mean().sqrt())


def train(model: Model, potential: Conservative, structures: list[Atoms], budget: float) -> tuple[int, float]:
    """Adam on the mean absolute force error, cosine learning rate; steps and CPU seconds."""
    optimizer = torch.optim.Adam(potential.parameters(), lr=model.lr)
    random, used, n_steps = np.random.default_rng(0), 0.0, 0
    while used < budget:
        chosen = [structures[k] for k in random.integers(len(structures), size=BATCH_SIZE)]
        state, forces = batch_of(chosen)
        begin = time.process_time()
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * model.lr * (1.0 + np.cos(np.pi * used / budget)) + 1e-5
        optimizer.zero_grad()
        found = potential(state, neighbor_list(state, potential.cutoff)).forces
        (found - forces).abs().mean().backward()
        torch.nn.utils.clip_grad_norm_(potential.parameters(), 1.0)
        optimizer.step()
        used += time.process_time() - begin
        n_steps += 1
    return n_steps, used


def make(name: str, budget: float) -> None:
    """Train a model and write it, its package's own format, and what became of it."""
    model = MODELS_BY_NAME[name]
    training, test = frames()
    potential = start_model(model, training)
    n_steps, used = train(model, potential, training, budget)
    MODELS.mkdir(exist_ok=True)
    network = potential.energy_model
    save_model(potential, MODELS / f"{name}.pt")
    if model.network not in ("egnn", "paper_egnn"):
        network.export(native_file(name))
    facts = {
        "title": model.title,
        "steps": n_steps,
        "cpu_seconds": used,
        "parameters": sum(p.numel() for p in potential.parameters()),
        "force_error": force_error(potential, test),
    }
    (MODELS / f"{name}.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    print(name, facts)


def native_file(name: str) -> Path:
    endings = {"mace": ".model", "nequip": ".nequip.zip", "sevennet": ".pth"}
    return MODELS / f"{name}{endings[MODELS_BY_NAME[name].network]}"


def calculator(name: str) -> Any:
    """Ours, or the package's own on the file it reads."""
    if MODELS_BY_NAME[name].network in ("egnn", "paper_egnn"):
        from dyntrain.calculator import Calculator

        return Calculator(MODELS / f"{name}.pt")
    network = load_model(MODELS / f"{name}.pt").energy_model
    return type(network).native_calculator(native_file(name), "cpu", "float32")


def serve(name: str) -> None:
    """MD steps of the slab on demand: a line with their number in, a line with their CPU seconds out."""
    atoms = frames()[1][0]
    atoms.calc = calculator(name)
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    dynamics.run(5)
    print("ready", flush=True)
    for line in sys.stdin:
        begin = time.process_time()
        dynamics.run(int(line))
        print(time.process_time() - begin, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make", nargs="+", choices=list(MODELS_BY_NAME))
    parser.add_argument("--seconds", type=float, default=140.0, help="CPU time of a model's training")
    parser.add_argument("--serve", choices=list(MODELS_BY_NAME))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the packages' own deprecations
    for name in arguments.make or ():
        make(name, arguments.seconds)
    if arguments.serve:
        serve(arguments.serve)


if __name__ == "__main__":
    main()
