#!/usr/bin/env bash
# Trains the digits pipeline that ships with the package, from scikit-learn's data to the assembled folder:
#   bash training/recipes/digits.sh RUN_DIR OUTPUT_DIR
# About three quarters of an hour on 2 CPU cores, on which the three models train side by side, a thread each.
# A run that was stopped goes on with RESUME="--resume_from_checkpoint latest".
set -euo pipefail
run=${1:?usage: digits.sh RUN_DIR OUTPUT_DIR} output=${2:?usage: digits.sh RUN_DIR OUTPUT_DIR}
scripts=$(cd "$(dirname "$0")/.." && pwd)
launch="accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
export OMP_NUM_THREADS=1

python "$scripts/export_digits.py" --output_dir "$run/data"

data="--train_data_dir $run/data/train --resolution 16 --channels 1 --center_crop"
trunk="--base_channels 32 --channel_multipliers 1 2 2 --layers_per_block 1 --attention_resolutions 8 4
       --attention_head_dim 32 --dropout 0.1"
training="--ddpm_beta_schedule squaredcos_cap_v2 --train_batch_size 64 --learning_rate 5e-4 --lr_scheduler cosine
          --lr_warmup_steps 200 --checkpointing_steps 1000 --checkpoints_total_limit 1 --save_images_epochs 50
          --logger none --seed 0 ${RESUME:-}"

$launch "$scripts/train_classifier.py" $data $trunk $training --max_train_steps 3000 --use_ema \
    --validation_data_dir "$run/data/test" --output_dir "$run/classifier" > "$run/classifier.log" 2>&1 & classifier=$!
$launch "$scripts/train_unet.py" $data $trunk $training --max_train_steps 4000 --class_conditional \
    --output_dir "$run/conditional" > "$run/conditional.log" 2>&1 & conditional=$!
$launch "$scripts/train_unet.py" $data $trunk $training --max_train_steps 4000 --no-class_conditional \
    --output_dir "$run/unconditional" > "$run/unconditional.log" 2>&1 & unconditional=$!
wait $classifier && wait $conditional && wait $unconditional

python "$scripts/assemble_pipeline.py" --unet "$run/conditional" --classifier "$run/classifier" --dtype fp16 \
    --unconditional_unet "$run/unconditional" --output_dir "$output"
