"""Many images from saved pipelines, resumable, by as many processes as there are."""

from diffusers_cg.generation.generate import draw_images, generate_to_folder, resolve_device, start_processes
from diffusers_cg.generation.sample_folder import (
    BESIDE_SAMPLES,
    ImageToDraw,
    SampleFolder,
    images_to_draw,
)
from diffusers_cg.generation.saved_pipeline import SavedPipeline, common_classes


__all__ = [
    "BESIDE_SAMPLES",
    "ImageToDraw",
    "SampleFolder",
    "SavedPipeline",
    "common_classes",
    "draw_images",
    "generate_to_folder",
    "images_to_draw",
    "resolve_device",
    "start_processes",
]
