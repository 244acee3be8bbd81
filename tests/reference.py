"""The reference implementation's networks, rebuilt from `tests/data/cases.json` and its weight rule."""

import json
import math
import zlib
from pathlib import Path

import torch
from safetensors.torch import load_file

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.models.openai_checkpoint import from_openai_state_dict


DATA = Path(__file__).parent / "data"
CASES = json.loads((DATA / "cases.json").read_text())
FORWARD = load_file(DATA / "forward.safetensors")
SAMPLERS = load_file(DATA / "samplers.safetensors")
LOSSES = load_file(DATA / "losses.safetensors")


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


def trunk_arguments(flags: dict) -> dict:
    fixed_width = flags["num_head_channels"] != -1
    return {
        "sample_size": flags["image_size"],
        "in_channels": flags["in_channels"],
        "base_channels": flags["model_channels"],
        "channel_multipliers": tuple(flags["channel_mult"]),
        "layers_per_block": flags["num_res_blocks"],
        "attention_resolutions": tuple(flags["image_size"] // factor for factor in flags["attention_resolutions"]),
        "attention_head_dim": flags["num_head_channels"] if fixed_width else None,
        "num_attention_heads": None if fixed_width else flags["num_heads"],
        "resample_type": "resnet" if flags["resblock_updown"] else "conv",
        "resnet_time_scale_shift": "scale_shift" if flags["use_scale_shift_norm"] else "default",
    }


def reference_unet(name: str) -> ADMUNet2DModel:
    case = CASES["forward"]["unet"][name]
    flags = case["flags"]
    unet = ADMUNet2DModel(
        out_channels=flags["out_channels"],
        num_class_embeds=flags["num_classes"],
        dropout=flags.get("dropout", 0.0),
        **trunk_arguments(flags),
    )
    order = flags.get("use_new_attention_order", False)
    unet.load_state_dict(from_openai_state_dict(unet, rule_state_dict(case["shapes"]), order))
    return unet.eval()


def reference_classifier(pool: str) -> NoisyClassifierModel:
    case = CASES["forward"]["classifier"][pool]
    flags = case["flags"]
    classifier = NoisyClassifierModel(num_classes=flags["out_channels"], pool=flags["pool"], **trunk_arguments(flags))
    classifier.load_state_dict(from_openai_state_dict(classifier, rule_state_dict(case["shapes"]), False))
    return classifier.eval()
