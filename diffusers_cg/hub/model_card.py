"""Model cards: what a person should know before using a folder of weights."""

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData


OPENAI_CARD = """
# {title}

{description}

```python
{snippet}
```

## Intended use

OpenAI released these weights for research on generative models: to study what such models can do, how they fail, and
what their samples reveal. They are not meant for deployment, in a product or a service, and were not evaluated for it.

## Limits

- The models were trained on {data}, and reproduce its biases and gaps.{people}
- Guidance trades diversity for fidelity: at a high scale the samples of a class look alike.
- Samples can resemble training images, and carry no mark that they are generated.

## Origin

*Diffusion Models Beat GANs on Image Synthesis* (Dhariwal and Nichol, 2021, arXiv 2105.05233), converted from
{files} of https://github.com/openai/guided-diffusion by diffusers-cg. The weights are unchanged{dtype}.
"""

SNIPPET = """import torch
from diffusers_cg import ClassifierGuidedDDPMPipeline

pipe = ClassifierGuidedDDPMPipeline.from_pretrained("{path}"){to_cuda}
images = pipe({call}, generator=torch.manual_seed(0)).images"""

UPSAMPLING_SNIPPET = """import torch
from diffusers_cg import ClassifierGuidedSuperResolutionPipeline
from PIL import Image

pipe = ClassifierGuidedSuperResolutionPipeline.from_pretrained("{path}"){to_cuda}
low = Image.open("low.png").convert("RGB")  # {low_res_size}x{low_res_size}, drawn or scaled down
images = pipe(image=low, {call}, generator=torch.manual_seed(0)).images"""


def write_openai_model_card(
    directory: Path,
    unet_file: str,
    classifier_file: str | None,
    conditional: bool,
    dtype: str,
    name: str,
    low_res_size: int | None = None,
) -> None:
    """Writes `README.md`, the card of a pipeline that was converted from released checkpoints, into `directory`.

    Args:
        directory (`Path`): Where the pipeline was saved.
        unet_file, classifier_file (`str`): Names of the original files.
        conditional (`bool`): Whether a call takes class labels.
        dtype (`str`): `"fp32"`, or the precision that the weights were rounded to.
        name (`str`): What the snippet calls the folder.
        low_res_size (`int`, *optional*): Side of the images that an upsampler starts from.
    """
    on_lsun = unet_file.startswith("lsun")
    card = ModelCard(
        "---\n"
        + ModelCardData(
            library_name="diffusers",
            pipeline_tag="unconditional-image-generation" if low_res_size is None else "image-to-image",
            license="mit",
            tags=["diffusion", "adm", "classifier-guidance", "diffusers-cg"],
            datasets=[] if on_lsun else ["imagenet-1k"],
        ).to_yaml()
        + "\n---\n"
        + OPENAI_CARD.format(
            title=f"ADM, {unet_file.removesuffix('.pt')}",
            description=(
                ("A diffusion model" if low_res_size is None else f"An upsampling model (from {low_res_size} pixels)")
                + " of OpenAI's guided-diffusion"
                + (
                    ", with the classifier of noisy images that guides it."
                    if classifier_file
                    else ", without a classifier."
                )
            ),
            snippet=(SNIPPET if low_res_size is None else UPSAMPLING_SNIPPET).format(
                path=name,
                to_cuda='.to("cuda")',
                low_res_size=low_res_size,
                call="class_labels=[207]" if conditional or classifier_file else "batch_size=1",
            ),
            data="a part of LSUN" if on_lsun else "ImageNet-1k",
            people="" if on_lsun else " Faces and people, who are seldom its subject, come out distorted.",
            files=" and ".join(f"`{file}`" for file in (unet_file, classifier_file) if file),
            dtype="" if dtype == "fp32" else f", but rounded to {dtype}",
        )
    )
    card.save(directory / "README.md")
