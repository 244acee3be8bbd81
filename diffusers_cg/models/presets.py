"""The one table of networks that others trained: what they are, the names of their files, and all that shapes do not tell.

OpenAI's fifteen ([`PRESETS`]) and those that people made since ([`COMMUNITY`]) are recognised by these rows, README's
tables are made of them, and recipes of training name the paper's. A row is added by `register_layout` (own_layouts.py).
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

COSINE, LINEAR = "squaredcos_cap_v2", "linear"

CONTINUOUS_COSINE = "continuous_cosine"
"""abar = cos^2(pi t / 2 T) of any real t in [0, T], no schedule of diffusers' own: a scheduler gets it as `trained_betas`."""


@dataclass(frozen=True)
class Layout:
    """A network that was trained elsewhere.

    Args:
        kind (`"unet"` or `"classifier"`): What it is.
        architecture (`dict`): The constructor's arguments, as far as they differ between the networks.
        files (`tuple[str, ...]`): Names, without suffix, of the files that have it.
        new_attention_order (`bool`): Whether the files stack query, key and value as wholes.
        num_train_timesteps (`int`): T.
        beta_schedule (`str`): The noise schedule, by diffusers' name, or [`CONTINUOUS_COSINE`].
        rescale_timesteps (`bool`): Whether the network sees t x 1000 / T.
        prediction_type (`str`): What a unet predicts, by diffusers' name.
        low_res_size (`int`, *optional*): Side of the low-resolution images of an upsampler.
        source (`str`): Where it is from.
        license (`str`): What its authors say of the weights, or of the repository that they came with.
        note (`str`): What else one should know.
    """

    kind: Literal["unet", "classifier"]
    architecture: dict[str, Any]
    files: tuple[str, ...]
    new_attention_order: bool = False
    num_train_timesteps: int = 1000
    beta_schedule: str = LINEAR
    rescale_timesteps: bool = False
    prediction_type: str = "epsilon"
    low_res_size: int | None = None
    source: str = ""
    license: str = "not stated"
    note: str = ""


@dataclass(frozen=True)
class Preset(Layout):
    """A network of the paper, with its training (tables 11 to 13) and the steps and scales of its sampling.

    Args:
        max_train_steps (`int`, *optional*): Iterations; None where nothing is said.
        total_batch_size, learning_rate, adam_weight_decay (`int`, `float`): Of the training.
        ddpm_num_inference_steps (`int`, *optional*): Steps of the paper's tables; like the scales, of a unet alone.
        ddpm_classifier_scale, ddim_classifier_scale (`float`, *optional*): Scale of the paper's tables, with that many
            DDPM steps and with 25 DDIM steps (where the paper has none, the former).
    """

    source: str = "openai/guided-diffusion"
    license: str = "MIT"
    max_train_steps: int | None = None
    total_batch_size: int = 256
    learning_rate: float = 1e-4
    adam_weight_decay: float = 0.0
    ddpm_num_inference_steps: int | None = None
    ddpm_classifier_scale: float | None = None
    ddim_classifier_scale: float | None = None


def _architecture(
    size, width, depth, attention, heads=None, *, low_res=False, out=6, classes=None, dropout=0.0, multipliers=None,
    resample="resnet", shift="scale_shift",
):  # fmt: skip
    """A unet's of three channels; heads by number, or of 64 channels each (None)."""
    return {
        "sample_size": size,
        "in_channels": 3,
        "low_res_channels": 3 if low_res else 0,
        "out_channels": out,  # with the variance that it learns, 6
        "base_channels": width,
        "channel_multipliers": multipliers or CHANNEL_MULTIPLIERS[size],
        "layers_per_block": depth,
        "attention_resolutions": attention,
        **({"attention_head_dim": 64} if heads is None else {"num_attention_heads": heads}),
        "resample_type": resample,
        "resnet_time_scale_shift": shift,
        "num_class_embeds": classes,
        "dropout": dropout,
    }


def _unet(
    name, size, low_res_size, width, depth, heads, dropout, classes, steps, ddpm_scale, ddim_scale, iterations, **own
):
    multipliers = CHANNEL_MULTIPLIERS[size if low_res_size is None else 256]
    lowest = size // 2 ** (len(multipliers) - 1)
    attention = tuple(side for side in ATTENTION_RESOLUTIONS if side >= lowest)
    architecture = _architecture(
        size, width, depth, attention, heads, low_res=low_res_size is not None, classes=classes, dropout=dropout,
        multipliers=multipliers,
    )  # fmt: skip
    return Preset(
        "unet", architecture, (name,), low_res_size=low_res_size, max_train_steps=iterations,
        ddpm_num_inference_steps=steps, ddpm_classifier_scale=ddpm_scale, ddim_classifier_scale=ddim_scale, **own,
    )  # fmt: skip


def _classifier(name, size, depth, schedule, batch, learning_rate, weight_decay, iterations):
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
    return Preset(
        "classifier", architecture, (name,), beta_schedule=schedule, max_train_steps=iterations, total_batch_size=batch,
        learning_rate=learning_rate, adam_weight_decay=weight_decay,
    )  # fmt: skip


# fmt: off
PRESETS: dict[str, Preset] = {name: make(name, *row, **own) for name, make, row, own in [
    #                                    size   from  width depth heads dropout classes steps  DDPM  DDIM25  iterations
    #                                                                                          scale scale
    ("64x64_diffusion",          _unet, ( 64, None,  192,  3,  None,  0.1,  1000,   250,  1.0,  1.0,    540_000),
        {"beta_schedule": COSINE, "total_batch_size": 2048, "learning_rate": 3e-4, "new_attention_order": True}),
    ("128x128_diffusion",        _unet, (128, None,  256,  2,     4,  0.0,  1000,   250,  0.5,  1.25, 4_360_000), {}),
    ("256x256_diffusion",        _unet, (256, None,  256,  2,  None,  0.0,  1000,   250,  1.0,  2.5,  1_980_000), {}),
    # of this one the paper says 2M iterations, in table 4 alone: the conditional one's are meant
    ("256x256_diffusion_uncond", _unet, (256, None,  256,  2,  None,  0.0,  None,   250, 10.0, 10.0,  1_980_000), {}),
    ("512x512_diffusion",        _unet, (512, None,  256,  2,  None,  0.0,  1000,   250,  4.0,  9.0,  1_940_000), {}),
    ("64_256_upsampler",         _unet, (256,   64,  192,  2,     4,  0.0,  1000,   250,  1.0,  1.0,    500_000), {}),
    ("128_512_upsampler",        _unet, (512,  128,  192,  2,  None,  0.0,  1000,   250,  1.0,  1.0,  1_050_000), {}),
    ("lsun_bedroom",             _unet, (256, None,  256,  2,  None,  0.1,  None,  1000,  1.0,  1.0,    500_000), {}),
    ("lsun_cat",                 _unet, (256, None,  256,  2,  None,  0.1,  None,  1000,  1.0,  1.0,    200_000), {}),
    ("lsun_horse",               _unet, (256, None,  256,  2,  None,  0.1,  None,  1000,  1.0,  1.0,    250_000), {}),
    ("lsun_horse_nodropout",     _unet, (256, None,  256,  2,  None,  0.0,  None,  1000,  1.0,  1.0,       None), {}),

    #                                      size depth schedule batch  rate  decay  iterations
    ("64x64_classifier",   _classifier, ( 64,  4,  COSINE,  1024,  6e-4,  0.2,   300_000), {}),
    ("128x128_classifier", _classifier, (128,  2,  LINEAR,   256,  3e-4,  0.05,  300_000), {}),
    ("256x256_classifier", _classifier, (256,  2,  LINEAR,   256,  3e-4,  0.05,  500_000), {}),
    ("512x512_classifier", _classifier, (512,  2,  LINEAR,   256,  3e-4,  0.05,  500_000), {}),
]}
"""The 15 released files, by name without `.pt`. Heads are four, or as many as have 64 channels each (None)."""


IMPROVED = {"source": "openai/improved-diffusion", "license": "MIT"}
DISCO = {"source": "alembics/disco-diffusion"}  # which downloads them from their authors, who state no license
CONV = {"resample": "conv"}
CONV_DEFAULT = {"resample": "conv", "shift": "default"}

COMMUNITY: dict[str, Layout] = {name: Layout("unet", _architecture(*row, **switches), files, **own)
                                for name, row, switches, files, own in [
    #                               size width depth attention   heads
    ("p2_256",                     (256, 128, 1, (16,)), {},
        ("ffhq_10m", "ffhq256", "diffusion_ffhq_10m", "afhq_dog_4m", "cat_ema_0.9999_050000", "wild_ema_0.9999_050000",
         "ffhq_p2", "ffhq_baseline", "celebahq_p2", "cub_p2", "afhqdog_p2", "flower_p2", "metface_p2"),
        {"source": "jychoi118/ilvr_adm, jychoi118/P2-weighting, DPS2022/diffusion-posterior-sampling",
         "license": "MIT (P2-weighting)"}),
    ("uncond_256_renamed",         (256, 256, 2, (32, 16, 8)), {},
        ("imagenet256", "openai_imagenet", "diffusion_openai", "celeba256_250000", "places256_300000"),
        {"source": "DPS2022/diffusion-posterior-sampling, andreas128/RePaint, YWolfeee/Training-Free-Guidance",
         "license": "CC BY-NC-SA 4.0 (RePaint's), MIT (OpenAI's, renamed)"}),
    ("ffhq_256_dropout",           (256, 256, 2, (32, 16, 8)), {"dropout": 0.1}, ("ffhq",),
        {"source": "yandex-research/ddpm-segmentation", "license": "MIT"}),
    ("512_uncond_finetune",        (512, 256, 2, (32, 16, 8)), {}, ("512x512_diffusion_uncond_finetune_008100",),
        {"rescale_timesteps": True, **DISCO}),
    ("512_openimages_v",           (512, 256, 2, (32, 16, 8)), {},
        ("512x512_diffusion_uncond_openimages_epoch28_withfilter",),
        {"beta_schedule": CONTINUOUS_COSINE, "prediction_type": "v_prediction", "source": "crowsonkb (notebooks)",
         "note": "the network's time is 1000 t of the cosine process of continuous t; its last 3 channels mean nothing"}),
    ("portrait_512",               (512, 128, 2, (32, 16, 8), 4), {},
        ("portrait_generator_v001", "portrait_generator_v001_ema_0.9999_1MM"), {"rescale_timesteps": True, **DISCO}),
    ("pixelart_256",               (256, 128, 2, (16,), 1), CONV_DEFAULT,
        ("pixelartdiffusion_expanded", "PADexpanded", "pixelartdiffusion4k", "pixel_art_diffusion_hard_256",
         "pixel_art_diffusion_soft_256", "watercolordiffusion", "watercolordiffusion_2", "PulpSciFiDiffusion"),
        {"rescale_timesteps": True, **DISCO}),
    ("improved_lsun_256",          (256, 128, 2, (16,), 1), CONV_DEFAULT,
        ("lsun_uncond_100M_1200K_bs128", "lsun_uncond_100M_2400K_bs64"), IMPROVED),
    ("improved_imagenet64_uncond", ( 64, 128, 3, (16, 8), 4), CONV,
        ("imagenet64_uncond_100M_1500K", "imagenet64_uncond_vlb_100M_1500K"),
        {"num_train_timesteps": 4000, "beta_schedule": COSINE, "rescale_timesteps": True, **IMPROVED}),
    ("improved_cifar10",           ( 32, 128, 3, (16, 8), 4), {"multipliers": (1, 2, 2, 2), "dropout": 0.3, **CONV},
        ("cifar10_uncond_50M_500K", "cifar10_uncond_vlb_50M_500K"),
        {"num_train_timesteps": 4000, "beta_schedule": COSINE, "rescale_timesteps": True, **IMPROVED}),
    ("improved_imagenet64_cond",   ( 64, 192, 3, (16, 8), 4), {"classes": 1000, **CONV}, ("imagenet64_cond_270M_250K",),
        {"num_train_timesteps": 4000, "beta_schedule": COSINE, **IMPROVED}),
    ("improved_upsample",          (256, 192, 2, (16, 8), 4), {"classes": 1000, "low_res": True, **CONV},
        ("upsample_cond_500K",), {"num_train_timesteps": 4000, "low_res_size": 64, **IMPROVED}),
    ("tfg_cifar10",                ( 32, 128, 3, (16, 8), 4), {"multipliers": (1, 2, 2, 2), "out": 3, **CONV},
        ("openai_cifar10",), {"source": "YWolfeee/Training-Free-Guidance", "license": "MIT"}),
    ("dime_celeba_128",            (128, 128, 2, (32, 16, 8), 4), {}, ("DiME's and ACE's CelebA file",),
        {"num_train_timesteps": 500, "source": "guillaumejs2403/DiME", "license": "MIT",
         "note": "its two sources disagree on the heads: 4, or 64 channels each (attention_head_dim=64)"}),
    ("ace_celebahq_256",           (256, 128, 2, (32, 16, 8)), {}, ("ACE's CelebA-HQ file",),
        {"num_train_timesteps": 500, "source": "guillaumejs2403/ACE", "license": "MIT"}),
]}
# fmt: on
"""Layouts trained or fine-tuned outside the paper. Of those of one shape, the first is assumed of a file of no known name."""


LAYOUTS: dict[str, Layout] = {**PRESETS, **COMMUNITY}
"""Every row, by name; those that are registered come last."""


# --------------------------------------------------------------------------------------------------------- for a reader

SCHEDULE_WORDS = {LINEAR: "linear", COSINE: "cosine", CONTINUOUS_COSINE: "cosine, real times"}


def layouts_table(parameters: dict[str, int]) -> str:
    """The whole table in Markdown, as docs/checkpoints.md has it.

    Args:
        parameters (`dict[str, int]`): Number of parameters of each row, by its name.
    """
    lines = ["| files | parameters | network | schedule | steps | scale, DDPM | scale, 25 DDIM steps |"]
    lines.append("| --- " * 7 + "|")
    for name, row in PRESETS.items():
        steps, *scales = row.ddpm_num_inference_steps, row.ddpm_classifier_scale, row.ddim_classifier_scale
        cells = ["", "", ""] if steps is None else [str(steps), *map(str, scales)]
        lines.append(_table_row(name, parameters[name], _network_words(row), _process_words(row), *cells))
    lines += [
        "",
        "| files | parameters | layout | network | schedule | predicts | from | license |",
        "| --- " * 8 + "|",
    ]
    predicts = {"epsilon": "noise", "sample": "clean image", "v_prediction": "v"}
    for name, row in COMMUNITY.items():
        cells = (
            f"`{name}`",
            _network_words(row),
            _process_words(row),
            predicts[row.prediction_type],
            row.source,
            row.license,
        )
        lines.append(_table_row(row.files, parameters[name], *cells))
    return "\n".join(lines)


def _table_row(files: str | tuple[str, ...], parameters: int, *cells: str) -> str:
    names = ", ".join(f"`{file}`" for file in ([files] if isinstance(files, str) else files))
    return f"| {' | '.join([names, f'{parameters:,}', *cells])} |"


def _network_words(row: Layout) -> str:
    size, classes = row.architecture["sample_size"], row.architecture.get("num_class_embeds")
    if row.kind == "classifier":
        return f"classifier, {size}, {row.architecture['num_classes']:,} classes"
    kind = "unet" if row.low_res_size is None else f"upsampling unet, {row.low_res_size} to"
    return f"{kind} {size}, {f'{classes:,} classes' if classes else 'unconditional'}"


def _process_words(row: Layout) -> str:
    rescaled = ", rescaled" if row.rescale_timesteps else ""
    return f"{SCHEDULE_WORDS[row.beta_schedule]}, T = {row.num_train_timesteps:,}{rescaled}"
