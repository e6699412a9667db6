"""A refusal by sbatch is read by its own code, and names the setting that is meant and its fix; some pass."""

from __future__ import annotations

import dataclasses

import pytest

from runyard.cluster.launch.refusals import JobLimitReached, SubmissionDelayed, names_no_limit, refusal
from runyard.slurm_client import error_line
from tests.support.settings import compose

SENTENCE = (
    "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
)
CLUSTER = dataclasses.replace(
    compose("cluster=slurm").cluster, account="lab", qos="short", timeout_min=10, nodes=2, partition="gpu",
    extra={"reservation": "course", "wckey": "w", "licenses": "a:1"},
)  # fmt: skip
CODES = [
    ("AssocMaxSubmitJobLimit", "cluster.account=lab:", JobLimitReached),
    ("AssocGrpSubmitJobsLimit", "cluster.account=lab:", JobLimitReached),
    ("AssocMaxJobsLimit", "cluster.account=lab:", JobLimitReached),
    ("QOSMaxSubmitJobPerUserLimit", "cluster.qos=short:", JobLimitReached),
    ("QOSMaxJobsPerUserLimit", "cluster.qos=short:", JobLimitReached),
    ("QOSGrpSubmitJobsLimit", "cluster.qos=short:", JobLimitReached),
    ("MaxSubmitJobsPerAccount", "cluster.qos=short:", JobLimitReached),
    ("QOSMaxWallDurationPerJobLimit", "cluster.timeout_min=10 cluster.qos=short:", None),
    ("AssocMaxWallDurationPerJobLimit", "cluster.timeout_min=10 ", None),
    ("AssocGrpCPUMinutesLimit", "cluster.account=lab ", None),
    ("QOSMaxCpuMinutesPerJobLimit", "cluster.timeout_min=10 ", None),
    ("AssocMaxNodePerJobLimit", "cluster.nodes=2 ", None),
    ("MaxNodePerAccount", "cluster.nodes=2 ", None),
    ("QOSMaxGRESPerUser", "cluster.gpus_per_node=0 ", None),
    ("AssocMaxCpuPerNode", "cluster.nodes=2 ", None),
    ("QOSMaxMemoryPerJob", "cluster.nodes=2 ", None),
    ("QOSMinGRES", "cluster.qos=short ", None),
    ("InvalidAccount", "cluster.account=lab ", None),
    ("InvalidQOS", "cluster.qos=short ", None),
    ("QOSNotAllowed", "cluster.qos=short ", None),
    ("PartitionTimeLimit", "cluster.timeout_min=10 ", None),
    ("PartitionNodeLimit", "cluster.nodes=2 ", None),
]
SENTENCES = [
    ("Invalid wckey specification", "cluster.extra.wckey=w:", None),
    ("Requested reservation is invalid", "cluster.extra.reservation=course:", None),
    ("Access denied to requested reservation", "cluster.extra.reservation=course:", None),
    ("Job can not start due to maintenance reservation.", "cluster.timeout_min=10:", None),
    ("Invalid license specification", "cluster.extra.licenses=a:1:", None),
    ("Requested time limit is invalid (missing or exceeds some limit)", "cluster.timeout_min=10 ", None),
    ("Invalid account or account/partition combination specified", "cluster.account=lab ", None),
    ("No partition specified or system default partition", "cluster.partition=gpu:", None),
    ("User's group not permitted to use this partition", "cluster.partition=gpu:", None),
    ("Requested account has breached requested QOS usage threshold", "cluster.qos=short ", None),
    ("Node count specification invalid", "cluster.nodes=2 ", None),
    ("More processors requested than permitted", "cluster.nodes=2 ", None),
    ("Job dependency problem", "sbatch refuses the job", None),
    ("Unable to create job record, try again", "sbatch refuses the job", SubmissionDelayed),
    ("System submissions disabled", "sbatch refuses the job", SubmissionDelayed),
    ("unrecognized option '--licenses=a:1'", "cluster.extra.licenses=a:1:", None),
]


@pytest.mark.parametrize(("code", "named", "error"), CODES, ids=[row[0] for row in CODES])
def test_the_code_decides_and_not_the_sentence_that_names_several_causes(
    code: str, named: str, error: type | None
) -> None:
    said = refusal(CLUSTER, error_line(f"sbatch: error: {code}\nsbatch: error: {SENTENCE}"))
    assert str(said).startswith(named)
    assert isinstance(said, error) if error else not isinstance(said, SubmissionDelayed)


@pytest.mark.parametrize(("sentence", "named", "error"), SENTENCES, ids=[row[0] for row in SENTENCES])
def test_a_sentence_names_its_setting(sentence: str, named: str, error: type | None) -> None:
    said = refusal(CLUSTER, error_line(f"sbatch: error: Batch job submission failed: {sentence}"))
    assert str(said).startswith(named)
    assert type(said) is (error or type(said))
    assert isinstance(said, SubmissionDelayed) == (error is not None)


def test_where_sbatch_names_no_limit_none_is_blamed() -> None:
    said = refusal(CLUSTER, SENTENCE)
    assert "timeout_min" not in str(said)
    assert names_no_limit(SENTENCE)
    assert not names_no_limit(f"AssocMaxSubmitJobLimit, {SENTENCE}"), "the control"
