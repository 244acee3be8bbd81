"""`diffusers-cg convert`, from a checkpoint file to a pipeline that samples."""

import json
import math
import os
import re
import resource
import signal
import sys
import warnings

import pytest
import tiny
import torch
from huggingface_hub import ModelCard
from processes import Signal, run_cli, run_function, run_here
from reference import CASES, COMMUNITY_LAYOUTS, MANIFESTS, rule_state_dict, save_shapes
from safetensors import safe_open

import diffusers_cg_cli
from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
    NoisyClassifierModel,
)
from diffusers_cg.hub.model_card import write_openai_model_card
from diffusers_cg.models.presets import LAYOUTS, PRESETS, Layout, Preset
from diffusers_cg.pipelines.conversion import convert_checkpoints


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
    def convert(*argv, status=0):
        ended = run_here("convert", *argv, "--output", tmp_path / "pipeline")
        assert ended.status == status, ended.output
        return ended.output

    return convert


@pytest.fixture
def own_layouts():
    """Rows that a test adds are gone after it."""
    before = dict(LAYOUTS)
    yield LAYOUTS
    LAYOUTS.clear()
    LAYOUTS.update(before)


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
    converted, preset = convert_checkpoints(
        save_shapes(tmp_path / f"{name}.pt", MANIFESTS[name]["shapes"]), read=False
    )
    assert preset is PRESETS[name] and converted.config.low_res_size == low_res_size

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


@pytest.mark.parametrize("name", [*COMMUNITY_LAYOUTS, "64x64_diffusion", "lsun_cat"])
def test_the_process_of_a_known_file(name, tmp_path):
    stated = {**COMMUNITY_LAYOUTS, **MANIFESTS}[name]
    file = stated["files"][0] if "files" in stated else name
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe, preset = convert_checkpoints(save_shapes(tmp_path / f"{file}.pt", stated["shapes"]), read=False)
    assert preset is PRESETS.get(name)
    assert pipe.config.ddpm_num_inference_steps == {"lsun_cat": 1000}.get(name, 250)
    config, num_train_timesteps = pipe.scheduler.config, stated.get("num_train_timesteps", 1000)
    assert config.num_train_timesteps == pipe.unet.config.num_train_timesteps == num_train_timesteps
    assert config.beta_schedule == {"linear": "linear", "cosine": "squaredcos_cap_v2"}[stated["noise_schedule"]]
    assert config.prediction_type == stated.get("prediction_type", "epsilon")
    if config.beta_schedule == "linear":
        scaled = [1e-4 * 1000 / num_train_timesteps, 0.02 * 1000 / num_train_timesteps]
        assert [config.beta_start, config.beta_end] == scaled
    learned = stated["flags"].get("learn_sigma", True) and config.prediction_type == "epsilon"
    assert config.variance_type == ("learned_range" if learned else "fixed_large")
    assert getattr(pipe.config, "low_res_size", None) == stated.get("small_size")


TINY = {
    "sample_size": 16, "in_channels": 3, "out_channels": 6, "base_channels": 32, "channel_multipliers": (1, 2),
    "layers_per_block": 1, "attention_resolutions": (8,), "attention_head_dim": 16,
}  # fmt: skip


def save_tiny(path, kind=ADMUNet2DModel, **changed):
    """A network of random weights that draws something."""
    torch.manual_seed(0)
    model = kind(**{**TINY, **changed}) if kind is ADMUNet2DModel else kind(**{**CLASSIFIER, **changed})
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    torch.save(model.to_openai_state_dict(new_attention_order=False), path)
    return path


CLASSIFIER = {key: value for key, value in TINY.items() if key != "out_channels"} | {"num_classes": 10}


def test_a_network_trained_at_real_times(tmp_path, own_layouts):
    own_layouts["real_times"] = Layout(
        "unet", TINY, ("real_times",), beta_schedule="continuous_cosine", prediction_type="v_prediction"
    )
    pipe, _ = convert_checkpoints(save_tiny(tmp_path / "real_times.pt"))
    expected = [math.cos(math.pi / 2 * i / 1000) ** 2 for i in range(1, 1000)]
    actual = pipe.scheduler.alphas_cumprod
    assert torch.allclose(actual[1:], torch.tensor(expected), rtol=1e-3, atol=1e-6) and 0 < 1 - actual[0] < 1e-5
    pipe.save_pretrained(tmp_path / "pipeline")
    for pipeline_class in (ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline):
        pipe = pipeline_class.from_pretrained(tmp_path / "pipeline")
        pipe.set_progress_bar_config(disable=True)
        images = pipe(batch_size=1, num_inference_steps=3, generator=torch.manual_seed(0), output_type="pt").images
        assert images.isfinite().all() and images.std() > 0


@pytest.fixture
def released(tmp_path, own_layouts):
    """A file of a released network, if it were tiny."""
    own_layouts["tiny_diffusion"] = Preset(
        "unet", TINY, ("tiny_diffusion",), beta_schedule="squaredcos_cap_v2", ddpm_num_inference_steps=100,
        ddpm_classifier_scale=1.0, ddim_classifier_scale=2.0,
    )  # fmt: skip
    return save_tiny(tmp_path / "tiny_diffusion.pt")


def test_a_released_file_gets_its_defaults_and_its_card(released, convert, tmp_path):
    said = convert(released)
    assert "OpenAI released these weights for research" in said and "warning" not in said
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    assert (pipe.config.ddpm_num_inference_steps, pipe.config.ddim_classifier_scale) == (100, 2.0)
    back, expected = pipe.unet.to_openai_state_dict(), torch.load(released)
    assert list(back) == list(expected) and all(torch.equal(back[key], expected[key]) for key in back)
    card = ModelCard.load(tmp_path / "pipeline" / "README.md")
    assert card.data.library_name == "diffusers" and card.data.license == "mit"
    assert "research" in card.text and "not meant for deployment" in card.text


@pytest.mark.parametrize("what", ["renamed", "with a classifier of one's own"])
def test_nobody_else_s_card(released, convert, tmp_path, what):
    argv = [released.rename(tmp_path / "ema_0.9999_050000.pt")]
    if what != "renamed":
        argv = [argv[0].rename(released), "--classifier", save_tiny(tmp_path / "own.pt", NoisyClassifierModel)]
        argv += ["--classifier_attention_head_dim", 16]
    said = convert(*argv)
    assert "OpenAI released" not in said and not (tmp_path / "pipeline" / "README.md").exists()
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.scheduler.config.beta_schedule == "squaredcos_cap_v2"
    if what == "renamed":  # its schedule is assumed, and that is said; its steps and scales are not
        assert "warning: " in said and "the shapes of tiny_diffusion" in said and "pass layout=" in said
        assert pipe.config.ddim_classifier_scale == 1.0


def test_four_thousand_rescaled_steps_by_hand(convert, tmp_path):
    facts = ["--sample_size", 16, "--attention_head_dim", 16, "--legacy_attention_order"]
    process = [
        "--num_train_timesteps",
        4000,
        "--rescale_timesteps",
        "--beta_schedule",
        "cosine",
        "--prediction_type",
        "sample",
    ]
    unet = save_tiny(tmp_path / "mine.pt")
    assert "warning" not in convert(unet, *facts, *process)
    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(tmp_path / "pipeline")
    stated = {"num_train_timesteps": 4000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"}
    for config in (pipe.unet.config, pipe.scheduler.config):
        assert {name: config[name] for name in stated} == stated
    assert pipe.unet.config.rescale_timesteps
    said = convert(unet, *facts)
    assert "warning: Nothing tells how" in said and "num_train_timesteps=1000" in said


CLASSIFIER_OF_COSINE = ["--classifier_beta_schedule", "cosine", "--classifier_attention_head_dim", 16]


@pytest.mark.parametrize(
    ("unet", "argv"),
    [
        ({}, ["--classifier", "adaptive.pt", "--classifier_attention_head_dim", 16]),
        ({}, ["--beta_schedule", "cosine", "--classifier", "adaptive.pt", *CLASSIFIER_OF_COSINE]),
        ({}, ["--classifier", "adaptive.pt", "--classifier_num_attention_heads", 2, "--classifier_sample_size", 16]),
        ({}, ["--classifier", "levels.pt", "--classifier_attention_head_dim", 16, "--classifier_layers_per_block", 2]),
        ({"in_channels": 1, "low_res_channels": 1, "out_channels": 2}, ["--low_res_channels", 1, "--low_res_size", 4]),
        ({"in_channels": 4, "out_channels": 4}, ["--low_res_channels", 0]),
    ],
    ids=[
        "classifier",
        "classifier's schedule",
        "classifier's size",
        "classifier's levels",
        "gray upsampler",
        "four channels",
    ],
)
def test_there_is_a_flag_for_every_fact_that_is_asked_for(convert, tmp_path, unet, argv):
    save_tiny(tmp_path / "adaptive.pt", NoisyClassifierModel, pool="adaptive")
    levels = {"pool": "adaptive", "channel_multipliers": (1, 1), "layers_per_block": 2, "attention_resolutions": ()}
    save_tiny(tmp_path / "levels.pt", NoisyClassifierModel, **levels)
    argv = [tmp_path / word if str(word).endswith(".pt") else word for word in argv]
    facts = ["--sample_size", 16, "--attention_head_dim", 16, "--legacy_attention_order"]
    convert(save_tiny(tmp_path / "unet.pt", **unet), *facts, *argv)
    assert (tmp_path / "pipeline" / "model_index.json").is_file()
    if "--classifier_beta_schedule" in argv:
        config = json.loads((tmp_path / "pipeline" / "classifier" / "config.json").read_text())
        assert config["beta_schedule"] == "squaredcos_cap_v2"
    if unet or "--classifier_layers_per_block" in argv:  # without the last flag it is asked for
        without = argv[:-2] if "--low_res_size" not in argv else argv[2:]
        assert f"pass {argv[0 if unet else -2].lstrip('-').removeprefix('classifier_')}" in convert(
            tmp_path / "unet.pt", *facts, *without, status=2
        )


def test_rows_of_one_s_own(convert, tmp_path, own_layouts):
    (tmp_path / "layouts.yaml").write_text(
        "mine: {files: [faces], num_train_timesteps: 500, architecture: "
        "{sample_size: 16, base_channels: 32, channel_multipliers: [1, 2], layers_per_block: 1, attention_head_dim: 16}}"
    )
    said = convert(save_tiny(tmp_path / "faces.pt"), "--layouts", tmp_path / "layouts.yaml")
    assert "warning" not in said
    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(tmp_path / "pipeline")
    assert pipe.scheduler.config.num_train_timesteps == 500


def peak_memory(*argv):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    diffusers_cg_cli.main(argv)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)


def test_a_conversion_takes_no_memory_for_its_weights(tmp_path):
    path = tmp_path / "ffhq_10m.pt"
    torch.save({name: torch.zeros(shape) for name, shape in COMMUNITY_LAYOUTS["p2_256"]["shapes"].items()}, path)
    argv = ("convert", str(path), "--dtype", "fp16", "--output", str(tmp_path / "pipeline"))
    ended = run_function(peak_memory, *argv, log=tmp_path / "log")
    assert ended.status == 0, ended.output
    assert int(ended.output.split()[-1]) * 1024 < 0.6 * path.stat().st_size
