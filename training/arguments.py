"""Flags that both training scripts take; names follow diffusers' `train_unconditional.py`."""

import argparse
from pathlib import Path

from diffusers_cg.diffusion import LossSecondMomentSampler, UniformSampler
from diffusers_cg.errors import InputError
from diffusers_cg.hub.publishing import check_repo_id
from diffusers_cg.models.presets import ATTENTION_RESOLUTIONS, CHANNEL_MULTIPLIERS


TIMESTEP_SAMPLERS = {"uniform": UniformSampler, "loss_second_moment": LossSecondMomentSampler}

# what a training that goes on must share with the one that was stopped, as far as a script has the flag
RESUMED_SETTINGS = (
    "seed",
    "center_crop",
    "random_flip",
    "low_res_size",
    "low_res_noise",
    "low_res_blur",
    "ddpm_num_steps",
    "ddpm_beta_schedule",
    "loss",
    "lambda_vlb",
    "timestep_sampler",
    "learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "adam_beta1",
    "adam_beta2",
    "adam_weight_decay",
    "adam_epsilon",
    "max_grad_norm",
    "use_ema",
    "ema_max_decay",
    "ema_warmup",
    "ema_inv_gamma",
    "ema_power",
)


def add_data_arguments(parser: argparse.ArgumentParser, center_crop: bool) -> None:
    group = parser.add_argument_group("data (one of the first three says where)")
    group.add_argument(
        "--train_data_dir",
        type=Path,
        metavar="DIR",
        help="Folder with a subfolder of images per class; for a unet with --no-class_conditional, just images.",
    )
    group.add_argument(
        "--dataset_name",
        metavar="NAME",
        help="Dataset of the Hub, or a local folder that `datasets.load_dataset` reads (of Parquet files, say).",
    )
    group.add_argument(
        "--train_data_files",
        nargs="+",
        metavar="FILE",
        help="Parquet (.parquet) or webdataset (.tar) files: paths, patterns such as 'shards/*.tar', or URLs.",
    )
    group.add_argument("--dataset_config_name", metavar="NAME", help="Configuration of a dataset that has several.")
    group.add_argument("--split", help="Split of the dataset to train on; train by default.")
    group.add_argument("--image_column", metavar="NAME", help="Column of images; the only one by default.")
    group.add_argument(
        "--label_column",
        metavar="NAME",
        help="Column of labels, whole numbers from 0; by default the only one of class labels, or else label or cls.",
    )
    group.add_argument(
        "--class_names", nargs="+", metavar="NAME", help="What the classes are called, where the dataset does not say."
    )
    group.add_argument(
        "--num_classes", type=int, help="Number of classes, where a streamed dataset holds plain numbers as labels."
    )
    group.add_argument(
        "--streaming",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Read the dataset while training, in place of downloading and converting it first.",
    )
    group.add_argument(
        "--shuffle_buffer_size",
        type=int,
        default=1000,
        help="Images of a stream among which the next one is drawn; 0 to take them as they come.",
    )
    group.add_argument(
        "--images_per_epoch", type=int, help="What counts as an epoch of a stream, whose length is not known."
    )
    group.add_argument("--cache_dir", type=Path, help="Where `datasets` keeps what it downloads and converts.")
    group.add_argument("--resolution", type=int, default=64, help="Images are resized and cropped to this side.")
    group.add_argument("--channels", type=int, choices=(1, 3, 4), default=3, help="Gray, RGB or RGBA.")
    group.add_argument(
        "--center_crop",
        action=argparse.BooleanOptionalAction,
        default=center_crop,
        help="Cut out the middle, or else a random part of an image up to a quarter larger.",
    )
    group.add_argument(
        "--random_flip",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Mirror images at random, left to right.",
    )
    group.add_argument(
        "--dataloader_num_workers",
        type=int,
        default=0,
        help="Processes that load images; of a stream, threads of one process that decode them.",
    )
    group.add_argument(
        "--skip_bad_images",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Leave out images that cannot be read, instead of refusing them; those met while training are counted, and "
        "the next one of the data stands in.",
    )
    group.add_argument(
        "--verify_images",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Decode every image once before training starts; not possible with --streaming.",
    )


def add_trunk_arguments(parser: argparse.ArgumentParser, base_channels: int, layers_per_block: int) -> None:
    group = parser.add_argument_group("architecture (section 3 of the paper)")
    group.add_argument(
        "--init_from",
        metavar="PATH_OR_ID",
        help="Fine-tune: start from a checkpoint of OpenAI's (.pt), a model or a pipeline (a folder, or an id on the "
        "Hub). Flags of the architecture are taken from it; layers that do not fit the classes, channels or resolution "
        "start anew. The noise schedule is not: see --ddpm_beta_schedule.",
    )
    group.add_argument("--base_channels", type=int, default=base_channels, help="Width that the multipliers multiply.")
    group.add_argument(
        "--channel_multipliers",
        type=float,
        nargs="+",
        help="Width per level; the paper's for the resolution by default.",
    )
    group.add_argument("--layers_per_block", type=int, default=layers_per_block, help="Residual blocks per level.")
    group.add_argument(
        "--attention_resolutions", type=int, nargs="*", help="Levels with attention; those of 32, 16, 8 by default."
    )
    group.add_argument("--attention_head_dim", type=int, help="Width of an attention head; 64 by default.")
    group.add_argument("--num_attention_heads", type=int, help="Number of heads, in place of a width.")
    group.add_argument(
        "--resample_type", choices=("resnet", "conv"), default="resnet", help="BigGAN blocks or convolutions."
    )
    group.add_argument(
        "--resnet_time_scale_shift",
        choices=("scale_shift", "default"),
        default="scale_shift",
        help="AdaGN, or addition followed by GroupNorm.",
    )
    group.add_argument(
        "--rescale_residual",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Divide residual sums by the square root of 2.",
    )
    group.add_argument("--dropout", type=float, default=0.0, help="Dropout probability in the residual blocks.")
    group.add_argument("--norm_num_groups", type=int, default=32, help="Groups of every GroupNorm.")


def add_training_arguments(
    parser: argparse.ArgumentParser, learning_rate: float, weight_decay: float, use_ema: bool
) -> None:
    group = parser.add_argument_group("training")
    group.add_argument("--output_dir", type=Path, required=True, help="Where checkpoints, pictures and the result go.")
    group.add_argument("--seed", type=int, default=0, help="Seed of everything random.")
    group.add_argument("--train_batch_size", type=int, default=16, help="Images per process at once.")
    group.add_argument(
        "--total_batch_size",
        type=int,
        help="Images per optimizer step over all processes; as many batches are accumulated as it takes.",
    )
    group.add_argument("--eval_batch_size", type=int, default=64, help="Images at once where nothing is trained.")
    group.add_argument("--num_epochs", type=int, default=100, help="Passes over the data.")
    group.add_argument("--max_train_steps", type=int, help="Optimizer steps, in place of --num_epochs.")
    group.add_argument(
        "--gradient_accumulation_steps",
        type=int,
        help="Batches of each process per optimizer step: 1, or what --total_batch_size takes.",
    )
    group.add_argument(
        "--gradient_checkpointing",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="Less memory, more computation.",
    )
    group.add_argument("--learning_rate", type=float, default=learning_rate, help="AdamW's learning rate.")
    group.add_argument(
        "--lr_scheduler",
        default="constant",
        help="A schedule of diffusers for it: constant, constant_with_warmup, linear (to 0), cosine, ...",
    )
    group.add_argument("--lr_warmup_steps", type=int, default=0, help="Steps in which it rises from 0.")
    group.add_argument("--adam_beta1", type=float, default=0.9, help="Decay of the mean of gradients.")
    group.add_argument("--adam_beta2", type=float, default=0.999, help="Decay of the mean of their squares.")
    group.add_argument("--adam_weight_decay", type=float, default=weight_decay, help="AdamW's weight decay.")
    group.add_argument("--adam_epsilon", type=float, default=1e-8, help="AdamW's epsilon.")
    group.add_argument(
        "--max_grad_norm", type=float, default=1.0, help="Gradients are clipped to this norm; 0 for no clipping."
    )
    group.add_argument(
        "--use_ema", action=argparse.BooleanOptionalAction, default=use_ema, help="Average the weights over time."
    )
    group.add_argument(
        "--ema_max_decay",
        type=float,
        nargs="+",
        default=[0.9999],
        help="Decay of the average. Of several, each has its average; the first one's is the result.",
    )
    group.add_argument(
        "--ema_warmup",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="Let the decay rise to that as 1 - (1 + step / inv_gamma) ** -power, or else stay at it.",
    )
    group.add_argument("--ema_inv_gamma", type=float, default=1.0, help="For --ema_warmup.")
    group.add_argument("--ema_power", type=float, default=3 / 4, help="For --ema_warmup.")
    group.add_argument(
        "--mixed_precision", choices=("no", "fp16", "bf16"), help="Accelerate's setting by default; fp16 needs a GPU."
    )
    group.add_argument("--ddpm_num_steps", type=int, default=1000, help="Timesteps T of the diffusion.")
    group.add_argument("--ddpm_beta_schedule", default="linear", help="linear, squaredcos_cap_v2 (cosine), ...")
    group.add_argument(
        "--timestep_sampler",
        choices=TIMESTEP_SAMPLERS,
        default="uniform",
        help="Timesteps to train on: all alike, or in proportion to their recent losses.",
    )
    group.add_argument(
        "--torch_compile",
        nargs="?",
        const="inductor",
        metavar="BACKEND",
        help="Compile the model, by torch's inductor or another backend of torch.compile.",
    )
    group.add_argument("--save_images_epochs", type=int, default=10, help="Epochs between evaluations; 0 for none.")
    group.add_argument("--checkpointing_steps", type=int, default=500, help="Steps between checkpoints; 0 for none.")
    group.add_argument("--checkpoints_total_limit", type=int, help="Keep this many checkpoints, the latest ones.")
    group.add_argument(
        "--resume_from_checkpoint", help='Path of a checkpoint, or "latest" for the newest one in --output_dir.'
    )
    group.add_argument(
        "--logger", default="tensorboard", help="A tracker of Accelerate (tensorboard, wandb, ...), or none."
    )
    group.add_argument("--logging_dir", default="logs", help="Folder for the tracker, inside --output_dir.")
    group = parser.add_argument_group("Hugging Face Hub")
    group.add_argument(
        "--push_to_hub",
        action="store_true",
        help="Publish the result at the end, as who hf auth login or HF_TOKEN says.",
    )
    group.add_argument("--hub_model_id", metavar="OWNER/NAME", help="Where to.")
    group.add_argument("--hub_private_repo", action="store_true", help="For your eyes only, if it is made.")


def trunk_arguments(args: argparse.Namespace) -> dict:
    """The architecture that the flags describe, as arguments of both models.

    Raises:
        InputError: if the paper has no channel multipliers for the resolution and none are given.
    """
    multipliers = args.channel_multipliers or CHANNEL_MULTIPLIERS.get(args.resolution)
    if multipliers is None:
        raise InputError(
            f"There is no customary architecture for --resolution {args.resolution}: pass --channel_multipliers, one "
            "number per level (the image is halved between levels)."
        )
    attention_resolutions = args.attention_resolutions
    if attention_resolutions is None:
        resolutions = [args.resolution // 2**level for level in range(len(multipliers))]
        attention_resolutions = [side for side in ATTENTION_RESOLUTIONS if side in resolutions]
    return {
        "sample_size": args.resolution,
        "in_channels": args.channels,
        "base_channels": args.base_channels,
        "channel_multipliers": tuple(multipliers),
        "layers_per_block": args.layers_per_block,
        "attention_resolutions": tuple(attention_resolutions),
        "attention_head_dim": args.attention_head_dim,
        "num_attention_heads": args.num_attention_heads,
        "resample_type": args.resample_type,
        "resnet_time_scale_shift": args.resnet_time_scale_shift,
        "rescale_residual": args.rescale_residual,
        "dropout": args.dropout,
        "norm_num_groups": args.norm_num_groups,
    }


def image_arguments(args: argparse.Namespace) -> dict:
    """How the flags say that images are prepared and put in order, as arguments of `TrainingImages`."""
    names = ("resolution", "channels", "center_crop", "random_flip", "seed")
    names += ("skip_bad_images", "shuffle_buffer_size", "images_per_epoch")
    return {name: getattr(args, name) for name in names}


def accumulation_steps(args: argparse.Namespace, num_processes: int) -> int:
    """Batches of each process per optimizer step.

    Raises:
        InputError: if `--total_batch_size` is no multiple of what the processes take at once, or contradicts
            `--gradient_accumulation_steps`.
    """
    total, given = args.total_batch_size, args.gradient_accumulation_steps
    if total is None:
        return given or 1
    at_once = args.train_batch_size * num_processes
    where = f"--train_batch_size {args.train_batch_size} on {num_processes} {'process' if num_processes == 1 else 'processes'}"
    if total % at_once:
        raise InputError(
            f"--total_batch_size {total} is no multiple of {at_once}, the images of {where}: choose a batch size that divides it."
        )
    if given is not None and given * at_once != total:
        raise InputError(
            f"--total_batch_size {total} takes {total // at_once} batches of {where}, not --gradient_accumulation_steps "
            f"{given}: leave one of the two out."
        )
    return total // at_once


def resumed_settings(args: argparse.Namespace) -> dict:
    """Settings that a checkpoint and the training that goes on from it must share."""
    return {name: getattr(args, name) for name in RESUMED_SETTINGS if hasattr(args, name)}


def check_training_arguments(args: argparse.Namespace) -> None:
    """Raises `InputError` where a number cannot be meant, or a name on the Hub."""
    if args.push_to_hub:
        check_repo_id(args.hub_model_id or "")
    positive = (
        "resolution",
        "train_batch_size",
        "total_batch_size",
        "eval_batch_size",
        "num_epochs",
        "max_train_steps",
        "gradient_accumulation_steps",
        "learning_rate",
        "ddpm_num_steps",
        "checkpoints_total_limit",
        "num_classes",
        "images_per_epoch",
    )
    for name in positive:
        value = getattr(args, name)
        if value is not None and not value > 0:
            raise InputError(f"--{name} must be greater than 0, got {value}.")
    at_least_0 = (
        "save_images_epochs",
        "checkpointing_steps",
        "lr_warmup_steps",
        "dataloader_num_workers",
        "shuffle_buffer_size",
        "max_grad_norm",
    )
    for name in at_least_0:
        if not getattr(args, name) >= 0:
            raise InputError(f"--{name} must be at least 0, got {getattr(args, name)}.")
    if args.lr_warmup_steps and args.lr_scheduler == "constant":
        raise InputError("--lr_scheduler constant knows no --lr_warmup_steps: pass constant_with_warmup.")
    if not 0 <= args.dropout < 1:
        raise InputError(f"--dropout must lie in [0, 1), got {args.dropout}.")
    for decay in args.ema_max_decay:
        if not 0 <= decay < 1:
            raise InputError(f"--ema_max_decay must lie in [0, 1), got {decay}.")
