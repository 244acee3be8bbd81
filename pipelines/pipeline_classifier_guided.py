"""What the classifier-guided pipelines share: components, inputs, what the networks say of a sample, and the output."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from numbers import Integral
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, DiffusionPipeline, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput, VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor

from diffusers_cg.diffusion import (
    GaussianDiffusion,
    Generators,
    Prediction,
    check_eta,
    check_solver,
    check_trained_process,
    is_ancestral,
    resolve_begin_index,
    resolve_timesteps,
    to_ddim_steps,
)
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import (
    ClassifierGuidance,
    Guidance,
    GuidanceFunction,
    GuidanceSum,
    GuidedCall,
    GuidedStep,
    keeping_weights,
)
from diffusers_cg.models import ADMUNet2DModel, NoisyClassifierModel, warn_of_emulation
from diffusers_cg.models.adm_trunk import height_and_width
from diffusers_cg.pipelines.differentiable_sampling import with_gradient
from diffusers_cg.pipelines.image_inputs import images_to_tensor


OUTPUT_TYPES = ("pil", "np", "pt", "latent")
DEFAULT_STRENGTH = 0.5  # of a call that starts from images

Callback = Callable | PipelineCallback | MultiPipelineCallbacks

TakeStep = Callable[[GuidedStep], torch.Tensor]
"""The step from x_t -> x_{t-1}, (B, C, H, W)."""

Look = Callable[[torch.Tensor, int], GuidedStep]
"""(sample x_t, (B, C, H, W), number of the step) -> the step from there."""

OnStepEnd = Callable[[torch.Tensor, int, int], torch.Tensor]
"""(sample x_{t-1}, t, number of the step) -> the sample to go on with."""


@dataclass
class GuidedImagePipelineOutput(ImagePipelineOutput):
    """What a call returns.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): As the call's `output_type` says.
        evaluations (`dict[str, int]`): What was computed, of all images at once: passes of the `"unet"` (of others that a
            guidance asks, too), of a `"classifier"`, and `"backward"` passes.
    """

    evaluations: dict[str, int]


class ClassifierGuidedPipeline(DiffusionPipeline):
    r"""Base of the pipelines that sample from a diffusion model, guided by a classifier of noisy images.

    Args:
        unet ([`ADMUNet2DModel`] or `UNet2DModel`): Predicts the noise, the clean image or v, as the scheduler's
            `prediction_type` says; class-conditional or not.
        scheduler (`SchedulerMixin`): Noise schedule and steps; turned into the pipeline's own kind where it can be, so
            that one saved folder serves every pipeline.
        classifier ([`NoisyClassifierModel`], *optional*): Guides; without it only `classifier_scale=0` is possible.
        solver (`SchedulerMixin`, *optional*): What [`ClassifierGuidedDDIMPipeline`] draws with in place of DDIM's steps, where
            `scheduler` is a `DDPMScheduler`; of the same noise schedule.
        ddpm_num_inference_steps, ddim_num_inference_steps, solver_num_inference_steps (`int`): Steps of a `DDPMScheduler`, a
            `DDIMScheduler` and any other where a call names none.
        ddpm_classifier_scale, ddim_classifier_scale (`float`): Scale where a call names none and there is a classifier.

    Raises:
        InputError: if the channels, the image size, or the number or names of the classes of unet and classifier differ, or
            one of them states that it was trained with another process than the scheduler's.
    """

    model_cpu_offload_seq = "unet"  # the classifier beside it: taking turns, each would be moved twice a step
    _optional_components = ["classifier", "solver"]
    _callback_tensor_inputs = ["latents"]

    algorithm: Literal["ddpm", "ddim"]
    """Whose steps a call takes, and whose saved defaults: Algorithm 1's or Algorithm 2's."""

    def __init__(
        self,
        unet: UNet2DModel | ADMUNet2DModel,  # both named, or diffusers' from_pipe leaves ours out
        scheduler: SchedulerMixin,
        classifier: NoisyClassifierModel | None = None,
        solver: SchedulerMixin | None = None,
        ddpm_num_inference_steps: int = 250,
        ddpm_classifier_scale: float = 1.0,
        ddim_num_inference_steps: int = 25,
        ddim_classifier_scale: float = 1.0,
        solver_num_inference_steps: int = 25,
    ):
        super().__init__()
        self.check_unet(unet)
        if solver is not None:
            check_solver(solver, scheduler)
        self.register_modules(solver=solver)
        scheduler = self.convert_scheduler(scheduler, unet)
        scheduler.register_to_config(_use_default_values=[])  # which `from_config` of another kind would not take over
        check_components(unet, scheduler, classifier)
        GaussianDiffusion.from_scheduler(scheduler)  # says what it does not cover
        self.register_modules(unet=unet, scheduler=scheduler, classifier=classifier)
        self.register_to_config(
            ddpm_num_inference_steps=ddpm_num_inference_steps,
            ddpm_classifier_scale=ddpm_classifier_scale,
            ddim_num_inference_steps=ddim_num_inference_steps,
            ddim_classifier_scale=ddim_classifier_scale,
            solver_num_inference_steps=solver_num_inference_steps,
        )
        self.image_processor = VaeImageProcessor(do_resize=False)
        self._interrupt = False
        self._num_timesteps = 0
        self._gradient: Literal["none", "checkpointed", "whole"] = "none"

    def convert_scheduler(self, scheduler: SchedulerMixin, unet: UNet2DModel) -> SchedulerMixin:
        """`scheduler` as this pipeline's kind of scheduler."""
        return scheduler

    def check_unet(self, unet: UNet2DModel) -> None:
        """Raises `InputError` where the unet is of a kind that this pipeline has no use for."""
        if unet.config.get("low_res_channels"):
            raise InputError(
                "This unet is an upsampling one, which needs low-resolution images, but this pipeline generates from "
                "noise alone: use ClassifierGuidedSuperResolutionPipeline."
            )

    @property
    def num_timesteps(self) -> int:
        """Number of steps of the latest call."""
        return self._num_timesteps

    @property
    def interrupt(self) -> bool:
        """Whether the running call should stop at its next step; a callback may set `pipe._interrupt`."""
        return self._interrupt

    @property
    def is_differentiable(self) -> bool:
        """Whether calls keep a graph, as within [`differentiable`]."""
        return self._gradient != "none"

    @contextmanager
    def differentiable(self, checkpointing: bool = True) -> Iterator[None]:
        """Calls within have a gradient: that of their images in the `latents` or the `image` that they start from.

            with pipe.differentiable():
                images = pipe(class_labels, latents=latents, output_type="pt").images
            loss(images).backward()

        It goes through every step, the gradients of guidances included (second order), and to nothing else: networks are in
        evaluation mode, and their parameters get none. Clipped clean images, and pixels outside [0, 1] in `"pt"`, pass no
        gradient on. For steps of DDPM, and of DDIM in place of a solver's; inversion, editing and inpainting have no gradient.

        Args:
            checkpointing (`bool`): Whether each step is computed once more in the backward pass, so that memory holds the
                graph of one step, or all graphs are kept.
        """
        before, self._gradient = self._gradient, "checkpointed" if checkpointing else "whole"
        try:
            yield
        finally:
            self._gradient = before

    def compile(self, **options: Any) -> None:
        """Compiles the networks in place: unet and classifier, one graph each, and one for the gradient.

            pipe.compile()
            images = pipe(class_labels).images

        The first call compiles, which takes minutes on a CPU, and again where the number or size of images changes, but neither
        steps nor scales nor labels. What is saved, and results but for rounding, stay the same; differentiable calls and
        `features` go without.

        Args:
            options: Of `torch.compile`, as `mode="reduce-overhead"`, which takes CUDA graphs.
        """
        for network in (self.unet, self.classifier):
            if network is not None:
                # hooks that move weights to a device cannot be compiled
                network.compile(**{"fullgraph": not hasattr(network, "_hf_hook"), **options})

    # ------------------------------------------------------------------------------------------------------- inputs

    def prepare_class_labels(
        self,
        class_labels: int | Sequence[int] | torch.Tensor | None,
        batch_size: int | None,
        name: str = "class_labels",
    ) -> torch.Tensor | None:
        """Labels (B,) int64 on the execution device, a single one repeated `batch_size` times; None if there are none.

        Args:
            class_labels: As the user gave them.
            batch_size (`int`, *optional*): Number of images that the user asked for.
            name (`str`): What the call calls the labels.

        Raises:
            InputError: if labels are out of range, not integers or of another number.
        """
        if batch_size is not None and not is_positive_integer(batch_size):
            raise InputError(f"`batch_size` must be a positive whole number, got {batch_size!r}.")
        if class_labels is None:
            return None

        try:
            labels = torch.as_tensor(class_labels, device=self._execution_device)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"`{name}` must be whole numbers, got {class_labels!r}.") from None
        if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
            raise InputError(f"`{name}` must be whole numbers, got {labels.dtype}.")
        labels = labels.to(torch.int64).clone()  # one of inference mode could not take part in a gradient
        if labels.ndim == 0:
            labels = labels.expand(batch_size or 1)
        if labels.ndim != 1 or len(labels) == 0:
            raise InputError(f"`{name}` must be one label or a flat list of them, got shape {tuple(labels.shape)}.")
        if batch_size is not None and len(labels) != batch_size:
            raise InputError(f"`{name}` holds {len(labels)} labels for a batch of {batch_size}.")

        num_classes = self.num_classes
        if num_classes is not None and not bool(((labels >= 0) & (labels < num_classes)).all()):
            raise InputError(f"`{name}` must lie in 0..{num_classes - 1}, got {labels.tolist()}.")
        return labels

    @property
    def num_classes(self) -> int | None:
        """Number of classes that unet or classifier know; None if neither does."""
        if self.is_conditional:
            return self.unet.config.num_class_embeds
        return None if self.classifier is None else self.classifier.config.num_classes

    @property
    def class_names(self) -> list[str] | None:
        """What the classes are called, in the order of their labels; None if neither unet nor classifier states it."""
        for model in (self.unet, self.classifier):
            if model is not None and model.config.get("class_names") is not None:
                return list(model.config.class_names)
        return None

    def get_label_ids(self, label: str | Sequence[str]) -> list[int]:
        """Labels of classes by their names, to be passed as `class_labels`.

        Args:
            label (`str` or sequence of `str`): One name or several, each of [`class_names`].

        Raises:
            InputError: if a name is unknown (the nearest one is named) or belongs to several classes, or the classes
                have no names.
        """
        class_names = self.class_names
        if class_names is None:
            raise InputError("The classes of this pipeline have no names: pass their numbers as `class_labels`.")
        label_ids = []
        for name in [label] if isinstance(label, str) else label:
            found = [i for i, class_name in enumerate(class_names) if class_name == name]
            if not found:
                nearest = get_close_matches(str(name), class_names, n=1, cutoff=0.0)[0]
                raise InputError(f"There is no class {name!r}; the nearest of the {len(class_names)} is {nearest!r}.")
            if len(found) > 1:
                raise InputError(f"{name!r} is the name of classes {found}: pass the number of the one that you mean.")
            label_ids += found
        return label_ids

    def prepare_classifier_scale(
        self, classifier_scale: float | Sequence[float] | torch.Tensor, batch_size: int
    ) -> torch.Tensor:
        """Scales as (B, 1, 1, 1) float32 on the execution device.

        Raises:
            InputError: if one is negative or not finite, or their number is neither one nor `batch_size`.
        """
        try:
            scale = torch.as_tensor(classifier_scale, dtype=torch.float32, device=self._execution_device)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(
                f"`classifier_scale` must be a number or one per image, got {classifier_scale!r}."
            ) from None
        if scale.ndim > 1 or scale.numel() not in (1, batch_size):
            raise InputError(
                f"`classifier_scale` must be one number or one per image ({batch_size}), got shape {tuple(scale.shape)}."
            )
        if not bool((torch.isfinite(scale) & (scale >= 0)).all()):
            raise InputError(f"`classifier_scale` must be finite and at least 0 (off), got {classifier_scale}.")
        return scale.reshape(-1).expand(batch_size).reshape(batch_size, 1, 1, 1)

    def prepare_image(self, image: PipelineImageInput, shape: tuple[int, int, int]) -> torch.Tensor:
        """Images of shape (C, H, W) each as (B, C, H, W) in [-1, 1], float32, on the execution device.

        Raises:
            InputError: as [`images_to_tensor`].
        """
        return images_to_tensor(image, shape).to(self._execution_device)

    def prepare_images_and_labels(
        self,
        image: PipelineImageInput | None,
        class_labels: int | Sequence[int] | torch.Tensor | None,
        batch_size: int | None,
        shape: tuple[int, int, int],
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
        """Images (B, C, H, W) in [-1, 1], labels (B,), each None where there are none, and B: one image is for all labels.

        Raises:
            InputError: as [`prepare_image`] and [`prepare_class_labels`], or if their numbers differ.
        """
        images = None if image is None else self.prepare_image(image, shape)
        if images is not None and len(images) > 1 and batch_size is None:
            batch_size = len(images)
        labels = self.prepare_class_labels(class_labels, batch_size)
        batch_size = num_images(labels, batch_size)
        if images is None:
            return None, labels, batch_size
        if len(images) not in (1, batch_size):
            raise InputError(
                f"`image` holds {len(images)} images for a batch of {batch_size}: pass one, or one for each."
            )
        return images.expand(batch_size, -1, -1, -1), labels, batch_size

    def prepare_begin_index(
        self,
        image: PipelineImageInput | None,
        strength: float | None,
        latents: torch.Tensor | None,
        scheduler: SchedulerMixin,
    ) -> int:
        """Which of the scheduler's timesteps a call takes first: 0, or a later one where it starts from images.

        Raises:
            InputError: if there is a strength without images, or latents beside them; as [`resolve_begin_index`].
        """
        if image is None and strength is not None:
            raise InputError("`strength` is how far to go from `image`, which is missing: pass both, or neither.")
        if image is not None and latents is not None:
            raise InputError(
                "Pass either `image`, which is noised with the generator's noise, or `latents`, noise to start from, not both."
            )
        if image is None:
            return 0
        return resolve_begin_index(scheduler, DEFAULT_STRENGTH if strength is None else strength)

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that the unet was trained on."""
        return self.unet.config.in_channels, *height_and_width(self.unet.config.sample_size)

    def prepare_shape(self, height: int | None = None, width: int | None = None) -> tuple[int, int, int]:
        """(C, H, W) of a call's images: the unet's own sides, or others that it can halve as often as it has to.

        Raises:
            InputError: if a side is no positive multiple of what the unet divides it by, or missing where the unet states
                none.
        """
        channels, *own = self.sample_shape
        sides = [own_side if side is None else side for side, own_side in zip((height, width), own)]
        if None in sides:
            raise InputError("This unet states no `sample_size`: pass `height` and `width`.")
        if sides == own:
            return self.sample_shape
        divisor = 2 ** (len(self.unet.down_blocks) - 1)
        if not all(is_positive_integer(side) and side % divisor == 0 for side in sides):
            raise InputError(
                f"`height` and `width` must be positive multiples of {divisor}, got {height} and {width}."
            )
        return channels, *map(int, sides)

    def prepare_latents(
        self, batch_size: int, generator: Generators, latents: torch.Tensor | None, shape: tuple[int, int, int]
    ) -> torch.Tensor:
        """The initial sample (B, C, H, W), float32: standard normal noise, or `latents`; `shape` is (C, H, W).

        Raises:
            InputError: if `latents` has another shape or type, or the generators another number or type.
        """
        shape = (batch_size, *shape)
        check_generator(generator, batch_size)
        if latents is not None and not isinstance(latents, torch.Tensor):
            raise InputError(f"`latents` must be a torch.Tensor, got {type(latents).__name__}.")
        if latents is None:
            return randn_tensor(shape, generator=generator, device=self._execution_device, dtype=torch.float32)
        if tuple(latents.shape) != shape:
            raise InputError(f"`latents` must be of shape {shape}, got {tuple(latents.shape)}.")
        return latents.to(device=self._execution_device, dtype=torch.float32)

    def prepare_steps(
        self, num_inference_steps: int | None, timesteps: Sequence[int] | None, eta: float | None = None
    ) -> tuple[SchedulerMixin, GaussianDiffusion]:
        """A scheduler of the call's own, set to its timesteps, and the process over them, each once; where they are fractional,
        the process of training.

        What the pipeline holds now counts, whether it was given to the constructor or assigned since.

        Raises:
            InputError: if both are given, or one cannot be meant; if the scheduler is of a kind that this pipeline cannot
                step, or it, unet and classifier do not fit together; as [`scheduler_for`].
        """
        if num_inference_steps is not None and timesteps is not None:
            raise InputError("Pass either `num_inference_steps` or `timesteps`, not both.")
        scheduler = deepcopy(self.scheduler_for(eta))
        check_components(self.unet, scheduler, self.classifier)
        if self.unet.dtype != torch.float32:  # the device takes a walk through all modules
            warn_of_emulation(self._execution_device.type, self.unet.dtype)
        if num_inference_steps is None:
            num_inference_steps = self.saved_num_inference_steps(scheduler)
        timesteps = resolve_timesteps(scheduler, num_inference_steps, timesteps)
        whole = sorted(set(timesteps), reverse=True) if isinstance(timesteps[0], int) else None
        return scheduler, GaussianDiffusion.from_scheduler(scheduler, whole)

    def scheduler_for(self, eta: float | None = None) -> SchedulerMixin:
        """The scheduler whose steps a call takes: the pipeline's; or, in place of another solver's, DDIM's for an `eta` and
        where there is to be a gradient, to which a solver's memory of earlier steps leaves no way.

        Raises:
            InputError: if it is of a kind that this pipeline cannot step, or `eta` cannot be meant.
        """
        scheduler = self.convert_scheduler(self.scheduler, self.unet)
        if eta is not None:
            check_eta(eta, scheduler)
        takes_ddim = eta is not None or (self.is_differentiable and not is_ancestral(scheduler))
        return to_ddim_steps(scheduler) if takes_ddim else scheduler

    def saved_num_inference_steps(self, scheduler: SchedulerMixin) -> int:
        """Steps where a call names none: those saved for the scheduler's kind."""
        kind = "ddpm" if is_ancestral(scheduler) else "ddim" if isinstance(scheduler, DDIMScheduler) else "solver"
        return min(self.config[f"{kind}_num_inference_steps"], scheduler.config.num_train_timesteps)

    def prepare_guidance(
        self,
        guidance: Guidance | GuidanceFunction | None,
        class_labels: torch.Tensor | None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None,
        batch_size: int,
        shape: tuple[int, int, int],
        scheduler: SchedulerMixin,
        eta: float | None = None,
    ) -> GuidanceSum:
        """What guides a call: the classifier at a scale above 0, and what the user gave; a sum of nothing for no guidance.

        Raises:
            InputError: if a classifier or labels are missing, or the guidance is none, or cannot guide such a call: of images
                of `shape` (C, H, W), labels, scheduler or `eta`.
        """
        if classifier_scale is None:  # the saved one, unless another guidance is to stand in its place
            alone = guidance is None and self.classifier is not None
            classifier_scale = self.config[f"{self.algorithm}_classifier_scale"] if alone else 0.0
        scale = self.prepare_classifier_scale(classifier_scale, batch_size)
        uses_classifier = bool((scale > 0).any())
        if uses_classifier and self.classifier is None:
            raise InputError("This pipeline has no classifier: pass `classifier_scale=0`, or load it with one.")
        if class_labels is None and (self.needs_class or uses_classifier):
            needed = "the class-conditional unet" if self.needs_class else "guidance (`classifier_scale` above 0)"
            raise InputError(f"`class_labels` are missing: {needed} needs one per image.")
        guidances = [ClassifierGuidance(self.classifier, class_labels, scale)] if uses_classifier else []
        guidance = GuidanceSum([*guidances, guidance] if guidance is not None else guidances)
        guidance.check(GuidedCall(torch.Size([batch_size, *shape]), class_labels, self.unet, scheduler, eta or 0.0))
        return guidance

    def prepare_callback(self, callback: Callback | None, tensor_inputs: list[str]) -> OnStepEnd:
        """What is done with every new sample: the user's callback, if any, sees it and may replace it.

        Raises:
            InputError: if the callback is to get unknown tensors.
        """
        if isinstance(callback, (PipelineCallback, MultiPipelineCallbacks)):
            tensor_inputs = callback.tensor_inputs
        unknown = set(tensor_inputs) - set(self._callback_tensor_inputs)
        if unknown:
            raise InputError(
                f"`callback_on_step_end_tensor_inputs` must be among {self._callback_tensor_inputs}, got {sorted(unknown)}."
            )

        def on_step_end(sample: torch.Tensor, t: int, index: int) -> torch.Tensor:
            if callback is None:
                return sample
            timestep = torch.tensor(t, device=sample.device)
            outputs = callback(self, index, timestep, {"latents": sample} if tensor_inputs else {})
            return (outputs or {}).get("latents", sample)

        return on_step_end

    def check_call(
        self,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None = None,
        guidance: Guidance | GuidanceFunction | None = None,
        eta: float | None = None,
        output_type: str = "pil",
        height: int | None = None,
        width: int | None = None,
    ) -> None:
        """Raises `InputError` where a call with these arguments would; nothing is computed or drawn."""
        self.check_output_type(output_type)
        shape = self.prepare_shape(height, width)
        scheduler, _ = self.prepare_steps(num_inference_steps, timesteps, eta)
        labels = self.prepare_class_labels(class_labels, batch_size)
        self.prepare_guidance(
            guidance, labels, classifier_scale, num_images(labels, batch_size), shape, scheduler, eta
        )

    def check_output_type(self, output_type: str) -> None:
        """Raises `InputError` unless images of the model's channels can be returned as `output_type`."""
        if output_type not in OUTPUT_TYPES:
            raise InputError(f"`output_type` must be one of {OUTPUT_TYPES}, got {output_type!r}.")
        if self.is_differentiable and output_type not in ("pt", "latent"):
            raise InputError('A differentiable call returns tensors: pass `output_type="pt"` or "latent".')
        channels = self.unet.config.in_channels
        if output_type == "pil" and channels not in (1, 3, 4):
            raise InputError(f'PIL has no images of {channels} channels: pass `output_type="np"`, "pt" or "latent".')

    # --------------------------------------------------------------------------------------------------------- steps

    @property
    def is_conditional(self) -> bool:
        """Whether the unet is told the class."""
        return self.unet.config.num_class_embeds is not None

    @property
    def needs_class(self) -> bool:
        """Whether the unet must be told the class; one that was trained with labels left out at times predicts without it."""
        return self.is_conditional and not self.unet.config.get("label_dropout")

    def predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        low_res: torch.Tensor | None = None,
        diffusion: GaussianDiffusion | None = None,
        unet: UNet2DModel | None = None,
    ) -> Prediction:
        """What the unet sees in a noisy image: its noise, the clean image, and the variance of the step to x_{t-1}.

        Where gradients are on, the prediction has a graph that leads back to `sample` (and to the unet's parameters).

        Args:
            sample (`torch.Tensor`): x_t, (B, C, H, W), of a process whose clean images span [-1, 1].
            timestep (`torch.Tensor`, `float` or `int`): t, one for all or one per image (B,), in [0, T); fractional
                times lie between the noise levels of whole ones.
            class_labels (`torch.Tensor`, *optional*): (B,) int64; an unconditional unet is not told, and another may
                do without if it was trained to ([`needs_class`]).
            low_res (`torch.Tensor`, *optional*): For an upsampling unet: (B, C, h, w) in [-1, 1].
            diffusion (`GaussianDiffusion`, *optional*): The process whose step is meant; that of training by default,
                with all timesteps.
            unet (`UNet2DModel`, *optional*): Another network to be asked, that was trained on the same process.

        Returns:
            `Prediction`: float32. The clean image is clipped if the scheduler clips; the noise is the network's own.
        """
        diffusion = diffusion or GaussianDiffusion.from_scheduler(self.convert_scheduler(self.scheduler, self.unet))
        unet = unet or self.unet
        inputs = {"class_labels": class_labels} if unet.config.num_class_embeds is not None else {}
        if low_res is not None:
            inputs["low_res"] = low_res
        with keeping_weights(unet):
            model_output = unet(sample.to(unet.dtype), timestep, **inputs).sample
        # a copy: that of a CUDA graph is written over by its next call
        model_output = model_output.to(torch.float32, copy=True)
        return diffusion.predict(model_output, sample, timestep, diffusion.clip_range)

    def denoise(
        self,
        sample: torch.Tensor,
        take_step: TakeStep,
        diffusion: GaussianDiffusion,
        timesteps: Sequence[int] | Sequence[float],
        guidance: GuidanceSum,
        class_labels: torch.Tensor | None,
        generator: Generators,
        on_step_end: OnStepEnd,
        low_res: torch.Tensor | None = None,
        order: int = 1,
    ) -> tuple[torch.Tensor, Counter]:
        """From x_T to x_0, (B, C, H, W), float32, and what that cost: each step is taken as often as the guidance says."""
        device = sample.device
        look, cost = self.prepare_look(diffusion, timesteps, guidance, class_labels, generator, device, low_res, order)
        is_differentiable = self.is_differentiable  # no longer, perhaps, in the backward pass

        def move(sample: torch.Tensor, index: int, keeps_graph: bool = False) -> torch.Tensor:
            prev_sample = take_guided_step(partial(look, keeps_graph=keeps_graph), sample, index, take_step)
            if is_differentiable and look(sample, index).memory:
                raise InputError(f"{guidance.name} goes by what it saw before, through which there is no gradient.")
            return prev_sample

        if is_differentiable:
            if low_res is not None and low_res.requires_grad:
                raise InputError("An upsampler has a gradient in its `latents`, not in `image`: pass image.detach().")
            networks = [network for network in (self.unet, self.classifier) if network is not None]
            move = with_gradient(move, networks, generator, checkpointing=self._gradient == "checkpointed")
        for i, t in self.progress(timesteps):
            sample = on_step_end(move(sample, i), t, i)
        return sample, cost

    def prepare_look(
        self,
        diffusion: GaussianDiffusion,
        timesteps: Sequence[int] | Sequence[float],
        guidance: GuidanceSum,
        class_labels: torch.Tensor | None,
        generator: Generators,
        device: torch.device,
        low_res: torch.Tensor | None = None,
        order: int = 1,
    ) -> tuple[Look, Counter]:
        """How a call looks at a sample in one of its steps, and what it has computed, which grows as it does."""
        cost = Counter(unet=0, classifier=0, backward=0)

        def predict(sample, timestep, class_labels, unet=None) -> Prediction:
            cost["unet"] += 1
            return self.predict(sample, timestep, class_labels, low_res, diffusion, unet)

        look = partial(
            GuidedStep,
            timesteps=torch.tensor(timesteps, device=device),
            class_labels=class_labels,
            predict=predict,
            diffusion=diffusion,
            guidance=guidance,
            generator=generator,
            memory={},
            cost=cost,
            order=order,
        )
        return look, cost

    def progress(self, timesteps: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Numbers and timesteps of the steps, under the progress bar, until a callback interrupts."""
        self._interrupt = False
        self._num_timesteps = len(timesteps)
        with self.progress_bar(total=len(timesteps)) as progress_bar:
            for index, t in enumerate(timesteps):
                if self.interrupt:
                    return
                yield index, t
                progress_bar.update()

    def finish(
        self, latents: torch.Tensor, output_type: str, return_dict: bool, cost: Counter
    ) -> GuidedImagePipelineOutput | tuple:
        """Turns x_0 (B, C, H, W) into images of `output_type`, and releases offloaded models.

        Raises:
            InputError: if some are not finite.
        """
        if not bool(latents.isfinite().all()):
            raise InputError(
                "The images are not finite: the unet's output overflows. Try a wider dtype (torch_dtype=torch.bfloat16 or "
                "float32), and see whether its weights and the scheduler are those that it was trained with."
            )
        images = self.image_processor.postprocess(latents, output_type=output_type)
        self.maybe_free_model_hooks()
        if not return_dict:
            return (images,)
        return GuidedImagePipelineOutput(images=images, evaluations=dict(cost))


def take_guided_step(look: Look, sample: torch.Tensor, index: int, take_step: TakeStep) -> torch.Tensor:
    """From x_t to x_{t-1}, (B, C, H, W): the step is taken as often as the guidance says, with noise added back in between."""
    step = look(sample, index)
    for again in reversed(range(step.guidance.recurrences(step))):
        shift = step.guidance.shift(step)
        sample = take_step(step) + shift
        if again:
            step = look(step.noised_again(sample), index)
    return step.guidance.conclude(step, sample) if step.is_last else sample


def predicts_variance(unet: UNet2DModel) -> bool:
    """Whether the unet gives a variance beside the noise: twice as many channels as its images have."""
    return unet.config.out_channels == 2 * unet.config.in_channels


def num_images(class_labels: torch.Tensor | None, batch_size: int | None) -> int:
    """How many images a call draws: one for each label, or as many as were asked for."""
    return batch_size or 1 if class_labels is None else len(class_labels)


def check_generator(generator: Generators, batch_size: int) -> None:
    """Raises `InputError` unless there is a generator, one for each image, or none."""
    generators = generator if isinstance(generator, list) else [generator]
    if any(one is not None and not isinstance(one, torch.Generator) for one in generators):
        raise InputError(f"`generator` must be a torch.Generator or a list of them, got {generator!r}.")
    if isinstance(generator, list) and len(generator) != batch_size:
        raise InputError(f"`generator` is a list of {len(generator)} for a batch of {batch_size}: pass one per image.")


def is_positive_integer(value: object) -> bool:
    """Whether the value counts something: an `int` or NumPy's, at least 1."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= 1


def check_components(
    unet: UNet2DModel, scheduler: SchedulerMixin, classifier: NoisyClassifierModel | None = None
) -> None:
    """Raises `InputError` where the parts of a pipeline do not fit together.

    That is, where the classifier, if there is one, cannot read the unet's samples or knows other classes, or where one of
    the two was trained with another process than the scheduler's.
    """
    check_trained_process(scheduler, unet=unet)
    if classifier is None:
        return
    if "num_classes" not in getattr(classifier, "config", {}):
        raise InputError(
            f"`classifier` must be a NoisyClassifierModel, got {type(classifier).__name__}: a network of another make guides "
            "by `guidance=`, a function of a step."
        )
    check_trained_process(scheduler, classifier=classifier)

    facts = [("channels", unet.config.in_channels, classifier.config.in_channels)]
    if unet.config.sample_size is not None:
        sizes = (height_and_width(model.config.sample_size) for model in (unet, classifier))
        facts.append(("image size", *sizes))
    if unet.config.num_class_embeds is not None:
        facts.append(("number of classes", unet.config.num_class_embeds, classifier.config.num_classes))
    names = [model.config.get("class_names") for model in (unet, classifier)]
    if None not in names:
        facts += [(f"name of class {label}", *pair) for label, pair in enumerate(zip(*names))]
    for name, of_unet, of_classifier in facts:
        if of_unet != of_classifier:
            raise InputError(
                f"Unet and classifier do not fit together: the {name} of the unet is {of_unet}, that of the classifier "
                f"{of_classifier}."
            )
