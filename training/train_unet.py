"""Trains an ADM unet on a folder of images with a subfolder per class, or on a dataset or files of `datasets`.

    accelerate launch training/train_unet.py --train_data_dir my_images --resolution 64 --output_dir my-unet

The output folder then holds checkpoints, sample grids in `samples/`, and the result, a pipeline without a classifier:

    unet, scheduler, model_index.json

With `--low_res_size 16` the unet learns to upsample instead, from images that the script scales down to 16x16: by box
filter (each pixel the mean of those that it covers) where 16 divides the resolution, else bicubic. The result is then a
`ClassifierGuidedSuperResolutionPipeline`, and the grids show low-resolution, upsampled and real training images.

With `--label_dropout 0.1` the unet is not told the class of a tenth of the images, and predicts without one, too, as
classifier-free guidance needs.

With `--no-class_conditional` images need no labels: a folder of images without subfolders will do (LSUN, say).
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
    GaussianDiffusion,
    NoisyClassifierModel,
)
from diffusers_cg.data.grids import image_grid
from diffusers_cg.data.images import to_tensor
from diffusers_cg.diffusion import augment_low_res, to_ddim_scheduler, training_losses, training_scheduler
from diffusers_cg.errors import InputError
from diffusers_cg.generation import draw_images
from diffusers_cg.models.adm_unet import NO_CLASS
from diffusers_cg.models.fine_tuning import load_pretrained
from diffusers_cg.training.checkpoints import state_to_resume
from diffusers_cg.training.config import UNetSettings, parse_settings
from diffusers_cg.training.data import (
    TrainingImages,
    checked_images,
    examples_by_class,
    in_class_order,
    open_training_images,
)
from diffusers_cg.training.loop import TrainingLoop, draw_generators, make_accelerator, start_from
from diffusers_cg.training.previews import Look, average_logs, diagnose
from diffusers_cg_cli.command import command


GRID_CLASSES = 10
GRID_COLUMNS = 8
UNLABELLED_GRID_ROWS = 4
UPSAMPLING_GRID_IMAGES = 3  # per class, each in three versions
COMPARED_IMAGES = 200  # of the training, with those of a grid
# of a draw's random numbers, beside the one of its timestep and noise
LOW_RES_STREAM = 1
LABEL_STREAM = 2


@command
def parse_args(argv: Sequence[str] | None = None) -> UNetSettings:
    return parse_settings(UNetSettings, argv, __doc__)


def unet_loss(
    model: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    sample: torch.Tensor,
    timesteps: torch.Tensor,
    noise: torch.Tensor,
    *,
    diffusion: GaussianDiffusion,
    settings: UNetSettings,
) -> dict[str, torch.Tensor]:
    """The loss per image (B,) and its parts, as a `LossFunction` of `training/loop.py`."""
    unet_inputs = {}
    if settings.class_conditional:
        unet_inputs["class_labels"] = drop_labels(
            batch["draws"], batch["class_labels"], settings.label_dropout, settings.seed
        )
    if settings.low_res_size is not None:
        unet_inputs["low_res"] = draw_low_res_augmentation(
            batch["draws"], batch["low_res_images"], settings.low_res_noise, settings.low_res_blur, settings.seed
        )
    model_output = model(sample, timesteps, **unet_inputs).sample
    losses = training_losses(
        diffusion, model_output, batch["clean_images"], noise, sample, timesteps, settings.lambda_vlb, settings.loss
    )
    return {name: value for name, value in vars(losses).items() if value is not None}


def drop_labels(
    draws: Sequence[int] | torch.Tensor, class_labels: torch.Tensor, share: float, seed: int
) -> torch.Tensor:
    """Labels (B,) int64, of which a `share`, chosen by each draw's own seed, are [`NO_CLASS`]; with 0 nothing changes."""
    if share == 0:
        return class_labels
    chances = torch.stack([torch.rand((), generator=each) for each in draw_generators(draws, seed, LABEL_STREAM)])
    return class_labels.where(chances.to(class_labels.device) >= share, NO_CLASS)


def draw_low_res_augmentation(
    draws: Sequence[int] | torch.Tensor, low_res: torch.Tensor, max_noise: float, max_blur: float, seed: int
) -> torch.Tensor:
    """Low-resolution images (B, C, h, w), made worse by [`augment_low_res`] at levels from each draw's own seed.

    Levels are uniform up to `max_noise` and `max_blur`, one of each per image; with both at 0 nothing changes.
    """
    if max_noise == max_blur == 0:
        return low_res
    levels, noise = [], []
    for generator in draw_generators(draws, seed, LOW_RES_STREAM):
        levels.append(torch.rand(2, generator=generator))
        noise.append(torch.randn(low_res.shape[1:], generator=generator))
    noise_level, blur_level = torch.stack(levels, dim=1).to(low_res.device)
    return augment_low_res(
        low_res, max_noise * noise_level, max_blur * blur_level, torch.stack(noise).to(low_res.device)
    )


def make_unet(settings: UNetSettings, class_names: Sequence[str]) -> ADMUNet2DModel:
    """The network that resolved settings describe, untrained."""
    return ADMUNet2DModel(
        out_channels=settings.channels * (2 if settings.learn_variance else 1),
        num_class_embeds=len(class_names) if settings.class_conditional else None,
        class_names=class_names if settings.class_conditional else None,
        low_res_channels=0 if settings.low_res_size is None else settings.channels,
        **settings.architecture(),
    )


def train(settings: UNetSettings) -> None:
    """Trains a unet and leaves it in `output_dir`.

    Raises:
        InputError: if the settings, the images and the models that they name do not go together.
    """
    dataset = open_training_images(settings, labels="required" if settings.class_conditional else "optional")
    pretrained = None if settings.init_from is None else load_pretrained(ADMUNet2DModel, settings.init_from)
    settings = settings.resolve(pretrained)
    upsamples = settings.low_res_size is not None

    accelerator = make_accelerator(settings)
    accelerator.print(dataset.summary())
    checkpoint = state_to_resume(accelerator, settings)
    settings.go_on_from(checkpoint)
    dataset = in_class_order(
        dataset, checkpoint.get("class_names"), None if pretrained is None else pretrained.config.class_names
    )
    class_names = dataset.class_names
    unet = make_unet(settings, class_names)
    if pretrained is not None:
        start_from(accelerator, unet, pretrained, settings.init_from)
    scheduler = training_scheduler(
        settings.ddpm_num_steps,
        settings.ddpm_beta_schedule,
        settings.prediction_type,
        "learned_range" if settings.learn_variance else "fixed_large",
        settings.scale_betas,
    )

    def make_pipeline(unet, scheduler, classifier=None):
        if upsamples:
            return ClassifierGuidedSuperResolutionPipeline(
                unet, scheduler, classifier, low_res_size=settings.low_res_size
            )
        return ClassifierGuidedDDIMPipeline(unet, scheduler, classifier)

    classifier = None
    if settings.classifier is not None:
        classifier = NoisyClassifierModel.from_pretrained(settings.classifier).to(accelerator.device)
    make_pipeline(unet, scheduler, classifier)  # says at once if the two do not fit
    if upsamples and classifier is not None and len(class_names) < 2:
        raise InputError("--classifier guides an upsampler to the classes of the images, and these have none.")

    def evaluate(model, step):
        pipe = make_pipeline(model, to_ddim_scheduler(scheduler), classifier)
        pipe.set_progress_bar_config(disable=True)
        shown = replace(images, center_crop=True, random_flip=False)
        if upsamples:
            samples, real, rows = upsampling_rows(settings, pipe, shown)
            row_labels, column_labels = class_names, ["low", "upsampled", "real"] * UPSAMPLING_GRID_IMAGES
        else:
            samples, rows = sample_rows(settings, pipe)
            real = real_images(settings, shown)
            row_labels, column_labels = pipe.class_names or list(map(str, range(pipe.num_classes or 0))), ()
        grid = image_grid(rows, row_labels=row_labels[: len(rows)], column_labels=column_labels, title=f"step {step}")
        path = settings.output_dir / "samples" / f"step_{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        grid.save(path)
        looks = Look.of(torch.stack([to_tensor(image) for image in samples])), Look.of(real)
        said = diagnose(settings, step, *looks)
        if said is not None:
            tqdm.write(said)
        averages = average_logs(settings, step) if settings.use_ema else {}
        return {"samples": grid, **looks[0].logs("samples"), **looks[1].logs("images"), **averages}

    def save(model, directory: Path):
        make_pipeline(model, scheduler).save_pretrained(directory)

    dataset = checked_images(dataset, settings)  # which may take long, so after all else that may be wrong
    images = TrainingImages(dataset, low_res_size=settings.low_res_size, **settings.image_arguments())
    diffusion = GaussianDiffusion.from_scheduler(scheduler)
    loss_function = partial(unet_loss, diffusion=diffusion, settings=settings)
    TrainingLoop(settings, accelerator, "unet", unet, images, diffusion, loss_function, evaluate, save).run()


main = command(train)


# --------------------------------------------------------------------------------------------------------- sample grids


def grid_images(
    settings: UNetSettings, pipe: DiffusionPipeline, labels: Sequence[int], low_res: torch.Tensor | None = None
) -> list[Image.Image]:
    """An image per label, as the settings for grids say, from the low-resolution ones (B, C, h, w) in [0, 1] if any."""
    takes_labels = settings.class_conditional or pipe.classifier is not None
    batches = draw_images(
        pipe,
        labels if takes_labels else [None] * len(labels),
        torch.Generator().manual_seed(settings.seed),
        settings.eval_batch_size,
        low_res,
        num_inference_steps=min(settings.ddpm_num_inference_steps, settings.ddpm_num_steps),
        classifier_scale=settings.classifier_scale if pipe.classifier is not None else 0.0,
    )
    return [image for batch in batches for image in batch]


def sample_rows(settings: UNetSettings, pipe: DiffusionPipeline) -> tuple[list[Image.Image], list[list[Image.Image]]]:
    """Images, and rows of them, a class each where there are any."""
    num_rows = min(pipe.num_classes or UNLABELLED_GRID_ROWS, GRID_CLASSES)
    labels = [row for row in range(num_rows) for _ in range(GRID_COLUMNS)]
    images = grid_images(settings, pipe, labels)
    return images, [images[first : first + GRID_COLUMNS] for first in range(0, len(images), GRID_COLUMNS)]


def real_images(settings: UNetSettings, images: TrainingImages) -> torch.Tensor:
    """Training images (N, C, H, W) in [-1, 1] of what a grid shows: the first of its classes, or of all."""
    num_classes = len(images.class_names)
    if settings.class_conditional:
        num_classes = min(num_classes, GRID_CLASSES)
    per_class = math.ceil(COMPARED_IMAGES / num_classes)
    examples = examples_by_class(images, min(num_classes, COMPARED_IMAGES), per_class)
    return torch.stack([item["clean_images"] for of_class in examples for item in of_class])


def upsampling_rows(
    settings: UNetSettings, pipe: DiffusionPipeline, images: TrainingImages
) -> tuple[list[Image.Image], torch.Tensor, list[list[Image.Image]]]:
    """Upsampled images, the real ones (N, C, H, W) in [-1, 1], and rows of both with the low-resolution ones, a class each."""
    num_rows = min(GRID_CLASSES, len(images.class_names))
    rows = examples_by_class(images, num_rows, UPSAMPLING_GRID_IMAGES)
    items = [item for row in rows for item in row]
    low_res, real = (torch.stack([item[name] for item in items]) for name in ("low_res_images", "clean_images"))
    upsampled = grid_images(settings, pipe, [item["class_labels"] for item in items], low_res / 2 + 0.5)
    to_pictures = pipe.image_processor.postprocess
    triples = zip(to_pictures(low_res), upsampled, to_pictures(real))
    return upsampled, real, [[version for triple in islice(triples, len(row)) for version in triple] for row in rows]


if __name__ == "__main__":
    main(parse_args())
