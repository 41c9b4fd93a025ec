#!/usr/bin/env bash
# A private Slurm cluster on this one host, without systemd or accounting: munged, slurmctld and N slurmd.
#   slurm-up.sh STATE_DIR NODES CPUS_PER_NODE      stop: slurm-down.sh STATE_DIR
#   then:  . STATE_DIR/env.sh; sinfo
# Debian:  apt-get install --no-install-recommends munge slurmctld slurmd slurm-client
# All state, ports and keys are private to STATE_DIR. CPUS_PER_NODE may exceed the real ones.
set -euo pipefail
S=$(mkdir -p "${1:?usage: slurm-up.sh STATE_DIR NODES CPUS}" && cd "$1" && pwd)
N=$2 C=$3 ME=$(id -un) H=$(hostname -s)
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$S"/{munge/run,ctld,log,run,dev}
head -c 128 /dev/urandom >"$S/munge/key"; chmod 0400 "$S/munge/key"
read -r CTLPORT NODEPORTS < <(python3 - "$N" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]) + 1)]
[s.bind(("127.0.0.1", 0)) for s in sockets]
ports = [str(s.getsockname()[1]) for s in sockets]
print(ports[0], ",".join(ports[1:]))
PY
)
cat >"$S/slurm.conf" <<CONF
ClusterName=sandbox
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=$CTLPORT
SlurmUser=$ME
SlurmdUser=$ME
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits for its old credential to expire: 5 s is the least, the default 120.
AuthInfo=socket=$S/munge/run/sock,cred_expire=5
StateSaveLocation=$S/ctld
SlurmdSpoolDir=$S/spool-%n
SlurmctldPidFile=$S/run/slurmctld.pid
SlurmdPidFile=$S/run/slurmd-%n.pid
SlurmctldLogFile=$S/log/slurmctld.log
SlurmdLogFile=$S/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
ReturnToService=2
JobRequeue=1
KillWait=${SLURM_KILLWAIT:-60}
MinJobAge=3600
MaxArraySize=2000
AccountingStorageType=accounting_storage/none
GresTypes=gpu
NodeName=node[1-$N] Gres=gpu:2 NodeHostname=$H NodeAddr=127.0.0.1 Port=$NODEPORTS CPUs=$C State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
# Pretended GPUs, so that they can be asked for.
for i in 0 1; do ln -sf /dev/null "$S/dev/gpu$i"; done
echo "NodeName=node[1-$N] Name=gpu File=$S/dev/gpu[0-1]" >"$S/gres.conf"
echo "export SLURM_CONF=$S/slurm.conf" >"$S/env.sh"
. "$S/env.sh"
munged --force --socket="$S/munge/run/sock" --key-file="$S/munge/key" --pid-file="$S/run/munged.pid" \
       --log-file="$S/log/munged.log" --seed-file="$S/munge/seed" 2>"$S/log/munged.stderr"
slurmctld -c
# Each slurmd, and so every task under it, has a hostname of its own and knows the nodes' names, in private namespaces.
{ cat /etc/hosts; for i in $(seq 1 "$N"); do echo "127.0.0.1 node$i"; done; } >"$S/hosts"
for i in $(seq 1 "$N"); do
  mkdir -p "$S/spool-node$i"
  unshare --mount --uts sh -c 'mount --bind "$2/hosts" /etc/hosts && hostname "$1" && exec slurmd -N "$1"' sh "node$i" "$S"
done
for _ in $(seq 1 200); do
  [ "$(timeout 5 sinfo -h -p main -t idle -o %D 2>/dev/null | awk '{s+=$1} END{print s+0}')" = "$N" ] && exit 0
  sleep 0.1
done
echo "nodes did not become idle; see $S/log" >&2
exit 1
