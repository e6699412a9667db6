"""SLURM's answers become jobs, and its codes words that say what to do. Golden files hold what 22.05 really printed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runyard.cluster.slurm import job_states, queue
from runyard.cluster.slurm.queue import JobInfo
from tests.support.fake_slurm import FakeSlurm

GOLDEN = Path(__file__).parents[1] / "golden"
WAITING = queue.parse_squeue((GOLDEN / "squeue-22.05.txt").read_text())
ENDED = queue.parse_sacct((GOLDEN / "sacct-22.05.txt").read_text())


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    fake = FakeSlurm(tmp_path / "slurm")
    for name in ("squeue", "sacct"):
        says = f'cat "$here/{name}.txt" 2>/dev/null; cat "$here/{name}.err" >&2 2>/dev/null && exit 1; exit 0'
        fake.program(name, says)
    monkeypatch.setenv("PATH", fake.path)
    return fake


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0:05", 5), ("1:42", 102), ("3:04:05", 11045), ("1-02:03:04", 93784), ("365-00:00:00", 31536000),
     ("UNLIMITED", None), ("INVALID", None), ("NOT_SET", None), ("", None)],
)  # fmt: skip
def test_durations_are_read(text: str, seconds: int | None) -> None:
    assert queue.duration_s(text) == seconds


@pytest.mark.parametrize(
    ("text", "names"),
    [("node1", ["node1"]), ("node[1-3]", ["node1", "node2", "node3"]), ("gpu[08-10,12],login", ["gpu08", "gpu09",
      "gpu10", "gpu12", "login"]), ("r[1-2]n[3,5]", ["r1n3", "r1n5", "r2n3", "r2n5"]), ("", []), ("None assigned", []),
     ("odd[x]", ["odd[x]"])],
)  # fmt: skip
def test_lists_of_nodes_are_spelt_out(text: str, names: list[str]) -> None:
    assert list(queue.expand_hostlist(text)) == names


def test_moments_are_local_time() -> None:
    assert time.localtime(queue.parse_time("2026-11-23T23:26:45"))[:6] == (2026, 11, 23, 23, 26, 45)
    assert [queue.parse_time(text) for text in ("N/A", "Unknown", "None", "")] == [None] * 4


def test_squeues_lines_become_jobs() -> None:
    start = queue.parse_time("2026-11-23T23:26:45")
    assert WAITING["8"] == JobInfo("8", "high", "RUNNING", "", 5, 55, start, ("node1", "node2", "node3"))
    assert WAITING["14_2"] == JobInfo("14_2", "arr", "PENDING", "JobArrayTaskLimit", 0, None, None, ())
    assert len(WAITING) == 16


def test_a_name_that_holds_a_bar_does_not_shift_the_fields() -> None:
    assert (WAITING["10"].name, WAITING["10"].left_s, ENDED["10"].name) == ("timeout|bar", 60, "timeout|bar")


def test_what_waits_runs_and_is_over_is_told_apart() -> None:
    assert {job.id for job in WAITING.values() if job.running} == {"8", "14_1"}
    assert {job.id for job in WAITING.values() if not job.active} == {"15", "2", "1", "3", "13"}


def test_lines_that_are_no_jobs_are_passed_over() -> None:
    odd = "slurm: welcome\n14_[2-3%1]|PENDING|None|0:00|1:00|N/A||arr\n\n7|RUNNING\n"
    assert queue.parse_squeue(odd) == queue.parse_sacct(odd) == {}


def test_a_requeued_job_is_what_its_newest_attempt_is_and_knows_the_earlier() -> None:
    attempts = {number: (*ENDED[number].earlier_states, ENDED[number].state) for number in ("6", "9", "11", "21")}
    assert attempts == {"6": ("REQUEUED", "COMPLETED"), "9": ("NODE_FAIL", "COMPLETED"), "11": ("FAILED",),
                        "21": ("PREEMPTED", "PENDING")}  # fmt: skip
    assert job_states.previous_end_reason(ENDED["21"]) == "preempted"


def test_who_cancelled_a_job_is_no_part_of_its_state() -> None:
    assert ENDED["15"].state == ENDED["13"].state == "CANCELLED"


def test_a_step_out_of_memory_explains_why_its_job_failed() -> None:
    killed = "5|FAILED|1:0|9|Unknown|n1|a\n5.batch|FAILED|1:0|9|Unknown|n1|b\n5.0|OUT_OF_MEMORY|0:125|9|Unknown|n1|p\n"
    assert queue.parse_sacct(killed)["5"].state == "OUT_OF_MEMORY"
    assert "cluster.mem_gb" in job_states.end_reason(queue.parse_sacct(killed)["5"])
    went_on = killed + "5|COMPLETED|0:0|9|Unknown|n1|a\n"
    assert queue.parse_sacct(went_on)["5"].state == "COMPLETED"
    assert queue.parse_sacct(killed.replace("5|FAILED", "5|COMPLETED"))["5"].state == "COMPLETED"


@pytest.mark.parametrize(
    ("reason", "code", "said"),
    [
        ("Priority", "Priority", "jobs with higher priority come first"),
        ("", "None", "SLURM has not looked at it yet"),
        ("DependencyNeverSatisfied", "DependencyNeverSatisfied", "never starts"),
        ("ReqNodeNotAvail, UnavailableNodes:gpu[01-02]", "ReqNodeNotAvail", "down, drained or reserved"),
        ("ReqNodeNotAvail, May be reserved for other job", "ReqNodeNotAvail", "maintenance"),
        ("launch failed requeued held", "launch failed requeued held", "`scontrol release 7`"),
        ("JobHeldUser", "JobHeldUser", "`scontrol release 7`"),
        ("PartitionTimeLimit", "PartitionTimeLimit", "smaller cluster.timeout_min"),
        ("QOSMaxJobsPerUserLimit", "QOSMaxJobsPerUserLimit", "you have as many jobs in use as this QOS allows"),
        ("QOSMaxGRESPerUser", "QOSMaxGRESPerUser", "you have as many GPUs in use"),
        ("QOSMaxCpuPerJobLimit", "QOSMaxCpuPerJobLimit", "more CPUs than this QOS allows one job"),
        ("QOSMaxWallDurationPerJobLimit", "QOSMaxWallDurationPerJobLimit", "smaller cluster.timeout_min"),
        ("QOSMinGRES", "QOSMinGRES", "less than this QOS wants"),
        ("QOSGrpNodeLimit", "QOSGrpNodeLimit", "this QOS has as many nodes in use as it allows"),
        ("AssocGrpCPUMinutesLimit", "AssocGrpCPUMinutesLimit", "your account has used up its time on CPUs"),
        ("AssocGrpGRES", "AssocGrpGRES", "your account has as many GPUs in use"),
        ("AssocMaxJobsLimit", "AssocMaxJobsLimit", "your account has as many jobs"),
        ("MaxNodePerAccount", "MaxNodePerAccount", "your account or QOS has as many nodes"),
        ("SomethingOfTomorrow", "SomethingOfTomorrow", "see `man squeue`"),
    ],
)
def test_a_reason_is_said_in_words_with_what_to_do(reason: str, code: str, said: str) -> None:
    found, words = job_states.pending_reason(JobInfo("7", "a", "PENDING", reason))
    assert found == code
    assert said in words


def test_every_reason_that_was_really_seen_has_words() -> None:
    unknown = [
        job.reason for job in WAITING.values() if job.pending and "man squeue" in job_states.pending_reason(job)[1]
    ]
    assert unknown == []


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "0 s"), (59.4, "59 s"), (61, "1 min"), (3660, "1 h 01 min"), (90000, "1 d 1 h"), (-3, "0 s")],
)
def test_spans_are_said_in_words(seconds: float, said: str) -> None:
    assert job_states.format_span(seconds) == said


def test_one_call_asks_for_all_and_an_array_only_once(slurm: FakeSlurm) -> None:
    slurm.says("squeue.txt", (GOLDEN / "squeue-22.05.txt").read_text())
    assert queue.squeue(["14_1", "14_2", "8"]).jobs.keys() == WAITING.keys()
    (call,) = slurm.calls()
    assert "--jobs=8,14 " in call


def test_accounting_is_asked_for_all_attempts(slurm: FakeSlurm) -> None:
    slurm.says("sacct.txt", (GOLDEN / "sacct-22.05.txt").read_text())
    assert queue.sacct(["6", "21"]).jobs["21"].earlier_states == ("PREEMPTED",)
    (call,) = slurm.calls()
    assert "--duplicates" in call


def test_nobody_is_asked_about_no_job(slurm: FakeSlurm) -> None:
    assert queue.squeue([]) == queue.sacct([]) == queue.JobAnswer({})
    assert slurm.calls() == []


def test_a_job_that_slurm_forgot_is_no_problem_and_a_controller_that_is_down_is(slurm: FakeSlurm) -> None:
    slurm.says("squeue.err", "slurm_load_jobs error: Invalid job id specified\n")
    assert queue.squeue(["7"]) == queue.JobAnswer({})
    slurm.says("squeue.err", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)\n")
    assert queue.squeue(["7"]).error == "squeue: Unable to contact slurm controller (connect failure)"


def test_no_accounting_is_said_in_one_line(slurm: FakeSlurm) -> None:
    slurm.says("sacct.err", "Slurm accounting storage is disabled\n")
    assert queue.sacct(["7"]) == queue.JobAnswer({}, "sacct: Slurm accounting storage is disabled")


def test_a_machine_without_slurm_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert queue.squeue(["7"]).error == "no squeue on this machine: ask on the cluster's login node"


def test_the_users_own_settings_of_squeue_change_nothing(slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQUEUE_USERS would hide jobs, and SLURM_TIME_FORMAT=relative make times unreadable."""
    for name, value in (("SQUEUE_USERS", "nobody"), ("SACCT_FORMAT", "x"), ("SLURM_TIME_FORMAT", "relative")):
        monkeypatch.setenv(name, value)
    slurm.program("squeue", 'env > "$here/seen"')
    queue.squeue(["7"])
    seen = slurm.env("seen")
    assert not [name for name in seen if name.startswith(("SQUEUE_", "SACCT_", "SLURM_TIME_FORMAT"))]


def job_that_runs(command: str, number: str = "7", workdir: str = "/") -> queue.JobInfo:
    line = f"{number}|PENDING|None|0:00|1:00|N/A||any name"
    return queue.parse_squeue(queue.SEPARATOR.join([line, workdir, command]))[number]


def test_of_which_run_a_job_is_slurm_says_by_what_it_runs(tmp_path: Path) -> None:
    sweep = tmp_path / ".sweeps" / "s 1"
    sweep.mkdir(parents=True)
    (sweep / "runs.txt").write_text("/runs/a\n/runs/b\n/runs/c\t/runs/d\n")
    (tmp_path / "points.txt").write_text("runs/c\nruns/d\n")
    for command, number, runs in (
        ("/my runs/|a/slurm/submission_0af1.sh", "7", "/my runs/|a"),
        ("/runs/a/slurm/.submission_file_0af1.sh", "7", "/runs/a"),  # of the version before
        (f"{sweep}/submission_0af1.sh", "7_1", "/runs/b"),
        (f"{sweep}/submission_0af1.sh", "7", "/runs/a"),
        (f"{sweep}/submission_0af1.sh", "7_2", "/runs/c /runs/d"),
        (f"{sweep}/submission_0af1.sh", "7_3", ""),
        ("/checkout/slurm/train.sbatch runs/e f", "7", f"{tmp_path}/runs/e f"),
        ("/checkout/slurm/train_torchrun.sbatch /runs/a", "7", "/runs/a"),
        ("/checkout/slurm/sweep.sbatch points.txt", "7_1", f"{tmp_path}/runs/d"),
        ("/runs/a/slurm/other.sh", "7", ""),
        ("(null)", "7", ""),
    ):
        assert " ".join(map(str, job_that_runs(command, number, str(tmp_path)).runs)) == runs, command


def test_a_run_is_the_same_by_every_path_and_a_copy_of_it_is_another(tmp_path: Path) -> None:
    for name in ("run", "copy"):
        (tmp_path / name / "slurm").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path)
    job = job_that_runs(f"{tmp_path}/run/slurm/submission_0.sh")
    answer = queue.JobAnswer({job.id: job})
    assert answer.jobs_of(tmp_path / "link" / "run") == [job]
    assert answer.jobs_of(tmp_path / "copy") == answer.jobs_of(tmp_path / "gone") == []
