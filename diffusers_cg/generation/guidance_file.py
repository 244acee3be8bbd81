"""Guidance by a file: what the commands' `--guidance FILE.yaml` means.

A list, whose guidances add:

    - guidance: ClassifierGuidance        # a class of diffusers_cg.guidance
      scale: 2.0                          # its arguments
      entropy_driven: true
      finite: true                        # Guidance.finite
      max_norm: 10                        # that of Guidance.clamped
      weight: 0.5                         # how far it goes
      every: 2                            # those of Guidance.confined: start, stop, sigmas, every
    - guidance: CleanClassifierGuidance
      classify: microsoft/resnet-50       # networks by folder or name on the Hub

Networks are the pipeline's own (`classifier`, `unet`) unless named; labels are those of each call unless one is. Nothing in the
file is executed: names are looked up in a table, and networks are loaded as `transformers` and diffusers load weights.
"""

import hashlib
import inspect
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import torch
import yaml
from pydantic import BeforeValidator, Field
from torch import nn

from diffusers_cg.diffusion import check_trained_process
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg.generation.typed_words import Typed, nearest, of_one_image, read, typed
from diffusers_cg.guidance import (
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    CleanClassifierGuidance,
    Guidance,
    GuidanceSum,
    PerturbedAttentionGuidance,
    TextGuidance,
    TrainingFreeGuidance,
    image_classifier,
)
from diffusers_cg.models import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.pipelines import ClassifierGuidedPipeline


OF_CLEAN_IMAGES = {each.__name__: each for each in (CleanClassifierGuidance, TextGuidance)}
GUIDANCES = OF_CLEAN_IMAGES | {
    each.__name__: each
    for each in (
        ClassifierGuidance,
        TrainingFreeGuidance,
        ClassifierFreeGuidance,
        PerturbedAttentionGuidance,
        AutoGuidance,
    )
}
"""What a file can name. The others take functions, which no file holds."""

UNSET = ("", "null", "~")
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")

NOT_OF_TARGETS = ("scale", "through_unet", "sine")
"""Arguments of guidances of clean images that say how they guide, which a target leaves to what it is the target of."""


def _infinity_of_yaml(word: Any) -> Any:
    return "inf" if word in (".inf", ".Inf", ".INF") else word


NoiseLevel = Annotated[float, Field(ge=0, allow_inf_nan=True), BeforeValidator(_infinity_of_yaml)]


class Changes(Typed):
    """How a guidance is changed: kept finite, clamped, then weighed, then confined."""

    finite: bool = False
    max_norm: float | None = None
    weight: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    sigmas: tuple[NoiseLevel, NoiseLevel] = (0.0, math.inf)
    every: int = 1

    def of(self, guidance: Guidance) -> Guidance:
        if self.finite:
            guidance = guidance.finite()
        if self.max_norm is not None:
            guidance = guidance.clamped(self.max_norm)
        if self.weight != 1:
            guidance = self.weight * guidance
        confined = {name: getattr(self, name) for name in ("start", "stop", "sigmas", "every")}
        return guidance.confined(**confined) if confined.keys() & self.model_dump(exclude_defaults=True) else guidance


# ------------------------------------------------------------------------------------------------------------- networks


@dataclass(eq=False)
class Network:
    """A network that a file names, on any device, and what prepares its inputs."""

    model: nn.Module
    processor: Any = None

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, shortened, of the weights and of how images are prepared."""
        images = getattr(self.processor, "image_processor", self.processor)
        prepared = {} if images is None else images.to_dict()
        digest = hashlib.sha256(
            f"{type(self.model).__name__} {json.dumps(prepared, sort_keys=True, default=str)}".encode()
        )
        for key, tensor in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(tensor.cpu().float().contiguous().numpy())
        return digest.hexdigest()[:16]


def load_from_transformers(model_class: str, processor_class: str, path: str) -> Network:
    transformers = import_extra("transformers", "guidance")
    model, loaded = getattr(transformers, model_class).from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, trust_remote_code=False
    )
    if loaded["missing_keys"]:  # which would be made up
        raise InputError(f"it has no weights of {min(loaded['missing_keys'])}")
    # of tensors we prepare images ourselves, so no torchvision
    return Network(model, getattr(transformers, processor_class).from_pretrained(path, backend="pil"))


def load_image_classifier(path: str) -> Network:
    return load_from_transformers("AutoModelForImageClassification", "AutoImageProcessor", path)


def load_clip(path: str) -> Network:
    kind = (
        import_extra("transformers", "guidance").AutoConfig.from_pretrained(path, trust_remote_code=False).model_type
    )
    if kind != "clip":  # of which transformers would make up a CLIP
        raise InputError(f"it is of the kind {kind}, not clip")
    return load_from_transformers("CLIPModel", "CLIPProcessor", path)


def load_classifier(path: str) -> Network:
    return Network(NoisyClassifierModel.from_pretrained(path, subfolder=part_of_pipeline(path, "classifier")))


def load_weak_unet(path: str) -> Network:
    return Network(ADMUNet2DModel.from_pretrained(path, subfolder=part_of_pipeline(path, "unet")))


def part_of_pipeline(path: str, name: str) -> str | None:
    """The name of a model's folder in that of a pipeline; None where `path` is the model's own."""
    return name if (Path(path) / "model_index.json").is_file() else None


NETWORKS: dict[str, Callable[[str], Network]] = {
    "classify": load_image_classifier,
    "clip": load_clip,
    "classifier": load_classifier,
    "weak_unet": load_weak_unet,
}
"""Arguments that are networks: a file gives a folder or a name on the Hub."""

OF_PIPELINE = ("unet", "processor")
"""Arguments that no file states: they come with the pipeline, or with a network."""


def entry_class(guidance: type[Guidance], is_target: bool = False) -> type[Typed]:
    """What a file can say of a guidance: the arguments of its class, and how it is changed; of a target, what it judges by."""
    hints = get_type_hints(guidance.__init__)
    fields = {}
    for name, argument in inspect.signature(guidance).parameters.items():
        required = argument.default is inspect.Parameter.empty
        kind, default = of_one_image(hints[name]) if name in hints else Any, ... if required else argument.default
        if name == "classifier":
            kind, default = str | None, None  # the pipeline's
        elif name in NETWORKS:
            kind = str
        elif name == "target":
            kind = Typed
        if name not in OF_PIPELINE + (NOT_OF_TARGETS if is_target else ()):
            fields[name] = (kind, default)
    if "classify" in fields:
        fields["softplus_beta"] = (float | None, None)
    return typed(guidance.__name__, fields, Typed if is_target else Changes)


# ------------------------------------------------------------------------------------------------------------- the file


class GuidanceFile:
    """A file of guidances. Their networks are loaded once, when they are first asked for.

    Args:
        path (`str` or `Path`): A YAML file.

    Raises:
        InputError: if it is none, or says what cannot be meant.
        OSError: if it cannot be opened.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        try:
            # which leaves all scalars the strings they are
            stated = yaml.load(Path(path).read_text(), Loader=yaml.BaseLoader)
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}).") from error
        stated = [stated] if isinstance(stated, dict) else stated
        if not isinstance(stated, list) or not stated:
            raise InputError(f"{path} names no guidance: it must hold lines like `- guidance: ClassifierGuidance`.")
        self.entries = [
            self._read(each, f"{path}: guidance {number}", GUIDANCES) for number, each in enumerate(stated, 1)
        ]
        self.networks: dict[tuple[str, str], Network] = {}

    def _read(self, stated: Any, where: str, known: dict[str, type[Guidance]], is_target: bool = False) -> Typed:
        if not isinstance(stated, dict) or not isinstance(stated.get("guidance"), str):
            raise InputError(f"{where} has no line `guidance: NAME`, with a name of {', '.join(known)}.")
        words = {name: word for name, word in stated.items() if word not in UNSET}
        name = words.pop("guidance", "")
        if name not in known:
            raise InputError(f"{where} must be one of {', '.join(known)}{nearest(name, known)}, got {name!r}.")
        where = f"{where}, {name}"
        kind = entry_class(known[name], is_target)
        if "target" in kind.model_fields and "target" in words:
            words["target"] = self._read(words["target"], f"{where}: target", OF_CLEAN_IMAGES, is_target=True)
        entry = read(kind, words, where)
        if not is_target:
            said_of(where, entry.of, Guidance())
        return entry

    def load(self, pipe: ClassifierGuidedPipeline) -> Guidance:
        """The guidances for a pipeline, their networks on its device and in its precision.

        Raises:
            InputError: if one cannot be made: a network is missing, or is none of its kind.
        """
        return GuidanceSum([entry.of(self._said(self._make, entry, pipe)) for entry in self.entries])

    def _said(self, make: Callable, entry: Changes, pipe: ClassifierGuidedPipeline) -> Any:
        where = f"{self.path}: guidance {self.entries.index(entry) + 1}, {type(entry).__name__}"
        return said_of(where, make, entry, pipe)

    def _make(self, entry: Typed, pipe: ClassifierGuidedPipeline) -> Guidance:
        make = GUIDANCES[type(entry).__name__]
        taken = inspect.signature(make).parameters
        arguments = {name: getattr(entry, name) for name in taken if name in type(entry).model_fields}
        for name in NETWORKS.keys() & arguments:
            if arguments[name] is None:
                if pipe.classifier is None:
                    raise InputError("the pipeline has no classifier: name the folder of one, `classifier: FOLDER`.")
                arguments[name] = pipe.classifier
                continue
            network = self.network(name, arguments[name])
            model = network.model.to(pipe._execution_device, pipe.unet.dtype)
            if name == "classifier":
                check_trained_process(pipe.scheduler, classifier=model)
            if name == "classify":
                model = image_classifier(model, network.processor, entry.softplus_beta)
            if name == "clip":
                arguments["processor"] = network.processor
            arguments[name] = model
        if "unet" in taken:
            arguments["unet"] = pipe.unet
        if "target" in arguments:
            arguments["target"] = self._make(entry.target, pipe)
        return make(**arguments)

    def network(self, name: str, path: str) -> Network:
        """The network that an argument names.

        Raises:
            InputError: if there is none of its kind.
        """
        path = str(Path(path).expanduser()) if path.startswith("~") else path
        if (name, path) not in self.networks:
            if not Path(path).is_dir() and not HUB_NAME.fullmatch(path):
                raise InputError(
                    f"{name}: there is no folder {path}: name that of a saved network, or OWNER/NAME on the Hub."
                )
            try:
                self.networks[name, path] = NETWORKS[name](path)
            except (OSError, ValueError) as error:  # the libraries' own, of something else
                said = " ".join(str(error).split()).rstrip(".")
                raise InputError(f"{name}: {path} does not load as such a network ({said}).") from error
        return self.networks[name, path]

    def num_classes(self, pipe: ClassifierGuidedPipeline) -> int | None:
        """How many classes there are to lead to; None where a call needs no labels."""
        counts = [self._said(self._num_classes, entry, pipe) for entry in self.entries]
        return next((count for count in counts if count is not None), None)

    def _num_classes(self, entry: Typed, pipe: ClassifierGuidedPipeline) -> int | None:
        entry = getattr(entry, "target", entry)
        if type(entry).__name__ == ClassifierFreeGuidance.__name__:
            return pipe.unet.config.num_class_embeds
        if getattr(entry, "class_labels", None) is not None:
            return None
        if hasattr(entry, "classify"):
            return self.network("classify", entry.classify).model.config.num_labels
        if hasattr(entry, "classifier"):
            own = pipe.classifier if entry.classifier is None else self.network("classifier", entry.classifier).model
            return None if own is None else own.config.num_classes
        return None

    @property
    def network_paths(self) -> list[str]:
        """Folders and names of all networks that the file names."""
        entries = [each for entry in self.entries for each in (entry, getattr(entry, "target", entry))]
        return [path for entry in entries for name in NETWORKS if (path := getattr(entry, name, None)) is not None]

    @property
    def settings(self) -> dict[str, Any]:
        """What the file says, as far as it is not the default, for `sampling.json`: by number; networks by their weights."""
        return {str(number): self._settings(entry) for number, entry in enumerate(self.entries, 1)}

    def _settings(self, entry: Typed) -> dict[str, Any]:
        settings = {"guidance": type(entry).__name__, **entry.model_dump(mode="json", exclude_defaults=True)}
        for name in NETWORKS.keys() & settings:
            network = self.network(name, settings[name])
            settings[name] = {"path": settings[name], "components": network.fingerprint}
        if "target" in settings:
            settings["target"] = self._settings(entry.target)
        return settings


def said_of(where: str, make: Callable, *args: Any) -> Any:
    """What a function makes of its arguments; its `InputError` says where in the file they are from."""
    try:
        return make(*args)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
