"""The parameter layout of OpenAI's guided-diffusion checkpoints, entry by entry, beside ours."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import nn
from tqdm.auto import tqdm

from diffusers_cg.errors import InputError


@dataclass(frozen=True)
class Entry:
    """One parameter of OpenAI's layout and the parameters of ours that it holds.

    Args:
        openai (`str`): Its key in their state dictionary.
        ours (`tuple[str, ...]`): One key of ours, or the three of query, key and value that theirs stacks.
        trailing_ones (`int`): Dimensions of size one that theirs has and ours lacks (convolutions that we keep as
            linear layers).
        heads (`int`, *optional*): For stacked query, key and value: the number of heads.
        transposed (`bool`): Whether theirs is the transpose of ours.
    """

    openai: str
    ours: tuple[str, ...]
    trailing_ones: int = 0
    heads: int | None = None
    transposed: bool = False

    def unpack(self, tensor: torch.Tensor, new_attention_order: bool) -> tuple[torch.Tensor, ...]:
        """OpenAI's tensor as ours, in the order of `self.ours`."""
        tensor = tensor.reshape(tensor.shape[: tensor.ndim - self.trailing_ones])
        if self.transposed:
            tensor = tensor.t().contiguous()
        if len(self.ours) == 1:
            return (tensor,)
        if new_attention_order:
            return tensor.chunk(3)
        # the legacy order interleaves query, key and value per head
        return tuple(part.flatten(0, 1) for part in tensor.unflatten(0, (self.heads, 3, -1)).unbind(1))

    def pack(self, tensors: tuple[torch.Tensor, ...], new_attention_order: bool) -> torch.Tensor:
        """The inverse of [`unpack`]."""
        if len(self.ours) == 1:
            (tensor,) = tensors
        elif new_attention_order:
            tensor = torch.cat(tensors)
        else:
            tensor = torch.stack([part.unflatten(0, (self.heads, -1)) for part in tensors], dim=1).flatten(0, 2)
        if self.transposed:
            tensor = tensor.t()
        return tensor.reshape(*tensor.shape, *(1,) * self.trailing_ones).contiguous()


def _affine(openai: str, ours: str, trailing_ones: int = 0) -> Iterator[Entry]:
    yield Entry(f"{openai}.weight", (f"{ours}.weight",), trailing_ones)
    yield Entry(f"{openai}.bias", (f"{ours}.bias",))


def _qkv(openai: str, ours: str, heads: int) -> Iterator[Entry]:
    for kind, ones in (("weight", 1), ("bias", 0)):
        yield Entry(f"{openai}.{kind}", tuple(f"{ours}.to_{part}.{kind}" for part in "qkv"), ones, heads=heads)


def _layer(module: nn.Module, openai: str, ours: str) -> Iterator[Entry]:
    if isinstance(module, ResnetBlock2D):
        yield from _affine(f"{openai}.in_layers.0", f"{ours}.norm1")
        yield from _affine(f"{openai}.in_layers.2", f"{ours}.conv1")
        yield from _affine(f"{openai}.emb_layers.1", f"{ours}.time_emb_proj")
        yield from _affine(f"{openai}.out_layers.0", f"{ours}.norm2")
        yield from _affine(f"{openai}.out_layers.3", f"{ours}.conv2")
        if module.conv_shortcut is not None:
            yield from _affine(f"{openai}.skip_connection", f"{ours}.conv_shortcut")
    elif isinstance(module, Attention):
        yield from _affine(f"{openai}.norm", f"{ours}.group_norm")
        yield from _qkv(f"{openai}.qkv", ours, module.heads)
        yield from _affine(f"{openai}.proj_out", f"{ours}.to_out.0", trailing_ones=1)
    else:  # Downsample2D, Upsample2D
        yield from _affine(f"{openai}.{'op' if module.name == 'op' else 'conv'}", f"{ours}.conv")


def _layers(block: nn.Module, ours: str) -> list[list[str]]:
    """OpenAI's numbered blocks of one of our levels: each a list of its layers, by our keys.

    A residual block and its attention are one. A layer that resamples is one of its own on the way down; on the way up
    it ends the last one.
    """
    has = {kind for kind, layers in block.named_children() if isinstance(layers, nn.ModuleList)}
    kinds = [kind for kind in ("resnets", "attentions") if kind in has]
    numbered = [[f"{ours}.{kind}.{i}" for kind in kinds] for i in range(len(block.resnets))]
    if "downsamplers" in has:
        numbered.append([f"{ours}.downsamplers.0"])
    if "upsamplers" in has:
        numbered[-1].append(f"{ours}.upsamplers.0")
    return numbered


def _numbered(model: nn.Module, ours: str, openai: str, first: int) -> dict[str, list[str]]:
    """OpenAI's blocks of one way, down or up, by their names: each a list of its layers, by our keys."""
    blocks = [layers for i, block in enumerate(model.get_submodule(ours)) for layers in _layers(block, f"{ours}.{i}")]
    return {f"{openai}.{number}": layers for number, layers in enumerate(blocks, first)}


def _blocks(model: nn.Module, ours: str, openai: str, first: int) -> Iterator[Entry]:
    for name, layers in _numbered(model, ours, openai, first).items():
        for position, key in enumerate(layers):
            yield from _layer(model.get_submodule(key), f"{name}.{position}", key)


def openai_blocks(model: nn.Module) -> dict[str, str]:
    """OpenAI's blocks of an [`ADMUNet2DModel`] or a [`NoisyClassifierModel`] by name, and our module of the same output.

    A block of theirs ends where its last layer does: after residual block, attention and, if it ends a level, upsampling.
    """
    numbered = _numbered(model, "down_blocks", "input_blocks", first=1)
    if hasattr(model, "up_blocks"):
        numbered |= _numbered(model, "up_blocks", "output_blocks", first=0)
    last_layers = {name: layers[-1] for name, layers in numbered.items()}
    return {"input_blocks.0": "conv_in", "middle_block": "mid_block"} | last_layers


def openai_entries(model: nn.Module) -> list[Entry]:
    """Every parameter of `model`, an [`ADMUNet2DModel`] or a [`NoisyClassifierModel`], beside OpenAI's, in their order."""
    entries = [
        *_affine("time_embed.0", "time_embedding.linear_1"),
        *_affine("time_embed.2", "time_embedding.linear_2"),
    ]
    if getattr(model, "class_embedding", None) is not None:
        entries.append(Entry("label_emb.weight", ("class_embedding.weight",)))
    entries += _affine("input_blocks.0.0", "conv_in")
    entries += _blocks(model, "down_blocks", "input_blocks", first=1)
    for position, key in enumerate(("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")):
        entries += _layer(model.get_submodule(key), f"middle_block.{position}", key)
    if hasattr(model, "up_blocks"):
        entries += _blocks(model, "up_blocks", "output_blocks", first=0)
        return [*entries, *_affine("out.0", "conv_norm_out"), *_affine("out.2", "conv_out")]
    return [*entries, *_head(model.head, model.config.pool)]


def _head(head: nn.Sequential, pool: str) -> Iterator[Entry]:
    """Of a classifier, whose layers stand in OpenAI's order."""
    if pool == "attention":
        yield from _affine("out.0", "head.0")
        yield Entry("out.2.positional_embedding", ("head.2.positional_embedding",), transposed=True)
        yield from _qkv("out.2.qkv_proj", "head.2", head[2].to_q.out_features // head[2].attention_head_dim)
        yield from _affine("out.2.c_proj", "head.2.to_out", trailing_ones=1)
    elif pool == "adaptive":
        yield from _affine("out.0", "head.0")
        yield from _affine("out.3", "head.4", trailing_ones=2)  # theirs convolves before it flattens
    else:
        for index, layer in enumerate(head):
            if isinstance(layer, nn.Linear | nn.GroupNorm):
                yield from _affine(f"out.{index}", f"head.{index}")


def convert_parameters(
    model: nn.Module,
    parameters: Mapping[str, torch.Tensor],
    new_attention_order: bool,
    torch_dtype: torch.dtype,
    progress: tqdm,
) -> Iterator[tuple[str, torch.Tensor]]:
    """OpenAI's parameters renamed and reordered for `model`, one after the other; every tensor is a copy.

    Args:
        model (`ADMUNet2DModel` or `NoisyClassifierModel`): Says which entries there are; not changed.
        parameters (`Mapping[str, torch.Tensor]`): Theirs, which [`check_parameters`] let pass.
        new_attention_order (`bool`): Whether query, key and value are stacked as wholes (only the 64x64 unet) rather
            than interleaved per head. Attention pooling always stacks wholes.
        torch_dtype (`torch.dtype`): To convert to.
        progress (`tqdm`): Updated by one per entry.
    """
    for entry in openai_entries(model):
        parts = entry.unpack(parameters[entry.openai], _order(entry, new_attention_order))
        yield from ((key, part.to(torch_dtype, copy=True)) for key, part in zip(entry.ours, parts))
        progress.update()


def to_openai_state_dict(model: nn.Module, new_attention_order: bool) -> dict[str, torch.Tensor]:
    """The inverse of [`convert_parameters`]: the parameters of `model` in OpenAI's layout and order, contiguous."""
    ours = model.state_dict()
    return {
        entry.openai: entry.pack(
            tuple(ours[key] for key in entry.ours), _order(entry, new_attention_order)
        ).contiguous()
        for entry in openai_entries(model)
    }


def _order(entry: Entry, new_attention_order: bool) -> bool:
    return new_attention_order or entry.openai.startswith("out.")  # attention pooling has one order only


def check_parameters(model: nn.Module, specs: Mapping[str, torch.Tensor]) -> None:
    """Raises `InputError` if parameters of OpenAI's names are missing, left over, or of another shape than the model's."""
    ours = {key: torch.empty_like(value, device="meta") for key, value in model.state_dict().items()}
    expected = {
        entry.openai: entry.pack(tuple(ours[key] for key in entry.ours), True).shape for entry in openai_entries(model)
    }
    faults = describe_faults(
        missing=[name for name in expected if name not in specs],
        left_over=[name for name in specs if name not in expected],
        misshapen={
            name: (specs[name].shape, shape)
            for name, shape in expected.items()
            if name in specs and specs[name].shape != shape
        },
    )
    if faults:
        raise InputError(
            f"The parameters of this checkpoint do not match the {type(model).__name__} that their names and shapes "
            f"suggest: {faults}."
        )


def describe_faults(
    missing: list[str], left_over: list[str], misshapen: dict[str, tuple[torch.Size, torch.Size]]
) -> str:
    """How parameters do not fit a model, by number and the first few names; nothing if they do.

    Args:
        missing, left_over (`list[str]`): Names.
        misshapen (`dict`): By name, the shape that is there and the model's.
    """
    misshapen = [f"{name} is {tuple(shape)} in place of {tuple(ours)}" for name, (shape, ours) in misshapen.items()]
    return ", ".join(
        f"{len(names)} {fault} ({'; '.join(names[:3])}{' ...' if len(names) > 3 else ''})"
        for fault, names in (("missing", missing), ("left over", left_over), ("of another shape", misshapen))
        if names
    )
