"""Trains the noisy classifier on a folder of images with a subfolder per class, or on a dataset or files of `datasets`.

    accelerate launch training/train_classifier.py --train_data_dir my_images --resolution 64 --output_dir my-classifier

The output folder then holds checkpoints, the accuracy by noise level in `validation/` (a plot and a table for every
evaluation), and the result, which `NoisyClassifierModel.from_pretrained` loads: the model of the evaluation with the
highest mean accuracy, if there was any, or else the last.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from diffusers_cg import GaussianDiffusion, NoisyClassifierModel
from diffusers_cg.data import ImageSet, ImageStream
from diffusers_cg.diffusion import UniformSampler, training_scheduler
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg.models.fine_tuning import load_pretrained
from diffusers_cg.training.checkpoints import state_to_resume
from diffusers_cg.training.config import ClassifierSettings, parse_settings
from diffusers_cg.training.data import (
    TrainingImages,
    checked_images,
    evaluation_loader,
    in_class_order,
    open_image_folder,
    open_training_images,
)
from diffusers_cg.training.loop import TrainingLoop, draw_timesteps_and_noise, make_accelerator, start_from
from diffusers_cg_cli.command import command


NOISE_LEVELS = 10
MEAN_ACCURACY = "validation_accuracy/mean"  # over them


@command
def parse_args(argv: Sequence[str] | None = None) -> ClassifierSettings:
    return parse_settings(ClassifierSettings, argv, __doc__)


def classifier_loss(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    sample: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """The cross-entropy and the hits per image (B,), as a `LossFunction` of `training/loop.py`."""
    logits, class_labels = model(sample, timesteps).logits.float(), batch["class_labels"]
    return {
        "loss": F.cross_entropy(logits, class_labels, reduction="none"),
        "accuracy": logits.argmax(dim=1) == class_labels,
    }


def make_classifier(settings: ClassifierSettings, class_names: Sequence[str]) -> NoisyClassifierModel:
    """The network that resolved settings describe, untrained."""
    return NoisyClassifierModel(num_classes=len(class_names), class_names=class_names, **settings.architecture())


def train(settings: ClassifierSettings) -> None:
    """Trains a classifier and leaves it in `output_dir`.

    Raises:
        InputError: if the settings, the images and the model that they name do not go together.
    """
    dataset = open_training_images(settings)
    pretrained = None if settings.init_from is None else load_pretrained(NoisyClassifierModel, settings.init_from)
    settings = settings.resolve(pretrained)

    accelerator = make_accelerator(settings)
    accelerator.print(dataset.summary())
    checkpoint = state_to_resume(accelerator, settings)
    settings.go_on_from(checkpoint)
    dataset = in_class_order(
        dataset, checkpoint.get("class_names"), None if pretrained is None else pretrained.config.class_names
    )
    classifier = make_classifier(settings, dataset.class_names)
    if pretrained is not None:
        start_from(accelerator, classifier, pretrained, settings.init_from)
    scheduler = training_scheduler(
        settings.ddpm_num_steps, settings.ddpm_beta_schedule, scale_betas=settings.scale_betas
    )
    diffusion = GaussianDiffusion.from_scheduler(scheduler)

    @torch.no_grad()
    def evaluate(model, step):
        shown = replace(images, dataset=validation, center_crop=True, random_flip=False)
        levels = np.linspace(0, settings.ddpm_num_steps - 1, NOISE_LEVELS).round().astype(int).tolist()
        correct, num_images = np.zeros(len(levels)), 0
        uniform = UniformSampler(settings.ddpm_num_steps)
        for batch in evaluation_loader(shown, settings.eval_batch_size):
            num_images += len(batch["draws"])
            clean_images = batch["clean_images"].to(accelerator.device)
            *_, noise = draw_timesteps_and_noise(batch["draws"], clean_images, uniform, settings.seed)
            for i, level in enumerate(levels):
                predicted = model(diffusion.q_sample(clean_images, noise, level), level).logits.argmax(dim=1).cpu()
                correct[i] += (predicted == batch["class_labels"]).sum().item()
        accuracy = dict(zip(levels, (correct / num_images).tolist()))
        plot = report(accuracy, settings.output_dir / "validation", step)
        by_level = {f"validation_accuracy/t{level}": value for level, value in accuracy.items()}
        return {"validation": plot, **by_level, MEAN_ACCURACY: correct.mean() / num_images}

    def save(model, directory: Path):
        model.save_pretrained(directory)

    # which may take long, so after all else that may be wrong
    stratified = checkpoint.get("stratified", not checkpoint)  # earlier ones held out images of whatever class
    train_dataset, validation = checked_splits(settings, dataset, stratified)
    images = TrainingImages(train_dataset, stratified=stratified, **settings.image_arguments())
    if validation is None:
        evaluate = None
    TrainingLoop(
        settings,
        accelerator,
        "classifier",
        classifier,
        images,
        diffusion,
        classifier_loss,
        evaluate,
        save,
        best_by=MEAN_ACCURACY,
        patience=settings.early_stopping_patience,
    ).run()


main = command(train)


# ----------------------------------------------------------------------------------------------------------- validation


def checked_splits(
    settings: ClassifierSettings, dataset: ImageSet | ImageStream, stratified: bool = True
) -> tuple[ImageSet | ImageStream, ImageSet | ImageStream | None]:
    """Of the training dataset, the images to train on, and those to validate on (None if there are to be none).

    Raises:
        InputError: if images to validate on are of other classes, or the fraction leaves nothing of the images, or of a
            class to train on.
    """
    validation = None
    if settings.validation_data_dir is not None:
        validation = open_image_folder(settings, settings.validation_data_dir, "required", dataset.class_names)
    elif settings.validation_split is not None:
        validation = open_training_images(settings, split=settings.validation_split, known_classes=dataset.class_names)
    if validation is not None:
        return checked_images(dataset, settings), checked_images(validation, settings)
    train = checked_images(dataset, settings)
    if settings.validation_fraction == 0:
        return train, None
    if isinstance(train, ImageStream):
        raise InputError(
            "Of a stream no fraction can be held out: pass --validation_split or --validation_data_dir, or "
            "--validation_fraction 0 to measure no accuracy."
        )
    held_out = int(settings.validation_fraction * len(train))
    if not 0 < held_out < len(train):
        raise InputError(
            f"--validation_fraction {settings.validation_fraction} of {len(train)} images leaves nothing to train or to "
            "validate on: choose another, or 0."
        )
    return train.split(held_out, settings.seed, stratified)


def report(accuracy: dict[int, float], directory: Path, step: int) -> Image.Image:
    """Writes the accuracy by timestep as `step_STEP.json` and as a plot beside it, which it returns."""
    directory.mkdir(exist_ok=True)
    path = directory / f"step_{step:07d}.json"
    path.write_text(json.dumps(accuracy, indent=2) + "\n")
    figure = import_extra("matplotlib.figure", "train").Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(list(accuracy), list(accuracy.values()), marker="o")
    axes.set(xlabel="timestep (noise level)", ylabel="validation accuracy", ylim=(0, 1.02), title=f"step {step}")
    axes.grid(alpha=0.3)
    figure.savefig(path.with_suffix(".png"), dpi=120)
    with Image.open(path.with_suffix(".png")) as plot:
        return plot.convert("RGB")


if __name__ == "__main__":
    main(parse_args())
