"""Many images from one pipeline or a cascade, into a folder, stopped and continued, by any number of processes."""

import json
import os
import re
import shutil
import signal
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDPMScheduler
from PIL import Image
from processes import Signal, run_function
from torch.nn.modules.module import register_module_forward_pre_hook

from diffusers_cg import (
    DIGITS,
    ADMUNet2DModel,
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.data import open_folder
from diffusers_cg.errors import InputError
from diffusers_cg.generation import (
    BESIDE_SAMPLES,
    ImageToDraw,
    SampleFolder,
    SavedPipeline,
    draw_images,
    generate_to_folder,
    images_to_draw,
)


BEGUN = Path(__file__).parents[1] / "data" / "begun_samples"
LOW = {"sample_size": 4, "attention_resolutions": (2,)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    root = tmp_path_factory.mktemp("saved")
    base, upsampler = ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline
    for name, pipe in {
        "base": tiny.pipeline(base, conditional=True, **LOW),
        "unconditional": tiny.pipeline(base, with_classifier=False, **LOW),
        "larger": tiny.pipeline(base, with_classifier=False),
        "gray": tiny.pipeline(base, with_classifier=False, in_channels=1, out_channels=2, **LOW),
        "up": tiny.pipeline(upsampler, conditional=True, low_res_size=4),
        "unguided up": tiny.pipeline(upsampler, low_res_size=4, with_classifier=False),
    }.items():
        pipe.save_pretrained(root / name)
    other = base(tiny.unet(num_class_embeds=7, **LOW), pipe.scheduler)
    other.save_pretrained(root / "seven classes")
    pipe = tiny.pipeline(base, conditional=True, **LOW)
    with torch.no_grad():
        pipe.unet.conv_out.bias[0] += 1
    pipe.save_pretrained(root / "other weights")
    (root / "empty").mkdir()
    return root


@pytest.fixture
def generate(saved, tmp_path):
    """Draws into a folder of the temporary one: 3 steps of the base, 2 of the upsampler, and what is passed besides."""

    def generate(base="base", upsampler=None, output="out", of_base=None, of_upsampler=None, **options):
        stages = [SavedPipeline(str(saved / base), **{"num_inference_steps": 3, **(of_base or {})})]
        if upsampler is not None:
            stages.append(SavedPipeline(str(saved / upsampler), **{"num_inference_steps": 2, **(of_upsampler or {})}))
        generate_to_folder(tmp_path / output, *stages, **options)

    return generate


def pixels(folder):
    """Every image, by path, as an array."""
    files = SampleFolder(folder).images()
    return {str(path.relative_to(folder)): np.asarray(Image.open(path), dtype=int) for path in files}


def contents(folder):
    """Every file by its path, hidden ones, too."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def quantized(latents):
    """The first image of a batch as the reference turns it into 8 bits, (H, W, C)."""
    return ((latents[0] + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy().astype(int)


@pytest.fixture
def count_unet_passes():
    """Counts the forward passes of unets from its call on."""
    handles = []

    def start():
        passes = []
        handles.append(
            register_module_forward_pre_hook(lambda module, _: passes.append(isinstance(module, ADMUNet2DModel)))
        )
        return lambda: sum(passes)

    yield start
    for handle in handles:
        handle.remove()


def assert_same_but_for_rounding(actual, expected, levels):
    assert list(actual) == list(expected)
    assert max(abs(actual[name] - expected[name]).max() for name in expected) <= levels


# ------------------------------------------------------------------------------------------------------------- batches


def test_images_in_batches_are_those_of_one_call():
    pipe = tiny.pipeline(ClassifierGuidedDDIMPipeline, conditional=True)
    call = {"num_inference_steps": 2, "output_type": "latent"}
    labels = [3, 1, 4, 0, 2]
    expected = pipe(labels, generator=[tiny.seeded(k) for k in range(5)], **call).images
    batches = list(draw_images(pipe, labels, (tiny.seeded(k) for k in range(5)), batch_size=2, **call))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert torch.allclose(torch.cat(batches), expected, atol=1e-5)
    # one generator for all runs on
    generator = tiny.seeded()
    expected = [pipe(part, generator=generator, **call).images for part in (labels[:3], labels[3:])]
    assert torch.equal(torch.cat(list(draw_images(pipe, labels, tiny.seeded(), 3, **call))), torch.cat(expected))


@pytest.mark.parametrize("kind", ["pt", "np"])
def test_upsampled_in_batches(kind):
    pipe = tiny.pipeline(ClassifierGuidedSuperResolutionPipeline, low_res_size=4, with_classifier=False)
    low = torch.rand(3, 3, 4, 4, generator=tiny.seeded())
    low = low if kind == "pt" else low.permute(0, 2, 3, 1).numpy()
    call = {"num_inference_steps": 2, "output_type": "latent"}
    expected = pipe(image=low, generator=[tiny.seeded(k) for k in range(3)], **call).images
    batches = draw_images(pipe, [None] * 3, [tiny.seeded(k) for k in range(3)], 2, low, **call)
    assert torch.allclose(torch.cat(list(batches)), expected, atol=1e-5)


def test_generators_are_streams_of_their_own():
    images = [ImageToDraw(label, number) for label in (0, 1, 2) for number in (0, 1, 2)]
    drawn = {
        torch.randn(4, generator=image.generator(seed, stage)).sum().item()
        for image in images
        for seed in (0, 1)
        for stage in (0, 1)
    }
    assert len(drawn) == 36


# ---------------------------------------------------------------------------------------------------- what it leaves


def test_one_stage(generate, saved, tmp_path):
    generate("base", classes=[3, 0], num_samples=4, seed=5)
    drawn = pixels(tmp_path / "out")
    assert list(drawn) == ["0/00000.png", "0/00001.png", "3/00000.png", "3/00001.png"]
    assert len(np.unique(np.stack(list(drawn.values())), axis=0)) == 4

    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(saved / "base")
    latents = pipe([3], 3, generator=[ImageToDraw(3, 1).generator(5, 0)], output_type="latent").images
    assert_same_but_for_rounding({"": drawn["3/00001.png"]}, {"": quantized(latents)}, levels=1)


@pytest.mark.parametrize("algorithm", ["ddpm", "ddim"])
def test_cascade_is_the_chain_of_both_pipelines(generate, saved, tmp_path, algorithm):
    generate(
        "base",
        "up",
        of_base={"sampler": algorithm, "classifier_scale": 2.0},
        of_upsampler={"sampler": algorithm, "classifier_scale": 3.0, "low_res_noise": 0.1},
        classes=[4],
        num_samples=1,
    )
    base = {"ddpm": ClassifierGuidedDDPMPipeline, "ddim": ClassifierGuidedDDIMPipeline}[algorithm]
    pipe = base.from_pretrained(saved / "base")
    upsampler = ClassifierGuidedSuperResolutionPipeline.from_pretrained(saved / "up")
    if algorithm == "ddim":
        upsampler.scheduler = ClassifierGuidedDDIMPipeline.from_pretrained(saved / "base").scheduler
    generators = [[ImageToDraw(4, 0).generator(0, stage)] for stage in (0, 1)]
    latents = pipe([4], 3, classifier_scale=2.0, generator=generators[0], output_type="latent").images
    low = Image.fromarray(quantized(latents).astype(np.uint8))
    latents = upsampler(
        low, [4], 2, classifier_scale=3.0, low_res_noise=0.1, generator=generators[1], output_type="latent"
    ).images
    assert latents.shape == (1, 3, 8, 8)
    assert_same_but_for_rounding(pixels(tmp_path / "out"), {"4/00000.png": quantized(latents)}, levels=0)


def test_options_of_ddim(generate, saved, tmp_path):
    options = {"sampler": "ddim", "num_inference_steps": None, "timesteps": [900, 20], "eta": 0.5}
    generate("base", of_base=options, classes=[4], num_samples=1)
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained(saved / "base")
    generator = [ImageToDraw(4, 0).generator(0, 0)]
    latents = pipe([4], timesteps=[900, 20], eta=0.5, generator=generator, output_type="latent").images
    assert_same_but_for_rounding(pixels(tmp_path / "out"), {"4/00000.png": quantized(latents)}, levels=0)


def test_precision(generate, tmp_path):
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        generate("base", "up", name, {"dtype": dtype}, {"dtype": dtype}, classes=[4], num_samples=2)
    fp32, bf16 = (np.stack(list(pixels(tmp_path / name).values())) for name in ("fp32", "bf16"))
    assert 0 < abs(fp32 - bf16).mean() < 20


def test_all_classes_take_turns_by_default(generate, tmp_path):
    generate("base", num_samples=7)
    assert list(pixels(tmp_path / "out")) == [
        *("0/00000.png", "0/00001.png", "1/00000.png", "1/00001.png", "2/00000.png", "3/00000.png", "4/00000.png")
    ]


def test_folders_of_more_than_ten_classes_have_leading_zeros(saved, tmp_path):
    """So names in sorted order are labels in order; a folder begun without is continued without."""
    pipe = ClassifierGuidedDDPMPipeline(
        tiny.unet(num_class_embeds=12, **LOW), DDPMScheduler(variance_type="learned_range")
    )
    pipe.save_pretrained(tmp_path / "twelve")
    base = SavedPipeline(str(tmp_path / "twelve"), num_inference_steps=2)
    generate_to_folder(tmp_path / "out", base, num_samples=2, classes=[2, 10])
    assert list(pixels(tmp_path / "out")) == ["02/00000.png", "10/00000.png"]
    images = open_folder(tmp_path / "out", "required", num_classes=12, leave_out=BESIDE_SAMPLES)
    assert images.labels.tolist() == [2, 10]

    (tmp_path / "out" / "02").rename(tmp_path / "out" / "2")
    settings = json.loads((tmp_path / "out" / "sampling.json").read_text())
    del settings["class_digits"]
    (tmp_path / "out" / "sampling.json").write_text(json.dumps(settings))
    generate_to_folder(tmp_path / "out", base, num_samples=4, classes=[2, 10])
    assert sorted(pixels(tmp_path / "out")) == ["10/00000.png", "10/00001.png", "2/00000.png", "2/00001.png"]


def test_random_classes(generate, tmp_path):
    generate("base", num_samples=12, random_classes=True, npz=True)
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        labels = arrays["arr_1"]
    assert labels.tolist() == [image.class_label for image in images_to_draw(12, range(5), True, seed=0)]
    assert len(set(labels.tolist())) > 2 and labels.tolist() != sorted(labels.tolist())
    counts = np.bincount([image.class_label for image in images_to_draw(5000, range(5), True, seed=3)])
    assert counts.min() > 900
    assert images_to_draw(20, range(5), True, seed=3) == images_to_draw(5000, range(5), True, seed=3)[:20]


def test_npz_is_in_the_layout_of_the_reference(generate, tmp_path, count_unet_passes):
    options = {"classes": [2, 1], "num_samples": 5, "npz": True}
    generate("base", **options)
    with np.load(tmp_path / "out" / "samples.npz") as arrays:
        assert arrays.files == ["arr_0", "arr_1"]
        images, labels = arrays["arr_0"], arrays["arr_1"]
    assert images.dtype == np.uint8 and images.shape == (5, 4, 4, 3)
    assert labels.dtype == np.int64 and labels.tolist() == [2, 1, 2, 1, 2]
    drawn = pixels(tmp_path / "out")
    numbers = ["2/00000.png", "1/00000.png", "2/00001.png", "1/00001.png", "2/00002.png"]
    assert np.array_equal(images, np.stack([drawn[name] for name in numbers]))

    generate("base", output="alone", png=False, **options)
    assert sorted(os.listdir(tmp_path / "alone")) == ["grid.png", "samples.npz", "sampling.json"]
    once = contents(tmp_path / "alone")
    assert once["samples.npz"] == contents(tmp_path / "out")["samples.npz"]
    forward_passes = count_unet_passes()
    generate("base", output="alone", png=False, **options)
    assert forward_passes() == 0 and contents(tmp_path / "alone") == once
    with pytest.raises(InputError, match="more than the 3 samples asked for, samples.npz with 5 for one"):
        generate("base", output="alone", png=False, **options | {"num_samples": 3})
    assert contents(tmp_path / "alone") == once

    generate("gray", output="gray", num_samples=2, npz=True)
    with np.load(tmp_path / "gray" / "samples.npz") as arrays:
        assert arrays.files == ["arr_0"] and arrays["arr_0"].shape == (2, 4, 4, 1)


def test_grid_of_pairs(generate, tmp_path):
    generate("base", "up", classes=[1, 2, 3], num_samples=6)
    assert sorted(os.listdir(tmp_path / "out")) == ["1", "2", "3", "grid.png", "sampling.json"]
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width == pytest.approx(4 * 70, abs=40) and grid.height == pytest.approx(3 * 70, abs=40)


def test_images_do_not_depend_on_the_batch_or_on_what_else_is_drawn(generate, tmp_path):
    generate("base", "up", "a", classes=[0, 1], num_samples=6, batch_size=4)
    generate("base", "up", "b", classes=[1, 4], num_samples=4, batch_size=3)
    generate("base", "up", "c", classes=[1], num_samples=2, seed=1)
    first, second, third = (pixels(tmp_path / name) for name in "abc")
    common = [name for name in first if name in second]
    assert common == ["1/00000.png", "1/00001.png"]
    assert_same_but_for_rounding(*({name: part[name] for name in common} for part in (second, first)), levels=4)
    assert all(abs(third[name] - first[name]).max() > 50 for name in common)


def test_batches_of_a_size_that_is_found(generate, tmp_path):
    generate("base", "up", "stated", classes=[0, 1], num_samples=10, batch_size=3)
    generate("base", "up", "found", classes=[0, 1], num_samples=10, batch_size="auto")
    stated, found = (pixels(tmp_path / name) for name in ("stated", "found"))
    assert_same_but_for_rounding(found, stated, levels=4)
    (tmp_path / "found" / "1" / "00002.png").unlink()
    rows = []
    handle = register_module_forward_pre_hook(
        lambda module, args: rows.append(len(args[0])) if isinstance(module, ADMUNet2DModel) else None
    )
    generate("base", "up", "found", classes=[0, 1], num_samples=10, batch_size="auto")
    handle.remove()
    assert rows == [1] * (3 + 2)  # steps of the two stages, for what is missing alone
    assert_same_but_for_rounding(pixels(tmp_path / "found"), stated, levels=4)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="fills the memory of a GPU")
def test_batches_that_a_gpu_has_memory_for(generate, tmp_path, capsys):
    options = {"num_samples": 200, "device": "cuda"}
    generate("larger", output="stated", batch_size=8, **options)
    torch.cuda.empty_cache()
    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**24) / whole)
    try:
        generate("larger", output="found", batch_size="auto", **options)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    size = int(re.findall(r"batches of (\d+)", capsys.readouterr().err)[-1])
    assert 1 < size < 200
    assert_same_but_for_rounding(pixels(tmp_path / "found"), pixels(tmp_path / "stated"), levels=4)


def test_no_classes_where_nobody_needs_them(generate, tmp_path):
    generate("unconditional", "unguided up", num_samples=3)
    assert list(pixels(tmp_path / "out")) == [f"images/0000{number}.png" for number in range(3)]


def test_saved_defaults(saved, tmp_path):
    pipe = ClassifierGuidedDDPMPipeline.from_pretrained(saved / "base")
    defaults = {"ddpm_num_inference_steps": 3, "ddpm_classifier_scale": 4.0}
    ClassifierGuidedDDPMPipeline(**pipe.components, **defaults).save_pretrained(tmp_path / "pipe")
    stated = SavedPipeline(str(saved / "base"), num_inference_steps=3, classifier_scale=4.0)
    for base in (stated, SavedPipeline(str(tmp_path / "pipe"))):
        # the second one finds the images of the first
        generate_to_folder(tmp_path / "out", base, classes=[2], num_samples=1)
    assert sorted(os.listdir(tmp_path / "out")) == ["2", "grid.png", "sampling.json"]


def test_one_stage_in_memory_at_a_time(generate):
    alive, counts = weakref.WeakSet(), []

    def see(module, args):
        if isinstance(module, ADMUNet2DModel):
            alive.add(module)
            counts.append(len(alive))

    handle = register_module_forward_pre_hook(see)
    generate("base", "up", classes=[1], num_samples=1)
    handle.remove()
    assert counts == [1] * 5


# ------------------------------------------------------------------------------------------------ stopped and continued


OPTIONS = {"classes": [3, 1], "num_samples": 10, "batch_size": 3, "npz": True}


@pytest.fixture(scope="module")
def undisturbed(saved, tmp_path_factory):
    """What each of two sets is drawn from, and leaves when nothing happens to it."""
    base = SavedPipeline(str(saved / "base"), num_inference_steps=3)
    upsampler = SavedPipeline(str(saved / "up"), num_inference_steps=2)
    sets = {}
    for name, stages in {"one stage": (base, None), "cascade": (base, upsampler)}.items():
        root = tmp_path_factory.mktemp("undisturbed")
        assert run_function(_generate, root / "out", stages, log=root / "log").status == 0
        sets[name] = stages, contents(root / "out")
    return sets


def _generate(folder, stages):
    generate_to_folder(folder, *stages, **OPTIONS)


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("one stage", Signal(signal.SIGKILL, ".00003.png", "os.rename")),  # in the middle of a batch's files
        ("one stage", Signal(signal.SIGKILL, ".samples.npz")),
        ("one stage", Signal(signal.SIGKILL, "out/.sampling.json", "os.rename")),
        ("cascade", Signal(signal.SIGKILL, ".low_res/3/.00002.png", "os.rename")),
        ("cascade", Signal(signal.SIGKILL, "out/1/.00004.png", "os.rename")),
        ("cascade", Signal(signal.SIGKILL, "grid.png")),
    ],
    ids=lambda value: value if isinstance(value, str) else value.path,
)
def test_killed_and_started_again_leaves_what_an_undisturbed_one_does(undisturbed, tmp_path, name, at):
    stages, expected = undisturbed[name]
    folder = tmp_path / "out"
    assert run_function(_generate, folder, stages, log=tmp_path / "log", signal=at).status == -signal.SIGKILL
    before = contents(folder)
    whole = [file for file in before if file.endswith(".png") and "/." not in file and not file.startswith(".")]
    ended = run_function(_generate, folder, stages, log=tmp_path / "log")
    assert ended.status == 0, ended.output
    after = contents(folder)
    assert after == expected
    assert all(after[file] == before[file] for file in whole)


def test_a_folder_begun_by_version_0_1_0_is_continued(tmp_path):
    """Killed as it was about to rename the third of four images: `3/.00001.png` holds what must be drawn again."""
    folder = tmp_path / "out"
    shutil.copytree(BEGUN, folder)
    before = contents(folder)
    generate_to_folder(
        folder,
        SavedPipeline(str(DIGITS / "low_res"), num_inference_steps=3),
        SavedPipeline(str(DIGITS / "upsampler"), num_inference_steps=2, low_res_noise=0.1),
        num_samples=4,
        classes=[3, 1],
        batch_size=2,
    )
    after = contents(folder)
    new = {"3/00001.png", "1/00001.png", "grid.png"}
    old = {name for name in before if not name.startswith(".low_res") and name != "3/.00001.png"}
    assert set(after) == old | new
    assert all(after[name] == before[name] for name in old if name != "sampling.json")
    settings = [json.loads(files["sampling.json"]) for files in (before, after)]
    for stage in ("base", "upsampler"):
        assert settings[1][stage].pop("path") == str(DIGITS / Path(settings[0][stage].pop("path")).name)
    # what earlier versions did not say
    assert settings[1].pop("evaluations") == {"upsampler": {"unet": 2, "classifier": 0, "backward": 0}}
    assert settings[0] == settings[1]
    again, once = (np.asarray(Image.open(name), int) for name in (folder / "3/00001.png", BEGUN / "3/.00001.png"))
    assert abs(again - once).max() <= 1


def test_more_images_of_the_same(generate, tmp_path, count_unet_passes):
    options = {"classes": [3], "batch_size": 2}
    generate("base", num_samples=3, **options)
    before = contents(tmp_path / "out")
    passes = count_unet_passes()
    generate("base", num_samples=5, **options)
    assert passes() == 2 * 3  # batches of which images were missing, three steps each
    after = contents(tmp_path / "out")
    assert len(pixels(tmp_path / "out")) == 5
    assert all(after[file] == before[file] for file in before if file != "grid.png")
    with pytest.raises(InputError, match="out holds more than the 2 samples asked for, 3/00002.png for one"):
        generate("base", num_samples=2, **options)


@pytest.mark.parametrize(
    ("model", "changed", "said"),
    [
        ("base", {"seed": 1}, r"seed 0 \(now 1\)"),
        ("base", {"of_base": {"classifier_scale": 3.0}}, r"base.classifier_scale 1.0 \(now 3.0\)"),
        ("base", {"of_base": {"sampler": "ddim"}}, r"base.sampler ddpm \(now ddim\)"),
        ("base", {"of_base": {"num_inference_steps": 4}}, r"base.num_inference_steps 3 \(now 4\)"),
        ("base", {"random_classes": True}, r"random_classes False \(now True\)"),
        ("base", {"classes": [3, 4]}, r"classes \[3\] \(now \[3, 4\]\)"),
        ("other weights", {}, "base.components "),
    ],
    ids=str,
)
def test_refuses_to_go_on_with_other_settings(generate, tmp_path, model, changed, said):
    generate("base", classes=[3], num_samples=1)
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match=f"out holds samples of other settings: .*{said}"):
        generate(model, **{"classes": [3], "num_samples": 1, **changed})
    assert contents(tmp_path / "out") == before


def test_a_run_that_drew_nothing_is_in_nobodys_way(generate, tmp_path):
    generate("base", classes=[3], num_samples=1)
    for path in (tmp_path / "out").iterdir():
        if path.name != "sampling.json":
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    generate("base", classes=[3], num_samples=1, seed=1)
    assert json.loads((tmp_path / "out" / "sampling.json").read_text())["seed"] == 1


def test_only_a_folder_of_samples_is_written_to(generate, tmp_path):
    for content in (b"[]", b"null", b"{", b"\xff"):
        (tmp_path / "listed").mkdir(exist_ok=True)
        (tmp_path / "listed" / "sampling.json").write_bytes(content)
        with pytest.raises(InputError, match=r"listed/sampling\.json"):
            generate(output="listed", num_samples=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match=r"mine holds something else than samples \(it has no sampling.json\)"):
        generate("base", classes=[1], output="mine")
    assert os.listdir(tmp_path / "mine") == ["thesis.tex"]
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotADirectoryError, match="file is a file: name a folder"):
        generate("base", classes=[1], output="file")


# ----------------------------------------------------------------------------------------------------------- bad input


DDIM = {"sampler": "ddim"}


@pytest.mark.parametrize(
    ("base", "upsampler", "options", "said"),
    [
        ("nowhere", None, {}, "There is no folder .*/nowhere: pass that of a saved pipeline, or OWNER/NAME"),
        ("empty", None, {}, r"/empty is not the folder of a pipeline \(it has no model_index.json\)."),
        ("base", "nowhere", {}, "There is no folder .*/nowhere"),
        ("up", None, {}, "This unet is an upsampling one"),
        ("base", "base", {}, "This unet generates from noise alone, but this pipeline upsamples"),
        ("larger", "up", {}, r"image shape of the first is \(3, 8, 8\), but the upsampler is made for \(3, 4, 4\)"),
        ("gray", "up", {}, r"image shape of the first is \(1, 4, 4\), but the upsampler is made for \(3, 4, 4\)"),
        ("seven classes", "up", {}, "number of classes of the first is 7, but the upsampler is made for 5"),
        ("base", None, {"classes": [5, 2]}, r"`class_labels` must lie in 0..4, got \[2, 5\]"),
        ("base", None, {"classes": [1, 2, 1]}, "must name at least one class, each once and none below 0"),
        ("unconditional", None, {"classes": [-1]}, r"each once and none below 0, got \[-1\]"),
        ("base", None, {"num_samples": 0}, "`num_samples` must be at least 1, got 0"),
        ("base", None, {"png": False}, "Neither `png` nor `npz`"),
        ("base", None, {"batch_size": 0}, '`batch_size` must be at least 1, or "auto", got 0'),
        ("base", None, {"batch_size": "all"}, "`batch_size` must be at least 1, or \"auto\", got 'all'"),
        ("base", None, {"seed": -1}, "`seed` must be at least 0, got -1"),
        ("base", None, {"device": "moon"}, "`device` is 'moon', which cannot be used here"),
        ("base", None, {"of_base": {"eta": 0.5}}, "`eta` is for the sampler ddim"),
        ("base", None, {"of_base": {**DDIM, "eta": 2.0}}, r"`eta` must lie in \[0, 1\], got 2.0"),
        ("base", None, {"of_base": {"num_inference_steps": None, "timesteps": [20, 900]}}, "`timesteps` must"),
        ("base", None, {"of_base": {"timesteps": [20]}}, "Pass either `num_inference_steps` or `timesteps`"),
        ("base", None, {"of_base": {"classifier_scale": -1.0}}, "`classifier_scale` must be finite and at least 0"),
        ("base", None, {"of_base": {"num_inference_steps": 1001}}, "`num_inference_steps` must be between 1 and 1000"),
        ("base", "up", {"of_upsampler": {"low_res_blur": -1.0}}, "`low_res_blur` must be a finite number of at least"),
        ("base", "up", {"of_upsampler": {"num_inference_steps": 0}}, "`num_inference_steps` must be between"),
        ("base", "unguided up", {"of_upsampler": {"classifier_scale": 1.0}}, "This pipeline has no classifier"),
    ],
    ids=str,
)
def test_refused_before_anything_is_computed(generate, tmp_path, count_unet_passes, base, upsampler, options, said):
    passes = count_unet_passes()
    with pytest.raises(InputError, match=said):
        generate(base, upsampler, **{"classes": [1], **options})
    assert passes() == 0
    assert os.listdir(tmp_path) == []


def test_settings_of_a_pipeline_do_not_tell_where_it_lies(saved, tmp_path):
    stage = SavedPipeline(str(saved / "base"), num_inference_steps=3)
    shutil.copytree(saved / "base", tmp_path / "copy")
    copy = replace(stage, path=str(tmp_path / "copy"))
    generate_to_folder(tmp_path / "out", stage, num_samples=1, classes=[1])
    generate_to_folder(tmp_path / "out", copy, num_samples=2, classes=[1])
    assert len(pixels(tmp_path / "out")) == 2
