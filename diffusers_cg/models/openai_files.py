"""Checkpoints of OpenAI's layout: examined, made models of ours, and given back as they were."""

import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from diffusers_cg.errors import InputError
from diffusers_cg.models.hub_formats import download, is_foreign, open_folder
from diffusers_cg.models.openai_layout import (
    check_parameters,
    convert_parameters,
    openai_entries,
    to_openai_state_dict,
)
from diffusers_cg.models.openai_recognition import Recognised, find_layouts, find_origin, recognise
from diffusers_cg.models.presets import CONTINUOUS_COSINE, COSINE, LAYOUTS, PRESETS, Layout, Preset
from diffusers_cg.models.weight_files import (
    FILE_SUFFIXES,
    InFiles,
    InMemory,
    Parameters,
    averages_beside,
    list_few,
    write_weights,
)


if TYPE_CHECKING:
    from typing import Self


HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

HEADS = ("attention_head_dim", "num_attention_heads")
PROCESS = ("num_train_timesteps", "beta_schedule", "rescale_timesteps", "prediction_type")
FACTS = ("sample_size", *HEADS, "new_attention_order", "dropout", "label_dropout", *PROCESS)
"""What shapes do not tell."""

FUNCTION = (*HEADS, "new_attention_order", *PROCESS)
"""Those facts that change what a network computes or is fed."""

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class CheckpointWarning(UserWarning):
    """Something of a checkpoint was assumed, or it may not be the one that is meant."""


@dataclass
class Examined:
    """What a checkpoint is, and how that is known.

    Args:
        where (`str`): The file, or what else was given.
        parameters ([`Parameters`]): Its parameters by OpenAI's names, unread.
        recognised ([`Recognised`]): What their shapes tell.
        layout_name, layout: The row of the table that it is, or is assumed to be; None if it is another.
        origins (`dict[str, str]`): Of each fact, how it is known: `"shapes"`, `"name"`, `"configuration"`, `"stated"` or
            `"assumed"`.
        facts (`dict`): All facts that are known.
        missing (`list[str]`): Arguments to pass for those that are needed and not known.
        notes (`list[str]`): Sentences that a user should read.
    """

    where: str
    parameters: Parameters
    recognised: Recognised
    layout_name: str | None = None
    layout: Layout | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> dict[str, Any]:
        """Every argument of the model's constructor that is not as by default."""
        arguments = {name: value for name, value in self.facts.items() if name != "new_attention_order"}
        if arguments.get("beta_schedule") == CONTINUOUS_COSINE:
            arguments["beta_schedule"] = COSINE  # in diffusers' words; a scheduler's `trained_betas` are exact
        return {**arguments, **self.recognised.arguments_at(self.facts["sample_size"])}

    def add(self, origin: str, facts: Mapping[str, Any]) -> None:
        """Facts that are not known yet; of a classifier, none of what unets alone have."""
        of_unets = {"prediction_type", "label_dropout"}
        known = set(self.facts) | (of_unets if self.recognised.kind == "classifier" else set())
        if known & set(HEADS):
            known |= set(HEADS)
        for name, value in facts.items():
            if value is not None and name not in known:
                self.facts[name], self.origins[name] = value, origin


def examine(
    source: str | Path | Mapping[str, torch.Tensor],
    kind: str | None = None,
    *,
    layout: str | None = None,
    entry: str | None = None,
    layers_per_block: int | None = None,
    low_res_channels: int | None = None,
    **facts: Any,
) -> Examined:
    """Finds out what a checkpoint is: from its shapes, its name in the table of layouts, and what the user says.

    Weights are not read. Arguments as of [`open_checkpoint`].

    Raises:
        FileNotFoundError, InputError: if it cannot be read, is of another kind of network, may be several, or
            contradicts what is said of it.
    """
    facts = {name: value for name, value in facts.items() if value is not None}
    _check_facts(facts)
    name, configured = "", {}
    if isinstance(source, Mapping):
        where, parameters = "This checkpoint", InMemory(source, entry)
    elif Path(source).is_dir():
        where = str(source)
        parameters, configured = open_folder(Path(source), kind)
    else:
        where, name = str(source), Path(source).name
        name = re.sub(rf"({'|'.join(map(re.escape, FILE_SUFFIXES))})$", "", name, flags=re.IGNORECASE)
        parameters = InFiles([Path(source)], entry)
    shapes = {key: tuple(spec.shape) for key, spec in parameters.specs.items()}
    sample_size = facts.get("sample_size", configured.get("sample_size"))
    recognised = recognise(shapes, sample_size, layers_per_block, low_res_channels)
    if kind not in (None, recognised.kind):
        model = "ADMUNet2DModel" if recognised.kind == "unet" else "NoisyClassifierModel"
        raise InputError(
            f"This checkpoint is a {recognised.kind}'s, not a {kind}'s: load it with {model}.from_single_file."
        )

    examined = Examined(where, parameters, recognised)
    examined.add("stated", facts)
    examined.add("configuration", configured)
    examined.add("shapes", {"sample_size": recognised.sample_size})
    fits = find_layouts(recognised)
    named = _named(layout or name)
    if layout is not None and (named is None or named not in fits):
        fault = "there is no such layout" if named is None else "it has other shapes"
        raise InputError(
            f"{where} is not layout={layout!r}: {fault}; of its shapes are {list_few(fits, 8) or 'none'}."
        )
    if named in fits:
        _check_against(examined, named)
        _take(examined, named, "stated" if layout is not None else "name")
    else:
        if named is not None:
            examined.notes.append(f"{where} has the name, but not the shapes, of the layout {named}.")
        if fits:
            _assume(examined, fits)

    if examined.facts.get("num_attention_heads") == 1:
        examined.add("shapes", {"new_attention_order": False})  # with one head the two orders are the same
    examined.missing = _missing(examined)
    examined.notes += _notes(examined, source)
    return examined


def _check_facts(facts: Mapping[str, Any]) -> None:
    unknown = sorted(set(facts) - set(FACTS))
    if unknown:
        raise TypeError(f"unexpected argument {unknown[0]!r}: the facts are {', '.join(FACTS)}")
    if all(name in facts for name in HEADS):
        raise InputError(
            "Set the attention heads either by width (`attention_head_dim`) or by number (`num_attention_heads`), not "
            f"both: got {facts['attention_head_dim']} and {facts['num_attention_heads']}."
        )
    if facts.get("prediction_type", "epsilon") not in PREDICTION_TYPES:
        raise InputError(f"`prediction_type` must be one of {PREDICTION_TYPES}, got {facts['prediction_type']!r}.")


def _named(name: str) -> str | None:
    """The layout of this name, or that files of this name have."""
    if name in LAYOUTS:
        return name
    return next((row for row, layout in LAYOUTS.items() if name.lower() in map(str.lower, layout.files)), None)


def _facts_of(layout: Layout) -> dict[str, Any]:
    known = {**layout.architecture, **{name: getattr(layout, name) for name in ("new_attention_order", *PROCESS)}}
    return {name: known[name] for name in FACTS if known.get(name) is not None}


def _differences(facts: Mapping[str, Any], layout: Layout, recognised: Recognised) -> list[str]:
    """Names of the facts that change what a network computes and that a layout has otherwise."""
    theirs = _facts_of(layout)
    differing = [name for name in PROCESS if facts.get(name, theirs[name]) != theirs[name]]
    if theirs["num_train_timesteps"] == facts.get("num_train_timesteps", 1000) == 1000:
        differing = [name for name in differing if name != "rescale_timesteps"]  # which changes nothing then
    if {facts.get("beta_schedule"), theirs["beta_schedule"]} == {COSINE, CONTINUOUS_COSINE}:
        differing.remove("beta_schedule")  # the former is how a config says the latter
    stated_heads = _heads(facts, recognised)
    if stated_heads and _heads(theirs, recognised) and stated_heads != _heads(theirs, recognised):
        differing.append(next(name for name in HEADS if facts.get(name) is not None))
    other_order = facts.get("new_attention_order", theirs["new_attention_order"]) != theirs["new_attention_order"]
    if other_order and set(stated_heads or ()) != {1}:
        differing.append("new_attention_order")
    return differing


def _heads(facts: Mapping[str, Any], recognised: Recognised) -> tuple[float, ...] | None:
    """Heads of every level with attention, and of the middle block."""
    width, number = (facts.get(name) for name in HEADS)
    multipliers = recognised.arguments["channel_multipliers"]
    levels = sorted({*recognised.attention_levels, len(multipliers) - 1})
    if width is None and number is None:
        return None
    return tuple(number or multipliers[level] * recognised.arguments["base_channels"] / width for level in levels)


def _check_against(examined: Examined, name: str) -> None:
    """What is said by hand must not contradict what is known of a file of this name."""
    layout = LAYOUTS[name]
    for fact in _differences(examined.facts, layout, examined.recognised):
        theirs = _facts_of(layout)
        other = fact if fact in theirs else next(each for each in HEADS if each in theirs)
        raise InputError(
            f"{examined.where} has the name and the shapes of the layout {name}, of which {other}={theirs[other]!r} is "
            f"known, but {fact}={examined.facts[fact]!r} is {examined.origins[fact]}: leave that out, or rename the file "
            "if it is another network's."
        )


def _take(examined: Examined, name: str, origin: str) -> None:
    examined.layout_name, examined.layout, examined.origins["layout"] = name, LAYOUTS[name], origin
    examined.add(origin, _facts_of(LAYOUTS[name]))


def _assume(examined: Examined, fits: dict[str, Layout]) -> None:
    """Takes the first of the layouts that have these shapes and what is known already, and says so.

    Raises:
        InputError: if they have other heads or another order, of which none is the usual one.
    """
    known, recognised = dict(examined.facts), examined.recognised
    rows = [name for name, row in fits.items() if not _differences(known, row, recognised)] or list(fits)
    first = rows[0]
    others = [
        name
        for name in rows
        if _structure(fits[name], known, recognised) != _structure(fits[first], known, recognised)
    ]
    if others:
        names = (*HEADS, "new_attention_order")
        said = "; ".join(f"{name} has {_said(fits[name], names)}" for name in (first, *others))
        raise InputError(
            f"{examined.where} has no name that is known, and the shapes of several layouts that need other facts: {said}; "
            "pass layout= one of them, or the facts."
        )
    _take(examined, first, "assumed")
    names = ("sample_size", *FUNCTION)
    assumed = [name for name in names if examined.origins.get(name) == "assumed"]
    if not assumed:
        return
    differing = {name: _differences(_facts_of(fits[first]), fits[name], recognised) for name in rows}
    but = [f"{name} has {_said(fits[name], facts)}" for name, facts in differing.items() if facts]
    note = fits[first].note
    examined.notes.append(
        f"{examined.where} has no name that is known, but the shapes of {list_few(rows, 3)}: "
        f"{', '.join(f'{name}={examined.facts[name]!r}' for name in assumed)} {'is' if len(assumed) == 1 else 'are'} assumed, "
        f"as of {first}{f' ({note})' if note else ''}{'; but ' + '; '.join(but) if but else ''}. If it is another network, "
        "pass layout=, or those that are otherwise."
    )


def _structure(layout: Layout, known: Mapping[str, Any], recognised: Recognised) -> tuple:
    heads = _heads(known, recognised) or _heads(_facts_of(layout), recognised)
    one = heads is not None and set(heads) == {1}
    return heads, one or known.get("new_attention_order", layout.new_attention_order)


def _said(layout: Layout, names: tuple[str, ...] | list[str]) -> str:
    facts = _facts_of(layout)
    return ", ".join(f"{name}={facts[name]!r}" for name in names if name in facts)


def _missing(examined: Examined) -> list[str]:
    facts = examined.facts
    needed = {
        "sample_size=": "sample_size" in facts,
        "attention_head_dim= (num_head_channels) or num_attention_heads= (num_heads)": any(n in facts for n in HEADS),
        "new_attention_order= (use_new_attention_order)": "new_attention_order" in facts,
        "num_train_timesteps= (diffusion_steps), from which timesteps are rescaled": "num_train_timesteps" in facts
        or not facts.get("rescale_timesteps"),
    }
    return [argument for argument, known in needed.items() if not known]


def _notes(examined: Examined, source: str | Path | Mapping) -> list[str]:
    """Which of several files it may be that is meant."""
    if isinstance(source, Mapping):
        return []
    notes, averages = [], averages_beside(Path(source))
    if averages:
        notes.append(
            f"{examined.where} holds the weights as training left them: their average, which gives the good samples, is "
            f"beside it in {list_few(averages)}."
        )
    dtypes = {spec.dtype for spec in examined.parameters.specs.values()} & {torch.float16, torch.bfloat16}
    for dtype in dtypes:
        said = str(dtype).removeprefix("torch.")
        notes.append(
            f"{examined.where} holds weights that were rounded to {said}: a float32 file of them would be exact."
        )
    return notes


@dataclass(frozen=True)
class OpenAICheckpoint:
    """A checkpoint and all that its model needs: examined by [`open_checkpoint`].

    Args:
        parameters ([`Parameters`]): By OpenAI's names.
        arguments (`dict`): Every argument of the model's constructor that is not as by default.
        new_attention_order (`bool`): Whether query, key and value are stacked as wholes.
        process (`dict`): T, schedule, rescaling and prediction type, as far as they are known.
        layout ([`Layout`], *optional*): The row of the table that it is, or has the shapes of.
        preset ([`Preset`], *optional*): The paper's network, whose name and shapes it has; None if it is another.
    """

    parameters: Parameters
    arguments: dict[str, Any]
    new_attention_order: bool
    process: dict[str, Any]
    layout: Layout | None
    preset: Preset | None


def open_checkpoint(
    path_or_state_dict: str | Path | Mapping[str, torch.Tensor], kind: str | None = None, **facts: Any
) -> OpenAICheckpoint:
    """Opens a checkpoint and finds out all that its model needs: from its shapes, its name, and the user.

    Args:
        path_or_state_dict (`str`, `Path` or `Mapping[str, torch.Tensor]`): A file, or what it holds.
        kind (`"unet"` or `"classifier"`, *optional*): What it has to be.
        facts: As of `from_single_file`.

    Raises:
        FileNotFoundError, InputError: if it cannot be read, is of another kind of network, or needs a fact that was not
            given; the sentence says what was found and what to pass.
    """
    examined = examine(path_or_state_dict, kind, **facts)
    if examined.missing:
        recognised = examined.recognised
        found = ", ".join(f"{key}={value}" for key, value in recognised.arguments.items())
        raise InputError(
            f"This {recognised.kind} is none of OpenAI's released ones, nor of the layouts that are known ({found}), and "
            f"its shapes do not tell everything: pass {'; '.join(examined.missing)}.{_facts_of_the_origin(recognised)}"
        )
    for note in examined.notes:
        warnings.warn(note, CheckpointWarning, stacklevel=3)
    is_released = isinstance(examined.layout, Preset) and examined.origins["layout"] == "name"
    return OpenAICheckpoint(
        examined.parameters,
        examined.arguments,
        examined.facts["new_attention_order"],
        {name: examined.facts[name] for name in PROCESS if name in examined.facts},
        examined.layout,
        examined.layout if is_released else None,
    )


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
    _unread: OpenAICheckpoint | None = None

    @classmethod
    def from_single_file(
        cls,
        path_or_state_dict: str | Path | Mapping[str, torch.Tensor],
        *,
        torch_dtype: torch.dtype = torch.float32,
        dtype: torch.dtype | None = None,
        **facts: int | float | bool | str | tuple[int, int] | None,
    ) -> "Self":
        """Loads a checkpoint of guided-diffusion or improved-diffusion.

        The architecture is recognised from the parameters' names and shapes. What these do not tell is known of the files
        in the table of layouts (`diffusers_cg.models.presets.LAYOUTS`), by their names; of a file of another name but the
        shapes of one of them it is assumed, with a warning; of any other it must be passed, and a sentence says what.

        Args:
            path_or_state_dict (`str`, `Path` or `Mapping[str, torch.Tensor]`): A `.pt`, `.ckpt` or `.safetensors` file,
                what it holds, or a folder of one of the formats that others put on the Hub. Files of averaged weights
                (`ema_0.9999_*.pt`) have the same layout. A wrapper or trainer around the parameters is taken off.
            torch_dtype (`torch.dtype`): Of the model; half-precision files are widened to it.
            dtype (`torch.dtype`, *optional*): Its newer name, as of `from_pretrained`.
            layout (`str`, *optional*): The row of the table that it is, whatever its name.
            entry (`str`, *optional*): Which of several networks in one file (`"ema"`).
            sample_size (`int` or `tuple[int, int]`, *optional*): Side of the image in pixels, or its height and width.
            attention_head_dim, num_attention_heads (`int`, *optional*): Width of every attention head
                (`num_head_channels`), or their number at every level (`num_heads`).
            new_attention_order (`bool`, *optional*): Whether query, key and value are stacked as wholes
                (`use_new_attention_order`) rather than interleaved per head.
            dropout (`float`, *optional*): For training on; that of the released file, or 0.
            label_dropout (`float`, *optional*): As of [`ADMUNet2DModel`]; parameters do not tell it.
            num_train_timesteps, beta_schedule, rescale_timesteps, prediction_type (*optional*): What it was trained with,
                in diffusers' words (`diffusion_steps`, `noise_schedule`, `predict_xstart`), kept in the config.
            layers_per_block, low_res_channels (`int`, *optional*): Where the shapes allow several.

        Returns:
            The model, in evaluation mode.

        Raises:
            FileNotFoundError, InputError: if the file cannot be read, is of another kind of network, has parameters
                missing or left over, needs a fact that was not given, or contradicts one that was.
        """
        return cls.from_checkpoint(
            open_checkpoint(path_or_state_dict, cls._openai_kind, **facts), dtype or torch_dtype
        )

    @classmethod
    @torch.no_grad()
    def from_checkpoint(
        cls, checkpoint: OpenAICheckpoint, torch_dtype: torch.dtype = torch.float32, read: bool = True
    ) -> "Self":
        """The model of a checkpoint that was opened, in evaluation mode; it shares no memory with it.

        Args:
            checkpoint ([`OpenAICheckpoint`]): The checkpoint.
            torch_dtype (`torch.dtype`): Of the model.
            read (`bool`): Whether to read its weights. Without them it can only be saved, which converts tensor by tensor
                from file to file.
        """
        with torch.device("meta"):
            model = torch.nn.Module.to(
                cls(**checkpoint.arguments), torch_dtype
            )  # diffusers' own warns of what is none
        model.register_to_config(_new_attention_order=checkpoint.new_attention_order)
        check_parameters(model, checkpoint.parameters.specs)
        model._unread = checkpoint
        if read:
            model.load_state_dict(dict(model._converted()), assign=True)
            model.lay_out_weights()
            model._unread = None
        return model.eval()

    def _converted(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The parameters that are still in their file, by our names, one after the other."""
        parameters, order = self._unread.parameters, self._unread.new_attention_order
        with tqdm(total=len(parameters), desc="Converting", unit="tensor", leave=False, delay=1) as progress:
            yield from convert_parameters(self, parameters, order, self.dtype, progress)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs):
        """As diffusers' own; the formats of others (`diffusers_cg.models.hub_formats`) are converted, without their code."""
        where = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name) is not None}
        config = cls.load_config(pretrained_model_name_or_path, **where)
        if not is_foreign(config):
            return super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        folder = Path(pretrained_model_name_or_path)
        if not folder.is_dir():
            folder = download(str(folder), **where)
        folder = folder / (kwargs.get("subfolder") or "")
        dtype = kwargs.get("dtype") or kwargs.get("torch_dtype") or torch.float32
        model = cls.from_single_file(folder, dtype=dtype)
        nothing = {"missing_keys": [], "unexpected_keys": [], "mismatched_keys": [], "error_msgs": []}
        return (model, nothing) if kwargs.get("output_loading_info") else model

    @torch.no_grad()
    def save_pretrained(
        self,
        save_directory: str | Path,
        *args,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        **kwargs,
    ) -> None:
        """As diffusers' own; of a model whose weights are still in their file, tensor by tensor."""
        if self._unread is None:
            options = {"safe_serialization": safe_serialization, "variant": variant, "max_shard_size": max_shard_size}
            super().save_pretrained(save_directory, *args, **options, **kwargs)
            return
        self.save_config(save_directory)
        specs = {name: self.state_dict()[name] for entry in openai_entries(self) for name in entry.ours}
        write_weights(Path(save_directory), specs, self._converted(), max_shard_size)

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
