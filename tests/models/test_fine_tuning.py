"""Starting from a model of other classes, channels or sizes."""

import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.errors import InputError
from diffusers_cg.models import load_pretrained, with_replaced


def names(replaced):
    return {str(parameter).split()[0] for parameter in replaced}


def check_the_rest_is_taken_over(new, model, replaced):
    ours, theirs = new.state_dict(), model.state_dict()
    assert names(replaced) >= ours.keys() ^ theirs.keys()
    for name in ours.keys() - names(replaced):
        assert torch.equal(ours[name], theirs[name]), name


def test_other_classes_replace_the_class_embedding_alone():
    model = tiny.unet(num_class_embeds=5, class_names=list("abcde"))
    torch.manual_seed(0)
    new, replaced = with_replaced(model, num_class_embeds=37)
    assert [str(parameter) for parameter in replaced] == ["class_embedding.weight (37, 64) starts anew, was (5, 64)"]
    check_the_rest_is_taken_over(new, model, replaced)
    torch.manual_seed(0)
    fresh = tiny.fresh_unet(num_class_embeds=37)
    assert torch.equal(new.class_embedding.weight, fresh.class_embedding.weight)
    assert (new.config.num_class_embeds, new.config.class_names) == (37, None)
    new(tiny.images(), 3, torch.tensor([36, 0]))


def test_classes_for_an_unconditional_unet_and_away_again():
    new, replaced = with_replaced(tiny.unet(), num_class_embeds=2, class_names=["cat", "dog"])
    assert [str(parameter) for parameter in replaced] == ["class_embedding.weight (2, 64) is new"]
    assert new.config.class_names == ["cat", "dog"]
    back, replaced = with_replaced(new, num_class_embeds=None)
    assert [str(parameter) for parameter in replaced] == ["class_embedding.weight (2, 64) is left out"]
    images = tiny.images()
    assert torch.equal(back(images, 3).sample, tiny.unet()(images, 3).sample)


def test_other_channels_replace_the_first_and_the_last_convolution():
    model = tiny.unet(out_channels=6)
    new, replaced = with_replaced(model, in_channels=1, out_channels=2)
    assert names(replaced) == {"conv_in.weight", "conv_in.bias", "conv_out.weight", "conv_out.bias"}
    check_the_rest_is_taken_over(new, model, replaced)
    assert not new.conv_out.weight.any()  # as in a fresh model
    assert new(tiny.images(channels=1), 3).sample.shape == (2, 2, 8, 8)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial"])
def test_other_classes_replace_the_last_layer_of_a_classifier(pool):
    model = tiny.classifier(pool=pool)
    new, replaced = with_replaced(model, num_classes=7)
    last = {"attention": "head.2.to_out", "adaptive": "head.4", "spatial": "head.2"}[pool]
    assert names(replaced) == {f"{last}.weight", f"{last}.bias"}
    check_the_rest_is_taken_over(new, model, replaced)
    assert new(tiny.images(), 3).logits.shape == (2, 7)


def test_another_size_keeps_attention_at_its_levels():
    model = tiny.unet()
    new, replaced = with_replaced(model, sample_size=16)
    assert not replaced
    assert tuple(new.config.attention_resolutions) == (8,)
    large = tiny.images(size=16)
    assert torch.equal(new(large, 3).sample, model(large, 3).sample)
    classifier, replaced = with_replaced(tiny.classifier(), sample_size=16)
    assert names(replaced) == {"head.2.positional_embedding"}
    assert classifier(large, 3).logits.shape == (2, 5)


def test_what_cannot_be_replaced():
    with pytest.raises(
        ValueError, match="base_channels of a pretrained ADMUNet2DModel cannot be changed: only beta_sch"
    ):
        with_replaced(tiny.unet(), base_channels=32)
    with pytest.raises(InputError, match="multiples of 2"):
        with_replaced(tiny.unet(), sample_size=15)
    with pytest.raises(InputError, match="num_classes"):
        with_replaced(tiny.unet(), num_classes=3)


# ------------------------------------------------------------------------------------------------------- where it lies


@pytest.fixture
def folder(tmp_path):
    tiny.unet().save_pretrained(tmp_path / "pipeline" / "unet")
    tiny.classifier().save_pretrained(tmp_path / "pipeline" / "classifier")
    return tmp_path / "pipeline"


def test_from_a_pipeline_a_model_and_a_file(folder, tmp_path):
    save_file(
        tiny.unet(num_attention_heads=1, attention_head_dim=None).to_openai_state_dict(), tmp_path / "a.safetensors"
    )
    for model_class, path in (
        (ADMUNet2DModel, folder),
        (ADMUNet2DModel, folder / "unet"),
        (NoisyClassifierModel, folder),
        (NoisyClassifierModel, folder / "classifier"),
    ):
        assert type(load_pretrained(model_class, path)) is model_class
    with pytest.raises(InputError, match="pass sample_size="):  # as from_single_file says
        load_pretrained(ADMUNet2DModel, tmp_path / "a.safetensors")


def test_from_something_else(folder, tmp_path):
    with pytest.raises(InputError, match="holds a NoisyClassifierModel, not a ADMUNet2DModel"):
        load_pretrained(ADMUNet2DModel, folder / "classifier")
    shutil.rmtree(folder / "unet")
    with pytest.raises(InputError, match="is no ADMUNet2DModel: pass a .pt"):
        load_pretrained(ADMUNet2DModel, folder)
    with pytest.raises(InputError, match="is no ADMUNet2DModel: pass a .pt"):
        load_pretrained(ADMUNet2DModel, tmp_path / "nowhere")


def test_weights_missing_left_over_or_misshapen(folder):
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    save_file({name: weights[name] for name in weights if name != "conv_in.bias"}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"parameters: 1 missing \(conv_in.bias\)"):
        load_pretrained(ADMUNet2DModel, folder)
    save_file({**weights, "extra.weight": torch.ones(1)}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"parameters: 1 left over \(extra.weight\)"):
        load_pretrained(ADMUNet2DModel, folder)
    save_file({**weights, "conv_in.bias": torch.ones(3)}, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 of another shape \(conv_in.bias is \(3,\) in place of \(16,\)\)"):
        load_pretrained(ADMUNet2DModel, folder)


def test_config_is_what_a_fresh_model_would_have():
    new, _ = with_replaced(tiny.unet(num_class_embeds=5), num_class_embeds=3)
    expected = json.loads(tiny.fresh_unet(num_class_embeds=3).to_json_string())
    assert json.loads(new.to_json_string()) == expected
