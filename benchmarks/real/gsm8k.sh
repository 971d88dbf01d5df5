#!/bin/bash
# Qwen2.5-Coder-0.5B-Instruct on GSM8K with an adapter, measured on the whole test split before and after; written for one GPU.
#   bash benchmarks/real/gsm8k.sh MODEL TRAIN.jsonl TEST.jsonl 0
# Goes on with what was stopped. OUTPUT (runs/real) holds the runs; benchmarks/real/table.py reads them.
set -u
model=$1 train=$2 test=$3 output=${OUTPUT:-runs/real}
shift 3
here=$(dirname "$0")/../..
for seed in "$@"; do
    run=$output/gsm8k-qwen-$seed
    if [ -f "$run/run.json" ]; then
        slimrl train --resume "$run" --quiet
    else
        slimrl train "$here/recipes/gsm8k.yaml" "$here/recipes/lora.yaml" model.path="$model" model.dtype=bfloat16 \
            task.path="$train" task.test_path="$test" task.style=boxed output="$output" name="$(basename "$run")" seed="$seed" \
            steps=${STEPS:-40} rollout.max_new_tokens=320 rollout.slots=512 optimizer.learning_rate=1e-4 optimizer.warmup_steps=2 \
            algorithm.kl_coef=0 algorithm.clip_high=0.28 optimizer.microbatch_tokens=16384 evaluation.every=0 log.rollouts=false \
            --quiet
    fi
done
