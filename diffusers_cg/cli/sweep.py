"""`diffusers-cg sweep`: fidelity against diversity, scale by scale."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffusers_cg.errors import InputError
from diffusers_cg_cli.app import ManyValues, app
from diffusers_cg_cli.command import command
from diffusers_cg_cli.evaluate import open_extractor, open_sets
from diffusers_cg_cli.options import (
    BATCH_SIZE,
    CACHE_DIR,
    CLASSES,
    CONFIG_NAME,
    DEVICE,
    DTYPE,
    EXTRACTOR,
    IMAGE_COLUMN,
    INCEPTION_WEIGHTS,
    MODEL,
    RANDOM_CLASSES,
    REFERENCE,
    RESOLUTION,
    SEED,
    SPLIT,
    Dtype,
)


if TYPE_CHECKING:
    from diffusers_cg.evaluation.sweep import Sampler


@app.command(cls=ManyValues)
@command
def sweep(
    model: Annotated[str, MODEL],
    reference: Annotated[str, REFERENCE],
    scales: Annotated[list[float], typer.Option("--scales", help="Scales of guidance, 0 for none.")],
    samplers: Annotated[
        list[str], typer.Option("--samplers", help="ddpm or ddim and its steps, as in ddpm:250 ddim:25.")
    ],
    num_samples: Annotated[int, typer.Option("--num_samples", help="Images for every sampler and scale.")],
    output: Annotated[Path, typer.Option("--output", help="Folder of the sweep; an earlier one's goes on.")],
    classes: Annotated[list[int] | None, CLASSES] = None,
    random_classes: Annotated[bool, RANDOM_CLASSES] = False,
    seed: Annotated[int, SEED] = 0,
    batch_size: Annotated[int, BATCH_SIZE] = 8,
    resolution: Annotated[int | None, RESOLUTION] = None,
    split: Annotated[str | None, SPLIT] = None,
    config_name: Annotated[str | None, CONFIG_NAME] = None,
    image_column: Annotated[str | None, IMAGE_COLUMN] = None,
    extractor: Annotated[str, EXTRACTOR] = "inception",
    inception_weights: Annotated[Path | None, INCEPTION_WEIGHTS] = None,
    evaluation_batch_size: Annotated[
        int, typer.Option("--evaluation_batch_size", help="Images that are measured at once; changes no number.")
    ] = 64,
    cache_dir: Annotated[Path | None, CACHE_DIR] = None,
    dtype: Annotated[Dtype, DTYPE] = "fp32",
    device: Annotated[str | None, DEVICE] = None,
) -> None:
    """Measures samples of every sampler at every scale, and plots fidelity against diversity.

    Leaves table.md, sweep.json, by_scale.png, trade_off.png and pictures of the same images at every scale. Stopped and
    started again it goes on, also with more scales, samplers or samples; `accelerate launch -m diffusers_cg sweep ...`
    shares the sampling among several processes.
    """
    from diffusers_cg.evaluation.sweep import TABLE_FILE, sweep_to_folder
    from diffusers_cg.generation import resolve_device, start_processes
    from diffusers_cg.models import DTYPES

    parsed = [parse_sampler(text) for text in samplers]
    (opened,) = open_sets([reference], resolution, split, config_name, image_column)
    processes = start_processes()
    with processes.local_main_process_first():  # it downloads weights for the others
        loaded = open_extractor(
            extractor, inception_weights, processes.device if device is None else resolve_device(device)
        )
    sweep_to_folder(
        output,
        model,
        opened,
        loaded,
        scales,
        parsed,
        num_samples,
        classes=classes or None,
        random_classes=random_classes,
        seed=seed,
        batch_size=batch_size,
        evaluation_batch_size=evaluation_batch_size,
        cache_dir=cache_dir or output.parent / "reference_features",
        dtype=DTYPES[dtype],
        device=device,
    )
    if processes.is_main_process:
        print((output / TABLE_FILE).read_text())
        print(f"Saved {output}.")


def parse_sampler(text: str) -> "Sampler":
    """`ddpm:250` as a [`Sampler`]."""
    from diffusers_cg.evaluation.sweep import Sampler

    name, _, steps = text.partition(":")
    if name not in ("ddpm", "ddim") or not steps.isdecimal():
        raise InputError(f"In --samplers, a sampler is ddpm or ddim and its steps, as in ddpm:250, not {text}.")
    return Sampler(name, int(steps))
