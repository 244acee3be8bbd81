"""Folders of images: what is found in them, and what is counted as left out."""

import numpy as np
import pytest
from PIL import Image

from diffusers_cg.data import open_folder, open_images
from diffusers_cg.errors import InputError


def draw(folder, count):
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) + np.uint8(number)).save(folder / f"{number}.png")
    return folder


def test_images_behind_links_are_found_once(tmp_path):
    data = tmp_path / "data"
    draw(data / "cat", 5), draw(data / "dog", 4)
    (data / "cat" / "more").symlink_to(draw(tmp_path / "disk2" / "more_cats", 3))
    (data / "cat" / "back").symlink_to(data)  # a circle
    (data / "dog" / "lost.png").symlink_to(tmp_path / "nowhere")
    images = open_folder(data, "required")
    assert np.bincount(images.labels).tolist() == [8, 4] and len(open_images(data)) == 12
    assert images.left_out == {"linked folders that are read already": 1, "broken links": 1}
    (data / "cat" / "dogs").symlink_to(data / "dog")  # which are no cats for that
    assert np.bincount(open_folder(data, "required").labels).tolist() == [8, 4]
    linked = tmp_path / "linked"
    linked.mkdir()
    for name in ("cat", "dog"):
        (linked / name).symlink_to(data / name)
    assert np.bincount(open_folder(linked, "required").labels).tolist() == [8, 4] and len(open_images(linked)) == 12


def test_linked_files_are_images_of_the_class_that_they_lie_in(tmp_path):
    draw(tmp_path / "files", 4)
    for number, name in enumerate(["a", "a", "b", "a"]):
        (tmp_path / "data" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name / f"{number}.png").symlink_to(tmp_path / "files" / f"{number}.png")
    assert open_folder(tmp_path / "data", "required").labels.tolist() == [0, 0, 0, 1]


def test_images_beside_subfolders(tmp_path):
    data = draw(tmp_path / "data", 10)
    draw(data / "holiday", 5), draw(data / "garden", 5)
    (data / "empty").mkdir()
    assert len(open_folder(data, "optional")) == len(open_folder(data)) == 20
    (data / "empty").rmdir()
    images = open_folder(data, "required")
    assert len(images) == 10 and images.summary() == (
        f"{data}: 10 images of 2 classes (garden, holiday); left out: 10 beside the class folders."
    )


def test_sidecars_are_counted_by_their_suffix(tmp_path):
    draw(tmp_path / "a", 2), draw(tmp_path / "b", 1)
    for name in ("a/0.TXT", "a/1.txt", "b/0.json", "b/.DS_Store", "metadata.csv", "b/Thumbs.db", "model.safetensors"):
        (tmp_path / name).write_text("{}")
    summary = open_folder(tmp_path, "required").summary()
    for counted in ("2 .txt", "1 .json", "1 hidden", "1 .csv", "1 .db", "1 .safetensors"):
        assert counted in summary
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "read.me.txt").write_text("of no image")
    with pytest.raises(InputError, match="holds no images; left out: 1 .txt"):
        open_images(tmp_path / "notes")
