"""Networks recognised by their parameters' shapes: all 15 released ones, others by a few facts, and what is refused."""

import pytest
import torch
from reference import (
    CASES,
    FORWARD,
    MANIFESTS,
    on_meta,
    reference_classifier,
    reference_facts,
    reference_unet,
    rule_state_dict,
)

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.errors import InputError


UNETS = {**CASES["forward"]["unet"], **CASES["forward"]["superres"]}
CLASSIFIERS = CASES["forward"]["classifier"]


def model_class(manifest):
    return NoisyClassifierModel if manifest["kind"] == "classifier" else ADMUNet2DModel


def refused(cls, source, **facts):
    with pytest.raises(InputError) as error:
        cls.from_single_file(source, **facts)
    return str(error.value)


@torch.no_grad()
def output(unet):
    return unet(FORWARD["x"], FORWARD["t"]).sample


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_released_file_is_recognised_at_full_size(name):
    manifest = MANIFESTS[name]
    model = model_class(manifest).from_single_file(on_meta(manifest["shapes"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == manifest["parameters"]

    flags = manifest["flags"]
    size = flags.get("image_size") or flags["large_size"]
    attention = flags.get("attention_resolutions") or flags["classifier_attention_resolutions"]
    assert model.config.sample_size == size
    assert sorted(model.config.attention_resolutions) == sorted(int(side) for side in attention.split(","))
    if manifest["kind"] == "classifier":
        assert (model.config.attention_head_dim, model.config.pool) == (64, "attention")
        assert model.config.layers_per_block == flags["classifier_depth"]
    elif flags.get("num_head_channels", -1) == -1:
        assert (model.config.attention_head_dim, model.config.num_attention_heads) == (None, flags["num_heads"])
    else:
        assert (model.config.attention_head_dim, model.config.num_attention_heads) == (64, None)
        assert model.config.num_class_embeds == (1000 if flags["class_cond"] else None)
    assert model.config.get("low_res_channels", 0) == (3 if manifest["kind"] == "superres" else 0)
    assert model.config["_new_attention_order"] == flags.get("use_new_attention_order", False)

    back = model.to_openai_state_dict()
    assert {key: list(tensor.shape) for key, tensor in back.items()} == manifest["shapes"]
    assert list(back) == list(manifest["shapes"])


def test_a_classifier_is_no_unet_and_the_other_way_round():
    unet, classifier = (
        rule_state_dict(cases[name]["shapes"])
        for cases, name in ((UNETS, "fixed_variance"), (CLASSIFIERS, "attention"))
    )
    said = refused(ADMUNet2DModel, classifier)
    assert "is a classifier's, not a unet's: load it with NoisyClassifierModel.from_single_file" in said
    said = refused(NoisyClassifierModel, unet)
    assert "is a unet's, not a classifier's: load it with ADMUNet2DModel.from_single_file" in said


def test_what_shapes_do_not_tell_must_be_said():
    case = UNETS["unconditional_dropout"]
    state_dict, facts = rule_state_dict(case["shapes"]), reference_facts(case["flags"])
    said = refused(ADMUNet2DModel, state_dict)
    for found in ("none of OpenAI's released ones", "base_channels=32", "channel_multipliers=(1, 2)"):
        assert found in said
    assert "pass sample_size=; attention_head_dim= (num_head_channels) or num_attention_heads= (num_heads); " in said
    assert said.endswith("new_attention_order= (use_new_attention_order).")
    said = refused(ADMUNet2DModel, state_dict, **{**facts, "new_attention_order": None})
    assert "pass new_attention_order=" in said and "sample_size=;" not in said


def test_one_head_needs_no_attention_order():
    case = UNETS["no_updown_no_adagn"]
    unet = ADMUNet2DModel.from_single_file(rule_state_dict(case["shapes"]), sample_size=16, num_attention_heads=1)
    assert torch.equal(output(unet), output(reference_unet("no_updown_no_adagn")))


def test_a_fine_tune_of_a_released_file_is_told_what_to_pass():
    shapes = dict(MANIFESTS["256x256_diffusion"]["shapes"])
    shapes["label_emb.weight"] = [37, 1024]
    shapes["input_blocks.0.0.weight"] = [256, 1, 3, 3]
    shapes["out.2.weight"], shapes["out.2.bias"] = [2, 256, 3, 3], [2]
    said = refused(ADMUNet2DModel, on_meta(shapes))
    assert (
        "If it was fine-tuned from 256x256_diffusion: sample_size=256, attention_head_dim=64, new_attention_order=False."
        in said
    )
    unet = ADMUNet2DModel.from_single_file(
        on_meta(shapes), sample_size=256, attention_head_dim=64, new_attention_order=False, dropout=0.1
    )
    assert (unet.config.num_class_embeds, unet.config.in_channels, unet.config.out_channels) == (37, 1, 2)
    assert unet.config.dropout == 0.1


def test_a_unet_that_may_generate_or_upsample_must_be_told():
    shapes = dict(UNETS["fixed_variance"]["shapes"])
    shapes["input_blocks.0.0.weight"] = [32, 4, 3, 3]
    shapes["out.2.weight"], shapes["out.2.bias"] = [4, 32, 3, 3], [4]
    facts = reference_facts(UNETS["fixed_variance"]["flags"])
    assert "pass low_res_channels=0" in refused(ADMUNet2DModel, on_meta(shapes), **facts)
    for low_res_channels, image_channels in ((0, 4), (2, 2)):
        unet = ADMUNet2DModel.from_single_file(on_meta(shapes), low_res_channels=low_res_channels, **facts)
        assert (unet.config.in_channels, unet.config.low_res_channels) == (image_channels, low_res_channels)


def test_a_classifier_whose_levels_are_open_must_be_told():
    torch.manual_seed(0)
    classifier = NoisyClassifierModel(
        sample_size=16, num_classes=4, base_channels=32, channel_multipliers=(1, 1), layers_per_block=2,
        attention_resolutions=(), attention_head_dim=32, pool="adaptive",
    )  # fmt: skip
    state_dict = classifier.to_openai_state_dict()
    facts = {"sample_size": 16, "attention_head_dim": 32, "new_attention_order": False}
    assert "pass layers_per_block, one of [1, 2" in refused(NoisyClassifierModel, state_dict, **facts)
    loaded = NoisyClassifierModel.from_single_file(state_dict, layers_per_block=2, **facts)
    assert loaded.config.channel_multipliers == (1, 1)


def test_attention_pooling_tells_the_image_size():
    case = CLASSIFIERS["attention"]
    facts = {**reference_facts(case["flags"]), "sample_size": None}
    classifier = NoisyClassifierModel.from_single_file(rule_state_dict(case["shapes"]), **facts)
    assert classifier.config.sample_size == 16
    expected = reference_classifier("attention")(FORWARD["x"], FORWARD["t"]).logits
    assert torch.equal(classifier(FORWARD["x"], FORWARD["t"]).logits, expected)


def test_resampling_without_parameters_is_refused():
    shapes = {k: v for k, v in UNETS["no_updown_no_adagn"]["shapes"].items() if ".op." not in k}
    assert "conv_resample=False" in refused(ADMUNet2DModel, on_meta(shapes), sample_size=16, num_attention_heads=1)
