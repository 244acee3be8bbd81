"""NoisyClassifierModel: its poolings, the switches it shares with the unet, its files, and what it refuses."""

import inspect
import json
from collections import Counter

import pytest
import tiny
import torch
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D

from diffusers_cg import NoisyClassifierModel
from diffusers_cg.errors import InputError


POOLINGS = ("attention", "adaptive", "spatial", "spatial_v2")
every_pooling = pytest.mark.parametrize("pool", POOLINGS)


# -------------------------------------------------------------------------------------------------------- the poolings


@every_pooling
@pytest.mark.parametrize("channels, num_classes", [(1, 1), (3, 7), (4, 1000), (5, 2)])
@torch.no_grad()
def test_channels_and_classes(pool, channels, num_classes):
    classifier = tiny.classifier(pool=pool, in_channels=channels, num_classes=num_classes)
    assert classifier(tiny.images(channels=channels), 10).logits.shape == (2, num_classes)


@torch.no_grad()
def test_attention_pooling_is_attention_of_the_mean_to_all_positions():
    head = tiny.classifier(attention_head_dim=8).head
    features = tiny.images(channels=32, size=4)
    tokens = head[:2](features).flatten(2).transpose(1, 2)
    pool = head[2]
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + pool.positional_embedding
    query, key, value = (
        project(tokens).unflatten(-1, (4, 8)).transpose(1, 2) for project in (pool.to_q, pool.to_k, pool.to_v)
    )
    weights = (query @ key.mT / 8**0.5).softmax(dim=-1)
    expected = pool.to_out((weights @ value).transpose(1, 2).flatten(2)[:, 0])
    assert torch.allclose(head(features), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_attention_pooling_knows_positions_and_the_average_does_not():
    features = tiny.images(channels=32, size=4)
    for pool, differs in (("attention", True), ("adaptive", False)):
        head = tiny.classifier(pool=pool).head
        assert torch.allclose(head(features), head(features.flip(3)), atol=1e-5) != differs


@pytest.mark.parametrize("pool", ["spatial", "spatial_v2"])
def test_spatial_pooling_reads_every_layer(pool):
    head = tiny.fresh_classifier(pool=pool, channel_multipliers=(1, 2)).head
    # conv_in, a layer and the downsampler at 16 channels; a layer and the middle at 32
    assert head[0].in_features == 3 * 16 + 2 * 32
    assert any(isinstance(layer, torch.nn.GroupNorm) for layer in head) == (pool == "spatial_v2")


def test_fresh_average_pooling_knows_nothing():
    assert not tiny.fresh_classifier(pool="adaptive")(tiny.images(), 10).logits.any()


@pytest.mark.parametrize("pool", ["adaptive", "spatial", "spatial_v2"])
def test_other_image_sizes_than_its_own(pool):
    assert tiny.classifier(pool=pool)(tiny.images(size=(8, 16)), 10).logits.shape == (2, tiny.NUM_CLASSES)


def test_attention_pooling_refuses_other_sizes():
    with pytest.raises(InputError, match=r"attention pooling takes images of its own size 8, got \(8, 16\)"):
        tiny.classifier()(tiny.images(size=(8, 16)), 10)


# ------------------------------------------------------------------------------------------------------- the switches


@every_pooling
@pytest.mark.parametrize("size", [(16, 8), (8, 24)])
def test_images_that_are_not_square(pool, size):
    classifier = tiny.classifier(pool=pool, sample_size=size)
    assert tiny.attention_calls(classifier, tiny.images(size=size)) == {(size[0] // 2, size[1] // 2): 2}


@pytest.mark.parametrize("levels", [(), (16,), (8,), (4,), (16, 4), (16, 8, 4)], ids=str)
def test_attention_at_any_levels(levels):
    classifier = tiny.classifier(sample_size=16, channel_multipliers=(1, 1, 1), attention_resolutions=levels)
    calls = tiny.attention_calls(classifier, tiny.images(size=16))
    assert calls == Counter({(level, level): 1 for level in levels}) + Counter({(4, 4): 1})


def test_widths_are_fractions_of_the_base():
    classifier = tiny.classifier(channel_multipliers=(0.5, 1.5))
    assert [block.resnets[0].out_channels for block in classifier.down_blocks] == [8, 24]
    assert classifier.time_embedding.linear_2.out_features == 64
    assert classifier(tiny.images(), 10).logits.shape == (2, tiny.NUM_CLASSES)


@torch.no_grad()
def test_heads_by_number_or_width():
    def built(**heads):
        return tiny.classifier(attention_resolutions=(8, 4), **{"attention_head_dim": None, **heads})

    def sizes(classifier):
        layers = [module for module in classifier.modules() if isinstance(module, Attention)]
        return {(layer.inner_dim, layer.heads) for layer in layers}

    assert sizes(built(attention_head_dim=8)) == {(16, 2), (32, 4)}
    assert sizes(built(num_attention_heads=4)) == {(16, 4), (32, 4)}
    assert built(attention_head_dim=8).head[2].attention_head_dim == 8
    assert built(num_attention_heads=2).head[2].attention_head_dim == 16


@pytest.mark.parametrize(
    "changed",
    [
        {"resample_type": "conv"},
        {"resnet_time_scale_shift": "default"},
        {"rescale_residual": True},
        {"attention_resolutions": ()},
        {"attention_head_dim": 16},
    ],
    ids=str,
)
@torch.no_grad()
def test_every_switch_changes_the_logits(changed):
    expected = tiny.classifier()(tiny.images(), 10).logits
    assert not torch.allclose(tiny.classifier(**changed)(tiny.images(), 10).logits, expected, atol=1e-3)


@pytest.mark.parametrize("resample_type, kind", [("resnet", ResnetBlock2D), ("conv", Downsample2D)])
def test_resampling(resample_type, kind):
    classifier = tiny.fresh_classifier(resample_type=resample_type)
    assert type(classifier.down_blocks[0].downsamplers[0]) is kind


@pytest.mark.parametrize("rescale, factor", [(False, 1.0), (True, 2**-0.5)])
@torch.no_grad()
def test_fresh_blocks_pass_their_input_on(rescale, factor):
    classifier = tiny.fresh_classifier(rescale_residual=rescale)
    hidden, emb = tiny.images(channels=32, size=4), torch.ones(2, 64)
    assert torch.allclose(classifier.mid_block.resnets[1](hidden, emb), factor * hidden)
    assert torch.allclose(classifier.mid_block.attentions[0](hidden), factor * hidden)


def test_dropout_acts_in_training_only():
    classifier = tiny.classifier(dropout=0.5)
    assert torch.equal(classifier(tiny.images(), 10).logits, classifier(tiny.images(), 10).logits)
    classifier.train()
    assert not torch.allclose(classifier(tiny.images(), 10).logits, classifier(tiny.images(), 10).logits)


# ------------------------------------------------------------------------------------------------------ in and out


@every_pooling
@torch.no_grad()
def test_dictionary_or_tuple_and_timesteps_of_any_form(pool):
    classifier = tiny.classifier(pool=pool)
    (expected,) = classifier(tiny.images(), torch.tensor([10, 10]), return_dict=False)
    for timestep in (10, 10.0, torch.tensor(10), torch.tensor([10])):
        assert torch.equal(classifier(tiny.images(), timestep).logits, expected)
    assert not torch.allclose(classifier(tiny.images(), 11).logits, expected)


@every_pooling
@torch.no_grad()
def test_image_alone_is_as_in_a_batch(pool):
    classifier = tiny.classifier(pool=pool)
    sample, timesteps = tiny.images(4), torch.tensor([0, 10, 500, 999])
    together = classifier(sample, timesteps).logits
    for i in range(4):
        alone = classifier(sample[i : i + 1], timesteps[i]).logits
        assert torch.allclose(alone[0], together[i], rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- the files


@every_pooling
@torch.no_grad()
def test_saved_and_loaded(tmp_path, pool):
    classifier = tiny.classifier(pool=pool, sample_size=(16, 8), channel_multipliers=(0.5, 1))
    classifier.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    stated = {name: value for name, value in config.items() if not name.startswith("_")}
    assert set(stated) == set(inspect.signature(NoisyClassifierModel).parameters)
    assert stated["pool"] == pool and stated["num_classes"] == tiny.NUM_CLASSES

    loaded = NoisyClassifierModel.from_pretrained(tmp_path)
    sample = tiny.images(size=(16, 8))
    assert torch.equal(loaded(sample, 10).logits, classifier(sample, 10).logits)


def test_class_names_are_kept(tmp_path):
    tiny.classifier(class_names=list("vwxyz")).save_pretrained(tmp_path)
    assert NoisyClassifierModel.from_pretrained(tmp_path).config.class_names == list("vwxyz")
    with pytest.raises(InputError, match=r"`class_names` holds 2 names, but `num_classes` is 5\."):
        tiny.fresh_classifier(class_names=["a", "b"])


@every_pooling
@torch.no_grad()
def test_half_precision_files(tmp_path, pool):
    classifier = tiny.classifier(pool=pool)
    expected = classifier(tiny.images(), torch.tensor([10, 900])).logits
    classifier.save_pretrained(tmp_path)
    halved = NoisyClassifierModel.from_pretrained(tmp_path, torch_dtype=torch.float16)
    classifier.half().save_pretrained(tmp_path, variant="fp16")
    variant = NoisyClassifierModel.from_pretrained(tmp_path, variant="fp16", torch_dtype=torch.float16)
    for model in (halved, variant):
        assert model.dtype == torch.float16
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, classifier.state_dict()[name])
    logits = halved(tiny.images().half(), torch.tensor([10, 900])).logits
    assert logits.dtype == torch.float16
    assert (logits.float() - expected).norm() / expected.norm() < 0.02


# ------------------------------------------------------------------------------------------------ diffusers' features


@every_pooling
def test_gradient_checkpointing_computes_again_and_the_same(pool):
    classifier = tiny.classifier(pool=pool).train()
    arguments = tiny.images(), torch.tensor([10, 500])
    expected = tiny.parameter_gradients(classifier, classifier(*arguments).logits)
    classifier.enable_gradient_checkpointing()
    passes = [tiny.count_forward_passes(block.resnets[0]) for block in classifier.down_blocks]
    gradients = tiny.parameter_gradients(classifier, classifier(*arguments).logits)
    assert [len(passed) for passed in passes] == [2, 2]
    assert all(torch.allclose(gradients[name], expected[name], rtol=1e-4, atol=1e-5) for name in expected)


@torch.no_grad()
def test_attention_processors_agree():
    classifier = tiny.classifier(attention_head_dim=None, num_attention_heads=2)
    logits = []
    for processor in (AttnProcessor(), AttnProcessor2_0()):
        classifier.set_attn_processor(processor)
        assert list(classifier.attn_processors.values()) == [processor, processor]
        logits.append(classifier(tiny.images(), 10).logits)
    assert torch.allclose(*logits, rtol=1e-4, atol=1e-5)


@every_pooling
@torch.no_grad()
def test_layerwise_casting(pool):
    classifier = tiny.classifier(pool=pool)
    expected = classifier(tiny.images(), 10).logits
    classifier.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert classifier.down_blocks[0].resnets[0].conv1.weight.dtype == torch.float8_e4m3fn
    logits = classifier(tiny.images(), 10).logits
    assert logits.dtype == torch.float32
    assert 0 < (logits - expected).norm() / expected.norm() < 0.2


# --------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"pool": "max"}, "`pool` must be one of .*got 'max'"),
        ({"num_classes": 0}, "`num_classes` must be at least 1, got 0"),
        ({"sample_size": 7}, "`sample_size` is 7.*multiples of 2"),
        ({"channel_multipliers": ()}, "`channel_multipliers` is empty"),
        ({"base_channels": 12}, "12 channels, which 8 normalization groups do not divide"),
        ({"attention_resolutions": (5,)}, r"`attention_resolutions` names \[5\]"),
        ({"attention_head_dim": 12}, "32 channels, which cannot be split"),
        ({"attention_head_dim": 0}, "`attention_head_dim` must be at least 1"),
        ({"num_attention_heads": 2}, "either by width .* or by number"),
        ({"resample_type": "pool"}, "`resample_type` must be one of"),
        ({"resnet_time_scale_shift": "ada_group"}, "`resnet_time_scale_shift` must be one of"),
    ],
    ids=str,
)
def test_refused_arguments(changed, said):
    with pytest.raises(InputError, match=said):
        tiny.fresh_classifier(**changed)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 8, 7), (3, 8, 8)], ids=str)
def test_refused_samples(shape):
    with pytest.raises(InputError, match=r"takes a sample of shape \(batch, 3, height, width\).*multiples of 2"):
        tiny.classifier()(torch.zeros(shape), 10)
