"""Several processes as one: how they start, what one decides for all, and sums over all of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import torch
from lightning_fabric import Fabric
from torch import Tensor

from dyntrain.config import Config
from dyntrain.errors import UserError

T = TypeVar("T")


def start_processes(config: Config, devices: int, num_nodes: int) -> Fabric:
    """Launch ``devices`` processes on each of ``num_nodes`` machines, or join those that torchrun started.

    Raises:
        UserError: what came is no Config, or a device that is not there.
    """
    if not isinstance(config, Config):
        raise UserError(
            f"a Config is expected, got {type(config).__name__}; dyntrain.config.read_config reads one "
            "from a YAML file"
        )
    if torch.distributed.is_available() and torch.distributed.is_torchelastic_launched():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        num_nodes = int(os.environ["WORLD_SIZE"]) // devices
    n_gpus = torch.cuda.device_count()
    if config.device == "cuda" and n_gpus == 0:
        raise UserError("device: cuda was asked for, but torch finds no CUDA device; use device: cpu or auto")
    accelerator = "cuda" if config.device == "cuda" or (config.device == "auto" and n_gpus) else "cpu"
    if accelerator == "cuda" and devices > n_gpus:
        raise UserError(
            f"{devices} processes on each machine need as many GPUs, torch finds {n_gpus}; use fewer devices "
            "or device: cpu"
        )
    strategy = "ddp" if devices * num_nodes > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy)
    fabric.launch()
    return fabric


def end_processes(fabric: Fabric) -> None:
    """Part the processes: left to the interpreter's exit, gloo's threads can abort it."""
    if fabric.world_size > 1 and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def together(fabric: Fabric, action: Callable[[], T]) -> T:
    """Each process's own result of ``action``; a UserError of any of them ends all, told by the first.

    Without this the others would wait for ever for the one that stopped.
    """
    result, mistake = None, None
    try:
        result = action()
    except UserError as error:
        mistake = str(error)
    for rank in range(fabric.world_size):
        told = fabric.broadcast(mistake, src=rank)
        if told is not None:
            if fabric.global_rank > 0:
                raise SystemExit(0)  # the first one's exit code is that of the whole
            raise UserError(told)
    return result  # type: ignore[return-value]


def from_first(fabric: Fabric, action: Callable[[], T]) -> T:
    """The first process's result of ``action``, which the others do not call."""
    result = together(fabric, action if fabric.global_rank == 0 else lambda: None)
    return fabric.broadcast(result)  # type: ignore[return-value]


def sum_over(fabric: Fabric, tensor: Tensor) -> Tensor:
    """Sum of a tensor over all processes."""
    if fabric.world_size == 1:
        return tensor
    return fabric.all_reduce(tensor.to(fabric.device, copy=True), reduce_op="sum")  # type: ignore[return-value]


def max_over(fabric: Fabric, values: list[float]) -> list[float]:
    """Largest of each number over all processes."""
    if fabric.world_size == 1:
        return values
    numbers = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    return fabric.all_reduce(numbers, reduce_op="max").tolist()  # type: ignore[union-attr]
