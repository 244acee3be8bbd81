"""Images noised and denoised: what a perturbation added is taken away."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from diffusers_cg.diffusion import Generators
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import Guidance, GuidanceFunction


class PurificationMixin:
    """For pipelines that start from an `image` at a `strength`."""

    def purify(
        self,
        image: torch.Tensor,
        strength: float,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        num_inference_steps: int | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor = 0.0,
        guidance: Guidance | GuidanceFunction | None = None,
        generator: Generators = None,
        checkpointing: bool = True,
    ) -> torch.Tensor:
        """Noises images and denoises them (*Diffusion Models for Adversarial Purification*, Nie et al., 2022).

        Where gradients are on, the result has one in `image`, as of [`ClassifierGuidedPipeline.differentiable`].

        Args:
            image (`torch.Tensor`): (B, C, H, W) in [0, 1], of a size that the unet takes.
            strength (`float`): t* of the paper: the share of the steps that is taken, the last ones, above 0 and up to 1, at
                which nothing is left of the image. The steps are DDPM's or DDIM's.
            class_labels (`int`, sequence of `int` or `torch.Tensor`, *optional*): As of a call.
            num_inference_steps (`int`, *optional*): Of which `strength` is the share; the saved default otherwise.
            classifier_scale, guidance, generator: As of a call; not guided unless asked.
            checkpointing (`bool`): As of [`ClassifierGuidedPipeline.differentiable`].

        Returns:
            `torch.Tensor`: (B, C, H, W) in [0, 1], float32.

        Raises:
            InputError: if an input is out of range or missing; nothing has been computed by then.
        """
        if not isinstance(image, torch.Tensor) or image.ndim != 4:
            raise InputError("`image` must be a torch.Tensor of shape (batch, channels, height, width).")
        # steps that have a gradient, whether one is asked for or not
        options = {"eta": 0.0} if self.algorithm == "ddim" else {}
        has_gradient = torch.is_grad_enabled() and image.requires_grad
        with self.differentiable(checkpointing) if has_gradient else nullcontext():
            return self(
                class_labels,
                num_inference_steps=num_inference_steps,
                classifier_scale=classifier_scale,
                guidance=guidance,
                generator=generator,
                image=image,
                strength=strength,
                output_type="pt",
                height=image.shape[2],
                width=image.shape[3],
                **options,
            ).images
