"""What `dyntrain md` shows while it runs: step, energy, temperature, speed; and the sum of it at the end."""

from __future__ import annotations

import time

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from dyntrain.observables import energy_drift
from dyntrain.rollout import Frame
from dyntrain.simulate import internal_temperature
from dyntrain.units import KB

_REFRESH_S = 0.2


class Meter:
    """A progress bar in a ``with`` block; ``note`` every frame.

    Energies are sums over the systems, temperatures means, ns/day counts the time of all systems together.

    Args:
        degrees_of_freedom: that a thermostat acts on, [n_systems]; None (NVE): temperatures are those of
            the motion beside moving and turning as a whole.
    """

    def __init__(
        self, console: Console, n_steps: int, first_step: int, dt_fs: float, degrees_of_freedom: Tensor | None
    ) -> None:
        self._dt, self._n_steps, self._step = dt_fs, n_steps, first_step
        self._degrees_of_freedom = degrees_of_freedom
        self._system_steps = 0  # steps times systems
        self._times: list[float] = []
        self._temperatures: list[float] = []
        self._energies: list[dict[int, float]] = []
        self._n_atoms: dict[int, int] = {}
        self._begun = self._shown = time.perf_counter()
        self._bar = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn("E {task.fields[energy]:.4f} eV  T {task.fields[temperature]:.0f} K"),
            TextColumn("{task.fields[speed]:.3g} ns/day"),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(
            "", total=n_steps, completed=first_step, energy=0.0, temperature=0.0, speed=0.0
        )

    def __enter__(self) -> Meter:
        self._begun = self._shown = time.perf_counter()
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def note(self, frame: Frame, conserved: Tensor, due: bool) -> None:
        """Count a frame; one that is ``due`` enters the sums."""
        if frame.step > 0:
            self._system_steps += frame.systems.numel()
        self._step = frame.step
        if due:
            self._times.append(frame.step * self._dt)
            self._temperatures.append(self._temperature(frame))
            self._energies.append(dict(zip(frame.systems.tolist(), conserved.tolist(), strict=True)))
            self._n_atoms.update(
                zip(frame.systems.tolist(), frame.state.n_atoms_per_system().tolist(), strict=True)
            )
        now = time.perf_counter()
        if now - self._shown > _REFRESH_S or frame.step == self._n_steps:
            energy = float((frame.prediction.energy + frame.state.kinetic_energy()).sum())
            self._bar.update(
                self._task,
                completed=frame.step,
                energy=energy,
                temperature=self._temperature(frame),
                speed=self._speed(now),
            )
            self._shown = now

    def _speed(self, now: float) -> float:
        return self._system_steps * self._dt * 1e-6 / max(now - self._begun, 1e-9) * 86400

    def _temperature(self, frame: Frame) -> float:
        """Mean over the systems, K."""
        state = frame.state
        if self._degrees_of_freedom is None:
            return float(np.mean([internal_temperature(state.select([n])) for n in range(state.n_systems)]))
        n_free = self._degrees_of_freedom.to(state.device)[frame.systems]
        return float((2.0 * state.kinetic_energy() / (KB * n_free)).mean())

    def summary(self) -> str:
        """One sentence on how it went (since this call began)."""
        if not self._times and not self._system_steps:
            return "no step was possible"
        speed = self._speed(time.perf_counter())
        parts = [f"{self._step} steps ({self._step * self._dt:g} fs) at {speed:.3g} ns/day"]
        if self._temperatures:
            parts.append(f"mean temperature {np.mean(self._temperatures):.1f} K")
        if drifts := self._drifts():
            worst = max(drifts, key=abs)
            what = "energy drift" if self._degrees_of_freedom is None else "conserved energy drift"
            parts.append(f"{what} {worst:+.3g} meV/atom/ps" + (" (the largest)" if len(drifts) > 1 else ""))
        return ", ".join(parts)

    def _drifts(self) -> list[float]:
        """Of the systems that came to the end, meV/atom/ps."""
        if len(self._times) < 3:
            return []
        times, drifts = np.array(self._times), []
        for system in self._energies[-1]:
            energies = np.array([frame[system] for frame in self._energies])
            drifts.append(energy_drift(times, energies, self._n_atoms[system]))
        return drifts
