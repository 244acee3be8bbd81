"""`diffusers-cg sweep`: fidelity against diversity, scale by scale."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt, model_validator

from diffusers_cg_cli.evaluate import ReferenceSettings, open_extractor, open_sets
from diffusers_cg_cli.shared import DrawSettings, Scale, SteeredSettings, open_steering


def _check_sampler(text: str) -> str:
    if not re.fullmatch(r"\w+:\d+", text):
        raise ValueError(
            f"a sampler is ddpm, ddim, solver or a scheduler's class and its steps, as in ddpm:250, not {text}"
        )
    return text


def _check_each_once(values: list) -> list:
    if len(set(values)) < len(values):
        raise ValueError(f"each must be named once, got {', '.join(map(str, values))}")
    return values


class SweepSettings(ReferenceSettings, SteeredSettings, DrawSettings):
    """Measures samples of every sampler at every scale, and plots fidelity against diversity.

    The scales are those of the classifier's guidance, or multiply that of --guidance; the steps of ddim are those of
    --scheduler. Leaves table.md, with what an image cost, sweep.json, by_scale.png, trade_off.png and pictures of the same images at every scale. Stopped and
    started again it goes on, also with more scales, samplers or samples; `accelerate launch -m diffusers_cg sweep ...`
    shares the sampling among several processes.
    """

    output: Path
    """Folder of the sweep; an earlier one's goes on."""

    scales: Annotated[list[Scale], Field(min_length=1), AfterValidator(_check_each_once)]
    """Scales of guidance, 0 for none; with --guidance 1 is what the file says."""

    samplers: Annotated[
        list[Annotated[str, AfterValidator(_check_sampler)]], Field(min_length=1), AfterValidator(_check_each_once)
    ]
    """ddpm, ddim, solver (the one saved with the model) or a scheduler's class, and its steps, as in ddpm:250 ddim:25
    DPMSolverMultistepScheduler:10."""

    num_samples: PositiveInt
    """Images for every sampler and scale."""

    evaluation_batch_size: PositiveInt = 64
    """Images that are measured at once; changes no number."""

    @model_validator(mode="after")
    def _check_scheduler(self) -> "SweepSettings":
        if self.scheduler is not None and not any(text.startswith("ddim:") for text in self.samplers):
            raise ValueError("--scheduler takes the steps of ddim: name such a sampler, ddim:10 say, or leave it out")
        return self


def run(settings: SweepSettings) -> None:
    from diffusers_cg.errors import InputError
    from diffusers_cg.evaluation.sweep import NUM_SHOWN, TABLE_FILE, Cell, sweep_to_folder
    from diffusers_cg.generation import (
        SampleFolder,
        SavedPipeline,
        SchedulerChoice,
        SharedNetworks,
        common_classes,
        generate_to_folder,
        resolve_device,
        start_processes,
    )
    from diffusers_cg.models import DTYPES

    of_ddim, guidance = open_steering(settings)
    pipelines, shared = {}, SharedNetworks()
    for sampler, steps in (text.split(":") for text in settings.samplers):
        scheduler = of_ddim if sampler == "ddim" else None
        if sampler not in ("ddpm", "ddim", "solver"):
            scheduler = SchedulerChoice.parse([sampler])
            sampler = scheduler.sampler
        for scale in settings.scales:
            saved = SavedPipeline(
                settings.model,
                sampler,
                int(steps),
                classifier_scale=scale if guidance is None else 0.0,
                dtype=DTYPES[settings.dtype],
                scheduler=scheduler,
                guidance=guidance,
                guidance_weight=1.0 if guidance is None else scale,
                shared=shared,
            )
            cell = Cell(saved.steps, int(steps), scale)
            if cell in pipelines:
                raise InputError(
                    f"ddim:{steps} by --scheduler {saved.steps} is the curve {saved.steps}:{steps}, too: name one of the two, "
                    "and sweep the other into another folder."
                )
            pipelines[cell] = saved
    classes = common_classes(pipelines.values(), settings.classes)

    (reference,) = open_sets(settings, reference=settings.reference)
    processes = start_processes()
    device = processes.device if settings.device is None else resolve_device(settings.device)
    with processes.local_main_process_first():  # it downloads weights for the others
        extractor = open_extractor(settings, device)

    def draw(cell: Cell, directory: Path):
        generate_to_folder(
            directory / "samples",
            pipelines[cell],
            num_samples=settings.num_samples,
            classes=classes,
            random_classes=settings.random_classes,
            seed=settings.seed,
            batch_size=settings.batch_size,
            device=settings.device,
        )
        samples = SampleFolder(directory / "samples")
        return samples.open(), samples.first_images(NUM_SHOWN), samples.evaluations.get("base", {})

    sweep_to_folder(
        settings.output,
        draw,
        list(pipelines),
        settings.num_samples,
        reference,
        extractor,
        batch_size=settings.evaluation_batch_size,
        cache_dir=settings.cache_dir or settings.output.parent / "reference_features",
        is_main_process=processes.is_main_process,
    )
    if processes.is_main_process:
        print((settings.output / TABLE_FILE).read_text())
        print(f"Saved {settings.output}.")
