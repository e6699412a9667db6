"""A hyperparameter search: asks Optuna for settings, runs each trial, and reports its metrics back.

All state is on disk, so the command can end at any time. Jobs on SLURM continue without it, and the next command
resumes the search from what it finds.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from runyard.cluster.launch import submit as launcher
from runyard.cluster.launch.checks.preflight import preflight
from runyard.cluster.launch.refusals import SubmissionDelayed
from runyard.cluster.launch.waiting import Waiting, in_parts
from runyard.cluster.monitor.attach import JobHandle
from runyard.cluster.monitor.cancel import CancelResult, cancel
from runyard.cluster.monitor.run_status import RunStatus, derive_status, query_slurm, run_status
from runyard.cluster.search.space import format_point
from runyard.cluster.search.study import Study, runs_by_trial
from runyard.cluster.slurm import queue
from runyard.cluster.slurm.submission import submission_lock
from runyard.config.compose import compose
from runyard.data import manifest
from runyard.errors import UserError
from runyard.runs.run import Run
from runyard.runs.summary import RunSummary

SEARCH_POLL_S = 2.0
CONFIRM_POLLS = 3  # of an end that the run did not record: a requeued job leaves the queue for a moment
REFUSED_TRIALS_FILE = "refused.jsonl"  # in the search's folder, for `runyard compare`, which knows no Optuna
SAVE_TIMEOUT_S = 120.0  # for a pruned trial to save before it is ended by force


class Search:
    """Drives ``study`` with at most ``parallel`` runs at once, all of them in ``folder``'s runs directory.

    Args:
        study: The search's trials.
        folder: The search's own folder, beside those of other sweeps.
        parallel: How many runs may be active at once.
        local: Whether runs are started on this machine and not on SLURM's queue.
        report: Called with a line for each event.
    """

    def __init__(self, study: Study, folder: Path, parallel: int, local: bool, report: Callable[[str], None]) -> None:
        self._study, self._folder, self._parallel, self._local, self._report = study, folder, parallel, local, report
        self._runs = runs_by_trial(study.id, folder.parents[1])
        self._jobs: list[JobHandle] = []  # local jobs, kept because a forgotten one leaves a zombie process
        self._stopping: dict[int, Future[CancelResult]] = {}
        self._ended_polls: dict[int, int] = {}
        self._unsubmitted: list[Run] = []  # refused for a reason that passes
        self._leaving: set[str] = set()  # jobs of finished trials, which SLURM counts until they have left the queue
        self._waiting = Waiting(report)
        self._threads = ThreadPoolExecutor(max_workers=max(1, parallel))

    def run(self, trials: int) -> None:
        """Run until there are ``trials`` trials and all of them have a result.

        Raises:
            UserError: a run cannot be created or started. Active runs continue; the same command resumes the search.
        """
        self._resume_open_trials()
        while True:
            self._poll_trials()
            open_count = len(self._study.open_trials)
            self._leaving = self._still_queued(self._leaving)
            unasked = trials - len(self._study.trials)
            free_slots = min(self._parallel - open_count - len(self._leaving), unasked)
            if free_slots > 0:
                self._start_trials([self._study.ask() for _ in range(free_slots)])
            elif not open_count and unasked <= 0:
                return
            elif self._unsubmitted and self._waiting.is_due:
                self._submit()
            time.sleep(SEARCH_POLL_S)

    def detach(self) -> None:
        """Leave the search on Ctrl-C: local runs save and stop, SLURM's jobs continue."""
        if self._local:
            for _, status in self._run_statuses():
                if status.active:
                    self._stop(status)
        for future in self._stopping.values():
            future.exception()
        self._threads.shutdown()

    def _resume_open_trials(self) -> None:
        """Restart the unfinished trials of an earlier command that no job continues."""
        unfinished: list[FrozenTrial] = []
        for trial in self._study.open_trials:
            path = self._runs.get(trial.number)
            status = None if path is None else run_status(RunSummary(path))
            if status is None or not (
                status.active or status.state in ("finished", "failed", "unknown") or _is_marked_pruned(trial)
            ):
                unfinished.append(trial)
        if unfinished:
            self._start_trials(unfinished)

    def _start_trials(self, trials: list[FrozenTrial]) -> None:
        """Create a run for each trial that has none, and start them all; on SLURM as one job array."""
        runs = [run for trial in trials if (run := self._run_of(trial)) is not None]
        if self._local:
            self._jobs += [launcher.launch(run) for run in runs]
            self._report_start(runs)
        else:
            self._unsubmitted += runs
            self._submit()

    def _submit(self) -> None:
        """Put what is not submitted yet on SLURM's queue, in as large parts as it takes now."""
        submitted: list[Run] = []
        try:
            for run in in_parts(slice(0, len(self._unsubmitted)), lambda part: self._enqueue(self._unsubmitted[part])):
                submitted.append(run)
        except SubmissionDelayed as error:
            self._waiting.refused(error)
        else:
            self._waiting.accepted()
        self._unsubmitted = self._unsubmitted[len(submitted) :]
        self._report_start(submitted)

    def _enqueue(self, runs: list[Run]) -> list[Run]:
        name = f"{self._study.id}-t{runs[0].record['trial']}"
        while (self._folder / name).exists():  # the same trials were started before
            name += "x"
        (self._folder / name).mkdir()
        with contextlib.ExitStack() as stack:
            locks = [stack.enter_context(submission_lock(run.path, run.cli_reference)) for run in runs]
            try:
                launcher.enqueue(runs, name, self._folder / name, hold=locks)
            except SubmissionDelayed:
                shutil.rmtree(self._folder / name, ignore_errors=True)
                raise
        return runs

    def _report_start(self, runs: list[Run]) -> None:
        for run in runs:
            number = run.record["trial"]
            self._report(f"trial {number}: {format_point(self._study.trials[number].params)}, run {run.id}")

    def _still_queued(self, jobs: set[str]) -> set[str]:
        return {number for number, job in queue.squeue(jobs).jobs.items() if number in jobs and job.active}

    def _run_of(self, trial: FrozenTrial) -> Run | None:
        """Return the trial's existing or new run; None if its settings are refused, which fails the trial."""
        if (path := self._runs.get(trial.number)) is not None:
            return Run.open(path)
        try:
            point = compose(self._study.overrides(trial))
            context = launcher.check_context([point.config], manifest.prepare_command(point.overrides))
            preflight(context, include_slurm=False)
        except UserError as error:
            self._study.tell(trial, TrialState.FAIL, reason=str(error))
            with open(self._folder / REFUSED_TRIALS_FILE, "a") as refused:  # it has no run that could record it
                refused.write(json.dumps({"trial": trial.number, "why": str(error)}) + "\n")
            self._report(f"trial {trial.number}: refused: {error}")
            return None
        run = Run.create(point.config, launcher.persistent_overrides(point), self._study.id, trial.number)
        self._runs[trial.number] = run.path
        return run

    def _run_statuses(self) -> list[tuple[FrozenTrial, RunStatus]]:
        waiting = {run.record["trial"] for run in self._unsubmitted}
        trials = [t for t in self._study.open_trials if t.number in self._runs and t.number not in waiting]
        runs = [RunSummary(self._runs[trial.number]) for trial in trials]
        answers = query_slurm(runs)
        return [(t, derive_status(run, *answers, time.time())) for t, run in zip(trials, runs, strict=True)]

    def _poll_trials(self) -> None:
        for trial, status in self._run_statuses():
            should_prune = self._study.report_epochs(trial, status.run)
            if status.active:
                self._ended_polls.pop(trial.number, None)
                if (should_prune or _is_marked_pruned(trial)) and not self._is_stopping(trial.number):
                    self._study.mark_pruned(trial)
                    self._stop(status)
            elif status.state != "unknown" and not self._is_stopping(trial.number):
                self._finish_trial(trial, status)

    def _is_stopping(self, number: int) -> bool:
        future = self._stopping.get(number)
        return future is not None and not future.done()

    def _stop(self, status: RunStatus) -> None:
        quiet = Console(quiet=True)
        self._stopping[status.run.record["trial"]] = self._threads.submit(cancel, status.run, SAVE_TIMEOUT_S, quiet)

    def _finish_trial(self, trial: FrozenTrial, status: RunStatus) -> None:
        self._leaving.update(status.run.slurm_jobs)
        scores = self._study.scores(status.run)
        ended_polls = self._ended_polls[trial.number] = self._ended_polls.get(trial.number, 0) + 1
        if status.state == "finished" and scores:
            epoch, value = scores[-1]
            best = self._study.best
            self._study.tell(trial, TrialState.COMPLETE, value)
            is_best = best is None or value > (best.value or 0.0)
            self._report(f"trial {trial.number}: {100 * value:.2f} %{', the best so far' if is_best else ''}")
        elif _is_marked_pruned(trial):
            epoch, value = scores[-1] if scores else (0, float("nan"))
            Run.open(status.run.path).mark_pruned()
            self._study.tell(trial, TrialState.PRUNED)
            self._report(f"trial {trial.number}: {100 * value:.2f} % after epoch {epoch}, below the median: stopped")
        elif status.state in ("finished", "failed") or ended_polls >= CONFIRM_POLLS:
            reason = "it recorded no accuracy" if status.state == "finished" else status.message
            self._study.tell(trial, TrialState.FAIL, reason=reason)
            self._report(f"trial {trial.number}: {reason}")


def _is_marked_pruned(trial: FrozenTrial) -> bool:
    return bool(trial.user_attrs.get("condemned"))
