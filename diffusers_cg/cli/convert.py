"""`diffusers-cg convert`: checkpoints of OpenAI's layout as pipelines."""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt
from tyro.conf import Positional

from diffusers_cg_cli.settings import Settings
from diffusers_cg_cli.shared import Dtype, Side, exclusive


DIFFUSERS_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2", "continuous_cosine": "continuous_cosine"}


class CheckpointSettings(Settings):
    layouts: Path | None = None
    """YAML or JSON file of layouts of your own, an entry each: see docs/checkpoints.md."""

    layout: str | None = None
    """The layout that the file has, whatever its name: one of docs/checkpoints.md or of --layouts."""

    entry: str | None = None
    """Which of several networks in one file, as "ema"."""

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

    layers_per_block: PositiveInt | None = None
    """num_res_blocks, where shapes allow several."""

    num_train_timesteps: PositiveInt | None = None
    """diffusion_steps, T of the training; 1000 by default."""

    beta_schedule: Literal["linear", "cosine", "continuous_cosine"] | None = None
    """noise_schedule; linear by default. The last is that of training at real times, abar = cos^2(pi t / 2 T)."""

    rescale_timesteps: bool | None = None
    """Whether the network sees t x 1000 / T."""

    prediction_type: Literal["epsilon", "sample", "v_prediction"] | None = None
    """What the network predicts; "sample" is predict_xstart. The noise, epsilon, by default."""

    low_res_channels: NonNegativeInt | None = None
    """Channels of an upsampler's low-resolution images, where shapes allow several."""

    _check_opposites = exclusive("new_attention_order", "legacy_attention_order")


class ConvertSettings(CheckpointSettings):
    """Turns guided-diffusion checkpoints into a pipeline folder.

    ClassifierGuidedDDPMPipeline and ClassifierGuidedDDIMPipeline both load the folder, and that of an upsampler
    ClassifierGuidedSuperResolutionPipeline; schedule, steps and scale are saved in it. The files are read without
    executing anything in them.

    From --layouts on, the flags state facts that only a checkpoint needs that is none of docs/checkpoints.md; errors name
    them without dashes, and those of the classifier without their beginning.
    """

    unet: Positional[Path]
    """OpenAI's file (.pt), or one of its layout; BiliSakura/ADM-* or xutongda/adm_* on the Hub, or a folder of such a one."""

    output: Path
    """Folder to write; a pipeline that is there is replaced."""

    classifier: Path | None = None
    """The classifier's file, folder or repository."""

    dtype: Dtype = "fp32"
    """Precision of the stored weights."""

    max_shard_size: str = "10GB"
    """Larger files of weights are split."""

    low_res_size: Side | None = None
    """Side of an upsampler's low-resolution images."""

    classifier_layout: str | None = None
    """As --layout, of the classifier's file; and so on."""

    classifier_entry: str | None = None
    """Which of several networks in one file."""

    classifier_sample_size: Side | None = None
    """Side of the image in pixels; the unet's by default."""

    classifier_attention_head_dim: PositiveInt | None = None
    """64 in OpenAI's."""

    classifier_num_attention_heads: PositiveInt | None = None
    """In place of a width."""

    classifier_new_attention_order: bool = False
    """OpenAI's have the other one, the default where heads are stated."""

    classifier_layers_per_block: PositiveInt | None = None
    """classifier_depth, where shapes allow several."""

    classifier_num_train_timesteps: PositiveInt | None = None
    """T of the classifier's training."""

    classifier_beta_schedule: Literal["linear", "cosine", "continuous_cosine"] | None = None
    """noise_schedule of the classifier's training."""

    classifier_rescale_timesteps: bool | None = None
    """Whether the classifier sees t x 1000 / T."""


def facts_of(settings: CheckpointSettings) -> dict[str, Any]:
    """What is stated of the unet, or of the one checkpoint: keyword arguments of `from_single_file`."""
    names = ("layout", "entry", "sample_size", "attention_head_dim", "num_attention_heads", "layers_per_block",
             "low_res_channels", "num_train_timesteps", "rescale_timesteps", "prediction_type")  # fmt: skip
    return {
        **{name: getattr(settings, name) for name in names},
        "beta_schedule": DIFFUSERS_SCHEDULES.get(settings.beta_schedule),
        "new_attention_order": settings.new_attention_order or (False if settings.legacy_attention_order else None),
    }


def classifier_facts_of(settings: ConvertSettings) -> dict[str, Any]:
    """What is stated of the classifier."""
    names = ("layout", "entry", "sample_size", "attention_head_dim", "num_attention_heads", "layers_per_block",
             "num_train_timesteps", "rescale_timesteps")  # fmt: skip
    facts = {name: getattr(settings, f"classifier_{name}") for name in names}
    states_heads = facts["attention_head_dim"] is not None or facts["num_attention_heads"] is not None
    order = settings.classifier_new_attention_order or (False if states_heads else None)
    schedule = DIFFUSERS_SCHEDULES.get(settings.classifier_beta_schedule)
    return {**facts, "new_attention_order": order, "beta_schedule": schedule}


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Prints what is assumed of a checkpoint as sentences, as errors are."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    for text in dict.fromkeys(str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)):
        print(f"warning: {text}", file=sys.stderr, flush=True)


def run(settings: ConvertSettings) -> None:
    from diffusers_cg.data.files import atomic_directory
    from diffusers_cg.hub.model_card import write_openai_model_card
    from diffusers_cg.models import DTYPES
    from diffusers_cg.models.hub_formats import path_or_download
    from diffusers_cg.models.own_layouts import register_layouts
    from diffusers_cg.pipelines.conversion import convert_checkpoints

    if settings.layouts is not None:
        register_layouts(settings.layouts)
    with plain_warnings():
        pipe, preset = convert_checkpoints(
            path_or_download(settings.unet),
            None if settings.classifier is None else path_or_download(settings.classifier),
            torch_dtype=DTYPES[settings.dtype],
            unet_facts=facts_of(settings),
            classifier_facts=classifier_facts_of(settings),
            low_res_size=settings.low_res_size,
            read=False,
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
