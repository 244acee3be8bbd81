"""ADM networks that others put on the Hub in diffusers' format, recognised by config and names, without their code."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from huggingface_hub import snapshot_download

from diffusers_cg.errors import InputError
from diffusers_cg.models.openai_flags import ALL_FLAGS, SCHEDULES, layout_facts_of_flags
from diffusers_cg.models.openai_layout import openai_entries
from diffusers_cg.models.weight_files import FILE_SUFFIXES, InFiles, Parameters, list_few, weight_files


FORK_WORDS = ("attention_legacy_order", "time_embedding_type")  # of xutongda/adm_*
FLAGS = ("num_channels", "classifier_width")  # of BiliSakura/ADM-*, whose parameters begin with `model.`


def is_foreign(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is that of somebody else's class for these networks."""
    return _has_flags(config) or _is_fork(config)


def _has_flags(config: Mapping[str, Any]) -> bool:
    return any(flag in config for flag in FLAGS) and "base_channels" not in config


def _is_fork(config: Mapping[str, Any]) -> bool:
    return config.get("_class_name") == "UNet2DModel" and (
        config.get("time_embedding_type") == "adm" or "attention_legacy_order" in config
    )


class ForkParameters(Parameters):
    """Those of the fork's `UNet2DModel`: diffusers' names; query, key and value are thirds of OpenAI's stack, as it was."""

    def __init__(self, files: InFiles, config: Mapping[str, Any]):
        with torch.device("meta"):
            stock = {name: value for name, value in config.items() if name not in FORK_WORDS and name[0] != "_"}
            model = UNet2DModel(**stock)
        self.files = files
        self.entries = {entry.openai: entry for entry in openai_entries(model)}
        wanted = {name for entry in self.entries.values() for name in entry.ours}
        faults = [*sorted(wanted - set(files)), *sorted(set(files) - wanted)]
        if faults:
            raise InputError(f"The weights in {files.paths[0]} do not match their config.json: {list_few(faults)}.")
        self.specs = {name: self._pack(name, files.specs) for name in self.entries}

    def _pack(self, name: str, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        entry = self.entries[name]
        return entry.pack(tuple(tensors[ours] for ours in entry.ours), new_attention_order=True)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._pack(name, self.files)


def open_folder(folder: Path, kind: str | None) -> tuple[Parameters, dict[str, Any]]:
    """Parameters of a network in such a folder, and the facts that its config.json and its scheduler's state.

    Args:
        folder (`Path`): Of a model, or of a pipeline with `unet/` and `classifier/`.
        kind (`str`, *optional*): `"unet"`, or `"classifier"`, of a pipeline.

    Raises:
        InputError: if it is another folder.
    """
    where = folder if (folder / "config.json").is_file() else folder / (kind or "unet")
    if not (where / "config.json").is_file():
        raise InputError(f"{folder} has no config.json, neither in itself nor in {kind or 'unet'}/.")
    config = json.loads((where / "config.json").read_text())
    if _has_flags(config):
        parameters: Parameters = InFiles(weight_files(where))
        stated = {flag: value for flag, value in config.items() if flag in ALL_FLAGS and value is not None}
        row = layout_facts_of_flags(stated)  # whose process is not the network's to state here
        names = ("sample_size", "attention_head_dim", "num_attention_heads", "dropout")
        facts = {name: row["architecture"].get(name) for name in names}
        facts["new_attention_order"] = row["new_attention_order"]
    elif _is_fork(config):
        parameters = ForkParameters(InFiles(weight_files(where)), config)
        width = config.get("attention_head_dim", 8)  # diffusers' own default; None is one head
        facts = {
            "sample_size": config["sample_size"],
            "attention_head_dim": width,
            "num_attention_heads": 1 if width is None else None,
            "dropout": config.get("dropout", 0.0),
            "new_attention_order": not config.get("attention_legacy_order", False),
        }
    else:
        raise InputError(
            f"{where} holds a {config.get('_class_name')}, which is none of the formats that are converted: a "
            "UNet2DModel with attention_legacy_order, or an ADMUNet2DModel with OpenAI's flags in config.json."
        )
    return parameters, facts | _process_beside(where)


def download(repo_id: str, subfolder: str | None = None, **options: Any) -> Path:
    """The folder of a repository on the Hub, with configs and weights, but no code."""
    inner = f"{subfolder}/" if subfolder else ""
    patterns = [f"{inner}*.json", "scheduler/*.json", f"{inner}*.safetensors", f"{inner}*.bin"]
    return Path(snapshot_download(repo_id, allow_patterns=patterns, **options))


def path_or_download(source: str | Path) -> Path:
    """A file or folder; or, where there is none and it is named `OWNER/NAME`, the folder of that repository on the Hub."""
    is_repository = re.fullmatch(r"[\w.-]+/[\w.-]+", str(source)) and Path(source).suffix not in FILE_SUFFIXES
    return download(str(source)) if is_repository and not Path(source).exists() else Path(source)


def _process_beside(folder: Path) -> dict[str, Any]:
    """What the scheduler beside a network says of its training."""
    places = (folder, folder / "scheduler", folder.parent / "scheduler")
    for config in (json.loads(file.read_text()) for place in places for file in place.glob("scheduler_config.json")):
        schedule = config.get("beta_schedule", SCHEDULES.get(config.get("noise_schedule")))
        if "predict_xstart" in config:  # OpenAI's words
            prediction_type = "sample" if config["predict_xstart"] else "epsilon"
        else:
            prediction_type = config.get("prediction_type", "epsilon")  # diffusers' own default
        stated = {
            "num_train_timesteps": config.get("num_train_timesteps", config.get("steps")),
            "beta_schedule": schedule if schedule in SCHEDULES.values() else None,
            "rescale_timesteps": config.get("rescale_timesteps"),
            "prediction_type": prediction_type,
        }
        return {name: value for name, value in stated.items() if value is not None}
    return {}
