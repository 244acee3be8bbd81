"""Classifier-guided DDIM sampling, Algorithm 2 of *Diffusion Models Beat GANs on Image Synthesis*."""

import inspect
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from diffusers import SchedulerMixin, UNet2DModel
from diffusers.image_processor import PipelineImageInput

from diffusers_cg.diffusion import (
    GaussianDiffusion,
    Generators,
    is_ancestral,
    resolve_begin_index,
    scheduler_on_guided_noise,
    to_ddim_scheduler,
    to_ddpm_scheduler,
    warn_of_amplification,
)
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import Guidance, GuidanceFunction, GuidanceSum, GuidedStep
from diffusers_cg.pipelines.differentiable_sampling import without_graph
from diffusers_cg.pipelines.pipeline_classifier_guided import (
    DEFAULT_STRENGTH,
    Callback,
    ClassifierGuidedPipeline,
    GuidedImagePipelineOutput,
    TakeStep,
    check_generator,
    predicts_variance,
)
from diffusers_cg.pipelines.purification import PurificationMixin
from diffusers_cg.pipelines.restoration import RestorationMixin


def ddim_steps(
    scheduler: SchedulerMixin,
    diffusion: GaussianDiffusion,
    guidance: GuidanceSum,
    eta: float,
    generator: Generators,
    begin_index: int = 0,
) -> TakeStep:
    """The steps of Algorithm 2: the scheduler's own, on eps - sqrt(1 - abar_t) s grad log p(y|x_t).

    The noise follows from the clipped image, and is not clipped again once it is guided. The scheduler is the call's own, and
    is changed. The first step is taken from the timestep at `begin_index`.
    """
    if guidance.guidances and begin_index == 0:
        warn_of_amplification(diffusion)
    accepted = inspect.signature(scheduler.step).parameters  # by the scheduler's own
    scheduler = scheduler_on_guided_noise(scheduler, diffusion, begin_index)
    options = {name: value for name, value in (("eta", eta), ("generator", generator)) if name in accepted}

    def take_step(step: GuidedStep) -> torch.Tensor:
        gradient = guidance(step)  # s grad log p(y | x_t)
        noise = diffusion.predict_noise(step.pred_original_sample, step.sample, step.timestep)
        noise = noise - diffusion.coefficient("sqrt_one_minus_abar", step.timestep, step.sample) * gradient
        timestep = scheduler.timesteps[begin_index + step.index]
        return scheduler.step(noise, timestep, step.sample, **options).prev_sample

    return take_step


class ClassifierGuidedDDIMPipeline(RestorationMixin, PurificationMixin, ClassifierGuidedPipeline):
    r"""Samples by DDIM on guided noise: eps - sqrt(1 - abar_t) s grad log p(y|x_t).

    The guidance lives in noise space, so `scheduler` may be any scheduler of diffusers that steps on noise and keeps variance
    (DPM-Solver++, UniPC, DEIS, PNDM), whatever the unet predicts.

    Args:
        unet ([`ADMUNet2DModel`] or `UNet2DModel`): Predicts the noise, the clean image or v, as the scheduler's
            `prediction_type` says; class-conditional or not.
        scheduler (`SchedulerMixin`): Noise schedule and steps; in place of a `DDPMScheduler` stands `solver`, or else a
            `DDIMScheduler` of the same schedule, so that one saved folder serves this pipeline and
            [`ClassifierGuidedDDPMPipeline`].
        classifier ([`NoisyClassifierModel`], *optional*): Guides; without it only `classifier_scale=0` is possible.
        solver (`SchedulerMixin`, *optional*): What was found to draw best in few steps. `from_pretrained(..., solver=None)`
            draws by DDIM, the paper's sampler, and so does a call with `eta=0`; [`invert`], [`edit`], [`restore`], [`purify`]
            and gradients take its steps whatever the scheduler.
        ddpm_num_inference_steps, ddim_num_inference_steps, solver_num_inference_steps (`int`): Steps of a `DDPMScheduler`, a
            `DDIMScheduler` and any other where a call names none.
        ddpm_classifier_scale, ddim_classifier_scale (`float`): Scale where a call names none and there is a classifier.

    Raises:
        InputError: if the channels, the image size, or the number or names of the classes of unet and classifier differ,
            or the scheduler does not keep variance.
    """

    algorithm = "ddim"

    def convert_scheduler(self, scheduler: SchedulerMixin, unet: UNet2DModel) -> SchedulerMixin:
        """The solver, or a `DDIMScheduler` of the same noise schedule, for a `DDPMScheduler`; any other as it is."""
        if self.solver is not None and is_ancestral(scheduler):
            return self.solver
        return to_ddim_scheduler(scheduler)

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **options: Any) -> None:
        """As of any pipeline; a solver that draws is saved as `solver` alone, beside a `DDPMScheduler`, so that DDIM can be had, too."""
        scheduler = self.scheduler
        if scheduler is self.solver:
            self.register_modules(scheduler=to_ddpm_scheduler(scheduler, predicts_variance(self.unet)))
        try:
            super().save_pretrained(save_directory, *args, **options)
        finally:
            self.register_modules(scheduler=scheduler)

    @without_graph
    def __call__(
        self,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None = None,
        guidance: Guidance | GuidanceFunction | None = None,
        eta: float | None = None,
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
            eta (`float`, *optional*): Takes the steps of DDIM, and adds noise at each: from 0, none, to 1, as much as DDPM adds.
                Otherwise the pipeline's scheduler takes its own.
            class_labels, num_inference_steps, timesteps, classifier_scale, guidance, batch_size, generator, latents, image,
                strength, output_type, height, width, return_dict, callback_on_step_end,
                callback_on_step_end_tensor_inputs: as in [`ClassifierGuidedDDPMPipeline.__call__`].

        Returns:
            [`GuidedImagePipelineOutput`] or `tuple`: `.images`; `.evaluations`, what they cost.

        Raises:
            InputError: if an input is out of range or missing; nothing has been computed by then.
        """
        self.check_output_type(output_type)
        on_step_end = self.prepare_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        shape = self.prepare_shape(height, width)
        scheduler, diffusion = self.prepare_steps(num_inference_steps, timesteps, eta)
        begin_index = self.prepare_begin_index(image, strength, latents, scheduler)
        image, labels, batch_size = self.prepare_images_and_labels(image, class_labels, batch_size, shape)
        guidance = self.prepare_guidance(guidance, labels, classifier_scale, batch_size, shape, scheduler, eta)
        latents = self.prepare_latents(batch_size, generator, latents, shape)  # last: it draws noise
        timesteps = scheduler.timesteps[begin_index:].tolist()
        if begin_index > 0:
            latents = diffusion.q_sample(image, latents, timesteps[0])
        take_step = ddim_steps(scheduler, diffusion, guidance, eta or 0.0, generator, begin_index)
        sample, cost = self.denoise(
            latents, take_step, diffusion, timesteps, guidance, labels, generator, on_step_end, order=scheduler.order
        )
        return self.finish(sample, output_type, return_dict, cost)

    @torch.no_grad()
    def invert(
        self,
        image: PipelineImageInput,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        height: int | None = None,
        width: int | None = None,
    ) -> torch.Tensor:
        """Runs DDIM backwards, without guidance, from images to the noise that gives them back.

        `pipe(class_labels, num_inference_steps, classifier_scale=0, eta=0, latents=pipe.invert(...))` reconstructs the images,
        the better the more steps there are. With `timesteps` that begin below the last one, images are encoded to that
        noise level alone, the sample from which a call with the same timesteps starts.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): In the model's channels and size;
                arrays (B, H, W, C) and tensors (B, C, H, W) in [0, 1].
            class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): Class per image; needed by a
                class-conditional unet.
            num_inference_steps (`int`, *optional*): Steps; the saved default of DDIM otherwise.
            timesteps (sequence of `int`, *optional*): The timesteps of sampling, decreasing, in place of a number.
            height, width (`int`, *optional*): Of the images, where they are not of the unet's training size.

        Returns:
            `torch.Tensor`: Latents (B, C, H, W), float32.

        Raises:
            InputError: if an input is out of range or missing; nothing has been computed by then.
        """
        shape = self.prepare_shape(height, width)
        scheduler, diffusion = self.prepare_steps(num_inference_steps, timesteps, eta=0.0)
        sample = self.prepare_image(image, shape)
        labels = self.prepare_class_labels(class_labels, len(sample))
        self.prepare_guidance(None, labels, 0.0, len(sample), shape, scheduler)  # says what is missing
        upwards = diffusion.timesteps.tolist()[::-1]
        if timesteps is not None:
            upwards.pop()  # of a number of steps, one more leads from the last timestep to pure noise, as the reference's
        sample = self.encode(sample, labels, upwards, diffusion)
        self.maybe_free_model_hooks()
        return sample

    def encode(
        self,
        sample: torch.Tensor,
        class_labels: torch.Tensor | None,
        timesteps: Sequence[int],
        diffusion: GaussianDiffusion,
    ) -> torch.Tensor:
        """DDIM backwards: from each of the timesteps, rising, to the next of the process."""
        for _, t in self.progress(torch.tensor(timesteps, device=sample.device)):
            original = self.predict(sample, t, class_labels, diffusion=diffusion).pred_original_sample
            noise = diffusion.predict_noise(original, sample, t)
            sample = (
                diffusion.coefficient("sqrt_abar_next", t, sample) * original
                + diffusion.coefficient("sqrt_one_minus_abar_next", t, sample) * noise
            )
        return sample

    @torch.inference_mode(False)  # a guidance may want gradients
    @torch.no_grad()
    def edit(
        self,
        image: PipelineImageInput,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inversion_steps: int | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None = None,
        strength: float = DEFAULT_STRENGTH,
        source_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        guidance: Guidance | GuidanceFunction | None = None,
        eta: float | None = None,
        batch_size: int | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        height: int | None = None,
        width: int | None = None,
        return_dict: bool = True,
        callback_on_step_end: Callback | None = None,
        callback_on_step_end_tensor_inputs: list[str] = ["latents"],  # noqa: B006 (diffusers' convention, not changed)
    ) -> GuidedImagePipelineOutput | tuple:
        """Makes images into what they would be in another class: encodes them to a noise level by DDIM inversion, and
        decodes them from there under `class_labels`, guided.

        What the class has no say in stays, as no noise is drawn: a counterfactual, or, guided to the class "healthy", the
        image without what is abnormal (*Diffusion Models for Medical Anomaly Detection*, Wolleb et al., 2022, with 500 of
        1,000 steps). The map of the anomaly is the difference:
        `(pipe.edit(image, healthy, output_type="pt").images - image).abs().sum(dim=1)`.

        Args:
            image (`PIL.Image.Image`, `np.ndarray`, `torch.Tensor` or a list of them): One, for all labels, or one per
                image; in the model's channels and size; arrays (B, H, W, C) and tensors (B, C, H, W) in [0, 1].
            class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): What the images are to be.
            num_inversion_steps (`int`, *optional*): Steps in which whole images would be encoded to noise, of which those
                below the noise level are taken; as many as `num_inference_steps` otherwise.
            classifier_scale (`float` or one per image, *optional*): s of the paper; 0 reconstructs, the better the more
                steps there are, if the class is that of the image.
            strength (`float`): The noise level: the share of the decoding steps that are taken, above 0 and up to 1.
            source_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): What the images are, one or one for each
                of `image`: needed by a class-conditional unet, of no use to another.
            eta (`float`, *optional*): Noise of the decoding's steps, 0 unless given.
            num_inference_steps, guidance, batch_size, generator, output_type, height, width, return_dict,
                callback_on_step_end, callback_on_step_end_tensor_inputs: as in [`__call__`], for the decoding by DDIM's steps.

        Returns:
            [`GuidedImagePipelineOutput`] or `tuple`: `.images`; `.evaluations`, what they cost, with the inversion.

        Raises:
            InputError: if an input is out of range or missing; nothing has been computed by then.
        """
        self.check_output_type(output_type)
        on_step_end = self.prepare_callback(callback_on_step_end, callback_on_step_end_tensor_inputs)
        shape = self.prepare_shape(height, width)
        scheduler, diffusion = self.prepare_steps(num_inference_steps, None, eta or 0.0)
        begin_index = resolve_begin_index(scheduler, strength)
        timesteps = scheduler.timesteps[begin_index:].tolist()
        if num_inversion_steps is None:
            num_inversion_steps = num_inference_steps
        _, inversion = self.prepare_steps(num_inversion_steps, None, eta=0.0)
        upwards = inversion.timesteps[inversion.timesteps < timesteps[0]].flip(0).tolist()
        inversion = GaussianDiffusion.from_scheduler(scheduler, [timesteps[0], *upwards[::-1]])
        images = self.prepare_image(image, shape)
        source_labels = self.prepare_class_labels(source_labels, len(images), "source_labels")
        if source_labels is None and self.needs_class:
            raise InputError(
                "`source_labels` are missing: the class-conditional unet encodes each image as of its class."
            )
        _, labels, batch_size = self.prepare_images_and_labels(image, class_labels, batch_size, shape)
        guidance = self.prepare_guidance(guidance, labels, classifier_scale, batch_size, shape, scheduler, eta)
        check_generator(generator, batch_size)

        latents = self.encode(images, source_labels, upwards, inversion).expand(batch_size, -1, -1, -1)
        take_step = ddim_steps(scheduler, diffusion, guidance, eta or 0.0, generator, begin_index)
        sample, cost = self.denoise(latents, take_step, diffusion, timesteps, guidance, labels, generator, on_step_end)
        cost["unet"] += len(upwards)
        return self.finish(sample, output_type, return_dict, cost)
