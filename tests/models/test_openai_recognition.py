"""Networks recognised by their parameters' shapes and files' names: the released ones, those of others, and what is refused."""

import warnings

import pytest
import torch
from reference import (
    CASES,
    COMMUNITY_LAYOUTS,
    FORWARD,
    MANIFESTS,
    on_meta,
    reference_classifier,
    reference_facts,
    reference_unet,
    rule_state_dict,
    save_shapes,
)

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.errors import InputError
from diffusers_cg.models.openai_files import CheckpointWarning, open_checkpoint
from diffusers_cg.models.presets import COMMUNITY, LAYOUTS, PRESETS


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
@pytest.mark.filterwarnings("error")
def test_a_released_file_is_recognised_at_full_size(name, tmp_path):
    manifest = MANIFESTS[name]
    checkpoint = open_checkpoint(save_shapes(tmp_path / f"{name}.pt", manifest["shapes"]))
    model = model_class(manifest).from_checkpoint(checkpoint, read=False)
    assert checkpoint.preset is PRESETS[name]
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


@pytest.mark.parametrize("name", COMMUNITY_LAYOUTS)
@pytest.mark.filterwarnings("error")
def test_a_file_of_others_is_recognised_at_full_size(name, tmp_path):
    stated, flags = COMMUNITY_LAYOUTS[name], COMMUNITY_LAYOUTS[name]["flags"]
    for file in (stated["files"][0], stated["files"][-1].upper()):
        checkpoint = open_checkpoint(save_shapes(tmp_path / f"{file}.pt", stated["shapes"]), "unet")
        assert checkpoint.layout is COMMUNITY[name] and checkpoint.preset is None
    unet = ADMUNet2DModel.from_checkpoint(checkpoint, read=False)
    assert sum(parameter.numel() for parameter in unet.parameters()) == stated["parameters"]
    back = unet.to_openai_state_dict()
    assert {key: list(tensor.shape) for key, tensor in back.items()} == stated["shapes"]
    assert list(back) == list(stated["shapes"])

    config = unet.config
    by_width = flags.get("num_head_channels", -1) != -1
    assert config.attention_head_dim == (flags["num_head_channels"] if by_width else None)
    assert config.num_attention_heads == (None if by_width else flags["num_heads"])
    assert config.sample_size == stated["size"] and config.dropout == flags.get("dropout", 0.0)
    assert config.beta_schedule == {"linear": "linear", "cosine": "squaredcos_cap_v2"}[stated["noise_schedule"]]
    for fact in ("num_train_timesteps", "rescale_timesteps", "prediction_type"):
        assert config[fact] == stated[fact], fact
    assert config["_new_attention_order"] is False


@pytest.mark.parametrize("name", ["64x64_diffusion", "p2_256", "improved_imagenet64_uncond", "512_openimages_v"])
def test_a_file_of_another_name_is_assumed_to_be_what_its_shapes_are(name, tmp_path):
    shapes = {**MANIFESTS, **COMMUNITY_LAYOUTS}[name]["shapes"]
    path = save_shapes(tmp_path / "mine.pt", shapes)
    with pytest.warns(CheckpointWarning) as caught:
        checkpoint = open_checkpoint(path)
    assert checkpoint.preset is None
    (said,) = [str(warning.message) for warning in caught]
    shown = LAYOUTS["512_uncond_finetune" if "512" in name else name]
    assert f"prediction_type={shown.prediction_type!r}" in said and "pass layout=" in said
    assert f"num_train_timesteps={shown.num_train_timesteps}" in said and "new_attention_order=" in said
    assert checkpoint.arguments["rescale_timesteps"] == shown.rescale_timesteps
    if name == "512_openimages_v":  # has the shapes of another one
        assert "but 512_openimages_v has beta_schedule='continuous_cosine', prediction_type='v_prediction'" in said
        with pytest.warns(CheckpointWarning):
            by_a_fact = open_checkpoint(path, prediction_type="v_prediction")
        assert by_a_fact.process["beta_schedule"] == "continuous_cosine"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_checkpoint(path, layout=name).layout is LAYOUTS[name]


def test_facts_by_hand():
    shapes = on_meta(COMMUNITY_LAYOUTS["p2_256"]["shapes"])
    facts = {
        "sample_size": 256, "num_attention_heads": 4, "new_attention_order": True, "num_train_timesteps": 4000,
        "beta_schedule": "squaredcos_cap_v2", "rescale_timesteps": True, "prediction_type": "v_prediction",
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        unet = ADMUNet2DModel.from_single_file(shapes, **facts)
    order = facts.pop("new_attention_order")
    assert unet.config["_new_attention_order"] is order
    assert {name: unet.config[name] for name in facts} == facts and unet.config.attention_head_dim is None


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        (
            {"prediction_type": "v_prediction"},
            "prediction_type='epsilon' is known, but prediction_type='v_prediction'",
        ),
        ({"num_train_timesteps": 4000}, "num_train_timesteps=1000 is known, but num_train_timesteps=4000 is stated"),
        ({"num_attention_heads": 3}, "attention_head_dim=64 is known, but num_attention_heads=3"),
        ({"new_attention_order": True}, "new_attention_order=False is known"),
        ({"attention_head_dim": 64, "num_attention_heads": 4}, "either by width .* or by number"),
        ({"prediction_type": "noise"}, "`prediction_type` must be one of"),
        ({"rescale_timesteps": True, "num_train_timesteps": 500}, "num_train_timesteps=1000 is known"),
    ],
)
def test_contradictions(tmp_path, facts, said):
    path = save_shapes(tmp_path / "ffhq_10m.pt", COMMUNITY_LAYOUTS["p2_256"]["shapes"])
    with pytest.raises(InputError, match=said):
        open_checkpoint(path, "unet", **facts)
    # the same in other words, and what is a user's to choose, contradict nothing
    checkpoint = open_checkpoint(path, attention_head_dim=64, rescale_timesteps=True, sample_size=128, dropout=0.2)
    assert (checkpoint.arguments["sample_size"], checkpoint.arguments["dropout"]) == (128, 0.2)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers' names"),
        ("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", "latent diffusion's"),
        ("middle_block.1.encoder_kv.weight", "GLIDE's"),
        ("model.enc.64x64_conv.weight", "EDM's"),
        ("downs.0.0.block1.proj.weight", "denoising_diffusion_pytorch's"),
    ],
)
def test_another_project_s_network_is_told_by_its_names(name, what):
    others = {name: torch.zeros(1), "time_embed.0.weight": torch.zeros(4, 1)}
    said = refused(ADMUNet2DModel, others if "blocks" not in name or "down" not in name else {name: torch.zeros(1)})
    assert f"not a checkpoint of guided-diffusion's networks: one with a parameter {name}" in said and what in said


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
    with pytest.raises(InputError, match="reads images of 16, not of sample_size=32: leave that out"):
        NoisyClassifierModel.from_single_file(rule_state_dict(case["shapes"]), **{**facts, "sample_size": 32})
    expected = reference_classifier("attention")(FORWARD["x"], FORWARD["t"]).logits
    assert torch.equal(classifier(FORWARD["x"], FORWARD["t"]).logits, expected)


@pytest.mark.parametrize("model_class", [ADMUNet2DModel, NoisyClassifierModel])
def test_networks_of_images_that_are_not_square(model_class):
    architecture = {
        "sample_size": (24, 16), "base_channels": 32, "channel_multipliers": (1, 2), "layers_per_block": 1,
        "attention_resolutions": (8,), "attention_head_dim": 32,
    }  # fmt: skip
    classes = {"num_classes": 3} if model_class is NoisyClassifierModel else {}
    state_dict = model_class(**architecture, **classes).to(torch.float64).to_openai_state_dict()
    facts = {"sample_size": (24, 16), "attention_head_dim": 32, "new_attention_order": False}
    loaded = model_class.from_single_file(state_dict, **facts, dtype=torch.float64)
    assert loaded.dtype == torch.float64
    assert {name: loaded.config[name] for name in architecture} == architecture
    if model_class is NoisyClassifierModel:  # whose attention pooling counts the pixels
        assert "not of sample_size=(32, 16)" in refused(model_class, state_dict, **{**facts, "sample_size": (32, 16)})


def test_resampling_without_parameters_is_refused():
    shapes = {k: v for k, v in UNETS["no_updown_no_adagn"]["shapes"].items() if ".op." not in k}
    assert "conv_resample=False" in refused(ADMUNet2DModel, on_meta(shapes), sample_size=16, num_attention_heads=1)
