"""What a run tells about itself: `training.json`, beside its result and on the model card.

Equal runs tell the same: no dates, no durations, nothing of where the result went or whether the run was interrupted.
"""

import argparse
import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffusers_cg import __version__
from diffusers_cg.hub.publishing import TRAINING_FILE, read_json


# places on one machine, and what does not change the result
NOT_TOLD = (
    *("--output_dir", "--cache_dir", "--logging_dir", "--resume_from_checkpoint"),
    *("--push_to_hub", "--hub_model_id", "--hub_private_repo"),
)
LIBRARIES = ("torch", "diffusers", "accelerate")


def run_facts(
    args: argparse.Namespace, accelerator: Accelerator, network: str, steps: int, images_per_step: int
) -> dict[str, Any]:
    """Facts of a whole run, however often it was resumed, as the model card lists them.

    Args:
        args (`argparse.Namespace`): The flags, from a `RecipeParser`.
        accelerator (`Accelerator`): Of the run.
        network (`str`): `"unet"` or `"classifier"`.
        steps (`int`): Optimizer steps.
        images_per_step (`int`): Over all processes.
    """
    processes = [] if accelerator.num_processes == 1 else ["--num_processes", str(accelerator.num_processes)]
    facts = {
        "recipe": None if args.config is None else Path(args.config).name,
        "steps": steps,
        "images per step": images_per_step,
        "seed": args.seed,
        "hardware": _hardware(accelerator),
        "mixed precision": accelerator.mixed_precision,
        "versions": ", ".join([f"diffusers-cg {__version__}", *(f"{name} {version(name)}" for name in LIBRARIES)]),
        "arguments": ["accelerate", "launch", *processes, f"training/train_{network}.py", *told(args.typed)],
    }
    return {name: value for name, value in facts.items() if value is not None}


def told(words: list[str]) -> list[str]:
    """Of a command line, what may be published: neither flags of `NOT_TOLD` nor the secrets in an address."""
    kept, is_told = [], True
    for word in words:
        if word.startswith("--"):  # and the values that follow
            is_told = word.partition("=")[0] not in NOT_TOLD
        if is_told:
            kept.append(_without_secrets(word))
    return kept


def assembled_facts(networks: dict[str, tuple[Path, str]]) -> dict[str, Any]:
    """Those of the networks of an assembled pipeline, as far as their runs told any.

    Args:
        networks (`dict`): By the name that a network has in the pipeline, the folder of its run and its name there.

    Raises:
        ValueError: if a `training.json` holds something else.
    """
    runs = {name: (read_json(folder / TRAINING_FILE) or {}).get(there) for name, (folder, there) in networks.items()}
    return {name: run for name, run in runs.items() if run is not None}


def write_facts(directory: Path, facts: dict[str, Any]) -> None:
    """Writes `training.json`, facts of a run by the network's name, unless there are none."""
    if facts:
        (directory / TRAINING_FILE).write_text(json.dumps(facts, indent=2) + "\n")


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
