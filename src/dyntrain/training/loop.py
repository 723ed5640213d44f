"""The training loop: one optimiser step after the other, whatever the segment length; resumable anywhere."""

from __future__ import annotations

import copy
import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from lightning_fabric import Fabric

from dyntrain.atomic import atomic_path, write_text
from dyntrain.config import BudgetConfig, Config, dump_config, read_config
from dyntrain.curriculum import Plan
from dyntrain.data.diagnose import RunReport
from dyntrain.data.segments import Segments, collate, epoch_order
from dyntrain.data.splits import Split
from dyntrain.errors import UserError
from dyntrain.loss import counts
from dyntrain.models.files import model_record
from dyntrain.potential import Conservative
from dyntrain.training import setup
from dyntrain.training.budget import evaluation_cost, measure_budget
from dyntrain.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from dyntrain.training.logs import CsvLog, MetricLogger, MlflowLog, TensorBoardLog, WandbLog
from dyntrain.training.step import StepResult, loss_and_gradient, sum_gradients
from dyntrain.training.validation import Validation, validation_row

CHECKPOINT_EVERY_S = 20.0
"""Wall time between checkpoints: a kill costs at most this and the optimiser step it fell into."""

_MAY_CHANGE = {"max_time", "max_epochs", "budget", "output", "device", "logger"}
"""Keys that a resumed run may give differently."""


class TrainingResult(NamedTuple):
    """model: path of the model file; finished: why training ended, None if it was only interrupted;
    progress: how far it came."""

    model: Path
    finished: str | None
    progress: Progress


class Observer(Protocol):
    """Is told how training goes; the command line shows it."""

    def started(self, split: Split, reports: list[RunReport], config: Config, resumed: bool) -> None: ...

    def stepped(self, plan: Plan, loss: float, share: float | None, progress: Progress) -> None: ...

    def validating(self, share: float) -> None: ...

    def validated(self, row: dict[str, Any]) -> None: ...


class Silent:
    """An observer that says nothing."""

    def started(self, split: Split, reports: list[RunReport], config: Config, resumed: bool) -> None:
        pass

    def stepped(self, plan: Plan, loss: float, share: float | None, progress: Progress) -> None:
        pass

    def validating(self, share: float) -> None:
        pass

    def validated(self, row: dict[str, Any]) -> None:
        pass


def train(
    config: Config, *, devices: int = 1, num_nodes: int = 1, observer: Observer | None = None
) -> TrainingResult:
    """Train as configured; the same call after an interruption goes on where it was.

    Leaves in ``config.output``: ``model.pt`` (the best by validation), the resolved ``config.yaml``,
    ``log.csv``, ``checkpoint.pt`` and TensorBoard files.

    Args:
        devices, num_nodes: processes on each machine, and machines (or as torchrun or SLURM say).

    Raises:
        UserError: whatever is wrong with configuration, data or output folder, in one sentence.
    """
    fabric = _fabric(config, devices, num_nodes)
    output = Path(config.output)
    _make_folder(output)
    with _lock(output, fabric):
        return _Run(config, fabric, observer or Silent()).train()


def _fabric(config: Config, devices: int, num_nodes: int) -> Fabric:
    accelerator = {"auto": "cuda" if torch.cuda.is_available() else "cpu"}.get(config.device, config.device)
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise UserError("device: cuda was asked for, but torch finds no CUDA device; use device: cpu or auto")
    launched_from_outside = int(os.environ.get("WORLD_SIZE", "1")) > 1
    strategy = "ddp" if devices * num_nodes > 1 or launched_from_outside else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=num_nodes, strategy=strategy)
    fabric.launch()
    return fabric


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / f".write_test{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"output: cannot write into {output} ({error.strerror}); choose a folder you can write to"
        ) from error


@contextmanager
def _lock(output: Path, fabric: Fabric) -> Iterator[None]:
    """One training at a time in a folder (the lock goes with the process, however that ends)."""
    if fabric.global_rank != 0:
        yield
        return
    with (output / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"another training is running in {output}; wait for it or choose another output"
            ) from error
        yield


class _Run:
    """One call of ``train``: what does not change, and ``self.progress``, which does."""

    def __init__(self, config: Config, fabric: Fabric, observer: Observer) -> None:
        self.fabric, self.observer = fabric, observer
        self.output = Path(config.output)
        self.checkpoint_path = self.output / "checkpoint.pt"
        self.model_path = self.output / "model.pt"
        self.split, self.reports = setup.load_split(config)
        self.loss, self.curriculum = setup.make_loss(config), setup.make_curriculum(config)
        self.backprop = setup.make_backprop(config)
        self.fingerprint = setup.fingerprint([*self.split.train, *self.split.validation])
        held_out = setup.validation_segments(config, self.split.validation)
        self.validation = Validation(
            held_out, self.split.validation, self.loss, config.validation.batch_size, fabric
        )
        setup.training_segments(config, self.split.train, config.max_length)  # refused now, not hours later
        self.potential: Conservative = setup.make_potential(config, self.split.train).to(fabric.device)
        self.averaged: Conservative = copy.deepcopy(self.potential) if config.ema > 0 else self.potential
        self.parameters = [p for p in self.potential.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=1e-3)
        self.best: dict[str, Any] | None = None
        self.progress = Progress(curriculum=self.curriculum.start())
        self.config = self._resolved(config)
        self.log = CsvLog(self.output / "log.csv")
        self.loggers: list[MetricLogger] = []
        self._segments: Segments | None = None
        self._order: tuple[int, Any] = (-1, None)
        self._last_checkpoint = self._clock = time.perf_counter()
        self._cpu_clock = time.process_time()
        self._started = time.perf_counter()
        self._signal: int | None = None

    # --- begin and end ---------------------------------------------------------------------------

    def _resolved(self, config: Config) -> Config:
        """The configuration with its budget: that of an earlier call in this folder, or one measured now."""
        path = self.output / "config.yaml"
        if path.exists():
            earlier = read_config(path)
            if self.checkpoint_path.exists():
                self._refuse_other_settings(config, earlier)
            if config.budget is None and earlier.max_time == config.max_time:
                config = config.model_copy(update={"budget": earlier.budget})
            elif config.budget is None and self.checkpoint_path.exists():
                config = config.model_copy(update={"budget": earlier.budget})
        if config.budget is None and config.curriculum.kind == "schedule":
            budget = None
            if self.fabric.global_rank == 0:
                validations = config.curriculum.epochs * self.validation.n_evaluations
                budget = measure_budget(
                    config,
                    self.potential,
                    self.loss,
                    self.backprop,
                    self.split.train,
                    validations,
                    self.fabric.device,
                )
            values = self.fabric.broadcast(budget.model_dump() if budget else None)
            config = config.model_copy(update={"budget": BudgetConfig.model_validate(values)})
        if self.fabric.global_rank == 0:
            write_text(path, dump_config(config))
        return config

    def _refuse_other_settings(self, config: Config, earlier: Config) -> None:
        ours, theirs = config.model_dump(), earlier.model_dump()
        changed = [k for k in ours if k not in _MAY_CHANGE and ours[k] != theirs[k]]
        if changed:
            key = changed[0]
            raise UserError(
                f"{self.output} holds a run begun with other settings (`{key}` was {theirs[key]!r}, now "
                f"{ours[key]!r}): give the same settings to go on, or another output to begin anew"
            )

    def _resume(self) -> bool:
        if not self.checkpoint_path.exists():
            if self.fabric.global_rank == 0:
                self.log.begin(0)
            return False
        self.progress, tensors = load_checkpoint(self.checkpoint_path)
        if tensors["fingerprint"] != self.fingerprint:
            raise UserError(
                f"the runs read now are not those that {self.output} was begun with: give the same files, or "
                "another output to begin anew"
            )
        self.potential.energy_model.load_state_dict(tensors["weights"])
        if self.averaged is not self.potential:
            self.averaged.energy_model.load_state_dict(tensors["averaged"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.best = tensors["best"]
        if self.fabric.global_rank == 0:
            self.log.begin(self.progress.log_bytes)
        return True

    def _open_loggers(self) -> None:
        if self.fabric.global_rank != 0:
            return
        self.loggers = [TensorBoardLog(self.output / "tensorboard", self.progress.step)]
        chosen = self.config.logger
        if chosen is not None and chosen.name == "wandb":
            self.loggers.append(WandbLog(self.output, chosen.project, self.config.model_dump(mode="json")))
        elif chosen is not None:
            self.loggers.append(MlflowLog(self.output, chosen.project))

    def train(self) -> TrainingResult:
        resumed = self._resume()
        self.observer.started(self.split, self.reports, self.config, resumed)
        if self.progress.finished is None:
            self._open_loggers()
            with self._signals():
                self._loop()
            for logger in self.loggers:
                logger.close()
        if self._signal is not None:
            raise SystemExit(128 + self._signal)
        return TrainingResult(self.model_path, self.progress.finished, self.progress)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C end the run after the step in flight, with a checkpoint."""

        def note(number: int, _: Any) -> None:
            self._signal = number

        try:
            before = {s: signal.signal(s, note) for s in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not in the main thread: the caller keeps its own handling
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    # --- the loop ------------------------------------------------------------------------------------

    def _loop(self) -> None:
        progress = self.progress
        self.save()
        while progress.finished is None:
            if progress.validation_batch is not None or self._epoch_is_over():
                self._validate()
                progress.finished = self._why_finished()
                self.save()
                if self._interrupted():
                    return
                continue
            plan = self.curriculum.plan(progress.curriculum, self.share or 0.0)
            result = self._step(plan)
            self.observer.stepped(plan, sum(result.parts.values()), self.share, progress)
            if self._interrupted():
                self.save()
                return
            self._save_if_due()
        self._write_model()

    @property
    def share(self) -> float | None:
        """Share of the budget spent, 0 … 1; None where the curriculum has no budget."""
        budget = self.config.budget
        return None if budget is None else min(1.0, self.progress.evaluations / budget.evaluations)

    def _epoch_is_over(self) -> bool:
        """A schedule validates at even shares of the budget, a plateau curriculum after each pass."""
        progress, curriculum = self.progress, self.config.curriculum
        if curriculum.kind == "schedule":
            return (self.share or 0.0) * curriculum.epochs >= progress.epoch + 1 - 1e-9
        if progress.segment_length == 0:
            return False
        return progress.position - progress.epoch_start >= len(self._segments_of(progress.segment_length))

    def _why_finished(self) -> str | None:
        progress = self.progress
        if progress.curriculum.finished:
            return "converged: no better score for the patience given"
        if self.share is not None and self.share >= 1.0:
            return "the budget is spent"
        if self.config.max_epochs is not None and progress.epoch >= self.config.max_epochs:
            return f"max_epochs ({self.config.max_epochs}) reached"
        return None

    def _interrupted(self) -> bool:
        """A signal, or max_time: the run stops cleanly and the same command goes on (same on all processes)."""
        limit = self.config.max_seconds
        stop = self._signal is not None or (limit is not None and time.perf_counter() - self._started > limit)
        if self.fabric.world_size > 1:
            stop = bool(self.fabric.all_reduce(torch.tensor(float(stop)), reduce_op="sum") > 0)
        return stop and self.progress.finished is None

    # --- one step ---------------------------------------------------------------------------------------

    def _segments_of(self, length: int) -> Segments:
        if self._segments is None or self._segments.length != length:
            self._segments = setup.training_segments(self.config, self.split.train, length)
            self._order = (-1, None)
        return self._segments

    def _next_indices(self, length: int) -> Any:
        """Numbers of the next batch's windows, the same on all processes: (segment length, position) say all."""
        progress = self.progress
        if progress.segment_length != length:
            progress.segment_length, progress.position, progress.epoch_start = length, 0, 0
        n, size = len(self._segments_of(length)), self.config.batch_size
        pass_number, offset = divmod(progress.position, n)
        if self._order[0] != pass_number:
            seed = self.config.seed * 1009 + length
            self._order = (pass_number, epoch_order(n, seed, pass_number))
        indices = self._order[1][offset : offset + size]
        progress.position += len(indices)
        return indices

    def _step(self, plan: Plan) -> StepResult:
        progress, fabric = self.progress, self.fabric
        if not progress.epoch_sums:
            progress.epoch_sums = {"steps": 0.0}
        indices = self._next_indices(plan.segment_length)
        mine = self._segments_of(plan.segment_length).take(indices[fabric.global_rank :: fabric.world_size])
        self.optimizer.zero_grad(set_to_none=True)
        batch = collate(mine, self.split.train).to(fabric.device) if len(mine) else None
        zero = torch.zeros(
            counts(self.split.train[0].state(0)).shape, dtype=torch.float64, device=fabric.device
        )
        totals = zero if batch is None else counts(batch.state)
        if fabric.world_size > 1:
            totals = fabric.all_reduce(totals, reduce_op="sum")
        result = StepResult({}, 0)
        if batch is not None:
            result = loss_and_gradient(self.potential, batch, self.loss, self.backprop, totals)
        sum_gradients(fabric, self.parameters)
        result = self._summed(result)
        norm = self._update(plan.lr)
        self._count(plan, len(indices), result, norm)
        return result

    def _summed(self, result: StepResult) -> StepResult:
        if self.fabric.world_size == 1:
            return result
        names = [term.quantity for term in self.loss.terms]
        local = torch.tensor(
            [result.parts.get(n, 0.0) for n in names] + [float(result.n_burst)], dtype=torch.float64
        )
        total = self.fabric.all_reduce(local, reduce_op="sum").tolist()
        return StepResult(dict(zip(names, total[:-1], strict=True)), int(total[-1]))

    def _update(self, lr: float) -> float | None:
        """Clip and apply the gradient; None if it is not finite, and then nothing is touched."""
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None]))
        if not norm < float("inf"):
            return None
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(min(1.0, self.config.gradient_clip / (norm + 1e-12)))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        if self.averaged is not self.potential:
            with torch.no_grad():
                # Early on the average follows closely: the first weights are not worth remembering.
                decay = min(self.config.ema, (1.0 + self.progress.step) / (10.0 + self.progress.step))
                for average, weight in zip(
                    self.averaged.parameters(), self.potential.parameters(), strict=True
                ):
                    average.lerp_(weight, 1.0 - decay)
        return norm

    def _count(self, plan: Plan, n_segments: int, result: StepResult, norm: float | None) -> None:
        progress, sums = self.progress, self.progress.epoch_sums
        progress.step += 1
        costs = self.config.budget.costs if self.config.budget else {"one_step": 1.0, "rollout": 1.0}
        progress.evaluations += evaluation_cost(dict(costs), n_segments, plan.segment_length)
        found = {"steps": 1.0, "burst": float(result.n_burst), "skipped": float(norm is None)}
        found |= {f"train_{name}": value for name, value in result.parts.items()}
        if norm is not None:
            found["norm"] = norm
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value

    # --- one validation -----------------------------------------------------------------------------------

    def _validate(self) -> None:
        progress = self.progress
        if progress.validation_batch is None:
            progress.validation_batch, progress.validation_sums = 0, {}

        def after_batch(done: int, sums: dict[str, float]) -> None:
            progress.validation_batch, progress.validation_sums = done, sums
            self.observer.validating(min(1.0, done / len(self.validation.batches)))
            self._save_if_due()

        potential = self.averaged.eval()
        sums = self.validation.run(
            potential, progress.validation_batch, progress.validation_sums, after_batch
        )
        self.averaged.train()
        score = self.validation.score(sums)
        plan = self.curriculum.plan(progress.curriculum, self.share or 0.0)
        if progress.best is None or score < progress.best:
            progress.best = score
            self.best = model_record(potential, self._provenance(score))
        progress.curriculum = self.curriculum.after_validation(progress.curriculum, score)
        progress.epoch += 1
        self._log_row(plan, sums, score)
        progress.validation_batch, progress.validation_sums, progress.epoch_sums = None, {}, {}
        progress.epoch_start = progress.position

    def _log_row(self, plan: Plan, sums: dict[str, float], score: Any) -> None:
        progress, epoch = self.progress, self.progress.epoch_sums
        self._tick()
        steps = max(epoch.get("steps", 0.0), 1.0)
        parts = {k: v / steps for k, v in epoch.items() if k.startswith("train_")}
        applied = steps - epoch.get("skipped", 0.0)
        row = {
            "epoch": progress.epoch,
            "step": progress.step,
            "evaluations": progress.evaluations,
            "segment_length": progress.segment_length,
            "lr": plan.lr,
            "train_loss": sum(parts.values()),
            **parts,
            "gradient_norm": epoch.get("norm", 0.0) / applied if applied else None,
            **validation_row(sums, score),
            "burst_training": int(epoch.get("burst", 0)),
            "steps_skipped": int(epoch.get("skipped", 0)),
            "wall_s": round(progress.wall_s, 3),
        }
        if self.fabric.global_rank == 0:
            progress.log_bytes = self.log.append(row)
            for logger in self.loggers:
                logger.log(row)
        self.observer.validated(row)

    # --- keeping -------------------------------------------------------------------------------------------

    def _provenance(self, score: Any) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "step": self.progress.step,
            "segment_length": self.progress.segment_length,
            "validation_loss": score[1],
            "validation_bursts": score[0],
            "dt_fs": sorted({run.dt_fs for run in self.split.train}),
        }

    def _tick(self) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        self.progress.wall_s += now - self._clock
        self.progress.cpu_s += cpu - self._cpu_clock
        self._clock, self._cpu_clock = now, cpu

    def _save_if_due(self) -> None:
        if time.perf_counter() - self._last_checkpoint > CHECKPOINT_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the checkpoint (one process does)."""
        self._tick()
        self._last_checkpoint = time.perf_counter()
        if self.fabric.global_rank != 0:
            return
        tensors = {
            "fingerprint": self.fingerprint,
            "weights": self.potential.energy_model.state_dict(),
            "averaged": self.averaged.energy_model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
        }
        if self.best is not None:
            self._write_model()
        save_checkpoint(self.checkpoint_path, self.progress, tensors)

    def _write_model(self) -> None:
        if self.fabric.global_rank == 0 and self.best is not None:
            with atomic_path(self.model_path) as part:
                torch.save(self.best, part)
