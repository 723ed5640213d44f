"""H2 flying at a Pd6 cluster on a graphene vacancy: the surface, and the start conditions of the molecule.

The system of I. Žugec et al., J. Chem. Inf. Model. 2025, doi 10.1021/acs.jcim.5c01180.
"""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.build import graphene

ELECTRONS = {"accuracy": 0.05, "electronic_temperature": 1000.0}
"""Calculator options of GFN1-xTB: the smeared occupation keeps the forces of the metal cluster smooth."""

TRANSLATIONAL_ENERGY = (0.1, 0.5)
"""Range of the molecule's translational energy, eV."""
START_DISTANCE = (3.2, 4.2)
"""Range of the distance of the molecule's centre from the nearest atom, Å."""
AIM_RADIUS = 1.5
"""Largest impact parameter with respect to the cluster's centre, Å."""
LARGEST_POLAR_ANGLE = 70.0
"""Largest angle between flight and surface normal, degrees: flatter ones would meet the graphene first."""

# H–H of GFN1-xTB as a Morse oscillator, fitted where the zero-point vibration goes (0.66 to 0.90 Å; there it
# is right within 3 meV): well depth (eV), stiffness (1/Å) and length (Å) of that part, not of the whole bond.
MORSE_DEPTH, MORSE_STIFFNESS, MORSE_LENGTH = 3.385, 2.583, 0.765
ZERO_POINT_ENERGY = 0.306
"""½ħω of that oscillator's harmonic part, eV."""


def pd6_graphene() -> Atoms:
    """The surface: 5 × 5 graphene without one atom, Pd6 vertex-down on the vacancy; C49Pd6, periodic.

    Cell 12.3 × 12.3 × 25.24 Å, γ = 120°. Relaxed from ``unrelaxed_pd6_graphene`` with GFN1-xTB and
    ``ELECTRONS`` by ASE's BFGS until no force exceeded 0.01 eV/Å.
    """
    atoms = ase.io.read(Path(__file__).with_name("pd6_graphene.xyz"))
    assert isinstance(atoms, Atoms)
    return atoms


def unrelaxed_pd6_graphene() -> Atoms:
    """The same of ideal hexagons (a = 2.46 Å) and an octahedron (edge 2.65 Å) 1.75 Å above the sheet."""
    sheet = graphene(a=2.46, size=(5, 5, 1))
    sheet.positions[:, 2] = 4.0
    sheet.cell[2] = [0, 0, 25.24]
    sheet.pbc = True
    vacancy = sheet.positions[25].copy()
    del sheet[25]
    radius = 2.65 / np.sqrt(2)
    angles = np.radians(25 + 90 * np.arange(4))
    square = radius * np.stack([np.cos(angles), np.sin(angles), np.ones(4)], axis=1)
    cluster = np.vstack([[0, 0, 0], square, [0, 0, 2 * radius]])
    return sheet + Atoms("Pd6", cluster + vacancy + [0, 0, 1.75])


def incoming_hydrogen(surface: Atoms, random: np.random.Generator) -> Atoms:
    """H2 with its momenta at the start of a quasi-classical trajectory.

    All drawn uniformly: translational energy; direction of flight over the solid angle up to
    ``LARGEST_POLAR_ANGLE``; impact point over the disc of ``AIM_RADIUS`` around the cluster's centre;
    distance of the molecule's centre from the nearest atom; orientation; phase of the zero-point vibration
    in time. The molecule does not rotate (j = 0).

    Args:
        surface: with the cluster as its Pd atoms; not changed.
        random: the source of the draws; advanced.
    """
    hydrogen = Atoms("H2")
    mass = hydrogen.get_masses().sum()
    outward = _direction(random, np.cos(np.radians(LARGEST_POLAR_ANGLE)))
    centre = surface.positions[surface.symbols == "Pd"].mean(0)
    start = _far_point(centre + _in_disc(outward, random), outward, random.uniform(*START_DISTANCE), surface)
    flight = -outward * np.sqrt(2 * random.uniform(*TRANSLATIONAL_ENERGY) / mass)
    axis = _direction(random, -1.0)
    length, speed = vibration(random.uniform(0, 2 * np.pi), mass / 4)
    halves = np.array([[-0.5], [0.5]])
    hydrogen.positions = start + halves * length * axis
    hydrogen.set_velocities(flight + halves * speed * axis)
    return hydrogen


def vibration(phase: float, reduced_mass: float) -> tuple[float, float]:
    """Bond length (Å) and its velocity (Å/ASE time) of the Morse oscillator with the zero-point energy.

    The motion in closed form: R. N. Porter, L. M. Raff, W. H. Miller, J. Chem. Phys. 63, 2214 (1975).

    Args:
        phase: 0 to 2π, proportional to time.
        reduced_mass: u.
    """
    fraction = ZERO_POINT_ENERGY / MORSE_DEPTH
    frequency = MORSE_STIFFNESS * np.sqrt(2 * MORSE_DEPTH / reduced_mass * (1 - fraction))
    swing = np.sqrt(fraction)
    stretch = (1 + swing * np.sin(phase)) / (1 - fraction)
    speed = frequency * swing * np.cos(phase) / (MORSE_STIFFNESS * (1 + swing * np.sin(phase)))
    return float(MORSE_LENGTH + np.log(stretch) / MORSE_STIFFNESS), float(speed)


def _direction(random: np.random.Generator, lowest_z: float) -> np.ndarray:
    """A unit vector, uniform over the sphere's cap above ``lowest_z``."""
    z, azimuth = random.uniform(lowest_z, 1), random.uniform(0, 2 * np.pi)
    radius = np.sqrt(1 - z**2)
    return np.array([radius * np.cos(azimuth), radius * np.sin(azimuth), z])


def _in_disc(normal: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A vector perpendicular to the normal, uniform over the disc of ``AIM_RADIUS``."""
    across = np.cross(normal, [1.0, 0, 0] if abs(normal[0]) < 0.7 else [0, 1.0, 0])
    across /= np.linalg.norm(across)
    radius, angle = AIM_RADIUS * np.sqrt(random.random()), random.uniform(0, 2 * np.pi)
    return radius * (np.cos(angle) * across + np.sin(angle) * np.cross(normal, across))


def _far_point(aim: np.ndarray, outward: np.ndarray, distance: float, surface: Atoms) -> np.ndarray:
    """The point on the ray from ``aim`` outward from which on all atoms are farther than the distance."""
    sideways = np.array([[i, j, 0] for i in (-1, 0, 1) for j in (-1, 0, 1)]) @ surface.cell.array
    away = aim - (surface.positions[:, None] + sideways).reshape(-1, 3)
    along = away @ outward
    # Where the ray leaves the sphere of that distance around an atom, if it meets it at all.
    discriminant = along**2 - (away**2).sum(1) + distance**2
    return aim + outward * (np.sqrt(discriminant[discriminant >= 0]) - along[discriminant >= 0]).max()
