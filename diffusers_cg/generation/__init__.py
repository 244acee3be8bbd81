"""Many images from saved pipelines, by as many processes as there are: what `diffusers-cg sample` and `sweep` do."""

from diffusers_cg.generation.folder import SampleFolder
from diffusers_cg.generation.requests import Request, make_requests
from diffusers_cg.generation.sample import sample_to_folder, start_processes
from diffusers_cg.generation.stages import Stage, resolve_device


__all__ = [
    "Request",
    "SampleFolder",
    "Stage",
    "make_requests",
    "resolve_device",
    "sample_to_folder",
    "start_processes",
]
