"""Many images from saved pipelines, resumable, by as many processes as there are."""

from diffusers_cg.generation.generate import (
    LONGEST_WAIT,
    draw_images,
    generate_to_folder,
    is_on_cpu,
    resolve_device,
    start_processes,
)
from diffusers_cg.generation.guidance_file import GuidanceFile
from diffusers_cg.generation.sample_folder import (
    BESIDE_SAMPLES,
    ImageToDraw,
    SampleFolder,
    cost_in_words,
    images_to_draw,
)
from diffusers_cg.generation.saved_pipeline import SavedPipeline, SharedNetworks, common_classes
from diffusers_cg.generation.scheduler_choice import SchedulerChoice


__all__ = [
    "LONGEST_WAIT",
    "BESIDE_SAMPLES",
    "GuidanceFile",
    "ImageToDraw",
    "SampleFolder",
    "SavedPipeline",
    "SchedulerChoice",
    "SharedNetworks",
    "common_classes",
    "cost_in_words",
    "draw_images",
    "generate_to_folder",
    "images_to_draw",
    "is_on_cpu",
    "resolve_device",
    "start_processes",
]
