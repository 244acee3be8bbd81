"""Trains an ADM unet on a folder of images with a subfolder per class, or on a dataset or files of `datasets`.

    accelerate launch training/train_unet.py --train_data_dir my_images --resolution 64 --output_dir my-unet

The output folder then holds checkpoints, sample grids in `samples/`, and the result, a pipeline without a classifier:

    unet, scheduler, model_index.json

With `--low_res_size 16` the unet learns to upsample instead, from images that the script scales down to 16x16: by box
filter (each pixel the mean of those that it covers) where 16 divides the resolution, else bicubic. The result is then a
`ClassifierGuidedSuperResolutionPipeline`, and the grids show low-resolution, upsampled and real training images.

With `--no-class_conditional` images need no labels: a folder of images without subfolders will do (LSUN, say).
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import get_args

import torch
from diffusers import DDPMScheduler, DiffusionPipeline
from PIL import Image

from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
    GaussianDiffusion,
    NoisyClassifierModel,
)
from diffusers_cg.data.grids import image_grid
from diffusers_cg.diffusion import LossType, resolve_loss_type, to_ddim_scheduler, training_losses
from diffusers_cg.errors import InputError
from diffusers_cg.training.arguments import (
    add_data_arguments,
    add_training_arguments,
    add_trunk_arguments,
    check_training_arguments,
    image_arguments,
    trunk_arguments,
)
from diffusers_cg.training.data import TrainingImages, checked_images, examples_by_class, open_training_images
from diffusers_cg.training.draws import draw_low_res_augmentation
from diffusers_cg.training.initial_model import start_from, take_architecture
from diffusers_cg.training.loop import TrainingLoop, make_accelerator
from diffusers_cg.training.parser import RecipeParser
from diffusers_cg_cli.command import command


GRID_CLASSES = 10
GRID_COLUMNS = 8
UNLABELLED_GRID_ROWS = 4
UPSAMPLING_GRID_IMAGES = 3  # per class, each in three versions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = RecipeParser(description=__doc__)
    add_data_arguments(parser, center_crop=True)
    add_trunk_arguments(parser, base_channels=192, layers_per_block=3)
    add_training_arguments(parser, learning_rate=1e-4, weight_decay=0.0, use_ema=True)
    group = parser.add_argument_group("diffusion")
    group.add_argument(
        "--class_conditional",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Tell the unet the class, or let the classifier alone decide.",
    )
    group.add_argument(
        "--learn_variance",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Learned-range variance and the hybrid loss, or a fixed variance and L_simple.",
    )
    group.add_argument(
        "--loss",
        choices=get_args(LossType),
        help="rescaled_hybrid by default, simple with a fixed variance: see `diffusers_cg.diffusion.training_losses`.",
    )
    group.add_argument("--lambda_vlb", type=float, help="Weight of the variational bound in rescaled_hybrid: 0.001.")
    group = parser.add_argument_group("upsampling")
    group.add_argument(
        "--low_res_size", type=int, help="Learn to upsample from images of this side, instead of from noise alone."
    )
    group.add_argument(
        "--low_res_noise",
        type=float,
        default=0.0,
        metavar="MAX",
        help="Noise on the low-resolution images: standard deviation drawn from 0 to this, where images span [-1, 1].",
    )
    group.add_argument(
        "--low_res_blur",
        type=float,
        default=0.0,
        metavar="MAX",
        help="Gaussian blur of the low-resolution images: standard deviation drawn from 0 to this, in their pixels.",
    )
    group = parser.add_argument_group("sample grids")
    group.add_argument("--ddpm_num_inference_steps", type=int, default=25, help="DDIM steps of the sample grids.")
    group.add_argument("--classifier", help="Trained classifier that guides the sample grids.")
    group.add_argument("--classifier_scale", type=float, default=1.0, help="Scale of that guidance.")
    return parser.parse_args(argv)


def resolve_loss_arguments(args: argparse.Namespace) -> None:
    """Fills in the defaults of `--loss` and `--lambda_vlb`; raises `InputError` where they do not go together."""
    args.loss = resolve_loss_type(args.loss, args.learn_variance)
    if args.loss == "rescaled_hybrid":
        args.lambda_vlb = 0.001 if args.lambda_vlb is None else args.lambda_vlb
    elif args.lambda_vlb is not None:
        raise InputError(f"--lambda_vlb is for --loss rescaled_hybrid, not {args.loss}: leave it out.")


def check_upsampling_arguments(args: argparse.Namespace) -> None:
    """Raises `InputError` where the numbers of an upsampler cannot be meant."""
    for name in ("low_res_noise", "low_res_blur"):
        level = getattr(args, name)
        if not (level >= 0 and math.isfinite(level)):
            raise InputError(f"--{name} must be at least 0, got {level}.")
        if level > 0 and args.low_res_size is None:
            raise InputError(f"--{name} is for upsamplers: pass --low_res_size, too.")
    if args.low_res_size is not None and not 1 <= args.low_res_size <= args.resolution:
        raise InputError(f"--low_res_size must lie in 1..{args.resolution} (--resolution), got {args.low_res_size}.")


def make_unet(args: argparse.Namespace, class_names: Sequence[str]) -> ADMUNet2DModel:
    """The network that the flags describe, untrained."""
    return ADMUNet2DModel(
        out_channels=args.channels * (2 if args.learn_variance else 1),
        num_class_embeds=len(class_names) if args.class_conditional else None,
        class_names=class_names if args.class_conditional else None,
        low_res_channels=0 if args.low_res_size is None else args.channels,
        **trunk_arguments(args),
    )


def grid_images(
    args: argparse.Namespace, pipe: DiffusionPipeline, labels: Sequence[int], low_res: torch.Tensor | None = None
) -> list[Image.Image]:
    """An image per label, as the flags for grids say, from the low-resolution ones (B, C, h, w) in [0, 1] if any."""
    takes_labels = args.class_conditional or pipe.classifier is not None
    generator = torch.Generator().manual_seed(args.seed)
    images = []
    for first in range(0, len(labels), args.eval_batch_size):
        part = slice(first, first + args.eval_batch_size)
        images += pipe(
            class_labels=labels[part] if takes_labels else None,
            num_inference_steps=min(args.ddpm_num_inference_steps, args.ddpm_num_steps),
            classifier_scale=args.classifier_scale if pipe.classifier is not None else 0.0,
            generator=generator,
            **({"batch_size": len(labels[part])} if low_res is None else {"image": low_res[part]}),
        ).images
    return images


def sample_rows(args: argparse.Namespace, pipe: DiffusionPipeline) -> list[list[Image.Image]]:
    """Rows of images, a class each where there are any."""
    num_rows = min(pipe.num_classes or UNLABELLED_GRID_ROWS, GRID_CLASSES)
    labels = [row for row in range(num_rows) for _ in range(GRID_COLUMNS)]
    images = grid_images(args, pipe, labels)
    return [images[first : first + GRID_COLUMNS] for first in range(0, len(images), GRID_COLUMNS)]


def upsampling_rows(
    args: argparse.Namespace, pipe: DiffusionPipeline, images: TrainingImages
) -> list[list[Image.Image]]:
    """Rows of low-resolution, upsampled and real images, three by three, a class each."""
    num_rows = min(GRID_CLASSES, len(images.class_names))
    rows = examples_by_class(images, num_rows, UPSAMPLING_GRID_IMAGES)
    items = [item for row in rows for item in row]
    low_res, real = (torch.stack([item[name] for item in items]) for name in ("low_res_images", "clean_images"))
    upsampled = grid_images(args, pipe, [item["class_labels"] for item in items], low_res / 2 + 0.5)
    low_res, real = (pipe.image_processor.postprocess(versions) for versions in (low_res, real))
    triples = zip(low_res, upsampled, real)
    return [[version for triple in islice(triples, len(row)) for version in triple] for row in rows]


@command
def main(args: argparse.Namespace) -> None:
    check_training_arguments(args)
    check_upsampling_arguments(args)
    resolve_loss_arguments(args)
    dataset = open_training_images(args, labels="required" if args.class_conditional else "optional")
    class_names = dataset.class_names
    accelerator = make_accelerator(args)
    upsamples = args.low_res_size is not None

    def make_pipeline(unet, scheduler, classifier=None):
        if upsamples:
            return ClassifierGuidedSuperResolutionPipeline(unet, scheduler, classifier, low_res_size=args.low_res_size)
        return ClassifierGuidedDDIMPipeline(unet, scheduler, classifier)

    pretrained = take_architecture(args, ADMUNet2DModel)
    unet = make_unet(args, class_names)
    start_from(args, accelerator, unet, pretrained)
    scheduler = DDPMScheduler(
        num_train_timesteps=args.ddpm_num_steps,
        beta_schedule=args.ddpm_beta_schedule,
        variance_type="learned_range" if args.learn_variance else "fixed_large",
        timestep_spacing="linspace",
    )
    classifier = None if args.classifier is None else NoisyClassifierModel.from_pretrained(args.classifier)
    make_pipeline(unet, scheduler, classifier)  # says at once if the two do not fit
    if upsamples and classifier is not None and len(class_names) < 2:
        raise InputError("--classifier guides an upsampler to the classes of the images, and these have none.")
    diffusion = GaussianDiffusion.from_scheduler(scheduler)

    def loss_function(model, batch, timesteps, noise):
        clean_images = batch["clean_images"]
        sample = diffusion.q_sample(clean_images, noise, timesteps)
        unet_inputs = {"class_labels": batch["class_labels"]} if args.class_conditional else {}
        if upsamples:
            unet_inputs["low_res"] = draw_low_res_augmentation(
                batch["draws"], batch["low_res_images"], args.low_res_noise, args.low_res_blur, args.seed
            )
        model_output = model(sample, timesteps, **unet_inputs).sample
        losses = training_losses(
            diffusion, model_output, clean_images, noise, sample, timesteps, args.lambda_vlb, args.loss
        )
        return {name: value for name, value in vars(losses).items() if value is not None}

    def evaluate(model, step):
        pipe = make_pipeline(model, to_ddim_scheduler(scheduler), classifier)
        pipe.set_progress_bar_config(disable=True)
        if upsamples:
            rows = upsampling_rows(args, pipe, replace(images, center_crop=True, random_flip=False))
            row_labels, column_labels = class_names, ["low", "upsampled", "real"] * UPSAMPLING_GRID_IMAGES
        else:
            rows = sample_rows(args, pipe)
            row_labels, column_labels = pipe.class_names or list(map(str, range(pipe.num_classes or 0))), ()
        grid = image_grid(
            rows,
            row_labels=row_labels[: len(rows)],
            column_labels=column_labels,
            title=f"step {step}",
        )
        path = args.output_dir / "samples" / f"step_{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        grid.save(path)
        return {}

    def save(model, directory: Path):
        make_pipeline(model, scheduler).save_pretrained(directory)

    dataset = checked_images(dataset, args)  # which may take long, so after all else that may be wrong
    images = TrainingImages(dataset, low_res_size=args.low_res_size, **image_arguments(args))
    TrainingLoop(args, accelerator, "unet", unet, images, loss_function, evaluate, save).run()


if __name__ == "__main__":
    main(parse_args())
