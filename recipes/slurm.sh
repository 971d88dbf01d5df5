#!/bin/bash
# A run that outlives its node: sbatch slurm.sh NAME [FILES...] [section.key=value ...]
# Two minutes before the time is over SLURM sends SIGTERM to this shell (where PreemptParameters has send_user_signal, also when
# the node is wanted for others); slimrl leaves a checkpoint and exits with 75, and the job goes back into the queue, as
# it does when a process of the run was killed. A node that dies is requeued by SLURM itself.
#SBATCH --job-name=slimrl
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
set -u
name=${1:?name of the run}
shift
attempts=20 # requeues, of whatever cause, after which a run that SLURM did not stop is not requeued: memory may kill it at every start

run=
told=
trap 'told=yes; [ -z "$run" ] || kill -TERM "$run"' TERM INT # bash alone is told; it passes the word on
slimrl train --resume "name=$name" "$@" &
run=$!
wait "$run"
while kill -0 "$run" 2>/dev/null; do # the first wait ends with the signal, not with the run
  wait "$run"
done
wait "$run" # bash keeps the exit code of a process that has ended
code=$? # of a killed one 128 and the number of the signal
again=
if [ "$code" -eq 75 ] && [ -n "$told" ]; then
  again=yes
elif [ "$code" -eq 75 ] || { [ "$code" -gt 128 ] && [ "$code" -ne 130 ]; }; then # 130: stopped by SIGINT
  if [ "${SLURM_RESTART_COUNT:-0}" -lt "$attempts" ]; then
    again=yes
  else
    echo "the job has been requeued $attempts times and ends; submit it again to go on" >&2
  fi
fi
if [ -n "$again" ] && scontrol show job "$SLURM_JOB_ID" | grep -q JobState=RUNNING; then # scancel sends SIGTERM too
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
