"""Models on the Hub: pushed whole or not at all, and loaded by other processes."""

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from diffusers import DDPMPipeline, DDPMScheduler, DiffusionPipeline, UNet2DModel
from hub_server import Failure
from huggingface_hub import ModelCard
from processes import run_function, run_here

from diffusers_cg import (
    ClassifierGuidedDDIMPipeline,
    ClassifierGuidedDDPMPipeline,
    ClassifierGuidedSuperResolutionPipeline,
)
from diffusers_cg.hub.standalone_code import gather_code


SITE_PACKAGES = Path(torch.__file__).parents[1]
WEIGHTS = {"unet/diffusion_pytorch_model.safetensors", "classifier/diffusion_pytorch_model.safetensors"}
FILES = WEIGHTS | {
    *("README.md", "model_index.json", "samples.png", "scheduler/scheduler_config.json"),
    *("unet/config.json", "classifier/config.json"),
}
DRAW = {"class_labels": [0, 4], "num_inference_steps": 3, "classifier_scale": 2.0, "output_type": "np"}


NOWHERE = "http://127.0.0.1:9"  # a port that nothing listens on


def make_pipeline(pipeline_class=ClassifierGuidedDDPMPipeline, **changed):
    pipe = tiny.pipeline(pipeline_class, conditional=True, **changed)
    pipe.register_to_config(ddpm_num_inference_steps=2, ddim_num_inference_steps=1)
    return pipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A saved pipeline."""
    path = tmp_path_factory.mktemp("saved") / "pipeline"
    make_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def push(hub):
    def push(folder, name="me/model", *argv, status=0):
        result = run_here("push", str(folder), name, *argv)
        assert result.status == status, result.output
        assert "Traceback" not in result.output
        return result.output

    return push


@pytest.fixture
def elsewhere(hub, tmp_path):
    """Runs Python in a process of its own, with an empty cache and no token; the last expression's images come back."""

    def elsewhere(code: str, *interpreter: str) -> np.ndarray:
        environment = {**os.environ, **hub.environment(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
        del environment["HF_TOKEN"]
        code += f"\nimport numpy as np\nnp.save({str(tmp_path / 'images.npy')!r}, images)"
        done = subprocess.run(
            [sys.executable, *interpreter, "-c", code], env=environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return np.load(tmp_path / "images.npy")

    return elsewhere


def draw(pipe, **changed):
    return pipe(**{**DRAW, **changed}, generator=tiny.seeded()).images


def requests(hub, kind):
    return [request for request in hub.requests if request.startswith(kind)]


# ------------------------------------------------------------------------------------------------------- round trips


def _draw_from_the_hub(name, file):
    os.environ.pop("HF_TOKEN", None)
    np.save(file, draw(ClassifierGuidedDDIMPipeline.from_pretrained(name)))


def test_published_from_one_process_and_loaded_in_another(hub, tmp_path):
    pipe = make_pipeline(ClassifierGuidedDDIMPipeline)
    pipe.push_to_hub("me/model")
    assert set(hub.files("me/model")) == FILES
    assert len(requests(hub, "POST /api/models/me/model/commit")) == 1
    ended = run_function(_draw_from_the_hub, "me/model", tmp_path / "images.npy", log=tmp_path / "log")
    assert ended.status == 0, ended.output
    assert np.array_equal(np.load(tmp_path / "images.npy"), draw(pipe))


@pytest.mark.parametrize(
    "pipeline_class",
    [ClassifierGuidedDDIMPipeline, ClassifierGuidedDDPMPipeline, ClassifierGuidedSuperResolutionPipeline],
)
def test_every_pipeline_loads_with_and_without_its_class(hub, pipeline_class):
    upsamples = pipeline_class is ClassifierGuidedSuperResolutionPipeline
    pipe = make_pipeline(pipeline_class, **({"low_res_size": 4} if upsamples else {}))
    inputs = {"image": torch.rand(2, 3, 4, 4, generator=tiny.seeded())} if upsamples else {}
    pipe.push_to_hub("me/model")
    for loading_class in (pipeline_class, DiffusionPipeline):
        loaded = loading_class.from_pretrained("me/model")
        assert type(loaded) is pipeline_class
        assert np.array_equal(draw(loaded, **inputs), draw(pipe, **inputs))


def test_a_folder_loads_without_its_class(folder):
    assert type(DiffusionPipeline.from_pretrained(folder)) is ClassifierGuidedDDPMPipeline


def test_save_pretrained_publishes_too(hub, tmp_path):
    make_pipeline().save_pretrained(str(tmp_path / "model"), push_to_hub=True, repo_id="me/model", private=True)
    assert set(hub.files("me/model")) == FILES
    assert hub.repos["model", "me/model"].private


def test_private_ones_are_for_those_with_a_token(hub, push, folder, monkeypatch):
    push(folder, "me/model", "--private")
    monkeypatch.setenv("HF_TOKEN", "hf_you")
    with pytest.raises(OSError):
        DiffusionPipeline.from_pretrained("me/model")
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    assert DiffusionPipeline.from_pretrained("me/model").num_classes == tiny.NUM_CLASSES


@pytest.mark.parametrize("without_the_package", [True, False])
def test_with_code_diffusers_is_enough(hub, push, folder, elsewhere, tmp_path, without_the_package):
    push(folder, "me/model", "--with_code")
    assert set(hub.files("me/model")) == FILES | {"pipeline.py", "diffusers_cg_code.py"}
    expected = draw(ClassifierGuidedDDPMPipeline.from_pretrained(folder))
    if without_the_package:
        # -S: no .pth files, and so no finder of an editable install
        images = elsewhere(
            f"import importlib.util, sys\nsys.path = [*sys.path[1:], {str(SITE_PACKAGES)!r}]\n"
            "assert importlib.util.find_spec('diffusers_cg') is None\nimport torch\n"
            "from diffusers import DiffusionPipeline\n"
            "pipe = DiffusionPipeline.from_pretrained('me/model', custom_pipeline='me/model', trust_remote_code=True)\n"
            "assert not [name for name in sys.modules if name.startswith('diffusers_cg')]\n"
            f"pipe.save_pretrained({str(tmp_path / 'again')!r})\n"
            f"pipe = DiffusionPipeline.from_pretrained({str(tmp_path / 'again')!r}, custom_pipeline='me/model', "
            "trust_remote_code=True)\n"
            f"images = pipe(**{DRAW}, generator=torch.manual_seed(0)).images",
            "-S",
        )
        assert np.array_equal(draw(ClassifierGuidedDDPMPipeline.from_pretrained(tmp_path / "again")), expected)
    else:  # and those who have the package need not trust anyone, whatever they loaded before
        from_code = DiffusionPipeline.from_pretrained("me/model", custom_pipeline="me/model", trust_remote_code=True)
        assert type(from_code) is ClassifierGuidedDDPMPipeline
        loaded = ClassifierGuidedDDPMPipeline.from_pretrained("me/model")
        assert type(loaded.unet).__module__.startswith("diffusers_cg.")
        images = draw(loaded)
    assert np.array_equal(images, expected)


@pytest.mark.parametrize(
    "other",
    ["from cmath import sqrt", "import math as sqrt", "def sqrt(x):\n    return x", "sqrt = 3"],
    ids=["import", "module", "function", "value"],
)
def test_a_name_of_two_things_is_not_gathered(tmp_path, monkeypatch, other):
    monkeypatch.syspath_prepend(tmp_path)
    uses = "\n\n\nclass {}:\n    def f(self):\n        return sqrt\n"
    for name, source in (("first", "from math import sqrt"), ("same", "from math import sqrt"), ("other", other)):
        (tmp_path / f"{name}_module.py").write_text(source + uses.format(name.title()))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    first, same, other = (
        getattr(importlib.import_module(f"{name}_module"), name.title()) for name in ("first", "same", "other")
    )
    assert gather_code([first, same]).count("from math import sqrt") == 1
    for pair in ([first, other], [other, first]):
        with pytest.raises(RuntimeError, match="sqrt is not the same in"):
            gather_code(pair)


def test_code_is_not_run_unasked(hub, push, folder):
    push(folder, "me/model", "--with_code")
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DiffusionPipeline.from_pretrained("me/model", custom_pipeline="me/model")


def test_a_later_push_leaves_nothing_of_the_earlier(hub, push, folder, tmp_path):
    push(folder, "me/model", "--with_code")
    hub.put("me/model", {"notes.md": b"mine", "docs/unet.md": b"mine", "unet/diffusion_pytorch_model.bin": b"pickled"})
    make_pipeline(with_classifier=False).save_pretrained(tmp_path / "smaller")
    push(tmp_path / "smaller")
    kept = {path for path in FILES if not path.startswith("classifier")}
    assert set(hub.files("me/model")) == kept | {"notes.md", "docs/unet.md"}
    assert len(requests(hub, "POST /api/models/me/model/commit")) == 2
    assert ClassifierGuidedDDPMPipeline.from_pretrained("me/model").classifier is None


def test_loading_never_unpickles(hub, folder, monkeypatch):
    pipe = make_pipeline()
    with pytest.raises(ValueError, match="not a safetensors file"):
        pipe.push_to_hub("me/model", safe_serialization=False)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    pickled = files.pop("unet/diffusion_pytorch_model.safetensors")
    hub.put("me/pickled", {**files, "unet/diffusion_pytorch_model.bin": pickled})
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    for loading_class in (ClassifierGuidedDDPMPipeline, DiffusionPipeline):
        with pytest.raises(OSError, match="safetensors"):
            loading_class.from_pretrained("me/pickled")


def test_sample_takes_names_on_the_hub(hub, push, folder, tmp_path):
    push(folder)
    argv = ["sample", "--model", "me/model", "--output", tmp_path / "out", "--num_samples", 2, "--classes", 1]
    result = run_here(*argv)
    assert result.status == 0, result.output
    assert len(list((tmp_path / "out" / "1").glob("*.png"))) == 2


# ------------------------------------------------------------------------------------------------------- bad input


def is_one_sentence(output, said):
    line = output.strip().splitlines()[-1]
    assert line.startswith("error: ") and line.endswith(".") and re.search(said, line), output


def loads_nothing(name):
    with pytest.raises(OSError):
        ClassifierGuidedDDPMPipeline.from_pretrained(name)


FAILURES = {
    "413 in LFS": (Failure("PUT", "/lfs/", 413, "Payload too large"), "no room .*free some of your quota"),
    "500 at the commit": (Failure("POST", "/commit/", 500), "fails at the moment, with status 500"),
    "503 in LFS": (Failure("PUT", "/lfs/", 503, "Slow down", after=1), "fails at the moment, with status 503"),
    "403 at the commit": (Failure("POST", "/commit/", 403, "Private storage limit reached"), "Private storage limit"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_push_that_fails_publishes_nothing(hub, push, folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)  # between its attempts
    failure, said = FAILURES[name]

    def fail(path):
        hub.failures.append(Failure(**vars(failure)))
        is_one_sentence(push(path, status=2), f"{said}.*; nothing was published to me/model")
        hub.failures.clear()

    fail(folder)
    assert hub.files("me/model") == {}
    loads_nothing("me/model")
    push(folder)
    before = hub.files("me/model")
    make_pipeline(base_channels=24).save_pretrained(tmp_path / "later")
    fail(tmp_path / "later")
    assert hub.files("me/model") == before
    push(tmp_path / "later")
    assert ClassifierGuidedDDPMPipeline.from_pretrained("me/model").unet.config.base_channels == 24


ASK = "Access to model me/model is restricted. Visit https://huggingface.co/me/model to ask for access."
REFUSALS = {
    "gated": (403, ASK, "GatedRepo", r"Visit https://huggingface\.co/me/model to ask for access"),
    "gated, without a token": (401, ASK, "GatedRepo", r"Visit .* to ask for access.*hf auth login"),
    "disabled": (403, "Access to this resource is disabled.", None, "Access to this resource is disabled"),
    "too often": (429, "3 requests in 5 minutes", None, "too many requests.*3 requests in 5 minutes.*try again later"),
    "failing": (503, "Maintenance", None, "fails at the moment.*503.*Maintenance"),
    "not for this token": (403, "Lacks the scope", None, "Lacks the scope.*a token that may (read|write)"),
    "no such commit": (404, "Invalid rev id: x", "RevisionNotFound", "no such revision.*Invalid rev id: x"),
    "quota": (402, "The storage is full", None, "no room.*The storage is full"),
    "anything else": (418, "I am a teapot", None, "418.*I am a teapot"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_hub_says_against_it_reaches_who_asked(hub, push, folder, tmp_path, monkeypatch, name):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    status, message, code, said = REFUSALS[name]
    hub.put("me/model", {"model_index.json": b"{}"})
    for path in ("/api/models/", "/resolve/"):
        hub.failures[:] = [Failure("GET|HEAD", path, status, message, code=code)]
        result = run_here("sample", "--model", "me/model", "--output", tmp_path / "out")
        assert result.status == 2
        is_one_sentence(result.output, said)
        assert "There is no repository" not in result.output
    hub.failures[:] = [Failure("GET|HEAD|POST", ".", status, message, code=code)]
    is_one_sentence(push(folder, status=2), f"{said}.*; nothing was published to me/model")


def test_offline_on_purpose(hub, push, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run_here("sample", "--model", "me/model", "--output", tmp_path / "out")
    assert result.status == 2
    is_one_sentence(result.output, "HF_HUB_OFFLINE")
    is_one_sentence(push(folder, status=2), "HF_HUB_OFFLINE.*; nothing was published")
    assert not hub.requests


def test_without_a_token(hub, push, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    is_one_sentence(push(folder, status=2), "asks who you are.*hf auth login")
    push(folder, "me/model", "--token", "hf_me")
    assert set(hub.files("me/model")) == FILES


def test_a_wrong_token(hub, push, folder):
    is_one_sentence(push(folder, "me/model", "--token", "hf_stolen", status=2), "does not know this token")


@pytest.mark.parametrize("exists", [False, True])
def test_a_name_of_someone_else(hub, push, folder, exists):
    if exists:
        hub.put("you/model", {"README.md": b"yours"})
    is_one_sentence(push(folder, "you/model", status=2), "refuses.*a name of your own")
    assert not exists or hub.files("you/model") == {"README.md": b"yours"}


@pytest.fixture
def no_network(monkeypatch):
    """A Hub that nobody answers for."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", NOWHERE)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", NOWHERE)


def test_without_a_network(push, folder, no_network, tmp_path):
    is_one_sentence(push(folder, status=2), f"{NOWHERE} cannot be reached.*; nothing was published to me/model")
    result = run_here("sample", "--model", "me/model", "--output", str(tmp_path / "out"))
    assert result.status == 2
    is_one_sentence(result.output, f"{NOWHERE} cannot be reached: check the network")


@pytest.mark.parametrize(
    ("folder_name", "name", "said"),
    [
        ("nowhere", "me/model", "There is no folder"),
        ("empty", "me/model", "does not load"),
        ("pickled", "me/model", "optimizer.bin is not a safetensors file"),
        ("others", "me/model", "it is a DDPMPipeline, not one of"),
        ("truncated", "me/model", "does not load"),
        ("good", "model", "model is no name on the Hub: pass OWNER/NAME"),
        ("good", "me/mo del", "me/mo del is no name on the Hub"),
        ("good", "me/my/model", "me/my/model is no name on the Hub"),
    ],
)
def test_what_cannot_be_published(hub, push, folder, tmp_path, folder_name, name, said):
    (tmp_path / "empty").mkdir()
    (tmp_path / "good").symlink_to(folder)
    for kind in ("pickled", "truncated"):
        make_pipeline().save_pretrained(tmp_path / kind)
    (tmp_path / "pickled" / "optimizer.bin").write_bytes(b"\x80")
    weights = tmp_path / "truncated" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    DDPMPipeline(
        UNet2DModel(8, block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)),
        DDPMScheduler(),
    ).save_pretrained(tmp_path / "others")
    is_one_sentence(push(tmp_path / folder_name, name, status=2), said)
    assert not hub.requests


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "There is no repository me/other on the Hub"),
        ({"README.md": b"hello"}, "me/other on the Hub has no model_index.json"),
        (
            {"model_index.json": json.dumps({"_class_name": "X", "unet": ["x", "Y"]}).encode()},
            "does not exist in me/other",
        ),
    ],
)
def test_sampling_from_a_repository_without_our_components(hub, tmp_path, files, said):
    if files is not None:
        hub.put("me/other", files)
    result = run_here("sample", "--model", "me/other", "--output", str(tmp_path / "out"))
    assert result.status == 2
    is_one_sentence(result.output, said)
    assert not (tmp_path / "out").exists()


NO_OBJECTS = [b"[]", b"3", b'"x"', b"null", b"{", b"", b"\xff\xfe", b"[" * 100_000]
BAD_FILES = {
    "training.json": [*NO_OBJECTS, b'{"unet": 3}', b'{"unet": {"arguments": "x"}}', b'{"unet": {"arguments": [1]}}'],
    "report.json": [*NO_OBJECTS, b"{}", b'{"metrics": []}'],
    "model_index.json": [*NO_OBJECTS, b"{}", b'{"_class_name": 3}'],
    "unet/config.json": NO_OBJECTS,
    "scheduler/scheduler_config.json": [*NO_OBJECTS, b'{"beta_schedule": "banana"}'],
    "README.md": [
        b"\xff",
        b"---\n: : :\n---\n",
        b"---\n- a\n---\n",
        b"---\nmodel-index: 3\n---\n",
        b"---\ntags: 3\n---\n",
    ],
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_hold_something_else(hub, push, folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "model")
    file = tmp_path / "model" / name
    for content in BAD_FILES[name]:
        file.write_bytes(content)
        is_one_sentence(push(tmp_path / "model", status=2), re.escape(str(file if content in NO_OBJECTS else "")))
        if "_index" in name or "_config" in name or "/config" in name:
            result = run_here("sample", "--model", tmp_path / "model", "--output", tmp_path / "out")
            assert result.status == 2
            is_one_sentence(result.output, re.escape(str(tmp_path / "model")))
    assert not any(path.endswith("commit/main") for path in hub.requests)


def test_training_folders_are_published_without_their_checkpoints(hub, push, tmp_path):
    make_pipeline().save_pretrained(tmp_path)
    for path in ("checkpoint-100/optimizer.bin", "logs/events", ".cache/x.pkl", "samples/step_1.png"):
        (tmp_path / path).parent.mkdir()
        (tmp_path / path).write_bytes(b"\x89PNG")
    push(tmp_path)
    assert set(hub.files("me/model")) == FILES | {"samples/step_1.png"}


def test_a_classifier_alone(hub, push, tmp_path):
    tiny.classifier().save_pretrained(tmp_path)
    push(tmp_path)
    files = hub.files("me/model")
    assert set(files) == {"README.md", "config.json", "diffusion_pytorch_model.safetensors"}
    assert ModelCard(files["README.md"].decode()).data.pipeline_tag == "image-classification"
