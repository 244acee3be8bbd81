"""`diffusers-cg sweep`: fidelity against diversity, scale by scale."""

import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import AfterValidator, Field, PositiveInt

from diffusers_cg_cli.evaluate import ReferenceSettings, open_extractor, open_sets
from diffusers_cg_cli.shared import DrawSettings, Scale


if TYPE_CHECKING:
    import numpy as np

    from diffusers_cg.data import ImageSet
    from diffusers_cg.generation import SavedPipeline


def _check_sampler(text: str) -> str:
    if not re.fullmatch(r"(ddpm|ddim):\d+", text):
        raise ValueError(f"a sampler is ddpm or ddim and its steps, as in ddpm:250, not {text}")
    return text


class SweepSettings(ReferenceSettings, DrawSettings):
    """Measures samples of every sampler at every scale, and plots fidelity against diversity.

    Leaves table.md, sweep.json, by_scale.png, trade_off.png and pictures of the same images at every scale. Stopped and
    started again it goes on, also with more scales, samplers or samples; `accelerate launch -m diffusers_cg sweep ...`
    shares the sampling among several processes.
    """

    output: Path
    """Folder of the sweep; an earlier one's goes on."""

    scales: Annotated[list[Scale], Field(min_length=1)]
    """Scales of guidance, 0 for none."""

    samplers: Annotated[list[Annotated[str, AfterValidator(_check_sampler)]], Field(min_length=1)]
    """ddpm or ddim and its steps, as in ddpm:250 ddim:25."""

    num_samples: PositiveInt
    """Images for every sampler and scale."""

    evaluation_batch_size: PositiveInt = 64
    """Images that are measured at once; changes no number."""


def run(settings: SweepSettings) -> None:
    from diffusers_cg.errors import InputError
    from diffusers_cg.evaluation.sweep import NUM_SHOWN, TABLE_FILE, Cell, sweep_to_folder
    from diffusers_cg.generation import SavedPipeline, generate_to_folder, resolve_device, start_processes
    from diffusers_cg.models import DTYPES

    for name in ("samplers", "scales"):
        values = getattr(settings, name)
        if len(set(values)) < len(values):
            raise InputError(f"`{name}` must name at least one, each once, got {', '.join(map(str, values))}.")
    samplers = [(name, int(steps)) for name, steps in (text.split(":") for text in settings.samplers)]
    cells = {
        Cell(algorithm, steps, scale): SavedPipeline(settings.model, algorithm, steps, scale, DTYPES[settings.dtype])
        for algorithm, steps in samplers
        for scale in settings.scales
    }
    (reference,) = open_sets(settings, settings.reference)
    processes = start_processes()
    device = processes.device if settings.device is None else resolve_device(settings.device)
    with processes.local_main_process_first():  # it downloads weights for the others
        extractor = open_extractor(settings, device)
    classes = resolve_classes(cells.values(), settings.classes)

    def draw(cell: Cell, directory: Path) -> "tuple[ImageSet, list[np.ndarray]]":
        generate_to_folder(
            directory / "samples",
            cells[cell],
            num_samples=settings.num_samples,
            classes=classes,
            random_classes=settings.random_classes,
            seed=settings.seed,
            batch_size=settings.batch_size,
            device=settings.device,
        )
        return open_samples(directory / "samples", NUM_SHOWN)

    sweep_to_folder(
        settings.output,
        draw,
        list(cells),
        settings.num_samples,
        reference,
        extractor,
        settings.evaluation_batch_size,
        settings.cache_dir or settings.output.parent / "reference_features",
        is_main_process=processes.is_main_process,
    )
    if processes.is_main_process:
        print((settings.output / TABLE_FILE).read_text())
        print(f"Saved {settings.output}.")


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


def open_samples(folder: Path, num_shown: int) -> "tuple[ImageSet, list[np.ndarray]]":
    """All images of a folder of samples and, to look at, the first few: the first of every class, then the second, ..."""
    import numpy as np
    from PIL import Image

    from diffusers_cg.data import open_images
    from diffusers_cg.generation import BESIDE_SAMPLES

    samples = open_images(folder, leave_out=BESIDE_SAMPLES, progress_bar=True)
    files = sorted(
        (Path(stored.name) for stored in samples), key=lambda file: (file.name, len(file.parent.name), file)
    )
    return samples, [np.asarray(Image.open(file)) for file in files[:num_shown]]
