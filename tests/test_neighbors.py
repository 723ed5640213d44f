"""Neighbour lists: every pair once, as two other programs find them, in an order free of history."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule
from hypothesis import given, settings
from hypothesis import strategies as st
from matscipy.neighbours import neighbour_list as matscipy_neighbour_list

from dyntrain.errors import UserError
from dyntrain.neighbor_search import (
    FEW_ATOMS,
    Found,
    FoundAtOnce,
    System,
    _canonical_order,
    search,
    search_at_once,
)
from dyntrain.neighbors import (
    FrozenNeighbors,
    NeighborList,
    VerletNeighbors,
    _KnownPairs,
    detached_pair_vectors,
    neighbor_list,
    pair_forces,
    pair_vectors,
)
from dyntrain.state import State, concatenate
from systems import argon_cluster, argon_crystal, hydrogen

SKEWED = np.array([[4.0, 0.0, 0.0], [1.9, 3.6, 0.0], [-1.2, 0.8, 4.4]])

Pair = tuple[int, int, int, int, int]


def random_atoms(n_atoms: int, cell: np.ndarray, pbc: tuple[bool, bool, bool], seed: int = 0) -> Atoms:
    """Atoms in and around the cell: a third of them outside of it."""
    random = np.random.default_rng(seed)
    box = np.where(np.linalg.norm(cell, axis=1)[:, None] > 0, cell, 5.0 * np.eye(3))
    return Atoms(f"H{n_atoms}", positions=random.uniform(-0.3, 1.3, (n_atoms, 3)) @ box, cell=cell, pbc=pbc)


SYSTEMS = {
    "molecule": molecule("CH3CH2OH"),
    "one atom": Atoms("H", positions=[[1.0, 2.0, 3.0]]),
    "no pair": Atoms("H2", positions=[[0, 0, 0], [0, 0, 100.0]]),
    "cube": random_atoms(20, 9.0 * np.eye(3), (True, True, True)),
    "skewed": random_atoms(12, 2.0 * SKEWED, (True, True, True)),
    "smaller than the cutoff": random_atoms(3, SKEWED, (True, True, True)),
    "one atom and its images": Atoms("H", positions=[[0.3, 0.1, 0.2]], cell=0.8 * SKEWED, pbc=True),
    "slab": random_atoms(10, np.diag([5.0, 6.0, 30.0]), (True, True, False)),
    "slab, no third vector": random_atoms(10, np.diag([5.0, 6.0, 0.0]), (True, True, False)),
    "skewed slab, no second vector": random_atoms(8, SKEWED * [[1], [0], [1]], (True, False, True)),
    "wire, no other vectors": random_atoms(6, np.diag([0.0, 4.0, 0.0]), (False, True, False)),
    "cell, but not periodic": random_atoms(15, SKEWED, (False, False, False)),
    "left-handed": random_atoms(6, 1.5 * SKEWED[::-1], (True, True, True)),
}

systems = pytest.mark.parametrize("atoms", SYSTEMS.values(), ids=SYSTEMS.keys())


def pairs_of(neighbors: NeighborList) -> list[Pair]:
    """(i, j, three shifts) of each pair, as listed."""
    columns = torch.cat([neighbors.i[:, None], neighbors.j[:, None], neighbors.shifts.long()], 1)
    return [tuple(row) for row in columns.tolist()]


def both_directions(pairs: list[Pair]) -> list[Pair]:
    return sorted(pairs + [(j, i, -a, -b, -c) for i, j, a, b, c in pairs])


def assert_identical(a: NeighborList, b: NeighborList) -> None:
    assert torch.equal(a.i, b.i) and torch.equal(a.j, b.j) and torch.equal(a.shifts, b.shifts)


@systems
def test_the_pairs_are_those_of_matscipy(atoms: Atoms) -> None:
    cutoff = 4.5
    oracle = atoms.copy()
    # matscipy wants a full cell; a vector along a direction that is not periodic changes no pair.
    oracle.cell = atoms.cell.complete()
    i, j, shifts = matscipy_neighbour_list("ijS", oracle, cutoff)
    expected = sorted((int(a), int(b), *map(int, s)) for a, b, s in zip(i, j, shifts, strict=True))
    found = pairs_of(neighbor_list(State.from_ase(atoms), cutoff))
    assert both_directions(found) == expected


@systems
def test_the_pairs_are_those_of_brute_force(atoms: Atoms) -> None:
    cutoff = 4.5
    ranges = [range(-7, 8) if periodic else range(1) for periodic in atoms.pbc]
    expected = []
    for shift in itertools.product(*ranges):
        vectors = atoms.positions[None] - atoms.positions[:, None] + np.array(shift) @ atoms.cell.array
        near = np.linalg.norm(vectors, axis=-1) < cutoff
        if not any(shift):
            np.fill_diagonal(near, False)
        expected += [(int(i), int(j), *shift) for i, j in np.argwhere(near)]
    neighbors = neighbor_list(State.from_ase(atoms), cutoff)
    assert both_directions(pairs_of(neighbors)) == sorted(expected)
    lengths = pair_vectors(State.from_ase(atoms), neighbors).norm(dim=-1)
    assert bool((lengths < cutoff).all())


@systems
def test_the_order_is_canonical(atoms: Atoms) -> None:
    pairs = pairs_of(neighbor_list(State.from_ase(atoms), 4.5))
    assert pairs == sorted(pairs)
    for i, j, *shift in pairs:
        first = next((s for s in shift if s), 0)
        assert i < j or (i == j and first > 0)


def test_a_batch_lists_its_systems_one_after_the_other() -> None:
    parts = [State.from_ase(atoms) for atoms in SYSTEMS.values()]
    expected, offset = [], 0
    for part in parts:
        expected += [(i + offset, j + offset, *s) for i, j, *s in pairs_of(neighbor_list(part, 4.5))]
        offset += part.n_atoms
    assert pairs_of(neighbor_list(concatenate(parts), 4.5)) == expected


def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dyntrain.kernel.is_installed", lambda: False)


def test_a_structure_met_before_is_not_searched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    without_numba(monkeypatch)  # whose loop finds pairs sooner than they are looked up
    state = State.from_ase(SYSTEMS["skewed"])
    first = pairs_of(neighbor_list(state, 3.0))
    neighbor_list(state, 3.0).shifts.add_(7.0)  # a caller's list is its own
    monkeypatch.setattr("dyntrain.neighbors.search", lambda *_: pytest.fail("searched"))
    assert pairs_of(neighbor_list(state, 3.0)) == first
    others = [state.replace(positions=state.positions + 1e-14), state.replace(cell=state.cell * 1.1)]
    for other, cutoff in [*((other, 3.0) for other in others), (state, 3.1)]:
        with pytest.raises(pytest.fail.Exception, match="searched"):
            neighbor_list(other, cutoff)


def test_known_structures_are_forgotten_before_they_fill_the_memory() -> None:
    known = _KnownPairs()
    size = known.CAPACITY // 1500
    pairs = Found(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros((0, 3), np.int32), True)
    for number in range(1600):
        known.keep((bytes(size), number.to_bytes(2)), pairs)
    assert known.get((bytes(size), (1599).to_bytes(2))) is not None
    assert known.get((bytes(size), (0).to_bytes(2))) is None
    known.keep((bytes(known.CAPACITY // 900),), pairs)
    assert known.get((bytes(known.CAPACITY // 900),)) is None


@pytest.mark.parametrize("furthest", [3, 10**9])
def test_pairs_are_ordered_however_far_the_cells_are_apart(furthest: int) -> None:
    random = np.random.default_rng(0)
    i, j = (random.integers(0, 4, 200, dtype=np.int64) for _ in range(2))
    shifts = random.integers(-2, 3, (200, 3), dtype=np.int32)
    shifts[:, 1] *= furthest // 3
    order = _canonical_order(i, j, shifts)
    rows = [(int(i[k]), int(j[k]), *shifts[k].tolist()) for k in order]
    assert rows == sorted(rows)


def test_pairs_at_the_cutoff_itself_are_out() -> None:
    state = State.from_arrays([[0, 0, 0], [2.0, 0, 0], [0, 3.0, 0]], [1, 1, 1], [1, 1, 1])
    assert pairs_of(neighbor_list(state, 2.0)) == []
    assert pairs_of(neighbor_list(state, np.nextafter(2.0, 3.0))) == [(0, 1, 0, 0, 0)]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    n_atoms=st.integers(0, 40),
    seed=st.integers(0, 2**32 - 1),
    scale=st.floats(1.0, 4.0),
    cells_away=st.sampled_from([0, 3, 1000]),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_every_pair_finds_what_the_cell_list_finds(
    n_atoms: int, seed: int, scale: float, cells_away: int, pbc: tuple[bool, bool, bool]
) -> None:
    """In cells just wider than twice the cutoff, with atoms up to a thousand cells apart."""
    pytest.importorskip("numba")
    cell, random = scale * SKEWED, np.random.default_rng(seed)
    atoms = random_atoms(n_atoms, cell, pbc, seed)
    away = random.integers(-cells_away, cells_away, (n_atoms, 3), endpoint=True)
    if all(pbc):  # vesin 0.6 dies of some such atoms otherwise
        atoms.positions += away @ cell
    widths = 1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    cutoff = 0.4999 * widths.min()
    every_pair = at_once([atoms], cutoff)
    (cells,) = search([System(atoms.positions, atoms.cell.complete().array, atoms.pbc)], cutoff)
    assert every_pair is not None
    for a, b in zip(every_pair, cells, strict=True):
        assert np.array_equal(a, b)


def at_once(batch: list[Atoms], cutoff: float) -> FoundAtOnce | None:
    """What the compiled loop over a batch finds."""
    return search_at_once(
        np.concatenate([atoms.positions for atoms in batch]),
        np.array([len(atoms) for atoms in batch]),
        np.stack([atoms.cell.array for atoms in batch]),
        np.stack([atoms.pbc for atoms in batch]),
        cutoff,
    )


def test_with_and_without_numba_the_pairs_of_a_batch_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one system after the other; of systems that the compiled loop takes, and of others."""
    pytest.importorskip("numba")
    wide = [SYSTEMS[name] for name in ("molecule", "one atom", "no pair", "cell, but not periodic")]
    wide.append(random_atoms(30, 2.5 * SKEWED, (True, True, False), 1))
    for batch, taken in ((wide, True), ([*wide, SYSTEMS["slab, no third vector"]], False)):
        assert (at_once(batch, 4.0) is not None) == taken
        state = concatenate([State.from_ase(atoms) for atoms in batch])
        found = neighbor_list(state, 4.0)
        assert (found.i.dtype, found.j.dtype, found.shifts.dtype) == (torch.int64, torch.int64, torch.float64)
        with monkeypatch.context() as context:
            without_numba(context)
            assert_identical(found, neighbor_list(state, 4.0))


@systems
def test_with_and_without_numba_the_same_candidates_are_kept(
    atoms: Atoms, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of systems in a batch and alone, with a skin; also those at the cutoff to the last digit."""
    pytest.importorskip("numba")
    state = concatenate([State.from_ase(atoms), State.from_ase(SYSTEMS["skewed"])])
    lengths = pair_vectors(state, neighbor_list(state, 4.5)).norm(dim=-1).tolist()
    for cutoff in (3.7, *lengths[:5]):
        found = VerletNeighbors(cutoff, skin=0.8)(state)
        with monkeypatch.context() as context:
            without_numba(context)
            assert_identical(found, VerletNeighbors(cutoff, skin=0.8)(state))


def test_the_compiled_loop_leaves_to_others_what_it_cannot_do() -> None:
    pytest.importorskip("numba")
    narrow = Atoms("H2", positions=[[0, 0, 0], [3.0, 0, 0]], cell=[6.0, 20.0, 20.0], pbc=True)
    assert at_once([narrow], 2.9) is not None
    assert at_once([narrow], 3.1) is None  # two images may be near
    assert pairs_of(neighbor_list(State.from_ase(narrow), 3.1)) == [(0, 1, -1, 0, 0), (0, 1, 0, 0, 0)]
    molecule = narrow.copy()
    molecule.pbc = False
    assert at_once([molecule], 3.1) is not None
    far, unknown, flat = narrow.copy(), narrow.copy(), narrow.copy()
    far.positions[1] += 1e8
    unknown.positions[1, 1] = np.nan
    flat.cell[2] = 0.0
    many = random_atoms(FEW_ATOMS + 1, 40.0 * np.eye(3), (True, True, True))
    for atoms in (far, unknown, flat, many):
        assert at_once([narrow, atoms], 2.0) is None


@pytest.mark.parametrize("numba", [True, False])
def test_a_pair_within_a_hair_of_the_cutoff_is_looked_at_again(
    numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not numba:
        without_numba(monkeypatch)
    for apart, n_pairs in ((3.0 - 1e-9, 1), (3.0, 0), (3.0 + 1e-9, 0)):
        state = State.from_arrays([[0, 0, 0], [apart, 0, 0]], [1, 1], [1, 1])
        assert neighbor_list(state, 3.0).n_pairs == n_pairs


def test_far_spread_atoms_in_a_plane(monkeypatch: pytest.MonkeyPatch) -> None:
    """vesin 0.6 ends the process by SIGFPE where such a plane lies along the axes."""
    monkeypatch.setattr("dyntrain.neighbor_search.FEW_ATOMS", 0)
    positions = [[0.0, 0.0, 0.0], [400.0, 0.0, 1600.0], [200.0, 0.0, 400.0], [200.0, 0.0, 401.0]]
    pairs = neighbor_list(State.from_ase(Atoms("H4", positions=positions)), 2.0)
    assert (pairs.i.tolist(), pairs.j.tolist()) == ([2], [3])


def test_both_directions_are_opposite() -> None:
    state = argon_crystal()
    neighbors = neighbor_list(state, 7.0)
    i, j, shifts = neighbors.both_directions()
    vectors = pair_vectors(state, NeighborList(i, j, shifts))
    n = neighbors.n_pairs
    assert n > 0 and i.shape == (2 * n,)
    assert torch.equal(i[:n], j[n:]) and torch.equal(j[:n], i[n:])
    torch.testing.assert_close(vectors[:n], -vectors[n:], rtol=0, atol=1e-14)


def test_pair_vectors_pass_a_gradient_on() -> None:
    state = argon_crystal()
    neighbors = neighbor_list(state, 7.0)
    positions = state.positions.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: pair_vectors(state.replace(positions=x), neighbors)[::20], [positions]
    )


@pytest.mark.parametrize("numba", [True, False])
@systems
def test_forces_and_vectors_without_a_gradient_are_those_with_one(
    atoms: Atoms, numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if numba:
        pytest.importorskip("numba")
    else:
        without_numba(monkeypatch)
    state = concatenate([State.from_ase(atoms), State.from_ase(SYSTEMS["skewed"])])
    neighbors = neighbor_list(state, 4.5)
    positions = state.positions.clone().requires_grad_()
    vectors = pair_vectors(state.replace(positions=positions), neighbors)
    slopes = torch.randn_like(vectors)
    (gradient,) = torch.autograd.grad((vectors * slopes).sum(), positions)
    torch.testing.assert_close(pair_forces(state, neighbors, slopes), -gradient)
    torch.testing.assert_close(detached_pair_vectors(state, neighbors), vectors.detach())


# --- moving -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    skin=st.floats(0.0, 3.0),
    speed=st.floats(0.0, 0.6),
    periodic=st.booleans(),
)
def test_the_list_does_not_depend_on_skin_or_history(
    seed: int, skin: float, speed: float, periodic: bool
) -> None:
    random = np.random.default_rng(seed)
    moving = random_atoms(9, 1.3 * SKEWED, (True, periodic, True), seed)
    state = concatenate([State.from_ase(moving), State.from_ase(molecule("CH3OH"))])
    neighbors = VerletNeighbors(3.5, skin)
    for _ in range(6):
        assert_identical(neighbors(state), neighbor_list(state, 3.5))
        step = torch.from_numpy(random.normal(scale=speed, size=(state.n_atoms, 3)))
        state = state.replace(positions=state.positions + step)


def test_rounding_loses_no_pair_that_closes_in_by_the_whole_skin() -> None:
    """Beyond cutoff + skin; then both atoms move half a skin: no rebuild; then within the cutoff."""
    cutoff, skin = 2.0, 1.0
    random = np.random.default_rng(0)
    first = random.uniform(-100.0, 100.0, (20000, 3))
    direction = random.normal(size=(20000, 3))
    direction /= np.linalg.norm(direction, axis=1)[:, None]
    second = first + (cutoff + skin) * direction
    first_moved, second_moved = first + 0.5 * skin * direction, second - 0.5 * skin * direction

    def squared(vectors: np.ndarray) -> np.ndarray:
        return (vectors**2).sum(1)

    # By rounding alone, a few of the many random pairs are such.
    beyond = squared(second - first) >= (cutoff + skin) ** 2
    no_rebuild = np.maximum(squared(first_moved - first), squared(second_moved - second)) <= (skin / 2) ** 2
    within = squared(second_moved - first_moved) < cutoff**2
    chosen = np.flatnonzero(beyond & no_rebuild & within)
    assert len(chosen) > 3
    for k in chosen:
        start = State.from_arrays(np.stack([first[k], second[k]]), [1, 1], [1, 1])
        moved = start.replace(positions=torch.from_numpy(np.stack([first_moved[k], second_moved[k]])))
        neighbors = VerletNeighbors(cutoff, skin)
        assert neighbors(start).n_pairs == 0
        assert neighbors(moved).n_pairs == neighbor_list(moved, cutoff).n_pairs == 1
        assert neighbors.n_rebuilds == 1


@pytest.mark.parametrize("numba", [True, False])
def test_it_is_rebuilt_when_an_atom_has_moved_half_the_skin(
    numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if numba:
        pytest.importorskip("numba")
    else:
        without_numba(monkeypatch)
    state = argon_cluster(8)
    neighbors = VerletNeighbors(6.0, skin=1.0)
    one_step = torch.zeros_like(state.positions)
    one_step[3, 1] = 0.2
    built = []
    for _ in range(7):
        neighbors(state)
        built.append(neighbors.n_rebuilds)
        state = state.replace(positions=state.positions + one_step)
    # 0.2 and 0.4 Å are within half a skin, 0.6 Å is not.
    assert built == [1, 1, 1, 2, 2, 2, 3]


def test_it_is_rebuilt_for_another_cell_or_batch() -> None:
    crystal = argon_crystal()
    neighbors = VerletNeighbors(6.0)
    changed = [
        crystal,
        crystal.replace(cell=1.01 * crystal.cell),
        crystal.replace(pbc=torch.tensor([[True, True, False]])),
        concatenate([crystal, crystal]),
        concatenate([crystal, crystal, crystal]).select([0, 2]),
    ]
    for state in changed:
        assert_identical(neighbors(state), neighbor_list(state, 6.0))
    # The last batch equals the one before: nothing to rebuild.
    assert neighbors.n_rebuilds == 4


def test_a_skin_of_zero_rebuilds_at_every_motion_only() -> None:
    state = argon_cluster(8)
    neighbors = VerletNeighbors(6.0, skin=0.0)
    for _ in range(3):
        neighbors(state)
    neighbors(state.replace(positions=state.positions + 1e-9))
    assert neighbors.n_rebuilds == 2


def test_frozen_neighbors_keep_the_first_list() -> None:
    state = argon_cluster(8)
    neighbors = FrozenNeighbors(5.0)
    first = neighbors(state)
    far = state.replace(positions=3.0 * state.positions)
    assert neighbors(far) is first
    assert neighbor_list(far, 5.0).n_pairs < first.n_pairs


def test_frozen_neighbors_refuse_a_batch_that_lost_systems() -> None:
    batch = concatenate([hydrogen(), argon_cluster(3)])
    neighbors = FrozenNeighbors(5.0)
    neighbors(batch)
    with pytest.raises(ValueError, match="frozen at 5 atoms was asked for 3"):
        neighbors(batch.select([1]))


# --- refusals -----------------------------------------------------------------------------------------


def test_positions_with_a_gradient_are_refused() -> None:
    state = hydrogen()
    with pytest.raises(ValueError, match="carry a gradient, which it cannot pass on: detach the state first"):
        neighbor_list(state.replace(positions=state.positions.clone().requires_grad_()), 5.0)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_positions_that_are_not_finite_are_refused(value: float) -> None:
    state = hydrogen()
    neighbors = VerletNeighbors(5.0)
    neighbors(state)
    broken = state.positions.clone()
    broken[1, 2] = value
    for build in (neighbors, lambda s: neighbor_list(s, 5.0)):
        with pytest.raises(ValueError, match="positions that are not finite"):
            build(state.replace(positions=broken))


@pytest.mark.parametrize(
    ("cell", "pbc", "axis"),
    [
        (np.zeros((3, 3)), (True, True, True), "a"),
        (np.diag([5.0, 0.0, 5.0]), (True, True, True), "b"),
        (np.diag([5.0, 5.0, 0.0]), (False, False, True), "c"),
        (np.array([[5.0, 0, 0], [10.0, 0, 0], [0, 0, 5.0]]), (True, True, False), "a"),
    ],
    ids=["no cell", "no second vector", "no third vector", "parallel vectors"],
)
def test_a_periodic_direction_without_a_cell_vector_is_refused(
    cell: np.ndarray, pbc: tuple[bool, bool, bool], axis: str
) -> None:
    atoms = Atoms("H2", positions=[[0, 0, 0], [0, 0, 1.0]], cell=cell, pbc=pbc)
    batch = concatenate([hydrogen(), State.from_ase(atoms)])
    with pytest.raises(UserError, match=f"system 1 is periodic along {axis} but its cell .* has no volume"):
        neighbor_list(batch, 5.0)


def test_a_cutoff_or_skin_out_of_range_is_refused() -> None:
    for cutoff, skin in ((0.0, 1.0), (5.0, -0.1)):
        with pytest.raises(ValueError, match="need cutoff > 0 and skin >= 0"):
            VerletNeighbors(cutoff, skin)
