"""What a training tells about itself: `training.json`, beside its result and on the model card.

Equal trainings tell the same: no dates, no durations, nothing of where the result went or whether it was interrupted.
"""

import json
import os
import re
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffusers_cg import __version__
from diffusers_cg.data.files import read_json
from diffusers_cg.hub.publishing import TRAINING_FILE
from diffusers_cg.training.config import NOT_TOLD, TrainingSettings


LIBRARIES = ("torch", "diffusers", "accelerate")


def training_record(
    settings: TrainingSettings,
    accelerator: Accelerator,
    network: str,
    steps: int,
    images_per_step: int,
    ended_early_or_late: bool = False,
) -> dict[str, Any]:
    """Facts of a whole training, however often it was resumed, as the model card lists them.

    Args:
        settings (`TrainingSettings`): What it was started with.
        accelerator (`Accelerator`): Of the training.
        network (`str`): `"unet"` or `"classifier"`.
        steps (`int`): Optimizer steps that were taken.
        images_per_step (`int`): Over all processes.
        ended_early_or_late (`bool`): Whether those are other steps than the settings ask for; then they are told in their place.
    """
    arguments = told(settings)
    if ended_early_or_late:
        arguments = [*told(settings, leave_out=("num_epochs", "max_train_steps")), "--max_train_steps", str(steps)]
    processes = [] if accelerator.num_processes == 1 else ["--num_processes", str(accelerator.num_processes)]
    record = {
        "recipe": None if settings.config is None else Path(settings.config).name,
        "steps": steps,
        "images per step": images_per_step,
        "seed": settings.seed,
        "hardware": _hardware(accelerator),
        "mixed precision": accelerator.mixed_precision,
        "versions": ", ".join([f"diffusers-cg {__version__}", *(f"{name} {version(name)}" for name in LIBRARIES)]),
        "arguments": ["accelerate", "launch", *processes, f"training/train_{network}.py", *arguments],
    }
    return {name: value for name, value in record.items() if value is not None}


def told(settings: TrainingSettings, leave_out: Collection[str] = ()) -> list[str]:
    """Of the command line, what may be published: no flags marked `NOT_TOLD`, none to leave out, and no secrets in an address."""
    names = [*settings.marked(NOT_TOLD), *leave_out]
    private = {f"--{prefix}{name}".replace("_", "-") for name in names for prefix in ("", "no-")}
    kept, is_told = [], True
    for word in settings.command_line():
        if word.startswith("--"):  # and the values that follow
            is_told = word.partition("=")[0].replace("_", "-") not in private
        if is_told:
            kept.append(_without_secrets(word))
    return kept


def assembled_record(networks: dict[str, tuple[Path, str]]) -> dict[str, Any]:
    """That of the networks of an assembled pipeline, as far as their trainings left any.

    Args:
        networks (`dict`): By the name that a network has in the pipeline, the output folder of its training and its name
            there.
    """
    records = {
        name: read_json(folder / TRAINING_FILE).get(there)
        for name, (folder, there) in networks.items()
        if (folder / TRAINING_FILE).is_file()
    }
    return {name: record for name, record in records.items() if record is not None}


def write_record(directory: Path, records: dict[str, Any]) -> None:
    """Writes `training.json`, the records by the network's name, unless there are none."""
    if records:
        (directory / TRAINING_FILE).write_text(json.dumps(records, indent=2) + "\n")


def _hardware(accelerator: Accelerator) -> str:
    if accelerator.device.type == "cuda":
        device = torch.cuda.get_device_name(accelerator.device)
    elif accelerator.device.type == "cpu":
        device = f"CPU with {os.cpu_count()} cores"
    else:
        device = accelerator.device.type
    number = accelerator.num_processes
    return f"{number} {'process' if number == 1 else 'processes'}, {device}"


def _without_secrets(word: str) -> str:
    """A word without the user, password and query of an address, where keys and signatures stand."""
    return re.sub(r"://(?:[^/?#]*@)?([^?#]*).*", r"://\1", word)
