"""`diffusers-cg sweep`: samples of every sampler at every scale, measured and drawn as curves."""

import json
import os
import shutil
import signal

import numpy as np
import pytest
import tiny
import tiny_extractor
from PIL import Image
from processes import Signal, run_cli, run_here
from torch.nn.modules.module import register_module_forward_pre_hook, register_module_module_registration_hook

from diffusers_cg import ADMUNet2DModel, ClassifierGuidedDDPMPipeline, NoisyClassifierModel
from diffusers_cg.data import open_images
from diffusers_cg.evaluation import evaluate
from diffusers_cg.generation import BESIDE_SAMPLES


SAMPLERS = ["--samplers", "ddpm:3", "ddim:2"]
FLAGS = [*SAMPLERS, "--scales", 0, 2.5, "--num_samples", 6, "--batch_size", 4]
THUMBNAILS = ["--extractor", "tiny_extractor:Thumbnails"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A model, an unconditional one with a classifier and one without, and a reference."""
    root = tmp_path_factory.mktemp("given")
    tiny.pipeline(ClassifierGuidedDDPMPipeline, conditional=True).save_pretrained(root / "model")
    tiny.pipeline(ClassifierGuidedDDPMPipeline, with_classifier=False).save_pretrained(root / "unguided")
    tiny.pipeline(ClassifierGuidedDDPMPipeline).save_pretrained(root / "unconditional")
    np.savez(root / "reference.npz", arr_0=np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8))
    return root


@pytest.fixture
def sweep(given, tmp_path):
    def sweep(*argv, model="model", extractor=THUMBNAILS, status=0):
        flags = ["--model", given / model, "--reference", given / "reference.npz", *extractor]
        result = run_here("sweep", *flags, *argv, "--output", tmp_path / "out")
        assert result.status == status, result.output
        assert "Traceback" not in result.output
        return result.output

    return sweep


def contents(folder):
    """Every file by its path; reports name the folder itself."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes().replace(bytes(folder), b"FOLDER") for file in files}


def test_what_it_leaves(sweep, given, tmp_path):
    said = sweep(*FLAGS)
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == [
        *("by_scale.png", "ddim_2", "ddim_2.png", "ddpm_3", "ddpm_3.png", "sweep.json", "table.md", "trade_off.png")
    ]
    rows = json.loads((out / "sweep.json").read_text())
    assert [(row["sampler"]["name"], row["scale"]) for row in rows] == [
        *(("ddpm", 0.0), ("ddpm", 2.5), ("ddim", 0.0), ("ddim", 2.5))
    ]
    for row in rows:
        cell = out / f"{row['sampler']['name']}_{row['sampler']['num_inference_steps']}" / f"scale_{row['scale']:g}"
        samples = open_images(cell / "samples", leave_out=BESIDE_SAMPLES)
        measured = evaluate(samples, given / "reference.npz", tiny_extractor.Thumbnails())
        assert measured.metrics == pytest.approx(row["metrics"])
        assert json.loads((cell / "report.json").read_text())["metrics"] == row["metrics"]
    table = (out / "table.md").read_text()
    assert table in said and len(table.splitlines()) == 6
    assert "| DDIM 2 | 2.5 |" in table and "| Precision | Recall |" in table.splitlines()[0]
    assert Image.open(out / "by_scale.png").width > Image.open(out / "trade_off.png").width > 500
    grid = Image.open(out / "ddpm_3.png")
    assert grid.height == pytest.approx(2 * 70, abs=40) and grid.width == pytest.approx(6 * 70, abs=90)


def test_goes_on_with_more_scales_and_samples_and_measures_anew_with_another_extractor(sweep):
    passes = []
    handle = register_module_forward_pre_hook(lambda module, _: passes.append(isinstance(module, ADMUNet2DModel)))

    def cost(*argv, **changed):
        passes.clear()
        tiny_extractor.Thumbnails.calls = 0
        sweep(*argv, **changed)
        return sum(passes), tiny_extractor.Thumbnails.calls

    flags = ["--samplers", "ddim:2", "--num_samples", 4, "--batch_size", 4]
    reference, tried = 9, 1  # images that are seen once, and before every set
    assert cost(*flags, "--scales", 0, 1) == (4, 2 * (tried + 4) + reference)
    assert cost(*flags, "--scales", 0, 1) == (0, 0)
    assert cost(*flags, "--scales", 0, 1, 2) == (2, tried + 4)
    assert cost(*flags, "--scales", 1, "--num_samples", 6) == (2, tried + 6)
    assert cost(*flags, "--scales", 2, extractor=["--extractor", "tiny_extractor:mean_colors"]) == (0, 0)
    handle.remove()


def test_loads_networks_once_for_all_cells_and_says_of_them_what_sample_does(sweep, given, tmp_path):
    made = []

    def note(module, name, _):
        if name == "conv_in" and isinstance(module, (ADMUNet2DModel, NoisyClassifierModel)):
            made.append(type(module))

    (tmp_path / "guidance.yaml").write_text(f"guidance: ClassifierGuidance\nclassifier: {given / 'unconditional'}")
    handle = register_module_module_registration_hook(note)
    sweep(*FLAGS, "--samplers", "ddpm:3", "ddim:2", "ddim:3", "DPMSolverMultistepScheduler:2")
    assert sorted(made, key=str) == [ADMUNet2DModel, NoisyClassifierModel]
    shutil.move(tmp_path / "out", tmp_path / "classifier")
    made.clear()
    sweep(*FLAGS, "--guidance", tmp_path / "guidance.yaml")
    assert sorted(made, key=str) == [ADMUNet2DModel, NoisyClassifierModel, NoisyClassifierModel]
    handle.remove()
    for sampler, cell in {
        ("--sampler", "ddpm"): "ddpm_3",
        ("--sampler", "ddim"): "ddim_3",
        ("--scheduler", "DPMSolverMultistepScheduler"): "DPMSolverMultistepScheduler_2",
    }.items():
        flags = ["--model", given / "model", "--classes", *range(5), "--num_samples", 6, *sampler]
        output = tmp_path / "classifier" / cell / "scale_2.5" / "samples"  # goes on only with the same settings
        flags += ["--num_inference_steps", cell[-1], "--classifier_scale", 2.5, "--output", output]
        ended = run_here("sample", *flags)
        assert ended.status == 0, ended.output


@pytest.fixture(scope="module")
def undisturbed(given, tmp_path_factory):
    """The flags of a sweep, and what it leaves when nothing happens to it."""
    root = tmp_path_factory.mktemp("undisturbed")
    flags = ["--model", given / "model", "--reference", given / "reference.npz", *THUMBNAILS, *FLAGS]
    assert run_cli("sweep", *flags, "--output", root / "out", log=root / "log").status == 0
    return flags, contents(root / "out")


@pytest.mark.parametrize(
    "at",
    [
        Signal(signal.SIGKILL, "ddpm_3/scale_2.5/samples/1/.00000.png", "os.rename"),
        Signal(signal.SIGKILL, "report.md", count=2),
        Signal(signal.SIGKILL, "trade_off.png"),
    ],
    ids=lambda at: at.path,
)
def test_killed_and_started_again_leaves_what_an_undisturbed_sweep_does(undisturbed, tmp_path, at):
    flags, expected = undisturbed
    argv = [*flags, "--output", tmp_path / "out"]
    assert run_cli("sweep", *argv, log=tmp_path / "log", signal=at).status == -signal.SIGKILL
    assert not (tmp_path / "out" / "table.md").exists()
    assert run_cli("sweep", *argv, log=tmp_path / "log").status == 0
    assert contents(tmp_path / "out") == expected


def test_an_unconditional_unet_draws_the_same_images_at_every_scale(sweep, tmp_path):
    sweep("--samplers", "ddim:2", "--scales", 0, 1e-6, "--num_samples", 7, model="unconditional")
    drawn = [
        {
            file.relative_to(cell): np.asarray(Image.open(file), dtype=int)
            for file in (cell / "samples").rglob("*/*.png")
        }
        for cell in sorted((tmp_path / "out" / "ddim_2").iterdir())
    ]
    assert drawn[0].keys() == drawn[1].keys() and len(drawn[0]) == 7
    assert max(abs(drawn[0][name] - drawn[1][name]).max() for name in drawn[0]) <= 1


def test_statistics_alone_as_a_reference(sweep, given, tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "statistics.npz", mu=rng.normal(size=6), sigma=np.eye(6))
    flags = ["--samplers", "ddim:2", "--scales", 0, "--num_samples", 4, "--batch_size", "auto"]
    sweep(*flags, "--reference", tmp_path / "statistics.npz")
    (row,) = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert row["metrics"]["fid"] > 0 and row["metrics"]["precision"] is None
    assert "Precision" not in (tmp_path / "out" / "table.md").read_text()


@pytest.mark.parametrize(
    ("model", "argv", "said"),
    [
        (
            "model",
            ["--samplers", "ddpm"],
            "--samplers: a sampler is ddpm, ddim, solver or a scheduler's class and its steps",
        ),
        (
            "model",
            ["--samplers", "plms:3"],
            "There is no scheduler 'plms': those that can be guided are DDPMScheduler",
        ),
        ("model", ["--samplers", "ddim:2", "ddim:2"], "--samplers: each must be named once, got ddim:2, ddim:2"),
        ("model", ["--scales", 1, 1], "--scales: each must be named once, got 1.0, 1.0"),
        ("model", ["--scales=-1"], "--scales: must be greater than or equal to 0"),
        ("model", ["--samplers", "ddim:1001"], "`num_inference_steps` must be between 1 and 1000"),
        ("model", ["--num_samples", 0], "--num_samples: must be greater than 0, got 0"),
        ("model", ["--num_samples", 3], "`num_samples` must be at least 4 for metrics, got 3"),
        ("model", ["--reference", "nowhere.npz"], "nowhere.npz"),
        ("model", ["--extractor", "nowhere:f"], "The extractor nowhere:f cannot be imported"),
        ("unguided", ["--scales", 0, 2], "This pipeline has no classifier: pass `classifier_scale=0`"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_refused_before_anything_is_drawn(sweep, tmp_path, model, argv, said):
    flags = {"--samplers": ["ddim:2"], "--scales": [0], "--num_samples": [4]}
    flags = [arg for name, values in flags.items() if not str(argv[0]).startswith(name) for arg in (name, *values)]
    passes = []
    handle = register_module_forward_pre_hook(lambda module, _: passes.append(isinstance(module, ADMUNet2DModel)))
    line = sweep(*flags, *argv, model=model, status=2).strip().splitlines()[-1]
    handle.remove()
    assert line.startswith("error: ") and line.endswith(".") and said in line
    assert not any(passes)
    assert not list(tmp_path.rglob("*.png"))


def test_refuses_to_go_on_with_another_seed(sweep, tmp_path):
    flags = ["--samplers", "ddim:2", "--scales", 0, "--num_samples", 4]
    sweep(*flags)
    before = contents(tmp_path / "out")
    assert "holds samples of other settings: seed 0 (now 1)" in sweep(*flags, "--seed", 1, status=2)
    assert contents(tmp_path / "out") == before
