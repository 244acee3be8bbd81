"""Saved pipelines, and how to sample from them."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import ModelMixin

from diffusers_cg.diffusion import check_augmentation_level, check_eta, to_ddim_scheduler, to_ddpm_scheduler
from diffusers_cg.errors import InputError
from diffusers_cg.pipelines import (
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.pipelines.pipeline_classifier_guided import ClassifierGuidedPipeline


BASE_PIPELINES = {"ddpm": ClassifierGuidedDDPMPipeline, "ddim": ClassifierGuidedDDIMPipeline}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class Stage:
    """A saved pipeline, and how to sample from it.

    Args:
        path (`str`): Its folder, or its name on the Hub.
        sampler (`"ddpm"` or `"ddim"`): Algorithm 1 or 2.
        num_inference_steps (`int`, *optional*): The saved default otherwise.
        classifier_scale (`float`, *optional*): The saved default otherwise.
        dtype (`torch.dtype`): Of the networks' weights.
        options (`dict`): What a call takes beside these: `timesteps`, `eta`, `low_res_noise`, `low_res_blur`.
    """

    path: str
    sampler: Literal["ddpm", "ddim"] = "ddpm"
    num_inference_steps: int | None = None
    classifier_scale: float | None = None
    dtype: torch.dtype = torch.float32
    options: dict[str, Any] = field(default_factory=dict)

    def load_base(self) -> ClassifierGuidedPipeline:
        """The pipeline, on the CPU.

        Raises:
            ValueError: if there is none, or it upsamples.
        """
        check_path(self.path)
        return BASE_PIPELINES[self.sampler].from_pretrained(self.path, dtype=self.dtype)

    def load_upsampler(self) -> ClassifierGuidedSuperResolutionPipeline:
        """The pipeline, on the CPU.

        Raises:
            ValueError: if there is none, or it does not upsample.
        """
        check_path(self.path)
        pipe = ClassifierGuidedSuperResolutionPipeline.from_pretrained(self.path, dtype=self.dtype)
        if self.sampler == "ddim":
            pipe.scheduler = to_ddim_scheduler(pipe.scheduler)
        else:
            pipe.scheduler = to_ddpm_scheduler(pipe.scheduler, pipe.unet.predicts_variance)
        return pipe

    def scale(self, pipe: ClassifierGuidedPipeline) -> float:
        """Scale of guidance of a call."""
        if self.classifier_scale is not None:
            return self.classifier_scale
        return 0.0 if pipe.classifier is None else pipe.config[f"{pipe.algorithm}_classifier_scale"]

    def needed_classes(self, pipe: ClassifierGuidedPipeline) -> Sequence[int] | None:
        """All classes that the pipeline knows; None where a call needs no labels."""
        needed = pipe.unet.config.num_class_embeds is not None or self.scale(pipe) > 0
        return range(pipe.num_classes) if needed and pipe.num_classes is not None else None

    def check(self, pipe: ClassifierGuidedPipeline, classes: Sequence[int] | None) -> None:
        """Raises `ValueError` or `TypeError` where a call would for one of these classes; nothing is computed."""
        for name in ("low_res_noise", "low_res_blur"):
            check_augmentation_level(name, self.options.get(name, 0.0))
        if "eta" in self.options:
            if self.sampler == "ddpm":
                raise InputError("`eta` is for the sampler ddim: ddpm adds all the noise of its steps.")
            check_eta(self.options["eta"], pipe.scheduler)
        pipe.check_call(
            class_labels=None if classes is None else [min(classes), max(classes)],
            num_inference_steps=self.num_inference_steps,
            timesteps=self.options.get("timesteps"),
            classifier_scale=self.classifier_scale,
        )

    def settings(self, pipe: ClassifierGuidedPipeline) -> dict[str, Any]:
        """What the images of a call follow from beside their seed, for a JSON file."""
        settings = {"path": str(self.path), "sampler": self.sampler}
        if "timesteps" not in self.options:
            saved = pipe.config[f"{pipe.algorithm}_num_inference_steps"]
            settings["num_inference_steps"] = saved if self.num_inference_steps is None else self.num_inference_steps
        return {
            **settings,
            "classifier_scale": float(self.scale(pipe)),
            "dtype": str(self.dtype).removeprefix("torch."),
            **self.options,
            "components": fingerprint(pipe),
        }


def fingerprint(pipe: ClassifierGuidedPipeline) -> str:
    """SHA-256, shortened, of the configuration and the weights of all components."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if component is None:
            continue
        config = {key: value for key, value in component.config.items() if not key.startswith("_")}
        digest.update(f"{name} {json.dumps(config, sort_keys=True, default=str)}".encode())
        if isinstance(component, ModelMixin):
            for key, tensor in sorted(component.state_dict().items()):
                digest.update(key.encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def check_path(path: str) -> None:
    """Raises `ValueError` where a path can be neither a pipeline's folder nor a name on the Hub."""
    folder = Path(path)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise InputError(f"{path} is not the folder of a pipeline (it has no model_index.json).")
    if not folder.exists() and not HUB_NAME.fullmatch(path):
        raise InputError(f"There is no folder {path}: pass that of a saved pipeline, or OWNER/NAME on the Hub.")


def resolve_device(device: str | None) -> torch.device:
    """The device of this name; a GPU if there is one where none is named.

    Raises:
        ValueError: if there is no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"`device` is {device!r}, which cannot be used here ({str(error).splitlines()[0]})."
        ) from error
