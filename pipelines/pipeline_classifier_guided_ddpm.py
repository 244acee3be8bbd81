"""Classifier-guided ancestral sampling, Algorithm 1 of *Diffusion Models Beat GANs on Image Synthesis*."""

from collections.abc import Callable, Sequence

import torch
from diffusers import DDPMScheduler, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils.torch_utils import randn_tensor

from diffusers_cg.diffusion import GaussianDiffusion, to_ddpm_scheduler
from diffusers_cg.guidance import Guidance
from diffusers_cg.pipelines.classifier_guided import ClassifierGuidedPipeline


class ClassifierGuidedDDPMPipeline(ClassifierGuidedPipeline):
    __doc__ = (
        "Samples by DDPM, each step's mean shifted by scale x Sigma x grad log p(y|x_t).\n"
        + (ClassifierGuidedPipeline.__doc__.partition("\n")[2])
    )

    def convert_scheduler(self, scheduler: SchedulerMixin, unet: UNet2DModel) -> DDPMScheduler:
        """A `DDPMScheduler` of the same noise schedule."""
        GaussianDiffusion.from_scheduler(scheduler)  # refuses what the arithmetic does not cover
        learned_variance = unet.config.out_channels == 2 * unet.config.in_channels
        scheduler = to_ddpm_scheduler(scheduler, learned_variance)
        if scheduler.config.variance_type == "learned_range" and not learned_variance:
            raise ValueError(
                f"The scheduler expects a learned variance, but the unet has {unet.config.out_channels} output channels "
                f"for {unet.config.in_channels} input channels: use variance_type='fixed_small' or 'fixed_large'."
            )
        return scheduler

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None = None,
        guidance: Guidance | None = None,
        batch_size: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable | PipelineCallback | MultiPipelineCallbacks | None = None,
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
            default_num_inference_steps=self.config.ddpm_num_inference_steps,
            default_classifier_scale=self.config.ddpm_classifier_scale,
        )
        diffusion = GaussianDiffusion.from_scheduler(self.scheduler, inputs.timesteps)

        def step(sample, t, model_output, gradient):
            p = diffusion.p_mean_variance(model_output, sample, t, clip_range=self.clip_range)
            mean = p.mean + p.variance * gradient
            if t == inputs.timesteps[-1]:
                return mean
            noise = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            return mean + (0.5 * p.log_variance).exp() * noise

        sample = self.denoise(inputs, step, callback_on_step_end, callback_on_step_end_tensor_inputs)
        return self.finish(sample, output_type, return_dict)
