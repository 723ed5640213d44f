"""The ready-made systems: the water box, and H2 at Pd6/graphene with its start conditions."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.geometry import get_distances
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from aimd_runs import arrays, equal, kicks_of
from dyntrain.errors import UserError
from dyntrain.reference import AimdSettings, build_system, generate_aimd, settings_for
from dyntrain.reference import h2_pd6_graphene as h2
from dyntrain.reference.calculators import new_calculator
from dyntrain.reference.record import Record
from dyntrain.reference.runs import make_pieces, piece_path
from dyntrain.reference.water_box import water_box

# The same start on ASE's toy potential, which knows C, H and Pd.
TOY_IMPACT = AimdSettings("h2-pd6-graphene", method="emt", n_steps=6, thermalise_steps=4, checkpoint_every=3)


# Water box


@pytest.fixture(scope="module")
def box() -> Atoms:
    return build_system("water-box-12")


def test_water_box_has_the_molecules_and_the_density(box: Atoms) -> None:
    assert box.get_chemical_formula() == "H24O12"
    assert box.pbc.all()
    assert box.get_masses().sum() * 1.66053907 / box.get_volume() == pytest.approx(0.997, rel=1e-4)
    molecules = box.positions.reshape(12, 3, 3)
    bonds = molecules[:, 1:] - molecules[:, :1]
    assert np.linalg.norm(bonds, axis=2) == pytest.approx(0.9572, abs=3e-6)
    cosines = (bonds[:, 0] * bonds[:, 1]).sum(1) / 0.9572**2
    assert np.degrees(np.arccos(cosines)) == pytest.approx(104.52, abs=1e-3)


def test_water_box_is_bound_by_hydrogen_bonds(box: Atoms) -> None:
    distances = box.get_all_distances(mic=True)
    other = np.arange(36)[:, None] // 3 != np.arange(36) // 3
    assert distances[other].min() > 1.4
    oxygens = np.sort(distances[::3, ::3])
    assert oxygens[:, 1].min() > 2.4
    assert 2.6 < oxygens[:, 1:4].mean() < 3.1
    to_hydrogen = np.where(other, distances, np.inf)[::3][:, box.numbers == 1]
    assert np.mean(to_hydrogen.min(1) < 2.2) > 0.7  # most oxygens accept a hydrogen bond


def test_water_box_goes_with_its_seed() -> None:
    first = build_system("water-box-8", seed=1)
    assert np.array_equal(first.positions, water_box(8, seed=1).positions)
    assert not np.allclose(first.positions, water_box(8, seed=2).positions)
    assert build_system("water-box-8-0.9").get_volume() / first.get_volume() == pytest.approx(0.997 / 0.9)


@pytest.mark.parametrize(
    ("system", "sentence"),
    [
        ("water-box-7", "at least 8 molecules, got 7"),
        ("water-box-8-4", "0.5 to 1.5 g/cm³, got 4"),
        ("water-boxes", r"did you mean water-box\?"),
        ("h2-pd6-graphite", r"did you mean h2-pd6-graphene\?"),
    ],
)
def test_senseless_boxes_are_refused(system: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        build_system(system)


def test_settings_that_suit() -> None:
    box = settings_for("water-box-32", n_steps=7)
    assert (box.method, box.temperature_K, box.n_steps) == ("GFN1-xTB", 300.0, 7)
    impact = settings_for("h2-pd6-graphene")
    assert impact.calculator_options == {"accuracy": 0.05, "electronic_temperature": 1000.0}
    assert settings_for("h2-pd6-graphene", method="emt").calculator_options == {}
    assert settings_for("ethanol", method="cp2k").checkpoint_every == 20
    assert settings_for("ethanol") == AimdSettings("ethanol")


@pytest.mark.slow
def test_water_box_runs_as_velocity_verlet(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    (path,) = generate_aimd(settings_for("water-box-8", n_steps=10, thermalise_steps=10), tmp_path)
    assert kicks_of(path, 0.5).positions.abs().max() < 1e-14
    consistent(path, 24)


def consistent(path: Path, n_atoms: int) -> None:
    """The forces are those of the energy, which with the kinetic one is conserved."""
    run = arrays(path)
    moved, forces = np.diff(run["positions"], axis=0), run["forces"]
    work = (0.5 * (forces[1:] + forces[:-1]) * moved).sum((1, 2))
    assert np.diff(run["energies"]) == pytest.approx(-work, abs=5e-3)
    frames = ase.io.read(path, ":")
    assert np.ptp([atoms.get_total_energy() for atoms in frames]) / n_atoms < 1e-3


# H2 on Pd6/graphene: the surface


@pytest.fixture(scope="module")
def surface() -> Atoms:
    return build_system("h2-pd6-graphene")


def test_surface(surface: Atoms) -> None:
    assert surface.get_chemical_formula() == "C49Pd6"
    assert surface.cell.cellpar() == pytest.approx([12.3, 12.3, 25.24, 90, 90, 120])
    assert surface.pbc.all()
    carbon, palladium = surface[surface.symbols == "C"], surface[surface.symbols == "Pd"]
    bonds = np.sort(carbon.get_all_distances(mic=True))[:, 1]
    assert 1.38 < bonds.min() < bonds.max() < 1.46
    pairs = np.sort(palladium.get_all_distances())
    assert 2.5 < pairs[:, 1:5].min() < pairs[:, 1:5].max() < 2.9  # an octahedron: four neighbours each
    below = np.sort(surface.get_distances(49, range(49), mic=True))
    assert below[2] < 2.1 and below[3] > 2.7  # the lowest Pd binds the three atoms round the vacancy


def test_surface_is_the_ideal_one_relaxed(surface: Atoms) -> None:
    ideal = h2.unrelaxed_pd6_graphene()
    assert np.array_equal(ideal.numbers, surface.numbers)
    assert np.allclose(ideal.cell, surface.cell)
    assert np.linalg.norm(ideal.positions - surface.positions, axis=1).max() < 0.8


# H2 on Pd6/graphene: the start conditions


def start_conditions(atoms: Atoms) -> dict[str, float]:
    """What decides an H2 (the last two atoms) on its way to the cluster, from positions and momenta."""
    hydrogen, host = atoms[-2:], atoms[:-2]
    velocities, masses = hydrogen.get_velocities(), hydrogen.get_masses()
    centre, flight = hydrogen.positions.mean(0), velocities.mean(0)
    direction = flight / np.linalg.norm(flight)
    bond, relative = np.diff(hydrogen.positions, axis=0)[0], np.diff(velocities, axis=0)[0]
    length = np.linalg.norm(bond)
    morse = h2.MORSE_DEPTH * (1 - np.exp(-h2.MORSE_STIFFNESS * (length - h2.MORSE_LENGTH))) ** 2
    to_cluster = host.positions[host.symbols == "Pd"].mean(0) - centre
    nearest = get_distances(centre[None], host.positions, cell=atoms.cell, pbc=True)[1].min()
    return {
        "translation": 0.5 * masses.sum() * flight @ flight,
        "vibration": masses[0] / 4 * relative @ relative + morse,
        "rotation": float(np.linalg.norm(np.cross(bond, relative))),
        "distance": nearest,
        "impact": float(np.linalg.norm(to_cluster - (to_cluster @ direction) * direction)),
        "cosine": -direction[2],
        "azimuth": float(np.arctan2(direction[1], direction[0])),
        "axis_z": bond[2] / length,
        "axis_azimuth": float(np.arctan2(bond[1], bond[0])),
    }


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_start_is_within_its_ranges(surface: Atoms, seed: int) -> None:
    before = surface.positions.copy()
    start = start_conditions(surface + h2.incoming_hydrogen(surface, np.random.default_rng(seed)))
    assert np.array_equal(surface.positions, before)
    assert 0.1 <= start["translation"] <= 0.5
    assert 3.2 - 1e-9 <= start["distance"] <= 4.2 + 1e-9
    assert start["impact"] <= 1.5 + 1e-9
    assert start["cosine"] >= np.cos(np.radians(70)) - 1e-9
    assert start["vibration"] == pytest.approx(h2.ZERO_POINT_ENERGY, abs=1e-12)
    assert start["rotation"] < 1e-12


def test_starts_are_uniformly_distributed(surface: Atoms) -> None:
    random = np.random.default_rng(0)
    starts = [start_conditions(surface + h2.incoming_hydrogen(surface, random)) for _ in range(1500)]
    columns = {name: np.array([start[name] for start in starts]) for name in starts[0]}
    columns["impact"] **= 2  # uniform over the disc
    ranges = {
        "translation": (0.1, 0.5),
        "distance": (3.2, 4.2),
        "impact": (0, 1.5**2),
        "cosine": (np.cos(np.radians(70)), 1),
        "azimuth": (-np.pi, np.pi),
        "axis_z": (-1, 1),
        "axis_azimuth": (-np.pi, np.pi),
    }
    for name, (low, high) in ranges.items():
        assert stats.kstest(columns[name], "uniform", (low, high - low)).pvalue > 0.005, name


def test_vibration_is_the_classical_motion_in_the_morse_well() -> None:
    mass, phases, step = 0.504, np.linspace(0, 2 * np.pi, 200), 1e-5
    before, (lengths, speeds), after = (
        np.array([h2.vibration(phase + shift, mass) for phase in phases]).T for shift in (-step, 0, step)
    )
    decay = np.exp(-h2.MORSE_STIFFNESS * (lengths - h2.MORSE_LENGTH))
    acceleration = -2 * h2.MORSE_DEPTH * h2.MORSE_STIFFNESS * decay * (1 - decay) / mass
    slope_of_length, slope_of_speed = (after - before) / (2 * step)
    # Phase goes with time: one frequency turns both slopes along the phase into those along time.
    frequency = speeds[0] / slope_of_length[0]
    assert frequency * slope_of_length == pytest.approx(speeds, abs=1e-8)
    assert frequency * slope_of_speed == pytest.approx(acceleration, abs=1e-7)


def test_the_morse_well_is_that_of_the_method() -> None:
    pytest.importorskip("tblite")
    molecule = Atoms("H2", [[0, 0, 0], [0, 0, h2.MORSE_LENGTH]])
    molecule.calc = new_calculator("GFN1-xTB", h2.ELECTRONS)
    lowest = molecule.get_potential_energy()
    for length in (0.66, 0.70, 0.80, 0.85, 0.90):
        molecule.positions[1, 2] = length
        morse = h2.MORSE_DEPTH * (1 - np.exp(-h2.MORSE_STIFFNESS * (length - h2.MORSE_LENGTH))) ** 2
        assert molecule.get_potential_energy() - lowest == pytest.approx(morse, abs=3e-3)


# H2 on Pd6/graphene: whole runs


@pytest.fixture(scope="module")
def toy_runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return generate_aimd(TOY_IMPACT, tmp_path_factory.mktemp("impact"), n_runs=2, workers=2)


def test_run_begins_with_its_own_molecule_in_flight(toy_runs: list[Path]) -> None:
    starts = []
    for path in toy_runs:
        assert path.name.startswith("h2-pd6-graphene_00")
        frames = ase.io.read(path, ":")
        assert len(frames) == 7
        assert frames[0].get_chemical_formula() == "C49H2Pd6"
        starts.append(start_conditions(frames[0]))
        assert starts[-1]["vibration"] == pytest.approx(h2.ZERO_POINT_ENERGY, abs=1e-12)
        assert np.abs(frames[0].get_momenta()[:-2].sum(0)).max() < 1e-12
        assert kicks_of(path, 0.5).positions.abs().max() < 1e-13
    assert starts[0]["translation"] != starts[1]["translation"]


@pytest.mark.parametrize("n_kept", [3, 4, 5])
def test_resumed_at_any_piece_equals_undisturbed(toy_runs: list[Path], tmp_path: Path, n_kept: int) -> None:
    record = Record.of(TOY_IMPACT, tmp_path)
    folder = record.pieces_folder(0)
    folder.mkdir()
    pieces = make_pieces(TOY_IMPACT, record.atoms, 0, folder)
    for _ in range(n_kept):
        next(pieces)
    assert piece_path(folder, n_kept - 1).exists() and not piece_path(folder, n_kept).exists()
    assert equal(generate_aimd(TOY_IMPACT, tmp_path)[0], toy_runs[0])


def test_a_thermostat_would_brake_the_molecule() -> None:
    with pytest.raises(UserError, match="has a molecule in flight"):
        settings_for("h2-pd6-graphene", ensemble="langevin")


@pytest.mark.slow
def test_run_is_velocity_verlet_on_the_energy(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    (path,) = generate_aimd(settings_for("h2-pd6-graphene", n_steps=12, thermalise_steps=2), tmp_path)
    kicks = kicks_of(path, 0.5)
    assert kicks.positions.abs().max() < 1e-14
    assert kicks.velocities.abs().max() < 1e-14
    consistent(path, 57)


# H2 on Pd6/graphene: against the reference runs made before


def frame_0(shared_data: Path) -> list[Atoms]:
    frames = [ase.io.read(path, 0) for path in sorted((shared_data / "data" / "h2pd6gra").glob("*.traj"))]
    assert len(frames) == 6
    return [atoms for atoms in frames if isinstance(atoms, Atoms)]


@pytest.mark.shared
def test_reference_runs_are_the_same_system(shared_data: Path, surface: Atoms) -> None:
    for atoms in frame_0(shared_data):
        assert atoms.get_chemical_symbols() == [*surface.get_chemical_symbols(), "H", "H"]
        assert np.abs(atoms.cell - surface.cell).max() < 2e-3
        moved = atoms.positions[:-2] - surface.positions
        assert np.linalg.norm(moved - moved.mean(0), axis=1).max() < 0.6  # thermal motion at 300 K


@pytest.mark.shared
def test_reference_runs_start_as_ours_do(shared_data: Path) -> None:
    for atoms in frame_0(shared_data):
        start = start_conditions(atoms)
        assert 0.1 <= start["translation"] <= 0.5
        assert 3.2 <= start["distance"] <= 4.2
        assert start["impact"] <= 1.5
        assert start["cosine"] >= np.cos(np.radians(70))
        assert start["vibration"] == pytest.approx(h2.ZERO_POINT_ENERGY, abs=4e-3)
        assert start["rotation"] < 1e-12


@pytest.mark.shared
@pytest.mark.slow
def test_reference_runs_have_our_energies(shared_data: Path, surface: Atoms) -> None:
    pytest.importorskip("tblite")
    suited, frames = settings_for("h2-pd6-graphene"), frame_0(shared_data)
    again = frames[0].copy()
    again.calc = new_calculator(suited.method, suited.calculator_options)
    assert again.get_potential_energy() == pytest.approx(frames[0].get_potential_energy(), abs=1e-7)
    assert again.get_forces() == pytest.approx(frames[0].get_forces(), abs=1e-7)
    relaxed = surface.copy()
    relaxed.calc = again.calc
    assert np.linalg.norm(relaxed.get_forces(), axis=1).max() < 0.011
    molecule = Atoms("H2", [[0, 0, 0], [0, 0, h2.MORSE_LENGTH]])
    molecule.calc = new_calculator(suited.method, suited.calculator_options)
    lowest = relaxed.get_potential_energy() + molecule.get_potential_energy()
    thermal = np.mean([atoms.get_potential_energy() for atoms in frames]) - lowest
    equipartition = 1.5 * 55 * 8.617333e-5 * 300
    assert thermal == pytest.approx(equipartition + h2.ZERO_POINT_ENERGY / 2, abs=0.4)
