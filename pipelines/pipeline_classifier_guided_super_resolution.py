"""Classifier-guided upsampling, the second half of the stacks of *Diffusion Models Beat GANs on Image Synthesis*."""

from collections.abc import Sequence
from typing import Literal

import torch
from diffusers import SchedulerMixin
from diffusers.image_processor import PipelineImageInput
from diffusers.utils.torch_utils import randn_tensor

from diffusers_cg.diffusion import (
    Generators,
    augment_low_res,
    check_augmentation_level,
    is_ancestral,
    to_ddim_scheduler,
    to_ddpm_scheduler,
)
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import Guidance, GuidanceFunction
from diffusers_cg.models import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.models.adm_trunk import height_and_width
from diffusers_cg.pipelines.differentiable_sampling import without_graph
from diffusers_cg.pipelines.pipeline_classifier_guided import (
    Callback,
    ClassifierGuidedPipeline,
    GuidedImagePipelineOutput,
)
from diffusers_cg.pipelines.pipeline_classifier_guided_ddim import ddim_steps
from diffusers_cg.pipelines.pipeline_classifier_guided_ddpm import ddpm_steps


class ClassifierGuidedSuperResolutionPipeline(ClassifierGuidedPipeline):
    r"""Draws images at a high resolution that look like given ones at a low resolution, guided by a classifier.

    Where the low-resolution images were themselves drawn with guidance, this is the paper's stack, guided at both
    stages: `low = base(class_labels=y).images`, then `upsampler(image=low, class_labels=y).images`.

    A `DDPMScheduler` is stepped as [`ClassifierGuidedDDPMPipeline`] does, any other scheduler as
    [`ClassifierGuidedDDIMPipeline`] does; steps and scale default to those saved for its kind. For DDIM steps, pass
    `scheduler=DDIMScheduler.from_pretrained(path, subfolder="scheduler", timestep_spacing="leading")`.

    Args:
        unet ([`ADMUNet2DModel`]): An upsampling one (`low_res_channels` above 0), class-conditional or not.
        scheduler (`SchedulerMixin`): Noise schedule and kind of steps.
        classifier ([`NoisyClassifierModel`], *optional*): Of noisy images at the high resolution; without it only
            `classifier_scale=0` is possible.
        low_res_size (`int` or `tuple[int, int]`): Height and width of the low-resolution images that the unet was
            trained on.
        solver (`SchedulerMixin`, *optional*): What to assign to `scheduler` for few steps, as `sample --sampler solver` does.
        ddpm_num_inference_steps, ddim_num_inference_steps, solver_num_inference_steps (`int`): Steps of a `DDPMScheduler`, a
            `DDIMScheduler` and any other where a call names none.
        ddpm_classifier_scale, ddim_classifier_scale (`float`): Scale where a call names none and there is a classifier.

    Raises:
        InputError: if the unet is not an upsampling one, `low_res_size` is missing or larger than the unet's images, or the
            image size or the number of classes of unet and classifier differ.
    """

    def __init__(
        self,
        unet: ADMUNet2DModel,
        scheduler: SchedulerMixin,
        classifier: NoisyClassifierModel | None = None,
        low_res_size: int | Sequence[int] | None = None,  # a default, or diffusers takes it for a component
        solver: SchedulerMixin | None = None,
        ddpm_num_inference_steps: int = 250,
        ddpm_classifier_scale: float = 1.0,
        ddim_num_inference_steps: int = 25,
        ddim_classifier_scale: float = 1.0,
        solver_num_inference_steps: int = 25,
    ):
        super().__init__(
            unet,
            scheduler,
            classifier,
            solver,
            ddpm_num_inference_steps=ddpm_num_inference_steps,
            ddpm_classifier_scale=ddpm_classifier_scale,
            ddim_num_inference_steps=ddim_num_inference_steps,
            ddim_classifier_scale=ddim_classifier_scale,
            solver_num_inference_steps=solver_num_inference_steps,
        )
        check_low_res_size(low_res_size, unet.config.sample_size)
        self.register_to_config(low_res_size=low_res_size)

    def check_unet(self, unet: ADMUNet2DModel) -> None:
        """Raises `InputError` unless the unet is an upsampling one."""
        if not unet.config.get("low_res_channels"):
            raise InputError(
                "This unet generates from noise alone, but this pipeline upsamples: use ClassifierGuidedDDPMPipeline or "
                "ClassifierGuidedDDIMPipeline, or a unet with `low_res_channels`."
            )

    def convert_scheduler(self, scheduler: SchedulerMixin, unet: ADMUNet2DModel) -> SchedulerMixin:
        """`scheduler` itself; refused where the steps of its kind cannot be taken."""
        if is_ancestral(scheduler):
            return to_ddpm_scheduler(scheduler, unet.predicts_variance)
        return to_ddim_scheduler(scheduler)

    @property
    def algorithm(self) -> Literal["ddpm", "ddim"]:
        """Whose steps a call takes, and whose saved defaults: those of a `DDPMScheduler`, or those on guided noise."""
        return "ddpm" if is_ancestral(self.scheduler) else "ddim"

    @property
    def low_res_shape(self) -> tuple[int, int, int]:
        """(C, h, w) of the low-resolution images."""
        return self.unet.config.low_res_channels, *height_and_width(self.config.low_res_size)

    @without_graph
    def __call__(
        self,
        image: PipelineImageInput,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None = None,
        guidance: Guidance | GuidanceFunction | None = None,
        eta: float | None = None,
        low_res_noise: float = 0.0,
        low_res_blur: float = 0.0,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' convention, not changed)
    ) -> GuidedImagePipelineOutput | tuple:
        """Draws one image at the high resolution for each low-resolution one.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): One low-resolution image or any
                number B of them, of the saved `low_res_size` and the unet's `low_res_channels`; arrays (B, h, w, C) and
                tensors (B, C, h, w) floating point in [0, 1].
            class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): One for all images or one per image.
                May be None for an unconditional unet without guidance.
            eta (`float`, *optional*): As in [`ClassifierGuidedDDIMPipeline.__call__`], unless the scheduler is a `DDPMScheduler`.
            low_res_noise (`float`): Standard deviation of noise to add to `image` (as if it spanned [-1, 1]), for an
                upsampler trained with `--low_res_noise` of at least as much: hides faults of generated images.
            low_res_blur (`float`): Standard deviation of a blur of `image` in its pixels, likewise.
            num_inference_steps, timesteps, classifier_scale, guidance, generator, latents, output_type, return_dict,
                callback_on_step_end, callback_on_step_end_tensor_inputs: as in
                [`ClassifierGuidedDDPMPipeline.__call__`], at the high resolution.

        Returns:
            [`GuidedImagePipelineOutput`] or `tuple`: `.images`; `.evaluations`, what they cost.

        Raises:
            InputError: if an input is out of range or missing; nothing has been computed by then.
        """
        check_augmentation_level("low_res_noise", low_res_noise)
        check_augmentation_level("low_res_blur", low_res_blur)
        self.check_output_type(output_type)
        on_step_end = self.prepare_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        shape = self.prepare_shape()
        scheduler, diffusion = self.prepare_steps(num_inference_steps, timesteps, eta)
        low_res = self.prepare_image(image, self.low_res_shape)
        labels = self.prepare_class_labels(class_labels, len(low_res))
        guidance = self.prepare_guidance(guidance, labels, classifier_scale, len(low_res), shape, scheduler, eta)
        latents = self.prepare_latents(len(low_res), generator, latents, shape)
        noise = None
        if low_res_noise:
            noise = randn_tensor(low_res.shape, generator=generator, device=low_res.device, dtype=low_res.dtype)
        low_res = augment_low_res(low_res, low_res_noise, low_res_blur, noise)

        timesteps = scheduler.timesteps.tolist()
        if self.algorithm == "ddpm":
            take_step = ddpm_steps(diffusion, guidance)
        else:
            take_step = ddim_steps(scheduler, diffusion, guidance, eta or 0.0, generator)
        sample, cost = self.denoise(
            latents,
            take_step,
            diffusion,
            timesteps,
            guidance,
            labels,
            generator,
            on_step_end,
            low_res,
            scheduler.order,
        )
        return self.finish(sample, output_type, return_dict, cost)


def check_low_res_size(low_res_size: int | Sequence[int] | None, sample_size: int | Sequence[int]) -> None:
    """Raises `InputError` unless `low_res_size` is the size of an image no larger than `sample_size`."""
    if low_res_size is None:
        raise InputError(
            "`low_res_size` is missing: pass height and width of the low-resolution images that the unet was trained on."
        )
    low, high = height_and_width(low_res_size), height_and_width(sample_size)
    if len(low) != 2 or not all(isinstance(a, int) and 1 <= a <= b for a, b in zip(low, high)):
        raise InputError(
            f"`low_res_size` must be one side or two, up to those of the unet {high}, got {low_res_size}."
        )
