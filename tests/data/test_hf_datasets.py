"""Datasets as sets of images: of a folder, of the Hub, or loaded."""

import io
import sys
import tarfile
import zipfile

import datasets
import numpy as np
import pytest
from PIL import Image
from processes import run_here
from tiny_extractor import Thumbnails

from diffusers_cg.data import open_dataset, open_images, open_set
from diffusers_cg.errors import InputError, MissingExtraError
from diffusers_cg.evaluation import evaluate, measure


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hub_cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets


def pixels(count=12, size=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


def encode(image, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, format)
    return {"bytes": file.getvalue(), "path": None}


def make_dataset(images, format="PNG", columns=("image",)):
    rows = {"label": list(range(len(images)))} | {
        name: [encode(image, format) for image in images] for name in columns
    }
    features = datasets.Features({"label": datasets.Value("int64")} | {name: datasets.Image() for name in columns})
    return datasets.Dataset.from_dict(rows, features=features)


@pytest.fixture
def parquet(tmp_path):
    """A folder that `load_dataset` reads, with two splits."""
    for split, images in (("train", pixels()), ("test", pixels(seed=1))):
        (tmp_path / "data").mkdir(exist_ok=True)
        make_dataset(images).to_parquet(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    return tmp_path / "data"


def all_images(source, **options):
    return np.concatenate(list(open_images(source, **options).batches(5)))


@pytest.fixture
def command(tmp_path):
    def command(samples, reference, *argv, status=0):
        flags = [samples, "--reference", reference, "--output", tmp_path / "report", *argv]
        flags += ["--extractor", "tiny_extractor:Thumbnails"]
        result = run_here("evaluate", *flags)
        assert result.status == status and "Traceback" not in result.output, result.output
        return result.output

    return command


def test_parquet_files(command, parquet, tmp_path):
    assert np.array_equal(all_images(parquet, split="train"), pixels())
    assert np.array_equal(all_images(parquet, split="test"), pixels(seed=1))
    assert np.array_equal(all_images(parquet, split="train[3:7]"), pixels()[3:7])
    np.savez(tmp_path / "samples.npz", pixels(10, seed=2))
    said = command(tmp_path / "samples.npz", parquet, "--split", "train")
    expected = evaluate(pixels(10, seed=2), pixels(), Thumbnails()).metrics
    assert f"| Frechet distance | {expected['fid']:.4f} |" in said
    assert f"- Reference: {parquet}, split train, 12 images of 8x8 in color" in said
    assert "has the splits train, test: pass one with --split." in command(parquet, parquet, status=2)
    assert f"{parquet} cannot be read: " in command(parquet, parquet, "--split", "validation", status=2)


def test_saved_to_disk(tmp_path):
    make_dataset(pixels()).save_to_disk(tmp_path / "one")
    assert np.array_equal(all_images(tmp_path / "one"), pixels())
    datasets.DatasetDict(train=make_dataset(pixels()), test=make_dataset(pixels(seed=1))).save_to_disk(
        tmp_path / "two"
    )
    assert np.array_equal(all_images(tmp_path / "two", split="test"), pixels(seed=1))
    with pytest.raises(ValueError, match="has the splits train, test, not validation: change --split"):
        open_images(tmp_path / "two", split="validation")
    parts = (
        ("test[1:4]", slice(1, 4)),
        ("test[-25%:]", slice(9, None)),
        ("test", slice(None)),
        ("test[8:12]+test[:2]", [8, 9, 10, 11, 0, 1]),
    )
    for split, part in parts:
        stream = open_images(tmp_path / "two", split=split, streaming=True)
        loaded = open_images(tmp_path / "two", split=split)
        for images in (stream, loaded):
            found = [np.asarray(stored.load(3)) for stored in images]
            assert np.array_equal(found, pixels(seed=1)[part])
    assert len(open_images(tmp_path / "one", split="train")) == 12  # what `datasets` calls the only one


def shard(path, images, suffixes):
    with tarfile.open(path, "w") as file:
        for number, (image, suffix) in enumerate(zip(images, suffixes)):
            label = str(number % 2).encode()
            for name, data in ((suffix, encode(image, {"jpg": "JPEG"}.get(suffix, "PNG"))["bytes"]), ("cls", label)):
                entry = tarfile.TarInfo(f"{number:04d}.{name}")
                entry.size = len(data)
                file.addfile(entry, io.BytesIO(data))
    return [path]


@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streamed"])
def test_formats_that_change_late_in_a_webdataset(tmp_path, streaming):
    source = shard(tmp_path / "late.tar", pixels(), ["png"] * 10 + ["jpg"] * 2)
    images = list(open_images(source, "required", split="train", streaming=streaming, num_classes=2))
    assert np.array_equal([np.asarray(stored.load(3)) for stored in images[:10]], pixels()[:10])
    for stored in images[10:]:
        with pytest.raises(InputError, match="of a webdataset: none with the suffix of the others"):
            stored.load(3)


@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streamed"])
def test_columns_that_are_called_the_other_way_round(streaming):
    dataset = make_dataset(pixels(4)).rename_columns({"image": "label", "label": "image"})
    dataset = dataset.to_iterable_dataset() if streaming else dataset
    images = open_images(dataset, "required", image_column="label", label_column="image", num_classes=4)
    assert [stored.label for stored in images] == [0, 1, 2, 3]
    assert np.array_equal([np.asarray(stored.load(3)) for stored in images], pixels(4))


def test_the_true_reason_of_a_failed_load_is_in_the_sentence(tmp_path):
    (tmp_path / "zipped").mkdir()
    with zipfile.ZipFile(tmp_path / "zipped" / "train.zip", "w") as archive:
        for name in ("a/0.png", "b/0.png"):
            archive.writestr(name, encode(pixels(1)[0])["bytes"])
    with pytest.raises(InputError, match="cannot be read: Invalid string class label zipped"):
        open_dataset(str(tmp_path / "zipped"), "required", split="train")


def test_a_loaded_dataset(tmp_path):
    assert np.array_equal(all_images(make_dataset(pixels(channels=1))), pixels(channels=1))
    assert np.array_equal(all_images(make_dataset(pixels()).select([3, 1])), pixels()[[3, 1]])
    mixed = make_dataset(pixels(3, channels=1)).to_list() + make_dataset(pixels(2)).to_list()
    dataset = datasets.Dataset.from_list(mixed, features=make_dataset(pixels(1)).features)
    assert all_images(dataset).shape == (5, 8, 8, 3)
    # rows may also name files
    Image.fromarray(pixels()[0]).save(tmp_path / "image.png")
    dataset = datasets.Dataset.from_dict({"image": [str(tmp_path / "image.png")]}).cast_column(
        "image", datasets.Image()
    )
    assert np.array_equal(all_images(dataset), pixels()[:1])


def test_columns(command, tmp_path):
    dataset = make_dataset(pixels(), columns=("photo", "mask"))
    assert np.array_equal(all_images(dataset, image_column="mask"), pixels())
    listed = r"label \(int64\), photo \(Image\), mask \(Image\)"
    with pytest.raises(InputError, match=f"Pass --image_column to say which column to take, of {listed}"):
        open_images(dataset)
    with pytest.raises(InputError, match=rf"There is no column picture \(--image_column\): the dataset has {listed}"):
        open_images(dataset, image_column="picture")
    with pytest.raises(InputError, match="Column label of dataset cannot be read: "):
        open_images(dataset, image_column="label")
    with pytest.raises(InputError, match=r"Pass --image_column to say which column to take, of label \(int64\)"):
        open_images(dataset.remove_columns(["photo", "mask"]))
    (tmp_path / "columns").mkdir()
    dataset.to_parquet(tmp_path / "columns" / "train.parquet")
    command(tmp_path / "columns", tmp_path / "columns", "--image_column", "mask")


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays(command, tmp_path, channels):
    shape = (8, 8) if channels == 1 else (8, 8, 3)
    column = datasets.Array2D(shape, "uint8") if channels == 1 else datasets.Array3D(shape, "uint8")
    whole = pixels(channels=channels)
    rows = {"image": list(whole.reshape(-1, *shape))}
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": column}))
    assert np.array_equal(all_images(dataset, image_column="image"), whole)
    dataset.save_to_disk(tmp_path / "saved")
    command(tmp_path / "saved", tmp_path / "saved", "--image_column", "image")


def test_sizes():
    small, large = make_dataset(pixels(4)), make_dataset(pixels(2, size=20))
    dataset = datasets.concatenate_datasets([small, large])
    with pytest.raises(
        InputError, match="image 0 of dataset is 8x8 and image 4 of dataset is 20x20. .* pass --resolution"
    ):
        open_set(dataset)
    assert all_images(dataset, resolution=6).shape == (6, 6, 6, 3)


def test_features_are_found_again_by_content(tmp_path):
    def count(images, **options):
        before = Thumbnails.calls
        measure(open_images(make_dataset(images), **options), Thumbnails(), cache_dir=tmp_path / "cache")
        return Thumbnails.calls - before

    changed = pixels()
    changed[7, 0, 0, 0] ^= 1
    assert [count(pixels()), count(pixels()), count(changed), count(pixels(), resolution=4)] == [12, 0, 12, 12]


def test_jpeg_is_warned_of(tmp_path):
    for format, expected in (("PNG", False), ("JPEG", True)):
        (tmp_path / format).mkdir()
        make_dataset(pixels(), format).to_parquet(tmp_path / format / "train.parquet")
        warnings = evaluate(pixels(), tmp_path / format, Thumbnails()).warnings
        assert any(warning.startswith("Files of the reference are compressed") for warning in warnings) == expected


def test_bad_rows():
    rows = make_dataset(pixels(3)).cast_column("image", datasets.Image(decode=False)).to_list()
    features = make_dataset(pixels(1)).features

    def dataset(value):
        return datasets.Dataset.from_list([*rows, {"label": 0, "image": value}], features=features)

    for value in (None, {"bytes": b"text", "path": None}):
        with pytest.raises(InputError, match="image 3 of dataset is not an image: remove it"):
            open_set(dataset(value))


@pytest.mark.parametrize("name", ["nobody/nothing-of-this-name", "nothing-of-this-name"])
def test_no_such_dataset(command, name, tmp_path):
    np.savez(tmp_path / "samples.npz", pixels())
    for sets in ((tmp_path / "samples.npz", name), (name, tmp_path / "samples.npz")):
        line = command(*sets, status=2).strip().splitlines()[-1]
        assert line.startswith(f"error: There is no file or folder {name}, and {name} cannot be read: ")
    assert not (tmp_path / "report").exists()


def test_without_datasets(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match="may be a dataset of the Hub. .*pip install 'diffusers-cg\\[data\\]'"):
        open_images("nobody/nothing-of-this-name")
