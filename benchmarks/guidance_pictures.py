"""A picture per guidance, on digits: those of docs/guidance.md.

    python benchmarks/guidance_pictures.py --networks guidance_networks

trains what the digits that ship lack, each in a minute or two: an image classifier and a CLIP of `transformers`, of clean digits and
their names, and a unet that is too small and not trained for long. Those that are in `guidance_networks` already are taken from
there. The pictures come to lie in `benchmarks/figures`: in a column one noise and the digit asked for, in a row one guidance.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, UniPCMultistepScheduler
from digits_guidance import make_resnet, train_on_clean_digits
from digits_judge import RESOLUTION
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    ViTImageProcessorPil,
)

from diffusers_cg import DIGITS, ADMUNet2DModel, ClassifierGuidedDDIMPipeline
from diffusers_cg.data.files import atomic_directory
from diffusers_cg.data.grids import image_grid
from diffusers_cg.diffusion import EDMHeunScheduler
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import (
    AutoGuidance,
    ClassifierGuidance,
    CleanClassifierGuidance,
    EnergyGuidance,
    PerturbedAttentionGuidance,
    TextGuidance,
    TrainingFreeGuidance,
    image_classifier,
)
from diffusers_cg.training import export_digits, train_unet
from diffusers_cg_cli.command import run_script
from diffusers_cg_cli.settings import Settings


FIGURES = Path(__file__).parent / "figures"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
LABELS = list(range(10))
SEED = 30
TRAINING = {"num_steps": 400, "learning_rate": 4e-3}


# ------------------------------------------------------------------------------------------------------------- networks


def save_resnet(directory: Path) -> None:
    model = make_resnet()
    train_on_clean_digits(model, lambda images: model(images).logits, **TRAINING)
    model.save_pretrained(directory)
    size = {"height": RESOLUTION, "width": RESOLUTION}
    ViTImageProcessorPil(size=size, image_mean=[0.5], image_std=[0.5]).save_pretrained(directory)


def save_clip(directory: Path) -> None:
    """It spells: a token is a letter."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    tokenizer = CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
    width = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**width, "vocab_size": len(tokens), "max_position_embeddings": 16, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**width, "image_size": RESOLUTION, "patch_size": 4, "num_channels": 1}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32))
    words = tokenizer([f"a {word}" for word in WORDS], padding=True, return_tensors="pt")
    train_on_clean_digits(model, lambda images: model(pixel_values=images, **words).logits_per_image, **TRAINING)
    model.save_pretrained(directory)
    size = {"height": RESOLUTION, "width": RESOLUTION}
    images = CLIPImageProcessorPil(size=size, crop_size=size, image_mean=[0.5], image_std=[0.5], do_convert_rgb=False)
    CLIPProcessor(images, tokenizer).save_pretrained(directory)


def save_weak_unet(directory: Path) -> None:
    digits = directory.parent / "digits"
    if not digits.exists():
        export_digits.main(export_digits.ExportSettings(output_dir=digits))
    flags = f"""--train_data_dir {digits / "train"} --resolution 16 --channels 1 --center_crop --base_channels 32
        --channel_multipliers 1 1 --layers_per_block 1 --attention_resolutions 8 --attention_head_dim 32
        --ddpm_beta_schedule squaredcos_cap_v2 --class_conditional --learning_rate 1e-3 --lr_warmup_steps 0
        --train_batch_size 16 --max_train_steps 200 --save_images_epochs 0 --checkpointing_steps 0 --logger none"""
    train_unet.main(train_unet.parse_args([*flags.split(), "--output_dir", str(directory)]))
    if not (directory / "unet").is_dir():
        raise InputError("The training of the weak unet was stopped: start again.")


NETWORKS = {"resnet": save_resnet, "clip": save_clip, "weak": save_weak_unet}


# ------------------------------------------------------------------------------------------------------------- pictures


PICTURES = (
    *("classifier", "clean_classifier", "text", "energy", "training_free"),
    *("classifier_free", "perturbed_attention", "autoguidance", "combined", "few_steps"),
)


def pictures(networks: Path) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """The name of each picture, and what the calls of its rows are given."""
    unconditional = pipeline("unet_unconditional")
    conditional = pipeline("unet")
    resnet = AutoModelForImageClassification.from_pretrained(networks / "resnet")
    classify = image_classifier(resnet, AutoImageProcessor.from_pretrained(networks / "resnet", backend="pil"))
    clip = CLIPModel.from_pretrained(networks / "clip")
    processor = CLIPProcessor.from_pretrained(networks / "clip", backend="pil")
    weak = ADMUNet2DModel.from_pretrained(networks / "weak", subfolder="unet")

    def row(guidance=None, pipe=unconditional, **call):
        return {"pipe": pipe, "guidance": guidance, **call}

    noisy = ClassifierGuidance(unconditional.classifier, scale=2.0)
    yield (
        "classifier",
        {
            "no guidance": row(),
            "scale 2": row(noisy),
            "entropy-driven 1": row(ClassifierGuidance(unconditional.classifier, scale=1.0, entropy_driven=True)),
        },
    )
    yield (
        "clean_classifier",
        {
            "no guidance": row(),
            "at the clean image": row(CleanClassifierGuidance(classify, scale=4.0, marginal_temperature=0.5)),
            "through the unet": row(CleanClassifierGuidance(classify, scale=4.0, through_unet=True)),
        },
    )
    text = TextGuidance(clip, processor, [f"a {word}" for word in WORDS], scale=80.0).confined(sigmas=(0.0, 10.0))
    yield "text", {"no guidance": row(steps=20), "its text": row(text, steps=20)}

    def dark(clean_images):  # of images in [-1, 1]
        return (clean_images.mean(dim=(1, 2, 3)) + 0.6).square()

    def symmetric(clean_images):
        return (clean_images - clean_images.flip(dims=[3])).square().mean(dim=(1, 2, 3))

    yield (
        "energy",
        {
            "no guidance": row(pipe=conditional),
            "dark": row(EnergyGuidance(dark, scale=150.0), conditional),
            "mirror images": row(EnergyGuidance(symmetric, scale=50.0), conditional),
        },
    )
    target = CleanClassifierGuidance(classify)
    free = {
        "DPS": {"rho": 1.0},
        "LGD": {"rho": 1.0, "sigma": 0.3},
        "FreeDoM": {"rho": 0.5, "num_recurrences": 2},
        "MPGD": {"mu": 0.5, "mu_schedule": "constant"},
        "Universal": {"rho": 0.5, "mu": 0.25, "num_iterations": 2, "num_recurrences": 2},
    }
    ddim = pipeline("unet_unconditional", None)
    rows = {name: row(TrainingFreeGuidance(target, **options), ddim, steps=20) for name, options in free.items()}
    yield "training_free", {"no guidance": row(pipe=ddim, steps=20), **rows}
    without_class = AutoGuidance(unconditional.unet, 3.0)
    yield (
        "classifier_free",
        {
            "w = 0": row(AutoGuidance(unconditional.unet, 0.0), conditional),
            "w = 1": row(pipe=conditional),
            "w = 3": row(without_class, conditional),
        },
    )
    yield (
        "perturbed_attention",
        {
            "no guidance": row(),
            "scale 1": row(PerturbedAttentionGuidance(unconditional.unet, 1.0)),
            "scale 3": row(PerturbedAttentionGuidance(unconditional.unet, 3.0)),
        },
    )
    yield (
        "autoguidance",
        {
            "weak unet": row(AutoGuidance(weak, 0.0), conditional),
            "w = 1": row(pipe=conditional),
            "w = 2": row(AutoGuidance(weak, 2.0), conditional),
        },
    )
    yield (
        "combined",
        {
            "every step": row(noisy),
            "every second": row(noisy.confined(every=2)),
            "sigmas 0.3 to 5": row(noisy.confined(sigmas=(0.3, 5.0))),
            "clamped to 2": row(noisy.clamped(2.0)),
            "and darker": row(noisy + EnergyGuidance(dark, scale=150.0)),
        },
    )
    schedulers = {
        "DDIM": None,
        "DPMSolverMultistep": DPMSolverMultistepScheduler,
        "UniPCMultistep": UniPCMultistepScheduler,
        "EulerDiscrete": EulerDiscreteScheduler,
        "EDMHeun": EDMHeunScheduler,
    }
    yield (
        "few_steps",
        {
            name: row(noisy, pipeline("unet_unconditional", each), steps=10 if each is EDMHeunScheduler else 7)
            for name, each in schedulers.items()
        },
    )


def pipeline(unet: str, scheduler: type | None = DPMSolverMultistepScheduler) -> ClassifierGuidedDDIMPipeline:
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(
        DIGITS, unet=ADMUNet2DModel.from_pretrained(DIGITS, subfolder=unet), solver=None
    )
    if scheduler is not None:
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe: ClassifierGuidedDDIMPipeline, guidance=None, steps: int = 10) -> tuple[np.ndarray, dict[str, int]]:
    generators = [torch.Generator().manual_seed(SEED + label) for label in LABELS]
    call = {"num_inference_steps": steps, "classifier_scale": 0.0, "generator": generators, "output_type": "np"}
    drawn = pipe(class_labels=LABELS, guidance=guidance, **call)
    return drawn.images, drawn.evaluations


class PictureSettings(Settings):
    networks: Path
    """Folder of the networks that are trained."""

    only: list[Literal[PICTURES]] = list(PICTURES)
    """What to draw."""


def main(settings: PictureSettings) -> None:
    torch.set_num_threads(1)
    for name, make in NETWORKS.items():
        if not (settings.networks / name).exists():
            torch.manual_seed(0)
            with atomic_directory(settings.networks / name) as directory:
                make(directory)
    for name, rows in pictures(settings.networks):
        if name in settings.only:
            drawn = {label: draw(**call) for label, call in rows.items()}
            print(name, {label: evaluations for label, (_, evaluations) in drawn.items()})
            images = [images for images, _ in drawn.values()]
            grid = image_grid(
                images, row_labels=list(drawn), column_labels=list(map(str, LABELS)), tile_size=40, gap=3
            )
            grid.convert("L").save(FIGURES / f"guidance_{name}.png", optimize=True)


if __name__ == "__main__":
    run_script(main, PictureSettings, __doc__)
