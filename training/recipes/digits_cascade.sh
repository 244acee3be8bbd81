#!/usr/bin/env bash
# Trains the stack that ships beside the digits pipeline: digits of 4x4 pixels, and an upsampler from 4x4 to 16x16.
#   bash training/recipes/digits_cascade.sh RUN_DIR OUTPUT_DIR
# leaves OUTPUT_DIR/low_res and OUTPUT_DIR/upsampler, and in RUN_DIR/single_stage a unet of 16x16 pixels that trained as
# many steps as the upsampler, to compare with. About half an hour on 2 CPU cores, a thread for each model.
set -euo pipefail
run=${1:?usage: digits_cascade.sh RUN_DIR OUTPUT_DIR} output=${2:?usage: digits_cascade.sh RUN_DIR OUTPUT_DIR}
scripts=$(cd "$(dirname "$0")/.." && pwd)
export OMP_NUM_THREADS=1

train() {  # SCRIPT RECIPE FOLDER FLAGS...
    accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no "$scripts/$1.py" \
        --config "$2" --train_data_dir "$run/data/train" --output_dir "$run/$3" "${@:4}" ${RESUME:-} > "$run/$3.log" 2>&1
}

python "$scripts/export_digits.py" --output_dir "$run/data"
train train_classifier digits_low_res_classifier low_res_classifier --validation_data_dir "$run/data/test"
train train_unet digits_low_res low_res
train train_unet digits_upsampler upsampler & upsampler=$!
train train_unet digits single_stage --max_train_steps 2000 & single_stage=$!
wait $upsampler && wait $single_stage

python "$scripts/assemble_pipeline.py" --unet "$run/low_res" --classifier "$run/low_res_classifier" --dtype fp16 \
    --solver DDIMScheduler --output_dir "$output/low_res"
python "$scripts/assemble_pipeline.py" --unet "$run/upsampler" --dtype fp16 --solver DDIMScheduler \
    --output_dir "$output/upsampler"
