#!/bin/bash
# SmolLM2-135M-Instruct on the built-in task: five seeds with an adapter and five with all weights, from one warm start.
#   bash benchmarks/real/builtin.sh WARM lora 0 1 2 3 4      and beside it      ... WARM full 0 1 2 3 4
# Goes on with whatever was stopped, and does no run twice. OUTPUT (runs/real) holds the runs; benchmarks/real/table.py reads them.
# MORE holds further settings, such as "evaluation.every=0". With OMP_NUM_THREADS=1 several run side by side.
# WARM is what this leaves (SMOLLM2: a folder or Hub name):
#   slimrl sft model.path=$SMOLLM2 model.dtype=bfloat16 name=warm steps=40 sft.batch_size=32 evaluation.problems=32 \
#       evaluation.harder_problems=0
set -u
warm=$1 method=$2 output=${OUTPUT:-runs/real}
shift 2
here=$(dirname "$0")
case $method in
lora) settings="model.lora.rank=16 optimizer.learning_rate=2e-4" ;;
full) settings="optimizer.learning_rate=1e-5" ;;
*) echo "the method is lora or full" >&2; exit 2 ;;
esac
for seed in "$@"; do
    run=$output/builtin-$method-$seed
    if [ -f "$run/run.json" ]; then
        slimrl train --resume "$run" --quiet
    else
        slimrl train "$here/../../recipes/grpo.yaml" model.path="$warm" model.dtype=${DTYPE:-bfloat16} output="$output" name="$(basename "$run")" \
            seed="$seed" steps=${STEPS:-150} rollout.problems=16 rollout.group_size=8 rollout.max_new_tokens=64 algorithm.kl_coef=0 $settings \
            evaluation.problems=400 evaluation.harder_problems=0 evaluation.every=50 checkpoint.every=10 log.rollouts=false ${MORE:-} --quiet
    fi
done
