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
from runyard.config.schema import check_world_size
from runyard.data import manifest
from runyard.data.loading import loaders
from runyard.data.loading.batch import Batch
from runyard.data.prepare.stage import stage_data
from runyard.data.verified import check_content, files_read
from runyard.errors import UserError
from runyard.files import write_atomic
from runyard.runs.identity import identity_settings
from runyard.runs.lease import LeaseLost
from runyard.runs.run import Run
from runyard.tracking.recorder import Recorder
from runyard.training import checkpoint, continuity
from runyard.training.distributed import health_check, peer_failure, process_group
from runyard.training.distributed.process_group import Consensus, RankInfo
from runyard.training.evaluation import Evaluation, SplitEvaluation
from runyard.training.lr_scheduler import learning_rate
from runyard.training.metrics import run_metadata, step_timer
from runyard.training.metrics.counters import EvaluationResult
from runyard.training.metrics.system_metrics import SystemMetrics
from runyard.training.no_compiler import defer_compiler_import
from runyard.training.stop_signals import StopReason, TrainingStopped, interruptible
from runyard.training.train_state import DivergenceError, TrainState

INIT_IMAGES = 5000  # what a network that initialises itself from data is shown


class Outcome(enum.StrEnum):
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # saved, and to be resumed


def train(run: Run, should_stop: Callable[[], StopReason] = lambda: StopReason.NO) -> Outcome:
    """Train ``run`` from its newest checkpoint, or from the start, until it is finished or ``should_stop`` says so.

    Every rank calls this. ``should_stop`` is asked after each step; one rank's wish stops all at the same step, saved.

    Raises:
        UserError: data, model or ranks do not fit the configuration, or another process writes this run.
        Diverged: the loss or a weight is not a finite number. The last checkpoint is from before that.
        RankLost: another rank failed, or was killed.
        LeaseLost: another process took the run over. Nothing more was written.
    """
    rank_info = process_group.from_environment(os.environ)
    lease = run.acquire_lease() if rank_info.rank == 0 else None
    record = Recorder(run, active=rank_info.rank == 0, lease=lease)
    try:
        with (
            process_group.joined_process_group(
                rank_info,
                run.path / "slurm",
                lambda: _stage_data(run, rank_info),
                should_stop,
                compiles=run.config.compile != "none",
            ) as staged,
            run.reporting_write_errors(),
            contextlib.ExitStack() as resources,
        ):
            trainer = Trainer(run, rank_info, record, should_stop, resources, staged)
            health_check.check_node(run, rank_info, trainer.data, trainer.folder, trainer.train_state.parameters)
            with peer_failure.errors_tagged_with_step(lambda: trainer.train_state.step):
                outcome = trainer.fit()
        with run.reporting_write_errors():
            record.log_event("stop", reason=str(outcome), message="", cause=trainer.stop_reason.journal_text)
        record.close()
        if rank_info.rank == 0 and outcome is Outcome.FINISHED and run.config.report:
            _write_report(run, record, should_stop)
        return outcome
    except LeaseLost:  # the journal is another's now, and so is the W&B record
        raise
    except TrainingStopped as stopped:
        with run.reporting_write_errors():
            record.log_event(
                "stop", reason="interrupted", message="before it began to learn", cause=stopped.stop.journal_text
            )
        return Outcome.INTERRUPTED
    except BaseException as error:
        failure = peer_failure.failure_record(error, rank_info.rank)
        # What would happen again.
        not_retryable = isinstance(error, (UserError, DivergenceError)) or not known_causes.retry_can_help(failure)
        failure_fields = {
            "message": known_causes.error_text(error),
            "user_error": isinstance(error, UserError),
            "retry": not not_retryable,
        }
        with contextlib.suppress(OSError):  # a full disk has no room for these words either
            record.log_event("stop", reason="failed", **failure_fields, **failure)
        record.close(failed=True)
        raise
    finally:
        if lease is not None:
            lease.release()


def _stage_data(run: Run, rank_info: RankInfo) -> tuple[Path, str | None]:
    """Where to read the data from, and why it is not the node's own copy where that was asked for."""
    folder = manifest.dataset_dir(run.config.data)
    data = manifest.load_manifest(folder, manifest.prepare_command(run.record.get("overrides", [])))
    staged, not_staged = stage_data(run.config, data, folder, rank_info.start_id)
    if staged == folder and rank_info.local_rank == 0:  # a copy on the node's disk was hashed as it was made
        check_content(folder, data, files_read(run.config, data))
    if not_staged and rank_info.rank > 0 and rank_info.local_rank == 0:  # rank 0's stands in the journal
        print(f"runyard: warning: {not_staged}", file=sys.stderr, flush=True)
    return staged, not_staged


def _write_report(run: Run, record: Recorder, should_stop: Callable[[], StopReason]) -> None:
    from runyard.analysis.report.page import write_report

    record.check_lease()
    try:
        with interruptible(should_stop):
            write_report(run)
    except (Exception, TrainingStopped) as error:  # a picture that fails does not undo a training that went well
        if not isinstance(error, (UserError, TrainingStopped)):
            traceback.print_exc()
        with contextlib.suppress(OSError):
            record.warning(
                f"the report was not written ({str(error) or type(error).__name__}); the training is whole. "
                f"Try: runyard report {run.cli_reference}"
            )


class Trainer:
    """One start of a run on one rank, between a checkpoint (or nothing) and the next end."""

    def __init__(
        self,
        run: Run,
        rank_info: RankInfo,
        record: Recorder,
        should_stop: Callable[[], StopReason],
        resources: contextlib.ExitStack,
        staged: tuple[Path, str | None],
    ) -> None:
        self.run, self.config, self.rank_info = run, run.config, rank_info
        self.record, self.should_stop = record, should_stop
        self.stop_reason = StopReason.NO
        check_world_size(self.config, rank_info.world_size)
        prepared = manifest.dataset_dir(self.config.data)
        self.data = manifest.load_manifest(prepared, manifest.prepare_command(run.record.get("overrides", [])))
        run_metadata.check_device_settings(self.config, rank_info.device)
        if self.config.compile == "none":
            defer_compiler_import()
        if self.config.deterministic:
            run_metadata.use_deterministic_kernels()
        continuity.check_same_data(run, prepared, self.data, rank_info)
        self.folder, not_staged = staged
        self.check_data_unchanged: Callable[[], None] = lambda: None
        reads_to_the_end = self.folder == prepared and self.config.loader != "resident"
        if reads_to_the_end and rank_info.local_rank == 0:
            files = files_read(self.config, self.data)
            self.check_data_unchanged = functools.partial(check_content, prepared, self.data, files, in_process={})
        ignored = run_metadata.ignored_settings(self.config, rank_info.device)
        for warning in (*ignored, continuity.world_size_warning(run, rank_info), not_staged):
            if warning is not None:
                record.warning(warning)
        if run.config_edited:
            record.warning("config.yaml was edited after this run was created; what follows is by the edited one")
        shard: dict[str, Any] = {"rank": rank_info.rank, "world_size": rank_info.world_size, "device": rank_info.device}
        self._shard = shard
        self.loader = resources.enter_context(
            contextlib.closing(loaders.train_loader(self.config, self.data, self.folder, **shard))
        )
        self.saver = resources.enter_context(
            contextlib.closing(
                checkpoint.CheckpointSaver(
                    run.checkpoints,
                    self.config.checkpoint.keep_last,
                    self.config.checkpoint.keep_best,
                    check_lease=record.check_lease,
                    on_saved=self._log_checkpoint,
                    settings=identity_settings(self.config),
                    warn=record.warning,
                )
            )
        )
        self.train_state = TrainState(self.config, self.data, rank_info, self.loader.steps)
        self.usage = resources.enter_context(
            contextlib.closing(SystemMetrics(rank_info, all_nodes=self.config.tracking.all_nodes, warn=record.warning))
        )
        self.total_steps = self.config.epochs * self.loader.steps
        self.consensus, self.last_save_time = Consensus(rank_info), time.monotonic()
        self.evaluation = Evaluation(rank_info.world_size, self.config.eval_batch_size)
        self.predictions: EvaluationResult | None = None

    def fit(self) -> Outcome:
        self.setup()
        for epoch in range(self.train_state.epochs_done, self.config.epochs):
            if self.train_epoch(epoch) or self.end_epoch(epoch):
                return Outcome.INTERRUPTED
        return Outcome.INTERRUPTED if self.finalize() else Outcome.FINISHED

    def setup(self) -> None:
        """Go on from the newest checkpoint that is whole, or initialise; then connect the ranks."""
        samples = {name: split.samples for name, split in self.data.splits.items()}
        found = self.resumed_checkpoint = continuity.resume_from_checkpoint(
            self.run, self.train_state, self.evaluation, samples, self.record.warning
        )
        if found is None and hasattr(self.train_state.network, "init_from_data"):
            images = loaders.sample_images(
                self.config,
                self.data,
                self.folder,
                "train",
                np.arange(min(INIT_IMAGES, self.data.splits["train"].samples)),
            )
            with torch.no_grad():
                self.train_state.network.init_from_data(
                    self.train_state.normalize(torch.from_numpy(images).to(self.rank_info.device))
                )
        with interruptible(self.should_stop):  # all that it could lose is saved
            self.train_state.wrap_ddp()
            self._warm_up()
        facts = run_metadata.run_metadata(self.run, self.train_state, found.path.name if found else None)
        self.record.log_event("start", **facts)
        self.record.open_wandb(facts)
        self.usage.start()

    def train_epoch(self, epoch: int) -> bool:
        """The rest of ``epoch``, from the step the learner stands at. Saves where all ranks agree to; True: stopped."""
        train_state = self.train_state
        self.epoch_start_time, self.epoch_start_wait_s = time.monotonic(), self.loader.wait_s
        self.first_step = train_state.step
        for micro_batches in self.loader.epoch(epoch, train_state.step - epoch * self.loader.steps):
            train_state.train_step(micro_batches)
            self._show_progress(epoch)
            # Noted before the stop that it may meet: no later start knows.
            if train_state.step % self.loader.steps == 0:
                self.evaluation.epoch_stats = self.throughput()
            save = self.sync_flags(train_state.non_finite_flag())
            if save:
                self.save_checkpoint(score=None, wait=bool(self.stop_reason))
            if self.stop_reason:
                return True
        if bad := self.consensus.agree_now([0, 0, train_state.non_finite_flag(exact=True)])[2]:
            raise train_state.divergence_error(bad)
        return False

    def throughput(self) -> dict[str, float]:
        """How fast this start learned the epoch that has just ended."""
        train_s, wait_s = time.monotonic() - self.epoch_start_time, self.loader.wait_s - self.epoch_start_wait_s
        images = (self.train_state.step - self.first_step) * self.config.batch_size
        return {"images_per_s": images / train_s, "data_wait_pct": 100 * wait_s / train_s, "train_s": train_s}

    def sync_flags(self, bad: int = 0) -> bool:
        """After each step, and each batch of an evaluation: whether all ranks save, and why they stop if they do."""
        every_s = self.config.checkpoint.every_s
        due = every_s is not None and self.rank_info.rank == 0 and time.monotonic() - self.last_save_time > every_s
        stop, save, bad = self.consensus.exchange([int(self.should_stop()), int(due), bad])
        if bad:
            raise self.train_state.divergence_error(bad)
        self.stop_reason = StopReason(stop)
        return bool(stop or save)

    def end_epoch(self, epoch: int) -> bool:
        """Measure the epoch over all ranks, write it down, and save where the settings say. True: stopped before."""
        # costs a stat of each file: what was replaced in the meantime must not count as learned
        self.check_data_unchanged()
        train_state, every = self.train_state, self.config.evaluate_every_epochs
        last = epoch + 1 == self.config.epochs
        evaluated = self._evaluate() if last or (epoch + 1) % every == 0 else {}
        if evaluated is None:
            return True
        trained, eval_s = self.evaluation.epoch_stats or self.throughput(), self.evaluation.elapsed_s
        self.evaluation.clear()
        train_loss, train_top1, grad_norm = train_state.counters.mean()
        train_state.counters.reset()
        score = evaluated.get("val_top1", evaluated.get("test_top1"))
        train_state.clock_s += time.monotonic() - self.epoch_start_time
        self.epoch_start_time = time.monotonic()
        train_state.epochs_done = epoch + 1
        self.record.log_event(
            "epoch",
            epoch=epoch + 1,
            step=train_state.step,
            train_loss=train_loss,
            train_top1=train_top1,
            **{f"{s}_{m}": evaluated.get(f"{s}_{m}") for s in ("test", "val") for m in ("loss", "top1")},
            lr=learning_rate(self.config, train_state.step - 1, self.loader.steps),
            grad_norm=grad_norm,
            **trained,
            eval_s=eval_s,
            peak_memory_mb=run_metadata.peak_memory_mb(self.rank_info.device),
            **self.usage.read(),
            **self.step_times_by_rank(),
            clock_s=train_state.clock_s,
        )
        best = score is not None and score > train_state.best.get("top1", -1.0)
        if best:
            train_state.best = {"top1": cast(float, score), "epoch": epoch + 1}
        every_epochs = self.config.checkpoint.every_epochs
        if last or (best and self.config.checkpoint.keep_best) or (every_epochs and (epoch + 1) % every_epochs == 0):
            self.save_checkpoint(score, wait=last)
        return False

    def step_times_by_rank(self) -> dict[str, Any]:
        wait_s, steps = self.loader.wait_s - self.epoch_start_wait_s, max(self.train_state.step - self.first_step, 1)
        return step_timer.step_times_by_rank(
            self.train_state.timer.mean_ms(self.config.accumulate), 1000 * wait_s / steps
        )

    def finalize(self) -> bool:
        """The confusion matrix and every prediction over the test set, from the weights that were saved last."""
        if self.predictions is None:  # resumed after the last epoch was saved
            self.epoch_start_time = time.monotonic()
            if self._evaluate(score=self.resumed_checkpoint.score if self.resumed_checkpoint else None) is None:
                return True
        if self.rank_info.rank == 0 and self.predictions is not None:
            p, train_state = self.predictions, self.train_state
            content = io.BytesIO()
            np.savez(content, index=p.index, label=p.label, predicted=p.predicted, confidence=p.confidence)
            self.record.check_lease()
            write_atomic(self.run.path / "predictions.npz", content.getvalue())
            self.record.log_event(
                "final",
                split="test",
                top1=float((p.predicted == p.label).mean()),
                loss=p.loss,
                top1_best=train_state.best["top1"],
                best_epoch=train_state.best["epoch"],
                confusion=p.confusion(len(self.data.classes)),
                classes=list(self.data.classes),
                clock_s=train_state.clock_s,
                parameters=train_state.parameters,
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
                while not part.is_complete:
                    if self.evaluate_split(split, part):
                        self.save_checkpoint(score, wait=bool(self.stop_reason))
                    if self.stop_reason:
                        return None
                self.predictions = part.predictions()
                out |= {f"{short}_loss": self.predictions.loss, f"{short}_top1": self.predictions.top1}
        return out

    def evaluate_split(self, split: str, part: SplitEvaluation) -> bool:
        """Evaluate ``split`` to its end, or to where all ranks agree to save (True)."""
        began = time.monotonic()
        batches = loaders.evaluation_batches(
            self.config, self.data, self.folder, split, **self._shard, start=part.batches
        )
        try:
            with (
                self.train_state.evaluation_weights(),
                contextlib.closing(batches),
            ):  # left before saving: that is of the weights
                done = part.evaluate_batches(self.train_state.logits, batches, self.config.loss.label_smoothing)
                return any(self.sync_flags() for _ in done)
        finally:
            self.evaluation.elapsed_s += time.monotonic() - began

    def save_checkpoint(self, score: float | None, *, wait: bool) -> None:
        """Save on rank 0. A collective call: the counters and the evaluation of an epoch under way meet there."""
        train_state, began = self.train_state, time.monotonic()
        train_state.counters.gather()
        self.evaluation.gather()
        train_state.clock_s += began - self.epoch_start_time
        if self.rank_info.rank == 0:
            state = train_state.state_dict() | {"evaluation": self.evaluation.state()}
            self.saver.save(state, train_state.step, score, wait=wait)
        train_state.clock_s -= began - self.epoch_start_time
        self.last_save_time = time.monotonic()

    def _log_checkpoint(self, step: int, seconds: float) -> None:
        self.record.log_event("checkpoint", step=step, name=f"step_{step:08d}", seconds=seconds)

    def _show_progress(self, epoch: int) -> None:
        train_state, seconds = self.train_state, time.monotonic() - self.epoch_start_time
        pace = (train_state.step - self.first_step) * self.config.batch_size / max(seconds, 1e-6)
        eta_s = (self.total_steps - train_state.step) * self.config.batch_size / max(pace, 1e-6)
        self.record.progress(
            epoch=epoch + 1,
            epochs=self.config.epochs,
            step=train_state.step,
            steps=self.total_steps,
            images_per_s=pace,
            eta_s=eta_s,
            clock_s=train_state.clock_s + seconds,
        )

    def _warm_up(self) -> None:
        """See ``Learner.warm_up``.

        Raises:
            UserError: with ``deterministic``, the network needs a kernel of which there is no such kind.
        """
        if self.config.compile == "none" and self.rank_info.world_size == 1 and not self.config.deterministic:
            return
        size, share = (
            self.data.image_size,
            self.config.batch_size // self.rank_info.world_size // self.config.accumulate,
        )
        if self.config.compile == "none":  # then any number of images will do
            share = 2
        dummy = torch.zeros((share, size, size, 3), dtype=torch.uint8, device=self.rank_info.device)
        labels = torch.zeros(share, dtype=torch.int64, device=self.rank_info.device)
        try:
            self.train_state.warm_up(Batch(dummy, labels, labels))
        except RuntimeError as error:
            if "deterministic implementation" not in str(error):
                raise
            raise UserError(f"deterministic=true: {str(error).partition(',')[0]}; set deterministic=false") from error
        process_group.finish_warm_up(self.rank_info)
