"""Files of weights: read tensor by tensor, safely, whatever stands around the parameters; and written so."""

import errno
import json
import os
import pickle
import re
import zipfile
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFETENSORS_WEIGHTS_NAME
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file

from diffusers_cg.errors import InputError


FILE_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
ANCHOR = "time_embed.0.weight"  # every network of the layout has it, once
REMAP_BYTES = 64 * 2**20
SAFETENSORS_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}

EDM_PICKLES = re.compile(r"(edm|baseline)-.*\.pkl", re.IGNORECASE)


def list_few(names: Iterable, limit: int = 4) -> str:
    """The first names of many."""
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


class Parameters(Mapping[str, torch.Tensor]):
    """Parameters by OpenAI's names, each read when it is asked for.

    Args:
        specs (`dict[str, torch.Tensor]`): A meta tensor for each: shape and dtype.
    """

    specs: dict[str, torch.Tensor]

    @abstractmethod
    def __getitem__(self, name: str) -> torch.Tensor: ...

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __len__(self) -> int:
        return len(self.specs)


class InMemory(Parameters):
    """Those of a dictionary, as of a file."""

    def __init__(self, held: Mapping[str, torch.Tensor | Mapping], entry: str | None = None):
        tensors = dict(_flatten(held))
        self.prefix, self.left_out = select(list(tensors), entry, "This dictionary")
        self.tensors = _without(self.prefix, tensors)
        self.specs = specs_of(self.tensors)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self.tensors[name]


class InFiles(Parameters):
    """Those of one or several files; leave these unchanged as long as they are read.

    Files are mapped, so that what is not asked for is not read; and mapped anew now and then, since pages that were read
    stay in memory as long as the mapping does. (`torch.save` of before 2020 wrote files that cannot be mapped.)

    Args:
        paths (`list[Path]`): The files.
        entry (`str`, *optional*): What stands before the parameters' names, as of [`select`].
    """

    def __init__(self, paths: list[Path], entry: str | None = None):
        self.paths = paths
        self.tensors = self._map()
        self.prefix, self.left_out = select(list(self.tensors), entry, str(paths[0]))
        self.specs = specs_of(_without(self.prefix, self.tensors))
        self.remaps = all(is_mapped(path) for path in paths)

    def _map(self) -> dict[str, torch.Tensor]:
        self.bytes_read = 0
        return {name: tensor for path in self.paths for name, tensor in load_tensors(path).items()}

    def __getitem__(self, name: str) -> torch.Tensor:
        if self.remaps and self.bytes_read > REMAP_BYTES:
            self.tensors = {}
            self.tensors = self._map()
        tensor = self.tensors[self.prefix + name]
        self.bytes_read += tensor.nbytes
        return tensor


def _without(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def specs_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A meta tensor for each."""
    return {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}


def is_mapped(path: Path) -> bool:
    """Whether a file's tensors stay on disk until they are used."""
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, by name; those of dictionaries in dictionaries as `outer.inner`. Nothing in it is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        InputError: if the file is truncated, holds code or no tensors, or is not a checkpoint.
    """
    if EDM_PICKLES.fullmatch(path.name):
        raise InputError(
            f"{path} is one of EDM's released pickles: it holds code, which is not run here, and a network of EDM's "
            "preconditioning and names; sample it with NVlabs/edm, or take OpenAI's 64x64_diffusion.pt, whose weights "
            "its baseline-imagenet-64x64-cond-adm.pkl holds."
        )
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    with open(path, "rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip and not zipfile.is_zipfile(path):
        raise InputError(f"{path} is truncated: fetch it again.")
    try:
        if path.suffix == ".safetensors":
            held = load_file(path)
        else:
            held = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is not a file of tensors alone, and is refused, since reading anything else from it could run "
            "foreign code: save its model's state_dict() with torch.save or safetensors and pass that."
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a checkpoint; it is truncated or another kind of file.") from error
    if isinstance(held, Mapping) and "param_groups" in held and "state" in held:
        averages = averages_beside(path, every=True)
        raise InputError(
            f"{path} holds the entries state, param_groups: an optimizer's state, no network. guided-diffusion writes the "
            f"weights beside it as model*.pt, and their average, which gives the good samples, as ema_*.pt"
            f"{f': {list_few(averages)}' if averages else ''}."
        )
    tensors = dict(_flatten(held)) if isinstance(held, Mapping) else {}
    if not tensors:
        entries = f"the entries {list_few(held)}" if isinstance(held, Mapping) else type(held).__name__
        raise InputError(f"{path} is not a model's state dictionary, which names tensors; it holds {entries}.")
    return tensors


def _flatten(held: Mapping, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    for name, value in held.items():
        if isinstance(value, torch.Tensor):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")


def select(names: list[str], entry: str | None, where: str) -> tuple[str, int]:
    """What stands before the names of the one network that a file holds, and how many tensors are none of its.

    A wrapper (`module.`), a trainer (`state_dict.model.`) and an average beside the weights (`ema.`) all name a network's
    parameters with something before them.

    Args:
        names (`list[str]`): All names in the file.
        entry (`str`, *optional*): The one to take, where there are several.
        where (`str`): The file, for the sentence.

    Raises:
        InputError: if there are several networks, or not the one asked for.
    """
    found = [name.removesuffix(ANCHOR) for name in names if name.endswith(ANCHOR)]
    found = [prefix for prefix in found if prefix == "" or prefix.endswith(".")]
    if entry is not None:
        wanted = [prefix for prefix in found if prefix.rstrip(".") == entry.rstrip(".")]
        wanted = wanted or [prefix for prefix in found if prefix.startswith(f"{entry}.")]
        if not wanted:
            raise InputError(
                f"{where} holds no network at {entry!r}, but at {_places(found) or 'no entry'}: pass that."
            )
        found = wanted
    if "" in found:
        found = [""]
    if len(found) > 1:
        averaged = [prefix for prefix in found if re.search("ema|average", prefix)]
        advice = f"; the averaged weights, {averaged[0].rstrip('.')}, give the good samples" if averaged else ""
        raise InputError(f"{where} holds {len(found)} networks, at {_places(found)}: pass entry= one of them{advice}.")
    prefix = found[0] if found else ""
    return prefix, sum(not name.startswith(prefix) for name in names)


def _places(prefixes: list[str]) -> str:
    return list_few((prefix.rstrip(".") or "the top" for prefix in prefixes), limit=8)


def averages_beside(path: Path, every: bool = False) -> list[str]:
    """Names of the averaged weights in a folder of guided-diffusion's, of the same step as `path`."""
    step = re.fullmatch(r"(?:model|opt)(\d*)", path.stem)
    if step is None and not every:
        return []
    suffix = f"_{step[1]}.pt" if step and step[1] else ".pt"
    return sorted(file.name for file in path.parent.glob("ema*") if file.name.endswith(suffix))


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a folder that diffusers wrote.

    Raises:
        InputError: if there are none.
    """
    for index in sorted(folder.glob("diffusion_pytorch_model*.index.json")):
        return [folder / name for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    for suffix in (".safetensors", ".bin"):
        files = sorted(folder.glob(f"diffusion_pytorch_model*{suffix}"), key=lambda file: len(file.name))
        if files:
            return files[:1]
    raise InputError(f"{folder} holds no weights: there is no diffusion_pytorch_model.safetensors in it.")


def write_weights(
    folder: Path,
    specs: Mapping[str, torch.Tensor],
    tensors: Iterator[tuple[str, torch.Tensor]],
    max_shard_size: int | str,
) -> None:
    """Writes the weights of a model as diffusers does, but of tensors that are made one after the other.

    Args:
        folder (`Path`): The model's; made if it is not there.
        specs (`Mapping[str, torch.Tensor]`): Shape and dtype of each, in the order of `tensors`.
        tensors (iterator of `(str, torch.Tensor)`): Name and values.
        max_shard_size (`int` or `str`): Larger files are split.
    """
    pattern = SAFETENSORS_WEIGHTS_NAME.replace(".safetensors", "{suffix}.safetensors")
    shards = split_torch_state_dict_into_shards(specs, max_shard_size=max_shard_size, filename_pattern=pattern)
    for file, names in shards.filename_to_tensors.items():
        (folder / file).write_bytes(_safetensors_header({name: specs[name] for name in names}))
    for name, tensor in tensors:  # one larger than a shard has a file of its own, amid those of another
        with open(folder / shards.tensor_to_filename[name], "ab") as file:
            file.write(tensor.contiguous().view(torch.uint8).numpy())
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _safetensors_header(specs: Mapping[str, torch.Tensor]) -> bytes:
    """What stands before the values: names, dtypes, shapes and places, their length before them."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, spec in specs.items():
        start, end = end, end + spec.nbytes
        dtype = SAFETENSORS_DTYPES[spec.dtype]
        header[name] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # values start at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text
