#!/usr/bin/env bash
# Trains the digits pipeline that ships with the package, from scikit-learn's data to the assembled folder:
#   bash training/recipes/digits.sh RUN_DIR OUTPUT_DIR
# About three quarters of an hour on 2 CPU cores, on which the three models train side by side, a thread each.
# A run that was stopped goes on with RESUME="--resume_from_checkpoint latest".
set -euo pipefail
run=${1:?usage: digits.sh RUN_DIR OUTPUT_DIR} output=${2:?usage: digits.sh RUN_DIR OUTPUT_DIR}
scripts=$(cd "$(dirname "$0")/.." && pwd)
export OMP_NUM_THREADS=1

train() {  # SCRIPT RECIPE FOLDER FLAGS...
    accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no "$scripts/$1.py" \
        --config "$2" --train_data_dir "$run/data/train" --output_dir "$run/$3" "${@:4}" ${RESUME:-} > "$run/$3.log" 2>&1
}

python "$scripts/export_digits.py" --output_dir "$run/data"
train train_classifier digits_classifier classifier --validation_data_dir "$run/data/test" & classifier=$!
train train_unet digits conditional & conditional=$!
train train_unet digits_unconditional unconditional & unconditional=$!
wait $classifier && wait $conditional && wait $unconditional

python "$scripts/assemble_pipeline.py" --unet "$run/conditional" --classifier "$run/classifier" --dtype fp16 \
    --unconditional_unet "$run/unconditional" --solver_num_inference_steps 8 --output_dir "$output"
