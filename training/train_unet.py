"""Trains an ADM unet on a folder of images with a subfolder per class.

    accelerate launch training/train_unet.py --train_data_dir my_images --resolution 64 --output_dir my-unet

The output folder then holds checkpoints, sample grids in `samples/`, and the result, a pipeline without a classifier:

    unet, scheduler, model_index.json
"""

import argparse
from pathlib import Path

import torch
from diffusers import DDPMScheduler

from diffusers_cg import ADMUNet2DModel, ClassifierGuidedDDIMPipeline, GaussianDiffusion, NoisyClassifierModel
from diffusers_cg.diffusion import training_losses
from diffusers_cg.errors import command, user_errors
from diffusers_cg.image_grid import image_grid
from diffusers_cg.training.arguments import (
    add_data_arguments,
    add_training_arguments,
    add_trunk_arguments,
    check_training_arguments,
    trunk_arguments,
)
from diffusers_cg.training.data import TrainingImages, draw_timesteps_and_noise, load_image_folder
from diffusers_cg.training.loop import TrainingLoop, make_accelerator


GRID_CLASSES = 10
GRID_COLUMNS = 8


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    group.add_argument("--lambda_vlb", type=float, default=0.001, help="Weight of the variational bound.")
    group = parser.add_argument_group("sample grids")
    group.add_argument("--ddpm_num_inference_steps", type=int, default=25, help="DDIM steps of the sample grids.")
    group.add_argument("--classifier", help="Trained classifier that guides the sample grids.")
    group.add_argument("--classifier_scale", type=float, default=1.0, help="Scale of that guidance.")
    return parser.parse_args(argv)


@command
def main(args: argparse.Namespace) -> None:
    check_training_arguments(args)
    dataset = load_image_folder(args.train_data_dir, args.skip_bad_images, args.verify_images)
    class_names = dataset.features["label"].names
    accelerator = make_accelerator(args)
    with user_errors():
        unet = ADMUNet2DModel(
            out_channels=args.channels * (2 if args.learn_variance else 1),
            num_class_embeds=len(class_names) if args.class_conditional else None,
            **trunk_arguments(args),
        )
        scheduler = DDPMScheduler(
            num_train_timesteps=args.ddpm_num_steps,
            beta_schedule=args.ddpm_beta_schedule,
            variance_type="learned_range" if args.learn_variance else "fixed_large",
            timestep_spacing="linspace",
        )
        classifier = None if args.classifier is None else NoisyClassifierModel.from_pretrained(args.classifier)
        ClassifierGuidedDDIMPipeline(unet, scheduler, classifier)  # says at once if the two do not fit
    diffusion = GaussianDiffusion.from_scheduler(scheduler)

    def loss_function(model, batch):
        clean_images = batch["clean_images"]
        timesteps, noise = draw_timesteps_and_noise(batch["draws"], clean_images, args.ddpm_num_steps, args.seed)
        sample = diffusion.q_sample(clean_images, noise, timesteps)
        class_labels = batch["class_labels"] if args.class_conditional else None
        model_output = model(sample, timesteps, class_labels).sample
        losses = training_losses(diffusion, model_output, clean_images, noise, sample, timesteps, args.lambda_vlb)
        values = {"mse": losses.mse} if losses.vb is None else {"mse": losses.mse, "vb": losses.vb}
        return losses.loss, values

    def evaluate(model, step):
        pipe = ClassifierGuidedDDIMPipeline(model, scheduler, classifier)
        pipe.set_progress_bar_config(disable=True)
        rows = list(range(len(class_names)))[:GRID_CLASSES]
        labels = [row for row in rows for _ in range(GRID_COLUMNS)]
        images = []
        generator = torch.Generator().manual_seed(args.seed)
        for first in range(0, len(labels), args.eval_batch_size):
            part = labels[first : first + args.eval_batch_size]
            images += pipe(
                class_labels=part if args.class_conditional or classifier is not None else None,
                batch_size=len(part),
                num_inference_steps=min(args.ddpm_num_inference_steps, args.ddpm_num_steps),
                classifier_scale=args.classifier_scale if classifier is not None else 0.0,
                generator=generator,
            ).images
        grid = image_grid(
            [images[row * GRID_COLUMNS : (row + 1) * GRID_COLUMNS] for row in rows],
            row_labels=[class_names[row] for row in rows] if args.class_conditional or classifier is not None else (),
            title=f"step {step}",
        )
        path = args.output_dir / "samples" / f"step_{step:07d}.png"
        path.parent.mkdir(exist_ok=True)
        grid.save(path)
        return {}

    def save(model, directory: Path):
        ClassifierGuidedDDIMPipeline(model, scheduler).save_pretrained(directory)

    images = TrainingImages(
        dataset, args.resolution, args.channels, args.center_crop, args.random_flip, seed=args.seed
    )
    TrainingLoop(args, accelerator, unet, images, loss_function, evaluate, save).run()


if __name__ == "__main__":
    main(parse_args())
