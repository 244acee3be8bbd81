"""`diffusers-cg convert`, from a checkpoint file to a pipeline that samples."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from processes import Signal, run_cli
from reference import CASES, MANIFESTS, on_meta, rule_state_dict
from safetensors import safe_open

from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.hub.model_card import write_openai_model_card
from diffusers_cg.models.openai_files import open_checkpoint
from diffusers_cg.models.presets import PRESETS
from diffusers_cg.pipelines.conversion import resolve_low_res_size


FACTS = [
    "--sample_size",
    16,
    "--attention_head_dim",
    16,
    "--new_attention_order",
    "--classifier_attention_head_dim",
    16,
]
UPSAMPLER_FACTS = ["--sample_size", 16, "--num_attention_heads", 4, "--legacy_attention_order"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    forward = CASES["forward"]
    for name, case in (
        ("unet", forward["unet"]["new_order_heads_by_width"]),
        ("classifier", forward["classifier"]["attention"]),
        ("upsampler", forward["superres"]["fixed_heads"]),
    ):
        torch.save(rule_state_dict(case["shapes"]), folder / f"{name}.pt")
    return folder


@pytest.fixture
def convert(tmp_path):
    def convert(*argv, status=0, **options):
        ended = run_cli("convert", *argv, "--output", tmp_path / "pipeline", log=tmp_path / "log", **options)
        assert ended.status == status, ended.output
        assert "Traceback" not in ended.output
        return ended.output

    return convert


def weights_files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.safetensors"))


def test_both_pipelines_load_what_was_converted(files, convert, tmp_path):
    said = convert(files / "unet.pt", "--classifier", files / "classifier.pt", *FACTS)
    assert said.strip().endswith(f"Saved {tmp_path / 'pipeline'}.")
    case = CASES["forward"]["unet"]["new_order_heads_by_width"]
    for pipeline_class in (ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline):
        pipe = pipeline_class.from_pretrained(tmp_path / "pipeline")
        assert pipe.scheduler.config.beta_schedule == "linear"
        assert pipe.classifier.config.num_classes == 10
    expected = rule_state_dict(case["shapes"])
    actual = pipe.unet.to_openai_state_dict()
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())
    assert not (tmp_path / "pipeline" / "README.md").exists()  # OpenAI's card is for OpenAI's files


def test_an_upsampler_becomes_an_upsampling_pipeline(files, convert, tmp_path):
    convert(
        *(files / "upsampler.pt", "--classifier", files / "classifier.pt", *UPSAMPLER_FACTS, "--low_res_size", 4),
        *FACTS[-2:],
    )
    pipe = ClassifierGuidedSuperResolutionPipeline.from_pretrained(tmp_path / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.low_res_shape == (3, 4, 4)
    assert pipe.scheduler.config.variance_type == "learned_range"
    images = pipe(image=torch.zeros(2, 3, 4, 4), class_labels=[0, 9], num_inference_steps=1).images
    assert [image.size for image in images] == [(16, 16)] * 2
    expected = rule_state_dict(CASES["forward"]["superres"]["fixed_heads"]["shapes"])
    actual = pipe.unet.to_openai_state_dict()
    assert all(torch.equal(actual[key], tensor) for key, tensor in expected.items())


@pytest.mark.parametrize(("name", "low_res_size"), [("64_256_upsampler", 64), ("128_512_upsampler", 128)])
def test_released_upsamplers_need_no_facts(tmp_path, monkeypatch, name, low_res_size):
    checkpoint = open_checkpoint(on_meta(MANIFESTS[name]["shapes"]), "unet")
    assert checkpoint.preset is PRESETS[name]
    assert resolve_low_res_size(checkpoint, None) == low_res_size

    pipe = tiny.pipeline(
        ClassifierGuidedSuperResolutionPipeline, conditional=True, low_res_size=4, with_classifier=False
    )
    write_openai_model_card(tmp_path, pipe, f"{name}.pt", None, dtype="fp32", name="up")
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-to-image"
    assert (card.data.license, card.data.datasets) == ("mit", ["imagenet-1k"])
    assert "(from 4 pixels) of OpenAI's guided-diffusion" in card.text
    assert "research" in card.text and f"{name}.pt" in card.text
    (snippet,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    pipe.save_pretrained(tmp_path / "up")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(snippet.replace("[4], ", "[4], num_inference_steps=2, "), names)
    assert names["images"][0].size == (8, 8)


def test_precision_shards_and_schedule(files, convert, tmp_path):
    convert(
        *(files / "unet.pt", "--dtype", "fp16", "--max_shard_size", "300KB", "--beta_schedule", "cosine"),
        *FACTS[:5],
    )
    stored = weights_files(tmp_path / "pipeline")
    assert len(stored) > 2 and all(name.startswith("unet/") for name in stored)
    with safe_open(tmp_path / "pipeline" / stored[0], "pt") as opened:
        assert {opened.get_tensor(key).dtype for key in opened.keys()} == {torch.float16}  # noqa: SIM118
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.classifier is None
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"


@pytest.mark.parametrize("interrupted", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_conversion_leaves_no_folder(files, convert, tmp_path, interrupted):
    at = Signal(interrupted, "model_index.json")
    ended = run_cli(
        *("convert", files / "unet.pt", "--output", tmp_path / "pipeline", *FACTS[:5]), log=tmp_path / "log", signal=at
    )
    assert ended.status != 0
    assert not (tmp_path / "pipeline").exists()
    convert(files / "unet.pt", *FACTS[:5])
    assert sorted(os.listdir(tmp_path)) == ["log", "pipeline"]


def test_a_folder_of_something_else_is_not_replaced(files, convert, tmp_path):
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "thesis.tex").write_text("precious")
    said = convert(files / "unet.pt", *FACTS[:5], status=2)
    assert "error: This folder has no model_index.json and would be replaced whole" in said
    assert os.listdir(tmp_path / "pipeline") == ["thesis.tex"]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere.pt"], "No such file or directory: "),
        (["classifier.pt"], "is a classifier's, not a unet's"),
        (["unet.pt"], "pass sample_size="),
        (["unet.pt", "--classifier", "unet.pt", *FACTS[:5]], "is a unet's, not a classifier's"),
        (["upsampler.pt", *UPSAMPLER_FACTS], "an upsampling one, and its shapes do not tell .*: pass low_res_size="),
        (["upsampler.pt", *UPSAMPLER_FACTS, "--low_res_size", 17], "`low_res_size` must be one side or two, up to"),
        (["unet.pt", "--low_res_size", 4, *FACTS[:5]], "generates from noise alone: low_res_size= is for upsampling"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_refusals(files, convert, tmp_path, argv, said):
    argv = [files / arg if str(arg).endswith(".pt") else arg for arg in argv]
    line = convert(*argv, status=2).strip().splitlines()[-1]
    assert line.startswith("error: ") and line.endswith(".") and re.search(said, line)
    assert not (tmp_path / "pipeline").exists()


@torch.no_grad()
def test_the_64x64_model_at_full_size(tmp_path):
    shapes = MANIFESTS["64x64_diffusion"]["shapes"]
    generator = torch.Generator().manual_seed(0)
    state_dict = {key: 0.02 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    path = tmp_path / "64x64_diffusion.pt"
    torch.save(state_dict, path)
    size = path.stat().st_size
    assert size > 1e9

    command = [Path(sys.executable).with_name("diffusers-cg"), "convert", path, "--output", tmp_path / "adm-64"]
    process = subprocess.Popen(list(map(str, command)))
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert usage.ru_maxrss * 1024 < 2.5 * size
    path.unlink()

    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(tmp_path / "adm-64")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert pipe.config.ddpm_num_inference_steps == 250
    back = pipe.unet.to_openai_state_dict()
    assert list(back) == list(state_dict) and all(torch.equal(back[key], state_dict[key]) for key in back)
    image = pipe(class_labels=207, num_inference_steps=1, classifier_scale=0.0, output_type="pt").images
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all()

    card = ModelCard.load(tmp_path / "adm-64" / "README.md")
    assert card.data.library_name == "diffusers"
    assert "research" in card.text and "not meant for deployment" in card.text
    assert isinstance(pipe.unet, ADMUNet2DModel)
