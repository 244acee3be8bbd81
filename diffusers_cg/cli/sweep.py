"""`diffusers-cg sweep`: fidelity against diversity, scale by scale."""

from collections.abc import Collection, Sequence
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
    import numpy as np

    from diffusers_cg.generation import SavedPipeline


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
    from diffusers_cg.evaluation.sweep import NUM_SHOWN, TABLE_FILE, Cell, sweep_to_folder
    from diffusers_cg.generation import SavedPipeline, generate_to_folder, resolve_device, start_processes
    from diffusers_cg.models import DTYPES

    parsed = [parse_sampler(text) for text in samplers]
    for name, values in (("scales", scales), ("samplers", [f"{name} {steps}" for name, steps in parsed])):
        if len(set(values)) < len(values):
            raise InputError(f"`{name}` must name at least one, each once, got {', '.join(map(str, values))}.")
    stages = {
        Cell(algorithm, steps, scale): SavedPipeline(model, algorithm, steps, scale, DTYPES[dtype])
        for algorithm, steps in parsed
        for scale in scales
    }
    (opened,) = open_sets([reference], resolution, split, config_name, image_column)
    processes = start_processes()
    with processes.local_main_process_first():  # it downloads weights for the others
        loaded = open_extractor(
            extractor, inception_weights, processes.device if device is None else resolve_device(device)
        )
    resolved = resolve_classes(stages.values(), classes or None)

    def draw(cell: Cell, directory: Path) -> "tuple[Path, list[np.ndarray]]":
        samples = directory / "samples"
        generate_to_folder(
            samples,
            stages[cell],
            num_samples=num_samples,
            classes=resolved,
            random_classes=random_classes,
            seed=seed,
            batch_size=batch_size,
            device=device,
        )
        return samples, first_images(samples, NUM_SHOWN)

    sweep_to_folder(
        output,
        draw,
        list(stages),
        num_samples,
        opened,
        loaded,
        evaluation_batch_size,
        cache_dir or output.parent / "reference_features",
        is_main_process=processes.is_main_process,
    )
    if processes.is_main_process:
        print((output / TABLE_FILE).read_text())
        print(f"Saved {output}.")


def parse_sampler(text: str) -> tuple[str, int]:
    """Algorithm and steps of `ddpm:250`."""
    name, _, steps = text.partition(":")
    if name not in ("ddpm", "ddim") or not steps.isdecimal():
        raise InputError(f"In --samplers, a sampler is ddpm or ddim and its steps, as in ddpm:250, not {text}.")
    return name, int(steps)


def resolve_classes(stages: Collection["SavedPipeline"], classes: Sequence[int] | None) -> Sequence[int] | None:
    """The classes of all stages: those that any of them needs, so that all draw the same images.

    Raises:
        InputError: where sampling from one of the stages would.
    """
    from diffusers_cg.generation import check_classes

    if classes is not None:
        check_classes(classes)
    one_of_each = {stage.algorithm: stage for stage in stages}
    pipes = {algorithm: stage.load() for algorithm, stage in one_of_each.items()}
    needed = [stage.needed_classes(pipes[stage.algorithm]) for stage in stages]
    classes = classes or next((some for some in needed if some is not None), None)
    for stage in stages:
        stage.check(pipes[stage.algorithm], classes)
    return classes


def first_images(samples: Path, count: int) -> "list[np.ndarray]":
    """The first image of every class, then the second, and so on."""
    import numpy as np
    from PIL import Image

    from diffusers_cg.data.images import list_images

    files = sorted(list_images(samples), key=lambda file: (file.name, len(file.parent.name), file.parent))
    return [np.asarray(Image.open(file)) for file in files[:count]]
