"""Classifier-guided inpainting: RePaint, or DDNM's projection, on the steps of Algorithm 1."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DModel
from diffusers.image_processor import PipelineImageInput

from diffusers_cg.diffusion import Generators, to_ddpm_scheduler
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import DDNMGuidance, Guidance, GuidanceFunction, GuidanceSum
from diffusers_cg.pipelines.image_inputs import masks_to_tensor, unit_images
from diffusers_cg.pipelines.pipeline_classifier_guided import (
    Callback,
    ClassifierGuidedPipeline,
    GuidedImagePipelineOutput,
    is_positive_integer,
    predicts_variance,
    take_guided_step,
)
from diffusers_cg.pipelines.pipeline_classifier_guided_ddpm import ddpm_steps
from diffusers_cg.restoration import Mask


Method = Literal["repaint", "ddnm"]


def jumping_levels(num_steps: int, jump_length: int, jump_n_sample: int) -> list[int]:
    """The noise levels that RePaint's samples pass, from `num_steps` - 1 down to -1, the clean image (figures 9 and 10).

    At each `jump_length`-th level (0, too) that lies far enough below the first, noise is added back for `jump_length` levels,
    and the way down is taken again, `jump_n_sample` - 1 times.
    """
    jumps_left = dict.fromkeys(range(0, num_steps - jump_length, jump_length), jump_n_sample - 1)
    levels = [num_steps - 1]
    while (level := levels[-1]) >= 0:
        if jumps_left.get(level, 0) > 0:
            jumps_left[level] -= 1
            levels += range(level + 1, level + jump_length + 1)
        levels.append(levels[-1] - 1)
    return levels


class ClassifierGuidedInpaintPipeline(ClassifierGuidedPipeline):
    r"""Fills a part of images, guided by a classifier or not, with a unet that was trained on whole images alone.

    *RePaint* (Lugmayr et al., 2022): before each step of Algorithm 1 the known part of x_t is drawn from q(x_t | x_0). As the
    step does not know it to be true, the filled part does not fit it at first; so noise is added back, several steps at a
    time, and they are taken again, which lets the two agree.

    Args:
        unet ([`ADMUNet2DModel`] or `UNet2DModel`): Predicts the noise, the clean image or v, as the scheduler's
            `prediction_type` says; class-conditional or not.
        scheduler (`SchedulerMixin`): Noise schedule and steps; any but a `DDPMScheduler` is turned into one of the same
            schedule, so that the folder of any pipeline serves this one.
        classifier ([`NoisyClassifierModel`], *optional*): Guides; without it only `classifier_scale=0` is possible.
        solver (`SchedulerMixin`, *optional*): Of [`ClassifierGuidedDDIMPipeline`], kept in the saved folder.
        ddpm_num_inference_steps, ddim_num_inference_steps, solver_num_inference_steps (`int`): Steps of a `DDPMScheduler`, a
            `DDIMScheduler` and any other where a call names none.
        ddpm_classifier_scale, ddim_classifier_scale (`float`): Scale where a call names none and there is a classifier.

    Raises:
        InputError: if the channels, the image size, or the number or names of the classes of unet and classifier differ,
            or the scheduler is of another kind.
    """

    algorithm = "ddpm"

    def convert_scheduler(self, scheduler: SchedulerMixin, unet: UNet2DModel) -> DDPMScheduler:
        """A `DDPMScheduler` of the same noise schedule."""
        return to_ddpm_scheduler(scheduler, predicts_variance(unet))

    def prepare_mask(self, mask_image: PipelineImageInput, batch_size: int, size: tuple[int, int]) -> Mask:
        """What is known of images, on the execution device.

        Raises:
            InputError: as [`masks_to_tensor`], or if there are several masks and another number of images.
        """
        hole = masks_to_tensor(mask_image, size)
        if len(hole) not in (1, batch_size):
            raise InputError(
                f"`mask_image` holds {len(hole)} masks for a batch of {batch_size}: pass one, or one for each."
            )
        return Mask(~hole.to(self._execution_device))

    @torch.inference_mode(False)  # a guidance may want gradients
    @torch.no_grad()
    def __call__(
        self,
        image: PipelineImageInput,
        mask_image: PipelineImageInput,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None = None,
        guidance: Guidance | GuidanceFunction | None = None,
        jump_length: int = 10,
        jump_n_sample: int = 10,
        method: Method = "repaint",
        batch_size: int | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        height: int | None = None,
        width: int | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' convention, not changed)
    ) -> GuidedImagePipelineOutput | tuple:
        """Fills images; what is known of them is in the result as it was given, bit for bit.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): One, for all labels, or one per image;
                in the model's channels and size; arrays (B, H, W, C) and tensors (B, C, H, W) floating point in [0, 1].
            mask_image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): One, for all images, or one per
                image; 1 or white (from 0.5 on) is to be filled, 0 or black is kept; arrays (H, W), (B, H, W) or
                (B, H, W, 1), tensors (H, W), (B, H, W) or (B, 1, H, W), bool or numbers in [0, 1].
            jump_length (`int`): For how many steps noise is added back at a time.
            jump_n_sample (`int`): How often steps are taken; 1 is never again. With the paper's 10 and 10, 250 steps evaluate
                the unet 2,410 times.
            method (`str`): `"repaint"`, or `"ddnm"`: the known part is not drawn in x_t, but put in its place in the clean
                image that the network sees (*DDNM*, Wang et al., 2022), with the same jumps (their time travel).
            batch_size (`int`, *optional*): Number of images where `class_labels` is one label or None, and `image` one image.
            callback_on_step_end: As in [`ClassifierGuidedDDPMPipeline.__call__`], after each step down; its step is the
                number among all steps, up and down.
            class_labels, num_inference_steps, timesteps, classifier_scale, guidance, generator, latents, output_type, height,
                width, return_dict, callback_on_step_end_tensor_inputs: as in [`ClassifierGuidedDDPMPipeline.__call__`].

        Returns:
            [`GuidedImagePipelineOutput`] or `tuple`: `.images`; `.evaluations`, what they cost.

        Raises:
            InputError: if an input is out of range or missing; nothing has been computed by then.
        """
        if method not in get_args(Method):
            raise InputError(f"`method` must be one of {get_args(Method)}, got {method!r}.")
        if not (is_positive_integer(jump_length) and is_positive_integer(jump_n_sample)):
            raise InputError(
                "`jump_length` and `jump_n_sample` must be positive whole numbers, "
                f"got {jump_length!r} and {jump_n_sample!r}."
            )
        self.check_output_type(output_type)
        on_step_end = self.prepare_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        shape = self.prepare_shape(height, width)
        scheduler, diffusion = self.prepare_steps(num_inference_steps, timesteps)
        given = unit_images(image, shape).to(self._execution_device)
        image, labels, batch_size = self.prepare_images_and_labels(given, class_labels, batch_size, shape)
        guidance = self.prepare_guidance(guidance, labels, classifier_scale, batch_size, shape, scheduler)
        mask = self.prepare_mask(mask_image, batch_size, shape[1:])
        sample = self.prepare_latents(batch_size, generator, latents, shape)  # last: it draws noise

        if method == "ddnm":
            guidance = GuidanceSum([guidance, DDNMGuidance(mask, image, eta=None)])
        timesteps = diffusion.timesteps.tolist()
        look, cost = self.prepare_look(diffusion, timesteps, guidance, labels, generator, sample.device)
        take_step = ddpm_steps(diffusion, guidance)
        moves = list(pairwise(jumping_levels(len(timesteps), jump_length, jump_n_sample)))
        for i, (level, next_level) in self.progress(moves):
            index = len(timesteps) - 1 - level  # timesteps fall, levels count up
            if next_level > level:
                sample = look(sample, index - 1).noised_again(sample)
                continue
            if method == "repaint" and i > 0:
                known = diffusion.q_sample(image, look(sample, index).randn(sample.shape), timesteps[index])
                sample = mask.proximal(sample, known)
            sample = take_guided_step(look, sample, index, take_step)
            sample = on_step_end(sample, timesteps[index], i)

        output = self.finish(mask.proximal(sample, image), "latent", True, cost)
        if output_type != "latent":  # [-1, 1] and back again would round what is known
            images = mask.proximal((output.images / 2 + 0.5).clamp(0, 1), given)
            output.images = self.image_processor.postprocess(images, output_type, [False] * batch_size)
        return output if return_dict else (output.images,)
