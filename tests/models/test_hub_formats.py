"""Folders that others put on the Hub, in files of the same layout: recognised by config and names, without their code."""

import json

import pytest
import torch
from processes import run_here
from reference import CASES, FORWARD, reference_classifier, reference_unet, rule_state_dict
from safetensors.torch import save_file

from diffusers_cg import ADMUNet2DModel, ClassifierGuidedDDIMPipeline, NoisyClassifierModel
from diffusers_cg.errors import InputError
from diffusers_cg.models.fine_tuning import load_pretrained
from diffusers_cg.models.openai_layout import openai_entries
from diffusers_cg.pipelines.conversion import convert_checkpoints


UNET = CASES["forward"]["unet"]["unconditional_dropout"]
FORK_CONFIG = {  # as of xutongda/adm_*
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.27.0.dev0",
    "act_fn": "silu",
    "add_attention": True,
    "attention_head_dim": 16,
    "attention_legacy_order": True,
    "attn_norm_num_groups": None,
    "block_out_channels": [32, 64],
    "center_input_sample": False,
    "class_embed_type": None,
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "downsample_padding": 1,
    "downsample_type": "resnet",
    "dropout": 0.0,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 3,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_class_embeds": None,
    "num_train_timesteps": None,
    "out_channels": 6,
    "resnet_time_scale_shift": "scale_shift",
    "sample_size": 16,
    "time_embedding_type": "adm",
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "upsample_type": "resnet",
}


def write(folder, config, tensors, scheduler=None):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "diffusion_pytorch_model.safetensors"
    )
    if scheduler is not None:
        (folder / "scheduler_config.json").write_text(json.dumps(scheduler))
    return folder


@torch.no_grad()
def same_output(model, expected):
    inputs = (FORWARD["x"], FORWARD["t"])
    return torch.equal(model(*inputs, return_dict=False)[0], expected(*inputs, return_dict=False)[0])


@pytest.fixture
def fork(tmp_path):
    """A folder of the fork's: diffusers' names, but query, key and value in OpenAI's order, each a third of the stack."""
    reference = reference_unet("unconditional_dropout")
    openai, tensors = reference.to_openai_state_dict(), {}
    for entry in openai_entries(reference):
        tensors.update(zip(entry.ours, entry.unpack(openai[entry.openai], new_attention_order=True)))
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_schedule": "linear"}
    return write(tmp_path / "adm_faces_16x16", FORK_CONFIG, tensors, scheduler)


def test_the_fork_s_unet(fork):
    expected = reference_unet("unconditional_dropout")
    for unet in (ADMUNet2DModel.from_single_file(fork), ADMUNet2DModel.from_pretrained(fork)):
        assert same_output(unet, expected)
        assert (unet.config.num_train_timesteps, unet.config.beta_schedule) == (1000, "linear")
        assert unet.config["_new_attention_order"] is False
    back = unet.to_openai_state_dict()
    assert all(torch.equal(back[key], tensor) for key, tensor in rule_state_dict(UNET["shapes"]).items())


def test_from_the_hub(fork, hub):
    hub.put("them/adm", {path.name: path.read_bytes() for path in fork.iterdir()} | {"unet.py": b"raise SystemExit"})
    unet = ADMUNet2DModel.from_pretrained("them/adm")
    assert same_output(unet, reference_unet("unconditional_dropout")) and unet.config.num_train_timesteps == 1000


def test_a_repository_is_converted_and_inspected(fork, hub, tmp_path):
    hub.put("them/adm", {path.name: path.read_bytes() for path in fork.iterdir()})
    converted = run_here("convert", "them/adm", "--output", tmp_path / "pipeline")
    assert converted.status == 0, converted.output
    loaded = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path / "pipeline")
    assert same_output(loaded.unet, reference_unet("unconditional_dropout"))
    assert "kind: unet, unconditional, learned variance" in run_here("inspect", "them/adm").output
    nowhere = run_here("convert", "them/nothing", "--output", tmp_path / "other")
    assert nowhere.status == 2 and "them/nothing" in nowhere.output


def test_training_starts_from_such_a_folder(fork):
    assert same_output(load_pretrained(ADMUNet2DModel, fork), reference_unet("unconditional_dropout"))


def test_a_folder_becomes_a_pipeline(fork, tmp_path):
    pipe, preset = convert_checkpoints(fork, read=False)
    pipe.save_pretrained(tmp_path / "pipeline")
    loaded = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path / "pipeline")
    assert preset is None and same_output(loaded.unet, reference_unet("unconditional_dropout"))


def test_the_fork_s_weights_that_do_not_fit(fork):
    config = {**FORK_CONFIG, "layers_per_block": 2}
    (fork / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="do not match their config.json: down_blocks.0"):
        ADMUNet2DModel.from_pretrained(fork)


def wrapped(shapes):
    return {f"model.{key}": tensor for key, tensor in rule_state_dict(shapes).items()}


def test_a_unet_and_a_classifier_of_openai_s_flags(tmp_path):
    pipeline = tmp_path / "ADM-G-16"
    config = {"_class_name": "ADMUNet2DModel", "_diffusers_version": "0.36.0", "image_size": 16, "num_channels": 32,
              "num_res_blocks": 1, "channel_mult": "1,2", "learn_sigma": True, "class_cond": False, "use_checkpoint": False,
              "attention_resolutions": "8", "num_heads": 4, "num_head_channels": 16, "num_heads_upsample": -1,
              "use_scale_shift_norm": True, "dropout": 0.1, "resblock_updown": True, "use_fp16": False,
              "use_new_attention_order": False, "in_channels": 3, "out_channels": None}  # fmt: skip
    write(pipeline / "unet", config, wrapped(UNET["shapes"]))
    scheduler = {"_class_name": "ADMScheduler", "steps": 500, "noise_schedule": "cosine", "predict_xstart": True}
    (pipeline / "scheduler").mkdir()
    (pipeline / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    for unet in (
        ADMUNet2DModel.from_single_file(pipeline),
        ADMUNet2DModel.from_pretrained(pipeline, subfolder="unet", torch_dtype=torch.float32),
    ):
        assert same_output(unet, reference_unet("unconditional_dropout"))
        assert unet.config.num_train_timesteps == 500 and unet.config.beta_schedule == "squaredcos_cap_v2"
        assert unet.config.prediction_type == "sample"

    case = CASES["forward"]["classifier"]["attention"]
    config = {"_class_name": "ADMClassifierModel", "image_size": 16, "classifier_width": 32, "classifier_depth": 1,
              "classifier_attention_resolutions": "8", "classifier_pool": "attention", "num_classes": 10}  # fmt: skip
    write(pipeline / "classifier", config, wrapped(case["shapes"]))
    classifier = NoisyClassifierModel.from_single_file(
        pipeline, attention_head_dim=16
    )  # 64, the constant there, is too many
    assert same_output(classifier, reference_classifier("attention"))


def test_other_folders_are_refused(tmp_path):
    with pytest.raises(InputError, match="has no config.json, neither in itself nor in unet/"):
        ADMUNet2DModel.from_single_file(tmp_path)
    write(tmp_path / "plain", {"_class_name": "UNet2DModel", "sample_size": 16}, {"conv_in.weight": torch.zeros(1)})
    with pytest.raises(InputError, match="holds a UNet2DModel, which is none of the formats"):
        ADMUNet2DModel.from_single_file(tmp_path / "plain")
