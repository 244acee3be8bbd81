"""The denoising network of *Diffusion Models Beat GANs on Image Synthesis*, section 3."""

import torch
import torch.nn.functional as F
from diffusers import UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from diffusers_cg.errors import InputError
from diffusers_cg.models.adm_trunk import ADMTrunkMixin, ResampleType, TimeScaleShift, unet2d_arguments
from diffusers_cg.models.openai_files import OpenAICheckpointMixin


NO_CLASS = -1
"""The label of an image without a class, for a unet that was trained with some left out."""


# Section 3 of the paper in diffusers' blocks, which `unet2d_arguments` (adm_trunk.py) chooses by the arguments:
#
# - AdaGN(h, y) = y_s GroupNorm(h) + y_b: h follows the first convolution of a residual block, and (y_s - 1, y_b) is a
#   linear layer of SiLU(y), y the embedding of the timestep plus that of the class. Computed by
#   diffusers.models.resnet.ResnetBlock2D.forward where time_embedding_norm is "scale_shift".
# - BigGAN's up- and downsampling: a residual block of which both branches are doubled (nearest) or halved (average)
#   before its first convolution: ResnetBlock2D(up=True) and (down=True), the last layer of a level.
# - Attention at 32x32, 16x16 and 8x8 with 64 channels per head: AttnDownBlock2D and AttnUpBlock2D, whose layers are
#   diffusers.models.attention_processor.Attention.
# - A residual connection rescaled, (x + f(x)) / sqrt(2): output_scale_factor of ResnetBlock2D and rescale_output_factor
#   of Attention, set by `apply_adm_details`, which starts every f at zero, too.
class ADMUNet2DModel(ADMTrunkMixin, OpenAICheckpointMixin, UNet2DModel):
    r"""ADM, the "ablated diffusion model": a `UNet2DModel` with the architecture switches of the paper's section 3.

    It predicts the noise in a noisy image and, with `out_channels = 2 * in_channels`, the interpolation coefficient v
    of the learned variance (eq. 15 of *Improved DDPM*). The defaults are the 64x64 ImageNet model's, without classes.

    Args:
        sample_size (`int` or `tuple[int, int]`): Height and width of the image, multiples of
            `2 ** (len(channel_multipliers) - 1)`.
        in_channels (`int`): Channels C of the image.
        low_res_channels (`int`): Channels of the low-resolution image that an upsampling model is given beside the
            noisy one; 0 for a model that generates from noise alone.
        out_channels (`int`): C for a fixed variance, 2C for a learned one.
        base_channels (`int`): Width that the multipliers multiply; the embedding is 4 times as wide.
        channel_multipliers (`tuple[float, ...]`): Width of each level, finest first, in units of `base_channels`;
            fractions are allowed.
        layers_per_block (`int`): Residual blocks per level (one more on the way up).
        attention_resolutions (`tuple[int, ...]`): Levels with attention, by the shorter side of their feature maps.
        attention_head_dim (`int`, *optional*): Width of every attention head; 64 if neither this nor
            `num_attention_heads` is given.
        num_attention_heads (`int`, *optional*): Number of heads in every attention layer, in place of a width.
        resample_type (`"resnet"` or `"conv"`): BigGAN's residual blocks for up- and downsampling, or convolutions.
        resnet_time_scale_shift (`"scale_shift"` or `"default"`): AdaGN, or addition followed by GroupNorm.
        rescale_residual (`bool`): Divides every residual connection's sum by the square root of 2.
        dropout (`float`): Dropout probability in the residual blocks.
        num_class_embeds (`int`, *optional*): Number of classes; None for an unconditional model.
        norm_num_groups (`int`): Groups of every GroupNorm.
        class_names (`list[str]`, *optional*): What the classes are called, in the order of their labels; kept in the
            config.
        num_train_timesteps (`int`, *optional*): T of the process that the model was trained on; None, like the words that
            follow, where it is not stated.
        rescale_timesteps (`bool`): Whether the network sees t * 1000 / T in place of t, as some of improved-diffusion's do.
            It is called with t in any case.
        beta_schedule (`str`, *optional*): Noise schedule of that process, by diffusers' name.
        prediction_type (`str`, *optional*): What the output is: `"epsilon"` (the noise), `"sample"` (the clean image) or
            `"v_prediction"`, with a second half for the variance or without.
        scale_betas (`bool`, *optional*): Whether the ends of that schedule were scaled by 1000 / T, as
            [`~diffusers_cg.diffusion.training_scheduler`] does.
        label_dropout (`float`): Share of images whose label was left out in training; above 0 the model predicts without a
            class, too (*Classifier-Free Diffusion Guidance*, Ho and Salimans, 2022, Algorithm 1).

    Raises:
        InputError: if the arguments contradict each other; the sentence names the one to change.
    """

    _openai_kind = "unet"

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 64,
        in_channels: int = 3,
        out_channels: int = 6,
        base_channels: int = 192,
        channel_multipliers: tuple[float, ...] = (1, 2, 3, 4),
        layers_per_block: int = 3,
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        attention_head_dim: int | None = None,
        num_attention_heads: int | None = None,
        resample_type: ResampleType = "resnet",
        resnet_time_scale_shift: TimeScaleShift = "scale_shift",
        rescale_residual: bool = False,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        norm_num_groups: int = 32,
        low_res_channels: int = 0,
        class_names: list[str] | None = None,
        num_train_timesteps: int | None = None,
        rescale_timesteps: bool = False,
        beta_schedule: str | None = None,
        prediction_type: str | None = None,
        scale_betas: bool | None = None,
        label_dropout: float = 0.0,
    ):
        if out_channels not in (in_channels, 2 * in_channels):
            raise InputError(
                f"`out_channels` must be {in_channels} (fixed variance) or {2 * in_channels} (learned variance) for "
                f"{in_channels} image channels, got {out_channels}."
            )
        if not 0 <= label_dropout < 1 or (label_dropout and num_class_embeds is None):
            raise InputError(
                f"`label_dropout` must lie in [0, 1), and be 0 without classes (`num_class_embeds`), got {label_dropout}."
            )
        self.settle_config()
        config = self.config
        super().__init__(**unet2d_arguments(config))
        self._internal_dict = config  # UNet2DModel registers its arguments beside ours: config.json states ours alone
        self.apply_adm_details()
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    @property
    def predicts_variance(self) -> bool:
        """Whether the second half of the output channels is the raw learned-range variance."""
        return self.config.out_channels == 2 * self.config.in_channels

    def embed_class(self, class_labels: torch.Tensor) -> torch.Tensor:
        """Embedding (B, 4 * base_channels) of classes (B,); of [`NO_CLASS`], with `label_dropout`, it is zero.

        A learned vector could say no more, for the bias of the time embedding is one.
        """
        if not self.config.label_dropout:
            return self.class_embedding(class_labels)
        is_class = class_labels != NO_CLASS
        return self.class_embedding(class_labels.where(is_class, 0)) * is_class[..., None]

    def enlarge(self, low_res: torch.Tensor | None, sample: torch.Tensor) -> torch.Tensor:
        """Low-resolution images (B, low_res_channels, h, w) at the height and width of `sample`, bilinearly.

        Raises:
            InputError: if there are none, or their number or channels do not fit.
        """
        shape = (len(sample), self.config.low_res_channels)
        if low_res is None or low_res.ndim != 4 or tuple(low_res.shape[:2]) != shape:
            given = "nothing" if low_res is None else tuple(low_res.shape)
            raise InputError(
                f"This unet is an upsampling one: it takes `low_res` images of shape ({shape[0]}, {shape[1]}, height, "
                f"width), got {given}."
            )
        return F.interpolate(low_res.to(sample.dtype), sample.shape[2:], mode="bilinear")

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        class_labels: torch.Tensor | None = None,
        return_dict: bool = True,
        low_res: torch.Tensor | None = None,
    ) -> UNet2DOutput | tuple[torch.Tensor]:
        """Predicts the noise, and the raw variance if the model learns it.

        Args:
            sample (`torch.Tensor`): Noisy images x_t, (B, in_channels, H, W), floating point.
            timestep (`torch.Tensor`, `float` or `int`): One for all or one per image (B,), in [0, T).
            class_labels (`torch.Tensor`, *optional*): (B,) int64; given exactly if the model is class-conditional. Trained
                with `label_dropout`, it may be left out, or be -1 for images without a class.
            return_dict (`bool`): Whether to return a `UNet2DOutput` or a tuple.
            low_res (`torch.Tensor`, *optional*): Low-resolution images (B, low_res_channels, h, w) in [-1, 1], enlarged
                here to H x W; given exactly if the model is an upsampling one.

        Returns:
            `UNet2DOutput` or `tuple`: `.sample` of shape (B, out_channels, H, W), in the model's dtype.

        Raises:
            InputError: if a shape does not fit, or labels or low-resolution images are missing or not wanted.
        """
        self.check_sample(sample)
        if class_labels is None and self.class_embedding is not None and not self.config.label_dropout:
            raise InputError("This unet is class-conditional: pass `class_labels` of shape (batch,).")
        if class_labels is not None and self.class_embedding is None:
            raise InputError("This unet is unconditional and takes no `class_labels`.")

        if self.config.low_res_channels:
            sample = torch.cat([sample, self.enlarge(low_res, sample)], dim=1)
        elif low_res is not None:
            raise InputError("This unet generates from noise alone and takes no `low_res`.")

        emb = self.embed_timestep(sample, timestep)
        if class_labels is not None:  # no class adds nothing
            emb = emb + self.embed_class(class_labels)
        sample, residuals = self.encode(sample, emb)
        for block in self.up_blocks:
            num_skips = len(block.resnets)
            residuals, skips = residuals[:-num_skips], residuals[-num_skips:]
            sample = block(sample, skips, emb)
        sample = self.conv_out(self.conv_act(self.conv_norm_out(sample)))

        if not return_dict:
            return (sample,)
        return UNet2DOutput(sample=sample)
