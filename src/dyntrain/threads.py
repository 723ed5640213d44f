"""How many CPU threads a batch is worth."""

from __future__ import annotations

import os

import torch


def limit_threads(n_atoms: int) -> None:
    """Use one CPU thread for batches of few atoms, unless the user has set OMP_NUM_THREADS.

    Below a few hundred atoms threads mostly wait for each other; where other work shares the cores, an
    ethanol run on two threads was 40 times slower than on one.
    """
    if n_atoms <= 256 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)
