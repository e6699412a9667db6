"""slurm.conf and gres.conf of a temporary SLURM on one machine."""

from __future__ import annotations

from pathlib import Path

from runyard.files import write_atomic

CONTROLLER_HOST = "controller"
CPUS, MEMORY_MB = 64, 256_000  # that each node claims to have
PARTITIONS = ("main", "low", "high")  # the first is the default
PREEMPT_GRACE_S = 10  # that a preempted job has after its signal; SLURM itself adds up to five

# cred_expire, KillWait: a job is requeued cred_expire + 1 s after its end, and the old srun must have ended by then.
CONFIGURATION = """\
ClusterName=rehearsal
SlurmctldHost={controller}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=8
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=500
SlurmdParameters=config_overrides
GresTypes=gpu
ReturnToService=2
JobRequeue=1
KillWait=2
SlurmdTimeout=10
SlurmctldTimeout=30
MessageTimeout=10
BatchStartTimeout=10
MinJobAge=3600
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0,bf_interval=2
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime={grace}
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
PREEMPT_SIGNAL = "SlurmctldParameters=preempt_send_user_signal\n"
NODE_TEMPLATE = (
    "NodeName={name} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory={memory_mb} Gres=gpu:2\n"
)
# Two "GPUs" per node: SLURM requires device files, counts them, and never opens them.
GRES_CONF = "Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n"


def write_slurm_conf(
    folder: Path, user: str, controller_port: int, nodes: dict[str, int], accounting: str, preempt_signal: bool
) -> None:
    """Write both files into ``folder``.

    Args:
        folder: The cluster's folder.
        user: The user as which SLURM's daemons run.
        controller_port: slurmctld's port.
        nodes: Each node's port, by its name.
        accounting: The configuration lines for accounting; "" without accounting.
        preempt_signal: Whether a preempted job is signalled and then has ``PREEMPT_GRACE_S`` seconds.
    """
    grace_s = PREEMPT_GRACE_S if preempt_signal else 0
    text = CONFIGURATION.format(
        controller=CONTROLLER_HOST, port=controller_port, folder=folder, user=user, grace=grace_s
    )
    text += "".join(
        NODE_TEMPLATE.format(name=name, port=port, cpus=CPUS, memory_mb=MEMORY_MB) for name, port in nodes.items()
    )
    # A daemon that reads it at this moment would end if it were half written.
    write_atomic(folder / "slurm.conf", text + accounting + (PREEMPT_SIGNAL if preempt_signal else ""))
    (folder / "gres.conf").write_text(GRES_CONF)
