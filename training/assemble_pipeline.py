"""Puts a trained unet and, as a rule, a trained classifier together into one pipeline folder.

    python training/assemble_pipeline.py --unet my-unet --classifier my-classifier --output_dir my-pipeline

`ClassifierGuidedDDPMPipeline` and `ClassifierGuidedDDIMPipeline` both load that folder. Of an upsampling unet (one trained
with `--low_res_size`) and a classifier at its high resolution it becomes a `ClassifierGuidedSuperResolutionPipeline`.
What their runs tell in `training.json` comes along, for the model card.
"""

import argparse
from pathlib import Path

from diffusers import DDPMScheduler

from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
    NoisyClassifierModel,
)
from diffusers_cg.data.files import atomic_directory
from diffusers_cg.errors import InputError
from diffusers_cg.models import DTYPES
from diffusers_cg.training.run_facts import assembled_facts, write_facts
from diffusers_cg_cli.command import command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unet", type=Path, required=True, help="Output folder of train_unet.py.")
    parser.add_argument("--classifier", type=Path, help="Output folder of train_classifier.py.")
    parser.add_argument(
        "--output_dir", type=Path, required=True, help="Folder to write; a pipeline that is there is replaced."
    )
    parser.add_argument(
        "--unconditional_unet",
        type=Path,
        help="Output folder of train_unet.py --no-class_conditional, kept beside as `unet_unconditional`.",
    )
    parser.add_argument("--dtype", choices=DTYPES, default="fp32", help="Precision of the stored weights.")
    parser.add_argument("--ddpm_num_inference_steps", type=int, default=250, help="Default steps, saved.")
    parser.add_argument("--ddpm_classifier_scale", type=float, default=1.0, help="Default scale, saved.")
    parser.add_argument("--ddim_num_inference_steps", type=int, default=25, help="Default steps, saved.")
    parser.add_argument("--ddim_classifier_scale", type=float, default=1.0, help="Default scale, saved.")
    return parser.parse_args(argv)


@command
def main(args: argparse.Namespace) -> None:
    dtype = DTYPES[args.dtype]
    for flag, folder in (("unet", args.unet), ("unconditional_unet", args.unconditional_unet)):
        if folder is not None and not (folder / "unet" / "config.json").is_file():
            raise InputError(
                f"--{flag} {folder} is not an output folder of train_unet.py (it has no unet/config.json)."
            )
    if args.classifier is not None and not (args.classifier / "config.json").is_file():
        raise InputError(
            f"--classifier {args.classifier} is not an output folder of train_classifier.py (it has no config.json)."
        )
    unet = ADMUNet2DModel.from_pretrained(args.unet, subfolder="unet", torch_dtype=dtype)
    classifier = None
    if args.classifier is not None:
        classifier = NoisyClassifierModel.from_pretrained(args.classifier, torch_dtype=dtype)
    pipeline_class, facts = ClassifierGuidedDDPMPipeline, {}
    if unet.config.low_res_channels:
        pipeline_class = ClassifierGuidedSuperResolutionPipeline
        facts["low_res_size"] = pipeline_class.load_config(args.unet).get("low_res_size")
    pipe = pipeline_class(
        unet,
        DDPMScheduler.from_pretrained(args.unet, subfolder="scheduler"),
        classifier,
        ddpm_num_inference_steps=args.ddpm_num_inference_steps,
        ddpm_classifier_scale=args.ddpm_classifier_scale,
        ddim_num_inference_steps=args.ddim_num_inference_steps,
        ddim_classifier_scale=args.ddim_classifier_scale,
        **facts,
    )
    networks = {
        "unet": (args.unet, "unet"),
        "classifier": (args.classifier, "classifier"),
        "unet_unconditional": (args.unconditional_unet, "unet"),
    }
    runs = assembled_facts({name: where for name, where in networks.items() if where[0] is not None})
    with atomic_directory(args.output_dir, replaces="model_index.json") as directory:
        pipe.save_pretrained(directory)
        if args.unconditional_unet is not None:
            unconditional = ADMUNet2DModel.from_pretrained(
                args.unconditional_unet, subfolder="unet", torch_dtype=dtype
            )
            unconditional.save_pretrained(directory / "unet_unconditional")
        write_facts(directory, runs)
    print(f"Saved {args.output_dir}.")


if __name__ == "__main__":
    main(parse_args())
