"""Training steps for `speed.py`: ours, of `training/`, and those of guided-diffusion's training scripts, on one batch."""

import copy
import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from PIL import Image
from speed_reference import make_network, open_reference

from diffusers_cg import GaussianDiffusion, NoisyClassifierModel
from diffusers_cg.diffusion import training_scheduler
from diffusers_cg.training.config import ClassifierSettings, UNetSettings
from diffusers_cg.training.data import TrainingImages, open_training_images
from diffusers_cg.training.loop import TrainingLoop, make_accelerator
from diffusers_cg.training.train_classifier import classifier_loss
from diffusers_cg.training.train_unet import make_unet, unet_loss


def make_batch(batch_size: int, resolution: int, device: torch.device) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    batch = {
        "clean_images": torch.rand(batch_size, 3, resolution, resolution, generator=generator) * 2 - 1,
        "class_labels": torch.arange(batch_size) % 2,
        "draws": torch.arange(batch_size),
    }
    return {name: values.to(device) for name, values in batch.items()}


def our_training(
    kind: Literal["unet", "classifier"], size: str, batch_size: int, mixed_precision: str, folder: Path
) -> tuple[ModelMixin, Callable[[], dict[str, float]]]:
    """The network of a preset, and a step of the loop that `training/train_unet.py` and `train_classifier.py` share."""
    for number in range(2):
        (folder / "images" / str(number)).mkdir(parents=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / "images" / str(number) / "0.png")
    settings_class = UNetSettings if kind == "unet" else ClassifierSettings
    settings = settings_class(
        train_data_dir=folder / "images",
        output_dir=folder / kind,
        preset=f"{size}_{'diffusion' if kind == 'unet' else 'classifier'}",
        train_batch_size=batch_size,
        total_batch_size=batch_size,
        mixed_precision=mixed_precision,
        logger="none",
    ).resolve()
    accelerator = make_accelerator(settings)
    dataset = open_training_images(settings)
    if kind == "unet":
        network = make_unet(settings, dataset.class_names)
    else:
        network = NoisyClassifierModel(num_classes=len(dataset.class_names), **settings.architecture())
    diffusion = GaussianDiffusion.from_scheduler(training_scheduler())
    loss = partial(unet_loss, diffusion=diffusion, settings=settings) if kind == "unet" else classifier_loss
    images = TrainingImages(dataset, **settings.image_arguments())
    loop = TrainingLoop(settings, accelerator, kind, network, images, diffusion, loss, None, None)
    loop.model.train()
    batches = itertools.repeat(make_batch(batch_size, settings.resolution, accelerator.device))
    return network, lambda: loop.train_step(batches)


def reference_training(
    path: Path, kind: Literal["unet", "classifier"], own: ModelMixin, batch_size: int, dtype: torch.dtype
) -> Callable[[], None]:
    """A step as `train_util.py` (with one average) and `classifier_train.py` take it, in one process."""
    reference = open_reference(path)
    network = make_network(reference, own)
    network.load_state_dict(own.to_openai_state_dict())
    network = network.to(own.device).train()
    half = dtype != torch.float32 and own.device.type == "cuda"
    if half:
        network.dtype = torch.float16  # which its script says where it makes the network
    trainer = reference.fp16_util.MixedPrecisionTrainer(
        model=network, use_fp16=half, **({} if kind == "unet" else {"initial_lg_loss_scale": 16.0})
    )
    optimizer = torch.optim.AdamW(trainer.master_params, lr=1e-4, weight_decay=0.0 if kind == "unet" else 0.05)
    average = copy.deepcopy(trainer.master_params)
    diffusion = reference.script_util.create_gaussian_diffusion(learn_sigma=True)
    batch = make_batch(batch_size, own.config.sample_size, own.device)
    clean_images, labels = batch["clean_images"], batch["class_labels"]

    def step() -> None:
        timesteps = torch.randint(1000, (batch_size,), device=own.device)
        if kind == "unet":
            trainer.zero_grad()
            loss = diffusion.training_losses(network, clean_images, timesteps, model_kwargs={"y": labels})[
                "loss"
            ].mean()
        else:
            loss = F.cross_entropy(network(diffusion.q_sample(clean_images, timesteps), timesteps=timesteps), labels)
            trainer.zero_grad()
        trainer.backward(loss)
        trainer.optimize(optimizer)
        if kind == "unet":
            reference.nn.update_ema(average, trainer.master_params, rate=0.9999)

    return step
