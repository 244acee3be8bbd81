"""The settings of the training scripts, each declared once: flag, help, default, bounds, and what it is to a resume.

    UNetSettings(train_data_dir="my_images", output_dir="my-unet", use_ema=False)        # from Python
    --train_data_dir my_images --output_dir my-unet --no-use_ema                         # on a command line
    --config RECIPE, a YAML file with lines such as `use_ema: false`                     # and in a file

Names follow diffusers' `train_unconditional.py`. What is passed has the last word, then the recipe, then the preset (a
row of `diffusers_cg.models.presets`), then the model that `--init_from` names, then the default: `resolve` says it.
"""

import sys
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

import tyro
from accelerate.utils import LoggerType
from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PrivateAttr,
    model_validator,
)

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.diffusion import LossSecondMomentSampler, LossType, PredictionType, UniformSampler, resolve_loss_type
from diffusers_cg.errors import InputError
from diffusers_cg.hub.publishing import check_repo_id
from diffusers_cg.models.fine_tuning import scaled_attention_resolutions
from diffusers_cg.models.presets import ATTENTION_RESOLUTIONS, CHANNEL_MULTIPLIERS, PRESETS
from diffusers_cg_cli.settings import Settings, find_file, parse, read_file
from diffusers_cg_cli.shared import ImageRange


RECIPES = Path(__file__).parent / "recipes"
# trackers that name runs, and what each calls the name (TensorBoard has a folder for each run)
RUN_NAMES = {
    "tensorboard": None,
    "wandb": "name",
    "trackio": "name",
    "swanlab": "experiment_name",
    "mlflow": "run_name",
    "clearml": "task_name",
}
TIMESTEP_SAMPLERS = {"uniform": UniformSampler, "loss_second_moment": LossSecondMomentSampler}

# flags of the architecture, and what they are called by a model
ARCHITECTURE = {
    "resolution": "sample_size",
    "channels": "in_channels",
    "base_channels": "base_channels",
    "channel_multipliers": "channel_multipliers",
    "layers_per_block": "layers_per_block",
    "attention_resolutions": "attention_resolutions",
    "attention_head_dim": "attention_head_dim",
    "num_attention_heads": "num_attention_heads",
    "resample_type": "resample_type",
    "resnet_time_scale_shift": "resnet_time_scale_shift",
    "rescale_residual": "rescale_residual",
    "dropout": "dropout",
    "norm_num_groups": "norm_num_groups",
    "pool": "pool",
    "ddpm_num_steps": "num_train_timesteps",
    "ddpm_beta_schedule": "beta_schedule",
    "rescale_timesteps": "rescale_timesteps",
    "scale_betas": "scale_betas",
    "prediction_type": "prediction_type",
    "label_dropout": "label_dropout",
}
HEADS = ("attention_head_dim", "num_attention_heads")  # one fact in two ways: who states one leaves the other out


class Mark(Enum):
    """What else is to be known of a setting, said where it is declared."""

    RESUMED = "a checkpoint and the training that goes on from it must have it in common"
    NOT_TOLD = "a place on one machine, or what changes no result: training.json says nothing of it"


RESUMED, NOT_TOLD = Mark.RESUMED, Mark.NOT_TOLD

Fraction = Annotated[float, Field(ge=0, lt=1)]
COMPILER = tyro.constructors.PrimitiveConstructorSpec(
    nargs="*",  # the flag alone, or with a name
    metavar="[BACKEND]",
    instance_from_str=lambda words: " ".join(words) or "inductor",
    is_instance=lambda value: value is None or isinstance(value, str),
    str_from_instance=lambda value: [str(value)],
)

S = TypeVar("S", bound="TrainingSettings")


class DataSettings(Settings):
    """Which images, and how they are prepared. One of the first three says where they are."""

    train_data_dir: Path | None = None
    """Folder with a subfolder of images per class; for a unet with --no-class_conditional, just images."""
    dataset_name: str | None = None
    """Dataset of the Hub, or a local folder that `datasets.load_dataset` reads (of Parquet files, say)."""
    train_data_files: Annotated[list[str], Field(min_length=1)] | None = None
    """Parquet (.parquet) or webdataset (.tar) files: paths, patterns such as 'shards/*.tar', or URLs."""
    dataset_config_name: str | None = None
    """Configuration of a dataset that has several."""
    split: str | None = None
    """Split of the dataset to train on; train by default."""
    image_column: str | None = None
    """Column of images; the only one by default."""
    label_column: str | None = None
    """Column of labels, whole numbers from 0, truth values or texts; by default the only one of class labels, or else label
    or cls."""
    class_names: Annotated[list[str], Field(min_length=1)] | None = None
    """What the classes are called, where the dataset does not say."""
    num_classes: PositiveInt | None = None
    """Number of classes, where a streamed dataset holds plain numbers as labels."""
    class_from_file_name: bool = False
    """Of a folder: the class of an image is not its subfolder but what stands before the first _ in its file's name, as in
    dog_0001.png (the layout of the paper's own code)."""
    image_range: Annotated[ImageRange | None, RESUMED] = None
    """The values of black and white in images of more than 8 bits: 0 65535, say, 0 1, or -1 1."""
    streaming: bool = False
    """Read the dataset while training, in place of downloading and converting it first."""
    shuffle_buffer_size: NonNegativeInt = 1000
    """Images of a stream among which the next one is drawn; 0 to take them as they come."""
    images_per_epoch: PositiveInt | None = None
    """What counts as an epoch of a stream, whose length is not known."""
    cache_dir: Annotated[Path | None, NOT_TOLD] = None
    """Where `datasets` keeps what it downloads and converts."""
    center_crop: Annotated[bool, RESUMED] = True
    """Cut out the middle, or else a random part of an image up to a quarter larger."""
    random_flip: Annotated[bool, RESUMED] = False
    """Mirror images at random, left to right."""
    dataloader_num_workers: NonNegativeInt = 0
    """Processes that load images; of a stream, threads of one process that decode them."""
    skip_bad_images: bool = False
    """Leave out images that cannot be read, instead of refusing them; those met while training are counted, and the
    next one of the data stands in."""
    verify_images: bool = True
    """Decode every image once before training starts; not possible with --streaming."""
    allow_other_images: bool = False
    """Go on from a checkpoint, though these are not the images that it was trained on."""


class NetworkSettings(Settings):
    """The architecture (section 3 of the paper). What is None is settled by [`TrainingSettings.resolve`]."""

    preset: Literal[tuple(PRESETS)] | None = None
    """Network of the paper: its architecture, noise schedule, batch size, steps, learning rate, weight decay and dropout,
    as far as they are not set."""
    init_from: str | None = None
    """Fine-tune: start from a checkpoint of OpenAI's (.pt), a model or a pipeline (a folder, or an id on the Hub). The
    architecture is taken from it; layers that do not fit the classes, channels or resolution start anew. So is the noise
    schedule where it states one: else see --ddpm_beta_schedule."""
    resolution: PositiveInt | None = None
    """Images are resized and cropped to this side: the preset's, else that of --init_from, else 64."""
    channels: Literal[1, 3, 4] | None = None
    """Gray, RGB or RGBA: the preset's, else those of --init_from, else 3. So are the flags that follow."""
    base_channels: PositiveInt | None = None
    """Width that the multipliers multiply; else 192 for a unet, 128 for a classifier."""
    channel_multipliers: Annotated[list[PositiveFloat], Field(min_length=1)] | None = None
    """Width per level; else the paper's for the resolution."""
    layers_per_block: PositiveInt | None = None
    """Residual blocks per level; else 3 for a unet, 4 for a classifier."""
    attention_resolutions: list[PositiveInt] | None = None
    """Levels with attention; else those of 32, 16, 8."""
    attention_head_dim: PositiveInt | None = None
    """Width of an attention head; else 64."""
    num_attention_heads: PositiveInt | None = None
    """Number of heads, in place of a width."""
    resample_type: Literal["resnet", "conv"] | None = None
    """BigGAN blocks (resnet) or convolutions (conv); else resnet."""
    resnet_time_scale_shift: Literal["scale_shift", "default"] | None = None
    """AdaGN (scale_shift), or addition followed by GroupNorm (default); else scale_shift."""
    rescale_residual: bool = False
    """Divide residual sums by the square root of 2; what starts from a model that does goes on to."""
    dropout: Fraction | None = None
    """Dropout probability in the residual blocks; else 0."""
    norm_num_groups: PositiveInt | None = None
    """Groups of every GroupNorm; else 32."""


class TrainingSettings(NetworkSettings, DataSettings):
    """What both scripts take: images, architecture, and the training itself."""

    config: str | None = Field(
        None,
        description="YAML file of settings, which those on the command line override, or the name of one that comes with "
        f"the package: {', '.join(sorted(path.stem for path in RECIPES.glob('*.yaml')))}.",
    )
    output_dir: Annotated[Path, NOT_TOLD]
    """Where checkpoints, pictures and the result go."""
    seed: Annotated[int, Field(ge=0, lt=2**32), RESUMED] = 0
    """Seed of everything random."""
    train_batch_size: PositiveInt = 16
    """Images per process at once."""
    total_batch_size: PositiveInt | None = None
    """Images per optimizer step over all processes; as many batches are accumulated as it takes."""
    eval_batch_size: PositiveInt = 64
    """Images at once where nothing is trained."""
    num_epochs: PositiveInt | None = None
    """Passes over the data, in place of --max_train_steps; 100 where nothing says how long to train."""
    max_train_steps: PositiveInt | None = None
    """Optimizer steps; a preset says how many."""
    gradient_accumulation_steps: PositiveInt | None = None
    """Batches of each process per optimizer step: 1, or what --total_batch_size takes."""
    gradient_checkpointing: bool = False
    """Less memory, more computation."""
    ddpm_num_steps: Annotated[PositiveInt | None, RESUMED] = None
    """Timesteps T of the diffusion: those that --init_from states, else 1000."""
    rescale_timesteps: Annotated[bool | None, RESUMED] = None
    """Show the network t * 1000 / T in place of t: as --init_from does, else no."""
    ddpm_beta_schedule: Annotated[
        Literal["linear", "squaredcos_cap_v2", "scaled_linear", "sigmoid", "laplace"] | None, RESUMED
    ] = None
    """Noise schedule, by diffusers' name (squaredcos_cap_v2 is the cosine one): the preset's, else the one that --init_from
    states, else linear."""
    scale_betas: Annotated[bool | None, RESUMED] = None
    """Scale the betas of a linear schedule by 1000 / T, as the paper's code does, so that images end as noise for any T: as
    --init_from states, else yes. A checkpoint goes on as it began; trainings of before this flag did not."""
    timestep_sampler: Annotated[Literal[tuple(TIMESTEP_SAMPLERS)], RESUMED] = "uniform"
    """Timesteps to train on: all alike, or in proportion to their recent losses."""
    learning_rate: Annotated[PositiveFloat | None, RESUMED] = None
    """AdamW's learning rate: the preset's, else 1e-4 for a unet, 3e-4 for a classifier."""
    lr_scheduler: Annotated[
        Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial"], RESUMED
    ] = "constant"
    """A schedule of diffusers for it; linear goes to 0."""
    lr_warmup_steps: Annotated[NonNegativeInt, RESUMED] = 0
    """Steps in which it rises from 0."""
    adam_beta1: Annotated[Fraction, RESUMED] = 0.9
    """Decay of the mean of gradients."""
    adam_beta2: Annotated[Fraction, RESUMED] = 0.999
    """Decay of the mean of their squares."""
    adam_weight_decay: Annotated[NonNegativeFloat | None, RESUMED] = None
    """AdamW's weight decay: the preset's, else 0 for a unet, 0.05 for a classifier."""
    adam_epsilon: Annotated[NonNegativeFloat, RESUMED] = 1e-8
    """AdamW's epsilon."""
    max_grad_norm: Annotated[NonNegativeFloat, RESUMED] = 1.0
    """Gradients are clipped to this norm; 0 for no clipping."""
    use_ema: Annotated[bool, RESUMED] = True
    """Average the weights over time."""
    ema_max_decay: Annotated[list[Fraction], Field(min_length=1), RESUMED] = [0.9999]
    """Decay of the average. Of several, each has its average; the first one's is the result."""
    ema_warmup: Annotated[bool, RESUMED] = True
    """Let the decay rise to that as 1 - (1 + step / inv_gamma) ** -power, or else stay at it."""
    ema_inv_gamma: Annotated[PositiveFloat, RESUMED] = 1.0
    """For --ema_warmup."""
    ema_power: Annotated[FiniteFloat, RESUMED] = 3 / 4
    """For --ema_warmup."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """Accelerate's setting by default; fp16 needs a GPU."""
    torch_compile: Annotated[str, COMPILER] | None = None
    """Compile the model, by torch's inductor or another backend of torch.compile."""
    save_images_epochs: NonNegativeInt = 10
    """Epochs between evaluations (sample grids, accuracy); 0 for none."""
    checkpointing_steps: NonNegativeInt = 500
    """Steps between checkpoints; 0 for none."""
    checkpoints_total_limit: PositiveInt | None = None
    """Keep this many checkpoints, the latest ones."""
    resume_from_checkpoint: Annotated[str | None, NOT_TOLD] = None
    """A checkpoint: its path, or its name in --output_dir; or "latest" for the newest one there, and to start anew where
    there is none yet."""
    overwrite_output_dir: Annotated[bool, NOT_TOLD] = False
    """Remove the checkpoints in --output_dir that this training does not go on from, in place of refusing the folder."""
    overwrite_learning_rate: Annotated[bool, NOT_TOLD] = False
    """Go on with the --learning_rate, --lr_scheduler and --lr_warmup_steps stated now, in place of refusing others than the
    checkpoint's."""
    logger: Literal[("none", *LoggerType.list())] = "tensorboard"
    """A tracker of Accelerate, or none."""
    logging_dir: Annotated[str, NOT_TOLD] = "logs"
    """Folder for the tracker, inside --output_dir."""
    tracker_project_name: Annotated[str, NOT_TOLD] = "training"
    """What the tracker files this training under."""
    run_name: Annotated[str | None, NOT_TOLD] = None
    """What the tracker calls this training there; its own choice by default."""
    push_to_hub: Annotated[bool, NOT_TOLD] = False
    """Publish the result at the end, as who hf auth login or HF_TOKEN says."""
    hub_model_id: Annotated[str | None, NOT_TOLD] = None
    """Where to, as OWNER/NAME."""
    hub_private_repo: Annotated[bool, NOT_TOLD] = False
    """For your eyes only, if it is made."""

    defaults: ClassVar[dict[str, Any]] = {
        "resolution": 64,
        "channels": 3,
        "resample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "dropout": 0.0,
        "norm_num_groups": 32,
        "ddpm_num_steps": 1000,
        "ddpm_beta_schedule": "linear",
        "rescale_timesteps": False,
        "num_epochs": 100,
    }
    """Of what is None: what neither a preset nor a pretrained model says."""
    kind: ClassVar[str]
    """Of the network, `"unet"` or `"classifier"`."""

    _typed: list[str] | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _over_recipe(cls, values: dict[str, Any]) -> dict[str, Any]:
        if values.get("config") is None:
            return values
        return {**read_file(cls, find_file(values["config"], RECIPES), RECIPES), **values}

    @model_validator(mode="after")
    def _check_training(self: S) -> S:
        if self.preset is not None and PRESETS[self.preset].kind != self.kind:
            raise ValueError(
                f"--preset {self.preset} is a {PRESETS[self.preset].kind}, and a {self.kind} is trained here"
            )
        if None not in (self.num_epochs, self.max_train_steps):
            raise ValueError(
                "--num_epochs and --max_train_steps, which a recipe may set, both say how long to train: pass one of them"
            )
        if self.lr_warmup_steps and self.lr_scheduler == "constant":
            raise ValueError("--lr_scheduler constant knows no --lr_warmup_steps: pass constant_with_warmup")
        if self.run_name is not None and self.logger not in RUN_NAMES:
            raise ValueError(f"--logger {self.logger} takes no --run_name, as {', '.join(RUN_NAMES)} do: leave it out")
        if self.push_to_hub:
            if self.hub_model_id is None:
                raise ValueError("--push_to_hub does not say where to: pass --hub_model_id OWNER/NAME")
            check_repo_id(self.hub_model_id)
        return self

    # ------------------------------------------------------------------------------------------------ what is left open

    def resolve(self: S, pretrained: ADMUNet2DModel | NoisyClassifierModel | None = None) -> S:
        """A copy with nothing of the network left open but what [`go_on_from`] settles: see the head of this file.

        Args:
            pretrained (`ModelMixin`, *optional*): The model that `init_from` names.

        Raises:
            InputError: if the paper has no channel multipliers for the resolution and none are set, or if the images of the
                pretrained model are not square or do not fit its levels.
        """
        settled = dict(self.defaults)
        for said in (_said_by_model(self, pretrained), _said_by_preset(self.preset), _not_none(self.__dict__)):
            if any(name in said for name in HEADS):
                settled |= dict.fromkeys(HEADS)
            settled |= {name: value for name, value in said.items() if name in type(self).model_fields}
        if self.num_epochs is not None:
            settled["max_train_steps"] = None  # of the preset
        if pretrained is not None:
            settled["rescale_residual"] = self.rescale_residual or pretrained.config.rescale_residual

        resolution = settled["resolution"]
        multipliers = settled.get("channel_multipliers") or CHANNEL_MULTIPLIERS.get(resolution)
        if multipliers is None:
            raise InputError(
                f"There is no customary architecture for --resolution {resolution}: pass --channel_multipliers, one number "
                "per level (the image is halved between levels)."
            )
        settled["channel_multipliers"] = list(multipliers)
        if "attention_resolutions" not in settled and pretrained is not None:
            settled["attention_resolutions"] = list(scaled_attention_resolutions(pretrained, resolution))
        elif "attention_resolutions" not in settled:
            sides = [resolution // 2**level for level in range(len(multipliers))]
            settled["attention_resolutions"] = [side for side in ATTENTION_RESOLUTIONS if side in sides]
        copy = self.model_copy(update=settled)
        copy._typed = self.command_line()
        return copy

    def go_on_from(self, checkpoint: dict[str, Any]) -> None:
        """Settles `scale_betas`, of settings that were resolved: as those of a checkpoint, if there is one, or else yes."""
        if self.scale_betas is None:
            self.scale_betas = checkpoint.get("scale_betas", True)
            if not self.scale_betas:  # another training than these flags alone would make
                self._typed = [*self.command_line(), "--no-scale_betas"]

    def architecture(self) -> dict[str, Any]:
        """The constructor's arguments that both models have, of settings that were resolved."""
        values = {argument: getattr(self, name) for name, argument in ARCHITECTURE.items() if hasattr(self, name)}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}

    def image_arguments(self) -> dict[str, Any]:
        """How images are prepared and put in order, as arguments of `TrainingImages`, of settings that were resolved."""
        names = ("resolution", "channels", "center_crop", "random_flip", "seed")
        names += ("skip_bad_images", "shuffle_buffer_size", "images_per_epoch")
        return {name: getattr(self, name) for name in names}

    # ------------------------------------------------------------------------------------------------- what is told of it

    def marked(self, mark: Mark) -> dict[str, Any]:
        """The settings that are declared with a mark."""
        fields = type(self).model_fields
        return {name: getattr(self, name) for name, field in fields.items() if mark in field.metadata}

    def command_line(self) -> list[str]:
        """The flags that make these settings again: as they were typed, or those that were passed in Python."""
        if self._typed is not None:
            return self._typed
        words = []
        for name in type(self).model_fields:
            value = getattr(self, name)
            if name not in self.model_fields_set or value is None:
                continue
            if isinstance(value, bool):
                words.append(f"--{name}" if value else f"--no-{name}")
            else:
                words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return words


def _not_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _said_by_preset(name: str | None) -> dict[str, Any]:
    if name is None:
        return {}
    preset = PRESETS[name]
    network = {flag: preset.architecture.get(argument) for flag, argument in ARCHITECTURE.items()}
    network["channel_multipliers"] = list(map(float, network["channel_multipliers"]))  # as a command line would say it
    network["attention_resolutions"] = list(network["attention_resolutions"])
    training = ("low_res_size", "total_batch_size", "max_train_steps", "learning_rate", "adam_weight_decay")
    return _not_none(
        {**network, "ddpm_beta_schedule": preset.beta_schedule, **{flag: getattr(preset, flag) for flag in training}}
    )


def _said_by_model(
    settings: "TrainingSettings", pretrained: ADMUNet2DModel | NoisyClassifierModel | None
) -> dict[str, Any]:
    if pretrained is None:
        return {}
    if not isinstance(pretrained.config.sample_size, int):
        raise InputError(
            f"--init_from {settings.init_from} is for images of {pretrained.config.sample_size}, these scripts take squares."
        )
    said = {flag: pretrained.config.get(argument) for flag, argument in ARCHITECTURE.items()}
    del said["attention_resolutions"]  # they go with the resolution
    return _not_none(said)


class UNetSettings(TrainingSettings):
    """What `train_unet.py` takes."""

    class_conditional: bool = True
    """Tell the unet the class, or let the classifier alone decide."""
    label_dropout: Annotated[Fraction | None, RESUMED] = None
    """Share of images whose class the unet is not told (0.1, say), so that it predicts without one, too, as classifier-free
    guidance needs: that of --init_from, else 0."""
    learn_variance: bool = True
    """Learned-range variance and the hybrid loss, or a fixed variance and L_simple."""
    prediction_type: Annotated[Literal[get_args(PredictionType)] | None, RESUMED] = None
    """What the network predicts: epsilon (the noise), sample (the clean image) or v_prediction: what --init_from does, else
    epsilon."""
    loss: Annotated[LossType | None, RESUMED] = None
    """rescaled_hybrid by default, simple with a fixed variance: see `diffusers_cg.diffusion.training_losses`."""
    lambda_vlb: Annotated[FiniteFloat | None, RESUMED] = None
    """Weight of the variational bound in rescaled_hybrid; 0.001 by default."""
    low_res_size: Annotated[PositiveInt | None, RESUMED] = None
    """Learn to upsample from images of this side, instead of from noise alone; a preset may say it."""
    low_res_noise: Annotated[NonNegativeFloat, Field(allow_inf_nan=False), RESUMED] = 0.0
    """Noise on the low-resolution images: standard deviation drawn from 0 to this, where images span [-1, 1]."""
    low_res_blur: Annotated[NonNegativeFloat, Field(allow_inf_nan=False), RESUMED] = 0.0
    """Gaussian blur of the low-resolution images: standard deviation drawn from 0 to this, in their pixels."""
    ddpm_num_inference_steps: PositiveInt = 25
    """DDIM steps of the sample grids."""
    classifier: str | None = None
    """Trained classifier that guides the sample grids."""
    classifier_scale: FiniteFloat = 1.0
    """Scale of that guidance."""

    kind: ClassVar[str] = "unet"
    defaults: ClassVar[dict[str, Any]] = {
        **TrainingSettings.defaults,
        "base_channels": 192,
        "layers_per_block": 3,
        "prediction_type": "epsilon",
        "label_dropout": 0.0,
        "learning_rate": 1e-4,
        "adam_weight_decay": 0.0,
    }

    @model_validator(mode="after")
    def _check_loss(self: S) -> S:
        loss = resolve_loss_type(self.loss, self.learn_variance)
        if loss != "rescaled_hybrid" and self.lambda_vlb is not None:
            raise ValueError(f"--lambda_vlb is for --loss rescaled_hybrid, not {loss}: leave it out")
        if self.label_dropout and not self.class_conditional:
            raise ValueError("--label_dropout is for a unet that is told the class, not for --no-class_conditional")
        return self

    def resolve(self, pretrained: ADMUNet2DModel | None = None) -> "UNetSettings":
        """As of every training, and `loss` and `lambda_vlb` too.

        Raises:
            InputError: as there, or if the settings of an upsampler do not go together.
        """
        resolved = super().resolve(pretrained)
        resolved.loss = resolve_loss_type(self.loss, self.learn_variance)
        if resolved.loss == "rescaled_hybrid" and self.lambda_vlb is None:
            resolved.lambda_vlb = 0.001
        if not self.class_conditional:  # whatever it starts from
            resolved.label_dropout = 0.0
        for name in ("low_res_noise", "low_res_blur"):
            if getattr(self, name) > 0 and resolved.low_res_size is None:
                raise InputError(f"--{name} is for upsamplers: pass --low_res_size, too.")
        if resolved.low_res_size is not None and resolved.low_res_size > resolved.resolution:
            raise InputError(
                f"--low_res_size must lie in 1..{resolved.resolution} (--resolution), got {resolved.low_res_size}."
            )
        return resolved


class ClassifierSettings(TrainingSettings):
    """What `train_classifier.py` takes."""

    center_crop: Annotated[bool, RESUMED] = False
    """Cut out the middle, or else a random part of an image up to a quarter larger."""
    use_ema: Annotated[bool, RESUMED] = False
    """Average the weights over time."""
    pool: Literal["attention", "adaptive", "spatial", "spatial_v2"] | None = None
    """How features become logits; else attention."""
    validation_data_dir: Path | None = None
    """Folder of the same classes to measure accuracy on."""
    validation_split: str | None = None
    """In its place: a split of the dataset that is trained on."""
    validation_fraction: Fraction = 0.05
    """Without either: share of the training images held out for it; 0 for none."""
    early_stopping_patience: PositiveInt | None = None
    """Evaluations (see --save_images_epochs) after which the training ends, if none was better than the best before."""

    kind: ClassVar[str] = "classifier"
    defaults: ClassVar[dict[str, Any]] = {
        **TrainingSettings.defaults,
        "base_channels": 128,
        "layers_per_block": 4,
        "learning_rate": 3e-4,
        "adam_weight_decay": 0.05,
        "pool": "attention",
    }

    @model_validator(mode="after")
    def _check_patience(self: S) -> S:
        validates = self.validation_fraction or self.validation_data_dir or self.validation_split
        if self.early_stopping_patience is not None and not (validates and self.save_images_epochs):
            raise ValueError(
                "--early_stopping_patience counts evaluations, and there are none without held-out images"
            )
        return self


def parse_settings(settings_class: type[S], argv: Sequence[str] | None, description: str) -> S:
    """Settings from the words of a command line, which they remember for `training.json`."""
    words = sys.argv[1:] if argv is None else list(argv)
    settings = parse(settings_class, words, description=description, files=RECIPES)
    settings._typed = words
    return settings
