"""Averages of a model's weights over the training, one per decay."""

import argparse
from collections.abc import Iterable

import torch
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel


class WeightAverages:
    """Exponential moving averages of one model's parameters, by their decay.

    Args:
        model (`ModelMixin`): The model, before it is wrapped for training.
        args (`argparse.Namespace`): The flags `--use_ema` and `--ema_*`.
    """

    def __init__(self, model: ModelMixin, args: argparse.Namespace):
        self.names = [name for name, _ in model.named_parameters()]
        self.by_decay = {
            decay: EMAModel(
                model.parameters(),
                decay=decay,
                min_decay=0.0 if args.ema_warmup else decay,
                use_ema_warmup=args.ema_warmup,
                inv_gamma=args.ema_inv_gamma,
                power=args.ema_power,
                foreach=True,
            )
            for decay in (args.ema_max_decay if args.use_ema else ())
        }

    def step(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Takes in the parameters after an optimizer step."""
        parameters = list(parameters)
        for average in self.by_decay.values():
            average.step(parameters)

    def weights(self) -> dict[float, dict[str, torch.Tensor]]:
        """By decay, the averages by the parameters' names; not copied."""
        return {decay: dict(zip(self.names, average.shadow_params)) for decay, average in self.by_decay.items()}
