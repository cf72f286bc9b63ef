"""What a SLURM of the tests is configured and started with; `slurm_cluster` fills in the braces."""

SLURM_CONF = """\
ClusterName=ipt
SlurmctldHost=login({subnet}.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A requeued job may start again cred_expire + 1 seconds later: 121 if nothing is said.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
PropagateResourceLimits=NONE
# More processors and memory than the machine has.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0,sched_interval=2,bf_interval=2
# What a cluster takes minutes for, in seconds.
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait=30
UnkillableStepTimeout=30
CompleteWait=0
EpilogMsgTime=100
MinJobAge=3600
ReturnToService=1
MaxArraySize={max_array_size}
# A job of the partition "urgent" takes the nodes of those in "main", which are requeued after a
# time of grace, and in "idle", which are cancelled.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-{nodes}] NodeAddr={subnet}.[11-{last}] CPUs=8 CoresPerSocket=8 RealMemory=16000
PartitionName=main Nodes=ALL Default=YES DefaultTime=30 PriorityTier=1 GraceTime=20
PartitionName=idle Nodes=ALL DefaultTime=30 PriorityTier=1 PreemptMode=CANCEL
PartitionName=urgent Nodes=ALL DefaultTime=30 PriorityTier=10 PreemptMode=OFF
"""

LOGIN_NODE = """\
set -eu
mount -t proc proc /proc
mount -t tmpfs tmpfs /dev/shm
mount --bind {folder}/hosts /etc/hosts
hostname login
ip link set lo up
ip link add bridge type bridge
ip addr add {subnet}.1/24 dev bridge
ip link set bridge up
munged --foreground --force --num-threads=4 --key-file={folder}/munge/key \\
  --socket={folder}/munge/socket --pid-file={folder}/munge/pid \\
  --log-file={folder}/log/munged.log --seed-file={folder}/munge/seed &
until [ -S {folder}/munge/socket ]; do sleep 0.05; done
slurmctld -D -f {folder}/slurm.conf &
set +e
while :; do wait; sleep 0.2; done
"""

COMPUTE_NODE = """\
set -eu
mount -t proc proc /proc
umount /dev/shm
mount -t tmpfs tmpfs /dev/shm
hostname $1
ip link set lo up
until ip link set eth0 up 2>/dev/null; do sleep 0.05; done
ip addr add $2/24 dev eth0
slurmd -D -b -f {folder}/slurm.conf &
set +e
while :; do wait; sleep 0.2; done
"""

# The tools on the login node, for programs outside of it. Jobs inherit the PATH; in them the
# real tools come first.
TOOL = """\
#!/bin/sh
PATH="${{PATH#{folder}/bin:}}" SLURM_CONF={folder}/slurm.conf \\
  exec nsenter --target {pid} --mount --uts --ipc --net --pid --wdns="$PWD" /usr/bin/{tool} "$@"
"""
