"""ADMUNet2DModel: every switch of section 3, its files, and what it refuses."""

import inspect
import json
from collections import Counter
from itertools import combinations

import pytest
import tiny
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch.nn.functional import silu

from diffusers_cg import ADMUNet2DModel
from diffusers_cg.errors import InputError
from diffusers_cg.models import with_replaced
from diffusers_cg.models.adm_unet import NO_CLASS


LEVELS = [levels for number in range(4) for levels in combinations((16, 8, 4), number)]


def modules(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


# ------------------------------------------------------------------------------------------------------- the switches


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
@pytest.mark.parametrize("learned", [True, False])
@torch.no_grad()
def test_channels_and_variance(channels, learned):
    unet = tiny.unet(in_channels=channels, out_channels=channels * (1 + learned))
    output = unet(tiny.images(channels=channels), 10).sample
    assert output.shape == (2, channels * (1 + learned), 8, 8)
    assert unet.predicts_variance == learned


@pytest.mark.parametrize("size", [(16, 8), (8, 24)])
def test_images_that_are_not_square(size):
    unet = tiny.unet(sample_size=size)
    assert tiny.attention_calls(unet, tiny.images(size=size)) == {(size[0] // 2, size[1] // 2): 4}
    assert unet(tiny.images(size=size), 10).sample.shape == (2, 6, *size)


def test_widths_are_fractions_and_multiples_of_the_base():
    unet = tiny.unet(channel_multipliers=(0.5, 1, 2.5))
    assert [block.resnets[0].out_channels for block in unet.down_blocks] == [8, 16, 40]
    assert [block.resnets[0].out_channels for block in unet.up_blocks] == [40, 16, 8]
    assert unet.time_proj.num_channels == 16
    assert unet.time_embedding.linear_2.out_features == 64
    assert unet(tiny.images(), 10).sample.shape == (2, 6, 8, 8)


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("resample_type", ["resnet", "conv"])
def test_attention_at_any_levels(levels, resample_type):
    unet = tiny.unet(
        sample_size=16, channel_multipliers=(1, 1, 1), attention_resolutions=levels, resample_type=resample_type
    )
    calls = tiny.attention_calls(unet, tiny.images(size=16))
    # one layer per block on the way down, two on the way up, and the middle always
    assert calls == Counter({(level, level): 3 for level in levels}) + Counter({(4, 4): 1})


def test_heads_by_width():
    unet = tiny.unet(channel_multipliers=(1, 2), attention_resolutions=(8, 4), attention_head_dim=8)
    assert {(layer.inner_dim, layer.heads) for layer in modules(unet, Attention)} == {(16, 2), (32, 4)}


def test_heads_by_number():
    unet = tiny.unet(
        channel_multipliers=(1, 2), attention_resolutions=(8, 4), attention_head_dim=None, num_attention_heads=4
    )
    assert {(layer.inner_dim, layer.heads) for layer in modules(unet, Attention)} == {(16, 4), (32, 4)}


def test_head_width_is_64_unless_stated():
    unet = tiny.fresh_unet(base_channels=64, attention_head_dim=None)
    assert unet.config.attention_head_dim == 64
    assert {layer.heads for layer in modules(unet, Attention)} == {2}


@torch.no_grad()
def test_as_many_heads_compute_the_same_however_stated():
    def output(**heads):
        return tiny.unet(**{"attention_head_dim": None, **heads})(tiny.images(), 10).sample

    assert torch.equal(output(num_attention_heads=4), output(attention_head_dim=8))
    assert not torch.allclose(output(num_attention_heads=2), output(attention_head_dim=8), atol=1e-3)


@pytest.mark.parametrize(
    "resample_type, kinds", [("resnet", {ResnetBlock2D}), ("conv", {Downsample2D, Upsample2D})], ids=["resnet", "conv"]
)
def test_resampling(resample_type, kinds):
    unet = tiny.fresh_unet(channel_multipliers=(1, 1, 1), sample_size=16, resample_type=resample_type)
    resamplers = [block.downsamplers[0] for block in unet.down_blocks[:-1]]
    resamplers += [block.upsamplers[0] for block in unet.up_blocks[:-1]]
    assert len(resamplers) == 4
    assert {type(layer) for layer in resamplers} == kinds
    if resample_type == "conv":
        assert all(layer.conv is not None for layer in resamplers), "learned, not pooled"


@torch.no_grad()
def test_adaptive_group_norm():
    adaptive, default = (tiny.unet(resnet_time_scale_shift=kind) for kind in ("scale_shift", "default"))
    hidden, emb = tiny.images(channels=32), tiny.images(2, 64, 1)[:, :, 0, 0]

    block = default.mid_block.resnets[0]
    shift = block.time_emb_proj(silu(emb))[:, :, None, None]
    inner = block.norm2(block.conv1(silu(block.norm1(hidden))) + shift)
    assert torch.allclose(block(hidden, emb), hidden + block.conv2(silu(inner)), rtol=1e-4, atol=1e-5)

    block = adaptive.mid_block.resnets[0]
    scale, shift = block.time_emb_proj(silu(emb))[:, :, None, None].chunk(2, dim=1)
    inner = block.norm2(block.conv1(silu(block.norm1(hidden)))) * (1 + scale) + shift
    assert torch.allclose(block(hidden, emb), hidden + block.conv2(silu(inner)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rescale, factor", [(False, 1.0), (True, 2**-0.5)])
@torch.no_grad()
def test_fresh_blocks_pass_their_input_on(rescale, factor):
    """Their last layers start at zero; `rescale_residual` divides the sum."""
    unet = tiny.fresh_unet(rescale_residual=rescale)
    hidden, emb = tiny.images(channels=32, size=4), torch.ones(2, 64)
    assert torch.allclose(unet.mid_block.resnets[0](hidden, emb), factor * hidden)
    assert torch.allclose(unet.mid_block.attentions[0](hidden), factor * hidden)


def test_fresh_layers_start_at_zero():
    unet = tiny.fresh_unet()
    last = [block.conv2 for block in modules(unet, ResnetBlock2D)]
    last += [layer.to_out[0] for layer in modules(unet, Attention)]
    assert len(last) == 10 + 4
    assert all(not parameter.any() for layer in last for parameter in layer.parameters())
    assert not unet(tiny.images(), 10).sample.any()


def test_dropout_acts_in_training_only():
    sample = tiny.images()
    unet = tiny.unet(dropout=0.5)
    assert torch.equal(unet(sample, 10).sample, unet(sample, 10).sample)
    assert torch.equal(unet(sample, 10).sample, tiny.unet(dropout=0.0).train()(sample, 10).sample)
    unet.train()
    assert not torch.allclose(unet(sample, 10).sample, unet(sample, 10).sample)


@pytest.mark.parametrize("num_classes", [1, 7, 1000])
@torch.no_grad()
def test_any_number_of_classes(num_classes):
    unet = tiny.unet(num_class_embeds=num_classes)
    assert unet.class_embedding.weight.shape == (num_classes, 64)
    last = unet(tiny.images(), 10, torch.full((2,), num_classes - 1)).sample
    first = unet(tiny.images(), 10, torch.zeros(2, dtype=torch.int64)).sample
    assert torch.equal(first, last) == (num_classes == 1)


# ------------------------------------------------------------------------------------------------------ in and out


@torch.no_grad()
def test_dictionary_or_tuple():
    unet = tiny.unet()
    sample = tiny.images()
    (output,) = unet(sample, 10, return_dict=False)
    assert torch.equal(output, unet(sample, 10).sample)


@torch.no_grad()
def test_timestep_of_any_form():
    unet = tiny.unet()
    sample = tiny.images()
    expected = unet(sample, torch.tensor([10, 10])).sample
    for timestep in (10, 10.0, torch.tensor(10), torch.tensor([10]), torch.tensor([10.0, 10.0])):
        assert torch.equal(unet(sample, timestep).sample, expected)
    assert not torch.allclose(unet(sample, 11).sample, expected)


@torch.no_grad()
def test_image_alone_is_as_in_a_batch():
    unet = tiny.unet(num_class_embeds=3, attention_resolutions=(8, 4))
    sample, timesteps, labels = tiny.images(4), torch.tensor([0, 10, 500, 999]), torch.tensor([0, 1, 2, 1])
    together = unet(sample, timesteps, labels).sample
    for i in range(4):
        alone = unet(sample[i : i + 1], timesteps[i], labels[i : i + 1]).sample
        assert torch.allclose(alone[0], together[i], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- the files


def test_config_states_the_arguments_of_the_constructor_and_no_others(tmp_path):
    unet = tiny.unet(sample_size=(16, 8), channel_multipliers=(0.5, 1), num_class_embeds=3)
    unet.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    stated = {name: value for name, value in config.items() if not name.startswith("_")}
    assert set(stated) == set(inspect.signature(ADMUNet2DModel).parameters)
    assert config["_class_name"] == "ADMUNet2DModel"
    assert stated["sample_size"] == [16, 8] and stated["channel_multipliers"] == [0.5, 1]
    assert stated["num_class_embeds"] == 3 and stated["base_channels"] == 16


def test_class_names_are_kept_and_configs_without_them_load(tmp_path):
    names = ["ant", "bee", "a longer name"]
    tiny.unet(num_class_embeds=3, class_names=names).save_pretrained(tmp_path)
    assert ADMUNet2DModel.from_pretrained(tmp_path).config.class_names == names
    config = json.loads((tmp_path / "config.json").read_text())
    del config["class_names"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ADMUNet2DModel.from_pretrained(tmp_path).config.class_names is None


@pytest.mark.parametrize(
    ("class_names", "num_class_embeds", "said"),
    [
        (["a", "b"], 3, "holds 2 names, but `num_class_embeds` is 3"),
        (["a", "b"], None, "holds 2 names, but `num_class_embeds` is None"),
        ("abc", 3, "must be a list of strings, one per class, got 'abc'"),
        ([1, 2, 3], 3, r"must be a list of strings, one per class, got \[1, 2, 3\]"),
    ],
    ids=str,
)
def test_class_names_that_do_not_fit(class_names, num_class_embeds, said):
    with pytest.raises(InputError, match=f"^`class_names` {said}\\.$"):
        tiny.fresh_unet(num_class_embeds=num_class_embeds, class_names=class_names)


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"resample_type": "conv", "resnet_time_scale_shift": "default", "rescale_residual": True},
        {"attention_head_dim": None, "num_attention_heads": 2, "num_class_embeds": 3},
        {"sample_size": (16, 8), "channel_multipliers": (0.5, 1, 2), "in_channels": 1, "out_channels": 1},
    ],
    ids=["plain", "conv", "heads and classes", "sizes"],
)
@torch.no_grad()
def test_saved_and_loaded(tmp_path, changed):
    unet = tiny.unet(**changed)
    unet.save_pretrained(tmp_path)
    loaded = ADMUNet2DModel.from_pretrained(tmp_path)
    assert not loaded.training
    sample = tiny.images(channels=unet.config.in_channels, size=unet.config.sample_size)
    labels = torch.tensor([0, 2]) if unet.config.num_class_embeds else None
    assert torch.equal(loaded(sample, 10, labels).sample, unet(sample, 10, labels).sample)


@torch.no_grad()
def test_half_precision_files(tmp_path):
    unet = tiny.unet()
    unet.save_pretrained(tmp_path)
    halved = ADMUNet2DModel.from_pretrained(tmp_path, torch_dtype=torch.float16)
    unet.half().save_pretrained(tmp_path, variant="fp16")
    assert (tmp_path / "diffusion_pytorch_model.fp16.safetensors").is_file()
    variant = ADMUNet2DModel.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    for model in (halved, variant):
        assert model.dtype == torch.float16
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, unet.state_dict()[name])
    output = halved(tiny.images().half(), torch.tensor([10, 900])).sample
    assert output.dtype == torch.float16
    expected = tiny.unet()(tiny.images(), torch.tensor([10, 900])).sample
    assert (output.float() - expected).norm() / expected.norm() < 0.01


# ------------------------------------------------------------------------------------------------ diffusers' features


def test_gradient_checkpointing_computes_again_and_the_same():
    unet = tiny.unet(num_class_embeds=3).train()
    arguments = tiny.images(), torch.tensor([10, 500]), torch.tensor([0, 2])
    expected = tiny.parameter_gradients(unet, unet(*arguments).sample)
    unet.enable_gradient_checkpointing()
    passes = [tiny.count_forward_passes(block.resnets[0]) for block in (*unet.down_blocks, *unet.up_blocks)]
    gradients = tiny.parameter_gradients(unet, unet(*arguments).sample)
    assert [len(passed) for passed in passes] == [2, 2, 2, 2]
    assert all(torch.allclose(gradients[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


@pytest.mark.parametrize(
    "heads", [{}, {"attention_head_dim": None, "num_attention_heads": 2}], ids=["width", "number"]
)
@torch.no_grad()
def test_attention_processors_agree(heads):
    unet = tiny.unet(attention_resolutions=(8, 4), **heads)
    outputs = []
    for processor in (AttnProcessor(), AttnProcessor2_0()):
        unet.set_attn_processor(processor)
        assert all(used is processor for used in unet.attn_processors.values()) and len(unet.attn_processors) == 7
        outputs.append(unet(tiny.images(), 10).sample)
    assert torch.allclose(*outputs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_layerwise_casting():
    unet = tiny.unet()
    expected = unet(tiny.images(), 10).sample
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert unet.down_blocks[0].resnets[0].conv1.weight.dtype == torch.float8_e4m3fn
    output = unet(tiny.images(), 10).sample
    assert output.dtype == torch.float32
    assert 0 < (output - expected).norm() / expected.norm() < 0.2


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"out_channels": 4}, "`out_channels` must be 3 .* or 6 .* got 4"),
        ({"sample_size": 7}, "`sample_size` is 7.*multiples of 2"),
        ({"sample_size": 0}, "`sample_size` is 0"),
        ({"sample_size": (8, 7)}, r"`sample_size` is \(8, 7\)"),
        ({"sample_size": (8, 8, 8)}, "`sample_size` is"),
        ({"channel_multipliers": ()}, "`channel_multipliers`"),
        ({"channel_multipliers": (1, 0)}, "A level has 0 channels"),
        ({"channel_multipliers": (1, -1)}, "A level has -16 channels"),
        ({"base_channels": 12}, "12 channels, which 8 normalization groups do not divide"),
        ({"base_channels": 0}, "`base_channels` must be at least 1"),
        ({"in_channels": 0, "out_channels": 0}, "`in_channels` must be at least 1"),
        ({"norm_num_groups": 0}, "`norm_num_groups` must be at least 1"),
        ({"layers_per_block": 0}, "`layers_per_block` must be at least 1"),
        ({"attention_resolutions": (5,)}, r"`attention_resolutions` names \[5\].*\[8, 4\]"),
        ({"attention_head_dim": 12}, "32 channels, which cannot be split"),
        ({"attention_head_dim": None}, "32 channels, which cannot be split.*attention_head_dim=64"),
        ({"attention_head_dim": 0}, "`attention_head_dim` must be at least 1"),
        ({"attention_head_dim": None, "num_attention_heads": 5}, "num_attention_heads=5"),
        ({"attention_head_dim": None, "num_attention_heads": 0}, "`num_attention_heads` must be at least 1"),
        ({"num_attention_heads": 2}, "either by width .* or by number"),
        ({"resample_type": "pool"}, "`resample_type` must be one of .*got 'pool'"),
        ({"resnet_time_scale_shift": "ada_group"}, "`resnet_time_scale_shift` must be one of"),
        ({"num_class_embeds": 0}, "`num_class_embeds` must be at least 1"),
        ({"dropout": 1.5}, "dropout.*between 0 and 1"),
        ({"num_class_embeds": 3, "label_dropout": 1.0}, r"`label_dropout` must lie in \[0, 1\)"),
        ({"label_dropout": 0.1}, "`label_dropout` must .* be 0 without classes"),
    ],
    ids=str,
)
def test_refused_arguments(changed, said):
    with pytest.raises(InputError, match=said):
        tiny.fresh_unet(**changed)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 7), (3, 8, 8)], ids=str)
def test_refused_samples(shape):
    with pytest.raises(InputError, match=r"takes a sample of shape \(batch, 3, height, width\).*multiples of 2"):
        tiny.unet()(torch.zeros(shape), 10)


def test_labels_given_exactly_where_wanted():
    with pytest.raises(InputError, match="class-conditional: pass `class_labels`"):
        tiny.unet(num_class_embeds=3)(tiny.images(), 10)
    with pytest.raises(InputError, match="takes no `class_labels`"):
        tiny.unet()(tiny.images(), 10, torch.tensor([0, 1]))


def test_label_dropout_predicts_without_a_class_by_the_same_parameters():
    plain, unet = tiny.unet(num_class_embeds=3), tiny.unet(num_class_embeds=3, label_dropout=0.1)
    assert unet.state_dict().keys() == plain.state_dict().keys()
    images, labels = tiny.images(3), torch.tensor([2, NO_CLASS, 0])
    of_classes, without = unet(images, 10, torch.tensor([2, 1, 0])).sample, unet(images, 10).sample
    assert torch.equal(of_classes, plain(images, 10, torch.tensor([2, 1, 0])).sample)
    assert torch.equal(without, tiny.unet()(images, 10).sample)  # nothing is added to the time embedding
    assert torch.equal(unet(images, 10, torch.full((3,), NO_CLASS)).sample, without)
    mixed = unet(images, 10, labels).sample
    assert torch.allclose(mixed[[0, 2]], of_classes[[0, 2]], atol=1e-5)
    assert torch.allclose(mixed[1], without[1], atol=1e-5)
    assert not torch.allclose(without[1], of_classes[1], atol=1e-3)


def test_label_dropout_is_kept_and_can_be_begun(tmp_path):
    unet = tiny.unet(num_class_embeds=3, label_dropout=0.1)
    unet.save_pretrained(tmp_path)
    for other in (ADMUNet2DModel.from_pretrained(tmp_path), with_replaced(unet)[0]):
        assert other.config.label_dropout == 0.1
        assert torch.equal(other(tiny.images(), 10).sample, unet(tiny.images(), 10).sample)
    learning, _ = with_replaced(tiny.unet(), num_class_embeds=2, label_dropout=0.2)
    assert torch.equal(learning(tiny.images(), 10).sample, tiny.unet()(tiny.images(), 10).sample)
    assert with_replaced(unet, num_class_embeds=None)[0].config.label_dropout == 0
