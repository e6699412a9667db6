"""The training loop, to be read from top to bottom: build, go on from where the run stands, learn, evaluate, save."""

from __future__ import annotations

import contextlib
import enum
import functools
import io
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from runyard import known_causes
from runyard.config.schema import check_world
from runyard.data import manifest
from runyard.data.loading import loaders
from runyard.data.loading.batch import Batch
from runyard.data.prepare.stage import stage
from runyard.data.verified import check_content, files_read
from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.runs.identity import learned
from runyard.runs.lease import LeaseLost
from runyard.runs.run import Run
from runyard.tracking.recorder import Recorder
from runyard.training import checkpoint, continuity
from runyard.training.distributed import health_check, peer_failure, process_group
from runyard.training.distributed.process_group import Dist, Vote
from runyard.training.evaluation import Evaluation, Part
from runyard.training.lr_scheduler import learning_rate
from runyard.training.metrics import run_metadata, step_timer
from runyard.training.metrics.counters import Predictions
from runyard.training.metrics.system_metrics import Usage
from runyard.training.no_compiler import keep_compiler_out
from runyard.training.stop_signals import Stop, Stopped, at_once
from runyard.training.train_state import Diverged, Learner

INIT_IMAGES = 5000  # what a network that initialises itself from data is shown


class Outcome(enum.StrEnum):
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # saved, and to be resumed


def train(run: Run, should_stop: Callable[[], Stop] = lambda: Stop.NO) -> Outcome:
    """Train ``run`` from its newest checkpoint, or from the start, until it is finished or ``should_stop`` says so.

    Every rank calls this. ``should_stop`` is asked after each step; one rank's wish stops all at the same step, saved.

    Raises:
        UserError: data, model or ranks do not fit the configuration, or another process writes this run.
        Diverged: the loss or a weight is not a finite number. The last checkpoint is from before that.
        RankLost: another rank failed, or was killed.
        LeaseLost: another process took the run over. Nothing more was written.
    """
    place = process_group.from_environment(os.environ)
    lease = run.lease() if place.rank == 0 else None
    record = Recorder(run, active=place.rank == 0, lease=lease)
    try:
        with (
            process_group.joined(
                place,
                run.path / "slurm",
                lambda: _stage(run, place),
                should_stop,
                compiles=run.config.compile != "none",
            ) as staged,
            run.writing(),
            contextlib.ExitStack() as open_parts,
        ):
            training = Training(run, place, record, should_stop, open_parts, staged)
            health_check.check(run, place, training.data, training.folder, training.learner.parameters)
            with peer_failure.at_step(lambda: training.learner.step):
                outcome = training.to_the_end()
        with run.writing():
            record.event("stop", reason=str(outcome), message="", cause=training.stopped_by.words)
        record.close()
        if place.rank == 0 and outcome is Outcome.FINISHED and run.config.report:
            _write_report(run, record, should_stop)
        return outcome
    except LeaseLost:  # the journal is another's now, and so is the W&B record
        raise
    except Stopped as stopped:
        with run.writing():
            record.event("stop", reason="interrupted", message="before it began to learn", cause=stopped.stop.words)
        return Outcome.INTERRUPTED
    except BaseException as error:
        failure = peer_failure.failure(error, place.rank)
        # What would happen again.
        to_blame = isinstance(error, (UserError, Diverged)) or not known_causes.can_help(failure)
        said = {"message": known_causes.said(error), "user_error": isinstance(error, UserError), "retry": not to_blame}
        with contextlib.suppress(OSError):  # a full disk has no room for these words either
            record.event("stop", reason="failed", **said, **failure)
        record.close(failed=True)
        raise
    finally:
        if lease is not None:
            lease.release()


def _stage(run: Run, place: Dist) -> tuple[Path, str | None]:
    """Where to read the data from, and why it is not the node's own copy where that was asked for."""
    folder = manifest.folder(run.config.data)
    data = manifest.load(folder, manifest.prepare_command(run.record.get("overrides", [])))
    staged, not_staged = stage(run.config, data, folder, place.job)
    if staged == folder and place.local_rank == 0:  # a copy on the node's disk was hashed as it was made
        check_content(folder, data, files_read(run.config, data))
    if not_staged and place.rank > 0 and place.local_rank == 0:  # rank 0's stands in the journal
        print(f"runyard: warning: {not_staged}", file=sys.stderr, flush=True)
    return staged, not_staged


def _write_report(run: Run, record: Recorder, should_stop: Callable[[], Stop]) -> None:
    from runyard.analysis.report.page import write_report

    record.check()
    try:
        with at_once(should_stop):
            write_report(run)
    except (Exception, Stopped) as error:  # a picture that fails does not undo a training that went well
        if not isinstance(error, (UserError, Stopped)):
            traceback.print_exc()
        with contextlib.suppress(OSError):
            record.warning(
                f"the report was not written ({str(error) or type(error).__name__}); the training is whole. "
                f"Try: runyard report {run.reference}"
            )


class Training:
    """One start of a run on one rank, between a checkpoint (or nothing) and the next end."""

    def __init__(
        self,
        run: Run,
        place: Dist,
        record: Recorder,
        should_stop: Callable[[], Stop],
        parts: contextlib.ExitStack,
        staged: tuple[Path, str | None],
    ) -> None:
        self.run, self.config, self.place, self.record, self.should_stop = run, run.config, place, record, should_stop
        self.stopped_by = Stop.NO
        check_world(self.config, place.world_size)
        prepared = manifest.folder(self.config.data)
        self.data = manifest.load(prepared, manifest.prepare_command(run.record.get("overrides", [])))
        run_metadata.check(self.config, place.device)
        if self.config.compile == "none":
            keep_compiler_out()
        if self.config.deterministic:
            run_metadata.use_deterministic_kernels()
        continuity.check_same_data(run, prepared, self.data, place)
        self.folder, not_staged = staged
        self.check_data: Callable[[], None] = lambda: None
        if self.folder == prepared and self.config.loader != "resident" and place.local_rank == 0:  # read until the end
            files = files_read(self.config, self.data)
            self.check_data = functools.partial(check_content, prepared, self.data, files, in_process={})
        ignored = run_metadata.ignored(self.config, place.device)
        for warning in (*ignored, continuity.another_world(run, place), not_staged):
            if warning is not None:
                record.warning(warning)
        if run.edited:
            record.warning("config.yaml was edited after this run was created; what follows is by the edited one")
        shard: dict[str, Any] = {"rank": place.rank, "world_size": place.world_size, "device": place.device}
        self._shard = shard
        self.loader = parts.enter_context(
            contextlib.closing(loaders.train_loader(self.config, self.data, self.folder, **shard))
        )
        self.saver = parts.enter_context(
            contextlib.closing(
                checkpoint.Saver(
                    run.checkpoints,
                    self.config.checkpoint.keep_last,
                    self.config.checkpoint.keep_best,
                    check=record.check,
                    saved=self._saved,
                    settings=learned(self.config),
                    warn=record.warning,
                )
            )
        )
        self.learner = Learner(self.config, self.data, place, self.loader.steps)
        self.usage = parts.enter_context(
            contextlib.closing(Usage(place, all_nodes=self.config.tracking.all_nodes, warn=record.warning))
        )
        self.total_steps = self.config.epochs * self.loader.steps
        self.vote, self.saved_at = Vote(place), time.monotonic()
        self.evaluation = Evaluation(place.world_size, self.config.eval_batch_size)
        self.predictions: Predictions | None = None

    def to_the_end(self) -> Outcome:
        self._begin()
        for epoch in range(self.learner.epochs_done, self.config.epochs):
            if self._learn(epoch) or self._conclude(epoch):
                return Outcome.INTERRUPTED
        return Outcome.INTERRUPTED if self._finish() else Outcome.FINISHED

    def _begin(self) -> None:
        """Go on from the newest checkpoint that is whole, or initialise; then connect the ranks."""
        samples = {name: split.samples for name, split in self.data.splits.items()}
        found = self.found = continuity.go_on(self.run, self.learner, self.evaluation, samples, self.record.warning)
        if found is None and hasattr(self.learner.network, "init_from_data"):
            images = loaders.sample_images(
                self.config,
                self.data,
                self.folder,
                "train",
                np.arange(min(INIT_IMAGES, self.data.splits["train"].samples)),
            )
            with torch.no_grad():
                self.learner.network.init_from_data(
                    self.learner.normalise(torch.from_numpy(images).to(self.place.device))
                )
        with at_once(self.should_stop):  # all that it could lose is saved
            self.learner.connect()
            self._warm_up()
        facts = run_metadata.facts(self.run, self.learner, found.path.name if found else None)
        self.record.event("start", **facts)
        self.record.open_wandb(facts)
        self.usage.begin()

    def _learn(self, epoch: int) -> bool:
        """The rest of ``epoch``, from the step the learner stands at. Saves where all ranks agree to; True: stopped."""
        learner = self.learner
        self.epoch_began, self.wait_began = time.monotonic(), self.loader.wait_s
        self.first_step = learner.step
        for micro_batches in self.loader.epoch(epoch, learner.step - epoch * self.loader.steps):
            learner.train_step(micro_batches)
            self._show_progress(epoch)
            if learner.step % self.loader.steps == 0:  # noted before the stop that it may meet: no later start knows
                self.evaluation.trained = self._trained()
            save = self._agree(learner.bad_flag())
            if save:
                self._save(score=None, wait=bool(self.stopped_by))
            if self.stopped_by:
                return True
        if bad := self.vote.now([0, 0, learner.bad_flag(exact=True)])[2]:
            raise learner.diverged(bad)
        return False

    def _trained(self) -> dict[str, float]:
        """How fast this start learned the epoch that has just ended."""
        train_s, wait_s = time.monotonic() - self.epoch_began, self.loader.wait_s - self.wait_began
        images = (self.learner.step - self.first_step) * self.config.batch_size
        return {"images_per_s": images / train_s, "data_wait_pct": 100 * wait_s / train_s, "train_s": train_s}

    def _agree(self, bad: int = 0) -> bool:
        """After each step, and each batch of an evaluation: whether all ranks save, and why they stop if they do."""
        every_s = self.config.checkpoint.every_s
        due = every_s is not None and self.place.rank == 0 and time.monotonic() - self.saved_at > every_s
        stop, save, bad = self.vote.exchange([int(self.should_stop()), int(due), bad])
        if bad:
            raise self.learner.diverged(bad)
        self.stopped_by = Stop(stop)
        return bool(stop or save)

    def _conclude(self, epoch: int) -> bool:
        """Measure the epoch over all ranks, write it down, and save where the settings say. True: stopped before."""
        self.check_data()  # costs a stat of each file: what was replaced in the meantime must not count as learned
        learner, every = self.learner, self.config.evaluate_every_epochs
        last = epoch + 1 == self.config.epochs
        evaluated = self._evaluate() if last or (epoch + 1) % every == 0 else {}
        if evaluated is None:
            return True
        trained, eval_s = self.evaluation.trained or self._trained(), self.evaluation.seconds
        self.evaluation.clear()
        train_loss, train_top1, grad_norm = learner.counters.mean()
        learner.counters.reset()
        score = evaluated.get("val_top1", evaluated.get("test_top1"))
        learner.clock_s += time.monotonic() - self.epoch_began
        self.epoch_began = time.monotonic()
        learner.epochs_done = epoch + 1
        self.record.event(
            "epoch",
            epoch=epoch + 1,
            step=learner.step,
            train_loss=train_loss,
            train_top1=train_top1,
            **{f"{s}_{m}": evaluated.get(f"{s}_{m}") for s in ("test", "val") for m in ("loss", "top1")},
            lr=learning_rate(self.config, learner.step - 1, self.loader.steps),
            grad_norm=grad_norm,
            **trained,
            eval_s=eval_s,
            peak_memory_mb=run_metadata.peak_memory_mb(self.place.device),
            **self.usage.take(),
            **self._times_by_rank(),
            clock_s=learner.clock_s,
        )
        best = score is not None and score > learner.best.get("top1", -1.0)
        if best:
            learner.best = {"top1": cast(float, score), "epoch": epoch + 1}
        every_epochs = self.config.checkpoint.every_epochs
        if last or (best and self.config.checkpoint.keep_best) or (every_epochs and (epoch + 1) % every_epochs == 0):
            self._save(score, wait=last)
        return False

    def _times_by_rank(self) -> dict[str, Any]:
        wait_s, steps = self.loader.wait_s - self.wait_began, max(self.learner.step - self.first_step, 1)
        return step_timer.by_rank(self.learner.timer.take_ms(self.config.accumulate), 1000 * wait_s / steps)

    def _finish(self) -> bool:
        """The confusion matrix and every prediction over the test set, from the weights that were saved last."""
        if self.predictions is None:  # resumed after the last epoch was saved
            self.epoch_began = time.monotonic()
            if self._evaluate(score=self.found.score if self.found else None) is None:
                return True
        if self.place.rank == 0 and self.predictions is not None:
            p, learner = self.predictions, self.learner
            content = io.BytesIO()
            np.savez(content, index=p.index, label=p.label, predicted=p.predicted, confidence=p.confidence)
            self.record.check()
            write_atomic(self.run.path / "predictions.npz", content.getvalue())
            self.record.event(
                "final",
                split="test",
                top1=float((p.predicted == p.label).mean()),
                loss=p.loss,
                top1_best=learner.best["top1"],
                best_epoch=learner.best["epoch"],
                confusion=p.confusion(len(self.data.classes)),
                classes=list(self.data.classes),
                clock_s=learner.clock_s,
                parameters=learner.parameters,
            )
        return False

    def _evaluate(self, score: float | None = None) -> dict[str, float] | None:
        """Loss and top-1 on the held-out part, if there is one, and on the test set; keeps the latter's predictions.

        It hears a stop after each batch, and is saved by time as steps are, under ``score``: so a long one costs no
        more than they do when it ends, and a short one costs no save. None: stopped, to be gone on with from there.
        """
        out: dict[str, float] = {}
        for split, short in (("validation", "val"), ("test", "test")):
            if split in self.data.splits:
                part = self.evaluation.part(split, self.data.splits[split].samples)
                while not part.complete:
                    if self._measure(split, part):
                        self._save(score, wait=bool(self.stopped_by))
                    if self.stopped_by:
                        return None
                self.predictions = part.predictions()
                out |= {f"{short}_loss": self.predictions.loss, f"{short}_top1": self.predictions.top1}
        return out

    def _measure(self, split: str, part: Part) -> bool:
        """Evaluate ``split`` to its end, or to where all ranks agree to save (True)."""
        began = time.monotonic()
        batches = loaders.evaluation_batches(
            self.config, self.data, self.folder, split, **self._shard, start=part.batches
        )
        try:
            with self.learner.evaluating(), contextlib.closing(batches):  # left before saving: that is of the weights
                done = part.go_on(self.learner.logits, batches, self.config.loss.label_smoothing)
                return any(self._agree() for _ in done)
        finally:
            self.evaluation.seconds += time.monotonic() - began

    def _save(self, score: float | None, *, wait: bool) -> None:
        """Save on rank 0. A collective call: the counters and the evaluation of an epoch under way meet there."""
        learner, began = self.learner, time.monotonic()
        learner.counters.gather()
        self.evaluation.gather()
        learner.clock_s += began - self.epoch_began
        if self.place.rank == 0:
            state = learner.state() | {"evaluation": self.evaluation.state()}
            self.saver.save(state, learner.step, score, wait=wait)
        learner.clock_s -= began - self.epoch_began
        self.saved_at = time.monotonic()

    def _saved(self, step: int, seconds: float) -> None:
        self.record.event("checkpoint", step=step, name=f"step_{step:08d}", seconds=seconds)

    def _show_progress(self, epoch: int) -> None:
        learner, seconds = self.learner, time.monotonic() - self.epoch_began
        pace = (learner.step - self.first_step) * self.config.batch_size / max(seconds, 1e-6)
        eta_s = (self.total_steps - learner.step) * self.config.batch_size / max(pace, 1e-6)
        self.record.progress(
            epoch=epoch + 1,
            epochs=self.config.epochs,
            step=learner.step,
            steps=self.total_steps,
            images_per_s=pace,
            eta_s=eta_s,
            clock_s=learner.clock_s + seconds,
        )

    def _warm_up(self) -> None:
        """See ``Learner.warm_up``.

        Raises:
            UserError: with ``deterministic``, the network needs a kernel of which there is no such kind.
        """
        if self.config.compile == "none" and self.place.world_size == 1 and not self.config.deterministic:
            return
        size, share = self.data.image_size, self.config.batch_size // self.place.world_size // self.config.accumulate
        if self.config.compile == "none":  # then any number of images will do
            share = 2
        dummy = torch.zeros((share, size, size, 3), dtype=torch.uint8, device=self.place.device)
        labels = torch.zeros(share, dtype=torch.int64, device=self.place.device)
        try:
            self.learner.warm_up(Batch(dummy, labels, labels))
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            raise UserError(f"deterministic=true: {str(error).partition(',')[0]}; set deterministic=false") from error
        process_group.end_of_warm_up(self.place)
