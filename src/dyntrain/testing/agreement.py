"""How closely numbers must agree, and the sentence that says where they do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dyntrain.potential import Potential, Prediction
from dyntrain.testing.differences import flat

SMALLEST_FORCE = 1e-3
"""eV/Å: errors are relative to the largest force of a system, or to this where it is at rest."""


@dataclass(frozen=True)
class Tolerances:
    """How closely numbers must agree. All but ``step`` are relative (forces: to the largest force).

    step:       of the finite differences, Å; for parameters in units of their root mean square
    derivative: finite differences against autograd
    same:       one system computed alone, in a batch, with and without a graph
    symmetry:   the same physics in other coordinates; ``Adjoint`` against ``Full``
    jump:       of energy (per Å) and forces as a pair crosses the cutoff
    """

    step: float
    derivative: float
    same: float
    symmetry: float
    jump: float

    @classmethod
    def of(cls, potential: Potential) -> Tolerances:
        """Those of the coarsest parameter; without parameters those of float64."""
        coarsest = max((torch.finfo(p.dtype).eps for p in potential.parameters()), default=0.0)
        return FLOAT64 if coarsest <= torch.finfo(torch.float64).eps else FLOAT32


FLOAT64 = Tolerances(step=1e-4, derivative=1e-7, same=1e-12, symmetry=1e-10, jump=1e-6)
FLOAT32 = Tolerances(step=1e-3, derivative=1e-2, same=1e-5, symmetry=1e-4, jump=1e-4)


def require(condition: bool, complaint: str) -> None:
    # Not a bare assert: python -O would drop it.
    if not condition:
        raise AssertionError(complaint)


def require_slope(
    what: str,
    gradients: Sequence[Tensor],
    along: Sequence[Tensor],
    difference: Tensor,
    tolerances: Tolerances,
) -> None:
    """Gradient · direction equals the finite difference, relative to the size the product has by chance."""
    products = flat(gradients) * flat(along)
    scale = max(float(products.norm()), float(difference.abs()))
    require_close(what, products.sum(), difference, tolerances.derivative * scale)


def require_same(
    what: str, found: Prediction, expected: Prediction, tolerance: float, *, energy_matters: bool = True
) -> None:
    """Energies agree relative to their size (or to a force times 1 Å), forces to the largest force."""
    force = max(float(expected.forces.detach().abs().max()), SMALLEST_FORCE)
    energy = expected.energy.detach().abs().clamp(min=force) if energy_matters else force
    require_close(f"{what}: the energies", found.energy, expected.energy, tolerance * energy, "eV")
    require_close(f"{what}: the forces", found.forces, expected.forces, tolerance * force, "eV/Å")


def require_close(
    what: str, found: Tensor, expected: Tensor, allowed: Tensor | float, unit: str = ""
) -> None:
    error = (found.detach() - expected.detach()).abs()
    allowed = torch.as_tensor(allowed, dtype=error.dtype, device=error.device).expand_as(error)
    # NaN compares False: it is not close to anything.
    if bool((error <= allowed).all()):
        return
    worst = (error - allowed).nan_to_num(nan=torch.inf).argmax()
    values = [float(t.detach().flatten()[worst]) for t in (found, expected, error, allowed)]
    numbers = f"{values[0]:.10g} and {values[1]:.10g}, differ by {values[2]:.1e} (allowed {values[3]:.1e})"
    raise AssertionError(f"{what}: {numbers}{' ' + unit if unit else ''}")
