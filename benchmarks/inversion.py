"""How exactly DDIM inversion leads back: held-out real digits to latents and back, by number of steps.

    python benchmarks/inversion.py

prints the mean and the largest absolute error of a pixel in [0, 1], for the conditional unet that ships.
"""

import torch
from digits_judge import real_digits

from diffusers_cg import DIGITS, ClassifierGuidedDDIMPipeline


NUM_IMAGES = 50


def main() -> None:
    images, labels = real_digits()["test"]
    images = torch.from_numpy(images[:NUM_IMAGES]).permute(0, 3, 1, 2).float()
    labels = labels[:NUM_IMAGES].tolist()
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(DIGITS, solver=None)
    pipe.set_progress_bar_config(leave=False)
    print("| steps | mean error | largest error |\n| --- | --- | --- |")
    for steps in (10, 25, 50, 100, 250):
        latents = pipe.invert(images, class_labels=labels, num_inference_steps=steps)
        reconstructed = pipe(
            class_labels=labels, num_inference_steps=steps, classifier_scale=0.0, latents=latents, output_type="pt"
        ).images
        error = (reconstructed - images).abs()
        print(f"| {steps} | {error.mean():.4f} | {error.max():.3f} |", flush=True)


if __name__ == "__main__":
    main()
