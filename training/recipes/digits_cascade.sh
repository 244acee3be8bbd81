#!/usr/bin/env bash
# Trains the stack that ships beside the digits pipeline: digits of 4x4 pixels, and an upsampler from 4x4 to 16x16.
#   bash training/recipes/digits_cascade.sh RUN_DIR OUTPUT_DIR
# leaves OUTPUT_DIR/low_res and OUTPUT_DIR/upsampler, and in RUN_DIR/single_stage a unet of 16x16 pixels that trained as
# many steps as the upsampler, to compare with. About half an hour on 2 CPU cores, a thread for each model.
set -euo pipefail
run=${1:?usage: digits_cascade.sh RUN_DIR OUTPUT_DIR} output=${2:?usage: digits_cascade.sh RUN_DIR OUTPUT_DIR}
scripts=$(cd "$(dirname "$0")/.." && pwd)
launch="accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
export OMP_NUM_THREADS=1

python "$scripts/export_digits.py" --output_dir "$run/data"

data="--train_data_dir $run/data/train --channels 1 --center_crop"
small="--resolution 4 --base_channels 32 --channel_multipliers 1 --layers_per_block 2 --attention_resolutions 4
       --attention_head_dim 32 --dropout 0.1"
large="--resolution 16 --base_channels 32 --channel_multipliers 1 2 2 --layers_per_block 1 --attention_resolutions 8 4
       --attention_head_dim 32 --dropout 0.1"
training="--ddpm_beta_schedule squaredcos_cap_v2 --train_batch_size 64 --learning_rate 5e-4 --lr_scheduler cosine
          --lr_warmup_steps 200 --checkpointing_steps 500 --checkpoints_total_limit 1 --save_images_epochs 50
          --logger none --seed 0 ${RESUME:-}"

$launch "$scripts/train_classifier.py" $data $small $training --max_train_steps 2000 --use_ema \
    --validation_data_dir "$run/data/test" --output_dir "$run/low_res_classifier" > "$run/low_res_classifier.log" 2>&1
$launch "$scripts/train_unet.py" $data $small $training --max_train_steps 4000 \
    --output_dir "$run/low_res" > "$run/low_res.log" 2>&1
$launch "$scripts/train_unet.py" $data $large $training --max_train_steps 1500 --low_res_size 4 \
    --output_dir "$run/upsampler" > "$run/upsampler.log" 2>&1 & upsampler=$!
$launch "$scripts/train_unet.py" $data $large $training --max_train_steps 2000 \
    --output_dir "$run/single_stage" > "$run/single_stage.log" 2>&1 & single_stage=$!
wait $upsampler && wait $single_stage

python "$scripts/assemble_pipeline.py" --unet "$run/low_res" --classifier "$run/low_res_classifier" --dtype fp16 \
    --output_dir "$output/low_res"
python "$scripts/assemble_pipeline.py" --unet "$run/upsampler" --dtype fp16 --output_dir "$output/upsampler"
