#!/bin/bash
# One run on the GPUs of several nodes: sbatch slurm-nodes.sh NAME [FILES...] [section.key=value ...]
# SLURM starts a process for each GPU, and these find each other at a port of the first node. Two minutes before the time is over
# SLURM sends SIGTERM to this shell; the run leaves a checkpoint, ends with 75, and the job goes back into the queue, as it does
# when a process was killed or lost with its node. A run that ends for a reason of its own (settings, data, a full disk) does not.
# The working folder must be on storage that all nodes share.
#SBATCH --job-name=slimrl
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
#SBATCH --output=%x-%j.log
set -u
name=${1:?name of the run}
shift
attempts=20 # requeues, of whatever cause, after which a run that SLURM did not stop is not requeued: memory may kill it at every start

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
leader=$PWD/.slimrl-$SLURM_JOB_ID # its name ends with the exit code of the first process, which knows why a run ends:
rm -f "$leader".*
: >"$leader" # a full disk takes another name, and no more bytes
export leader
rank='export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID
export LOCAL_WORLD_SIZE=$((SLURM_NTASKS / SLURM_JOB_NUM_NODES))
[ "$RANK" -eq 0 ] || exec slimrl train --resume "$@"
trap : TERM INT # slimrl is told too, and this shell waits for it
slimrl train --resume "$@"
code=$?
mv "$leader" "$leader.$code"
exit "$code"'

told=
trap 'told=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM INT # bash alone is told; the signal goes to all processes of srun
srun --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c "$rank" slimrl "name=$name" "$@" &
run=$!
wait "$run"
while kill -0 "$run" 2>/dev/null; do # the first wait ends with the signal, not with the run
  wait "$run"
done
wait "$run" # bash keeps the exit code of a process that has ended
code=$? # the highest one of all processes; a killed one has 128 and the number of the signal
for own in "$leader".*; do # none where the first process was lost with its node
  [ ! -e "$own" ] || code=${own##*.}
done
rm -f "$leader" "$leader".*
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
