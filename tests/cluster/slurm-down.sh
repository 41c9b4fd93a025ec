#!/usr/bin/env bash
# Stop what slurm-up.sh STATE_DIR started: jobs first, then the daemons, by recorded pid.
set -u
S=$(cd "${1:?usage: slurm-down.sh STATE_DIR}" && pwd)
. "$S/env.sh"
timeout 5 scancel --quiet --user="$(id -un)" 2>/dev/null
for _ in $(seq 1 50); do [ -z "$(timeout 5 squeue -h -t R,CG 2>/dev/null)" ] && break; sleep 0.1; done
for files in "$S/run/slurmd-*.pid" "$S/run/slurmctld.pid" "$S/run/munged.pid"; do
  pids=$(cat $files 2>/dev/null) || continue
  kill $pids 2>/dev/null
  for _ in $(seq 1 30); do kill -0 $pids 2>/dev/null || break; sleep 0.1; done
  kill -9 $pids 2>/dev/null
done
exit 0
