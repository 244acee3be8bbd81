"""`diffusers-cg nll`: bits per dimension of images."""

from pathlib import Path

from pydantic import PositiveInt

from diffusers_cg_cli.shared import BatchSettings


class NLLSettings(BatchSettings):
    """Measures bits per dimension of images by the variational bound: nll.json, terms.npz and nll.png.

    Images are resized and cropped in the middle as for training.
    """

    data: Path
    """Folder of images; of a subfolder per class if the unet is conditional."""

    output: Path
    """Folder to write; a report that is there is replaced."""

    num_inference_steps: PositiveInt | None = None
    """Timesteps of the process; all by default."""


def run(settings: NLLSettings) -> None:
    from diffusers_cg.evaluation.bits_per_dimension import likelihood_to_folder

    likelihood = likelihood_to_folder(
        settings.output,
        settings.model,
        settings.data,
        settings.num_inference_steps,
        settings.seed,
        settings.batch_size,
        settings.device,
    )
    print(
        f"{likelihood.bits_per_dimension:.4f} bits per dimension (standard error {likelihood.standard_error:.4f}), "
        f"{likelihood.num_images} images, {likelihood.num_timesteps} timesteps."
    )
    print(f"Saved {settings.output}.")
