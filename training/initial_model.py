"""Fine-tuning: `--init_from` says where a model starts from, and what its architecture is."""

import argparse

from accelerate import Accelerator

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.errors import InputError
from diffusers_cg.models.fine_tuning import load_pretrained, load_weights, scaled_attention_resolutions


FLAGS = {  # and what they are called in a model's config
    "resolution": "sample_size",
    "channels": "in_channels",
    **{
        name: name
        for name in (
            "base_channels",
            "channel_multipliers",
            "layers_per_block",
            "resample_type",
            "resnet_time_scale_shift",
            "rescale_residual",
            "dropout",
            "norm_num_groups",
            "pool",
        )
    },
}
HEADS = ("attention_head_dim", "num_attention_heads")


def take_architecture(
    args: argparse.Namespace, model_class: type[ADMUNet2DModel | NoisyClassifierModel]
) -> ADMUNet2DModel | NoisyClassifierModel | None:
    """Loads the model of `--init_from`, if any, and sets those flags of the architecture in `args` that were not given.

    Raises:
        ValueError: if it cannot be loaded, or its levels do not divide the resolution.
        InputError: if its images are not square.
    """
    if args.init_from is None:
        return None
    pretrained = load_pretrained(model_class, args.init_from)
    config = pretrained.config
    if not isinstance(config.sample_size, int):
        raise InputError(
            f"--init_from {args.init_from} is for images of {config.sample_size}, these scripts take squares."
        )
    for flag, name in FLAGS.items():
        if flag not in args.given and name in config:
            setattr(args, flag, config[name])
    if not set(HEADS) & set(args.given):
        for name in HEADS:
            setattr(args, name, config[name])
    if "attention_resolutions" not in args.given:
        args.attention_resolutions = scaled_attention_resolutions(pretrained, args.resolution)
    return pretrained


def start_from(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: ADMUNet2DModel | NoisyClassifierModel,
    pretrained: ADMUNet2DModel | NoisyClassifierModel | None,
) -> None:
    """Copies the weights of the pretrained model, if any, and says what was replaced.

    Raises:
        ValueError: if a given flag contradicts the pretrained model.
    """
    if pretrained is None:
        return
    replaced = load_weights(model, pretrained)
    names = {parameter.name for parameter in replaced}
    taken = sum(name not in names for name in model.state_dict())
    accelerator.print(f"Started from {args.init_from}: {taken} parameters taken over, {len(replaced)} replaced.")
    for parameter in replaced:
        accelerator.print(f"  {parameter}")
