"""The loop: train, let the model run, let the reference continue where it goes wrong, train on that, too."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch

from dyntrain import __version__
from dyntrain.atomic import write_text
from dyntrain.config import BudgetConfig, Config, DataFiles, FinetuneConfig, ImproveConfig, read_config
from dyntrain.data.diagnose import usable_runs
from dyntrain.data.keys import KeyMap
from dyntrain.data.spectrum import check_step
from dyntrain.data.store import write_store
from dyntrain.data.structures import joined
from dyntrain.data.trajectory import Trajectory
from dyntrain.errors import UserError
from dyntrain.evaluate.starts import common_dt_fs
from dyntrain.improve import by_hand
from dyntrain.improve.committee import SHARE
from dyntrain.improve.explore import Elsewhere, Exploration, explore
from dyntrain.improve.folder import ImproveFolder
from dyntrain.improve.page import write_page
from dyntrain.improve.reference import Reference, check_same_method, largest_force
from dyntrain.improve.rounds import RoundResult, measure
from dyntrain.improve.task import Task, carry_out, is_written, n_frames, read_starts, write_task
from dyntrain.models.files import load_model
from dyntrain.potential import Potential
from dyntrain.report import require_report_extra
from dyntrain.threads import limit_threads
from dyntrain.training import Observer, setup, train
from dyntrain.training.folder import RunFolder

_SANE_FORCE = 5.0
"""A force larger than so many times the largest recorded one belongs to no sane structure."""

_NEXT_SEED = 7919
"""Between the seeds of a committee's members, so that seeds 0, 1, 2 … have no member in common."""


class ImproveObserver(Protocol):
    """Is told how it goes; the command line shows it."""

    def say(self, text: str) -> None: ...

    def training(self, name: str) -> AbstractContextManager[Observer]: ...

    def progress(self) -> AbstractContextManager[Callable[[str, int, int], None]]: ...

    def measured(self, result: RoundResult) -> None: ...


class _Answers(NamedTuple):
    """What the reference made of the segments of a round: new runs, why others are none, calls it took."""

    runs: list[Trajectory]
    failures: list[str]
    calls: int


@dataclass(frozen=True)
class Improved:
    """How it ended.

    model:    file of the last model
    rounds:   what is known of each model
    finished: why it ended; None: the reference's files are waited for
    """

    model: Path
    rounds: list[RoundResult]
    finished: str | None
    page: Path


def improve(config: Config, observer: ImproveObserver) -> Improved:
    """Train, then mend the model where it fails; the same call after an interruption goes on.

    A round: free runs of the model from training frames; the reference continues for some steps where they
    begin to fail and at random places; training goes on from the last weights with the old and new frames.
    It ends when the audit is flat over the horizon and falls no longer, or when the calls are spent.

    Raises:
        UserError: no ``improve`` section, a reference that did not label the data, or whatever else is wrong
            with configuration, data or folder.
    """
    if config.improve is None:
        raise UserError(
            "`improve` is missing in the configuration: give at least `improve: {reference: tblite}`"
        )
    require_report_extra()
    folder = RunFolder(Path(config.output))
    folder.make()
    with folder.locked():
        return _Improvement(config, config.improve, observer).run()


def _elsewhere(config: Config, settings: ImproveConfig) -> Elsewhere:
    """What the calls go to that are not spent before failures; None: as the free runs suggest.

    Raises:
        UserError: calls for less than one segment, or new frames that the curriculum could not train on.
    """
    if settings.segment_length < config.max_span:
        raise UserError(
            f"improve.segment_length: new segments of {settings.segment_length} frames cannot be trained on "
            f"with windows of {config.max_span} frames: make them at least as long"
        )
    if settings.calls < settings.segment_length:
        raise UserError(
            f"improve.calls: {settings.calls} calls are fewer than the {settings.segment_length} frames of "
            "one segment (`segment_length`)"
        )
    if settings.elsewhere == "structures" and config.max_span > 1:
        raise UserError(
            f"improve.elsewhere: single structures cannot be trained on with windows of {config.max_span} "
            "frames: leave the key out, or give a curriculum of S = 1"
        )
    return "segments" if config.max_span > 1 else settings.elsewhere


class _Improvement:
    def __init__(self, config: Config, settings: ImproveConfig, observer: ImproveObserver) -> None:
        # Rounds learn as fast as the first training did: what they get is new (docs/research-frames.md).
        self.config = setup.with_learning_rate(config)
        self.settings, self.observer = settings, observer
        self.folder = ImproveFolder(Path(config.output))
        self.reference = Reference.of(settings)
        self.elsewhere = _elsewhere(config, settings)
        self.folder.begin(config)
        self.train_runs = [run for run in self.folder.runs("train") if not run.alone]
        if not self.train_runs:
            raise UserError(
                "data: free runs begin on training runs, but there are none, only structures of no run"
            )
        self.held_out = self.folder.runs("test") or self.folder.runs("validation")
        common_dt_fs([*self.train_runs, *self.held_out])
        check_step(self.train_runs, 1)
        limit_threads(settings.segments * max(run.n_atoms for run in self.train_runs))
        self.results: list[RoundResult] = []

    # --- the loop ------------------------------------------------------------------------------------

    def run(self) -> Improved:
        self._check_reference()
        model = self._first_model()
        self._measure(0, model)
        while (finished := self._why_finished()) is None:
            number = len(self.results)
            if not self._new_segments(number, model):
                break
            model = self._train(number, start_from=model)
            self._measure(number, model)
        self._write(finished)
        return Improved(model, self.results, finished, self.folder.page)

    @property
    def calls(self) -> int:
        return self.results[-1].calls if self.results else 0

    def _n_segments(self) -> int:
        """Segments of the next round: as many as wanted, and as the calls that are left allow."""
        left = (self.settings.calls - self.calls) // self.settings.segment_length
        return min(self.settings.segments, left)

    def _why_finished(self) -> str | None:
        if len(self.results) > 1 and self.results[-1].is_flat:
            last, before = self.results[-1], self.results[-2]
            if not last.is_lower_than(before):
                return (
                    f"no free run failed, the audit is flat over {self.settings.horizon}, and the last round "
                    "did not lower it further"
                )
        left = self.settings.calls - self.calls
        fewest = self.settings.segments // 2 if self.calls else 1  # a training for a few more is not worth it
        if self._n_segments() >= max(1, fewest):
            return None
        spent = f"the {self.settings.calls} reference calls are spent"
        return f"{spent} but for {left}, too few for a round" if left else spent

    def _check_reference(self) -> None:
        done = self.folder.path / "same_method.json"
        if self.reference.by_hand or done.exists():
            return
        self.observer.say(f"Does {self.reference} label as the training runs are labelled?")
        with_energy = self.config.loss.energy is not None and self.config.loss.energy.weight > 0
        difference = check_same_method(
            self.reference.labels(self.folder.reference), self.train_runs, with_energy=with_energy
        )
        write_text(done, json.dumps({"relative_force_difference": difference}) + "\n")

    # --- one round -------------------------------------------------------------------------------------

    def _first_model(self) -> Path:
        if self.config.start_from is not None:
            return Path(self.config.start_from)
        return self._train(0, start_from=None)

    def _train(self, number: int, start_from: Path | None) -> Path:
        """An ordinary training on the old and all new runs, from the last weights on."""
        if self.folder.result(number).exists():  # it was even measured
            return self.folder.training(number) / "model.pt"
        config = self._training(number, self.folder.training(number), start_from)
        return self._trained(config, f"round {number}")

    def _committee(self, number: int) -> list[Path]:
        """Further networks of what the model of a round has learnt from, each from its own last weights."""
        return [self._member(number, member) for member in range(1, self.settings.committee + 1)]

    def _member(self, number: int, member: int) -> Path:
        before = self.folder.member(number - 1, member) / "model.pt" if number else None
        config = self._training(number, self.folder.member(number, member), before)
        budget, limit = self._first_budget(), config.max_seconds
        if budget is not None:
            budget = budget.model_copy(update={"evaluations": SHARE * budget.evaluations})
        elif limit is not None:
            config = config.model_copy(update={"max_time": f"{SHARE * limit:g}s"})
        own = {"seed": (config.seed + _NEXT_SEED * member) % 2**32, "finetune": FinetuneConfig()}
        config = config.model_copy(update={"budget": budget, **own})
        return self._trained(config, f"round {number}, committee {member} of {self.settings.committee}")

    def _training(self, number: int, output: Path, start_from: Path | None) -> Config:
        """The configuration of a training on the old and all new runs of a round."""
        new = [str(self.folder.new_runs(n)) for n in range(1, number + 1)]
        data = DataFiles(
            train=[*self.folder.files("train"), *new], validation=self.folder.files("validation")
        )
        return self.config.model_copy(
            update={
                "data": data,
                "dt": None,
                "keys": None,
                "output": str(output),
                "start_from": None if start_from is None else str(start_from),
                "improve": None,
                "budget": self._budget(number),
            }
        )

    def _trained(self, config: Config, name: str) -> Path:
        with self.observer.training(name) as bar:
            while (result := train(config, observer=bar)).finished is None:
                pass  # max_time cut it short; the same call goes on
        return result.model

    def _budget(self, number: int) -> BudgetConfig | None:
        """Each round's training costs what the first one did; None: it is yet to be measured."""
        return self._first_budget() if number else self.config.budget

    def _first_budget(self) -> BudgetConfig | None:
        """Of the first training, where it is known."""
        if self.config.budget is not None:
            return self.config.budget
        first = self.folder.training(0 if self.config.start_from is None else 1) / "config.yaml"
        return read_config(first).budget if first.exists() else None

    def _new_segments(self, number: int, model: Path) -> bool:
        """Runs of the reference from the model's own structures, stored; False: they are still waited for."""
        if self.folder.new_runs(number).exists():
            return True
        segments = self.folder.segments(number)
        if not is_written(segments):
            self._explore(number, self._load(model))
        answers = self._by_hand(segments) if self.reference.by_hand else self._by_calculator(number, segments)
        if answers is None:
            return False
        told = self._told(number)
        if not answers.runs:
            reasons = [*told["dropped"], *answers.failures]
            raise UserError(f"round {number} gave no new segment: {'; '.join(reasons[:3])}")
        told |= {
            "reference_failures": answers.failures,
            "new_calls": answers.calls,
            "n_new": len(answers.runs),
            "n_structures": sum(run.alone for run in answers.runs),
        }
        write_text(self.folder.explored(number), json.dumps(told, indent=1) + "\n")
        structures, runs = ([run for run in answers.runs if run.alone is alone] for alone in (True, False))
        write_store([*joined(structures), *usable_runs(runs)[0]], self.folder.new_runs(number))
        return True

    def _by_calculator(self, number: int, segments: Path) -> _Answers:
        starts, task = read_starts(segments), Task.read(segments)
        n_single = sum(n_frames(start) == 1 for start in starts)
        counts = {"continues {} segments": len(starts) - n_single, "labels {} structures": n_single}
        what = " and ".join(text.format(n) for text, n in counts.items() if n)
        self.observer.say(f"Round {number}: {self.reference} {what}")
        with self.observer.progress() as progress:
            outcomes = carry_out(
                segments,
                self.folder.reference,
                self.settings.workers,
                partial(progress, "reference segments"),
            )
        found = [task.answer(o.run, start) for o, start in zip(outcomes, starts, strict=True) if o.run]
        return _Answers(
            runs=[run for runs in found for run in runs],
            failures=[f"segment {n:03d} {o.reason}" for n, o in enumerate(outcomes) if o.reason is not None],
            calls=sum(outcome.calls for outcome in outcomes),
        )

    def _by_hand(self, segments: Path) -> _Answers | None:
        by_hand.ask(segments)
        if waiting := by_hand.waiting_for(segments):
            self.observer.say(
                f"{len(waiting)} structures in {segments / by_hand.ASKED} wait for the reference: compute "
                f"them as README.txt there says, put the finished runs into {segments / by_hand.FINISHED}, "
                "and give the same command again."
            )
            return None
        keys = self.config.keys.model_dump(exclude_none=True) if self.config.keys is not None else {}
        runs, failures = by_hand.collect(segments, KeyMap.from_mapping(keys))
        return _Answers(runs, failures, sum(run.n_frames for run in runs))

    def _explore(self, number: int, potential: Potential) -> None:
        """Free runs of the model, and the structures of them that the reference is to continue."""
        settings = self.settings
        committee = [self._load(member) for member in self._committee(number - 1)]
        self.observer.say(f"Round {number}: where does the model go wrong? Free runs of {settings.horizon}")
        with self.observer.progress() as progress:
            found = explore(
                potential,
                self.train_runs,
                n_segments=self._n_segments(),
                segment_length=settings.segment_length,
                elsewhere=self.elsewhere,
                horizon_fs=settings.horizon_fs,
                temperature=settings.temperature,
                seed=self.config.seed * 1000 + number,
                committee=committee,
                progress=partial(progress, "free runs"),
            )
        self.folder.round(number).mkdir(exist_ok=True)
        write_text(self.folder.explored(number), json.dumps(_told(found), indent=1) + "\n")
        if not found.starts:
            raise UserError(f"no place in round {number} is sane: {found.dropped[0]}")
        limit = _SANE_FORCE * largest_force(self.train_runs)
        task = Task(self.reference, self.train_runs[0].dt_fs, limit)
        write_task(self.folder.segments(number), task, found.starts)

    def _measure(self, number: int, model: Path) -> None:
        path = self.folder.result(number)
        if not path.exists():
            self.folder.round(number).mkdir(exist_ok=True)
            labels = None if self.reference.by_hand else self.reference.labels(self.folder.reference)
            spent = self._told(number)["new_calls"] if number else 0
            with self.observer.progress() as progress:
                result = measure(
                    self._load(model),
                    self.held_out,
                    labels,
                    number=number,
                    calls=self.calls + spent,
                    horizon_fs=self.settings.horizon_fs,
                    temperature=self.settings.temperature,
                    n_runs=self.settings.n_runs,
                    seed=self.config.seed,
                    progress=progress,
                )
            result.write(path)
        self.results.append(RoundResult.read(path))
        self.observer.measured(self.results[-1])
        self._write(None)

    def _load(self, model: Path) -> Potential:
        on_gpu = self.config.device != "cpu" and torch.cuda.is_available()
        return load_model(model, device="cuda" if on_gpu else "cpu", trust=self.config.trust)

    def _told(self, number: int) -> dict[str, Any]:
        return json.loads(self.folder.explored(number).read_text(encoding="utf-8"))

    def _write(self, finished: str | None) -> None:
        """improve.json and the page, as far as the rounds have come."""
        told = [self._told(number) for number in range(1, len(self.results))]
        record = {
            "dyntrain": __version__,
            "reference": str(self.reference),
            "horizon": self.settings.horizon,
            "finished": finished,
            "rounds": [
                {**result.summary(), **({} if n == 0 else told[n - 1])}
                for n, result in enumerate(self.results)
            ],
        }
        write_text(self.folder.json, json.dumps(record, indent=1, allow_nan=False) + "\n")
        write_page(self.folder.page, self.results, told, str(self.reference), self.settings, finished)


def _told(found: Exploration) -> dict[str, Any]:
    free = found.free
    return {
        "explored_runs": free.n_runs,
        "explored_failed": int(free.failed.sum()),
        "places": [atoms.info for atoms in found.starts],
        "dropped": found.dropped,
    }
