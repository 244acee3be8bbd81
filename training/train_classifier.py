"""Trains the noisy classifier on a folder of images with a subfolder per class, or on a dataset or files of `datasets`.

    accelerate launch training/train_classifier.py --train_data_dir my_images --resolution 64 --output_dir my-classifier

The output folder then holds checkpoints, the accuracy by noise level in `validation/` (a plot and a table for every
evaluation), and the result, which `NoisyClassifierModel.from_pretrained` loads.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from diffusers_cg import GaussianDiffusion, NoisyClassifierModel
from diffusers_cg.data import ImageSet, ImageStream, open_folder
from diffusers_cg.diffusion import UniformSampler
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg.training.arguments import (
    add_data_arguments,
    add_training_arguments,
    add_trunk_arguments,
    check_training_arguments,
    image_arguments,
    trunk_arguments,
)
from diffusers_cg.training.data import TrainingImages, checked_images, evaluation_loader, open_training_images
from diffusers_cg.training.draws import draw_timesteps_and_noise
from diffusers_cg.training.initial_model import start_from, take_architecture
from diffusers_cg.training.loop import TrainingLoop, make_accelerator
from diffusers_cg.training.parser import RecipeParser
from diffusers_cg_cli.command import command


NOISE_LEVELS = 10


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = RecipeParser(description=__doc__)
    add_data_arguments(parser, center_crop=False)
    add_trunk_arguments(parser, base_channels=128, layers_per_block=4)
    add_training_arguments(parser, learning_rate=3e-4, weight_decay=0.05, use_ema=False)
    group = parser.add_argument_group("classifier")
    group.add_argument(
        "--pool",
        choices=("attention", "adaptive", "spatial", "spatial_v2"),
        default="attention",
        help="How features become logits.",
    )
    group.add_argument("--validation_data_dir", type=Path, help="Folder of the same classes to measure accuracy on.")
    group.add_argument("--validation_split", help="In its place: a split of the dataset that is trained on.")
    group.add_argument(
        "--validation_fraction",
        type=float,
        default=0.05,
        help="Without either: share of the training images held out for it; 0 for none.",
    )
    return parser.parse_args(argv)


def make_classifier(args: argparse.Namespace, class_names: Sequence[str]) -> NoisyClassifierModel:
    """The network that the flags describe, untrained."""
    return NoisyClassifierModel(
        num_classes=len(class_names), class_names=class_names, pool=args.pool, **trunk_arguments(args)
    )


def checked_splits(
    args: argparse.Namespace, dataset: ImageSet | ImageStream
) -> tuple[ImageSet | ImageStream, ImageSet | ImageStream | None]:
    """Of the training dataset, the images to train on, and those to validate on (None if there are to be none).

    Raises:
        InputError: if the classes of the two differ, or the fraction leaves one of them empty.
    """
    validation = None
    if args.validation_data_dir is not None:
        validation = open_folder(args.validation_data_dir, "required")
    elif args.validation_split is not None:
        validation = open_training_images(args, split=args.validation_split, class_names=dataset.class_names)
    if validation is not None:
        if validation.class_names != dataset.class_names:
            where = args.validation_data_dir or f"Split {args.validation_split}"
            raise InputError(f"{where} and the training images do not hold the same classes.")
        return checked_images(dataset, args), checked_images(validation, args)
    train = checked_images(dataset, args)
    if args.validation_fraction == 0:
        return train, None
    if isinstance(train, ImageStream):
        raise InputError(
            "Of a stream no fraction can be held out: pass --validation_split or --validation_data_dir, or "
            "--validation_fraction 0 to measure no accuracy."
        )
    held_out = int(args.validation_fraction * len(train)) if 0 < args.validation_fraction < 1 else 0
    if not 0 < held_out < len(train):
        raise InputError(
            f"--validation_fraction {args.validation_fraction} of {len(train)} images leaves nothing to train or to "
            "validate on: choose another, or 0."
        )
    return train.split(held_out, args.seed)


@command
def main(args: argparse.Namespace) -> None:
    check_training_arguments(args)
    dataset = open_training_images(args)
    class_names = dataset.class_names
    accelerator = make_accelerator(args)
    pretrained = take_architecture(args, NoisyClassifierModel)
    classifier = make_classifier(args, class_names)
    start_from(args, accelerator, classifier, pretrained)
    scheduler = DDPMScheduler(num_train_timesteps=args.ddpm_num_steps, beta_schedule=args.ddpm_beta_schedule)
    diffusion = GaussianDiffusion.from_scheduler(scheduler)

    def loss_function(model, batch, timesteps, noise):
        sample = diffusion.q_sample(batch["clean_images"], noise, timesteps)
        logits, class_labels = model(sample, timesteps).logits.float(), batch["class_labels"]
        return {
            "loss": F.cross_entropy(logits, class_labels, reduction="none"),
            "accuracy": logits.argmax(dim=1) == class_labels,
        }

    @torch.no_grad()
    def evaluate(model, step):
        images = replace(training_images, dataset=validation, center_crop=True, random_flip=False)
        levels = np.linspace(0, args.ddpm_num_steps - 1, NOISE_LEVELS).round().astype(int).tolist()
        correct, num_images = np.zeros(len(levels)), 0
        uniform = UniformSampler(args.ddpm_num_steps)
        for batch in evaluation_loader(images, args.eval_batch_size):
            num_images += len(batch["draws"])
            clean_images = batch["clean_images"].to(accelerator.device)
            *_, noise = draw_timesteps_and_noise(batch["draws"], clean_images, uniform, args.seed)
            for i, level in enumerate(levels):
                predicted = model(diffusion.q_sample(clean_images, noise, level), level).logits.argmax(dim=1).cpu()
                correct[i] += (predicted == batch["class_labels"]).sum().item()
        accuracy = dict(zip(levels, (correct / num_images).tolist()))
        report(accuracy, args.output_dir / "validation", step)
        return {f"validation_accuracy/t{level}": value for level, value in accuracy.items()}

    def save(model, directory: Path):
        model.save_pretrained(directory)

    train, validation = checked_splits(args, dataset)  # which may take long, so after all else that may be wrong
    training_images = TrainingImages(train, **image_arguments(args))
    if validation is None:
        evaluate = None
    TrainingLoop(args, accelerator, "classifier", classifier, training_images, loss_function, evaluate, save).run()


def report(accuracy: dict[int, float], directory: Path, step: int) -> None:
    """Writes the accuracy by timestep as `step_STEP.json` and as a plot beside it."""
    directory.mkdir(exist_ok=True)
    path = directory / f"step_{step:07d}.json"
    path.write_text(json.dumps(accuracy, indent=2) + "\n")
    figure = import_extra("matplotlib.figure", "train").Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(accuracy), list(accuracy.values()), marker="o")
    axes.set(xlabel="timestep (noise level)", ylabel="validation accuracy", ylim=(0, 1.02), title=f"step {step}")
    axes.grid(alpha=0.3)
    figure.savefig(path.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    main(parse_args())
