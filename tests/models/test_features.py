"""Features of blocks, by our names and by OpenAI's."""

import pytest
import tiny
import torch
from reference import reference_classifier, reference_unet

from diffusers_cg import ADMUNet2DModel
from diffusers_cg.errors import InputError
from diffusers_cg.models.openai_layout import openai_blocks, openai_entries
from diffusers_cg.models.presets import PRESETS


OURS = ["down_blocks.1", "mid_block", "up_blocks.1", "up_blocks.0.resnets.0", "conv_out"]


def hooked(model, names, *inputs) -> dict[str, torch.Tensor]:
    """What modules of these names give in a pass."""
    seen = {}
    handles = [
        model.get_submodule(name).register_forward_hook(lambda _, __, output, name=name: seen.update({name: output}))
        for name in names
    ]
    model(*inputs)
    for handle in handles:
        handle.remove()
    return {name: output[0] if isinstance(output, tuple) else output for name, output in seen.items()}


def test_features_are_what_the_modules_give():
    unet, inputs = tiny.unet(num_class_embeds=5), (tiny.images(), 10, torch.tensor([0, 3]))
    passes = tiny.count_forward_passes(unet)
    with torch.no_grad():
        features = unet.features(*inputs[:2], class_labels=inputs[2], blocks=OURS)
        assert len(passes) == 1 and list(features) == OURS
        for name, seen in hooked(unet, OURS, *inputs).items():
            assert torch.equal(features[name], seen), name
        assert torch.equal(features["conv_out"], unet(*inputs).sample)
        assert torch.equal(unet.features(*inputs, blocks="mid_block")["mid_block"], features["mid_block"])
    assert not any(module._forward_hooks for module in unet.modules())


@pytest.mark.parametrize("name", ["new_order_heads_by_width", "adagn_without_updown", "classifier"])
def test_openai_blocks_end_with_their_last_layer(name):
    """By the names of their parameters: `output_blocks.6.2.conv.weight` is of layer 2 of that block, the upsampling."""
    model = reference_classifier("attention") if name == "classifier" else reference_unet(name)
    ours = {"input_blocks.0": "conv_in", "middle_block": "mid_block"}
    for entry in openai_entries(model):  # the last parameter of a block is of its last layer
        part, number, *_ = entry.openai.split(".")
        if part in ("input_blocks", "output_blocks") and "conv_in" not in entry.ours[0]:
            ours[f"{part}.{number}"] = ".".join(entry.ours[0].split(".")[:4])  # up_blocks.0.upsamplers.0
    assert ours == openai_blocks(model)

    sample = torch.randn(2, 3, 16, 16, generator=tiny.seeded())
    inputs = (sample, 10) if name == "classifier" else (sample, 10, torch.tensor([0, 1]))
    with torch.no_grad():
        features, seen = model.features(*inputs, blocks=[*ours]), hooked(model, ours.values(), *inputs)
    assert all(torch.equal(features[name], seen[key]) for name, key in ours.items())


def test_openai_blocks_of_the_64x64_model_have_its_shapes():
    with torch.device("meta"):
        unet = ADMUNet2DModel(**PRESETS["64x64_diffusion"].architecture)
        names = ["input_blocks.0", "input_blocks.3", "input_blocks.4", "input_blocks.12", "middle_block"]
        names += [f"output_blocks.{i}" for i in (2, 3, 6, 7, 11, 15)]
        inputs = torch.zeros(1, 3, 64, 64), torch.zeros(1), torch.zeros(1, dtype=torch.int64)
        shapes = [tuple(each.shape[1:3]) for each in unet.features(*inputs, blocks=names).values()]
    down = [(192, 64), (192, 64), (192, 32), (576, 8), (768, 8)]
    assert shapes == down + [(768, 8), (768, 16), (576, 16), (576, 32), (384, 64), (192, 64)]


def test_gradients_flow_where_they_are_on():
    classifier, sample = tiny.classifier(), tiny.images().requires_grad_(True)
    features = classifier.features(sample, 10, blocks="input_blocks.2")["input_blocks.2"]
    (gradient,) = torch.autograd.grad(features.square().sum(), sample)
    assert gradient.abs().sum() > 0
    with torch.no_grad():
        assert not classifier.features(sample, 10, blocks="input_blocks.2")["input_blocks.2"].requires_grad


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("output_block.2", "no block 'output_block.2'; the nearest name is 'output_blocks.2'"),
        ("up_blocks.0.resnet.0", "nearest name is 'up_blocks.0.resnets.0'"),
        ("class_embedding", "does not run 'class_embedding'"),
    ],
)
def test_unknown_blocks_are_said(block, said):
    unet = tiny.unet(num_class_embeds=5, label_dropout=0.1)
    with pytest.raises(InputError, match=said):
        unet.features(tiny.images(), 10, blocks=["mid_block", block])
    assert not any(module._forward_hooks for module in unet.modules())
