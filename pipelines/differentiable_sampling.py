"""Sampling as a function with a gradient: each step is computed again when its gradient is due, so no other's graph is kept."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps

import torch
from torch import nn
from torch.autograd.function import once_differentiable

from diffusers_cg.diffusion import Generators
from diffusers_cg.errors import InputError
from diffusers_cg.guidance import evaluating


Move = Callable[..., torch.Tensor]
"""(x_t, number of the step, keeps_graph) -> x_{t-1}, both (B, C, H, W)."""


def without_graph(call: Callable) -> Callable:
    """A pipeline's call, whose images have no graph unless it is differentiable; outside inference mode, since a guidance may
    want gradients."""

    @wraps(call)
    def sample(self, *args, **kwargs):
        keeps_graph = self.is_differentiable and torch.is_grad_enabled()
        with torch.inference_mode(False), torch.set_grad_enabled(keeps_graph):
            return call(self, *args, **kwargs)

    return sample


def with_gradient(move: Move, networks: list[nn.Module], generator: Generators, checkpointing: bool) -> Move:
    """`move`, with a graph from x_{t-1} back to x_t where x_t has one: whole, or checkpointed.

    The networks are evaluated without gradients of their parameters.

    Raises:
        InputError: if a network checkpoints its blocks, whose second pass would come when it is no longer evaluated.
    """
    if not checkpointing and any(getattr(network, "is_gradient_checkpointing", False) for network in networks):
        raise InputError(
            "A network with gradient checkpointing is differentiated step by step alone: leave `checkpointing` on, or call its "
            "disable_gradient_checkpointing()."
        )

    def take(sample: torch.Tensor, index: int) -> torch.Tensor:
        if sample.requires_grad and checkpointing:
            step = partial(move, index=index)
            return CheckpointedStep.apply(step, networks, sources(generator, sample.device), sample)
        with evaluated(networks):
            return move(sample, index, keeps_graph=sample.requires_grad)

    return take


@contextmanager
def evaluated(networks: list[nn.Module]) -> Iterator[None]:
    """[`evaluating`] of several; compiled ones go without, since their gradients have no gradient."""
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for network in networks:
            stack.enter_context(evaluating(network))
        yield


class CheckpointedStep(torch.autograd.Function):
    """x_t -> x_{t-1}, of which x_t alone is kept; for its gradient the step is taken again, with a graph and the same noise.

    The step is taken at first as in any call, its guidance's own backward passes included, which is what
    `torch.utils.checkpoint` cannot do without taking it twice: there the graph that they go through holds nothing.
    """

    @staticmethod
    def forward(
        ctx, move: Move, networks: list[nn.Module], generators: list[torch.Generator], sample: torch.Tensor
    ) -> torch.Tensor:
        ctx.move, ctx.networks, ctx.generators = move, networks, generators
        ctx.states = [each.get_state() for each in generators]
        ctx.save_for_backward(sample)
        with evaluated(networks):
            return move(sample.detach())

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: torch.Tensor) -> tuple[None, None, None, torch.Tensor]:
        (sample,) = ctx.saved_tensors
        now = [each.get_state() for each in ctx.generators]
        for each, state in zip(ctx.generators, ctx.states):
            each.set_state(state)
        try:
            with torch.enable_grad(), evaluated(ctx.networks):
                sample = sample.detach().requires_grad_(True)
                prev_sample = ctx.move(sample, keeps_graph=True)
                return None, None, None, torch.autograd.grad(prev_sample, sample, gradient)[0]
        finally:
            for each, state in zip(ctx.generators, now):
                each.set_state(state)


def sources(generator: Generators, device: torch.device) -> list[torch.Generator]:
    """The generators that a call draws from: its own, or PyTorch's."""
    if generator is not None:
        return generator if isinstance(generator, list) else [generator]
    if device.type == "cpu":
        return [torch.default_generator]
    if device.type == "mps":
        return [torch.mps._get_default_mps_generator()]
    module = torch.get_device_module(device)
    return [module.default_generators[module.current_device() if device.index is None else device.index]]
