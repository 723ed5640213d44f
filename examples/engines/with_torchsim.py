"""NVE in TorchSim with a trained model, beside the same run in ASE.

pip install torch-sim-atomistic
python examples/engines/with_torchsim.py MODEL START [--steps 100]
"""

from __future__ import annotations

import torch
from beside_ase import deviation, read_arguments
from torch_sim.integrators.nve import nve

from dyntrain import State
from dyntrain.adapters.torchsim import TorchSimModel, sim_state_of
from dyntrain.units import FS


def main() -> None:
    arguments, atoms = read_arguments(__doc__)
    start = State.from_ase(atoms)
    dt = torch.tensor(arguments.dt * FS, dtype=torch.float64)  # TorchSim's metal units are ours
    begin, step = nve(model=TorchSimModel(arguments.model), dt=dt, kT=torch.tensor(0.0))
    state = begin(sim_state_of(start), seed=0)
    state.momenta = start.masses[:, None] * start.velocities

    def frames():
        nonlocal state
        for number in range(arguments.steps + 1):
            if number:
                state = step(state)
            yield state.positions.numpy()

    print(f"TorchSim and ASE are at most {deviation(arguments, atoms, frames()):.2g} Å apart")


if __name__ == "__main__":
    main()
