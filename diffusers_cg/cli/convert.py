"""`diffusers-cg convert`: OpenAI's checkpoints as pipelines."""

from pathlib import Path
from typing import Literal

from pydantic import PositiveInt
from tyro.conf import Positional

from diffusers_cg_cli.settings import Settings
from diffusers_cg_cli.shared import Dtype, Side, exclusive


DIFFUSERS_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}


class ConvertSettings(Settings):
    """Turns guided-diffusion checkpoints into a pipeline folder.

    ClassifierGuidedDDPMPipeline and ClassifierGuidedDDIMPipeline both load the folder, and that of an upsampler
    ClassifierGuidedSuperResolutionPipeline; schedule, steps and scale of the paper are saved in it. The files are read
    without executing anything in them.

    From --sample_size on, the flags state facts that only a checkpoint other than OpenAI's 15 released ones needs.
    """

    unet: Positional[Path]
    """OpenAI's file (.pt), or one of its layout."""

    output: Path
    """Folder to write; a pipeline that is there is replaced."""

    classifier: Path | None = None
    """The classifier's file."""

    dtype: Dtype = "fp32"
    """Precision of the stored weights."""

    max_shard_size: str = "10GB"
    """Larger files of weights are split."""

    sample_size: Side | None = None
    """Side of the image in pixels."""

    attention_head_dim: PositiveInt | None = None
    """num_head_channels."""

    num_attention_heads: PositiveInt | None = None
    """num_heads."""

    new_attention_order: bool = False
    """use_new_attention_order."""

    legacy_attention_order: bool = False
    """The other one."""

    beta_schedule: Literal["linear", "cosine"] | None = None
    """noise_schedule; linear by default."""

    low_res_size: Side | None = None
    """Side of an upsampler's low-resolution images."""

    classifier_attention_head_dim: PositiveInt | None = None
    """64 in OpenAI's."""

    _check_opposites = exclusive("new_attention_order", "legacy_attention_order")


def run(settings: ConvertSettings) -> None:
    from diffusers_cg.data.files import atomic_directory
    from diffusers_cg.hub.model_card import write_openai_model_card
    from diffusers_cg.models import DTYPES
    from diffusers_cg.pipelines.conversion import convert_checkpoints

    classifier_facts = {}
    if settings.classifier_attention_head_dim is not None:
        classifier_facts = {
            "attention_head_dim": settings.classifier_attention_head_dim,
            "new_attention_order": False,
        }
    pipe, preset = convert_checkpoints(
        settings.unet,
        settings.classifier,
        torch_dtype=DTYPES[settings.dtype],
        beta_schedule=DIFFUSERS_SCHEDULES.get(settings.beta_schedule),
        unet_facts={
            "sample_size": settings.sample_size,
            "attention_head_dim": settings.attention_head_dim,
            "num_attention_heads": settings.num_attention_heads,
            "new_attention_order": settings.new_attention_order
            or (False if settings.legacy_attention_order else None),
        },
        classifier_facts=classifier_facts,
        low_res_size=settings.low_res_size,
    )
    with atomic_directory(settings.output, replaces="model_index.json") as directory:
        pipe.save_pretrained(directory, max_shard_size=settings.max_shard_size)
        if preset is not None:
            classifier_file = None if settings.classifier is None else settings.classifier.name
            files = (settings.unet.name, classifier_file)
            write_openai_model_card(directory, pipe, *files, dtype=settings.dtype, name=settings.output.name)
    if preset is not None:
        print("OpenAI released these weights for research, not for deployment: see README.md in the folder.")
    print(f"Saved {settings.output}.")
