"""OpenAI's checkpoints: all 15 released ones by their shapes, others by a few facts, and what is refused."""

import json
import pickle
import zipfile

import pytest
import torch
from reference import CASES, DATA, FORWARD, reference_classifier, reference_facts, reference_unet, rule_state_dict
from safetensors.torch import save_file

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.models.openai_recognition import find_preset, recognise
from diffusers_cg.models.presets import PRESETS


MANIFESTS = {path.stem: json.loads(path.read_text()) for path in sorted((DATA / "manifests").glob("*.json"))}
UNETS = {**CASES["forward"]["unet"], **CASES["forward"]["superres"]}
CLASSIFIERS = CASES["forward"]["classifier"]


def on_meta(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def model_class(manifest):
    return NoisyClassifierModel if manifest["kind"] == "classifier" else ADMUNet2DModel


# --------------------------------------------------------------------------------------------------- released files


def test_there_is_a_manifest_for_every_released_file():
    assert len(MANIFESTS) == 15
    assert MANIFESTS.keys() == PRESETS.keys()


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


@pytest.mark.parametrize("name", [name for name, manifest in MANIFESTS.items() if manifest["kind"] != "classifier"])
def test_schedule_and_dropout_of_a_released_file(name):
    manifest = MANIFESTS[name]
    shapes = {key: tuple(shape) for key, shape in manifest["shapes"].items()}
    released = find_preset(recognise(shapes), name)
    assert released is PRESETS[name]
    assert released.beta_schedule == {"cosine": "squaredcos_cap_v2", "linear": "linear"}[manifest["noise_schedule"]]
    assert released.architecture["dropout"] == manifest["flags"].get("dropout", 0.0)


def test_five_files_of_the_same_shapes_are_told_apart_by_their_name_alone():
    shapes = {key: tuple(shape) for key, shape in MANIFESTS["lsun_cat"]["shapes"].items()}
    assert find_preset(recognise(shapes)) is PRESETS["256x256_diffusion_uncond"]
    assert find_preset(recognise(shapes), "lsun_cat").ddpm_num_inference_steps == 1000


# -------------------------------------------------------------------------------------------------------- round trips


def round_trip(cls, case, dtype=torch.float32):
    state_dict = {key: tensor.to(dtype) for key, tensor in rule_state_dict(case["shapes"]).items()}
    model = cls.from_single_file(state_dict, torch_dtype=dtype, **reference_facts(case["flags"]))
    return state_dict, model


def assert_identical(actual, expected):
    assert list(actual) == list(expected)
    for key, tensor in expected.items():
        assert actual[key].dtype == tensor.dtype and torch.equal(actual[key], tensor), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("name", UNETS)
def test_unet_gives_back_its_dictionary_bit_for_bit(name, dtype):
    state_dict, unet = round_trip(ADMUNet2DModel, UNETS[name], dtype)
    assert_identical(unet.to_openai_state_dict(), state_dict)


@pytest.mark.parametrize("pool", CLASSIFIERS)
def test_classifier_gives_back_its_dictionary_bit_for_bit(pool):
    state_dict, classifier = round_trip(NoisyClassifierModel, CLASSIFIERS[pool])
    assert_identical(classifier.to_openai_state_dict(), state_dict)


def test_attention_order_is_remembered_when_the_model_is_saved(tmp_path):
    state_dict, unet = round_trip(ADMUNet2DModel, UNETS["new_order_heads_by_width"])
    unet.save_pretrained(tmp_path)
    loaded = ADMUNet2DModel.from_pretrained(tmp_path)
    assert_identical(loaded.to_openai_state_dict(), state_dict)
    legacy = loaded.to_openai_state_dict(new_attention_order=False)
    assert not torch.equal(legacy["middle_block.1.qkv.weight"], state_dict["middle_block.1.qkv.weight"])


def test_a_model_trained_here_loads_from_the_dictionary_that_it_gives():
    torch.manual_seed(0)
    trunk = {"sample_size": 16, "in_channels": 1, "base_channels": 32, "channel_multipliers": (1, 2)}
    unet = ADMUNet2DModel(
        out_channels=2,
        layers_per_block=1,
        attention_resolutions=(8,),
        num_attention_heads=2,
        num_class_embeds=37,
        **trunk,
    )
    loaded = ADMUNet2DModel.from_single_file(
        unet.to_openai_state_dict(),
        sample_size=16,
        num_attention_heads=2,
        new_attention_order=False,
        low_res_channels=0,
    )
    for name, parameter in unet.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], parameter), name
    assert (loaded.config.num_class_embeds, loaded.config.in_channels) == (37, 1)


def test_the_model_does_not_share_its_memory_with_the_dictionary():
    state_dict, unet = round_trip(ADMUNet2DModel, UNETS["fixed_variance"])
    with torch.no_grad():
        unet.conv_in.weight.zero_()
    assert state_dict["input_blocks.0.0.weight"].abs().sum() > 0


# --------------------------------------------------------------------------------------------------------------- files


STORED = UNETS["unconditional_dropout"]
FACTS = reference_facts(STORED["flags"])


@pytest.fixture
def path(tmp_path):
    """A unet's file."""
    path = tmp_path / "ema_0.9999_100000.pt"
    torch.save(rule_state_dict(STORED["shapes"]), path)
    return path


@torch.no_grad()
def output(unet):
    return unet(FORWARD["x"], FORWARD["t"]).sample


@pytest.mark.parametrize("kind", ["pt", "old pt", "safetensors", "half-precision pt"])
def test_every_kind_of_file(path, tmp_path, kind):
    state_dict = rule_state_dict(STORED["shapes"])
    if kind == "old pt":
        torch.save(state_dict, path, _use_new_zipfile_serialization=False)
    elif kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state_dict, path)
    elif kind == "half-precision pt":
        torch.save({key: value.half() for key, value in state_dict.items()}, path)
    unet = ADMUNet2DModel.from_single_file(path, **FACTS)
    assert unet.dtype == torch.float32
    expected = output(reference_unet("unconditional_dropout"))
    assert (output(unet) - expected).abs().max() <= (1e-2 if "half" in kind else 0)
    assert ADMUNet2DModel.from_single_file(path, torch_dtype=torch.bfloat16, **FACTS).dtype == torch.bfloat16


def test_the_file_may_be_overwritten_once_it_is_loaded(path):
    unet = ADMUNet2DModel.from_single_file(path, **FACTS)
    path.write_bytes(b"")
    assert torch.equal(output(unet), output(reference_unet("unconditional_dropout")))


def refused(cls, source, **facts):
    with pytest.raises(ValueError) as error:
        cls.from_single_file(source, **facts)
    return str(error.value)


class Payload:
    def __reduce__(self):
        return (print, ("this must never be printed",))


@pytest.mark.parametrize("how", ["in the dictionary", "as a plain pickle"])
def test_code_in_a_file_is_not_run(path, capsys, how):
    if how == "in the dictionary":
        torch.save({**rule_state_dict(STORED["shapes"]), "x": Payload()}, path)
    else:
        path.write_bytes(pickle.dumps(Payload()))
    said = refused(ADMUNet2DModel, path, **FACTS)
    assert "never be printed" not in capsys.readouterr().out
    assert f"{path} is not a file of tensors alone" in said and "refused" in said


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_file(path, suffix):
    if suffix == ".safetensors":
        save_file(rule_state_dict(STORED["shapes"]), path.with_suffix(suffix))
        path = path.with_suffix(suffix)
    path.write_bytes(path.read_bytes()[:100_000])
    assert "truncated" in refused(ADMUNet2DModel, path, **FACTS)


def test_other_files(path, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pt"):
        ADMUNet2DModel.from_single_file(tmp_path / "nowhere.pt")

    for text in ("<html>Not found</html>", "text"):
        path.write_text(text)
        assert str(path) in refused(ADMUNet2DModel, path)

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "not a checkpoint")
    assert "cannot be read as a checkpoint" in refused(ADMUNet2DModel, path)

    torch.save({"state": {}, "param_groups": [{"lr": 1e-4}]}, path)
    assert "holds the entries state, param_groups" in refused(ADMUNet2DModel, path)

    torch.save(torch.zeros(3), path)
    assert "holds Tensor" in refused(ADMUNet2DModel, path)

    torch.save({"conv.weight": torch.zeros(3, 3)}, path)
    assert "not a checkpoint of guided-diffusion's networks" in refused(ADMUNet2DModel, path)


# ------------------------------------------------------------------------------------------------------ other networks


def test_a_classifier_is_no_unet_and_the_other_way_round():
    unet, classifier = (
        rule_state_dict(cases[name]["shapes"])
        for cases, name in ((UNETS, "fixed_variance"), (CLASSIFIERS, "attention"))
    )
    said = refused(ADMUNet2DModel, classifier)
    assert "is a classifier's, not a unet's: load it with NoisyClassifierModel.from_single_file" in said
    said = refused(NoisyClassifierModel, unet)
    assert "is a unet's, not a classifier's: load it with ADMUNet2DModel.from_single_file" in said


def test_missing_left_over_and_misshapen_parameters_are_named():
    case = UNETS["unconditional_dropout"]
    state_dict = rule_state_dict(case["shapes"])
    state_dict["output_blocks.9.extra"] = state_dict.pop("output_blocks.0.0.in_layers.0.weight")
    state_dict["middle_block.1.norm.weight"] = torch.ones(7)
    said = refused(ADMUNet2DModel, state_dict, **reference_facts(case["flags"]))
    assert "1 missing (output_blocks.0.0.in_layers.0.weight)" in said
    assert "1 left over (output_blocks.9.extra)" in said
    assert "1 of another shape (middle_block.1.norm.weight is (7,) in place of (64,))" in said


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
