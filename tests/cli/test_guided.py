"""`--scheduler` and `--guidance` of `diffusers-cg sample`, `sweep` and `demo`: what they name is what steers."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import tiny
import tiny_extractor  # noqa: F401 (found by its name)
import torch
import yaml
from PIL import Image
from processes import run_here
from torch.nn.modules.module import register_module_forward_pre_hook

from diffusers_cg import (
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
    NoisyClassifierModel,
)
from diffusers_cg.demo.page import DemoModel
from diffusers_cg.diffusion import EDMHeunScheduler
from diffusers_cg.generation import GuidanceFile, ImageToDraw, SampleFolder, SchedulerChoice
from diffusers_cg.guidance import (
    AutoGuidance,
    ClassifierGuidance,
    CleanClassifierGuidance,
    PerturbedAttentionGuidance,
    TextGuidance,
    TrainingFreeGuidance,
    image_classifier,
)


DDPM, DDIM = ClassifierGuidedDDPMPipeline, ClassifierGuidedDDIMPipeline
LOW = {"sample_size": 4, "attention_resolutions": (2,)}
STEPS = 3


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Pipelines, and networks of `transformers` by the names that a file would give them."""
    transformers = pytest.importorskip("transformers")
    root = tmp_path_factory.mktemp("saved")
    base = ClassifierGuidedDDPMPipeline
    tiny.pipeline(base, conditional=True, **LOW).save_pretrained(root / "base")
    tiny.pipeline(base, with_classifier=False, **LOW).save_pretrained(root / "unconditional")
    tiny.pipeline(ClassifierGuidedSuperResolutionPipeline, conditional=True, low_res_size=4).save_pretrained(
        root / "up"
    )
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=5, layer_type="basic"
    )
    transformers.ResNetForImageClassification(config).save_pretrained(root / "resnet")
    transformers.ResNetModel(config).save_pretrained(root / "headless")
    width = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = {**width, "vocab_size": 16, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
    vision = {**width, "image_size": 8, "patch_size": 4}
    clip = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=4)
    transformers.CLIPModel(clip).save_pretrained(root / "clip")
    vocabulary = {word: number for number, word in enumerate(["<|startoftext|>", "<|endoftext|>", "a", "a</w>"])}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[])
    images = transformers.CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(root / "clip")
    for folder in ("resnet", "headless"):
        transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(root / folder)
    return root


@pytest.fixture
def guidance(tmp_path):
    """Writes a file of guidances."""

    def guidance(*entries):
        file = tmp_path / "guidance.yaml"
        file.write_text(yaml.safe_dump(list(entries)))
        return file

    return guidance


@pytest.fixture
def sample(saved, tmp_path):
    def sample(*argv, model="base", status=0, output="out"):
        flags = ["--num_samples", 1, "--num_inference_steps", STEPS, *argv]
        result = run_here("sample", "--model", saved / model, "--output", tmp_path / output, *flags)
        assert result.status == status, result.output
        assert "Traceback" not in result.output
        return result.output

    return sample


def said_settings(folder):
    return json.loads((folder / "sampling.json").read_text())


def pixels(folder):
    (file,) = SampleFolder(folder).images()
    return np.asarray(Image.open(file), dtype=int)


def drawn(pipe, label=0, **call):
    """What Python draws: the first image of a class, as `sample` writes it."""
    pipe.set_progress_bar_config(disable=True)
    generator = [ImageToDraw(label, 0).generator(0, 0)]
    call = {"num_inference_steps": STEPS, "class_labels": None if label is None else [label], **call}
    latents = pipe(generator=generator, output_type="latent", **call).images
    return ((latents[0] + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy().astype(int)


# ---------------------------------------------------------------------------------------------------------- scheduler


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "DDIMScheduler"])
def test_scheduler_by_name(sample, saved, tmp_path, name):
    said = sample("--scheduler", name)
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(saved / "base")
    pipe.scheduler = SchedulerChoice(name, {}).of(pipe.scheduler)
    assert type(pipe.scheduler).__name__ == name
    assert np.array_equal(pixels(tmp_path / "out"), drawn(pipe))
    assert f"Passes for an image: {STEPS} of the unet, {STEPS} of a classifier, {STEPS} backward.\n" in said
    assert said_settings(tmp_path / "out")["evaluations"] == {
        "base": dict.fromkeys(["unet", "classifier", "backward"], STEPS)
    }


def test_scheduler_with_options_in_both_stages(sample, saved, tmp_path):
    flags = ["--scheduler", "EDMHeunScheduler", "s_churn=40", "s_noise=1.003"]
    upsampler = ["--upsampler", saved / "up", "--upsampler_num_inference_steps", 2]
    said = sample(*flags, *upsampler)
    settings = said_settings(tmp_path / "out")
    for stage in ("base", "upsampler"):
        assert settings[stage]["scheduler"] == {"name": "EDMHeunScheduler", "s_churn": 40, "s_noise": 1.003}
    assert (
        settings["evaluations"]["base"]["unet"] == 2 * STEPS - 1 and settings["evaluations"]["upsampler"]["unet"] == 3
    )
    assert "base: 5 of the unet" in said and "upsampler: 3 of the unet" in said
    sample(*flags, output="alone")
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(saved / "base")
    pipe.scheduler = EDMHeunScheduler.from_config(pipe.scheduler.config, s_churn=40, s_noise=1.003)
    assert np.array_equal(pixels(tmp_path / "alone"), drawn(pipe))


def test_ancestral_steps_by_name_are_algorithm_1(sample, tmp_path):
    sample("--scheduler", "DDPMScheduler")
    sample(output="plain")
    assert np.array_equal(pixels(tmp_path / "out"), pixels(tmp_path / "plain"))


# ----------------------------------------------------------------------------------------------------------- guidance


def of_classifier(pipe, saved):
    return (0.5 * ClassifierGuidance(pipe.classifier, scale=2.0, entropy_driven=True).finite().clamped(3.0)).confined(
        sigmas=(0.3, float("inf")), every=2
    )


def of_clean_classifier(pipe, saved):
    return CleanClassifierGuidance(load_resnet(saved, softplus_beta=3.0), scale=2.0, through_unet=True)


def of_text(pipe, saved):
    transformers = pytest.importorskip("transformers")
    clip = transformers.CLIPModel.from_pretrained(saved / "clip")
    processor = transformers.CLIPProcessor.from_pretrained(saved / "clip", backend="pil")
    return TextGuidance(clip, processor, "a a", num_cutouts=2)


def of_free_training(pipe, saved):
    target = CleanClassifierGuidance(load_resnet(saved), class_labels=3)
    return TrainingFreeGuidance(target, rho=0.5, mu=0.2, num_iterations=2, rho_schedule="decrease")


def of_mixed(pipe, saved):
    weak = ADMUNet2DModel.from_pretrained(saved / "base", subfolder="unet")
    return AutoGuidance(weak, 2.0).confined(stop=0.5) + PerturbedAttentionGuidance(pipe.unet, 0.5, ["mid_block"])


def load_resnet(saved, **options):
    transformers = pytest.importorskip("transformers")
    model = transformers.ResNetForImageClassification.from_pretrained(saved / "resnet")
    return image_classifier(
        model, transformers.AutoImageProcessor.from_pretrained(saved / "resnet", backend="pil"), **options
    )


@pytest.mark.parametrize(
    ("entries", "expected", "kind"),
    [
        (
            "[{guidance: ClassifierGuidance, scale: 2, entropy_driven: yes, sigmas: [0.3, .inf], every: 2, max_norm: 3, "
            "weight: 0.5, finite: yes}]",
            of_classifier,
            DDPM,
        ),
        (
            "{guidance: CleanClassifierGuidance, classify: SAVED/resnet, scale: 2, through_unet: true, softplus_beta: 3}",
            of_clean_classifier,
            DDIM,
        ),
        ("[{guidance: TextGuidance, clip: SAVED/clip, text: a a, num_cutouts: 2}]", of_text, DDIM),
        (
            "[{guidance: TrainingFreeGuidance, rho: 5e-1, mu: 0.2, num_iterations: 2, rho_schedule: decrease, target: "
            "{guidance: CleanClassifierGuidance, classify: SAVED/resnet, class_labels: 3}}]",
            of_free_training,
            DDPM,
        ),
        (
            "[{guidance: AutoGuidance, weak_unet: SAVED/base, scale: 2, stop: 0.5}, {guidance: PerturbedAttentionGuidance, "
            "scale: 0.5, blocks: [mid_block]}]",
            of_mixed,
            DDIM,
        ),
    ],
    ids=lambda value: "" if isinstance(value, str) else value.__name__,
)
def test_guidance_of_a_file_is_that_of_python(sample, saved, tmp_path, entries, expected, kind):
    (tmp_path / "file").write_text(entries.replace("SAVED", str(saved)))
    sample("--guidance", tmp_path / "file", "--sampler", kind.algorithm)
    pipe = kind.from_pretrained(saved / "base")
    assert np.array_equal(pixels(tmp_path / "out"), drawn(pipe, guidance=expected(pipe, saved)))
    assert not np.array_equal(pixels(tmp_path / "out"), drawn(pipe, classifier_scale=0))


@pytest.mark.parametrize(
    ("word", "value"), [(".3", 0.3), (".5e1", 5.0), (".inf", math.inf), ("inf", math.inf), ("2", 2.0)]
)
def test_noise_levels_as_yaml_writes_them(tmp_path, word, value):
    (tmp_path / "file").write_text(f"- guidance: ClassifierGuidance\n  sigmas: [.05, {word}]")
    (entry,) = GuidanceFile(tmp_path / "file").entries
    assert entry.sigmas == (0.05, value)


def test_guidance_stands_in_the_classifiers_place_or_beside_it(sample, saved, tmp_path, guidance):
    file = guidance({"guidance": "ClassifierGuidance", "scale": 1.5})
    sample("--guidance", file)
    sample("--guidance", file, "--classifier_scale", 1, output="beside")
    for name, scale in (("out", 1.5), ("beside", 2.5)):
        expected = drawn(ClassifierGuidedDDPMPipeline.from_pretrained(saved / "base"), classifier_scale=scale)
        assert abs(pixels(tmp_path / name) - expected).max() <= 1


def test_guidance_knows_the_classes_where_the_pipeline_does_not(sample, saved, tmp_path, guidance):
    """An unconditional unet, led by a classifier that never saw noise."""
    file = guidance({"guidance": "CleanClassifierGuidance", "classify": str(saved / "resnet")})
    sample("--guidance", file, "--num_samples", 6, model="unconditional")
    names = [str(path.relative_to(tmp_path / "out")) for path in SampleFolder(tmp_path / "out").images()]
    assert names == ["0/00000.png", "0/00001.png", "1/00000.png", "2/00000.png", "3/00000.png", "4/00000.png"]
    file = guidance({"guidance": "CleanClassifierGuidance", "classify": str(saved / "resnet"), "class_labels": 2})
    sample("--guidance", file, model="unconditional", output="fixed")
    assert os.listdir(tmp_path / "fixed" / "images") == ["00000.png"]


def test_guidance_of_the_upsampler(sample, saved, tmp_path, guidance):
    file = guidance({"guidance": "ClassifierGuidance", "every": 2})
    upsampler = ["--upsampler", saved / "up", "--upsampler_num_inference_steps", 4]
    sample(*upsampler, "--upsampler_guidance", file)
    cost = said_settings(tmp_path / "out")["evaluations"]
    assert cost["base"]["classifier"] == STEPS and cost["upsampler"] == {"unet": 4, "classifier": 2, "backward": 2}
    assert "need one: pass --upsampler" in sample("--upsampler_guidance", file, status=2)


def test_a_folder_goes_on_with_the_same_guidance_alone(sample, saved, tmp_path, guidance):
    shutil.copytree(saved / "resnet", tmp_path / "net")
    entry = {
        "guidance": "CleanClassifierGuidance",
        "classify": str(tmp_path / "net"),
        "scale": 2,
        "sigmas": [0.1, "inf"],
    }
    flags = ["--scheduler", "EulerDiscreteScheduler", "--guidance", guidance(entry)]
    sample(*flags)
    cost = said_settings(tmp_path / "out")["evaluations"]
    guidance({**entry, "every": 1})  # what is the default anyhow
    sample(*flags, "--num_samples", 2)
    assert said_settings(tmp_path / "out")["evaluations"] == cost
    sample(*flags, "--num_samples", 2)  # nothing is left to draw
    assert said_settings(tmp_path / "out")["evaluations"] == cost
    flags += ["--num_samples", 2]
    assert "base.scheduler.name EulerDiscreteScheduler (now None)" in sample("--sampler", "ddim", *flags[2:], status=2)
    assert "base.guidance.1.guidance CleanClassifierGuidance (now None)" in sample(*flags[:2], status=2)
    guidance({**entry, "scale": 3})
    assert "base.guidance.1.scale 2.0 (now 3.0)" in sample(*flags, status=2)
    guidance({**entry, "classify": str(saved / "resnet")})  # where a network lies does not matter, but what it is
    sample(*flags)
    torch.manual_seed(1)
    transformers = pytest.importorskip("transformers")
    model = transformers.ResNetForImageClassification.from_pretrained(saved / "resnet")
    torch.nn.init.normal_(model.classifier[1].weight)
    model.save_pretrained(tmp_path / "net")
    guidance(entry)
    assert "base.guidance.1.classify.components" in sample(*flags, status=2)


# ------------------------------------------------------------------------------------------------------- sweep, demo


def test_a_sweep_multiplies_the_guidance_of_the_file(saved, tmp_path, guidance, sample):
    np.savez(tmp_path / "real.npz", arr_0=np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8))
    file = guidance({"guidance": "ClassifierGuidance", "every": 2})
    flags = ["--model", saved / "base", "--guidance", file, "--reference", tmp_path / "real.npz", "--num_samples", 4]
    flags += ["--extractor", "tiny_extractor:Thumbnails", "--output", tmp_path / "curve", "--scales", 0, 2.5]
    samplers = ["--samplers", "ddim:3", "EulerDiscreteScheduler:2", "ddpm:2", "--scheduler", "UniPCMultistepScheduler"]
    ended = run_here("sweep", *flags, *samplers, "solver_order=1")
    assert ended.status == 0, ended.output
    rows = json.loads((tmp_path / "curve" / "sweep.json").read_text())
    assert [(row["sampler"]["name"], row["scale"]) for row in rows] == [
        (name, scale) for name in ("UniPCMultistepScheduler", "EulerDiscreteScheduler", "ddpm") for scale in (0, 2.5)
    ]
    assert [list(row["evaluations"].values()) for row in rows[:2]] == [[3, 0, 0], [3, 2, 2]]
    table = (tmp_path / "curve" / "table.md").read_text().splitlines()
    assert table[0].endswith("| Unet passes | Classifier passes | Backward passes |")
    assert table[2].startswith("| UniPCMultistep 3 | 0 |") and table[2].endswith("| 3 | 0 | 0 |")
    assert table[3].endswith("| 3 | 2 | 2 |")
    file = guidance({"guidance": "ClassifierGuidance", "every": 2, "weight": 2.5})
    sample("--scheduler", "EulerDiscreteScheduler", "--num_inference_steps", 2, "--guidance", file)
    cell = tmp_path / "curve" / "EulerDiscreteScheduler_2" / "scale_2.5" / "samples"
    swept = np.asarray(Image.open(cell / "0" / "00000.png"), dtype=int)
    assert abs(swept - pixels(tmp_path / "out")).max() <= 1


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (
            ["--samplers", "EulerDiscretScheduler:2"],
            "There is no scheduler 'EulerDiscretScheduler' (the nearest is EulerDiscreteScheduler)",
        ),
        (
            ["--samplers", "ddpm:2", "--scheduler", "PNDMScheduler"],
            "--scheduler takes the steps of ddim: name such a sampler",
        ),
        (
            ["--samplers", "ddim:2", "--scheduler", "DDPMScheduler"],
            "DDPMScheduler takes the steps of the sampler ddpm",
        ),
        (
            [
                "--samplers",
                "ddim:2",
                "UniPCMultistepScheduler:2",
                "--scheduler",
                "UniPCMultistepScheduler",
                "solver_order=1",
            ],
            "is the curve UniPCMultistepScheduler:2, too: name one of the two",
        ),
    ],
    ids=" ".join,
)
def test_samplers_that_a_sweep_refuses(saved, tmp_path, flags, said):
    flags += [
        "--model",
        saved / "base",
        "--reference",
        tmp_path,
        "--num_samples",
        4,
        "--scales",
        0,
        "--output",
        tmp_path / "out",
    ]
    ended = run_here("sweep", *flags)
    assert ended.status == 2 and said in ended.output and "Traceback" not in ended.output


def test_a_page_of_a_scheduler_and_a_guidance(saved, guidance):
    scheduler = SchedulerChoice.parse(["DPMSolverMultistepScheduler"])
    file = GuidanceFile(guidance({"guidance": "CleanClassifierGuidance", "classify": str(saved / "resnet")}))
    model = DemoModel.load(str(saved / "unconditional"), scheduler=scheduler, guidance=file)
    assert model.is_guided and model.class_names == list("01234") and model.default("classifier_scale", "ddim") == 1
    assert model.steps_of == {"ddim": "DPMSolverMultistep", "ddpm": "DDPM"}
    for algorithm in ("ddpm", "ddim"):
        *_, across = model.draw(2, [0.0, 1.0, 50.0], STEPS, algorithm, seed=3)
        *_, alone = model.draw(2, 1.0, STEPS, algorithm, seed=3)
        images = [np.asarray(image, dtype=int) for image in across.images]
        assert abs(images[1] - np.asarray(alone.images[0], dtype=int)).max() <= 1
        assert abs(images[0] - images[2]).max() > 5


# ---------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["EulerDiscretScheduler"],
            "There is no scheduler 'EulerDiscretScheduler' (the nearest is EulerDiscreteScheduler)",
        ),
        (
            ["LCMScheduler"],
            "LCMScheduler cannot be guided: those that can be guided are DDPMScheduler, DDIMScheduler,",
        ),
        (["EDMHeunScheduler", "s_chrn=1"], "EDMHeunScheduler takes no 's_chrn' (the nearest is s_churn)"),
        (["EDMHeunScheduler", "s_churn=much"], "EDMHeunScheduler: s_churn: must be a valid number"),
        (["EDMHeunScheduler", "s_churn"], "An option of EDMHeunScheduler is a word, = and a value"),
        (["EDMHeunScheduler", "rho=0"], "`rho` must be above 0"),
        (["EDMHeunScheduler", "sigma_min=50", "sigma_max=1"], "`sigma_min` below `sigma_max`"),
        (["EDMHeunScheduler", "s_churn=-5"], "`s_churn` and `s_noise` must be at least 0"),
        (["DPMSolverMultistepScheduler", "solver_order=0"], "solver_order: must be at least 1, got 0"),
        (["DDIMScheduler", "beta_schedule=linear"], "DDIMScheduler takes no 'beta_schedule'"),
        (["DDIMScheduler", "thresholding=true"], "DDIMScheduler takes no 'thresholding'"),
        (["DDIMScheduler", "steps_offset={"], "DDIMScheduler: steps_offset: '{' is no value"),
        (["DDIMScheduler", "timestep_spacing=wide"], "timestep_spacing: must be"),
        (
            ["EulerDiscreteScheduler", "--sampler", "ddpm"],
            "EulerDiscreteScheduler takes the steps of the sampler ddim",
        ),
        (["DDPMScheduler", "--sampler", "ddim"], "DDPMScheduler takes the steps of the sampler ddpm"),
        (["EulerDiscreteScheduler", "--eta", 1], "`eta` is for the sampler ddim"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_schedulers_that_are_refused(sample, tmp_path, words, said):
    line = sample("--scheduler", *words, status=2).strip().splitlines()[-1]
    assert line.startswith("error: ") and line.endswith(".") and said in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "names no guidance"),
        ("[]", "names no guidance"),
        ("{", "cannot be read as YAML"),
        ("- 3", "guidance 1 has no line `guidance: NAME`"),
        ("- scale: 3", "guidance 1 has no line `guidance: NAME`"),
        ("- guidance: ClasifierGuidance", "(the nearest is ClassifierGuidance), got 'ClasifierGuidance'"),
        ("- guidance: EnergyGuidance", "guidance 1 must be one of"),
        ("- guidance: os:system", "guidance 1 must be one of"),
        ("- guidance: !!python/name:os.system", "guidance 1"),
        (
            "- guidance: ClassifierGuidance\n- guidance: ClassifierGuidance\n  scal: 1",
            "guidance 2, ClassifierGuidance takes no 'scal' (the nearest is scale)",
        ),
        (
            "- guidance: ClassifierGuidance\n  scale: much",
            "guidance 1, ClassifierGuidance: scale: must be a valid number",
        ),
        ("- guidance: ClassifierGuidance\n  scale: [1, 2]", "scale: must be a valid number"),
        ("- guidance: ClassifierGuidance\n  scale: .nan", "scale: must be"),
        ("- guidance: ClassifierGuidance\n  weight: inf", "weight: must be a finite number"),
        ("- guidance: ClassifierGuidance\n  at_mean: perhaps", "at_mean: must be a valid boolean"),
        (
            "- guidance: ClassifierGuidance\n  start: 1\n  stop: 0.5",
            "A guidance is confined to 0 <= start < stop <= 1",
        ),
        ("- guidance: ClassifierGuidance\n  sigmas: [5, 0.3]", "rising noise levels"),
        ("- guidance: ClassifierGuidance\n  sigmas: 5", "sigmas: must be"),
        ("- guidance: ClassifierGuidance\n  sigmas: [[1], 2]", "sigmas: must be"),
        (
            "- guidance: TrainingFreeGuidance\n  target: {guidance: TextGuidance, clip: SAVED/clip, text: a, weight: 3}",
            "target, TextGuidance takes no 'weight'",
        ),
        ("- guidance: ClassifierGuidance\n  every: 0", "each step or every k-th"),
        ("- guidance: ClassifierGuidance\n  max_norm: 0", "`max_norm` must be above 0"),
        ("- guidance: ClassifierGuidance\n  class_labels: 5", "`class_labels` of a guidance must lie in 0..4"),
        ("- guidance: ClassifierGuidance\n  classifier: SAVED/nowhere", "classifier: there is no folder"),
        ("- guidance: ClassifierGuidance\n  classifier: SAVED/resnet", "guidance 1, ClassifierGuidance: classifier:"),
        ("- guidance: CleanClassifierGuidance", "guidance 1, CleanClassifierGuidance needs 'classify'"),
        ("- guidance: CleanClassifierGuidance\n  classify: SAVED/base", "does not load as such a network"),
        ("- guidance: CleanClassifierGuidance\n  classify: SAVED/headless", "it has no weights of classifier.1.bias"),
        ("- guidance: TextGuidance\n  clip: SAVED/clip", "guidance 1, TextGuidance needs 'text'"),
        ("- guidance: TextGuidance\n  clip: SAVED/resnet\n  text: a", "guidance 1, TextGuidance: clip:"),
        ("- guidance: TrainingFreeGuidance\n  rho: 1", "TrainingFreeGuidance needs 'target'"),
        (
            "- guidance: TrainingFreeGuidance\n  target: {guidance: ClassifierGuidance}",
            "target must be one of CleanClassifierGuidance",
        ),
        (
            "- guidance: TrainingFreeGuidance\n  rho: -1\n  target: {guidance: CleanClassifierGuidance, classify: SAVED/resnet}",
            "must be at least 0",
        ),
        ("- guidance: PerturbedAttentionGuidance\n  scale: 1\n  blocks: [top]", "No attention begins with ['top']"),
    ],
    ids=lambda value: value.replace("\n", " "),
)
def test_files_that_are_refused(sample, saved, tmp_path, text, said):
    (tmp_path / "file").write_text(text.replace("SAVED", str(saved)))
    passes = []
    kinds = ADMUNet2DModel, NoisyClassifierModel
    handle = register_module_forward_pre_hook(lambda module, _: passes.append(isinstance(module, kinds)))
    line = sample("--guidance", tmp_path / "file", status=2).strip().splitlines()[-1]
    handle.remove()
    assert line.startswith(f"error: {tmp_path / 'file'}") or "class_labels" in said, line
    assert line.endswith(".") and said in line, line
    assert not any(passes) and not (tmp_path / "out").exists()


def test_a_file_that_is_not_there(sample, tmp_path):
    assert f"No such file or directory: {tmp_path / 'none'}" in sample("--guidance", tmp_path / "none", status=2)


def test_a_guidance_that_needs_a_classifier_where_there_is_none(sample, guidance):
    said = sample("--guidance", guidance({"guidance": "ClassifierGuidance"}), model="unconditional", status=2)
    assert "the pipeline has no classifier: name the folder of one" in said
