"""What the page shows, without a page; and the page as a Space."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tiny
from huggingface_hub import SpaceCard
from typer.testing import CliRunner

from diffusers_cg import ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline
from diffusers_cg.cli import app
from diffusers_cg.hub.demo import MAX_IMAGES, SCALES, Studio
from diffusers_cg.seeds import seeded_generator


CLASS_NAMES = ["owl", "hen", "cat", "dog", "bee"]


@pytest.fixture(scope="module")
def studio():
    return Studio(tiny.pipeline(ClassifierGuidedDDPMPipeline, conditional=True, class_names=CLASS_NAMES))


def last(previews):
    return list(previews)[-1].images


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_images_appear_step_by_step(studio, sampler):
    previews = list(studio.draw(studio.order(2, 1.0, 4, sampler, seed=3, num_images=2)))
    assert [str(preview) for preview in previews] == ["Step 1 of 4", "Step 2 of 4", "Step 3 of 4", "Done."]
    arrays = [np.asarray(preview.images[0]) for preview in previews]
    assert all(not np.array_equal(one, next_one) for one, next_one in zip(arrays, arrays[1:]))
    expected = studio.pipes[sampler](
        class_labels=[2, 2],
        classifier_scale=1.0,
        num_inference_steps=4,
        generator=[seeded_generator(3, number) for number in range(2)],
    ).images
    for image, small in zip(previews[-1].images, expected):
        assert image.size == (128, 128)  # 16 times as large, not blurred
        assert np.array_equal(np.asarray(image)[8::16, 8::16], np.asarray(small))


def test_one_noise_at_several_scales(studio):
    images = last(studio.draw(studio.order(2, list(SCALES), 3, "ddim", seed=3)))
    assert len(images) == len(SCALES)
    alone = last(studio.draw(studio.order(2, SCALES[2], 3, "ddim", seed=3)))
    assert np.abs(np.asarray(alone[0], int) - np.asarray(images[2], int)).max() <= 1
    assert not np.array_equal(np.asarray(images[0]), np.asarray(images[-1]))


def test_whoever_leaves_stops_the_model(studio):
    passes = tiny.count_forward_passes(studio.pipe.unet)
    previews = studio.draw(studio.order(0, 1.0, 500, "ddim", seed=0))
    next(previews)
    previews.close()
    assert len(passes) < 250
    assert len(list(studio.draw(studio.order(0, 1.0, 2, "ddim", seed=0)))) == 2  # and the next one is served


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"seed": -1}, "The seed must be a whole number from 0"),
        ({"seed": 0.5}, "The seed must be"),
        ({"seed": None}, "The seed must be"),
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
def test_what_is_refused(studio, changed, said):
    order = {"class_label": 0, "classifier_scale": 1.0, "num_inference_steps": 3, "sampler": "ddim", "seed": 0}
    with pytest.raises(ValueError, match=said):
        studio.order(**{**order, **changed})


def test_names_of_classes(studio):
    assert studio.class_names == CLASS_NAMES
    assert Studio(tiny.pipeline(ClassifierGuidedDDPMPipeline)).class_names == list("01234")
    alone = Studio(tiny.pipeline(ClassifierGuidedDDPMPipeline, with_classifier=False))
    assert alone.class_names == [] and not alone.is_guided
    assert len(last(alone.draw(alone.order(None, 1.0, 2, "ddpm", 0, 3)))) == 3


def demo(*argv, status=0):
    result = CliRunner().invoke(app, ["demo", *map(str, argv)])
    assert result.exit_code == status, result.output
    return result.output


def test_a_space_runs(hub, tmp_path):
    gradio = pytest.importorskip("gradio")
    tiny.pipeline(ClassifierGuidedDDPMPipeline, conditional=True).save_pretrained(tmp_path / "model")
    demo("--model", tmp_path / "model", "--space", tmp_path / "space", "--title", "Birds")
    assert {path.name for path in (tmp_path / "space").iterdir()} == {
        "app.py",
        "requirements.txt",
        "README.md",
        "model",
    }
    card = SpaceCard.load(tmp_path / "space" / "README.md")
    card.validate()
    assert (card.data.sdk, card.data.sdk_version, card.data.app_file) == ("gradio", gradio.__version__, "app.py")
    assert (tmp_path / "space" / "requirements.txt").read_text().startswith("diffusers-cg[demo]")
    (tmp_path / "model").rename(tmp_path / "elsewhere")  # it carries its model along
    code = "import app; print(len(app.page.fns), app.page.title)"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "space", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.strip().endswith(" Birds"), done.stderr

    demo("--model", "me/model", "--space", tmp_path / "of the hub")
    assert "Studio.load('me/model')" in (tmp_path / "of the hub" / "app.py").read_text()
    assert SpaceCard.load(tmp_path / "of the hub" / "README.md").data.models == ["me/model"]


def test_what_has_no_page(hub, tmp_path):
    pytest.importorskip("gradio")
    tiny.pipeline(ClassifierGuidedSuperResolutionPipeline, low_res_size=4).save_pretrained(tmp_path / "up")
    assert "This unet is an upsampling one" in demo("--model", tmp_path / "up", status=2)
    assert "There is no repository me/model on the Hub" in demo("--model", "me/model", status=2)
    (tmp_path / "empty").mkdir()
    for flags in ([], ["--space", tmp_path / "space"]):
        assert "is not the folder of a pipeline" in demo("--model", tmp_path / "empty", *flags, status=2)
    assert not (tmp_path / "space").exists()
