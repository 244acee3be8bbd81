"""Classifier-guided ancestral sampling, Algorithm 1 of *Diffusion Models Beat GANs on Image Synthesis*."""

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DModel
from diffusers.image_processor import PipelineImageInput

from diffusers_cg.diffusion import GaussianDiffusion, Generators, to_ddpm_scheduler
from diffusers_cg.guidance import Guidance, GuidanceFunction, GuidanceSum, GuidedStep
from diffusers_cg.pipelines.differentiable_sampling import without_graph
from diffusers_cg.pipelines.pipeline_classifier_guided import (
    Callback,
    ClassifierGuidedPipeline,
    GuidedImagePipelineOutput,
    TakeStep,
    predicts_variance,
)
from diffusers_cg.pipelines.purification import PurificationMixin
from diffusers_cg.pipelines.restoration import RestorationMixin


def ddpm_steps(diffusion: GaussianDiffusion, guidance: GuidanceSum) -> TakeStep:
    """The steps of Algorithm 1: x_{t-1} is drawn from N(mu + s Sigma grad log p(y|x_t), Sigma)."""

    def take_step(step: GuidedStep) -> torch.Tensor:
        gradient = guidance(step)  # s grad log p(y | x_t)
        p = diffusion.p(step.prediction, step.sample, step.timestep)  # p(x_{t-1} | x_t) = N(mu, Sigma)
        mean = p.mean + p.variance * gradient
        return mean if step.is_last else mean + (0.5 * p.log_variance).exp() * step.randn(mean.shape)

    return take_step


class ClassifierGuidedDDPMPipeline(RestorationMixin, PurificationMixin, ClassifierGuidedPipeline):
    r"""Samples by DDPM, each step's mean shifted by s Sigma grad log p(y|x_t).

    Args:
        unet ([`ADMUNet2DModel`] or `UNet2DModel`): Predicts the noise, the clean image or v, as the scheduler's
            `prediction_type` says; class-conditional or not.
        scheduler (`SchedulerMixin`): Noise schedule and steps; any but a `DDPMScheduler` is turned into one of the same
            schedule, so that one saved folder serves this pipeline and [`ClassifierGuidedDDIMPipeline`].
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

    @without_graph
    def __call__(
        self,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None = None,
        guidance: Guidance | GuidanceFunction | None = None,
        batch_size: int | None = None,
        generator: Generators = None,
        latents: torch.Tensor | None = None,
        image: PipelineImageInput | None = None,
        strength: float | None = None,
        output_type: str = "pil",
        height: int | None = None,
        width: int | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' convention, not changed)
    ) -> GuidedImagePipelineOutput | tuple:
        """Draws images.

        Args:
            class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): Class per image, (B,). May be None for
                a unet that no classifier guides, if it is unconditional or was trained with `label_dropout`.
            num_inference_steps (`int`, *optional*): Steps, at most those of training; the saved default otherwise.
            timesteps (sequence of `int`, *optional*): Decreasing timesteps to use instead, in any spacing.
            classifier_scale (`float` or one per image, *optional*): s of the paper, 0 = off; the saved default otherwise,
                or 0 if there is another guidance.
            guidance (`Guidance` or a function of a step, *optional*): Your own, in place of the classifier's, or beside it
                at the `classifier_scale` that you pass.
            batch_size (`int`, *optional*): Number of images where `class_labels` is one label or None, and `image` one image.
            generator (`torch.Generator` or one per image, *optional*): Source of all randomness. An image drawn with
                its own generator does not depend on the rest of the batch.
            latents (`torch.Tensor`, *optional*): Initial noise (B, C, H, W) in place of a drawn one.
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them, *optional*): Images to start from in
                place of noise, one or one per image (*SDEdit*, Meng et al., 2021), in the model's channels and size; arrays
                (B, H, W, C) and tensors (B, C, H, W) floating point in [0, 1]. They are noised to the first of the
                timesteps that are taken.
            strength (`float`, *optional*): How far to go from `image`: the share of the steps that are taken, the last of
                all, above 0 and up to 1, at which nothing is left of it; 0.5 otherwise.
            output_type (`str`): `"pil"`; `"np"` (B, H, W, C) or `"pt"` (B, C, H, W) in [0, 1]; `"latent"`: the raw
                sample (B, C, H, W), float32, about [-1, 1], not clipped or rounded.
            height, width (`int`, *optional*): Of the images, multiples of what the unet's levels divide; its training size
                otherwise. A classifier that pools by attention reads its own size alone.
            return_dict (`bool`): Whether to return a [`GuidedImagePipelineOutput`] or a tuple.
            callback_on_step_end: Called as `callback(pipe, step, timestep, {"latents": x_{t-1}})` after every step; may
                return a dictionary with other `latents`.
            callback_on_step_end_tensor_inputs (`list[str]`): Which tensors the callback gets.

        Returns:
            [`GuidedImagePipelineOutput`] or `tuple`: `.images`; `.evaluations`, what they cost.

        Raises:
            InputError: if an input is out of range or missing; nothing has been computed by then.
        """
        self.check_output_type(output_type)
        on_step_end = self.prepare_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        shape = self.prepare_shape(height, width)
        scheduler, diffusion = self.prepare_steps(num_inference_steps, timesteps)
        begin_index = self.prepare_begin_index(image, strength, latents, scheduler)
        image, labels, batch_size = self.prepare_images_and_labels(image, class_labels, batch_size, shape)
        guidance = self.prepare_guidance(guidance, labels, classifier_scale, batch_size, shape, scheduler)
        latents = self.prepare_latents(batch_size, generator, latents, shape)  # last: it draws noise
        take_step, timesteps = ddpm_steps(diffusion, guidance), diffusion.timesteps[begin_index:].tolist()
        if begin_index > 0:
            latents = diffusion.q_sample(image, latents, timesteps[0])
        sample, cost = self.denoise(latents, take_step, diffusion, timesteps, guidance, labels, generator, on_step_end)
        return self.finish(sample, output_type, return_dict, cost)
