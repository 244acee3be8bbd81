"""Synthetic labels for images that have none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import run_command_here

from diffusers_cg.data import open_folder
from diffusers_cg.data.files import list_files
from diffusers_cg.errors import InputError
from diffusers_cg.training.cluster_labels import (
    ClusterSettings,
    FeatureSettings,
    extract_features,
    find_centers,
    load_clusters,
    nearest_centers,
)


PIXELS = FeatureSettings("pixels", pixels_size=16)


def class_folders(folder):
    return sorted(entry for entry in folder.iterdir() if entry.is_dir())


@pytest.fixture(scope="module")
def unlabelled(few_digits, tmp_path_factory) -> Path:
    """36 digits, mixed, whose names tell their labels to the tests alone; some of the same name at other depths."""
    root = tmp_path_factory.mktemp("unlabelled") / "photos"
    rank = dict.fromkeys("012", 0)
    for file in list_files(few_digits):
        label = file.parent.name
        folder = root / ("deep/er" if rank[label] % 2 else "")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / f"{rank[label] // 2}_{label}.png")
        rank[label] += 1
    return root


@pytest.fixture(scope="module")
def cluster(unlabelled):
    """Runs the command on the digits, with flags added or changed (None leaves one out)."""

    def cluster(output_dir, status=0, **changed):
        flags = {
            "image_dir": unlabelled,
            "num_clusters": 3,
            "features": "pixels",
            "output_dir": output_dir,
            **changed,
        }
        argv = []
        for name, value in flags.items():
            if value is not None:
                argv += [f"--{name}"] if value is True else [f"--{name}", value]
        ended = run_command_here("cluster_labels", *argv)
        assert ended.status == status, ended.output
        return ended.output

    return cluster


@pytest.fixture(scope="module")
def labelled(cluster, tmp_path_factory) -> Path:
    output_dir = tmp_path_factory.mktemp("clusters") / "labelled"
    cluster(output_dir)
    return output_dir


@pytest.fixture
def refused(cluster, tmp_path):
    """The sentence of a run that must be refused and leave nothing."""

    def refused(**changed):
        output = cluster(tmp_path / "labelled", status=2, **changed)
        assert "Traceback" not in output
        assert not (tmp_path / "labelled").exists() and not list(tmp_path.glob(".labelled*"))
        line = output.strip().splitlines()[-1]
        assert line.startswith("error: ") and line.endswith(".") and not line.endswith("..")
        return line.removeprefix("error: ")

    return refused


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in list_files(folder)}


# --------------------------------------------------------------------------------------------------------- clusters


def test_every_image_comes_into_one_cluster_and_the_training_scripts_read_them(unlabelled, labelled):
    images = open_folder(labelled, "required")
    assert images.class_names == ["cluster_0", "cluster_1", "cluster_2"]
    found = [Path(image.name).relative_to(labelled) for image in images]
    back = {str(Path(*path.parts[1:])): (labelled / path).read_bytes() for path in found}
    assert back == contents(unlabelled)
    assert len(found) == len(back) == 36


def test_clusters_are_digits(labelled):
    for folder in class_folders(labelled):
        digits = [int(file.stem.split("_")[1]) for file in list_files(folder)]
        assert np.bincount(digits).max() >= 0.75 * len(digits)


def test_what_is_written_beside_the_clusters(labelled):
    facts = json.loads((labelled / "clusters.json").read_text())
    sizes = [len(list_files(folder)) for folder in class_folders(labelled)]
    assert list(facts["sizes"].values()) == sizes == sorted(sizes, reverse=True)
    assert facts["num_images"] == 36
    settings, centers = load_clusters(labelled)
    assert settings == PIXELS
    for center, folder in zip(centers, class_folders(labelled)):  # k-means has come to rest
        features = extract_features(open_folder(folder), settings)
        np.testing.assert_allclose(features.mean(axis=0), center, atol=1e-5)
    features = extract_features(open_folder(labelled, "required"), settings)
    distances = np.linalg.norm(features[:, None] - centers, axis=-1).min(axis=1)
    assert facts["inertia"] == pytest.approx((distances**2).sum(), rel=1e-4)
    with Image.open(labelled / "clusters.png") as sheet:
        assert sheet.height > 3 * 64 and sheet.width > 8 * 64


def test_the_same_seed_gives_the_same_clusters(cluster, labelled, tmp_path):
    cluster(tmp_path / "again", batch_size=7)
    assert contents(tmp_path / "again") == contents(labelled)


def test_further_images_are_put_into_the_clusters_of_an_earlier_run(cluster, unlabelled, labelled, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    known = {
        file.relative_to(folder): folder.name for folder in class_folders(labelled) for file in list_files(folder)
    }
    for file in list(known)[::5]:
        shutil.copy(unlabelled / file, few / str(file).replace("/", "-"))
    said = cluster(tmp_path / "more", image_dir=few, num_clusters=None, clusters_from=labelled)
    for file in list(known)[::5]:
        assert (tmp_path / "more" / known[file] / str(file).replace("/", "-")).is_file()
    assert "Saved" in said
    np.testing.assert_array_equal(load_clusters(tmp_path / "more")[1], load_clusters(labelled)[1])


def test_a_cluster_without_further_images_is_named(cluster, unlabelled, labelled, tmp_path):
    (tmp_path / "one").mkdir()
    shutil.copy(list_files(labelled / "cluster_1")[0], tmp_path / "one" / "a.png")
    said = cluster(tmp_path / "more", image_dir=tmp_path / "one", num_clusters=None, clusters_from=labelled)
    assert "None of these images belongs to cluster_0, cluster_2" in said


@pytest.mark.parametrize("how", ["hardlink", "symlink", "copy"])
def test_how_images_come_into_the_clusters(cluster, unlabelled, tmp_path, how):
    cluster(tmp_path / "labelled", files=how)
    files = [file for folder in class_folders(tmp_path / "labelled") for file in list_files(folder)]
    for file in files:
        source = unlabelled / Path(*file.relative_to(tmp_path / "labelled").parts[1:])
        assert file.is_symlink() == (how == "symlink")
        assert file.samefile(source) == (how != "copy")


def test_large_sets_are_clustered_in_parts():
    corners = np.array([[0, 0], [0, 9], [9, 0]], dtype=np.float32)
    members = np.repeat([0, 1, 2], [4_000, 6_001, 10_000])
    features = corners[members] + np.random.default_rng(0).normal(size=(20_001, 2)).astype(np.float32)
    centers = find_centers(features, 3)
    np.testing.assert_allclose(centers, corners[::-1], atol=0.2)  # the largest cluster first
    np.testing.assert_array_equal(centers, find_centers(features, 3))
    assert (nearest_centers(features, centers)[0] == 2 - members).mean() > 0.99


# ---------------------------------------------------------------------------------------------------- vision models


def save_tiny(folder: Path, kind: str) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    side = {"image_size": 32, "patch_size": 8}
    width = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    if kind == "vit":
        network = transformers.ViTModel(transformers.ViTConfig(**width, **side))
    elif kind == "clip":
        text = {**width, "vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        network = transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config={**width, **side}))
    else:
        network = transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
        )
    network.eval().save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "ViTImageProcessor",
                "do_resize": True,
                "size": {"height": 32, "width": 32},
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            }
        )
    )
    return network


@pytest.mark.parametrize(
    ("kind", "pooling"), [("vit", "cls"), ("vit", "mean"), ("clip", "mean"), ("convnext", "mean")]
)
def test_features_are_the_last_layer_of_any_vision_model(unlabelled, tmp_path, kind, pooling):
    network = save_tiny(tmp_path / kind, kind)
    images = open_folder(unlabelled).select(range(5))
    features = extract_features(images, FeatureSettings("model", str(tmp_path / kind), pooling), batch_size=2)
    pixels = [np.asarray(image.load(3).resize((32, 32), Image.Resampling.BILINEAR)) for image in images]
    inputs = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        hidden = getattr(network, "vision_model", network)(pixel_values=inputs).last_hidden_state
    if hidden.ndim == 4:
        pooled = hidden.mean(dim=(2, 3))
    else:
        pooled = hidden[:, 0] if pooling == "cls" else hidden.mean(dim=1)
    np.testing.assert_allclose(features, pooled / pooled.norm(dim=1, keepdim=True), atol=1e-5)


def test_clusters_by_a_vision_model(cluster, tmp_path):
    save_tiny(tmp_path / "vit", "vit")
    cluster(tmp_path / "labelled", features=None, model=tmp_path / "vit")
    assert sum(len(list_files(folder)) for folder in class_folders(tmp_path / "labelled")) == 36
    settings, centers = load_clusters(tmp_path / "labelled")
    assert settings == FeatureSettings("model", model=str(tmp_path / "vit"), pooling="mean")
    assert centers.shape == (3, 16)


def test_a_folder_that_holds_no_model(refused, unlabelled):
    said = refused(features=None, model=unlabelled)
    assert said.startswith(f"--model {unlabelled} is no vision model of transformers that can be loaded here (")
    assert "--features pixels" in said


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("name", "value"), [("num_clusters", 1), ("batch_size", 0), ("pixels_size", 0)])
def test_settings_out_of_bounds(tmp_path, name, value):
    settings = {"image_dir": tmp_path / "images", "output_dir": tmp_path / "labelled", "num_clusters": 3}
    with pytest.raises(InputError, match=f"^--{name}.* got {value}.$"):
        ClusterSettings(**{**settings, name: value})


def test_a_number_of_clusters_or_earlier_ones(tmp_path):
    settings = {"image_dir": tmp_path / "images", "output_dir": tmp_path / "labelled"}
    for both_or_none in ({}, {"num_clusters": 3, "clusters_from": tmp_path}):
        with pytest.raises(InputError, match="Pass one of --num_clusters and --clusters_from."):
            ClusterSettings(**settings, **both_or_none)


def test_images_that_are_not_there(refused, tmp_path):
    assert "holds 36 files, too few for 37 clusters" in refused(num_clusters=37)
    assert "There is no folder" in refused(image_dir=tmp_path / "nowhere")


def test_images_that_do_not_differ():
    features = np.repeat(np.eye(2, dtype=np.float32), 10, axis=0)
    with pytest.raises(InputError, match="Only 2 of 3 clusters hold images.*--num_clusters 2 or fewer"):
        find_centers(features, 3)


def test_bad_images_are_named_or_skipped(cluster, unlabelled, tmp_path):
    images = Path(shutil.copytree(unlabelled, tmp_path / "images"))
    (images / "notes").write_text("not an image")
    said = cluster(tmp_path / "labelled", status=2, image_dir=images)
    assert "1 of 37 images cannot be read" in said and "--skip_bad_images" in said
    said = cluster(tmp_path / "labelled", image_dir=images, skip_bad_images=True)
    assert "Skipped 1 of 37 images" in said and "36 images in 3 clusters" in said


@pytest.mark.parametrize("output", [".", "inside", "..", "../.."])
def test_output_and_images_apart(cluster, unlabelled, output):
    before = contents(unlabelled.parent)
    said = cluster(unlabelled / output, status=2)
    assert "lie one in the other" in said
    assert contents(unlabelled.parent) == before


def test_a_folder_of_something_else_is_not_replaced(cluster, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")
    assert "would be replaced whole" in cluster(tmp_path / "thesis", status=2)
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "precious"


def test_clusters_of_no_earlier_run(refused, unlabelled):
    said = refused(num_clusters=None, clusters_from=unlabelled)
    assert "is no output folder of cluster_labels.py" in said
