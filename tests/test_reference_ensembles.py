"""Thermostats of the AIMD generator carry their state; calculators get options and a place of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import typer
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.calculators.emt import EMT
from typer.testing import CliRunner, Result

from aimd_runs import arrays, equal
from dyntrain.errors import UserError
from dyntrain.reference import AimdSettings, calculators, generate_aimd
from dyntrain.reference.calculators import new_calculator
from dyntrain.reference.kinetics import n_freedom, remove_rigid_motion, temperature
from dyntrain.reference.nose_hoover import CHAIN_LENGTH, NoseHooverChain
from dyntrain.reference.record import Record
from dyntrain.reference.runs import make_pieces
from dyntrain.units import FS, KB

NOSE_HOOVER = AimdSettings(
    "NH3", method="emt", ensemble="nose-hoover", n_steps=24, thermalise_steps=8, checkpoint_every=8
)


# Nosé–Hoover chain


def copper(dt_fs: float, n_steps: int) -> tuple[np.ndarray, np.ndarray, Atoms]:
    """Conserved energies (eV) and temperatures (K) of a chain at 400 K, started at 300 K."""
    atoms = bulk("Cu", cubic=True) * (2, 2, 2)
    spread = np.sqrt(KB * 600 * atoms.get_masses())[:, None]
    atoms.set_momenta(np.random.default_rng(0).normal(size=(32, 3)) * spread)
    remove_rigid_motion(atoms)
    atoms.calc = EMT()
    chain = NoseHooverChain(atoms, dt_fs * FS, 400.0, 30 * FS, np.zeros((2, CHAIN_LENGTH)))
    forces, energies, kelvin = atoms.get_forces(), [], []
    for _ in range(n_steps):
        forces = chain.step(forces)
        energies.append(chain.conserved_energy(atoms.calc.results["free_energy"]))
        kelvin.append(temperature(atoms, atoms.get_momenta(), rigid_motion=False))
    return np.array(energies), np.array(kelvin), atoms


def test_nose_hoover_conserves_its_energy_to_second_order() -> None:
    coarse, fine = (np.ptp(copper(dt, int(120 / dt))[0]) for dt in (4.0, 2.0))
    assert fine < 5e-3
    assert coarse / fine == pytest.approx(4, rel=0.15)


@pytest.mark.slow
def test_nose_hoover_samples_the_canonical_kinetic_energy() -> None:
    _, kelvin, atoms = copper(5.0, 2400)
    kelvin, freedom = kelvin[400:], n_freedom(atoms, rigid_motion=False)
    assert freedom == 93
    assert kelvin.mean() == pytest.approx(400, rel=0.03)
    assert kelvin.std() / 400 == pytest.approx(np.sqrt(2 / freedom), rel=0.15)
    assert np.abs(atoms.get_momenta().sum(0)).max() < 1e-9


@pytest.mark.parametrize("ensemble", ["nose-hoover", "langevin"])
def test_thermostats_carry_their_state_from_piece_to_piece(tmp_path: Path, ensemble: str) -> None:
    # EMT has no wavefunction: what differs between long and short pieces would be the thermostat alone.
    runs = []
    for every in (5, 100):
        settings = AimdSettings(**{**vars(NOSE_HOOVER), "ensemble": ensemble, "checkpoint_every": every})
        folder = tmp_path / str(every)
        folder.mkdir()
        atoms = Record.of(settings, tmp_path).atoms
        pieces = [piece for task, piece in make_pieces(settings, atoms, 0, folder) if task.kind == "record"]
        runs.append(np.concatenate([piece.momenta for piece in pieces]))
    assert len(runs[0]) == NOSE_HOOVER.n_steps + 1
    assert np.array_equal(*runs)


def test_nose_hoover_resumed_equals_undisturbed(tmp_path: Path) -> None:
    record = Record.of(NOSE_HOOVER, tmp_path / "stopped")
    record.pieces_folder(0).mkdir(parents=True)
    pieces = make_pieces(NOSE_HOOVER, record.atoms, 0, record.pieces_folder(0))
    for _ in range(4):
        _, piece = next(pieces)
    assert np.abs(piece.thermostat).min() > 0
    (stopped,) = generate_aimd(NOSE_HOOVER, tmp_path / "stopped")
    (undisturbed,) = generate_aimd(NOSE_HOOVER, tmp_path / "undisturbed")
    assert equal(stopped, undisturbed)


def test_nose_hoover_is_one_friction_a_frame(tmp_path: Path) -> None:
    """What the run does beside velocity Verlet is along the velocities: the sign of this thermostat."""
    (path,) = generate_aimd(NOSE_HOOVER, tmp_path)
    run, masses = arrays(path), molecule("NH3").get_masses()[:, None]
    x, h = run["positions"], NOSE_HOOVER.dt_fs * FS
    rest = x[2:] - 2 * x[1:-1] + x[:-2] - h**2 * run["forces"][1:-1] / masses
    central = x[2:] - x[:-2]
    friction = (rest * central).sum((1, 2)) / (central**2).sum((1, 2))
    assert np.abs(friction).min() > 1e-6
    assert np.abs(rest - friction[:, None, None] * central).max() < 1e-13


def test_nose_hoover_needs_a_temperature() -> None:
    with pytest.raises(UserError, match="above 0 K"):
        AimdSettings("water", ensemble="nose-hoover", temperature_K=0)


# Options of calculators


def energy(method: str, options: dict[str, Any]) -> float:
    atoms = molecule("H2")
    atoms.calc = new_calculator(method, options)
    return atoms.get_potential_energy()


def test_options_reach_the_calculator() -> None:
    assert energy("lj", {"epsilon": 2.0}) == pytest.approx(2 * energy("lj", {"epsilon": 1.0}))
    pytest.importorskip("tblite")
    cold, hot = (energy("GFN1-xTB", {"electronic_temperature": kelvin}) for kelvin in (300.0, 30000.0))
    assert hot < cold - 1e-3  # the free energy has the entropy of the occupation in it


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("lj", {"epsilonn": 1.0}, "LennardJones has no option 'epsilonn': it knows epsilon, rc, ro"),
        ("GFN1-xTB", {"cutoff": 1.0}, "accuracy and electronic_temperature, not 'cutoff'"),
        ("GFN1-xTB", {"accuracy": "high"}, "accuracy must be a positive number, got 'high'"),
        ("GFN1-xTB", {"electronic_temperature": -1}, "electronic_temperature must be a positive number"),
    ],
)
def test_unknown_options_are_refused(method: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        new_calculator(method, options)


def test_options_must_be_plain() -> None:
    with pytest.raises(UserError, match="plain values"):
        AimdSettings("H2", calculator_options={"epsilon": {1.0}})


def test_a_slab_is_not_made_a_bulk(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    file = tmp_path / "layer.xyz"
    ase.io.write(file, Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[3, 3, 9], pbc=[True, True, False]))
    with pytest.raises(UserError, match="periodic in three directions or in none, not in 2: set pbc"):
        generate_aimd(AimdSettings(str(file)), tmp_path / "runs")


# The place a calculator works in


class Untidy(EMT):
    """Leaves a file behind, as programs do, and fails where it finds one, or at once."""

    begun, fails, n_closed = False, False, 0

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        if not self.begun:
            self.begun = True
            assert not list(Path.cwd().iterdir())
            Path("wavefunction").write_text("left over")
        if self.fails:
            raise RuntimeError("see my log")
        super().calculate(atoms, properties or ["energy", "forces"], system_changes)

    def close(self) -> None:
        Untidy.n_closed += 1


@pytest.fixture
def untidy(monkeypatch: pytest.MonkeyPatch) -> type[Calculator]:
    monkeypatch.setattr(calculators, "get_calculator_class", lambda _: Untidy)
    monkeypatch.setattr(Untidy, "n_closed", 0)
    return Untidy


def test_every_piece_has_an_empty_folder_and_a_program_of_its_own(
    untidy: type[Untidy], tmp_path: Path
) -> None:
    here, atoms = Path.cwd(), Record.of(NOSE_HOOVER, tmp_path).atoms
    n_pieces = len(list(make_pieces(NOSE_HOOVER, atoms, 0, tmp_path)))
    assert untidy.n_closed == n_pieces == 5
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}
    assert Path.cwd() == here


def test_a_failed_program_leaves_its_files(
    untidy: type[Untidy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    atoms = Record.of(NOSE_HOOVER, tmp_path).atoms
    pieces = make_pieces(NOSE_HOOVER, atoms, 0, tmp_path)
    next(pieces)
    with monkeypatch.context() as failing:
        failing.setattr(untidy, "fails", True)
        with pytest.raises(
            UserError, match=r"RuntimeError: see my log; its files are in (.*calculation-\w+)"
        ):
            next(pieces)
    (kept,) = tmp_path.glob("calculation-*")
    assert (kept / "wavefunction").read_text() == "left over"
    list(make_pieces(NOSE_HOOVER, atoms, 0, tmp_path))
    assert not kept.exists()


# Command line


def command(*arguments: object) -> Result:
    from dyntrain.cli.aimd import aimd

    app = typer.Typer()
    app.command()(aimd)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_command_line_reads_the_options(tmp_path: Path) -> None:
    options = tmp_path / "lj.yaml"
    options.write_text("epsilon: 0.5\nsigma: 0.66\n")
    runs = ["H2", "--output", tmp_path / "runs", "--steps", 3, "--thermalise", 2, "--method", "lj"]
    made = command(*runs, "--ensemble", "nose-hoover", "--calculator", options)
    assert made.exit_code == 0, made.output
    settings = Record.read(tmp_path / "runs" / "H2_aimd.json").settings
    assert settings.calculator_options == {"epsilon": 0.5, "sigma": 0.66}
    assert settings.ensemble == "nose-hoover"
    options.write_text("epsilon: 0.6\n")
    other = command(*runs, "--calculator", options).exception
    assert isinstance(other, UserError)
    assert "holds runs with other settings" in str(other)


@pytest.mark.parametrize("text", ["- epsilon", "epsilon: [", "1: 2", "!!python/object:os.system {}"])
def test_command_line_names_a_bad_options_file(tmp_path: Path, text: str) -> None:
    options = tmp_path / "options.yaml"
    options.write_text(text)
    failure = command("H2", "--output", tmp_path, "--method", "lj", "--calculator", options).exception
    assert isinstance(failure, UserError)
    assert "options.yaml" in str(failure)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("cp2k.psmp"), reason="needs CP2K (Debian: apt install cp2k)")
def test_cp2k_by_name(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "h2.xyz", Atoms("H2", [[0, 0, 0], [0, 0, 0.8]], cell=[5, 5, 5], pbc=True))
    options = {"xc": "PBE", "cutoff": 2721.1, "stress_tensor": False}
    settings = AimdSettings(
        str(tmp_path / "h2.xyz"), "cp2k", options, n_steps=3, thermalise_steps=2, checkpoint_every=2
    )
    (path,) = generate_aimd(settings, tmp_path / "runs")
    assert arrays(path)["energies"] == pytest.approx(-31.6, abs=0.3)
