"""How much an image depends on the batch that it is drawn in: same seed, alone and as one of eight.

    python benchmarks/batch_equals_single.py

prints the largest difference of a pixel in [-1, 1], over all eight images, for both pipelines and both unets.
"""

import torch

from diffusers_cg import DIGITS, ADMUNet2DModel, ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline


BATCH_SIZE = 8


def main() -> None:
    print("| unet | sampler | largest difference |\n| --- | --- | --- |")
    for unet_name, folder in (("conditional", "unet"), ("unconditional", "unet_unconditional")):
        for sampler_name, pipeline_class in (
            ("DDIM", ClassifierGuidedDDIMPipeline),
            ("DDPM", ClassifierGuidedDDPMPipeline),
        ):
            unet = ADMUNet2DModel.from_pretrained(DIGITS, subfolder=folder)
            pipe = pipeline_class.from_pretrained(DIGITS, unet=unet)
            pipe.set_progress_bar_config(disable=True)

            def draw(numbers, pipe=pipe):
                return pipe(
                    class_labels=list(numbers),
                    classifier_scale=3.0,
                    generator=[torch.Generator().manual_seed(number) for number in numbers],
                    output_type="latent",
                ).images

            together = draw(range(BATCH_SIZE))
            alone = torch.cat([draw([number]) for number in range(BATCH_SIZE)])
            steps = pipe.num_timesteps
            print(f"| {unet_name} | {sampler_name} {steps} | {(together - alone).abs().max():.1e} |", flush=True)


if __name__ == "__main__":
    main()
