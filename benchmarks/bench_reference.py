"""Times the published code from a checkout of it, as `bench.py` asks: a worker like `bench_cases.py`.

    python benchmarks/bench_reference.py PATH

Needs torch-geometric; torch-scatter's only use there (a sum over neighbours) is put in its place here. The
neighbour lists are ours, made beforehand: the checkout's own (pymatgen) would come on top.
"""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import torch
from ase.io import read

from dyntrain.neighbors import neighbor_list
from dyntrain.state import State

FRAMES = Path(__file__).resolve().parents[1] / "tests" / "data" / "h2pd6gra_80.traj"
ELEMENTS = (1, 6, 46)
BATCH_SIZE = 8


def _scatter(
    source: torch.Tensor, index: torch.Tensor, dim: int = 0, dim_size: int | None = None, **_: Any
) -> Any:
    size = int(index.max()) + 1 if dim_size is None else dim_size
    shape = list(source.shape)
    shape[dim] = size
    return source.new_zeros(shape).index_add(dim, index, source)


def load_reference(root: Path) -> tuple[Any, Any, Any]:
    """Its network (in its example's size) and the two halves of its Verlet step."""
    stub = types.ModuleType("torch_scatter")
    stub.scatter = _scatter  # type: ignore[attr-defined]
    sys.modules.setdefault("torch_scatter", stub)
    # The package without its first file, which imports its trainer and all that this needs.
    package = types.ModuleType("dtegnn")
    package.__path__ = [str(root / "dtegnn")]
    sys.modules["dtegnn"] = package
    from dtegnn.model.layers.VerletLayer import VerletC, VerletV
    from dtegnn.model.nn.networks import EGNN

    torch.manual_seed(0)
    network = EGNN(
        depth=3, hidden_features=128, node_features=3, out_features=1, norm="layer", RFF_dim=512, RFF_sigma=4
    )
    return network, VerletC(), VerletV()


class Graph(types.SimpleNamespace):
    """What its network reads of a batch."""


def batch() -> Graph:
    frames = read(FRAMES, ":")[: 5 * BATCH_SIZE : 5]
    edges, offsets, total = [], [], 0
    for atoms in frames:
        state = State.from_ase(atoms)
        i, j, shifts = neighbor_list(state, 5.0).both_directions()
        edges.append(torch.stack([j, i]) + total)
        offsets.append(shifts)
        total += len(atoms)
    n_atoms = len(frames[0])
    numbers = torch.as_tensor([z for atoms in frames for z in atoms.numbers])
    forces = torch.cat([torch.as_tensor(atoms.get_forces()) for atoms in frames]).float()
    return Graph(
        x=(numbers[:, None] == torch.tensor(ELEMENTS)).float(),
        pos=torch.cat([torch.as_tensor(atoms.positions) for atoms in frames]).float(),
        vel=torch.zeros(total, 3),
        masses=torch.cat([torch.as_tensor(atoms.get_masses()) for atoms in frames]).float(),
        potim=torch.full((total,), 0.01),
        edge_index=torch.cat(edges, dim=1),
        cell_offset=torch.cat(offsets).float(),
        unit_cell=torch.as_tensor(frames[0].cell.array).float().repeat(BATCH_SIZE, 1),
        batch=torch.arange(BATCH_SIZE).repeat_interleave(n_atoms),
        forces=forces,
    )


def training_step(network: Any, drift: Any, finish: Any, data: Graph, length: int) -> None:
    """Its roll-out and loss, all graphs kept until the end, as its trainer does."""
    network.zero_grad()
    graph = Graph(**vars(data))
    position, velocity, loss = data.pos, data.vel, torch.zeros(())
    _, force = network(graph, train_flag=True)
    for step in range(length):
        weight = 50.0 if step == 0 and length > 1 else 1.0
        for element in range(3):
            of_element = data.x[:, element] == 1
            loss = loss + weight * (force[of_element] - data.forces[of_element]).abs().mean()
        if step == length - 1:
            break
        position = drift(force, position, velocity, data.potim, data.masses, data.unit_cell)
        graph.pos = position.detach()
        _, new = network(graph, train_flag=True)
        velocity = finish(new, force, velocity, data.potim, data.masses)
        force = new
    loss.backward()


def main() -> None:
    torch.set_num_threads(1)
    network, drift, finish = load_reference(Path(sys.argv[1]))
    data = batch()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        begin, wall = time.process_time(), time.perf_counter()
        if order["case"] == "train":
            training_step(network, drift, finish, data, order["length"])
        else:
            for _ in range(order["n_steps"] + 1):
                network(Graph(**vars(data)), train_flag=False)
        print(
            json.dumps({"cpu": time.process_time() - begin, "wall": time.perf_counter() - wall}), flush=True
        )


if __name__ == "__main__":
    main()
