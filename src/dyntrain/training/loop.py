"""The training loop: one optimiser step after the other, whatever the segment length; resumable anywhere."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, NamedTuple

from lightning_fabric import Fabric

from dyntrain.config import Config
from dyntrain.curriculum import Plan, Score
from dyntrain.data.segments import Segments, collate
from dyntrain.data.small_steps import by_small_steps
from dyntrain.data.spectrum import check_step
from dyntrain.data.store import read_ahead
from dyntrain.loss import counts, no_counts
from dyntrain.models.files import model_record
from dyntrain.potential import Potential
from dyntrain.signals import StopSignals
from dyntrain.threads import limit_threads
from dyntrain.training import setup
from dyntrain.training.budget import evaluation_cost, measure_budget
from dyntrain.training.checkpoint import Progress
from dyntrain.training.finetune import replay_runs
from dyntrain.training.folder import RunFolder
from dyntrain.training.learner import Learner
from dyntrain.training.logs import MetricLogger, open_loggers
from dyntrain.training.observer import Observer, Silent
from dyntrain.training.processes import (
    end_processes,
    from_first,
    max_over,
    start_processes,
    sum_over,
    together,
)
from dyntrain.training.sampling import Sampler, displaced
from dyntrain.training.step import StepResult, joined, loss_and_gradient, sum_gradients, sum_results
from dyntrain.training.validation import USELESS, Validation, is_useless, validation_row

CHECKPOINT_EVERY_S = 20.0
"""Wall time between checkpoints: a kill costs at most this, or the one optimiser step it fell into."""


class TrainingResult(NamedTuple):
    """What ``train`` gives back.

    model: path of the model file
    finished: why training ended; None: ``max_time`` was over, the same call goes on
    progress: how far it came
    is_first: whether this is the first (or only) process, the one that wrote the files
    """

    model: Path
    finished: str | None
    progress: Progress
    is_first: bool


def train(
    config: Config,
    *,
    potential: Potential | None = None,
    devices: int = 1,
    num_nodes: int = 1,
    observer: Observer | None = None,
) -> TrainingResult:
    """Train as configured; the same call after an interruption goes on where it was.

    Leaves in ``config.output``: ``model.pt`` (the best by validation), the resolved ``config.yaml``,
    ``log.csv``, ``checkpoint.pt`` and TensorBoard files. SIGTERM and SIGINT leave a checkpoint and end the
    process with exit code 128 + signal.

    Args:
        potential: one of your own to train, in place, instead of the configuration's `model`.
        devices, num_nodes: processes on each machine, and machines (under torchrun its own numbers count).

    Raises:
        UserError: whatever is wrong with configuration, data or output folder, in one sentence.
    """
    begun = time.perf_counter()
    fabric = start_processes(config, devices, num_nodes)
    try:
        folder = RunFolder(Path(config.output))
        from_first(fabric, folder.make)
        with folder.locked():
            return _Run(config, potential, fabric, folder, observer or Silent(), begun).train()
    finally:
        end_processes(fabric)


class _Run:
    """One call of ``train``: what does not change, and ``progress``, which does."""

    def __init__(
        self,
        config: Config,
        potential: Potential | None,
        fabric: Fabric,
        folder: RunFolder,
        observer: Observer,
        begun: float,
    ) -> None:
        self.fabric, self.folder = fabric, folder
        self.is_first = fabric.global_rank == 0
        self.observer = observer if self.is_first else Silent()
        self.begun = self.saved_at = self.clock = begun
        self.cpu_clock = time.process_time()
        config = setup.with_learning_rate(config, potential)
        together(fabric, lambda: self._prepare(config, potential))
        self.fingerprint = setup.fingerprint(self.split, self.sampler.replay)
        earlier = from_first(fabric, lambda: folder.earlier(config, self.fingerprint))
        budget = earlier.budget
        if budget is None and config.curriculum.kind == "schedule":
            budget = fabric.broadcast(self._measured_budget(config))
        self.config = config.model_copy(update={"budget": budget})
        self.resumed = earlier.progress is not None
        self.progress = earlier.progress or Progress(curriculum=self.curriculum.start())
        self.best: dict[str, Any] | None = None
        if earlier.tensors is not None:
            self.learner.load_state_dict(earlier.tensors)
            self.best = earlier.tensors["best"]
        self.model_is_written = self.best is not None and folder.model.exists()

    def _prepare(self, config: Config, potential: Potential | None) -> None:
        """Read the data and build what the configuration asks for; what cannot work is refused here."""
        self.split, self.reports = setup.load_split(config)
        limit_threads(config.batch_size * max(run.n_atoms for run in self.split.train))
        self.loss, self.curriculum = setup.make_loss(config), setup.make_curriculum(config)
        self.backprop = setup.make_backprop(config)
        setup.training_segments(config, self.split.train, config.max_length)
        potential = setup.potential_to_train(config, self.split.train, potential).to(self.fabric.device)
        self.sampler = Sampler(config, self.split.train, replay_runs(config, potential))
        self.sampler.n_windows(config.max_length)
        setup.check_stress(self.loss, [*self.sampler.runs, *self.split.validation])
        if config.max_length > 1:
            check_step(self.sampler.runs, config.stride)
        held_out = setup.validation_segments(config, self.split.validation)
        self.validation = Validation(
            held_out, self.split.validation, self.loss, config.validation.batch_size, self.fabric
        )
        self.learner = Learner(potential, config.gradient_clip, config.ema)

    def _measured_budget(self, config: Config) -> Any:
        return measure_budget(
            config,
            self.learner.potential,
            self.loss,
            self.backprop,
            self.split.train,
            self.validation.n_evaluations,
            self.fabric.device,
            self.fabric.world_size,
            time.perf_counter() - self.begun,
        )

    # --- the loop ------------------------------------------------------------------------------------

    def train(self) -> TrainingResult:
        self.observer.started(self.split, self.reports, self.config, self.resumed)
        for remark in setup.remarks(self.config, self.split, self.validation.segments):
            self.observer.note(remark)
        if self._why_finished() is None:
            loggers = together(self.fabric, self._begin_files)
            try:
                with StopSignals() as signals:
                    self._loop(signals, loggers)
            finally:
                for logger in loggers:
                    logger.close()
            if signals.received:
                # One exit code for the whole: Fabric kills the first process when another's is not 0.
                raise SystemExit(128 + signals.received if self.is_first else 0)
        if self.is_first and not self.model_is_written:
            self._write_model()
        return TrainingResult(self.folder.model, self._why_finished(), self.progress, self.is_first)

    def _loop(self, signals: StopSignals, loggers: list[MetricLogger]) -> None:
        while self._why_finished() is None:
            begin = time.perf_counter()
            if self.progress.validation_batch is not None or self._epoch_is_over():
                self._validate(loggers)
            else:
                self._step()
            took = time.perf_counter() - begin
            # All processes must stop at the same step: the others would wait for ever.
            received, is_late = max_over(self.fabric, [float(signals.received), float(self._is_late(took))])
            signals.received = int(received)
            if signals.received or is_late:
                break
            if time.perf_counter() - self.saved_at + took > CHECKPOINT_EVERY_S:
                self._save()
        self._save()
        self.fabric.barrier()  # nobody leaves, and so ends the others, before the files are written

    def _begin_files(self) -> list[MetricLogger]:
        """Make the folder agree with the progress: settings, log and, in a new one, a first checkpoint."""
        if not self.is_first:
            return []
        self.folder.write_config(self.config)
        self.folder.log.begin(self.progress.log_bytes)
        if not self.resumed:
            self._save()
        return open_loggers(self.folder.path, self.config, self.progress.logged_step)

    @property
    def share(self) -> float:
        """Share of the budget spent, 0 … 1; 0 where the curriculum has none."""
        budget = self.config.budget
        return 0.0 if budget is None else min(1.0, self.progress.evaluations / budget.evaluations)

    def _shown_share(self) -> float | None:
        """Share of the training done, as far as it can be known."""
        config, progress = self.config, self.progress
        if config.curriculum.kind == "schedule":
            return self.share
        known = []
        if config.max_epochs is not None:
            windows = self.sampler.n_windows(progress.segment_length)
            known.append(
                (progress.epoch + (progress.position - progress.epoch_start) / windows) / config.max_epochs
            )
        if config.max_seconds is not None:
            known.append((time.perf_counter() - self.begun) / config.max_seconds)
        return max(known, default=None)

    def _epoch_is_over(self) -> bool:
        """A schedule validates at even shares of the budget, a plateau curriculum after each pass."""
        progress, curriculum, budget = self.progress, self.config.curriculum, self.config.budget
        if curriculum.kind == "schedule" and budget is not None:
            times = budget.validations or curriculum.epochs
            before, now = (
                math.floor(min(1.0, spent / budget.evaluations) * times + 1e-9)
                for spent in (progress.validated_at, progress.evaluations)
            )
            return now > before
        if progress.segment_length == 0:
            return False
        return progress.position - progress.epoch_start >= self.sampler.n_windows(progress.segment_length)

    def _why_finished(self) -> str | None:
        """Why training is over, in words; None: it goes on. What was trained is validated first."""
        progress, config = self.progress, self.config
        if progress.validation_batch is not None or self._epoch_is_over():
            return None
        if progress.curriculum.finished:
            return "converged: no better score for the patience given"
        if self.share >= 1.0:
            return "the budget is spent"
        if config.max_epochs is not None and progress.epoch >= config.max_epochs:
            return f"max_epochs ({config.max_epochs}) reached"
        return None

    def _is_late(self, took: float) -> bool:
        """Whether another piece of work as long as the last would end after ``max_time``."""
        limit = self.config.max_seconds
        return limit is not None and time.perf_counter() - self.begun + took > limit

    # --- one step ---------------------------------------------------------------------------------------

    def _step(self) -> None:
        progress = self.progress
        plan = self.curriculum.plan(progress.curriculum, self.share)
        if progress.segment_length != plan.segment_length:
            progress.segment_length, progress.position, progress.epoch_start = plan.segment_length, 0, 0
        segments = self.sampler.batch(plan.segment_length, progress.position)
        result = self._gradient(segments)
        # Adam would move on by its momentum even where every segment burst at once.
        norm = self.learner.update(plan.lr, progress.step) if result.n_frames else None
        self._count(plan, len(segments), result, norm)
        loss = sum(result.parts.values()) / self.loss.step_weights.total(plan.segment_length)
        self.observer.stepped(plan, loss, self._shown_share(), progress)

    def _gradient(self, segments: Segments) -> StepResult:
        """Loss and gradient of the joined batch; each process unrolls its part of it."""
        fabric, learner = self.fabric, self.learner
        learner.optimizer.zero_grad()
        mine = segments[fabric.global_rank :: fabric.world_size]
        runs = self.sampler.runs
        batches = [collate(group, runs) for group in by_small_steps(mine, runs)]
        following = self.sampler.following(segments.length, self.progress.position + len(segments))
        read_ahead(following[fabric.global_rank :: fabric.world_size], runs)
        if batches and segments.length == 1 and self.config.noise > 0:
            first = self.progress.position
            drawn = range(first + fabric.global_rank, first + len(segments), fabric.world_size)
            batches = [displaced(batch, self.config.noise, self.config.seed, drawn) for batch in batches]
        batches = [batch.to(fabric.device) for batch in batches]
        local = sum((counts(batch.state) for batch in batches), no_counts(fabric.device))
        totals = sum_over(fabric, local)
        result = joined(
            [loss_and_gradient(learner.potential, b, self.loss, self.backprop, totals) for b in batches]
        )
        sum_gradients(fabric, learner.parameters)
        names = [term.quantity for term in self.loss.active_terms(segments.length)]
        return sum_results(fabric, result, names)

    def _count(self, plan: Plan, n_segments: int, result: StepResult, norm: float | None) -> None:
        progress, sums = self.progress, self.progress.epoch_sums
        progress.step += 1
        progress.lr = plan.lr
        progress.position += n_segments
        progress.evaluations += evaluation_cost(self.config.budget, n_segments, plan.segment_length)
        found = {"burst": float(result.n_burst), "skipped": float(norm is None)}
        if norm is not None:
            found |= {"applied": 1.0, "norm": norm}
            weight = self.loss.step_weights.total(plan.segment_length)
            found |= {f"train_{name}": value / weight for name, value in result.parts.items()}
        for name, value in found.items():
            sums[name] = sums.get(name, 0.0) + value

    # --- one validation -----------------------------------------------------------------------------------

    def _validate(self, loggers: list[MetricLogger]) -> None:
        """The next part of a validation; after the last one, what follows from it."""
        progress, validation = self.progress, self.validation
        potential = self.learner.averaged.eval()
        progress.validation_batch, progress.validation_sums = validation.round(
            potential, progress.validation_batch or 0, progress.validation_sums
        )
        self.learner.averaged.train()
        self.observer.validating(progress.validation_batch / len(validation.batches))
        if progress.validation_batch == len(validation.batches):
            self._conclude(validation.score(progress.validation_sums), loggers)

    def _conclude(self, score: Score, loggers: list[MetricLogger]) -> None:
        progress = self.progress
        if progress.best is None or score < progress.best:
            progress.best = score
            self.best = model_record(self.learner.averaged, self._provenance(score))
            self.model_is_written = False
        progress.curriculum = self.curriculum.after_validation(progress.curriculum, score, self.share)
        progress.epoch += 1
        row = self._row(score)
        if self.is_first:
            progress.log_bytes = self.folder.log.append(row)
            for logger in loggers:
                logger.log(row)
        self.observer.validated(row)
        progress.logged_step = progress.step
        useless = is_useless(progress.validation_sums)
        progress.validation_batch, progress.validation_sums, progress.epoch_sums = None, {}, {}
        progress.epoch_start, progress.validated_at = progress.position, progress.evaluations
        self._save()
        if useless and self._why_finished() is not None:
            self.observer.note(USELESS)

    def _row(self, score: Score) -> dict[str, Any]:
        """The epoch's row of log.csv."""
        self._tick()
        progress, sums = self.progress, self.progress.epoch_sums
        applied = sums.get("applied", 0.0)
        parts = {name: value / applied for name, value in sums.items() if name.startswith("train_")}
        return {
            "epoch": progress.epoch,
            "step": progress.step,
            "evaluations": progress.evaluations,
            "segment_length": progress.segment_length,
            "lr": progress.lr,
            "train_loss": sum(parts.values()) if parts else None,
            **parts,
            "gradient_norm": sums["norm"] / applied if applied else None,
            **validation_row(progress.validation_sums, score),
            "burst_training": int(sums.get("burst", 0)),
            "steps_skipped": int(sums.get("skipped", 0)),
            "wall_s": round(progress.wall_s, 3),
        }

    # --- keeping -------------------------------------------------------------------------------------------

    def _provenance(self, score: Score | None) -> dict[str, Any]:
        return {
            "config": self.config.model_dump(mode="json"),
            "step": self.progress.step,
            "segment_length": self.progress.segment_length,
            "validation_loss": score[1] if score is not None and math.isfinite(score[1]) else None,
            "validation_frames_lost": score[0] if score is not None else None,
            "dt_fs": sorted({run.dt_fs for run in self.split.train if not run.alone}),
        }

    def _tick(self) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        self.progress.wall_s += now - self.clock
        self.progress.cpu_s += cpu - self.cpu_clock
        self.clock, self.cpu_clock = now, cpu

    def _save(self) -> None:
        """Write the model where it is new, then the checkpoint that knows of it (the first process does)."""
        self._tick()
        self.saved_at = time.perf_counter()
        if not self.is_first:
            return
        if not self.model_is_written and self.best is not None:
            self._write_model()
        self.folder.save(
            self.progress, {"fingerprint": self.fingerprint, **self.learner.state_dict(), "best": self.best}
        )

    def _write_model(self) -> None:
        """The best model; before the first validation the one there is."""
        self.folder.write_model(self.best or model_record(self.learner.averaged, self._provenance(None)))
        self.model_is_written = self.best is not None
