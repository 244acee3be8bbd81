"""Networks and pipelines that are small enough for a test, with weights that follow from their names alone."""

from collections import Counter

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.attention_processor import Attention
from reference import rule_state_dict

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel


TRUNK = {
    "sample_size": 8,
    "in_channels": 3,
    "base_channels": 16,
    "channel_multipliers": (1, 2),
    "layers_per_block": 1,
    "attention_resolutions": (4,),
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
NUM_CLASSES = 5


def with_weights(model):
    """`model` in evaluation mode, no layer of it at zero."""
    model.load_state_dict(rule_state_dict({name: tensor.shape for name, tensor in model.state_dict().items()}))
    return model.eval()


def fresh_unet(**changed) -> ADMUNet2DModel:
    return ADMUNet2DModel(**{**TRUNK, **changed})


def fresh_classifier(**changed) -> NoisyClassifierModel:
    return NoisyClassifierModel(**{**TRUNK, "num_classes": NUM_CLASSES, **changed})


def unet(**changed) -> ADMUNet2DModel:
    return with_weights(fresh_unet(**changed))


def classifier(**changed) -> NoisyClassifierModel:
    return with_weights(fresh_classifier(**changed))


def pipeline(pipeline_class, *, conditional=False, scheduler=None, with_classifier=True, low_res_size=None, **changed):
    """Learned variance, `NUM_CLASSES` classes, upsampling if `low_res_size` is given; the rest for unet and classifier."""
    of_unet = {} if low_res_size is None else {"low_res_channels": changed.get("in_channels", TRUNK["in_channels"])}
    pipe = pipeline_class(
        unet=unet(num_class_embeds=NUM_CLASSES if conditional else None, **of_unet, **changed),
        scheduler=scheduler or DDPMScheduler(variance_type="learned_range", timestep_spacing="linspace"),
        classifier=classifier(**{name: value for name, value in changed.items() if name != "out_channels"})
        if with_classifier
        else None,
        **({} if low_res_size is None else {"low_res_size": low_res_size}),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed=0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(batch_size=2, channels=3, size=8, seed=0) -> torch.Tensor:
    """Standard normal (batch_size, channels, *size)."""
    sides = (size, size) if isinstance(size, int) else size
    return torch.randn(batch_size, channels, *sides, generator=seeded(seed))


def attention_calls(model, sample) -> Counter:
    """How often attention runs on maps of each size (H, W) in one forward pass."""
    sizes = Counter()
    layers = [module for module in model.modules() if isinstance(module, Attention)]
    handles = [
        layer.register_forward_pre_hook(lambda _, args: sizes.update([tuple(args[0].shape[2:])])) for layer in layers
    ]
    with torch.no_grad():
        model(sample, 10)
    for handle in handles:
        handle.remove()
    return sizes


def count_forward_passes(module) -> list:
    """A list that grows by one at every forward pass of `module`."""
    passes = []
    module.register_forward_pre_hook(lambda *_: passes.append(None))
    return passes


def parameter_gradients(model, output) -> dict[str, torch.Tensor]:
    model.zero_grad()
    output.square().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def check_refused(pipe, call, error, said) -> None:
    """One sentence from ours, no network has run, and no noise has been drawn."""
    generator = seeded()
    before = generator.get_state()
    passes = [count_forward_passes(network) for network in (pipe.unet, pipe.classifier) if network is not None]
    with pytest.raises(error, match=said) as refused:
        pipe(**{"generator": generator, **call})
    assert not any(passes)
    assert torch.equal(generator.get_state(), before)
    message = str(refused.value)
    assert message.endswith(".") and "\n" not in message
