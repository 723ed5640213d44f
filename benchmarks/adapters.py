"""Other people's architectures: contract, parity, roll-out gradient, memory, round trip, training on ethanol.

    python benchmarks/adapters.py mace --minutes 5 --seeds 2

measures one family (a row) in the environment that has its package, keeps its numbers in
benchmarks/adapters.json and writes the table of all rows measured so far to benchmarks/adapters.md. NAME is a
family (mace, nequip, allegro, sevennet, chgnet, torchani) or a pretrained model (sevennet-0, chgnet-0.3.0),
which is fine-tuned. Four arms are trained: one-step, one-step with noise, stop-gradient and DT, at equal
labelled frames and equal budget, each MINUTES and with every seed; the same command goes on after a kill.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk, molecule

from dyntrain.adapters.exporting import compare, export
from dyntrain.atomic import write_text
from dyntrain.compare import run_comparison
from dyntrain.config import parse_config
from dyntrain.errors import UserError
from dyntrain.evaluate import EvaluationSettings
from dyntrain.integrators import VelocityVerlet
from dyntrain.models.files import build_model, load_model, set_precision
from dyntrain.potential import Conservative, Potential
from dyntrain.rollout import Adjoint, Backprop, Full, rollout
from dyntrain.state import State, concatenate
from dyntrain.testing import check_potential
from dyntrain.training import Silent
from dyntrain.units import FS, KB

HERE = Path(__file__).resolve().parent
ETHANOL = HERE.parents[1] / "shared/data/ethanol_nvt_dft"
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

MARKS = ("0", "25", "50", "100", "150")
FILE_ENDING = {"nequip": ".nequip.zip", "allegro": ".nequip.zip"}


def new_potential(name: str, precision: str) -> Potential:
    """A new model of a family with weights of seed 0 at the scale of ethanol, or a pretrained one."""
    if name not in SETTINGS:
        return load_model(name, precision=precision)
    torch.manual_seed(0)
    model = build_model(name, elements=ELEMENTS, cutoff=5.0, **SETTINGS[name])
    model.set_statistics(torch.tensor([-13.6, -1030.0, -2040.0], dtype=torch.float64), 1.0, 8.0)
    set_precision(model, precision)
    return Conservative(model).eval()


def ethanol(seed: int = 0) -> Atoms:
    """At about 300 K."""
    atoms, random = molecule("CH3CH2OH"), np.random.default_rng(seed)
    atoms.positions += random.normal(scale=0.03, size=atoms.positions.shape)
    atoms.set_velocities(
        np.sqrt(KB * 300.0 / atoms.get_masses())[:, None] * random.normal(size=atoms.positions.shape)
    )
    return atoms


def boxed(atoms: Atoms) -> Atoms:
    """In a periodic box, which some calculators need."""
    atoms = atoms.copy()
    atoms.center(vacuum=8.0)
    atoms.pbc = True
    return atoms


def structures() -> dict[str, Atoms]:
    """Molecules in a box, and a small crystal whose atoms see many images of each other."""
    diamond = bulk("C", a=3.6)
    diamond.rattle(0.05, seed=3)
    return {"ethanol": boxed(ethanol()), "water": boxed(molecule("H2O")), "diamond": diamond}


# --- one number a function ------------------------------------------------------------------------------


def contract(name: str) -> str:
    """ "passes (float64)", or the sentence that says what does not."""
    try:
        check_potential(new_potential(name, "float64"), State.from_ase(ethanol()))
    except (AssertionError, UserError) as complaint:
        return str(complaint).split(":")[0]
    return "passes (float64)"


def parity(name: str) -> dict[str, Any]:
    """Largest relative differences from the package's own calculator, in its best precision."""
    potential = new_potential(name, "float64")
    model = potential.energy_model  # type: ignore[attr-defined]
    precision = model.native_precisions[-1]
    potential = new_potential(name, precision)
    model = potential.energy_model  # type: ignore[attr-defined]
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
    """Resident memory beyond what loading the model takes, of 32 ethanols over so many frames."""
    potential = new_potential(name, "float32")
    state = concatenate([State.from_ase(ethanol(seed)) for seed in range(32)])
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


# --- training -------------------------------------------------------------------------------------------


class Told(Silent):
    """Says on the terminal which training or measurement is going on."""

    def say(self, text: str) -> None:
        print(text, flush=True)

    @contextmanager
    def training(self, name: str) -> Any:
        print(f"training {name}", flush=True)
        yield Silent()

    @contextmanager
    def measuring(self) -> Any:
        yield lambda what, done, total: None


def training_config(name: str, arguments: argparse.Namespace) -> Any:
    start = {"start_from": name} if name not in SETTINGS else {}
    model = {"model": {"name": name, "cutoff": 5.0, "settings": SETTINGS[name]}} if name in SETTINGS else {}
    data: dict[str, Any] = {"train": arguments.train or [str(ETHANOL)]}
    if arguments.held_out:
        data["test"] = arguments.held_out
    return parse_config(
        {
            "data": data,
            "output": str(Path(arguments.output) / name),
            "max_time": f"{arguments.minutes}m",
            "batch_size": 8,
            "device": "cpu",
            "backprop": "adjoint",
            "curriculum": {
                "stages": [{"segment_length": s, "share": w} for s, w in ((1, 0.6), (4, 0.2), (8, 0.2))],
                **({} if name in SETTINGS else {"lr": 5e-4}),
            },
            **start,
            **model,
        }
    )


def trained_arms(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Force error against the recording by arm and time, eV/Å: median over starts, mean over seeds."""
    settings = EvaluationSettings(n_starts=arguments.starts, n_free_runs=0)
    comparison = run_comparison(training_config(name, arguments), arguments.seeds, settings, Told())
    arms = {}
    for arm, of_seeds in comparison.held_out.items():
        at = [one.at_marks("force") for one in of_seeds]
        values = {mark: [of_seed.get(mark) for of_seed in at] for mark in MARKS}
        arms[arm] = {m: None if None in v else float(np.mean(v)) for m, v in values.items()}
    dynamic = comparison.trained[comparison.arms[0]][0]
    potential = load_model(dynamic.model)
    family = potential.energy_model.family
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"trained{FILE_ENDING.get(family, '.pt')}"
        agreement = export(potential, path, boxed(ethanol(9)))
        back = type(potential.energy_model).from_file(path)
    set_precision(back, potential.energy_model.native_precisions[0])
    again = compare(Conservative(copy.deepcopy(back).eval()), _as_calculator(potential), boxed(ethanol(9)))
    return {
        "minutes": arguments.minutes,
        "seeds": arguments.seeds,
        "headline": comparison.verdict.headline,
        "labelled_frames": dynamic.labelled_frames,
        "n_starts": comparison.plan.settings.n_starts,
        "arms": arms,
        "round_trip": {"calculator": agreement.forces, "back": again.forces},
    }


def _as_calculator(potential: Potential) -> Any:
    from dyntrain import Calculator

    return Calculator(potential)


# --- the table --------------------------------------------------------------------------------------------


def package_version(name: str) -> str:
    family = name if name in SETTINGS else name.split("-")[0]
    packages = {"mace": "mace-torch", "allegro": "nequip-allegro", "sevennet": "sevenn"}
    from importlib.metadata import version

    return f"{packages.get(family, family)} {version(packages.get(family, family))}"


def cells(name: str, row: dict[str, Any]) -> list[str]:
    """One row of the first table."""
    parity, peaks, trained = row["parity"], row["memory"], row.get("training")
    tuned = "" if name in SETTINGS else " (pretrained)"
    flat = "; ".join(f"{peaks[f'{way} 4']:.0f} → {peaks[f'{way} 32']:.0f}" for way in ("adjoint", "full"))
    trip = "–" if trained is None else f"{trained['round_trip']['calculator']:.0e}"
    return [
        f"{name}{tuned}, {row['package']}",
        row["contract"],
        f"{parity['precision']}: {parity['energy']:.0e}, {parity['forces']:.0e}",
        f"{row['rollout_gradient']:.0e}",
        flat,
        trip,
    ]


def markdown(rows: dict[str, Any]) -> str:
    head = [
        "model",
        "contract",
        "parity with its own calculator (energy, forces; relative)",
        "gradient through a roll-out against finite differences",
        "memory beyond the model, MiB, S = 4 → 32: Adjoint; Full",
        "round trip of the trained model (forces)",
    ]
    lines = [" | ".join(head), " | ".join("---" for _ in head)]
    lines += [" | ".join(cells(name, row)) for name, row in rows.items()]
    text = "# Other people's architectures\n\n" + "\n".join(f"| {line} |" for line in lines) + "\n"
    for name, row in rows.items():
        if (trained := row.get("training")) is None:
            continue
        text += (
            f"\n## {name}: force error beside held-out ethanol, eV/Å\n{trained['minutes']:g} minutes an arm, "
            f"{trained['seeds']} seed(s), {trained['labelled_frames']} labelled frames, "
            f"{trained['n_starts']} starts. {trained['headline']}\n\n"
        )
        text += (
            "| arm | "
            + " | ".join(f"{mark} fs" for mark in MARKS)
            + " |\n|"
            + "---|" * (len(MARKS) + 1)
            + "\n"
        )
        for arm, errors in trained["arms"].items():
            numbers = ["–" if errors[m] is None else f"{errors[m]:.3f}" for m in MARKS]
            text += f"| {arm} | " + " | ".join(numbers) + " |\n"
    return text


def main() -> None:
    families = sorted(point.name for point in entry_points(group="dyntrain.models"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help=f"one of {', '.join(families)}, or a pretrained model")
    parser.add_argument("--minutes", type=float, default=5.0, help="of training an arm; 0: none")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--starts", type=int, default=32)
    parser.add_argument("--train", nargs="*", help="runs to train on (default: shared/data/ethanol_nvt_dft)")
    parser.add_argument("--held-out", nargs="*", help="runs to measure on (default: the run's last part)")
    parser.add_argument("--output", default="adapters-output", help="folder of the trainings")
    parser.add_argument("--results", default=str(HERE / "adapters.json"))
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "S"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    name = arguments.name
    if arguments.peak:
        print(peak_mebibytes(name, arguments.peak[0], int(arguments.peak[1])))
        return
    row: dict[str, Any] = {"package": package_version(name)}
    for key, measured in (
        ("contract", contract),
        ("parity", parity),
        ("rollout_gradient", rollout_gradient_error),
        ("memory", memory),
    ):
        row[key] = measured(name)
        print(f"{key}: {row[key]}", flush=True)
    if arguments.minutes > 0:
        row["training"] = trained_arms(name, arguments)
    results = Path(arguments.results)
    rows = json.loads(results.read_text(encoding="utf-8")) if results.exists() else {}
    rows[name] = row
    write_text(results, json.dumps(rows, indent=1) + "\n")
    write_text(results.with_suffix(".md"), markdown(rows))
    print(markdown({name: row}))


if __name__ == "__main__":
    main()
