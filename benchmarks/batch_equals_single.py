"""How much an image depends on the batch that it is drawn in: same seed, alone and as one of eight.

    python benchmarks/batch_equals_single.py

prints the largest difference of a pixel in [-1, 1], over all eight images, for both pipelines and both unets.
"""

import torch

from diffusers_cg import DIGITS, ADMUNet2DModel, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline
from diffusers_cg.generation import draw_images


BATCH_SIZE = 8


def main() -> None:
    print("| unet | sampler | largest difference |\n| --- | --- | --- |")
    for unet_name, folder in (("conditional", "unet"), ("unconditional", "unet_unconditional")):
        for sampler_name, pipeline_class in (
            ("DDIM", ClassifierGuidedDDIMPipeline),
            ("DDPM", ClassifierGuidedDDPMPipeline),
        ):
            unet = ADMUNet2DModel.from_pretrained(DIGITS, subfolder=folder)
            pipe = pipeline_class.from_pretrained(DIGITS, unet=unet, solver=None)
            pipe.set_progress_bar_config(disable=True)

            alone, together = (
                torch.cat(
                    list(
                        draw_images(
                            pipe,
                            range(BATCH_SIZE),
                            [torch.Generator().manual_seed(number) for number in range(BATCH_SIZE)],
                            batch_size,
                            classifier_scale=3.0,
                            output_type="latent",
                        )
                    )
                )
                for batch_size in (1, BATCH_SIZE)
            )
            steps = pipe.num_timesteps
            print(f"| {unet_name} | {sampler_name} {steps} | {(together - alone).abs().max():.1e} |", flush=True)


if __name__ == "__main__":
    main()
