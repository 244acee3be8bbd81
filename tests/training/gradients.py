"""Trainings of a few steps that record what their optimizer was given, in one process or in several."""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tiny import with_weights

from diffusers_cg import GaussianDiffusion
from diffusers_cg.data import open_folder
from diffusers_cg.training import train_unet
from diffusers_cg.training.config import UNetSettings
from diffusers_cg.training.data import TrainingImages
from diffusers_cg.training.loop import TrainingLoop, make_accelerator


TOTAL = 8
STEPS = 4
NUM_TIMESTEPS = 6
BAD_DRAW = TOTAL + 3  # in the second step


def record(
    data_dir: Path, output_dir: Path, name: str, batch_size: int, steps: int = STEPS, resume: Path | None = None
):
    """Trains, and saves gradients and sampler of every optimizer step in `OUTPUT_DIR/RANK.pt`.

    `name` is `"uniform"` or `"loss_second_moment"`, or `"bad"` for the latter with one loss that is not a number, or
    `"overflow"` for the former in fp16, scaled so that the gradients of the first step overflow.
    """
    timestep_sampler = "uniform" if name in ("uniform", "overflow") else "loss_second_moment"
    settings = UNetSettings(
        train_data_dir=data_dir,
        output_dir=output_dir,
        resolution=8,
        channels=1,
        base_channels=8,
        norm_num_groups=4,
        channel_multipliers=[1, 2],
        layers_per_block=1,
        attention_resolutions=[4],
        attention_head_dim=4,
        train_batch_size=batch_size,
        total_batch_size=TOTAL,
        max_train_steps=steps,
        resume_from_checkpoint=None if resume is None else str(resume),
        timestep_sampler=timestep_sampler,
        ddpm_num_steps=NUM_TIMESTEPS,
        learning_rate=1e-6,
        max_grad_norm=0,
        checkpointing_steps=STEPS,
        logger="none",
    ).resolve()
    accelerator = make_accelerator(settings)
    if name == "overflow":
        # as Accelerate sets itself up for fp16 on a GPU; on a CPU it will not, but PyTorch can
        accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
        accelerator.scaler = torch.amp.GradScaler(
            accelerator.device.type, init_scale=2.0**40, backoff_factor=2.0**-30, growth_interval=2
        )
    dataset = open_folder(data_dir, "required")
    images = TrainingImages(dataset, settings.resolution, settings.channels)
    # no layer at zero, so that gradients reach them all
    unet = with_weights(train_unet.make_unet(settings, dataset.class_names))
    diffusion = GaussianDiffusion(torch.linspace(1e-3, 0.5, NUM_TIMESTEPS))

    def loss_function(model, batch, sample, timesteps, noise):
        output = model(sample, timesteps, class_labels=batch["class_labels"]).sample
        loss = F.mse_loss(output[:, :1], noise, reduction="none").flatten(1).mean(dim=1)
        factor = torch.where(batch["draws"] == BAD_DRAW, math.nan, 1.0) if name == "bad" else 1.0
        return {"loss": loss * factor}

    def save(model, directory):
        model.save_pretrained(directory)

    loop = TrainingLoop(settings, accelerator, "unet", unet, images, diffusion, loss_function, None, save)
    if timestep_sampler == "loss_second_moment":
        for number in range(10):
            loop.timestep_sampler.update(torch.arange(NUM_TIMESTEPS), torch.arange(NUM_TIMESTEPS) + number / 10)
    recorded = []

    def keep(optimizer, *_):
        gradients = [parameter.grad.flatten() for group in optimizer.param_groups for parameter in group["params"]]
        state = {} if timestep_sampler == "uniform" else loop.timestep_sampler.state_dict()
        recorded.append({"gradient": torch.cat(gradients), **state})

    loop.optimizer.optimizer.register_step_pre_hook(keep)
    loop.run()
    torch.save(recorded, output_dir / f"{accelerator.process_index}.pt")
