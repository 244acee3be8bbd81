"""Guidance by a file: what the commands' `--guidance FILE.yaml` means.

A list, whose guidances add:

    - guidance: ClassifierGuidance        # a class of diffusers_cg.guidance, or module:name of one's own
      scale: 2.0                          # its arguments
      entropy_driven: true
      every: 2                            # and those of Guidance.confined: start, stop, sigmas, every
      max_norm: 10                        # of Guidance.clamped
      weight: 0.5                         # how far it goes
    - guidance: CleanClassifierGuidance
      classify: microsoft/resnet-50       # networks by folder or name on the Hub

Networks are the pipeline's own (`classifier`, `unet`) unless named; labels are those of each call.
"""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

import diffusers_cg.guidance as guidances
from diffusers_cg.errors import InputError, import_extra
from diffusers_cg.guidance import Guidance, GuidanceSum, image_classifier
from diffusers_cg.models import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.pipelines import ClassifierGuidedPipeline


CONFINED = ("start", "stop", "sigmas", "every")
CHANGES = (*CONFINED, "max_norm", "weight")


class GuidanceFile:
    """A file that names guidances; `hash` is that of its text.

    Args:
        path (`str` or `Path`): A YAML file.

    Raises:
        InputError: if it cannot be read, or names what there is not.
    """

    def __init__(self, path: str | Path):
        self.path = str(path)
        text = Path(path).read_bytes()
        self.hash = hashlib.sha256(text).hexdigest()[:16]
        try:
            entries = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"{path} is no YAML: {str(error).splitlines()[0]}.") from error
        self.entries = entries if isinstance(entries, list) else [entries]
        for entry in self.entries:
            self._check(entry)

    def _check(self, entry: Any) -> None:
        if not isinstance(entry, dict) or "guidance" not in entry:
            raise InputError(f"{self.path} must hold guidances, each with a line `guidance: NAME`, got {entry!r}.")
        known = {*inspect.signature(find(entry["guidance"])).parameters, *CHANGES, "guidance", "softplus_beta"}
        for name in set(entry) - known:
            nearest = get_close_matches(str(name), known, n=1, cutoff=0.0)[0]
            raise InputError(f"{entry['guidance']} in {self.path} takes no {name!r}; the nearest is {nearest!r}.")

    def load(self, pipe: ClassifierGuidedPipeline) -> Guidance:
        """The guidances for a pipeline, whose device their networks are on.

        Raises:
            InputError: if one needs a network that the pipeline lacks, or cannot be made of its arguments.
        """
        return GuidanceSum([self._load(entry, pipe) for entry in self.entries])

    def _load(self, entry: dict[str, Any], pipe: ClassifierGuidedPipeline) -> Guidance:
        make = find(entry["guidance"])
        arguments = {name: value for name, value in entry.items() if name not in ("guidance", *CHANGES)}
        taken = inspect.signature(make).parameters
        for name in ("classifier", "unet"):
            if name in taken:
                arguments.setdefault(name, getattr(pipe, name))
        softplus_beta = arguments.pop("softplus_beta", None)
        for name, load in NETWORKS.items():
            if isinstance(arguments.get(name), str):
                arguments |= load(arguments[name], pipe.device, softplus_beta)
        if isinstance(arguments.get("energy"), str):
            arguments["energy"] = find(arguments["energy"])
        if isinstance(arguments.get("target"), dict):
            arguments["target"] = self._load(arguments["target"], pipe)
        missing = [
            name
            for name, each in taken.items()
            if each.default is inspect.Parameter.empty and arguments.get(name) is None
        ]
        if missing:
            raise InputError(
                f"{entry['guidance']} in {self.path} needs {missing[0]!r}, which the pipeline has not got."
            )
        guidance = make(**arguments)
        if "max_norm" in entry:
            guidance = guidance.clamped(entry["max_norm"])
        if "weight" in entry:
            guidance = entry["weight"] * guidance
        confined = {name: entry[name] for name in CONFINED if name in entry}
        return guidance.confined(**confined) if confined else guidance


def find(name: str) -> Callable:
    """A guidance's class by its name, or `module:name` of a user's, searched in the working directory, too.

    Raises:
        InputError: if there is no such thing.
    """
    module_name, _, own = str(name).partition(":")
    if not own:
        if name not in guidances.__all__:
            nearest = get_close_matches(str(name), guidances.__all__, n=1, cutoff=0.0)[0]
            raise InputError(f"There is no guidance {name!r}; the nearest is {nearest!r}.")
        return getattr(guidances, name)
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module_name), own)
    except (ModuleNotFoundError, AttributeError) as error:
        raise InputError(f"{name} cannot be imported: {error}.") from error


def _load_image_classifier(path: str, device, softplus_beta: float | None) -> dict[str, Any]:
    transformers = import_extra("transformers", "cluster")
    model = transformers.AutoModelForImageClassification.from_pretrained(path).to(device)
    processor = transformers.AutoImageProcessor.from_pretrained(path)
    return {"classify": image_classifier(model, processor, softplus_beta)}


def _load_clip(path: str, device, softplus_beta: float | None) -> dict[str, Any]:
    transformers = import_extra("transformers", "cluster")
    clip = transformers.CLIPModel.from_pretrained(path).to(device)
    return {"clip": clip, "processor": transformers.CLIPProcessor.from_pretrained(path)}


def _load_unet(path: str, device, softplus_beta: float | None) -> dict[str, Any]:
    return {"weak_unet": _load_model(ADMUNet2DModel, path, "unet").to(device)}


def _load_classifier(path: str, device, softplus_beta: float | None) -> dict[str, Any]:
    return {"classifier": _load_model(NoisyClassifierModel, path, "classifier").to(device)}


def _load_model(model_class, path: str, subfolder: str):
    """A model's own folder, or a pipeline's."""
    holds_pipeline = (Path(path) / subfolder).is_dir()
    return model_class.from_pretrained(path, subfolder=subfolder if holds_pipeline else None)


NETWORKS = {
    "classify": _load_image_classifier,
    "clip": _load_clip,
    "weak_unet": _load_unet,
    "classifier": _load_classifier,
}
"""Arguments that a file gives as the path of a network, and what loads it: `(path, device, softplus_beta) -> arguments`."""
