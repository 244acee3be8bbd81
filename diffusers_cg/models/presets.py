"""The paper's networks, a row each: architecture and training (its tables 11 to 13), steps and scales of sampling.

OpenAI's released files are recognised by these rows, and recipes of training name them.
"""

from dataclasses import dataclass
from typing import Any, Literal


CHANNEL_MULTIPLIERS = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2),  # not the paper's, whose smallest images have 64 pixels
    16: (1, 2),
}
"""Width of each level, finest first, by the side of the image."""

ATTENTION_RESOLUTIONS = (32, 16, 8)
"""Side of the feature maps of the levels with attention, of those that a network has (section 3)."""


@dataclass(frozen=True)
class Preset:
    """What the paper and OpenAI's repository say of a network that they released.

    Args:
        kind (`"unet"` or `"classifier"`): What it is.
        architecture (`dict`): The constructor's arguments, as far as they differ between the networks.
        low_res_size (`int`, *optional*): Side of the low-resolution images of an upsampler.
        beta_schedule (`str`): The noise schedule, by diffusers' name.
        max_train_steps (`int`, *optional*): Iterations; None where nothing is said.
        total_batch_size, learning_rate, adam_weight_decay (`int`, `float`): Of the training.
        ddpm_num_inference_steps (`int`, *optional*): Steps of the paper's tables; like the scales, of a unet alone.
        ddpm_classifier_scale, ddim_classifier_scale (`float`, *optional*): Scale of the paper's tables, with that many
            DDPM steps and with 25 DDIM steps (where the paper has none, the former).
        new_attention_order (`bool`): Whether the file stacks query, key and value as wholes.
    """

    kind: Literal["unet", "classifier"]
    architecture: dict[str, Any]
    max_train_steps: int | None
    low_res_size: int | None = None
    beta_schedule: str = "linear"
    total_batch_size: int = 256
    learning_rate: float = 1e-4
    adam_weight_decay: float = 0.0
    ddpm_num_inference_steps: int | None = None
    ddpm_classifier_scale: float | None = None
    ddim_classifier_scale: float | None = None
    new_attention_order: bool = False


def _unet(size, low_res_size, width, depth, heads, dropout, classes, steps, ddpm_scale, ddim_scale, iterations, **own):
    multipliers = CHANNEL_MULTIPLIERS[size if low_res_size is None else 256]
    lowest = size // 2 ** (len(multipliers) - 1)
    architecture = {
        "sample_size": size,
        "in_channels": 3,
        "low_res_channels": 0 if low_res_size is None else 3,
        "out_channels": 6,  # the noise, and the variance that it learns
        "base_channels": width,
        "channel_multipliers": multipliers,
        "layers_per_block": depth,
        "attention_resolutions": tuple(side for side in ATTENTION_RESOLUTIONS if side >= lowest),
        **({"attention_head_dim": 64} if heads is None else {"num_attention_heads": heads}),
        "resample_type": "resnet",  # BigGAN's
        "resnet_time_scale_shift": "scale_shift",  # AdaGN
        "num_class_embeds": classes,
        "dropout": dropout,
    }
    return Preset("unet", architecture, iterations, low_res_size, **own, ddpm_num_inference_steps=steps,
                  ddpm_classifier_scale=ddpm_scale, ddim_classifier_scale=ddim_scale)  # fmt: skip


def _classifier(size, depth, schedule, batch, learning_rate, weight_decay, iterations):
    architecture = {
        "sample_size": size,
        "in_channels": 3,
        "num_classes": 1000,
        "pool": "attention",
        "base_channels": 128,
        "channel_multipliers": CHANNEL_MULTIPLIERS[size],
        "layers_per_block": depth,
        "attention_resolutions": ATTENTION_RESOLUTIONS,
        "attention_head_dim": 64,
        "resample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "dropout": 0.0,
    }
    return Preset("classifier", architecture, iterations, None, schedule, batch, learning_rate, weight_decay)


COSINE, LINEAR = "squaredcos_cap_v2", "linear"

# fmt: off
PRESETS: dict[str, Preset] = {
    #                              size   from  width depth heads dropout classes steps  DDPM  DDIM25  iterations
    #                                                                                    scale scale
    "64x64_diffusion":          _unet( 64, None,  192,  3,  None,  0.1,  1000,   250,  1.0,  1.0,    540_000,
                                      beta_schedule=COSINE, total_batch_size=2048, learning_rate=3e-4,
                                      new_attention_order=True),
    "128x128_diffusion":        _unet(128, None,  256,  2,     4,  0.0,  1000,   250,  0.5,  1.25, 4_360_000),
    "256x256_diffusion":        _unet(256, None,  256,  2,  None,  0.0,  1000,   250,  1.0,  2.5,  1_980_000),
    # of this one the paper says 2M iterations, in table 4 alone: the conditional one's are meant
    "256x256_diffusion_uncond": _unet(256, None,  256,  2,  None,  0.0,  None,   250, 10.0, 10.0,  1_980_000),
    "512x512_diffusion":        _unet(512, None,  256,  2,  None,  0.0,  1000,   250,  4.0,  9.0,  1_940_000),
    "64_256_upsampler":         _unet(256,   64,  192,  2,     4,  0.0,  1000,   250,  1.0,  1.0,    500_000),
    "128_512_upsampler":        _unet(512,  128,  192,  2,  None,  0.0,  1000,   250,  1.0,  1.0,  1_050_000),
    "lsun_bedroom":             _unet(256, None,  256,  2,  None,  0.1,  None,  1000,  1.0,  1.0,    500_000),
    "lsun_cat":                 _unet(256, None,  256,  2,  None,  0.1,  None,  1000,  1.0,  1.0,    200_000),
    "lsun_horse":               _unet(256, None,  256,  2,  None,  0.1,  None,  1000,  1.0,  1.0,    250_000),
    "lsun_horse_nodropout":     _unet(256, None,  256,  2,  None,  0.0,  None,  1000,  1.0,  1.0,       None),

    #                                size depth schedule batch  rate  decay  iterations
    "64x64_classifier":   _classifier( 64,  4,  COSINE,  1024,  6e-4,  0.2,   300_000),
    "128x128_classifier": _classifier(128,  2,  LINEAR,   256,  3e-4,  0.05,  300_000),
    "256x256_classifier": _classifier(256,  2,  LINEAR,   256,  3e-4,  0.05,  500_000),
    "512x512_classifier": _classifier(512,  2,  LINEAR,   256,  3e-4,  0.05,  500_000),
}
# fmt: on
"""The 15 released files, by name without `.pt`. Heads are four, or as many as have 64 channels each (None)."""
