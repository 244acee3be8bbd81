"""`open_images`: the same images from every source, one by one and as arrays; their classes; what is refused."""

import dataclasses
import re

import datasets
import numpy as np
import pytest
from PIL import Image

from diffusers_cg.data import (
    FeatureStatistics,
    find_bad_images,
    look_at_images,
    open_folder,
    open_images,
    open_set,
    readable_images,
)
from diffusers_cg.data.images import resize_and_crop
from diffusers_cg.errors import InputError
from diffusers_cg.training.data import in_class_order


def pixels(count=30, size=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def save_image(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)


def save_folder(folder, images, suffix=".png"):
    for number, image in enumerate(images):
        save_image(folder / str(number % 3) / "deep" / f"{number:05d}{suffix}", image)
    return folder


def save_npz(path, *arrays, **named):
    np.savez(path, *arrays, **named)
    return path


def all_images(source, **options):
    return np.concatenate(list(open_images(source, **options).batches(7)))


def save_parquet(path, images, folder):
    """Of the files of a folder, in its order."""
    files = sorted(save_folder(folder, images).rglob("*.png"))
    content = {"image": [{"bytes": file.read_bytes()} for file in files], "label": [int(f.parts[-3]) for f in files]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    datasets.Dataset.from_dict(content, features=features).to_parquet(path)
    return path


# --------------------------------------------------------------------------------------------------------------- sources


@pytest.mark.parametrize("channels", [1, 3])
def test_every_source_holds_the_same_images(tmp_path, channels):
    images = pixels(10, channels=channels)
    by_class = np.concatenate([images[first::3] for first in range(3)])
    np.savez_compressed(tmp_path / "compressed.npz", images)
    for source, expected in (
        (images, images),
        (save_npz(tmp_path / "plain.npz", images), images),
        (tmp_path / "compressed.npz", images),
        (save_folder(tmp_path / "folder", images), by_class),
        (save_parquet(tmp_path / "a.parquet", images, tmp_path / "same"), by_class),
    ):
        opened = open_images(source, cache_dir=tmp_path / "cache")
        assert opened.shape == images.shape and not opened.is_lossy and opened.class_names is None
        assert np.array_equal(np.concatenate(list(opened.batches(7))), expected)
        assert len(opened) == len(list(opened)) == 10
        for number in (0, 9, 4):
            decoded = np.asarray(opened[number].load(channels)).reshape(8, 8, channels)
            assert np.array_equal(decoded, expected[number])
        some = opened.select([7, 2])
        assert np.array_equal(np.concatenate(list(some.batches(1))), expected[[7, 2]])


def test_what_is_open_is_returned(tmp_path):
    opened = open_images(pixels())
    assert open_images(opened) is open_set(opened) is opened
    statistics = FeatureStatistics("somewhere", {})
    assert open_set(statistics) is statistics
    path = save_npz(tmp_path / "statistics.npz", mu=np.zeros(2), sigma=np.eye(2))
    assert open_set(path).statistics["pool"][1].tolist() == [[1, 0], [0, 1]]
    for source in (statistics, path):
        with pytest.raises(InputError, match="holds statistics of features instead of images"):
            open_images(source)


def test_resolution(tmp_path):
    """Images of any size, cropped as for training; those of the right size stay as they are."""
    folder = save_folder(tmp_path / "folder", pixels(6, size=8))
    assert np.array_equal(all_images(folder, resolution=8), all_images(folder))
    save_folder(folder / "wide", pixels(3, size=24)[:, :16])
    with pytest.raises(InputError, match="is 8x8 and .* is 24x16. Images must be of one size: pass --resolution"):
        open_set(folder)
    opened = open_images(folder, resolution=8)
    assert opened.shape == (9, 8, 8, 3) and opened.content_hash() != open_images(folder, resolution=4).content_hash()
    wide = np.concatenate(list(opened.batches(4)))[-1]
    image = Image.open(sorted(folder.rglob("wide/**/*.png"))[-1])
    assert np.array_equal(wide, np.asarray(resize_and_crop(image, 8, center_crop=True)))
    with pytest.raises(InputError, match="`resolution` must be at least 1, got 0"):
        open_images(folder, resolution=0)


def test_hidden_files_of_a_folder_are_left_out_and_those_that_are_named(tmp_path):
    folder = save_folder(tmp_path / "folder", pixels(4))
    save_image(folder / "grid.png", pixels(1, size=50)[0])
    save_image(folder / "1" / "grid.png", pixels(1)[0])
    (folder / ".DS_Store").write_text("hidden")
    assert len(open_images(folder)) == 6
    assert open_images(folder, leave_out=["grid.png", "sampling.json"]).shape == (5, 8, 8, 3)


def test_one_colored_file_makes_a_folder_colored(tmp_path):
    folder = save_folder(tmp_path / "folder", pixels(3, channels=1))
    save_folder(folder / "color", pixels(1))
    assert open_images(folder).shape == (4, 8, 8, 3)
    assert all_images(folder).shape == (4, 8, 8, 3)


def test_content_hash(tmp_path):
    samples = pixels()
    sources = [samples, save_npz(tmp_path / "a.npz", samples), save_folder(tmp_path / "a", samples)]
    changed = samples.copy()
    changed[7, 0, 0, 0] ^= 1
    others = [changed, save_npz(tmp_path / "b.npz", changed), save_folder(tmp_path / "b", changed)]
    for one, other in zip(sources, others):
        assert open_images(one).content_hash() == open_images(one).content_hash()
        assert open_images(one).content_hash() != open_images(other).content_hash()


# --------------------------------------------------------------------------------------------------------------- classes


def test_classes_of_a_folder_are_numbered_by_sorted_names_and_searched_at_any_depth(tmp_path):
    image = pixels(1, size=4)[0]
    for place in ("zebra/1.png", "ant/deep/er/2.png", "Cat/3.png", "ant/.hidden/4.png", "ant/.5.png", ".hidden/6.png"):
        save_image(tmp_path / place, image)
    images = open_folder(tmp_path, "required")
    assert images.class_names == ["Cat", "ant", "zebra"]
    found = {stored.name.removeprefix(f"{tmp_path}/"): stored.label for stored in images}
    assert found == {"Cat/3.png": 0, "ant/deep/er/2.png": 1, "zebra/1.png": 2}
    assert images.labels.tolist() == [0, 1, 2]


def test_a_folder_of_as_many_classes_as_a_model_knows(tmp_path):
    folder = save_folder(tmp_path / "folder", pixels(6))
    (folder / "3").mkdir()
    with pytest.raises(InputError, match="These class folders hold no images: .*/3. Fill or remove them"):
        open_folder(folder, "required")
    assert open_folder(folder, "required", num_classes=4).class_names == ["0", "1", "2", "3"]
    with pytest.raises(
        InputError, match="has classes that are none of the 3 known ones|has 4 classes, but the model knows 3"
    ):
        open_folder(folder, "required", num_classes=3)


def test_labels_that_are_ignored_optional_or_required(tmp_path):
    folder = save_folder(tmp_path / "folder", pixels(6))
    save_image(folder / "on_top.png", pixels(1)[0])
    assert len(open_images(folder)) == 7 and open_images(folder).labels is None
    assert open_images(folder, "required").labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert open_images(folder, "optional").labels.tolist() == [0] * 7
    (folder / "on_top.png").unlink()
    assert open_images(folder, "optional").labels.tolist() == [0, 0, 1, 1, 2, 2]
    one = open_images(folder / "1", "optional")  # `deep` is its only subfolder
    assert (one.class_names, one.labels.tolist(), one[1].label) == (["images"], [0, 0], 0)
    with pytest.raises(InputError, match="has one class only, deep: guidance needs at least two"):
        open_images(folder / "1", "required")
    with pytest.raises(InputError, match="has no subfolders.*: it must hold one subfolder of images per class"):
        open_images(folder / "1" / "deep", "required")
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "train.zip").touch()
    with pytest.raises(InputError, match="has no subfolders; left out: 1 .zip: it must hold"):
        open_images(tmp_path / "packed", "required")


def test_classes_of_an_npz(tmp_path):
    images, labels = pixels(6), np.array([2, 0, 1, 1, 0, 2])
    path = save_npz(tmp_path / "labelled.npz", images, labels)
    assert open_images(path).labels is None
    opened = open_images(path, "required", class_names=["ant", "bee", "cat"])
    assert opened.class_names == ["ant", "bee", "cat"] and opened.labels.tolist() == labels.tolist()
    assert opened.select([3, 5]).labels.tolist() == [1, 2] and opened[0].label == 2
    with pytest.raises(InputError, match="arr_1 of .* holds label 2, but there are 2 classes, from 0"):
        open_images(path, "required", num_classes=2)
    with pytest.raises(InputError, match=r"arr_1 of .* must be \(6,\) whole numbers"):
        open_images(save_npz(tmp_path / "bad.npz", images, labels / 2), "required")
    with pytest.raises(InputError, match="has no array arr_1 of labels"):
        open_images(save_npz(tmp_path / "plain.npz", images), "required")
    assert open_images(tmp_path / "plain.npz", "optional").class_names == ["images"]


def test_an_array_without_classes():
    assert open_images(pixels(3), "optional").labels.tolist() == [0, 0, 0]
    with pytest.raises(InputError, match="The array states no labels"):
        open_images(pixels(3), "required")


def test_a_split_that_is_not_stratified_is_that_of_datasets(tmp_path):
    """So it was before, and a training that began so goes on with it."""
    folder = save_folder(tmp_path / "folder", pixels(30))
    images = open_folder(folder, "required")
    stay, held_out = images.split(7, seed=3, stratified=False)
    expected = datasets.Dataset.from_dict({"number": range(30)}).train_test_split(test_size=7, seed=3)
    names = [stored.name for stored in images]
    for part, numbers in ((stay, expected["train"]["number"]), (held_out, expected["test"]["number"])):
        assert [stored.name for stored in part] == [names[number] for number in numbers]
        assert part.labels.tolist() == images.labels[list(numbers)].tolist()


@pytest.mark.parametrize("counts", [[3] * 40, [1, 2, 50, 7], [100, 20], [1, 1, 1, 30]])
@pytest.mark.parametrize("part", [0.05, 0.2, 0.5])
def test_the_same_part_of_every_class_is_held_out_and_never_all_of_one(counts, part):
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    images = dataclasses.replace(open_images(pixels(len(labels), size=1), "optional"), labels=labels)
    held = set()
    for seed in range(20):
        stay, held_out = images.split(int(part * len(labels)), seed)
        assert len(held_out) == int(part * len(labels)) and len(stay) + len(held_out) == len(labels)
        kept = np.bincount(stay.labels, minlength=len(counts))
        assert (kept >= 1).all()
        if min(counts) > 1:  # or else the others give what one of one image cannot
            assert (abs((np.array(counts) - kept) - part * np.array(counts)) <= 1.5).all()
        held.add(tuple(np.flatnonzero(held_out.labels == 0)))
    assert len(held) > 1 or counts[0] == 1
    with pytest.raises(InputError, match="needs at least one to train on"):
        images.split(len(labels) - 1, 0)


def test_a_fingerprint_tells_other_images_wherever_they_lie(tmp_path):
    images = open_folder(save_folder(tmp_path / "a", pixels(9)), "required")
    again = open_folder(save_folder(tmp_path / "elsewhere" / "b", pixels(9)), "required")
    assert images.fingerprint() == again.fingerprint()
    array, loaded = open_images(pixels(9)), open_images(save_npz(tmp_path / "a.npz", pixels(9)))
    assert array.fingerprint() == loaded.fingerprint()
    changed = pixels(9)
    changed[4, 0, 0, 0] ^= 1
    others = [
        open_folder(save_folder(tmp_path / "c", changed), "required"),
        open_folder(save_folder(tmp_path / "d", pixels(8)), "required"),
        dataclasses.replace(again, labels=again.labels[::-1]),
        again.select(range(9)[::-1]),
        open_images(changed),
    ]
    assert len({other.fingerprint() for other in [images, array, *others]}) == 7


def test_a_set_of_the_same_classes_in_another_order(tmp_path):
    images = open_folder(save_folder(tmp_path / "a", pixels(6)), "required")
    assert in_class_order(images, None, ["0", "1"]) is images
    ordered = in_class_order(images, None, ["02", "00", "01"], ["0", "1", "2"])
    assert ordered.class_names == ["02", "00", "01"] and ordered.labels.tolist() == [1, 1, 2, 2, 0, 0]


# ------------------------------------------------------------------------------------------------------------ bad images


def test_pictures_that_come_out_constant_are_warned_of(tmp_path):
    save_image(tmp_path / "black.png", np.zeros((8, 8, 3), dtype=np.uint8))
    save_image(tmp_path / "other.png", pixels(1)[0])
    for look in (find_bad_images, lambda images: list(images.batches(2))):
        with pytest.warns(UserWarning, match="1 of 2 images of .* one single colour .*black.png.*--image_range"):
            look(open_images(tmp_path))
    array = np.stack([pixels(1)[0], np.zeros((8, 8, 3), dtype=np.uint8)])
    for source in (array, save_npz(tmp_path / "a.npz", array)):
        with pytest.warns(UserWarning, match="1 of 2 images of .* one single colour .image 1 of"):
            list(open_images(source).batches(1))
    stream = datasets.Dataset.from_dict(
        {"image": list(array)}, features=datasets.Features({"image": datasets.Image()})
    )
    with pytest.warns(UserWarning, match="1 of the first 2 images of .* one single colour .image 1 of"):
        open_images(stream.to_iterable_dataset()).warn_of_constant()


def test_a_range_of_values_is_that_of_every_source(tmp_path):
    whole = pixels(3, channels=1)
    floats = (whole.astype(np.float32) / 255) * 2 - 1
    for number, image in enumerate(floats):
        Image.fromarray(image[..., 0]).save(tmp_path / f"{number}.tif")
    features = datasets.Features({"image": datasets.Array2D((8, 8), "float32")})
    rows = datasets.Dataset.from_dict({"image": floats[..., 0]}, features=features)
    sources = [
        (tmp_path, {}),
        (floats, {}),
        (save_npz(tmp_path / "a.npz", floats), {}),
        (rows, {"image_column": "image"}),
    ]
    for source, options in sources:
        images = open_images(source, image_range=(-1, 1), **options)
        assert np.array_equal([np.asarray(stored.load(1))[..., None] for stored in images], whole)
    for source, _ in sources[:3]:
        assert np.array_equal(all_images(source, image_range=(-1, 1)), whole)


def test_parts_that_look_at_images_see_each_once(tmp_path):
    folder = save_folder(tmp_path / "folder", pixels(7))
    (folder / "0" / "notes").write_text("not an image")
    images = open_folder(folder, "required")
    found = [look_at_images(images, part=part, num_parts=3).faults for part in range(3)]
    assert sorted(index for faults in found for index in faults) == sorted(find_bad_images(images))
    assert sum(map(len, found)) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_are_found_and_left_out(tmp_path, capsys, num_workers):
    folder = save_folder(tmp_path / "folder", pixels(9))
    (folder / "0" / "notes.png").write_text("not an image")
    file = folder / "2" / "deep" / "00002.png"
    file.write_bytes(file.read_bytes()[:60])
    images = open_folder(folder, "required")
    faults = find_bad_images(images, num_workers)
    assert [images[index].name for index in faults] == [str(folder / "0" / "notes.png"), str(file)]
    assert list(faults.values())[0] == "not an image" and list(faults.values())[1].startswith("damaged: ")
    with pytest.raises(InputError, match="^2 of 10 images cannot be read: .*notes.png .not an image.*; .*00002.png "):
        readable_images(images)
    good = readable_images(images, skip_bad_images=True)
    assert len(good) == 8 and "Skipped 2 of 10 images" in capsys.readouterr().out
    assert good.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    for file in (folder / "1" / "deep").iterdir():
        file.write_text("not an image")
    with pytest.raises(InputError, match="^No image of these classes can be read: 1. Replace or remove them.$"):
        readable_images(open_folder(folder, "required"), skip_bad_images=True)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("nowhere/at/all.npz", "There is no file or folder nowhere/at/all.npz: pass an .npz or a folder of images."),
        (["nowhere/a.tar", "nowhere/b.parquet"], "There is no file nowhere/a.tar."),
        ([pixels(1)], "A set of images must be an array, a path or a dataset, got list"),
        (pixels(3) / 255, "The array is of dtype float64: images are uint8, in 0..255, unless --image_range"),
    ],
)
def test_sources_that_cannot_be_meant(source, said):
    with pytest.raises(InputError, match=re.escape(said)):
        open_images(source)
