"""A node that is at fault costs one restart, or two, and the run finishes on others; on a real SLURM."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runyard.runs.run import Run
from tests.support.slurm_runs import RARE, Runs, at_once, job, rows, said, until, until_finished

pytestmark = pytest.mark.slow

# Python itself: nothing of it on one node, none for the tasks on another.
WITHOUT_PYTHON = """#!/bin/sh
case "$(hostname) $*" in "node8 "* | "node9 "*runyard.cluster.job.task*) exit 127 ;; esac
exec {python} "$@"
"""
# A task that raises in its training, on one node or at one step; the others are what they are.
FAULTY = """#!/bin/sh
case "$(hostname) $*" in {node}" "*runyard.cluster.job.task*) shift 2; exec {python} {faulty} "$@" ;; esac
exec {python} "$@"
"""
RAISES = """
import runpy, sys
from runyard.training.train_state import TrainState
learn = TrainState.train_step
def train_step(self, batches):
    if self.step == {step}:
        raise {error}
    learn(self, batches)
TrainState.train_step = train_step
sys.argv = sys.argv[sys.argv.index("submitit.core._submit"):]
runpy.run_module("submitit.core._submit", run_name="__main__", alter_sys=True)
"""
ECC = '''RuntimeError("""CUDA error: uncorrectable ECC error encountered
CUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.
Exception raised from c10_cuda_check_implementation at /pytorch/c10/cuda/CUDAException.cpp:43 (most recent call first):
frame #0: c10::Error::Error(c10::SourceLocation, std::string) + 0x96 (0x7f in /opt/libc10.so)""")'''


def program(runs: Runs, name: str, text: str) -> Path:
    path = runs.folder.with_name(name)
    path.write_text(text)
    path.chmod(0o755)
    return path


def faulty(runs: Runs, name: str, node: str, step: int, error: str) -> Path:
    raises = program(runs, f"{name}.py", RAISES.format(step=step, error=error))
    return program(runs, name, FAULTY.format(node=node, python=sys.executable, faulty=raises))


def without_python(runs: Runs) -> Run:
    python = program(runs, "without_python", WITHOUT_PYTHON.format(python=sys.executable))
    run = runs.submit(*RARE, "cluster.nodes=1", "cluster.exclude='node[1-7]'", f"cluster.python={python}")
    until_finished(run)
    return run


def broken_gpu(runs: Runs) -> Run:
    python = faulty(runs, "broken_gpu", "node6", 0, ECC)
    run = runs.submit(*RARE, "cluster.exclude='node[1-4,8-10]'", f"cluster.python={python}")
    until_finished(run)
    return run


def broken_code(runs: Runs) -> Run:
    python = faulty(runs, "broken_code", "node*", 5, "ZeroDivisionError('division by zero')")
    run = runs.submit("cluster.nodes=1", "cluster.exclude='node[1-2,4-10]'", f"cluster.python={python}")
    until(lambda: any(row.get("given_up") for row in rows(run, "stop")), run)
    until(lambda: job(run) not in runs.queue(), run)
    return run


@pytest.fixture(scope="module")
def told(runs: Runs) -> Iterator[Callable[[Callable[[Runs], Any]], Any]]:
    with at_once(runs, without_python, broken_gpu, broken_code) as told:
        yield told


def test_where_python_fails_the_shell_alone_goes_on_elsewhere_and_the_journal_says_so(told: Any) -> None:
    run = told(without_python)
    left_out = [(row["node"], row["why"]) for row in rows(run, "exclude")]
    assert left_out[0] == ("node8", "Python itself failed there"), said(run)
    assert left_out[1] == ("node9", "exit code 127"), said(run)
    assert [start["nodelist"] for start in rows(run, "start")] == ["node10"]
    (requeue,) = rows(run, "requeue")
    assert requeue["failure"] == {
        "message": "exit code 127", "rank": 0, "node": "node9", "step": 0, "exception": "exit code 127",
        "cause": "no Python", "before_first_step": True,
    }  # fmt: skip


def test_a_broken_gpu_costs_one_restart_and_the_verdict_names_node_rank_and_step(told: Any, runs: Runs) -> None:
    run = told(broken_gpu)
    failed, _ = rows(run, "stop")
    assert failed["message"] == "rank 1: CUDA error: uncorrectable ECC error encountered"
    known = {"rank": 1, "node": "node6", "step": 0, "exception": "RuntimeError", "cause": "GPU fault"}
    assert known.items() <= failed.items()
    assert [row["node"] for row in rows(run, "exclude")] == ["node6"]
    assert [runs.nodes(start) for start in rows(run, "start")] == [["node5", "node6"], ["node5", "node7"]]
    shown = runs.sandbox.run("scontrol", "show", "job", job(run))
    assert "ExcNodeList=node[1-4,8-10],node6" in shown, "the person's own wish stands"


def test_the_same_exception_at_the_same_step_twice_is_the_end(told: Any) -> None:
    run = told(broken_code)
    stop = rows(run, "stop")[-1]
    assert (len(rows(run, "start")), len(rows(run, "requeue"))) == (2, 1), said(run)
    assert stop["message"].startswith("given up: the same failure at step 5 twice, on node3: division by zero")
    assert (stop["exception"], stop["step"], stop["node"]) == ("ZeroDivisionError", 5, "node3")
