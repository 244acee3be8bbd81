"""Which timesteps to train on (*Improved DDPM*, section 3.3)."""

from collections.abc import Sequence
from typing import Protocol

import torch

from diffusers_cg.diffusion.generators import Generators


class TimestepSampler(Protocol):
    """Draws timesteps (B,) int64, and the weights (B,) float32 that keep the mean loss of uniform ones."""

    def sample(self, batch_size: int, generator: Generators = None) -> tuple[torch.Tensor, torch.Tensor]: ...


class UniformSampler:
    """Draws every timestep as often as any other.

    Args:
        num_train_timesteps (`int`): T.
    """

    def __init__(self, num_train_timesteps: int):
        self.num_train_timesteps = num_train_timesteps

    def sample(self, batch_size: int, generator: Generators = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps (B,) int64, and weights (B,) of 1."""
        timesteps = [torch.randint(self.num_train_timesteps, (), generator=g) for g in _each(generator, batch_size)]
        return torch.stack(timesteps), torch.ones(batch_size)


class LossSecondMomentSampler:
    """Draws timesteps in proportion to the root mean square of their recent losses, and weighs the losses to match.

    The weighted losses keep the mean that uniform timesteps would give, with less variance. Until every timestep has
    its full history, timesteps are uniform.

    Args:
        num_train_timesteps (`int`): T.
        history_size (`int`): Losses that are remembered per timestep.
        uniform_probability (`float`): Share of the draws that stays uniform, so that no timestep dies out.
    """

    def __init__(self, num_train_timesteps: int, history_size: int = 10, uniform_probability: float = 0.001):
        self.uniform_probability = uniform_probability
        self.losses = torch.zeros(num_train_timesteps, history_size, dtype=torch.float64)
        self.counts = torch.zeros(num_train_timesteps, dtype=torch.int64)

    @property
    def probabilities(self) -> torch.Tensor:
        """Probability of every timestep, (T,), float64."""
        num_timesteps, history_size = self.losses.shape
        if bool((self.counts < history_size).any()):
            return torch.full((num_timesteps,), 1 / num_timesteps, dtype=torch.float64)
        root_mean_squares = self.losses.square().mean(dim=1).sqrt()
        share = root_mean_squares / root_mean_squares.sum()
        return share * (1 - self.uniform_probability) + self.uniform_probability / num_timesteps

    def sample(self, batch_size: int, generator: Generators = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Timesteps (B,) int64, and the weights (B,) float32 of their losses.

        Each is where one uniform number falls in the cumulated probabilities.
        """
        probabilities = self.probabilities
        cumulated = probabilities.cumsum(0)
        uniform = [torch.rand((), generator=g, dtype=torch.float64) for g in _each(generator, batch_size)]
        timesteps = torch.searchsorted(cumulated, torch.stack(uniform) * cumulated[-1], right=True)
        timesteps = timesteps.clamp(max=len(probabilities) - 1)
        return timesteps, (1 / (len(probabilities) * probabilities[timesteps])).float()

    def update(self, timesteps: torch.Tensor, losses: torch.Tensor) -> None:
        """Remembers unweighted losses (B,) at their timesteps (B,); the oldest are forgotten."""
        history_size = self.losses.shape[1]
        for timestep, loss in zip(timesteps.tolist(), losses.tolist()):
            self.losses[timestep, self.counts[timestep] % history_size] = loss
            self.counts[timestep] += 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"losses": self.losses.clone(), "counts": self.counts.clone()}

    def load_state_dict(self, state_dict: dict[str, torch.Tensor]) -> None:
        self.losses.copy_(state_dict["losses"])
        self.counts.copy_(state_dict["counts"])


def _each(generator: Generators, batch_size: int) -> Sequence[torch.Generator | None]:
    return generator if isinstance(generator, Sequence) else [generator] * batch_size
