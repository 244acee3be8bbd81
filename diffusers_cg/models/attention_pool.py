"""CLIP's attention pooling, the head of the noisy classifier."""

import torch
import torch.nn.functional as F
from torch import nn


class AttentionPool2D(nn.Module):
    """CLIP's attention pooling: the mean of all positions attends to every position and becomes the output.

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
