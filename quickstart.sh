#!/usr/bin/env bash
# The whole pipeline on this machine: the packages installed here -> shards -> pre-training -> fine-tuning -> a table of scores.
# Prints each command before it runs it. Everything it makes lies in ./quickstart, which must not exist yet.
# SEED=1 make quickstart: another split of the packages, other weights, orders and masks.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# One thread per process: two threads of one process do less than two processes.
export OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}"

seed=(${SEED:+--seed "$SEED"})

run() {
    printf '\n\033[1m$ %s\033[0m\n' "$*"
    local started=$SECONDS
    "$@"
    printf -- '-- %s s (%s s in all)\n' "$((SECONDS - started))" "$SECONDS"
}

# One of the functions below on the other core; `joined` waits for it and prints what it said. It ends with this script.
trap 'for job in $(jobs -p); do kill "$job" $(pgrep -P "$job") 2> /dev/null || true; done' EXIT
beside() {
    "$1" > "quickstart/$1.log" 2>&1 &
}
joined() {
    local status=0
    wait "$!" || status=$?
    cat "quickstart/$1.log"
    return "$status"
}

questions() {
    run mose-data pairs --config configs/quickstart/pairs.yaml "${seed[@]}"
}

# The same fine-tuning from random weights, the control, and from the weights that pre-training began with.
controls() {
    run mose-pretrain init --config configs/quickstart/pretrain.yaml --model.initialization normal --output quickstart/random "${seed[@]}"
    run mose-finetune retrieval --config configs/quickstart/retrieval.yaml --checkpoint quickstart/random --output quickstart/retrieval_from_random "${seed[@]}"
    run mose-finetune evaluate --config configs/quickstart/evaluate.yaml --checkpoint quickstart/retrieval_from_random/checkpoint --output quickstart/scores_from_random --bag_steps 0 "${seed[@]}"
    run mose-finetune retrieval --config configs/quickstart/retrieval.yaml --from_random true --output quickstart/retrieval_from_start "${seed[@]}"
    run mose-finetune evaluate --config configs/quickstart/evaluate.yaml --checkpoint quickstart/retrieval_from_start/checkpoint --output quickstart/scores_from_start --bag_steps 0 "${seed[@]}"
}

if [ -e quickstart ]; then
    echo "quickstart.sh: ./quickstart exists; move it away or remove it for a new run" >&2
    exit 2
fi
mkdir quickstart

beside questions
run mose-data train-tokenizer --config configs/quickstart/tokenizer.yaml "${seed[@]}"
run mose-data pack --config configs/quickstart/pack.yaml "${seed[@]}"
run mose-data verify quickstart/data
run mose-data inspect quickstart/data --row 0
run mose-pretrain train --config configs/quickstart/pretrain.yaml --dry-run --ranks 2
joined questions

# Two data ranks; then 20 steps of the same rows with ZeRO 2, and with layers that two ranks share (tensor parallelism).
run deepspeed --num_accelerators 2 --no_local_rank --log_level error --module pretrain.cli train --config configs/quickstart/pretrain.yaml "${seed[@]}"
run deepspeed --num_accelerators 2 --no_local_rank --log_level error --module pretrain.cli train --config configs/quickstart/zero.yaml "${seed[@]}"
run deepspeed --num_accelerators 2 --no_local_rank --log_level error --module pretrain.cli train --config configs/quickstart/zero.yaml --parallel.tensor_parallel_size 2 --parallel.zero_stage 1 --output quickstart/run_tensor_parallel "${seed[@]}"

run mose-pretrain export quickstart/run --output quickstart/pretrained
beside controls
run mose-pretrain plot quickstart/run --output quickstart/run.png
run mose-pretrain evaluate --checkpoint quickstart/pretrained --dataset quickstart/data --output quickstart/run/held_out.json
run mose-finetune retrieval --config configs/quickstart/retrieval.yaml "${seed[@]}"
run mose-finetune evaluate --config configs/quickstart/evaluate.yaml "${seed[@]}"
run mose-finetune card --checkpoint quickstart/retrieval/checkpoint --results quickstart/scores
joined controls
run mose-finetune report --pretrain quickstart/run --evaluation quickstart/scores --control quickstart/scores_from_random --start quickstart/scores_from_start --output quickstart/report

# Something to try: ten questions of packages that no stage has seen, answered by the shallowest and the deepest exit.
run mose-finetune search --checkpoint quickstart/retrieval/checkpoint --pairs quickstart/pairs.parquet --questions 10 --max_length 128

echo "$SECONDS" > quickstart/duration_seconds
