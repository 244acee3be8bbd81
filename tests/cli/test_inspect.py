"""`diffusers-cg inspect`: what a checkpoint is, and how that is known, without its weights."""

import pytest
import torch
from processes import run_here
from reference import CASES, COMMUNITY_LAYOUTS, MANIFESTS, rule_state_dict, save_shapes


def inspected(*argv, status=0):
    """Lines by what stands before their colon."""
    ended = run_here("inspect", *argv)
    assert ended.status == status, ended.output
    return ended.output if status else dict(line.split(": ", 1) for line in ended.output.splitlines())


def test_a_file_of_a_known_name(tmp_path):
    name = "imagenet64_uncond_100M_1500K"
    lines = inspected(save_shapes(tmp_path / f"{name}.pt", COMMUNITY_LAYOUTS["improved_imagenet64_uncond"]["shapes"]))
    assert lines["kind"] == "unet, unconditional, learned variance"
    assert lines["layout"] == "improved_imagenet64_uncond, by its name"
    assert lines["parameters"] == "121,063,942 in float32"
    assert lines["source"] == "openai/improved-diffusion; license: MIT"
    for flag in ("--image_size 64", "--num_heads 4", "--diffusion_steps 4000", "--noise_schedule cosine",
                 "--rescale_timesteps True", "--learn_sigma True", "--resblock_updown False"):  # fmt: skip
        assert flag in lines["OpenAI's flags"]
    assert "channel_multipliers=(1, 2, 3, 4)" in lines["certain, from names and shapes"]
    assert "num_train_timesteps=4000" in lines["known, from the file's name"]
    assert not any(key.startswith(("assumed", "note", "not told")) for key in lines)


@pytest.mark.parametrize("name", MANIFESTS)
def test_the_flags_of_a_released_file(name, tmp_path):
    manifest = MANIFESTS[name]
    lines = inspected(save_shapes(tmp_path / f"{name}.pt", manifest["shapes"]))
    flags = dict(flag.split(" ") for flag in lines["OpenAI's flags"].removeprefix("--").split(" --"))
    stated = {flag: str(value) for flag, value in manifest["flags"].items()}
    # heads have a number or a width; no weight tells of --classifier_use_fp16
    assert len(stated.keys() - flags.keys()) <= 1
    assert all(stated[flag] == flags[flag] for flag in stated.keys() & flags.keys())
    assert lines["parameters"].startswith(f"{manifest['parameters']:,} ")


def test_what_is_assumed_and_what_is_stated(tmp_path):
    path = save_shapes(
        tmp_path / "mine.pt", COMMUNITY_LAYOUTS["512_openimages_v"]["shapes"], lambda it: {"ema": it, "step": 3}
    )
    lines = inspected(path)
    assert lines["layout"] == "512_uncond_finetune, by its shapes alone" and lines["taken from"].startswith("ema ")
    assert "prediction_type='epsilon'" in lines["assumed, from the shapes of 512_uncond_finetune"]
    assert "but 512_openimages_v has" in lines["note"]
    lines = inspected(path, "--prediction_type", "v_prediction", "--num_attention_heads", 8)
    assert lines["stated, by you"] == "num_attention_heads=8, prediction_type='v_prediction'"
    assert inspected(path, "--layout", "512_openimages_v")["layout"] == "512_openimages_v, as you state"


def test_what_nothing_tells(tmp_path):
    case = CASES["forward"]["unet"]["unconditional_dropout"]
    torch.save(rule_state_dict(case["shapes"]), tmp_path / "mine.pt")
    lines = inspected(tmp_path / "mine.pt")
    assert lines["layout"] == "none that is known"
    asked = lines["not told by anything, pass"]
    assert asked.startswith("sample_size=; attention_head_dim=") and "new_attention_order=" in asked


def test_refusals(tmp_path):
    assert "No such file" in inspected(tmp_path / "nowhere.pt", status=2)
    torch.save({"down_blocks.0.weight": torch.zeros(1)}, tmp_path / "other.pt")
    assert "diffusers' names" in inspected(tmp_path / "other.pt", status=2)
