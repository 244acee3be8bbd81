"""A saved pipeline, and how to draw from it."""

import hashlib
import json
import logging
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, ModelMixin

from diffusers_cg.data.files import read_json
from diffusers_cg.diffusion import TRAINED_WITH, check_augmentation_level, to_ddim_scheduler, to_ddpm_scheduler
from diffusers_cg.errors import InputError
from diffusers_cg.generation.guidance_file import GuidanceFile
from diffusers_cg.generation.scheduler_choice import SchedulerChoice
from diffusers_cg.guidance import Guidance
from diffusers_cg.pipelines import (
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)


logger = logging.getLogger(__name__)

PIPELINES = {
    "ddpm": ClassifierGuidedDDPMPipeline,
    "ddim": ClassifierGuidedDDIMPipeline,
    "solver": ClassifierGuidedDDIMPipeline,
}
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


class SharedNetworks:
    """The networks of a saved pipeline, for several ways to draw from it: loaded by the first, and kept in memory for all."""

    def __init__(self) -> None:
        self.by_name: dict[str, ModelMixin] = {}
        self._fingerprints: dict[str, str] = {}

    def fingerprint(self, pipe: ClassifierGuidedPipeline) -> str:
        """As [`fingerprint`], of a pipeline of these networks; computed once for each scheduler, which it covers, too."""
        scheduler = json.dumps(pipe.scheduler.config, sort_keys=True, default=str)
        if scheduler not in self._fingerprints:
            self._fingerprints[scheduler] = fingerprint(pipe)
        return self._fingerprints[scheduler]


@dataclass(frozen=True)
class SavedPipeline:
    """A saved pipeline, and how to draw from it: what stands in `sampling.json`.

    Args:
        path (`str`): Its folder, or its name on the Hub.
        sampler (`"ddpm"`, `"ddim"` or `"solver"`): Algorithm 1, Algorithm 2 by DDIM, or by the solver that is saved with it.
        num_inference_steps (`int`, *optional*): The saved default otherwise.
        classifier_scale (`float`, *optional*): The saved default otherwise.
        dtype (`torch.dtype`): Of the networks' weights.
        eta, timesteps, low_res_noise, low_res_blur (*optional*): As a call takes them; left out otherwise.
        scheduler ([`SchedulerChoice`], *optional*): In place of the saved one, of the sampler ddpm or ddim.
        guidance ([`GuidanceFile`], *optional*): In place of the classifier's, or beside it if a `classifier_scale` is given.
        guidance_weight (`float`): How far that guidance goes; at 0 it has no part in anything.
        shared ([`SharedNetworks`], *optional*): Those that others of the same path and dtype draw with, too.
    """

    path: str
    sampler: Literal["ddpm", "ddim", "solver"] = "ddpm"
    num_inference_steps: int | None = None
    classifier_scale: float | None = None
    dtype: torch.dtype = torch.float32
    eta: float | None = None
    timesteps: Sequence[int] | None = None
    low_res_noise: float | None = None
    low_res_blur: float | None = None
    scheduler: SchedulerChoice | None = None
    guidance: GuidanceFile | None = None
    guidance_weight: float = 1.0
    shared: SharedNetworks | None = None

    @property
    def steps(self) -> str:
        """Whose steps are taken: the name of the scheduler, or else of the sampler."""
        return self.sampler if self.scheduler is None else self.scheduler.name

    def load(self, pipeline_class: type[ClassifierGuidedPipeline] | None = None) -> ClassifierGuidedPipeline:
        """The pipeline, which draws from noise; as one of `pipeline_class`, or else of its sampler's.

        It is on the CPU unless its networks are shared ones, which are where they were.

        Raises:
            InputError: if there is none, or it upsamples, or has no solver where one is to draw.
        """
        return self._with_scheduler(self._load(pipeline_class or PIPELINES[self.sampler]))

    def load_upsampler(self) -> ClassifierGuidedSuperResolutionPipeline:
        """The pipeline, which upsamples, on the CPU.

        Raises:
            InputError: if there is none, or it does not upsample.
        """
        pipe = self._load(ClassifierGuidedSuperResolutionPipeline)
        if self.sampler == "solver":
            pipe.scheduler = pipe.solver
        elif self.sampler == "ddim":
            pipe.scheduler = to_ddim_scheduler(pipe.scheduler)
        else:
            pipe.scheduler = to_ddpm_scheduler(pipe.scheduler, pipe.unet.predicts_variance)
        return self._with_scheduler(pipe)

    def _with_scheduler(self, pipe: ClassifierGuidedPipeline) -> ClassifierGuidedPipeline:
        if self.scheduler is None:
            return pipe
        if self.scheduler.sampler != self.sampler:
            raise InputError(
                f"{self.scheduler.name} takes the steps of the sampler {self.scheduler.sampler}, not those of "
                f"{self.sampler}: leave the sampler out, or name another scheduler."
            )
        pipe.scheduler = self.scheduler.of(pipe.scheduler)
        return pipe

    def _load(self, pipeline_class: type[ClassifierGuidedPipeline]) -> ClassifierGuidedPipeline:
        check_path(self.path)
        shared = {} if self.shared is None else self.shared.by_name
        without_solver = {"solver": None} if self.sampler == "ddim" else {}
        try:
            pipe = pipeline_class.from_pretrained(self.path, dtype=self.dtype, **shared, **without_solver)
        except InputError:
            raise
        # diffusers' own, of a folder or repository that holds something else
        except (ValueError, NotImplementedError) as error:
            raise InputError(f"{self.path} does not load as a {pipeline_class.__name__}: {error}") from error
        if self.sampler == "solver" and pipe.solver is None:
            raise InputError(
                f"No solver is saved in {self.path}: draw by the sampler ddpm or ddim, or by a scheduler's class."
            )
        shared.update((name, part) for name, part in pipe.components.items() if isinstance(part, ModelMixin))
        return pipe

    @property
    def options(self) -> dict[str, Any]:
        """What a call is given beside steps and scale."""
        names = ("eta", "timesteps", "low_res_noise", "low_res_blur")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}

    def call(self, pipe: ClassifierGuidedPipeline) -> dict[str, Any]:
        """Keywords of every call, which labels, generators and images come to."""
        return {
            "num_inference_steps": self.num_inference_steps,
            "classifier_scale": self.resolve_scale(pipe),
            "guidance": self.load_guidance(pipe),
            **self.options,
        }

    def load_guidance(self, pipe: ClassifierGuidedPipeline) -> Guidance | None:
        """What guides beside the classifier, for the pipeline where it is now."""
        if self.guidance is None or self.guidance_weight == 0:
            return None
        guidance = self.guidance.load(pipe)
        return guidance if self.guidance_weight == 1 else self.guidance_weight * guidance

    def check(self, pipe: ClassifierGuidedPipeline, classes: Sequence[int] | None) -> None:
        """Raises `InputError` where a call would for one of these classes; nothing is computed."""
        if self.eta is not None and self.steps not in ("ddim", DDIMScheduler.__name__):
            raise InputError(f"`eta` is for the sampler ddim, not for {self.steps}: leave it out, or take that one.")
        for name in ("low_res_noise", "low_res_blur"):
            check_augmentation_level(name, self.options.get(name, 0.0))
        pipe.check_call(
            class_labels=None if classes is None else [min(classes), max(classes)],
            num_inference_steps=self.num_inference_steps,
            timesteps=self.timesteps,
            classifier_scale=self.resolve_scale(pipe),
            guidance=self.load_guidance(pipe),
            eta=self.eta,
        )

    def resolve_scale(self, pipe: ClassifierGuidedPipeline) -> float:
        """Scale of the classifier's guidance of a call."""
        if self.classifier_scale is not None:
            return self.classifier_scale
        alone = pipe.classifier is not None and self.guidance is None
        return 0.0 if not alone else pipe.config[f"{pipe.algorithm}_classifier_scale"]

    def needed_classes(self, pipe: ClassifierGuidedPipeline) -> Sequence[int] | None:
        """All classes that the pipeline, or else its guidance, knows; None where a call needs no labels."""
        needed = pipe.is_conditional or self.resolve_scale(pipe) > 0
        of_guidance = None if self.guidance is None else self.guidance.num_classes(pipe)
        num_classes = pipe.num_classes if needed else of_guidance
        return None if num_classes is None else range(num_classes)

    def settings(self, pipe: ClassifierGuidedPipeline) -> dict[str, Any]:
        """What the images follow from beside their seed and classes, for `sampling.json`."""
        settings = {"path": str(self.path), "sampler": self.sampler}
        if self.timesteps is None:
            saved = pipe.saved_num_inference_steps(pipe.scheduler_for(self.eta))
            settings["num_inference_steps"] = saved if self.num_inference_steps is None else self.num_inference_steps
        return {
            **settings,
            "classifier_scale": float(self.resolve_scale(pipe)),
            "dtype": str(self.dtype).removeprefix("torch."),
            **self.options,
            **({} if self.scheduler is None else {"scheduler": self.scheduler.settings}),
            **({} if self.guidance is None else {"guidance": self.guidance.settings}),
            **({} if self.guidance_weight == 1 else {"guidance_weight": self.guidance_weight}),
            "components": fingerprint(pipe) if self.shared is None else self.shared.fingerprint(pipe),
        }


def fingerprint(pipe: ClassifierGuidedPipeline) -> str:
    """SHA-256, shortened, of the configuration and the weights of all components."""
    digest = hashlib.sha256()
    for name, component in sorted(pipe.components.items()):
        if component is None or name == "solver":  # which counts where it is the scheduler
            continue
        config = {  # folders begun before networks stated how they were trained go on
            key: value
            for key, value in component.config.items()
            if not key.startswith("_") and (value or key not in TRAINED_WITH)
        }
        digest.update(f"{name} {json.dumps(config, sort_keys=True, default=str)}".encode())
        if isinstance(component, ModelMixin):
            for key, tensor in sorted(component.state_dict().items()):
                digest.update(key.encode())
                digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def check_path(path: str) -> None:
    """Raises `InputError` where a path can be neither a pipeline's folder nor a name on the Hub."""
    if not path.strip():
        raise InputError("The model has no name: pass the folder of a saved pipeline, or OWNER/NAME on the Hub.")
    folder = Path(path)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise InputError(f"{path} is not the folder of a pipeline (it has no model_index.json).")
    if not folder.exists() and not HUB_NAME.fullmatch(path):
        raise InputError(f"There is no folder {path}: pass that of a saved pipeline, or OWNER/NAME on the Hub.")
    if folder.exists():
        check_configs(folder)


def check_configs(folder: Path) -> None:
    """Raises `InputError` where what a folder says of its pipeline or model is no JSON object, which diffusers stumbles over."""
    for name in ("model_index.json", "config.json", "*/config.json", "*/scheduler_config.json"):
        for file in folder.glob(name):
            values = read_json(file)
            if file.name == "model_index.json" and not isinstance(values.get("_class_name"), str):
                raise InputError(f'{file} names no pipeline: it must hold a line `"_class_name": ...`.')


def class_labels(pipe: ClassifierGuidedPipeline, classes: Sequence[int | str]) -> list[int]:
    """The labels of classes that are given by label or by name.

    Raises:
        InputError: if a name is unknown, or one class is named twice, or none, or one below 0.
    """
    labels = [pipe.get_label_ids(each)[0] if isinstance(each, str) else each for each in classes]
    if not labels or len(set(labels)) < len(labels) or min(labels) < 0:
        raise InputError(f"`classes` must name at least one class, each once and none below 0, got {list(classes)}.")
    names = pipe.class_names or ()
    for label in labels:
        if str(label) in names and names.index(str(label)) != label:
            logger.warning(f"Class {label} is the one of that label, not the one that is called {str(label)!r}.")
            break
    return labels


def common_classes(pipelines: Collection[SavedPipeline], classes: Sequence[int | str] | None) -> Sequence[int] | None:
    """Classes to draw by all of some pipelines that differ in sampler, scheduler, steps and scale alone: those that any of them needs.

    Raises:
        InputError: where drawing by one of them would.
    """
    one_of_each = {saved.steps: saved for saved in pipelines}
    pipes = {steps: saved.load() for steps, saved in one_of_each.items()}
    needed = [saved.needed_classes(pipes[saved.steps]) for saved in pipelines]
    if classes is None:
        classes = next((some for some in needed if some is not None), None)
    else:
        classes = class_labels(next(iter(pipes.values())), classes)
    for saved in pipelines:
        saved.check(pipes[saved.steps], classes)
    return classes
