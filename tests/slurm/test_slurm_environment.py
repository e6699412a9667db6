"""What SLURM says to a task, and how tasks on several nodes find rank 0 where no name can be trusted."""

from __future__ import annotations

import json
import socket
import stat
import threading
from pathlib import Path

import pytest

from runyard.errors import UserError
from runyard.training.distributed import rendezvous
from runyard.training.distributed.launcher import from_environment
from runyard.training.distributed.peer_failure import PeerFailure
from tests.support.settings import PATIENCE_S

TASK = {"SLURM_PROCID": "4", "SLURM_NTASKS": "7", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "3", "SLURM_JOB_ID": "99"}
NOBODY = Path("nobody/has-ended.jsonl")  # where what leads the ranks would say that one has


@pytest.mark.parametrize(
    ("listed", "node", "here"), [("4(x2)", 1, 4), ("2(x3),1", 2, 2), ("2(x3),1", 3, 1), ("3,4", 1, 4), ("7", 0, 7)]
)
def test_the_tasks_of_this_node_are_read_from_slurms_list(listed: str, node: int, here: int) -> None:
    rank_info = from_environment(TASK | {"SLURM_STEP_TASKS_PER_NODE": listed, "SLURM_NODEID": str(node)})
    assert (rank_info.rank, rank_info.world_size, rank_info.local_world_size) == (4, 7, here)


@pytest.mark.parametrize("lacking", [{}, {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, {"SLURM_STEP_TASKS_PER_NODE": "?"}])
def test_one_node_is_never_assumed(lacking: dict[str, str]) -> None:
    with pytest.raises(UserError, match="SLURM_STEP_TASKS_PER_NODE"):
        from_environment(TASK | lacking)


def test_a_requeued_job_and_another_step_of_it_meet_elsewhere() -> None:
    task = TASK | {"SLURM_STEP_TASKS_PER_NODE": "7", "SLURM_NODEID": "0"}
    starts = [{}, {"SLURM_RESTART_COUNT": "1"}, {"SLURM_STEP_ID": "4"}]
    assert len({from_environment(task | start).start_id for start in starts}) == 3


def test_rank_0_is_found_though_its_name_resolves_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURMD_NODENAME", "no-such-node.invalid")
    monkeypatch.setattr(socket, "gethostname", lambda: "no-such-host.invalid")
    opened = rendezvous.open_store(tmp_path / "rendezvous.json", one_node=False, timeout_s=PATIENCE_S)
    opened.set("said", "hello")
    assert rendezvous.connect_store(tmp_path / "rendezvous.json", NOBODY, timeout_s=PATIENCE_S).get("said") == b"hello"


@pytest.mark.parametrize("one_node", [True, False])  # the store of several nodes shows that the test can see one
def test_the_store_of_one_node_is_reached_on_loopback_alone(tmp_path: Path, one_node: bool) -> None:
    store = rendezvous.open_store(tmp_path / "rendezvous.json", one_node=one_node, timeout_s=10)
    assert stat.S_IMODE((tmp_path / "rendezvous.json").stat().st_mode) == 0o600
    assert rendezvous.connect_store(tmp_path / "rendezvous.json", NOBODY, timeout_s=10).get("secret") == store.get(
        "secret"
    )
    listening = {
        local.rpartition(":")[0]
        for table in ("tcp", "tcp6")
        for _, local, _, state, *_ in map(str.split, Path("/proc/net", table).read_text().splitlines()[1:])
        if local.endswith(f":{store.port:04X}") and state == "0A"
    }
    assert (listening == {"0100007F"}) is one_node, listening


def test_another_runs_store_at_the_same_address_is_passed_over(tmp_path: Path) -> None:
    other = rendezvous.open_store(tmp_path / "other.json", one_node=True, timeout_s=PATIENCE_S)
    mine = json.loads((tmp_path / "other.json").read_text()) | {"secret": "mine"}
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    with pytest.raises(PeerFailure, match=f"rank 0 is reached at none of 127.0.0.1, port {other.port}"):
        rendezvous.connect_store(tmp_path / "mine.json", NOBODY, timeout_s=0.5)


def test_gloo_takes_the_network_that_another_node_reached_rank_0_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes in one process: each has its host name and its environment in turn."""
    store = rendezvous.open_store(tmp_path / "rendezvous.json", one_node=False, timeout_s=PATIENCE_S)
    interface, address = list(rendezvous._interfaces())[-1]
    hosts, taken = ["first", "first", "second"], {}
    here = threading.local()
    monkeypatch.setattr(socket, "gethostname", lambda: here.name)

    for name in ("second", "first"):
        here.name = name
        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        rendezvous.select_interface(store, hosts, address if name == "second" else "127.0.0.1", store.port)
        taken[name] = rendezvous.os.environ.pop("GLOO_SOCKET_IFNAME")
    assert taken == {"first": interface, "second": interface}
