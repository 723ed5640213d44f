"""How the atoms move: vibrational density of states and mean square displacement."""

from __future__ import annotations

import numpy as np

from dyntrain.observables.arrays import FloatArray

WAVENUMBER = 33356.40951981521
"""1/fs in cm⁻¹."""


def vdos(velocities: FloatArray, masses: FloatArray, dt_fs: float) -> tuple[FloatArray, FloatArray]:
    """Vibrational density of states: the mass-weighted power spectrum of the velocities, of unit area.

    By the Wiener–Khinchin theorem the Fourier transform of the velocity autocorrelation function
    (M. Thomas et al., Phys. Chem. Chem. Phys. 15, 6608 (2013)); a Hann window keeps sharp lines from leaking.

    Args:
        velocities: [n_times, n_atoms, 3], any unit.
        masses: [n_atoms].
        dt_fs: between the times, fs.

    Returns:
        wavenumbers [n_times // 2 + 1] cm⁻¹ and density [n_times // 2 + 1] in cm; zero where nothing moves.
    """
    n_times = len(velocities)
    window = np.hanning(n_times)[:, None, None]
    power = (np.abs(np.fft.rfft(window * velocities, axis=0)) ** 2).sum(-1) @ masses
    wavenumbers = np.asarray(np.fft.rfftfreq(n_times, dt_fs) * WAVENUMBER, dtype=np.float64)
    area = power.sum() * (wavenumbers[1] if len(wavenumbers) > 1 else 1.0)
    return wavenumbers, power / area if area > 0 else power


def mean_square_displacement(positions: FloatArray, n_lags: int) -> FloatArray:
    """MSD(k) = ⟨|r(t + k) − r(t)|²⟩ over all times t and atoms, for k = 0 … n_lags − 1, [n_lags] Å².

    Args:
        positions: [n_times, n_atoms, 3] Å, unwrapped, the motion of the whole taken out.

    Raises:
        ValueError: as many lags as times, or more.
    """
    if not n_lags < len(positions):
        raise ValueError(f"{n_lags} lags need more than as many times, got {len(positions)}")
    found = [0.0]
    for lag in range(1, n_lags):
        found.append(float(((positions[lag:] - positions[:-lag]) ** 2).sum(-1).mean()))
    return np.array(found)
