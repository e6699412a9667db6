"""``cluster.extra``: any option of sbatch, unless another setting gives it."""

from __future__ import annotations

import pytest

from runyard.config.compose import compose
from runyard.config.sbatch_options import OPTIONS, OWNED, given_options
from runyard.config.schema import kind_of
from runyard.errors import UserError


def test_options_are_taken_as_typed_and_null_leaves_one_out() -> None:
    words = ["cluster=slurm", "cluster.extra={reservation: 0123, exclusive: true, mem: 0, mem-per-gpu: 20G, nice: -5}"]
    extra = compose([*words, "cluster.extra.hint=null", "cluster.extra.hold=false"]).config.cluster.extra
    assert given_options(extra) == {
        "reservation": "0123", "exclusive": True, "mem": "0", "mem-per-gpu": "20G", "nice": "-5"
    }  # fmt: skip
    one = compose(["cluster=slurm", "cluster.mem_gb=9", "cluster.extra.mem=null"]).config.cluster
    assert (one.mem_gb, given_options(one.extra)) == (9, {}), "what is left out says nothing twice"
    assert compose(["cluster=slurm"]).config.cluster.extra == {}
    assert kind_of("cluster.extra.wckey") == "execution", "resume takes another"


@pytest.mark.parametrize(("words", "said"), [
    (["cluster.extra={time: 5}"], "cluster.extra.time=5: not an extra option; use cluster.timeout_min for it"),
    (["cluster.extra={account: lab}"], "use cluster.account for it"),
    (["cluster.extra={mail-user: me}"], "use cluster.mail_user for it"),
    (["cluster.extra={ntasks: 5}"], "use cluster.tasks_per_node for it"),
    (["cluster.extra={gpus-per-task: 1}"], "use cluster.gpus_per_node for it"),
    (["cluster.extra={output: /x}"], "use runs_dir for it"),
    (["cluster.extra={mem: 0}", "cluster.mem_gb=4"], "leave one out: cluster.mem_gb=null, or cluster.extra.mem=null"),
    (["cluster.extra={reservatoin: x}"], "sbatch has no option --reservatoin; did you mean reservation?"),
    (["cluster.extra={mem_per_gpu: 2G}"], "did you mean mem-per-gpu?"),
    (["cluster.extra={reservation: [a]}"], "expected text, a number, true for an option without a value"),
    (["cluster.extra={reservation: 'a\"b'}"], "expected letters, digits"),
    (["cluster.extra={reservation: 'a$(b)'}"], "expected letters, digits"),
    (["cluster.extra=5"], "cluster.extra=5: expected a mapping"),
])  # fmt: skip
def test_what_is_no_option_or_is_given_by_another_setting_is_refused_by_name(words: list[str], said: str) -> None:
    with pytest.raises(UserError) as error:
        compose(["cluster=slurm", *words])
    assert said in str(error.value)


def test_no_option_is_both_taken_and_refused() -> None:
    assert not OPTIONS & OWNED.keys()


def test_this_machine_has_no_use_for_them() -> None:
    with pytest.raises(UserError, match=r"cluster\.extra=.*only SLURM uses it"):
        compose(["cluster=local", "cluster.extra={hold: true}"])
