"""Puts a trained unet and, as a rule, a trained classifier together into one pipeline folder.

    python training/assemble_pipeline.py --unet my-unet --classifier my-classifier --output_dir my-pipeline

`ClassifierGuidedDDPMPipeline` and `ClassifierGuidedDDIMPipeline` both load that folder; the latter draws by its `--solver`, the
stochastic DPM-Solver++ unless you name another, which was best in few steps (benchmarks/README.md), and by DDIM where it is loaded with
`solver=None`. Of an upsampling unet (one trained with `--low_res_size`) and a classifier at its high resolution it becomes a
`ClassifierGuidedSuperResolutionPipeline`. What their trainings tell in `training.json` comes along, for the model card.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from diffusers import DDPMScheduler
from pydantic import Field, FiniteFloat, PositiveInt

from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
    NoisyClassifierModel,
)
from diffusers_cg.data.files import atomic_directory
from diffusers_cg.diffusion import check_trained_process, to_ddim_scheduler
from diffusers_cg.errors import InputError
from diffusers_cg.generation import SchedulerChoice
from diffusers_cg.models import DTYPES
from diffusers_cg.training.record import assembled_record, write_record
from diffusers_cg_cli.command import command
from diffusers_cg_cli.settings import Settings, parse


class AssembleSettings(Settings):
    unet: Path
    """Output folder of train_unet.py."""
    output_dir: Path
    """Folder to write; a pipeline that is there is replaced."""
    classifier: Path | None = None
    """Output folder of train_classifier.py."""
    unconditional_unet: Path | None = None
    """Output folder of train_unet.py --no-class_conditional, kept beside as `unet_unconditional`."""
    dtype: Literal[tuple(DTYPES)] = "fp32"
    """Precision of the stored weights."""
    ddpm_num_inference_steps: PositiveInt = 250
    """Default steps, saved."""
    ddpm_classifier_scale: FiniteFloat = 1.0
    """Default scale, saved."""
    ddim_num_inference_steps: PositiveInt = 25
    """Default steps, saved."""
    ddim_classifier_scale: FiniteFloat = 1.0
    """Default scale, saved."""
    solver: Annotated[list[str], Field(min_length=1)] = [
        "DPMSolverMultistepScheduler",
        "algorithm_type=sde-dpmsolver++",
    ]
    """Class of diffusers, or EDMHeunScheduler, that ClassifierGuidedDDIMPipeline draws with, then its options, saved; DDIMScheduler
    for the paper's. An upsampler has it for sample --sampler solver."""
    solver_num_inference_steps: PositiveInt = 25
    """Default steps of the solver, saved."""


@command
def parse_args(argv: Sequence[str] | None = None) -> AssembleSettings:
    return parse(AssembleSettings, argv, description=__doc__)


@command
def main(settings: AssembleSettings) -> None:
    dtype = DTYPES[settings.dtype]
    for flag, folder in (("unet", settings.unet), ("unconditional_unet", settings.unconditional_unet)):
        if folder is not None and not (folder / "unet" / "config.json").is_file():
            raise InputError(
                f"--{flag} {folder} is not an output folder of train_unet.py (it has no unet/config.json)."
            )
    if settings.classifier is not None and not (settings.classifier / "config.json").is_file():
        raise InputError(
            f"--classifier {settings.classifier} is not an output folder of train_classifier.py (it has no config.json)."
        )
    unet = ADMUNet2DModel.from_pretrained(settings.unet, subfolder="unet", torch_dtype=dtype)
    classifier = None
    if settings.classifier is not None:
        classifier = NoisyClassifierModel.from_pretrained(settings.classifier, torch_dtype=dtype)
    pipeline_class, own = ClassifierGuidedDDPMPipeline, {}
    if unet.config.low_res_channels:
        pipeline_class = ClassifierGuidedSuperResolutionPipeline
        own["low_res_size"] = pipeline_class.load_config(settings.unet).get("low_res_size")
    scheduler = DDPMScheduler.from_pretrained(settings.unet, subfolder="scheduler")
    pipe = pipeline_class(
        unet,
        scheduler,
        classifier,
        solver=SchedulerChoice.parse(settings.solver).of(to_ddim_scheduler(scheduler)),
        ddpm_num_inference_steps=settings.ddpm_num_inference_steps,
        ddpm_classifier_scale=settings.ddpm_classifier_scale,
        ddim_num_inference_steps=settings.ddim_num_inference_steps,
        ddim_classifier_scale=settings.ddim_classifier_scale,
        solver_num_inference_steps=settings.solver_num_inference_steps,
        **own,
    )
    unconditional = None
    if settings.unconditional_unet is not None:
        unconditional = ADMUNet2DModel.from_pretrained(
            settings.unconditional_unet, subfolder="unet", torch_dtype=dtype
        )
        check_trained_process(pipe.scheduler, unet_unconditional=unconditional)
    networks = {
        "unet": (settings.unet, "unet"),
        "classifier": (settings.classifier, "classifier"),
        "unet_unconditional": (settings.unconditional_unet, "unet"),
    }
    records = assembled_record({name: where for name, where in networks.items() if where[0] is not None})
    with atomic_directory(settings.output_dir, replaces="model_index.json") as directory:
        pipe.save_pretrained(directory)
        if unconditional is not None:
            unconditional.save_pretrained(directory / "unet_unconditional")
        write_record(directory, records)
    print(f"Saved {settings.output_dir}.")


if __name__ == "__main__":
    main(parse_args())
