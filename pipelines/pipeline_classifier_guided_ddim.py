"""Classifier-guided DDIM sampling, Algorithm 2 of *Diffusion Models Beat GANs on Image Synthesis*."""

import inspect
from collections.abc import Callable, Sequence

import torch
from diffusers import DDIMScheduler, ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.image_processor import PipelineImageInput

from diffusers_cg.diffusion import GaussianDiffusion, scheduler_for_guided_noise, to_ddim_scheduler
from diffusers_cg.guidance import Guidance
from diffusers_cg.pipelines.classifier_guided import ClassifierGuidedPipeline


class ClassifierGuidedDDIMPipeline(ClassifierGuidedPipeline):
    __doc__ = (
        "Samples by DDIM on guided noise: eps - sqrt(1 - abar_t) x scale x grad log p(y|x_t).\n\n"
        "    The guidance lives in noise space, so `scheduler` may be any scheduler of diffusers that steps on noise\n"
        "    predictions and keeps variance (DPM-Solver++, UniPC, ...).\n"
    ) + ClassifierGuidedPipeline.__doc__.partition("\n")[2]

    def convert_scheduler(self, scheduler: SchedulerMixin, unet: UNet2DModel) -> SchedulerMixin:
        """A `DDIMScheduler` of the same noise schedule for a `DDPMScheduler`; any other as it is."""
        scheduler = to_ddim_scheduler(scheduler)
        GaussianDiffusion.from_scheduler(scheduler)  # refuses what the arithmetic does not cover
        return scheduler

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None = None,
        guidance: Guidance | None = None,
        eta: float = 0.0,
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
            eta (`float`): Noise added at each step: 0 is DDIM, 1 as much as DDPM adds. For a `DDIMScheduler` only.
            class_labels, num_inference_steps, timesteps, classifier_scale, guidance, batch_size, generator, latents,
                output_type, return_dict, callback_on_step_end, callback_on_step_end_tensor_inputs: as in
                [`ClassifierGuidedDDPMPipeline.__call__`].

        Returns:
            `ImagePipelineOutput` or `tuple`: `.images`.

        Raises:
            ValueError, TypeError: if an input is out of range or missing; nothing has been computed by then.
        """
        is_ddim = isinstance(self.scheduler, DDIMScheduler)
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"`eta` must lie in [0, 1], got {eta}.")
        if eta > 0 and not is_ddim:
            raise ValueError(f"`eta` needs a DDIMScheduler, but this pipeline's is a {type(self.scheduler).__name__}.")
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
            default_num_inference_steps=self.config.ddim_num_inference_steps,
            default_classifier_scale=self.config.ddim_classifier_scale,
        )
        diffusion = GaussianDiffusion.from_scheduler(self.scheduler, inputs.timesteps)
        scheduler = scheduler_for_guided_noise(self.scheduler, diffusion)
        scheduler_timesteps = dict(zip(inputs.timesteps, scheduler.timesteps))
        accepted = inspect.signature(scheduler.step).parameters
        extra = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}

        def step(sample, t, model_output, gradient):
            # the noise follows from the clipped image, and is not clipped again once it is guided
            _, noise = diffusion.predict_original_and_noise(model_output, sample, t, self.clip_range)
            noise = noise - diffusion.coefficient("sqrt_one_minus_abar", t, sample) * gradient
            return scheduler.step(noise, scheduler_timesteps[t], sample, **extra).prev_sample

        sample = self.denoise(inputs, step, callback_on_step_end, callback_on_step_end_tensor_inputs)
        return self.finish(sample, output_type, return_dict)

    @torch.no_grad()
    def invert(
        self,
        image: PipelineImageInput,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """Runs DDIM backwards, without guidance, from images to the noise that gives them back.

        `pipe(class_labels, num_inference_steps, classifier_scale=0, latents=pipe.invert(...))` reconstructs the images,
        the better the more steps there are.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): In the model's channels and size;
                arrays (B, H, W, C) and tensors (B, C, H, W) in [0, 1].
            class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): Class per image; needed by a
                class-conditional unet.
            num_inference_steps (`int`, *optional*): Steps; the saved default of sampling otherwise.
            timesteps (sequence of `int`, *optional*): The timesteps of sampling, decreasing, in place of a number.

        Returns:
            `torch.Tensor`: Latents (B, C, H, W), float32.

        Raises:
            ValueError, TypeError: if an input is out of range or missing; nothing has been computed by then.
        """
        sample = self.prepare_image(image)
        inputs = self.prepare_inputs(
            class_labels=class_labels,
            batch_size=len(sample),
            num_inference_steps=num_inference_steps,
            timesteps=timesteps,
            classifier_scale=0.0,
            guidance=None,
            generator=None,
            latents=sample,
            output_type="latent",
            default_num_inference_steps=self.config.ddim_num_inference_steps,
            default_classifier_scale=0.0,
        )
        diffusion = GaussianDiffusion.from_scheduler(self.scheduler, inputs.timesteps)
        inputs.timesteps.reverse()

        def step(sample, t, model_output, gradient):
            pred_original_sample, noise = diffusion.predict_original_and_noise(
                model_output, sample, t, self.clip_range
            )
            return (
                diffusion.coefficient("sqrt_abar_next", t, sample) * pred_original_sample
                + diffusion.coefficient("sqrt_one_minus_abar_next", t, sample) * noise
            )

        latents = self.denoise(inputs, step, None, [])
        self.maybe_free_model_hooks()
        return latents
