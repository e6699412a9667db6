"""Optuna's study of one search, and the run of each of its trials. It knows nothing of jobs.

The study is an SQLite file beside the search's logs. A run's record says which trial it is, from its creation on, so
that the next command finds all runs whenever the last one ended.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy
import optuna
from optuna.trial import FrozenTrial, TrialState

from runyard.cluster.search.space import Space, override
from runyard.errors import UserError
from runyard.file_lock import exclusive_lock
from runyard.files import read_regular, write_atomic
from runyard.ownership import private_folder
from runyard.runs.lease import Lease
from runyard.runs.record import read_record
from runyard.runs.store import run_dirs
from runyard.runs.summary import RunSummary

OBJECTIVES = ("val_top1", "test_top1")
STARTUP_TRIALS = 5  # before any trial is compared with the others
SEARCH_FILE = "search.json"


@dataclass(frozen=True)
class SearchSettings:
    """The settings that a search was created with, and keeps.

    Attributes:
        overrides: The overrides that are the same in every trial, runs_dir included.
        space: The overrides that are searched, as written.
        seed: The sampler's seed.
        sampler: tpe or random.
        prune: Whether trials that do worse than the median of the others are stopped.
        measure: val_top1, test_top1, or auto: val_top1 if the run has it, else test_top1.
    """

    overrides: list[str]
    space: list[str]
    seed: int
    sampler: str
    prune: bool
    measure: str

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / SEARCH_FILE, json.dumps(vars(self), indent=1))

    @classmethod
    def load(cls, folder: Path) -> SearchSettings | None:
        """Read the settings in ``folder``; None if no search was created there.

        Raises:
            UserError: the file is damaged.
        """
        try:
            return cls(**json.loads(read_regular(folder / SEARCH_FILE)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{folder / SEARCH_FILE}: damaged ({error})", "restore it, or give another --name"
            ) from None


class Study:
    """The trials of one search.

    Args:
        folder: The search's own folder, whose name is its id.
        settings: The search's settings.
        space: The distributions that are searched, by setting name.
        epochs: The length of each run, in epochs. No trial is pruned in the first fifth of them.
        locks: Whether SQLite locks the database. Without, only ``search_lock`` keeps two processes apart.

    Attributes:
        id: The search's id, which its runs have as their sweep.

    Raises:
        UserError: the database cannot be read.
    """

    def __init__(
        self, folder: Path, settings: SearchSettings, space: Space, epochs: int, *, locks: bool = True
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.id, self._settings, self._space = folder.name, settings, space
        pruner = optuna.pruners.MedianPruner(STARTUP_TRIALS, n_warmup_steps=max(1, epochs // 5))
        try:
            self._study = optuna.create_study(
                storage=_storage(folder / "study.db", locks),
                study_name=self.id,
                direction="maximize",
                load_if_exists=True,
                pruner=pruner if settings.prune else optuna.pruners.NopPruner(),
            )
        except Exception as error:  # the database's, whatever its kind
            problem = f"{folder / 'study.db'}: cannot be read ({str(error).splitlines()[0]})"
            raise UserError(problem, "restore it, or give another --name") from None

    @property
    def trials(self) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False)

    @property
    def open_trials(self) -> list[FrozenTrial]:
        """The trials that were started and have no result yet."""
        return [trial for trial in self.trials if not trial.state.is_finished()]

    @property
    def best(self) -> FrozenTrial | None:
        done = [trial for trial in self.trials if trial.state is TrialState.COMPLETE]
        return max(done, key=lambda trial: trial.value or 0.0, default=None)

    def ask(self) -> FrozenTrial:
        """Return a new trial. Its settings depend on the seed, its number and the results so far."""
        seed = int(numpy.random.SeedSequence([self._settings.seed, len(self.trials)]).generate_state(1)[0])
        random = self._settings.sampler == "random"
        self._study.sampler = (
            optuna.samplers.RandomSampler(seed=seed)
            if random
            else optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        )
        number = self._study.ask(self._space).number
        return self.trials[number]

    def overrides(self, trial: FrozenTrial) -> list[str]:
        return [*self._settings.overrides, *self.sampled_overrides(trial)]

    @staticmethod
    def sampled_overrides(trial: FrozenTrial) -> list[str]:
        """Return the trial's own settings as overrides."""
        return [override(name, value) for name, value in trial.params.items()]

    def report_epochs(self, trial: FrozenTrial, run: RunSummary) -> bool:
        """Report the epochs that the study does not have yet. Returns whether the trial should be pruned."""
        reported = self.trials[trial.number].intermediate_values
        live_trial = optuna.trial.Trial(self._study, trial._trial_id)
        new = [(epoch, value) for epoch, value in self.scores(run) if epoch not in reported]
        for epoch, value in new:
            live_trial.report(value, epoch)
        return bool(new) and live_trial.should_prune()

    def scores(self, run: RunSummary) -> list[tuple[int, float]]:
        """Return the search's objective as ``[(epoch, top-1)]``, top-1 as a fraction."""
        measure = self._settings.measure
        names = OBJECTIVES if measure == "auto" else (measure,)
        measured = [(epoch.epoch, [epoch.number(name) for name in names]) for epoch in run.epochs]
        first = [(epoch, next((value for value in values if value is not None), None)) for epoch, values in measured]
        return [(epoch, value) for epoch, value in first if value is not None]

    def mark_pruned(self, trial: FrozenTrial) -> None:
        """Mark the trial as pruned before its run is stopped, so that a later command knows why it stopped."""
        optuna.trial.Trial(self._study, trial._trial_id).set_user_attr("condemned", True)

    def tell(self, trial: FrozenTrial, state: TrialState, value: float | None = None, reason: str = "") -> None:
        """Record the trial's final result.

        Args:
            trial: The trial.
            state: COMPLETE, PRUNED or FAIL.
            value: The last epoch's top-1 as a fraction, if the trial is complete.
            reason: Why it failed.
        """
        if reason:
            optuna.trial.Trial(self._study, trial._trial_id).set_user_attr("why", reason)
        self._study.tell(trial.number, value, state=state)


def _storage(database: Path, locks: bool) -> optuna.storages.RDBStorage:
    """Return the storage in this SQLite file; without ``locks`` SQLite uses none, and would else refuse the disk."""
    if locks:
        return optuna.storages.RDBStorage(f"sqlite:///{database}")
    uri = f"file:{quote(str(database))}?vfs=unix-none"
    connect = partial(sqlite3.connect, uri, uri=True, check_same_thread=False)
    return optuna.storages.RDBStorage(f"sqlite:///{database}", engine_kwargs={"creator": connect})


def runs_by_trial(search: str, runs_dir: Path) -> dict[int, Path]:
    """Return the directory of each trial's run, by trial number."""
    paths: dict[int, Path] = {}
    for directory in run_dirs(runs_dir):
        try:
            record = read_record(directory)
        except UserError:  # damaged, and perhaps not of this search
            continue
        if record["sweep"] == search and "trial" in record:
            paths[record["trial"]] = directory
    return paths


@contextlib.contextmanager
def search_lock(folder: Path) -> Iterator[bool]:
    """Keep any other command from driving the search in ``folder`` meanwhile: by a lock, or without one by a lease.

    Yields whether the disk has locks.

    Raises:
        UserError: another command drives it, or the folder cannot be written.
    """
    with contextlib.ExitStack() as held_open:
        try:
            folder.parents[1].mkdir(parents=True, exist_ok=True)
            private_folder(folder.parent)
            folder.mkdir(exist_ok=True)
            locks = held_open.enter_context(exclusive_lock(folder / ".lock", wait_s=0)) is not None
            if not locks:
                held_open.callback(Lease(folder, f"sweep {folder.name}").release)
        except TimeoutError:
            raise UserError(
                f"sweep {folder.name}: another command drives it", "wait for it, or stop that one"
            ) from None
        except OSError as error:
            raise UserError(
                f"runs_dir={folder.parent.parent}: cannot be written ({error.strerror})",
                "set runs_dir to a folder you can write",
            ) from None
        yield locks
