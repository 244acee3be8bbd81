"""OpenAI's layout, entry by entry: what a model was loaded from it gives back, bit for bit."""

import pytest
import torch
from reference import CASES, reference_facts, rule_state_dict

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.errors import InputError


UNETS = {**CASES["forward"]["unet"], **CASES["forward"]["superres"]}
CLASSIFIERS = CASES["forward"]["classifier"]


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
        label_dropout=0.1,
        **trunk,
    )
    loaded = ADMUNet2DModel.from_single_file(
        unet.to_openai_state_dict(),
        sample_size=16,
        num_attention_heads=2,
        new_attention_order=False,
        low_res_channels=0,
        label_dropout=0.1,
    )
    for name, parameter in unet.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], parameter), name
    assert (loaded.config.num_class_embeds, loaded.config.in_channels) == (37, 1)
    assert loaded.config.label_dropout == 0.1


def test_the_model_does_not_share_its_memory_with_the_dictionary():
    state_dict, unet = round_trip(ADMUNet2DModel, UNETS["fixed_variance"])
    with torch.no_grad():
        unet.conv_in.weight.zero_()
    assert state_dict["input_blocks.0.0.weight"].abs().sum() > 0


def test_missing_left_over_and_misshapen_parameters_are_named():
    case = UNETS["unconditional_dropout"]
    state_dict = rule_state_dict(case["shapes"])
    state_dict["output_blocks.9.extra"] = state_dict.pop("output_blocks.0.0.in_layers.0.weight")
    state_dict["middle_block.1.norm.weight"] = torch.ones(7)
    with pytest.raises(InputError) as error:
        ADMUNet2DModel.from_single_file(state_dict, **reference_facts(case["flags"]))
    said = str(error.value)
    assert "1 missing (output_blocks.0.0.in_layers.0.weight)" in said
    assert "1 left over (output_blocks.9.extra)" in said
    assert "1 of another shape (middle_block.1.norm.weight is (7,) in place of (64,))" in said
