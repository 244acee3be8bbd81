"""The classifier of noisy images whose gradient guides the sampler (section 4 of the paper)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from diffusers import ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from diffusers_cg.errors import InputError
from diffusers_cg.models.adm_trunk import (
    ADMTrunkMixin,
    ResampleType,
    TimeScaleShift,
    height_and_width,
    unet2d_arguments,
)
from diffusers_cg.models.openai_files import OpenAICheckpointMixin


Pooling = Literal["attention", "adaptive", "spatial", "spatial_v2"]

SPATIAL_HIDDEN_CHANNELS = 2048  # width of the hidden layer over spatially averaged features, as in the reference


class AttentionPool2D(nn.Module):
    """The head of the paper's classifiers (section 4.3), CLIP's: the mean of all positions attends to every position.

    Args:
        channels (`int`): Channels of the feature map.
        num_positions (`int`): Height times width of the feature map.
        attention_head_dim (`int`): Width of a head; divides `channels`.
        out_features (`int`): Width of the output.
    """

    def __init__(self, channels: int, num_positions: int, attention_head_dim: int, out_features: int):
        super().__init__()
        self.attention_head_dim = attention_head_dim
        self.positional_embedding = nn.Parameter(torch.randn(num_positions + 1, channels) / channels**0.5)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Linear(channels, out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, channels, H, W) -> (B, out_features)."""
        tokens = hidden_states.flatten(2).transpose(1, 2)  # (B, H * W, channels)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + self.positional_embedding
        query, key, value = (
            projected.unflatten(-1, (-1, self.attention_head_dim)).transpose(1, 2)  # (B, heads, tokens, head width)
            for projected in (self.to_q(tokens[:, :1]), self.to_k(tokens), self.to_v(tokens))
        )
        pooled = F.scaled_dot_product_attention(query, key, value)  # (B, heads, 1, head width)
        return self.to_out(pooled.flatten(1))


@dataclass
class NoisyClassifierOutput(BaseOutput):
    """Output of [`NoisyClassifierModel`].

    Args:
        logits (`torch.Tensor`): Unnormalized log p(y | x_t), (B, num_classes), in the model's dtype.
    """

    logits: torch.Tensor


class NoisyClassifierModel(ADMTrunkMixin, OpenAICheckpointMixin, ModelMixin, ConfigMixin):
    r"""Predicts log p(y | x_t): the downsampling half of an ADM unet, followed by a pooling head.

    The defaults are the 64x64 ImageNet classifier's.

    Args:
        sample_size (`int` or `tuple[int, int]`): Height and width of the image, multiples of
            `2 ** (len(channel_multipliers) - 1)`.
        in_channels (`int`): Channels of the image.
        num_classes (`int`): Number of classes.
        pool (`str`): How features become logits. `"attention"`: attention pooling over the coarsest level;
            `"adaptive"`: average of the coarsest level; `"spatial"`: averages of every layer's features through two
            linear layers; `"spatial_v2"`: the same with normalization.
        base_channels, channel_multipliers, layers_per_block, attention_resolutions, attention_head_dim,
            num_attention_heads, resample_type, resnet_time_scale_shift, rescale_residual, dropout, norm_num_groups:
            as in [`ADMUNet2DModel`].
        class_names (`list[str]`, *optional*): What the classes are called, in the order of their labels; kept in the
            config.
        num_train_timesteps, rescale_timesteps, beta_schedule, scale_betas: as in [`ADMUNet2DModel`].

    Raises:
        InputError: if the arguments contradict each other; the sentence names the one to change.
    """

    _openai_kind = "classifier"
    _supports_gradient_checkpointing = True
    _skip_layerwise_casting_patterns = ["norm", "positional_embedding"]

    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 64,
        in_channels: int = 3,
        num_classes: int = 1000,
        pool: Pooling = "attention",
        base_channels: int = 128,
        channel_multipliers: tuple[float, ...] = (1, 2, 3, 4),
        layers_per_block: int = 4,
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        attention_head_dim: int | None = None,
        num_attention_heads: int | None = None,
        resample_type: ResampleType = "resnet",
        resnet_time_scale_shift: TimeScaleShift = "scale_shift",
        rescale_residual: bool = False,
        dropout: float = 0.0,
        norm_num_groups: int = 32,
        class_names: list[str] | None = None,
        num_train_timesteps: int | None = None,
        rescale_timesteps: bool = False,
        beta_schedule: str | None = None,
        scale_betas: bool | None = None,
    ):
        super().__init__()
        if pool not in get_args(Pooling):
            raise InputError(f"`pool` must be one of {get_args(Pooling)}, got {pool!r}.")
        self.settle_config()
        unet = UNet2DModel(**unet2d_arguments(self.config))
        self.conv_in = unet.conv_in
        self.down_blocks = unet.down_blocks
        self.mid_block = unet.mid_block
        self.apply_adm_details()

        channels = unet.config.block_out_channels[-1]
        if pool == "attention":
            height, width = height_and_width(sample_size)
            divisor = 2 ** (len(channel_multipliers) - 1)
            self.head = nn.Sequential(
                nn.GroupNorm(norm_num_groups, channels),
                nn.SiLU(),
                AttentionPool2D(
                    channels,
                    num_positions=(height // divisor) * (width // divisor),
                    attention_head_dim=self.config.attention_head_dim or channels // num_attention_heads,
                    out_features=num_classes,
                ),
            )
        elif pool == "adaptive":
            self.head = nn.Sequential(
                nn.GroupNorm(norm_num_groups, channels),
                nn.SiLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(channels, num_classes),
            )
            nn.init.zeros_(self.head[-1].weight)
            nn.init.zeros_(self.head[-1].bias)
        else:
            layers = [self.conv_in, *self._layers_on_the_way_down()]
            num_features = sum(layer.out_channels for layer in layers) + channels
            hidden = SPATIAL_HIDDEN_CHANNELS
            activation = [nn.ReLU()] if pool == "spatial" else [nn.GroupNorm(norm_num_groups, hidden), nn.SiLU()]
            self.head = nn.Sequential(nn.Linear(num_features, hidden), *activation, nn.Linear(hidden, num_classes))

    def _layers_on_the_way_down(self) -> list[nn.Module]:
        """The layers whose outputs the down blocks report, in order."""
        return [layer for block in self.down_blocks for layer in (*block.resnets, *(block.downsamplers or ()))]

    def forward(
        self, sample: torch.Tensor, timestep: torch.Tensor | float | int, return_dict: bool = True
    ) -> NoisyClassifierOutput | tuple[torch.Tensor]:
        """Classifies noisy images.

        Args:
            sample (`torch.Tensor`): Noisy images x_t, (B, in_channels, H, W), floating point.
            timestep (`torch.Tensor`, `float` or `int`): One for all or one per image (B,), in [0, T).
            return_dict (`bool`): Whether to return a [`NoisyClassifierOutput`] or a tuple.

        Returns:
            [`NoisyClassifierOutput`] or `tuple`: `.logits` of shape (B, num_classes), in the model's dtype.

        Raises:
            InputError: if the sample's shape does not fit.
        """
        self.check_sample(sample)
        size = self.config.sample_size
        if self.config.pool == "attention" and tuple(sample.shape[2:]) != height_and_width(size):
            raise InputError(
                f"A classifier with attention pooling takes images of its own size {size}, got {tuple(sample.shape[2:])}."
            )

        features, residuals = self.encode(sample, self.embed_timestep(sample, timestep))
        if self.config.pool.startswith("spatial"):
            features = torch.cat([layer.mean(dim=(2, 3)) for layer in (*residuals, features)], dim=1)
        logits = self.head(features)

        if not return_dict:
            return (logits,)
        return NoisyClassifierOutput(logits=logits)
