"""OpenAI's checkpoints: opened safely, made models of ours, and given back in their layout."""

import errno
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm.auto import tqdm

from diffusers_cg.errors import InputError
from diffusers_cg.models.openai_layout import from_openai_state_dict, to_openai_state_dict
from diffusers_cg.models.openai_recognition import Recognised, find_origin, find_preset, list_few, recognise
from diffusers_cg.models.presets import PRESETS, Preset


if TYPE_CHECKING:
    from typing import Self


def read_state_dict(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads a `.pt` or `.safetensors` file of parameters; nothing in it is executed.

    The tensors of a `.pt` file stay on disk until they are used, so leave it unchanged as long as they are.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if the file is truncated, holds anything but tensors, or is not a checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip and not zipfile.is_zipfile(path):
        raise InputError(f"{path} is truncated: fetch it again.")
    try:
        if path.suffix == ".safetensors":
            state_dict = load_file(path)
        else:  # torch maps the files that it writes today, not those of before 2020
            state_dict = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is not a file of tensors alone, and is refused, since reading anything else from it could run "
            "foreign code: save its model's state_dict() with torch.save or safetensors and pass that."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint; it is truncated or another kind of file.") from error
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(tensor, torch.Tensor) for tensor in state_dict.values()
    ):
        held = f"the entries {list_few(state_dict)}" if isinstance(state_dict, Mapping) else type(state_dict).__name__
        raise InputError(f"{path} is not a model's state dictionary, which names tensors; it holds {held}.")
    return dict(state_dict)


@dataclass(frozen=True)
class OpenAICheckpoint:
    """A checkpoint and all that its model needs: read, recognised and looked up by [`open_checkpoint`].

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): Parameters by OpenAI's names.
        arguments (`dict`): Every argument of the model's constructor that is not as by default.
        new_attention_order (`bool`): Whether query, key and value are stacked as wholes.
        preset ([`Preset`], *optional*): The paper's network that it is; None if it is another.
    """

    state_dict: Mapping[str, torch.Tensor]
    arguments: dict[str, Any]
    new_attention_order: bool
    preset: Preset | None


def open_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, torch.Tensor],
    kind: str,
    *,
    sample_size: int | None = None,
    attention_head_dim: int | None = None,
    num_attention_heads: int | None = None,
    new_attention_order: bool | None = None,
    dropout: float | None = None,
    layers_per_block: int | None = None,
    low_res_channels: int | None = None,
) -> OpenAICheckpoint:
    """Reads a checkpoint and finds out all that its model needs: from its shapes, the paper's table, and the user.

    Args:
        path_or_state_dict (`str`, `Path` or `Mapping[str, torch.Tensor]`): A file, or what it holds.
        kind (`"unet"` or `"classifier"`): What it has to be.
        sample_size, ...: Facts, as of `from_single_file`.

    Raises:
        FileNotFoundError, InputError: if the file cannot be read, is of another kind of network, or needs a fact that
            was not given; the sentence says what was found and what to pass.
    """
    if isinstance(path_or_state_dict, Mapping):
        name, state_dict = "", path_or_state_dict
    else:
        name, state_dict = Path(path_or_state_dict).stem, read_state_dict(path_or_state_dict)
    shapes = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    recognised = recognise(shapes, sample_size, layers_per_block, low_res_channels)
    if recognised.kind != kind:
        model = "ADMUNet2DModel" if recognised.kind == "unet" else "NoisyClassifierModel"
        raise InputError(
            f"This checkpoint is a {recognised.kind}'s, not a {kind}'s: load it with {model}.from_single_file."
        )
    preset = find_preset(recognised, name)
    known = {}
    if preset is not None:
        known = dict(preset.architecture)
        if new_attention_order is None:
            new_attention_order = preset.new_attention_order
    if attention_head_dim is not None or num_attention_heads is not None:
        known |= {"attention_head_dim": attention_head_dim, "num_attention_heads": num_attention_heads}
    if dropout is not None:
        known["dropout"] = dropout

    if sample_size is None:
        sample_size = known.get("sample_size")
    if sample_size is None and recognised.coarsest_side is not None:
        sample_size = recognised.coarsest_side * 2 ** (len(recognised.arguments["channel_multipliers"]) - 1)
    if new_attention_order is None and known.get("num_attention_heads") == 1:
        new_attention_order = False  # with one head the two orders are the same

    missing = []
    if sample_size is None:
        missing.append("sample_size=")
    if "attention_head_dim" not in known and "num_attention_heads" not in known:
        missing.append("attention_head_dim= (num_head_channels) or num_attention_heads= (num_heads)")
    if new_attention_order is None:
        missing.append("new_attention_order= (use_new_attention_order)")
    if missing:
        found = ", ".join(f"{key}={value}" for key, value in recognised.arguments.items())
        raise InputError(
            f"This {kind} is none of OpenAI's released ones ({found}), and its shapes do not tell everything: pass "
            f"{'; '.join(missing)}.{_facts_of_the_origin(recognised)}"
        )
    return OpenAICheckpoint(state_dict, {**known, **recognised.arguments_at(sample_size)}, new_attention_order, preset)


def _facts_of_the_origin(recognised: Recognised) -> str:
    """What to pass for a fine-tune of one of the paper's networks."""
    name = find_origin(recognised)
    if name is None:
        return ""
    architecture = PRESETS[name].architecture
    heads = "num_attention_heads" if "num_attention_heads" in architecture else "attention_head_dim"
    return (
        f" If it was fine-tuned from {name}: sample_size={architecture['sample_size']}, {heads}={architecture[heads]}, "
        f"new_attention_order={PRESETS[name].new_attention_order}."
    )


class OpenAICheckpointMixin:
    """Loading from and giving back OpenAI's layout, for the unet and the classifier alike."""

    _openai_kind: str

    @classmethod
    def from_single_file(
        cls,
        path_or_state_dict: str | Path | Mapping[str, torch.Tensor],
        *,
        torch_dtype: torch.dtype = torch.float32,
        **facts: int | float | bool | None,
    ) -> "Self":
        """Loads a checkpoint of guided-diffusion or improved-diffusion.

        The architecture is recognised from the parameters' names and shapes. OpenAI's 15 released files need nothing
        else; any other needs those facts that shapes cannot tell, and a sentence says which.

        Args:
            path_or_state_dict (`str`, `Path` or `Mapping[str, torch.Tensor]`): A `.pt` or `.safetensors` file, or what
                it holds. Files of averaged weights (`ema_0.9999_*.pt`) have the same layout.
            torch_dtype (`torch.dtype`): Of the model; half-precision files are widened to it.
            sample_size (`int`, *optional*): Side of the image in pixels.
            attention_head_dim, num_attention_heads (`int`, *optional*): Width of every attention head
                (`num_head_channels`), or their number at every level (`num_heads`).
            new_attention_order (`bool`, *optional*): Whether query, key and value are stacked as wholes
                (`use_new_attention_order`) rather than interleaved per head.
            dropout (`float`, *optional*): For training on; that of the released file, or 0.
            layers_per_block, low_res_channels (`int`, *optional*): Where the shapes allow several.

        Returns:
            The model, in evaluation mode.

        Raises:
            FileNotFoundError, InputError: if the file cannot be read, is of another kind of network, has parameters
                missing or left over, or needs a fact that was not given.
        """
        return cls.from_checkpoint(open_checkpoint(path_or_state_dict, cls._openai_kind, **facts), torch_dtype)

    @classmethod
    @torch.no_grad()
    def from_checkpoint(cls, checkpoint: OpenAICheckpoint, torch_dtype: torch.dtype = torch.float32) -> "Self":
        """The model of a checkpoint that was opened, in evaluation mode; it shares no memory with it."""
        with torch.device("meta"):
            model = cls(**checkpoint.arguments)
        order = checkpoint.new_attention_order
        with tqdm(
            total=len(checkpoint.state_dict), desc="Converting", unit="tensor", leave=False, delay=1
        ) as progress:
            converted = from_openai_state_dict(model, checkpoint.state_dict, order, torch_dtype, progress)
        model.load_state_dict(converted, assign=True)
        model.register_to_config(_new_attention_order=order)
        return model.eval()

    @torch.no_grad()
    def to_openai_state_dict(self, new_attention_order: bool | None = None) -> dict[str, torch.Tensor]:
        """The parameters in OpenAI's layout, by their names and in their order, in the model's dtype.

        A model that [`from_single_file`] loaded gives back its file's dictionary, bit for bit.

        Args:
            new_attention_order (`bool`, *optional*): How query, key and value are stacked: as in the file that the
                model came from, else interleaved per head, as guided-diffusion assumes unless told otherwise.
        """
        if new_attention_order is None:
            new_attention_order = self.config.get("_new_attention_order", False)
        return to_openai_state_dict(self, new_attention_order)
