"""The reference implementation's networks, rebuilt from `tests/data/cases.json` and its weight rule."""

import json
import math
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel


DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "cases.json").read_text())
MANIFESTS = {path.stem: json.loads(path.read_text()) for path in sorted((DATA / "manifests").glob("*.json"))}
FORWARD = load_file(DATA / "forward.safetensors")
SAMPLERS = load_file(DATA / "samplers.safetensors")
LOSSES = load_file(DATA / "losses.safetensors")
COMMUNITY_LAYOUTS = json.loads((DATA / "community.json").read_text())
COMMUNITY_CASES = json.loads((DATA / "community_cases.json").read_text())
COMMUNITY = load_file(DATA / "community.safetensors")
TIMESTEPS = json.loads((DATA / "timesteps.json").read_text())


def rule_state_dict(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Weights that follow from their names alone."""
    state_dict = {}
    for key, shape in shapes.items():
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
        if len(shape) >= 2:
            weight = weight / math.sqrt(math.prod(shape[1:]))
        elif key.endswith("weight"):
            weight = 1 + 0.1 * weight
        else:
            weight = 0.1 * weight
        state_dict[key] = weight
    return state_dict


def on_meta(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """A state dictionary without memory."""
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def save_shapes(path: Path, shapes: dict[str, list[int]], wrap=lambda state_dict: state_dict) -> Path:
    """A file of these names and shapes in which every tensor is one zero, so that it is small.

    Args:
        path (`Path`): Where.
        shapes (`dict`): By name.
        wrap (callable): What to make of the state dictionary before it is written.
    """
    torch.save(wrap({name: torch.zeros(1).expand(shape) for name, shape in shapes.items()}), path)
    return path


def reference_facts(flags: dict) -> dict:
    """What names and shapes do not tell of a reference network."""
    fixed_width = flags["num_head_channels"] != -1
    return {
        "sample_size": flags["image_size"],
        "attention_head_dim": flags["num_head_channels"] if fixed_width else None,
        "num_attention_heads": None if fixed_width else flags["num_heads"],
        "new_attention_order": flags.get("use_new_attention_order", False),
        "dropout": flags.get("dropout", 0.0),
    }


def reference_unet(name: str) -> ADMUNet2DModel:
    case = CASES["forward"]["superres" if name in CASES["forward"]["superres"] else "unet"][name]
    return ADMUNet2DModel.from_single_file(rule_state_dict(case["shapes"]), **reference_facts(case["flags"]))


def reference_classifier(pool: str) -> NoisyClassifierModel:
    case = CASES["forward"]["classifier"][pool]
    return NoisyClassifierModel.from_single_file(rule_state_dict(case["shapes"]), **reference_facts(case["flags"]))
