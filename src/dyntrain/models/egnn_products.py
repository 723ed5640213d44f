"""What the default network makes of an atom's vectors and tensors, with autograd and without."""

from __future__ import annotations

import torch
from torch import Tensor

from dyntrain import kernel


def _times(matrices: Tensor, vectors: Tensor) -> Tensor:
    """[n_atoms, 3, 3, c] times [n_atoms, 3, c], channel by channel: [n_atoms, 3, c]."""
    return (matrices * vectors[:, None]).sum(2)


def first_products(to_tensors: Tensor, vw: Tensor, tu: Tensor) -> Tensor:
    """v · w, v · Tw, w · Tw, Tw · Uv, t · u and the vector v + Tw, channel by channel: [n_atoms, 8c].

    Args:
        to_tensors: ``degree_two``, which makes matrices T, U of tensors t, u.
        vw: vectors v and w, [n_atoms, 3, 2c].
        tu: tensors t and u, [n_atoms, 5, 2c].

    First and second derivatives are exact; where compiled, a third raises.
    """
    if kernel.is_of_use(vw):
        from dyntrain.models import egnn_product_kernels

        return egnn_product_kernels.first_products(vw, tu)
    (v, w), (t, u) = vw.chunk(2, -1), tu.chunk(2, -1)
    first, second = (to_tensors @ tu).unflatten(1, (3, 3)).chunk(2, -1)
    tw, uv = _times(first, w), _times(second, v)
    left, right = torch.cat([v, v, w, tw], dim=-1), torch.cat([w, tw, tw, uv], dim=-1)
    return torch.cat([(left * right).sum(1), (t * u).sum(1), (v + tw).flatten(1)], dim=-1)


def second_products(to_tensors: Tensor, zy: Tensor, vw: Tensor, tu: Tensor) -> Tensor:
    """z · y, v · z and y · Tz, channel by channel: [n_atoms, 3c].

    Args:
        zy: vectors z and y, [n_atoms, 6c].
        to_tensors, vw, tu: as above.
    """
    if kernel.is_of_use(vw):
        from dyntrain.models import egnn_product_kernels

        return egnn_product_kernels.second_products(zy, vw, tu)
    c = vw.shape[-1] // 2
    z, y = zy.view(-1, 2, 3, c).unbind(1)
    v, t = vw[..., :c], tu[..., :c]
    tz = _times((to_tensors @ t).unflatten(1, (3, 3)), z)
    left, right = torch.cat([z, v, tz], dim=-1), torch.cat([y, z, y], dim=-1)
    return (left * right).sum(1)


# --- without autograd --------------------------------------------------------------------------------


class Products:
    """``first_products`` and ``second_products`` of the same atoms, and their adjoints in reverse order.

    Vectors are [n_atoms, 3, c], tensors [n_atoms, 5, c], as matrices T and U [n_atoms, 3, 3, c].
    """

    def __init__(self, to_tensors: Tensor) -> None:
        self.to_tensors = to_tensors

    def first(self, vw: Tensor, tu: Tensor) -> Tensor:
        """v · w, v · Tw, w · Tw, Tw · Uv, t · u and v + Tw, [n_atoms, 8c]."""
        self.tu = tu
        v, w = vw.chunk(2, -1)
        t, u = tu.chunk(2, -1)
        self.wv = torch.cat([w, v], -1)
        self.matrices = (self.to_tensors @ tu).unflatten(1, (3, 3))  # [T, U]
        tw, uv = _times(self.matrices, self.wv).chunk(2, -1)
        self.left, self.right = torch.cat([v, v, w, tw], -1), torch.cat([w, tw, tw, uv], -1)
        self.v = v
        return torch.cat([(self.left * self.right).sum(1), (t * u).sum(1), (v + tw).flatten(1)], 1)

    def second(self, zy: Tensor) -> Tensor:
        """z · y, v · z and y · Tz, [n_atoms, 3c], of [n_atoms, 6c]."""
        c = self.v.shape[-1]
        self.z, y = zy.view(-1, 2, 3, c).unbind(1)
        tz = _times(self.matrices[..., :c], self.z)
        self.left_z, self.right_z = torch.cat([self.z, self.v, tz], -1), torch.cat([y, self.z, y], -1)
        return (self.left_z * self.right_z).sum(1)

    def second_adjoint(self, bar: Tensor) -> Tensor:
        """Gradient of zy from that of what ``second`` gave; those of v and T are kept."""
        c = self.v.shape[-1]
        # Σ left ∘ right: what left gets is the gradient times right, and the other way; parts that stand
        # twice add up.
        z1, self.v_bar, tz_bar = (bar[:, None] * self.right_z).chunk(3, -1)
        y1, z2, y2 = (bar[:, None] * self.left_z).chunk(3, -1)
        self.t_bar = tz_bar[:, :, None] * self.z[:, None]
        z_bar = z1 + z2 + _times(self.matrices[..., :c], tz_bar)  # T is symmetric
        return torch.cat([z_bar.flatten(1), (y1 + y2).flatten(1)], 1)

    def first_adjoint(self, bar: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of vw and tu from that of what ``first`` gave, after ``second_adjoint``."""
        c = self.v.shape[-1]
        products_bar, tu_bar, sum_bar = bar.split_with_sizes([4 * c, c, 3 * c], 1)
        sum_bar = sum_bar.reshape(-1, 3, c)
        v1, v2, w1, tw1 = (products_bar[:, None] * self.right).chunk(4, -1)
        w2, tw2, tw3, uv_bar = (products_bar[:, None] * self.left).chunk(4, -1)
        # (Tw, Uv) = [T, U] [w, v], matrices symmetric: w̄ = T t̄w, v̄ = U ūv, T̄ = t̄w wᵀ, Ū = ūv vᵀ
        bars = torch.cat([sum_bar + tw1 + tw2 + tw3, uv_bar], -1)
        w_bar, v3 = _times(self.matrices, bars).chunk(2, -1)
        matrices_bar = bars[:, :, None] * self.wv[:, None]
        matrices_bar[..., :c] += self.t_bar
        vw_bar = torch.cat([self.v_bar + sum_bar + v1 + v2 + v3, w_bar + w1 + w2], -1)
        # k = Σ t ∘ u gives t̄ = k̄ u, ū = k̄ t; then T = Q t gives t̄ = Qᵀ T̄
        t, u = self.tu.chunk(2, -1)
        tensors_bar = torch.cat([u, t], -1).mul_(torch.cat([tu_bar, tu_bar], -1)[:, None])
        return vw_bar, tensors_bar.add_(self.to_tensors.T @ matrices_bar.flatten(1, 2))
