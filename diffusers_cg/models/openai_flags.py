"""Networks and processes in the words of guided-diffusion's flags, and in ours."""

from collections.abc import Mapping
from typing import Any

from diffusers_cg.errors import InputError
from diffusers_cg.models.presets import CHANNEL_MULTIPLIERS, CONTINUOUS_COSINE, COSINE, LINEAR


UNET_DEFAULTS = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "channel_mult": "", "num_heads": 4,
    "num_head_channels": -1, "num_heads_upsample": -1, "attention_resolutions": "16,8", "dropout": 0.0,
    "class_cond": False, "learn_sigma": False, "use_scale_shift_norm": True, "resblock_updown": False,
    "use_new_attention_order": False,
}  # fmt: skip
CLASSIFIER_DEFAULTS = {
    "image_size": 64, "classifier_width": 128, "classifier_depth": 2, "classifier_attention_resolutions": "32,16,8",
    "classifier_use_scale_shift_norm": True, "classifier_resblock_updown": True, "classifier_pool": "attention",
}  # fmt: skip
PROCESS_DEFAULTS = {
    "diffusion_steps": 1000, "noise_schedule": "linear", "predict_xstart": False, "rescale_timesteps": False,
}  # fmt: skip
"""What a flag is where it is not stated (`script_util.py`)."""

SCHEDULES = {"linear": LINEAR, "cosine": COSINE}
NUM_CLASSES = 1000  # a constant there
CLASSIFIER_HEAD_DIM = 64  # another

MULTIPLIERS = {**CHANNEL_MULTIPLIERS, 32: (1, 2, 2, 2)}  # of improved-diffusion's at 32
NO_ROW = ("large_size", "small_size", "num_classes", "in_channels", "out_channels", "use_checkpoint", "use_fp16",
          "classifier_use_fp16", "timestep_respacing", "use_kl", "rescale_learned_sigmas", "sigma_small",
          "use_ddim", "steps", "conv_resample")  # fmt: skip
"""Flags beside those: of upsamplers, of training and sampling, or what others' configurations add."""

ALL_FLAGS = {*UNET_DEFAULTS, *CLASSIFIER_DEFAULTS, *PROCESS_DEFAULTS, *NO_ROW}


def layout_facts_of_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of [`Layout`] that flags state; those of a classifier if one begins with `classifier_`.

    Raises:
        InputError: if a flag is unknown, or says what these networks cannot be.
    """
    is_classifier = any(flag.startswith("classifier_") for flag in flags)
    defaults = {**(CLASSIFIER_DEFAULTS if is_classifier else UNET_DEFAULTS), **PROCESS_DEFAULTS}
    unknown = sorted(flag for flag in flags if flag not in defaults and flag not in NO_ROW)
    if unknown:
        raise InputError(f"guided-diffusion has no flag {unknown[0]}; its flags are {', '.join(defaults)}.")
    flags = {**defaults, **flags}
    schedule = flags["noise_schedule"]
    if schedule not in SCHEDULES:
        raise InputError(f"noise_schedule must be one of {list(SCHEDULES)}, got {schedule!r}.")
    return {
        "kind": "classifier" if is_classifier else "unet",
        "architecture": _classifier_architecture(flags) if is_classifier else _unet_architecture(flags),
        "new_attention_order": bool(flags.get("use_new_attention_order", False)),
        "num_train_timesteps": flags.get("steps", flags["diffusion_steps"]),
        "beta_schedule": SCHEDULES[schedule],
        "rescale_timesteps": bool(flags["rescale_timesteps"]),
        "prediction_type": "sample" if flags["predict_xstart"] else "epsilon",
        **({"low_res_size": flags["small_size"]} if "small_size" in flags else {}),
    }


def _unet_architecture(flags: Mapping[str, Any]) -> dict[str, Any]:
    size, upsamples = flags.get("large_size", flags["image_size"]), "large_size" in flags
    if flags["num_heads_upsample"] not in (-1, flags["num_heads"]):
        raise InputError("These networks have as many heads on the way up as on the way down (num_heads_upsample=-1).")
    channels = flags.get("in_channels", 3)
    by_width = flags["num_head_channels"] != -1
    return {
        "sample_size": size,
        "in_channels": channels,
        "low_res_channels": channels if upsamples else 0,
        "out_channels": flags.get("out_channels") or channels * (2 if flags["learn_sigma"] else 1),
        "base_channels": flags["num_channels"],
        "channel_multipliers": _numbers(flags["channel_mult"], float) or _default_multipliers(size),
        "layers_per_block": flags["num_res_blocks"],
        "attention_resolutions": _numbers(flags["attention_resolutions"]),
        "attention_head_dim": flags["num_head_channels"] if by_width else None,
        "num_attention_heads": None if by_width else flags["num_heads"],
        "resample_type": "resnet" if flags["resblock_updown"] else "conv",
        "resnet_time_scale_shift": "scale_shift" if flags["use_scale_shift_norm"] else "default",
        "num_class_embeds": flags.get("num_classes", NUM_CLASSES) if flags["class_cond"] else None,
        "dropout": flags["dropout"],
    }


def _classifier_architecture(flags: Mapping[str, Any]) -> dict[str, Any]:
    size = flags["image_size"]
    return {
        "sample_size": size,
        "in_channels": flags.get("in_channels", 3),
        "num_classes": flags.get("num_classes", NUM_CLASSES),
        "pool": flags["classifier_pool"],
        "base_channels": flags["classifier_width"],
        "channel_multipliers": _default_multipliers(size),
        "layers_per_block": flags["classifier_depth"],
        "attention_resolutions": _numbers(flags["classifier_attention_resolutions"]),
        "attention_head_dim": CLASSIFIER_HEAD_DIM,
        "num_attention_heads": None,
        "resample_type": "resnet" if flags["classifier_resblock_updown"] else "conv",
        "resnet_time_scale_shift": "scale_shift" if flags["classifier_use_scale_shift_norm"] else "default",
    }


def flags_of_facts(kind: str, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse, as far as there are flags: what to call guided-diffusion's scripts with.

    Args:
        kind (`"unet"` or `"classifier"`): The network's.
        facts (`Mapping`): The constructor's arguments and `new_attention_order`; what is missing is left out.
    """
    known = {name: value for name, value in facts.items() if value is not None}
    width, depth, attention, norm, updown = (
        ("classifier_width", "classifier_depth", "classifier_attention_resolutions", "classifier_use_scale_shift_norm",
         "classifier_resblock_updown")
        if kind == "classifier"
        else ("num_channels", "num_res_blocks", "attention_resolutions", "use_scale_shift_norm", "resblock_updown")
    )  # fmt: skip
    upsamples = bool(known.get("low_res_channels"))
    size = known.get("sample_size")
    named = {
        "large_size" if upsamples else "image_size": size,
        "small_size": known.get("low_res_size"),
        width: known["base_channels"],
        depth: known["layers_per_block"],
        attention: ",".join(map(str, known.get("attention_resolutions", ()))) or None,
        updown: known["resample_type"] == "resnet",
        norm: known["resnet_time_scale_shift"] == "scale_shift",
        "diffusion_steps": known.get("num_train_timesteps"),
        "noise_schedule": {LINEAR: "linear", COSINE: "cosine", CONTINUOUS_COSINE: "cosine"}.get(known.get("beta_schedule")),
        "rescale_timesteps": known.get("rescale_timesteps"),
    }  # fmt: skip
    multipliers = tuple(known["channel_multipliers"])
    if MULTIPLIERS.get(256 if upsamples and size else size) != multipliers:
        named["channel_mult"] = ",".join(f"{multiplier:g}" for multiplier in multipliers)
    if kind == "classifier":
        named |= {"classifier_pool": known["pool"]}
    else:
        named |= {
            "learn_sigma": known["out_channels"] == 2 * known["in_channels"],
            "class_cond": "num_class_embeds" in known,
            "num_head_channels": known.get("attention_head_dim"),
            "num_heads": known.get("num_attention_heads"),
            "use_new_attention_order": known.get("new_attention_order"),
            "dropout": known.get("dropout"),
        }
        if "prediction_type" in known and known["prediction_type"] != "v_prediction":  # which they know not
            named["predict_xstart"] = known["prediction_type"] == "sample"
    return {flag: value for flag, value in named.items() if value is not None}


def _numbers(stated: str | float | list | tuple | None, kind: type = int) -> tuple:
    words = stated.split(",") if isinstance(stated, str) else [] if stated is None else stated
    words = words if isinstance(words, list | tuple) else [words]
    try:
        numbers = [kind(word) for word in words if str(word).strip()]
    except (TypeError, ValueError):
        raise InputError(f"A number is needed, or several, got {stated!r}.") from None
    return tuple(int(number) if number == int(number) else number for number in numbers)


def _default_multipliers(size: int) -> tuple[float, ...]:
    if size not in MULTIPLIERS:
        raise InputError(f"guided-diffusion has no widths of the levels for images of {size}: state channel_mult.")
    return MULTIPLIERS[size]
