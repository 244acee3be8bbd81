"""`--init_from` of both training scripts."""

import json

import pytest
import torch
from reference import rule_state_dict
from safetensors.torch import load_file

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.models.presets import PRESETS


FROM_CHECKPOINT = {
    "base_channels": None,
    "channel_multipliers": None,
    "layers_per_block": None,
    "attention_head_dim": None,
}
SAVED = {
    "layers_per_block": 2,
    "base_channels": 32,
    "channel_multipliers": (1, 1),
    "attention_head_dim": 16,
    "norm_num_groups": 8,
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """A pipeline's folder, for 8x8 RGB images of 5 classes."""
    root = tmp_path_factory.mktemp("pretrained")
    trunk = {"sample_size": 8, "in_channels": 3, "attention_resolutions": (4,), **SAVED}
    for model, name in (
        (ADMUNet2DModel(num_class_embeds=5, **trunk), "unet"),
        (NoisyClassifierModel(num_classes=5, **trunk), "classifier"),
    ):
        model.load_state_dict(rule_state_dict({key: tensor.shape for key, tensor in model.state_dict().items()}))
        model.save_pretrained(root / name)
    return root


@pytest.mark.parametrize(("script", "part"), [("train_unet", "unet"), ("train_classifier", "classifier")])
def test_other_classes_channels_and_size(train, pretrained, tmp_path, script, part):
    flags = {
        "init_from": pretrained,
        "learning_rate": 1e-9,
        "use_ema": False,
        "max_train_steps": 1,
        "adam_weight_decay": 0.0,
    }
    if part == "classifier":
        flags["validation_fraction"] = 0
    ended = train(script, output_dir=tmp_path, **FROM_CHECKPOINT, **flags)
    result = tmp_path / part if part == "unet" else tmp_path
    config = json.loads((result / "config.json").read_text())
    for name, value in SAVED.items():
        assert config[name] == (list(value) if isinstance(value, tuple) else value)
    assert (config["sample_size"], config["in_channels"], config["attention_resolutions"]) == (16, 1, [8])
    assert config["num_class_embeds" if part == "unet" else "num_classes"] == 3

    before = load_file(pretrained / part / "diffusion_pytorch_model.safetensors")
    after = load_file(result / "diffusion_pytorch_model.safetensors")
    replaced = {
        "unet": {"conv_in.weight", "conv_in.bias", "conv_out.weight", "conv_out.bias", "class_embedding.weight"},
        "classifier": {"conv_in.weight", "conv_in.bias", "head.2.positional_embedding", "head.2.to_out.weight", "head.2.to_out.bias"},
    }[part]  # fmt: skip
    for name in before.keys() - replaced:
        assert torch.allclose(before[name], after[name], atol=1e-7), name
    assert f"{len(before) - len(replaced)} parameters taken over, {len(replaced)} replaced" in ended.output
    for name in replaced:
        assert f"  {name} {tuple(after[name].shape)} starts anew" in ended.output


def test_size_and_channels_are_the_checkpoint_s_where_not_given(train, pretrained, tmp_path):
    train("train_unet", output_dir=tmp_path, init_from=pretrained, resolution=None, channels=None, max_train_steps=1,
          **FROM_CHECKPOINT)  # fmt: skip
    config = json.loads((tmp_path / "unet" / "config.json").read_text())
    assert (config["sample_size"], config["in_channels"], config["out_channels"]) == (8, 3, 6)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"layers_per_block": 1}, "The pretrained ADMUNet2DModel has layers_per_block=2 (here 1): only classes"),
        ({"attention_resolutions": (16,)}, "levels with attention=[1] (here [0])"),
        ({"resolution": 15}, "multiples of 2"),
        ({"init_from": "no/where.pt"}, "There is no file no/where.pt to start from."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_flags_that_contradict_the_checkpoint(train, pretrained, tmp_path, flags, said):
    merged = {"init_from": pretrained, **FROM_CHECKPOINT, **flags}
    ended = train("train_unet", status=2, output_dir=tmp_path / "output", **merged)
    assert said in ended.output and "Traceback" not in ended.output


def test_openai_s_64x64_model_for_37_classes_and_one_channel():
    """At full size, on the meta device: shapes alone."""
    from diffusers_cg.models import with_replaced

    with torch.device("meta"):
        model = ADMUNet2DModel(**PRESETS["64x64_diffusion"].architecture)
        new, replaced = with_replaced(model, num_class_embeds=37, in_channels=1, out_channels=2)
    assert [str(parameter) for parameter in replaced] == [
        "conv_in.weight (192, 1, 3, 3) starts anew, was (192, 3, 3, 3)",
        "conv_in.bias (192,) starts anew",
        "class_embedding.weight (37, 768) starts anew, was (1000, 768)",
        "conv_out.weight (2, 192, 3, 3) starts anew, was (6, 192, 3, 3)",
        "conv_out.bias (2,) starts anew, was (6,)",
    ]
    assert len(new.state_dict()) == len(model.state_dict())
