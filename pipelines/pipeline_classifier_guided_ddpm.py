"""Classifier-guided ancestral sampling, Algorithm 1 of *Diffusion Models Beat GANs on Image Synthesis*."""

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler, ImagePipelineOutput, SchedulerMixin, UNet2DModel

from diffusers_cg.guidance import Guidance
from diffusers_cg.pipelines.classifier_guided import Callback, ClassifierGuidedPipeline
from diffusers_cg.pipelines.steps import Generators, ancestral_step, scheduler_for_ancestral_steps


class ClassifierGuidedDDPMPipeline(ClassifierGuidedPipeline):
    __doc__ = (
        "Samples by DDPM, each step's mean shifted by scale x Sigma x grad log p(y|x_t).\n"
        + (ClassifierGuidedPipeline.__doc__.partition("\n")[2])
    )

    sampler = "ddpm"

    def convert_scheduler(self, scheduler: SchedulerMixin, unet: UNet2DModel) -> DDPMScheduler:
        """A `DDPMScheduler` of the same noise schedule."""
        return scheduler_for_ancestral_steps(scheduler, unet)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None = None,
        guidance: Guidance | None = None,
        batch_size: int | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' convention, not changed)
    ) -> ImagePipelineOutput | tuple:
        """Draws images.

        Args:
            class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): Class per image, (B,). May be None for
                an unconditional unet without guidance.
            num_inference_steps (`int`, *optional*): Steps, at most those of training; the saved default otherwise.
            timesteps (sequence of `int`, *optional*): Decreasing timesteps to use instead, in any spacing.
            classifier_scale (`float` or one per image, *optional*): s of the paper, 0 = off; the saved default otherwise.
            guidance (`Guidance`, *optional*): Gradient to follow in place of the pipeline's classifier's.
            batch_size (`int`, *optional*): Number of images where `class_labels` is one label or None.
            generator (`torch.Generator` or one per image, *optional*): Source of all randomness. An image drawn with
                its own generator does not depend on the rest of the batch.
            latents (`torch.Tensor`, *optional*): Initial noise (B, C, H, W) in place of a drawn one.
            output_type (`str`): `"pil"`; `"np"` (B, H, W, C) or `"pt"` (B, C, H, W) in [0, 1]; `"latent"`: the raw
                sample (B, C, H, W), float32, about [-1, 1], not clipped or rounded.
            return_dict (`bool`): Whether to return an `ImagePipelineOutput` or a tuple.
            callback_on_step_end: Called as `callback(pipe, step, timestep, {"latents": x_{t-1}})` after every step; may
                return a dictionary with other `latents`.
            callback_on_step_end_tensor_inputs (`list[str]`): Which tensors the callback gets.

        Returns:
            `ImagePipelineOutput` or `tuple`: `.images`.

        Raises:
            ValueError, TypeError: if an input is out of range or missing; nothing has been computed by then.
        """
        callback_on_step_end_tensor_inputs = self.prepare_callback_tensor_inputs(
            callback_on_step_end, callback_on_step_end_tensor_inputs
        )
        inputs = self.prepare_inputs(
            class_labels=class_labels,
            batch_size=batch_size,
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            classifier_scale=classifier_scale,
            guidance=guidance,
            generator=generator,
            latents=latents,
            output_type=output_type,
        )
        step = ancestral_step(self.scheduler, inputs.timesteps, generator)
        sample = self.denoise(inputs, step, callback_on_step_end, callback_on_step_end_tensor_inputs)
        return self.finish(sample, output_type, return_dict)
