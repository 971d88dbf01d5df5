#!/bin/bash
# SmolLM2-135M-Instruct on GSM8K: as it is, after a warm start on worked solutions, and after reinforcement learning, each
# measured on GSM8K and on SVAMP, of which it sees no training problem.
#   bash benchmarks/real/transfer.sh SMOLLM2 full 0 1 2       or  ... SMOLLM2 lora 0
# Goes on with whatever was stopped. OUTPUT (runs/real) holds the runs and one folder of measurements a model. GSM8K and SVAMP
# name the settings files of the two tasks (the recipes, which read the Hub), for data that lies elsewhere.
set -u
model=$1 method=$2 output=${OUTPUT:-runs/real}
shift 2
here=$(dirname "$0")/../..
gsm8k=${GSM8K:-$here/recipes/eval/gsm8k.yaml} svamp=${SVAMP:-$here/recipes/eval/svamp.yaml}
common="model.dtype=bfloat16 rollout.max_new_tokens=256"
case $method in
lora) settings="model.lora.rank=16 optimizer.learning_rate=2e-4" ;;
full) settings="optimizer.learning_rate=2e-5" ;;
*) echo "the method is lora or full" >&2; exit 2 ;;
esac

measure() { # MODEL NAME
    for task in gsm8k svamp; do
        rows=$output/measured/$2-$task.jsonl
        [ -f "$rows" ] || slimrl eval "$1" --task "${!task}" $common task.style=hashes evaluation.problems=300 evaluation.samples=4 \
            output="$output" --out "$rows" --json > "$output/measured/$2-$task.json"
    done
}

mkdir -p "$output/measured"
warm=$output/gsm8k-warm
measure "$model" base
if [ -f "$warm/run.json" ]; then
    slimrl sft --resume "$warm" --quiet
else
    slimrl sft "$gsm8k" model.path="$model" $common output="$output" name=gsm8k-warm steps=100 sft.batch_size=32 \
        evaluation.problems=32 evaluation.every=0 --quiet
fi
measure "$warm/final" warm
for seed in "$@"; do
    name=gsm8k-$method-$seed
    if [ -f "$output/$name/run.json" ]; then
        slimrl train --resume "$output/$name" --quiet
    else
        slimrl train "$here/recipes/grpo.yaml" "$gsm8k" model.path="$warm/final" $common output="$output" name="$name" seed="$seed" \
            steps=${STEPS:-60} rollout.problems=16 rollout.group_size=8 algorithm.kl_coef=0 $settings evaluation.problems=300 \
            evaluation.samples=1 evaluation.every=20 checkpoint.every=5 log.rollouts=false --quiet
    fi
    measure "$output/$name/final" "$name"
done
