"""What the page shows, without a page; and the page as a Space."""

import os
import re
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from huggingface_hub import SpaceCard
from PIL import Image
from processes import run_here

from diffusers_cg import ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline
from diffusers_cg.data.images import resize_and_crop
from diffusers_cg.demo.page import MAX_IMAGES, SCALES, DemoModel
from diffusers_cg.diffusion import seeded_generator
from diffusers_cg.errors import InputError


SITE_PACKAGES = Path(torch.__file__).parents[1]
CLASS_NAMES = ["owl", "hen", "cat", "dog", "bee"]


@pytest.fixture(scope="module")
def model():
    return DemoModel(tiny.pipeline(ClassifierGuidedDDPMPipeline, conditional=True, class_names=CLASS_NAMES))


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8))
MASK = Image.fromarray(np.uint8([[0] * 5 + [255] * 3] * 8))
KEPT = np.asarray(MASK) == 0


def last(previews):
    return list(previews)[-1].images


def enlarged(image, size):
    return image.resize(size, Image.Resampling.NEAREST)


def at_model_size(image):
    """The pixels of one that the page enlarged."""
    return np.asarray(image.resize((8, 8), Image.Resampling.NEAREST).convert("RGB"), int)


@pytest.mark.parametrize("algorithm", ["ddpm", "ddim"])
def test_images_appear_step_by_step(model, algorithm):
    previews = list(model.draw(2, 1.0, 4, algorithm, seed=3, num_images=2))
    assert [str(preview) for preview in previews] == ["Step 1 of 4", "Step 2 of 4", "Step 3 of 4", "Done."]
    arrays = [np.asarray(preview.images[0]) for preview in previews]
    assert all(not np.array_equal(one, next_one) for one, next_one in zip(arrays, arrays[1:]))
    expected = model.pipes[algorithm](
        class_labels=[2, 2],
        classifier_scale=1.0,
        num_inference_steps=4,
        generator=[seeded_generator(3, number) for number in range(2)],
    ).images
    for image, small in zip(previews[-1].images, expected):
        assert image.size == (128, 128)  # 16 times as large, not blurred
        assert np.array_equal(np.asarray(image)[8::16, 8::16], np.asarray(small))


def test_one_noise_at_several_scales(model):
    images = last(model.draw(2, list(SCALES), 3, "ddim", seed=3))
    assert len(images) == len(SCALES)
    alone = last(model.draw(2, SCALES[2], 3, "ddim", seed=3))
    assert np.abs(np.asarray(alone[0], int) - np.asarray(images[2], int)).max() <= 1
    assert not np.array_equal(np.asarray(images[0]), np.asarray(images[-1]))


def test_whoever_leaves_stops_the_model(model):
    passes = tiny.count_forward_passes(model.pipe.unet)
    previews = model.draw(0, 1.0, 500, "ddim", seed=0)
    next(previews)
    previews.close()
    assert len(passes) < 250
    assert len(list(model.draw(0, 1.0, 2, "ddim", seed=0))) == 2  # and the next one is served


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": -1}, "The seed must be a whole number from 0"),
        ({"seed": 0.5}, "The seed must be"),
        ({"seed": None}, "The seed must be"),
        ({"seed": float("nan")}, "The seed must be"),
        ({"num_images": 0}, f"The number of images must be a whole number from 1 to {MAX_IMAGES}"),
        ({"num_images": MAX_IMAGES + 1}, "The number of images must be"),
        ({"num_inference_steps": 0}, "The number of steps must be"),
        ({"num_inference_steps": 1001}, "The number of steps must be"),
        ({"classifier_scale": -1.0}, "`classifier_scale` must be finite and at least 0"),
        ({"classifier_scale": float("nan")}, "`classifier_scale` must be"),
        ({"classifier_scale": None}, "The scale must be"),
        ({"class_label": 5}, "`class_labels` must lie in 0..4"),
        ({"class_label": None}, "`class_labels` are missing"),
    ],
)
def test_what_is_refused(model, changed, said):
    asked = {"class_label": 0, "classifier_scale": 1.0, "num_inference_steps": 3, "algorithm": "ddim", "seed": 0}
    with pytest.raises(ValueError, match=said):
        model.draw(**{**asked, **changed})


def test_names_of_classes(model):
    assert model.class_names == CLASS_NAMES
    assert DemoModel(tiny.pipeline(ClassifierGuidedDDPMPipeline)).class_names == list("01234")
    alone = DemoModel(tiny.pipeline(ClassifierGuidedDDPMPipeline, with_classifier=False))
    assert alone.class_names == [] and not alone.is_guided
    assert len(last(alone.draw(None, 1.0, 2, "ddpm", 0, 3))) == 3
    assert len(last(alone.fill(IMAGE, MASK, None, 1.0, 2, 1, 0))) == 1


def test_a_part_is_filled_step_by_step(model):
    previews = list(model.fill(IMAGE, MASK, 2, 1.0, 12, jump_n_sample=2, seed=3))
    up_and_down = 12 + 2 * 10
    assert previews[0].num_steps == up_and_down and str(previews[-1]) == "Done."
    steps = [preview.step for preview in previews]
    assert steps == sorted(set(steps)) and len(steps) == 12 + 10  # those down
    filled = at_model_size(previews[-1].images[0])
    expected = model.inpaint_pipe(
        IMAGE, MASK, 2, num_inference_steps=12, classifier_scale=1.0, jump_n_sample=2, generator=[seeded_generator(3)]
    ).images[0]
    assert np.array_equal(filled, np.asarray(expected))
    assert np.array_equal(filled[KEPT], np.asarray(IMAGE)[KEPT])
    assert not np.array_equal(filled, np.asarray(IMAGE))


def test_what_is_drawn_over_an_enlarged_image(model):
    drawn_on, strokes = enlarged(IMAGE, (72, 72)), np.zeros((72, 72), np.uint8)
    strokes[:, 45 + 4 :] = 255  # column 5 by 5 pixels of 9
    strokes[9 * 2 : 9 * 3, 9 : 9 + 4] = 255  # and a pixel by 4 of 9
    filled = at_model_size(last(model.fill(drawn_on, Image.fromarray(strokes), 2, 1.0, 3, 1, 0))[0])
    assert np.array_equal(filled[KEPT], np.asarray(IMAGE)[KEPT])
    assert np.array_equal(filled, at_model_size(last(model.fill(IMAGE, MASK, 2, 1.0, 3, 1, 0))[0]))


def test_an_image_of_another_size_is_cropped_as_in_training(model):
    photo = Image.new("LA", (40, 20), (200, 255))
    photo.paste((40, 255), (5, 0, 15, 20))  # half of it is cut off
    mask = Image.new("L", photo.size)
    mask.paste(255, (20, 0, 40, 20))
    filled = at_model_size(last(model.fill(photo, mask, 2, 1.0, 3, 1, 0))[0])
    cropped = np.asarray(resize_and_crop(photo.convert("RGB"), 8, center_crop=True))
    assert (filled == cropped).all(axis=(0, 2)).tolist() == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"image": None}, "There is no image to fill: upload one"),
        ({"mask_image": None}, "There is nothing to fill: cover some of the image"),
        ({"mask_image": Image.new("L", (8, 8))}, "There is nothing to fill"),
        ({"mask_image": Image.new("L", (8, 8), 127)}, "There is nothing to fill"),
        ({"mask_image": Image.new("L", (16, 8), 255)}, r"The mask must be of the image's size \(8, 8\)"),
        ({"jump_n_sample": 0}, "The resampling must be a whole number from 1 to"),
        ({"jump_n_sample": float("nan")}, "The resampling must be"),
        ({"num_inference_steps": float("inf")}, "The number of steps must be"),
        ({"seed": None}, "The seed must be"),
        ({"classifier_scale": None}, "The scale must be"),
        ({"classifier_scale": float("nan")}, "`classifier_scale` must be"),
        ({"class_label": 5}, "`class_labels` must lie in 0..4"),
    ],
)
def test_what_is_not_filled(model, changed, said):
    asked = {"image": IMAGE, "mask_image": MASK, "class_label": 0, "classifier_scale": 1.0}
    asked |= {"num_inference_steps": 3, "jump_n_sample": 1, "seed": 0}
    with pytest.raises(InputError, match=said):
        model.fill(**{**asked, **changed})


def demo(*argv, status=0):
    result = run_here("demo", *argv)
    assert result.status == status, result.output
    return result.output


@contextmanager
def served(space):
    """The address of the page of a Space, where this package is not installed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # -S: no .pth files, and so no finder of an editable install; -u: what it says is not held back
    python = [sys.executable, "-S", "-u"]
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False", "OMP_NUM_THREADS": "1"}
    environment = {**os.environ, **settings, "PYTHONPATH": str(SITE_PACKAGES)}
    there = "import importlib.util; assert importlib.util.find_spec('diffusers_cg') is None"
    subprocess.run([*python, "-c", there], cwd=space.parent, env=environment, check=True)
    with open(space.parent / "log", "w+") as log:
        process = subprocess.Popen([*python, space / "app.py"], env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 120
            while "Running on" not in (said := (space.parent / "log").read_text()):
                assert process.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.kill()
            process.wait()


def test_a_space_runs_where_the_package_is_not_installed(hub, tmp_path, model):
    gradio = pytest.importorskip("gradio")
    gradio_client = pytest.importorskip("gradio_client")
    space = tmp_path / "space"
    model.pipe.save_pretrained(tmp_path / "model")
    demo("--model", tmp_path / "model", "--space", space, "--title", "Birds")
    files = {"app.py", "requirements.txt", "README.md", "model", "diffusers_cg"}
    assert {path.name for path in space.iterdir()} == files
    assert not [path for path in (space / "diffusers_cg").rglob("*") if path.is_file() and path.suffix != ".py"]
    assert not (space / "diffusers_cg" / "training").exists()
    needed = [re.split("[>=]", line)[0] for line in (space / "requirements.txt").read_text().splitlines()]
    assert {"torch", "diffusers", "gradio"} <= set(needed) and not {"diffusers-cg", "datasets", "ruff"} & set(needed)
    card = SpaceCard.load(space / "README.md")
    card.validate()
    assert (card.data.sdk, card.data.sdk_version, card.data.app_file) == ("gradio", gradio.__version__, "app.py")

    (tmp_path / "model").rename(tmp_path / "elsewhere")  # it carries its model along
    with served(space) as url:
        client = gradio_client.Client(url, verbose=False, download_files=tmp_path / "drawn")
        assert client.config["title"] == "Birds"
        gallery, status = client.predict(2, 1.0, 3, "ddim", 5, 2, api_name="/sample")
        canvas = client.predict(2, 5, api_name="/canvas")["background"]
        Image.merge("RGBA", [enlarged(MASK, (384, 384))] * 4).save(tmp_path / "strokes.png")
        given, strokes = gradio_client.handle_file(canvas), gradio_client.handle_file(tmp_path / "strokes.png")
        drawing = {"background": given, "layers": [strokes], "composite": given}
        [filled], done = client.predict(drawing, 3, 1.0, 3, 1, 0, api_name="/inpaint")
        with pytest.raises(gradio_client.exceptions.AppError, match="There is nothing to fill"):
            client.predict({**drawing, "layers": []}, 3, 1.0, 3, 1, 0, api_name="/inpaint")
    assert status == "Done."
    expected = last(model.draw(2, 1.0, 3, "ddim", seed=5, num_images=2))
    for shown, image in zip(gallery, expected, strict=True):
        difference = np.asarray(Image.open(shown["image"]).convert("RGB"), int) - np.asarray(image, int)
        assert np.abs(difference).max() <= 1
    assert done == "Done." and Image.open(canvas).size == (384, 384)
    drawn, filled = at_model_size(Image.open(canvas)), at_model_size(Image.open(filled["image"]))
    assert np.abs(drawn - at_model_size(last(model.draw(2, 1.0, 25, "ddim", 5))[0])).max() <= 1
    assert np.array_equal(filled[KEPT], drawn[KEPT]) and not np.array_equal(filled, drawn)


def test_a_space_of_a_model_on_the_hub(tmp_path):
    pytest.importorskip("gradio")
    demo("--model", "me/model", "--space", tmp_path / "space")
    assert "DemoModel.load('me/model')" in (tmp_path / "space" / "app.py").read_text()
    assert SpaceCard.load(tmp_path / "space" / "README.md").data.models == ["me/model"]


def test_a_space_of_a_scheduler_and_a_guidance(tmp_path):
    pytest.importorskip("gradio")
    (tmp_path / "file").write_text("- guidance: CleanClassifierGuidance\n  classify: microsoft/resnet-50")
    flags = ["--model", "me/model", "--space", tmp_path / "space", "--guidance", tmp_path / "file"]
    demo(*flags, "--scheduler", "EDMHeunScheduler", "s_churn=40")
    app = (tmp_path / "space" / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert "SchedulerChoice.parse(['EDMHeunScheduler', 's_churn=40'])" in app and 'parent / "guidance.yaml"' in app
    assert (tmp_path / "space" / "guidance.yaml").read_text() == (tmp_path / "file").read_text()
    (tmp_path / "file").write_text(f"- guidance: CleanClassifierGuidance\n  classify: {tmp_path}")
    assert "which a Space has not: name a network on the Hub" in demo(*flags, status=2)


def test_what_has_no_page(hub, tmp_path):
    pytest.importorskip("gradio")
    tiny.pipeline(ClassifierGuidedSuperResolutionPipeline, low_res_size=4).save_pretrained(tmp_path / "up")
    assert "This unet is an upsampling one" in demo("--model", tmp_path / "up", status=2)
    assert "There is no repository me/model on the Hub" in demo("--model", "me/model", status=2)
    (tmp_path / "empty").mkdir()
    for flags in ([], ["--space", tmp_path / "space"]):
        assert "is not the folder of a pipeline" in demo("--model", tmp_path / "empty", *flags, status=2)
    assert not (tmp_path / "space").exists()
