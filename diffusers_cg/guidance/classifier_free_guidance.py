"""Guidance by a second prediction: eps_other + w (eps - eps_other), away from what another network, or less of this one, sees."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from diffusers.models.attention_processor import Attention
from torch import nn

from diffusers_cg.diffusion import check_trained_process
from diffusers_cg.errors import InputError
from diffusers_cg.guidance.classifier_guidance import evaluating
from diffusers_cg.guidance.guidance import Guidance, check_per_image, per_image
from diffusers_cg.guidance.guided_step import GuidedCall, GuidedStep


class PredictionGuidance(Guidance, ABC):
    """eps_other + w (eps - eps_other): base; a subclass overrides [`other_noise`].

    Args:
        scale (`float` or one per image): w, `guidance_scale` of diffusers: 1 is off.
    """

    def __init__(self, scale: float | Sequence[float] | torch.Tensor):
        self.scale = per_image("`scale`", scale)

    def check(self, call: GuidedCall) -> None:
        check_per_image("`scale`", self.scale, call)

    @abstractmethod
    def other_noise(self, step: GuidedStep) -> torch.Tensor:
        """What the sample is led away from, (B, C, H, W)."""

    def mix(self, step: GuidedStep) -> torch.Tensor:
        other = self.other_noise(step)
        return other + self.scale.to(other) * (step.noise - other)


class ClassifierFreeGuidance(PredictionGuidance):
    """*Classifier-Free Diffusion Guidance* (Ho and Salimans, 2022): the other prediction is the unet's without a class.

    The unet must have been trained with labels left out at times (`train_unet.py --label_dropout 0.1`).

    Args:
        scale (`float` or one per image): w of diffusers, 1 + w of the paper: 1 is off.
    """

    def check(self, call: GuidedCall) -> None:
        super().check(call)
        if not call.unet.config.get("label_dropout"):
            raise InputError(
                "This unet has not learned to do without a class, as classifier-free guidance asks it to: train one with "
                "`train_unet.py --label_dropout 0.1`, or guide by PerturbedAttentionGuidance or AutoGuidance."
            )
        if call.class_labels is None:
            raise InputError("`class_labels` are missing: classifier-free guidance leads to one per image.")

    def other_noise(self, step: GuidedStep) -> torch.Tensor:
        return step.predict(step.sample, step.timestep, None).noise


class AutoGuidance(PredictionGuidance):
    """*Guiding a Diffusion Model with a Bad Version of Itself* (Karras et al., 2024): the other prediction is that of a
    smaller or less trained unet, or of the second average that training keeps.

    Args:
        weak_unet (`UNet2DModel`): Takes and gives what the pipeline's unet does, for the same noise schedule.
        scale (`float` or one per image): w of the paper: 1 is off.
    """

    def __init__(self, weak_unet: nn.Module, scale: float | Sequence[float] | torch.Tensor):
        super().__init__(scale)
        self.weak_unet = weak_unet

    def check(self, call: GuidedCall) -> None:
        super().check(call)
        check_unet("weak unet", self.weak_unet, call)

    def other_noise(self, step: GuidedStep) -> torch.Tensor:
        with evaluating(self.weak_unet):
            return step.predict(step.sample, step.timestep, step.class_labels, unet=self.weak_unet).noise


class PerturbedAttentionGuidance(PredictionGuidance):
    """*Self-Rectifying Diffusion Sampling with Perturbed-Attention Guidance* (Ahn et al., 2024), eps + s (eps - eps_perturbed):
    the other prediction is that of the same weights, where some attention sees each position alone.

    Args:
        unet (`UNet2DModel`): The pipeline's; not changed.
        scale (`float` or one per image): s of the paper: 0 is off.
        blocks (sequence of `str`, or one): Attention is perturbed in modules whose names begin with one of these; the paper's
            for ADM is the middle block.

    Raises:
        InputError: if no attention bears such a name.
    """

    def __init__(
        self,
        unet: nn.Module,
        scale: float | Sequence[float] | torch.Tensor,
        blocks: Sequence[str] = ("mid_block",),
    ):
        super().__init__(1 + per_image("`scale`", scale))
        blocks = (blocks,) if isinstance(blocks, str) else tuple(blocks)
        shared = {id(weight): weight for weight in [*unet.parameters(), *unet.buffers()]}
        self.perturbed_unet = copy.deepcopy(unet, shared)  # the same weights under modules of its own
        attentions = {name: each for name, each in self.perturbed_unet.named_modules() if isinstance(each, Attention)}
        perturbed = [each for name, each in attentions.items() if name.startswith(blocks)]
        if not perturbed:
            raise InputError(f"No attention begins with {list(blocks)}; the unet's are {list(attentions)}.")
        for attention in perturbed:
            attention.set_processor(IdentityAttention())

    def check(self, call: GuidedCall) -> None:
        super().check(call)
        check_unet("unet of the guidance", self.perturbed_unet, call)

    def other_noise(self, step: GuidedStep) -> torch.Tensor:
        with evaluating(self.perturbed_unet):
            return step.predict(step.sample, step.timestep, step.class_labels, unet=self.perturbed_unet).noise


def check_unet(name: str, unet: nn.Module, call: GuidedCall) -> None:
    """Raises `InputError` where the unet, by what it is called, cannot be asked about the samples of the call."""
    check_trained_process(call.scheduler, **{name: unet})
    config, of_call = unet.config, call.unet.config
    facts = [
        ("image channels", config.in_channels, call.shape[1]),
        ("low-resolution channels", config.get("low_res_channels") or 0, of_call.get("low_res_channels") or 0),
    ]
    if None not in (config.num_class_embeds, of_call.num_class_embeds):
        facts.append(("classes", config.num_class_embeds, of_call.num_class_embeds))
    for fact, own, asked in facts:
        if own != asked:
            raise InputError(f"The {name} knows {own} {fact}, but the call has {asked}.")
    if config.num_class_embeds is not None and not config.get("label_dropout") and call.class_labels is None:
        raise InputError(f"`class_labels` are missing: the {name} needs one per image.")
    divisor = 2 ** (len(unet.down_blocks) - 1)
    if any(side % divisor for side in call.shape[2:]):
        raise InputError(
            f"The {name} reads images whose sides are multiples of {divisor}, not of {tuple(call.shape[2:])}."
        )


class IdentityAttention:
    """Attention whose matrix is the identity: each position gets its own value."""

    def __call__(self, attn: Attention, hidden_states: torch.Tensor, temb=None, **ignored) -> torch.Tensor:
        residual, shape = hidden_states, hidden_states.shape
        hidden_states = hidden_states.flatten(2).transpose(1, 2)  # (B, H W, C)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        hidden_states = attn.to_out[1](attn.to_out[0](attn.to_v(hidden_states)))
        hidden_states = hidden_states.transpose(1, 2).reshape(shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        return hidden_states / attn.rescale_output_factor
