"""Averages of a model's weights over the training, one per decay."""

import argparse
from collections.abc import Iterable

import torch
from diffusers import ModelMixin
from diffusers.training_utils import EMAModel


class WeightAverages:
    """Exponential moving averages of one model's parameters, by their decay.

    Args:
        parameters (`Iterable[torch.nn.Parameter]`): The model's, always in the same order.
        args (`argparse.Namespace`): The flags `--ema_*`.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], args: argparse.Namespace):
        parameters = list(parameters)
        self.by_decay = {
            decay: EMAModel(
                parameters,
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

    def models(self, model: ModelMixin) -> dict[float | None, ModelMixin]:
        """The model with each average as its weights, in evaluation mode, by decay; if there is none, itself by None.

        They share the memory of the averages (or the weights), so they are to look at and to save, not to train.
        """
        named = [name for name, _ in model.named_parameters()]
        weights = {decay: average.shadow_params for decay, average in self.by_decay.items()} or {
            None: list(model.parameters())
        }
        return {decay: _with_weights(model, dict(zip(named, tensors))) for decay, tensors in weights.items()}


def _with_weights(model: ModelMixin, parameters: dict[str, torch.Tensor]) -> ModelMixin:
    with torch.device("meta"):
        other = type(model).from_config(model.config)
    state_dict = {name: tensor.detach() for name, tensor in {**model.state_dict(), **parameters}.items()}
    other.load_state_dict(state_dict, assign=True)
    return other.eval().requires_grad_(False)
