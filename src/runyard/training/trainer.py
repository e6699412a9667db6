"""The trainer: build, resume, train, evaluate, save. Read it from top to bottom."""

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
from runyard.training.distributed.launcher import RankInfo, from_environment
from runyard.training.distributed.process_group import Consensus
from runyard.training.evaluation import Evaluation, SplitEvaluation
from runyard.training.lr_scheduler import learning_rate
from runyard.training.metrics import run_metadata, step_timer
from runyard.training.metrics.counters import EvaluationResult
from runyard.training.metrics.system_metrics import SystemMetrics
from runyard.training.no_compiler import defer_compiler_import
from runyard.training.stop_signals import StopReason, TrainingStopped, interruptible
from runyard.training.train_state import DivergenceError, TrainState

INIT_IMAGES = 5000  # shown to a network that initializes itself from data


class Outcome(enum.StrEnum):
    FINISHED = "finished"
    INTERRUPTED = "interrupted"  # saved, and can be resumed


def train(run: Run, get_stop_reason: Callable[[], StopReason] = lambda: StopReason.NO) -> Outcome:
    """Train ``run`` from its newest checkpoint, or from the start, until it is finished or asked to stop.

    Every rank calls this. Each rank calls ``get_stop_reason`` after each step; if one rank has a reason, all ranks stop
    at the same step, after saving.

    Raises:
        UserError: data, model or ranks do not fit the configuration, or another process writes this run.
        DivergenceError: the loss or a weight is not a finite number. The last checkpoint is from before that.
        PeerFailure: another rank failed, or was killed.
        LeaseLost: another process took the run over. Nothing more was written.
    """
    rank_info = from_environment(os.environ)
    lease = run.acquire_lease() if rank_info.rank == 0 else None
    record = Recorder(run, active=rank_info.rank == 0, lease=lease)
    try:
        with (
            process_group.joined_process_group(
                rank_info,
                run.path / "slurm",
                lambda: _stage_data(run, rank_info),
                get_stop_reason,
                compiles=run.config.compile != "none",
            ) as staged,
            run.reporting_write_errors(),
            contextlib.ExitStack() as resources,
        ):
            trainer = Trainer(run, rank_info, record, get_stop_reason, resources, staged)
            health_check.check_node(run, rank_info, trainer.data, trainer.folder, trainer.train_state.parameters)
            with peer_failure.errors_tagged_with_step(lambda: trainer.train_state.step):
                outcome = trainer.fit()
        with run.reporting_write_errors():
            record.log_event("stop", reason=str(outcome), message="", cause=trainer.stop_reason.journal_text)
        record.close()
        if rank_info.rank == 0 and outcome is Outcome.FINISHED and run.config.report:
            _write_report(run, record, get_stop_reason)
        return outcome
    except LeaseLost:  # another process now owns the journal and the W&B run
        raise
    except TrainingStopped as stopped:
        with run.reporting_write_errors():
            record.log_event("stop", reason="interrupted", message="", cause=stopped.stop.journal_text)
        return Outcome.INTERRUPTED
    except BaseException as error:
        failure = peer_failure.failure_record(error, rank_info.rank)
        retry = not isinstance(error, (UserError, DivergenceError)) and known_causes.retry_can_help(failure)
        message, user_error = known_causes.error_text(error), isinstance(error, UserError)
        with contextlib.suppress(OSError):  # a full disk has no room for this row either
            record.log_event("stop", reason="failed", message=message, user_error=user_error, retry=retry, **failure)
        record.close(failed=True)
        raise
    finally:
        if lease is not None:
            lease.release()


def _stage_data(run: Run, rank_info: RankInfo) -> tuple[Path, str | None]:
    """Return the folder to read the data from, and why it is not a copy on the node if that was requested."""
    folder = manifest.dataset_dir(run.config.data)
    data = manifest.load_manifest(folder, manifest.prepare_command(run.record["overrides"]))
    staged, not_staged = stage_data(run.config, data, folder, rank_info.start_id)
    if staged == folder and rank_info.local_rank == 0:  # a copy on the node's disk was hashed while it was copied
        check_content(folder, data, files_read(run.config, data))
    if not_staged and rank_info.rank > 0 and rank_info.local_rank == 0:  # rank 0 writes its warning to the journal
        print(f"runyard: warning: {not_staged}", file=sys.stderr, flush=True)
    return staged, not_staged


def _write_report(run: Run, record: Recorder, get_stop_reason: Callable[[], StopReason]) -> None:
    from runyard.analysis.report.page import write_report

    record.check_lease()
    try:
        with interruptible(get_stop_reason):
            write_report(run)
    except (Exception, TrainingStopped) as error:  # a failed report does not make a finished training fail
        if not isinstance(error, (UserError, TrainingStopped)):
            traceback.print_exc()
        with contextlib.suppress(OSError):
            record.warning(
                f"the report was not written ({str(error) or type(error).__name__}), but the training is complete. "
                f"Try: runyard report {run.cli_reference}"
            )


class Trainer:
    """Trains a run on one rank, from its newest checkpoint (or step 0) until it finishes or stops."""

    def __init__(
        self,
        run: Run,
        rank_info: RankInfo,
        record: Recorder,
        get_stop_reason: Callable[[], StopReason],
        resources: contextlib.ExitStack,
        staged: tuple[Path, str | None],
    ) -> None:
        self.run, self.config, self.rank_info = run, run.config, rank_info
        self.record, self.get_stop_reason = record, get_stop_reason
        self.stop_reason = StopReason.NO
        check_world_size(self.config, rank_info.world_size)
        prepared = manifest.dataset_dir(self.config.data)
        self.data = manifest.load_manifest(prepared, manifest.prepare_command(run.record["overrides"]))
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
            record.warning("config.yaml was edited after this run was created; it continues with the edited settings")
        self._shard = dict[str, Any](rank=rank_info.rank, world_size=rank_info.world_size, device=rank_info.device)
        self.loader = resources.enter_context(
            contextlib.closing(loaders.train_loader(self.config, self.data, self.folder, **self._shard))
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
        """Resume from the newest valid checkpoint or initialize the network, then wrap it in DDP."""
        samples = {name: split.samples for name, split in self.data.splits.items()}
        resumed = self.resumed_checkpoint = continuity.resume_from_checkpoint(
            self.run, self.train_state, self.evaluation, samples, self.record.warning
        )
        if resumed is None and hasattr(self.train_state.network, "init_from_data"):
            indices = np.arange(min(INIT_IMAGES, self.data.splits["train"].samples))
            images = loaders.sample_images(self.config, self.data, self.folder, "train", indices)
            with torch.no_grad():
                self.train_state.network.init_from_data(
                    self.train_state.normalize(torch.from_numpy(images).to(self.rank_info.device))
                )
        with interruptible(self.get_stop_reason):  # no progress can be lost here
            self.train_state.wrap_ddp()
            self.train_state.warm_up(self.data.image_size)
            process_group.finish_warm_up(self.rank_info)
        resumed_from = resumed.path.name if resumed else None
        metadata = run_metadata.run_metadata(self.run, self.train_state, resumed_from)
        self.record.log_event("start", **metadata)
        self.record.open_wandb(metadata)
        self.usage.start()

    def train_epoch(self, epoch: int) -> bool:
        """Train the rest of ``epoch``. Saves when the ranks agree to. Returns True if the training stopped."""
        train_state = self.train_state
        self.epoch_start_time, self.epoch_start_wait_s = time.monotonic(), self.loader.wait_s
        self.first_step = train_state.step
        for micro_batches in self.loader.epoch(epoch, train_state.step - epoch * self.loader.steps):
            train_state.train_step(micro_batches)
            self._show_progress(epoch)
            # Before the stop that may follow: a later start cannot measure it.
            if train_state.step % self.loader.steps == 0:
                self.evaluation.epoch_stats = self.throughput()
            save = self.sync_flags(train_state.non_finite_flag())
            if save:
                self.save_checkpoint(score=None, wait=bool(self.stop_reason))
            if self.stop_reason:
                return True
        if non_finite := self.consensus.agree_now([0, 0, train_state.non_finite_flag(exact=True)])[2]:
            raise train_state.divergence_error(non_finite)
        return False

    def throughput(self) -> dict[str, float]:
        """Return the throughput of the epoch that has just ended, for the steps of this start."""
        train_s, wait_s = time.monotonic() - self.epoch_start_time, self.loader.wait_s - self.epoch_start_wait_s
        images = (self.train_state.step - self.first_step) * self.config.batch_size
        return {"images_per_s": images / train_s, "data_wait_pct": 100 * wait_s / train_s, "train_s": train_s}

    def sync_flags(self, non_finite: int = 0) -> bool:
        """After each step and evaluation batch: return whether all ranks save; sets ``stop_reason``."""
        every_s = self.config.checkpoint.every_s
        due = every_s is not None and self.rank_info.rank == 0 and time.monotonic() - self.last_save_time > every_s
        stop, save, non_finite = self.consensus.exchange([int(self.get_stop_reason()), int(due), non_finite])
        if non_finite:
            raise self.train_state.divergence_error(non_finite)
        self.stop_reason = StopReason(stop)
        return bool(stop or save)

    def end_epoch(self, epoch: int) -> bool:
        """Evaluate, log the epoch, save if the settings say so. Returns True if stopped before the end."""
        # costs a stat of each file: the epoch must not count if a file was replaced meanwhile
        self.check_data_unchanged()
        train_state, evaluate_every = self.train_state, self.config.evaluate_every_epochs
        last = epoch + 1 == self.config.epochs
        evaluated = self._evaluate() if last or (epoch + 1) % evaluate_every == 0 else {}
        if evaluated is None:
            return True
        epoch_stats, eval_s = self.evaluation.epoch_stats or self.throughput(), self.evaluation.elapsed_s
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
            **epoch_stats,
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

    def step_times_by_rank(self) -> dict[str, object]:
        steps = max(self.train_state.step - self.first_step, 1)
        wait_ms = 1000 * (self.loader.wait_s - self.epoch_start_wait_s) / steps
        return step_timer.step_times_by_rank(self.train_state.timer.mean_ms(self.config.accumulate), wait_ms)

    def finalize(self) -> bool:
        """Log the final results and save all test predictions, of the weights saved last. Returns True if stopped."""
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
        """Return loss and top-1 on the validation split, if there is one, and the test split; keep test predictions.

        It checks for a stop after each batch and saves on the steps' timer, with ``score``: so an interruption loses no
        more than between steps, and a short evaluation costs no save. None: stopped; a later start resumes there.
        """
        metrics: dict[str, float] = {}
        for split, short in (("validation", "val"), ("test", "test")):
            if split in self.data.splits:
                split_evaluation = self.evaluation.part(split, self.data.splits[split].samples)
                while not split_evaluation.is_complete:
                    if self.evaluate_split(split, split_evaluation):
                        self.save_checkpoint(score, wait=bool(self.stop_reason))
                    if self.stop_reason:
                        return None
                self.predictions = split_evaluation.predictions()
                metrics |= {f"{short}_loss": self.predictions.loss, f"{short}_top1": self.predictions.top1}
        return metrics

    def evaluate_split(self, split: str, split_evaluation: SplitEvaluation) -> bool:
        """Evaluate ``split`` to its end, or until all ranks agree to save (then return True)."""
        start_time = time.monotonic()
        batches = loaders.evaluation_batches(
            self.config, self.data, self.folder, split, **self._shard, start=split_evaluation.batches
        )
        try:
            label_smoothing = self.config.loss.label_smoothing
            with self.train_state.evaluation_weights(), contextlib.closing(batches):  # a save needs the other weights
                done = split_evaluation.evaluate_batches(self.train_state.logits, batches, label_smoothing)
                return any(self.sync_flags() for _ in done)
        finally:
            self.evaluation.elapsed_s += time.monotonic() - start_time

    def save_checkpoint(self, score: float | None, *, wait: bool) -> None:
        """Save on rank 0. A collective call: the counters and any unfinished evaluation are gathered there."""
        train_state, start_time = self.train_state, time.monotonic()
        train_state.counters.gather()
        self.evaluation.gather()
        train_state.clock_s += start_time - self.epoch_start_time
        if self.rank_info.rank == 0:
            state = train_state.state_dict() | {"evaluation": self.evaluation.state()}
            self.saver.save(state, train_state.step, score, wait=wait)
        train_state.clock_s -= start_time - self.epoch_start_time
        self.last_save_time = time.monotonic()

    def _log_checkpoint(self, step: int, seconds: float) -> None:
        self.record.log_event("checkpoint", step=step, name=f"step_{step:08d}", seconds=seconds)

    def _show_progress(self, epoch: int) -> None:
        train_state, elapsed_s = self.train_state, time.monotonic() - self.epoch_start_time
        images_per_s = (train_state.step - self.first_step) * self.config.batch_size / max(elapsed_s, 1e-6)
        eta_s = (self.total_steps - train_state.step) * self.config.batch_size / max(images_per_s, 1e-6)
        self.record.progress(
            epoch=epoch + 1,
            epochs=self.config.epochs,
            step=train_state.step,
            steps=self.total_steps,
            images_per_s=images_per_s,
            eta_s=eta_s,
            clock_s=train_state.clock_s + elapsed_s,
        )
