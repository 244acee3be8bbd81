"""Classifier-guided DDIM sampling, Algorithm 2 of *Diffusion Models Beat GANs on Image Synthesis*."""

from collections.abc import Sequence

import torch
from diffusers import ImagePipelineOutput, SchedulerMixin, UNet2DModel
from diffusers.image_processor import PipelineImageInput

from diffusers_cg.guidance import Guidance
from diffusers_cg.pipelines.classifier_guided import Callback, ClassifierGuidedPipeline
from diffusers_cg.pipelines.steps import Generators, check_eta, inversion_step, noise_step, scheduler_for_noise_steps


class ClassifierGuidedDDIMPipeline(ClassifierGuidedPipeline):
    __doc__ = (
        "Samples by DDIM on guided noise: eps - sqrt(1 - abar_t) x scale x grad log p(y|x_t).\n\n"
        "    The guidance lives in noise space, so `scheduler` may be any scheduler of diffusers that steps on noise\n"
        "    predictions and keeps variance (DPM-Solver++, UniPC, ...).\n"
    ) + ClassifierGuidedPipeline.__doc__.partition("\n")[2]

    sampler = "ddim"

    def convert_scheduler(self, scheduler: SchedulerMixin, unet: UNet2DModel) -> SchedulerMixin:
        """A `DDIMScheduler` of the same noise schedule for a `DDPMScheduler`; any other as it is."""
        return scheduler_for_noise_steps(scheduler)

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
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
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
        check_eta(eta, self.scheduler)
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
        step = noise_step(self.scheduler, inputs.timesteps, generator, eta)
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
        sample = self.prepare_image(image, self.sample_shape)
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
        )
        step = inversion_step(self.scheduler, inputs.timesteps)
        inputs.timesteps.reverse()
        latents = self.denoise(inputs, step, None, [])
        self.maybe_free_model_hooks()
        return latents
