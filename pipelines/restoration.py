"""Images from measurements of them: the `restore` of the pipelines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from diffusers.image_processor import PipelineImageInput

from diffusers_cg.diffusion import Generators
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import (
    DDNMGuidance,
    DiffPIRGuidance,
    DPSGuidance,
    Guidance,
    GuidanceFunction,
    PiGDMGuidance,
    RestorationGuidance,
)
from diffusers_cg.pipelines.image_inputs import images_to_tensor
from diffusers_cg.pipelines.pipeline_classifier_guided import GuidedImagePipelineOutput
from diffusers_cg.restoration import FunctionOperator, LinearOperator


@dataclass(frozen=True)
class RestorationMethod:
    """A method's guidance, and what its authors set.

    Args:
        guidance (`type[RestorationGuidance]`).
        num_inference_steps (`int`).
        eta (`float`, *optional*): Under Algorithm 2; None where the method has none.
        algorithms (`tuple[str, ...]`): Under which it runs.
    """

    guidance: type[RestorationGuidance]
    num_inference_steps: int
    eta: float | None
    algorithms: tuple[str, ...] = ("ddpm", "ddim")

    def steps(self, scheduler: SchedulerMixin) -> int:
        """Steps where a call names none: no more than the unet was trained with."""
        return min(self.num_inference_steps, scheduler.config.num_train_timesteps)


RESTORATION_METHODS = {
    "dps": RestorationMethod(DPSGuidance, 1000, 1.0),
    "ddnm": RestorationMethod(DDNMGuidance, 100, 0.85),
    "diffpir": RestorationMethod(DiffPIRGuidance, 100, None, ("ddim",)),
    "pigdm": RestorationMethod(PiGDMGuidance, 100, 1.0),
}


class RestorationMixin:
    """What gives a pipeline `restore`."""

    def restore(
        self,
        measurement: PipelineImageInput,
        operator: LinearOperator | Callable[[torch.Tensor], torch.Tensor],
        method: str = "ddnm",
        noise_std: float = 0.0,
        class_labels: int | Sequence[int] | torch.Tensor | None = None,
        classifier_scale: float | Sequence[float] | torch.Tensor | None = None,
        guidance: Guidance | GuidanceFunction | None = None,
        num_inference_steps: int | None = None,
        eta: float | None = None,
        generator: Generators = None,
        output_type: str = "pil",
        return_dict: bool = True,
        **of_method: Any,
    ) -> GuidedImagePipelineOutput | tuple:
        """Draws images x of which y = A x + noise was measured: a call that is guided by [`RestorationGuidance`].

        Args:
            measurement (`torch.Tensor` or images): y, one per image: a tensor (B, ...) of what `operator` makes of images in
                [-1, 1]; or, where that has channels, height and width, PIL images or arrays (B, H, W, C) in [0, 1]. One
                measurement serves for as many images as there are `class_labels`.
            operator ([`LinearOperator`] or callable): A, of diffusers_cg.restoration, or a linear function of images (B, C,
                H, W), whose adjoint is found by autograd.
            method (`str`): `"ddnm"`, `"diffpir"` (Algorithm 2 alone), `"pigdm"` or `"dps"`.
            noise_std (`float`): Of the measurement, in its units: twice that of images in [0, 1].
            class_labels, classifier_scale, guidance, generator, output_type, return_dict: as in `__call__`, beside the
                measurement; the scale is 0 unless given.
            num_inference_steps (`int`, *optional*): 100, and 1,000 for DPS, or as many as the unet was trained with.
            eta (`float`, *optional*): Of the DDIM pipeline: 1 for DPS and PiGDM; 0.85 of DDNM's own for DDNM; DiffPIR has
                `zeta` in its place.
            of_method: Further arguments of the method's guidance: `scale` of DPS and PiGDM, `data_std` of PiGDM, `zeta` and
                `prior_weight` of DiffPIR.

        Returns:
            As `__call__`. Without noise, DDNM's and DiffPIR's images keep what is known; what a mask knows, to the bit.

        Raises:
            InputError: if an input is out of range or missing, the measurement is of another shape than A leads to, or the
                operator's adjoint is not that of A; nothing has been computed by then.
        """
        if method not in RESTORATION_METHODS:
            raise InputError(f"`method` must be one of {', '.join(RESTORATION_METHODS)}, got {method!r}.")
        chosen = RESTORATION_METHODS[method]
        if self.algorithm not in chosen.algorithms:
            raise InputError(f"{method} takes the steps of DDIM: use ClassifierGuidedDDIMPipeline.")
        if method == "ddnm" and noise_std > 0 and self.algorithm == "ddpm":
            raise InputError("ddnm of a noisy measurement takes the steps of DDIM: use ClassifierGuidedDDIMPipeline.")
        if eta is not None and (chosen.eta is None or self.algorithm == "ddpm"):
            raise InputError(f"{method} has no `eta` in this pipeline: leave it out.")
        if num_inference_steps is None:
            num_inference_steps = chosen.steps(self.scheduler)
        eta = chosen.eta if eta is None else eta
        if method == "ddnm":
            of_method = {"eta": eta if self.algorithm == "ddim" else None, **of_method}

        if not isinstance(operator, LinearOperator) and callable(operator):
            operator = FunctionOperator(operator, image_shape=self.prepare_shape())
        measurement = self.prepare_measurement(measurement, operator)
        options = {}
        if self.algorithm == "ddim":  # the steps that the methods are defined on
            options["eta"] = eta if method in ("dps", "pigdm") else 0.0
        by_measurement = chosen.guidance(operator, measurement, noise_std, **of_method)
        return self(
            class_labels,
            batch_size=len(measurement) if len(measurement) > 1 else None,
            guidance=by_measurement if guidance is None else by_measurement + guidance,
            classifier_scale=classifier_scale,
            num_inference_steps=num_inference_steps,
            generator=generator,
            output_type=output_type,
            return_dict=return_dict,
            **options,
        )

    def prepare_measurement(self, measurement: PipelineImageInput, operator: LinearOperator) -> torch.Tensor:
        """What was measured, (B, ...), float32, on the execution device: tensors as they are, images in [-1, 1].

        Raises:
            InputError: if it is neither, or images where what the operator measures are none.
        """
        if isinstance(measurement, torch.Tensor):
            if measurement.ndim < 2 or len(measurement) == 0:
                raise InputError(
                    f"`measurement` must be one per image, a tensor (B, ...), got shape {tuple(measurement.shape)}."
                )
            return measurement.to(self._execution_device)
        with torch.no_grad():
            shape = tuple(
                operator.forward(torch.zeros(1, *self.prepare_shape(), device=self._execution_device)).shape[1:]
            )
        if len(shape) != 3 and not isinstance(measurement, np.ndarray):
            raise InputError(
                f"{operator.name} does not measure images, but {shape}: pass a tensor (B, {', '.join(map(str, shape))})."
            )
        return images_to_tensor(measurement, shape).to(self._execution_device)
