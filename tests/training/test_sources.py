"""Images by dataset name, from Parquet and from webdataset shards, at once or streamed."""

import io
import shutil
import signal
import tarfile
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pyarrow.parquet
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from PIL import Image
from processes import Signal, run_here

from diffusers_cg import ADMUNet2DModel, NoisyClassifierModel
from diffusers_cg.data import open_images
from diffusers_cg.errors import InputError
from diffusers_cg.training.data import (
    SPARE_IMAGES,
    TrainingImages,
    checked_images,
    evaluation_loader,
    examples_by_class,
    open_training_images,
    raise_errors,
    training_loader,
)


NUM_IMAGES, NUM_CLASSES, IMAGES_PER_SHARD = 36, 3, 12
NAMES = ["ant", "bee", "cat"]
SETTINGS = {  # of images, by default
    "train_data_dir": None,
    "dataset_name": None,
    "train_data_files": None,
    "dataset_config_name": None,
    "split": None,
    "image_column": None,
    "label_column": None,
    "class_names": None,
    "num_classes": None,
    "class_from_file_name": False,
    "image_range": None,
    "streaming": False,
    "cache_dir": None,
    "dataloader_num_workers": 0,
    "skip_bad_images": False,
    "verify_images": True,
}
PREPARATION = ("center_crop", "random_flip", "seed", "skip_bad_images", "shuffle_buffer_size", "images_per_epoch")


def picture(number) -> bytes:
    """A PNG file that the number alone decides, of one gray."""
    file = io.BytesIO()
    Image.fromarray(np.full((16, 16), 7 * number, dtype=np.uint8)).save(file, "png")
    return file.getvalue()


def label(number) -> int:
    return number * 5 % NUM_CLASSES


def number_of(clean_image: torch.Tensor) -> int:
    return round(((clean_image.mean().item() + 1) * 127.5) / 7)


def write_shards(folder, bad=()) -> Path:
    folder.mkdir()
    for first in range(0, NUM_IMAGES, IMAGES_PER_SHARD):
        with tarfile.open(folder / f"{first:04d}.tar", "w") as shard:
            for number in range(first, first + IMAGES_PER_SHARD):
                content = picture(number)
                for suffix, data in (
                    ("png", content[:50] if number in bad else content),
                    ("cls", str(label(number)).encode()),
                ):
                    entry = tarfile.TarInfo(f"{number:04d}.{suffix}")
                    entry.size = len(data)
                    shard.addfile(entry, io.BytesIO(data))
    return folder


def write_parquet(path, bad=(), labels=None, **columns) -> Path:
    """Plain columns of bytes and numbers, as another tool than `datasets` writes them."""
    pictures = [b"no picture" if number in bad else picture(number) for number in range(NUM_IMAGES)]
    labels = [label(number) for number in range(NUM_IMAGES)] if labels is None else labels
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table({"picture": pictures, "kind": labels, **columns}), path)
    return path


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="session")
def shards(root):
    return write_shards(root / "shards")


@pytest.fixture(scope="session")
def bad_shards(root):
    return write_shards(root / "bad_shards", bad=(3, 20, 21))


@pytest.fixture(scope="session")
def parquet(root):
    return write_parquet(root / "plain" / "train.parquet")


@pytest.fixture(scope="session")
def named(root):
    """A folder that `load_dataset` reads, of Parquet files with the features that `datasets` writes."""
    features = datasets.Features({"photo": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for split, numbers in (("train", range(NUM_IMAGES)), ("test", range(9))):
        content = {"photo": [{"bytes": picture(n)} for n in numbers], "label": [label(n) for n in numbers]}
        (root / "named" / "data").mkdir(parents=True, exist_ok=True)
        dataset = datasets.Dataset.from_dict(content, features=features)
        dataset.to_parquet(root / "named" / "data" / f"{split}-00000-of-00001.parquet")
    return root / "named"


@pytest.fixture
def images(root):
    """`TrainingImages` by settings."""

    def images(labels="required", **changed):
        if isinstance(changed.get("train_data_files"), Path):
            changed["train_data_files"] = [changed["train_data_files"]]
        settings = SimpleNamespace(**{**SETTINGS, "cache_dir": root / "cache", **changed})
        prepared = {name: changed[name] for name in PREPARATION if name in changed}
        return TrainingImages(checked_images(open_training_images(settings, labels), settings), 16, 1, **prepared)

    return images


@pytest.fixture
def streamed(images, shards):
    """Images of the shards, streamed."""
    flags = {"train_data_files": shards / "*.tar", "streaming": True, "num_classes": NUM_CLASSES}
    return lambda **changed: images(**{**flags, "shuffle_buffer_size": 8, **changed})


def drawn(batches, count) -> dict[int, tuple[int, int]]:
    """(number of the picture, label) by draw."""
    found = {}
    for batch in islice(batches, count):
        pictures = [number_of(image) for image in batch["clean_images"]]
        found |= dict(zip(batch["draws"].tolist(), zip(pictures, batch["class_labels"].tolist())))
    return found


def batches_of(images, batch_size=4, first_draw=0, num_workers=0):
    return raise_errors(training_loader(images, batch_size, first_draw, num_workers))


# -------------------------------------------------------------------------------------------------------------- sources


def kinds(named, parquet, shards):
    numbered = [str(i) for i in range(NUM_CLASSES)]
    plain = {"train_data_files": parquet, "image_column": "picture", "label_column": "kind"}
    return {
        "by name": ({"dataset_name": named}, NAMES),
        "by name, one split": ({"dataset_name": named, "split": "train"}, NAMES),
        "Parquet": (plain, numbered),
        "Parquet, named": ({**plain, "class_names": NAMES}, NAMES),
        "webdataset": ({"train_data_files": shards / "*.tar"}, numbered),
        "webdataset, a folder": ({"dataset_name": shards}, numbered),
        "webdataset, files": ({"train_data_files": sorted(shards.iterdir())}, numbered),
    }


@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("kind", kinds(*[Path()] * 3))
def test_every_source_gives_the_same_images_and_labels(images, named, parquet, shards, kind, streaming):
    flags, names = kinds(named, parquet, shards)[kind]
    known = "class_names" in flags or names == NAMES
    found = images(**flags, **({"streaming": True} if streaming else {}), **({} if known else {"num_classes": 3}))
    assert found.class_names == names
    assert found.num_images == (None if streaming else NUM_IMAGES)
    in_order = drawn(evaluation_loader(found, 10), 4)
    assert in_order == {number: (number, label(number)) for number in range(NUM_IMAGES)}
    epoch = drawn(batches_of(found, 9), 4)
    assert sorted(epoch.values()) == sorted(in_order.values()) and list(epoch.values()) != list(in_order.values())


def test_another_split_and_a_slice_of_one(images, named):
    assert images(dataset_name=named, split="test").num_images == 9
    assert images(dataset_name=named, split="train[:50%]").num_images == NUM_IMAGES // 2


def test_an_image_folder_by_name(images, few_digits):
    found = images(dataset_name=few_digits)
    assert (found.class_names, found.num_images) == (["0", "1", "2"], 36)
    assert torch.equal(found[7]["clean_images"], images(train_data_dir=few_digits)[7]["clean_images"])


def test_an_npz(tmp_path):
    labels = [label(number) for number in range(NUM_IMAGES)]
    pictures = np.arange(NUM_IMAGES, dtype=np.uint8)[:, None, None, None] * np.full((16, 16, 1), 7, dtype=np.uint8)
    np.savez(tmp_path / "images.npz", pictures, np.array(labels))
    found = TrainingImages(open_images(tmp_path / "images.npz", "required"), 16, 1)
    for num_workers in (0, 2):
        epoch = drawn(batches_of(found, 9, num_workers=num_workers), 4)
        assert sorted(epoch.values()) == list(enumerate(labels))


def test_examples_of_classes_also_of_a_stream(streamed, images, named):
    for found in (streamed(), images(dataset_name=named)):
        rows = examples_by_class(found, num_classes=2, per_class=3)
        assert [[number_of(item["clean_images"]) for item in row] for row in rows] == [[0, 3, 6], [2, 5, 8]]


@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streamed"])
def test_examples_where_the_first_classes_have_no_images(images, tmp_path, streaming):
    path = write_parquet(tmp_path / "train.parquet", labels=[17, 15, 17, 19] * (NUM_IMAGES // 4))
    flags = {"train_data_files": path, "image_column": "picture", "label_column": "kind", "num_classes": 20}
    rows = examples_by_class(images(**flags, streaming=streaming), num_classes=2, per_class=2)
    assert [[item["class_labels"] for item in row] for row in rows] == [[15, 15], [17, 17]]


# ------------------------------------------------------------------------------------------------------------ streaming


def test_every_epoch_of_a_stream_has_another_order(streamed):
    order = [picture for picture, _ in drawn(batches_of(streamed()), 27).values()]
    epochs = [tuple(order[first : first + NUM_IMAGES]) for first in (0, 36, 72)]
    assert all(sorted(epoch) == list(range(NUM_IMAGES)) for epoch in epochs)
    assert len(set(epochs)) == 3
    assert [picture for picture, _ in drawn(batches_of(streamed(seed=1)), 9).values()] != list(epochs[0])
    as_it_comes = drawn(batches_of(streamed(shuffle_buffer_size=0)), 18)
    assert [picture for picture, _ in as_it_comes.values()] == [*range(NUM_IMAGES)] * 2


@pytest.mark.filterwarnings("ignore:image .* cannot be read")
@pytest.mark.parametrize("first_draw", [4, 35, 36, 37, 80, 200])
def test_a_stream_can_be_entered_at_any_draw(streamed, bad_shards, first_draw):
    for images in (
        streamed(center_crop=False, random_flip=True),
        streamed(train_data_files=bad_shards / "*.tar", skip_bad_images=True),
    ):
        whole, entered = {}, {}
        for found, batches in ((whole, batches_of(images, 10)), (entered, batches_of(images, 3, first_draw))):
            for batch in islice(batches, 23 if found is whole else 8):
                found.update(zip(batch["draws"].tolist(), batch["clean_images"]))
        assert list(entered) == list(range(first_draw, first_draw + 24))
        assert all(torch.equal(entered[draw], whole[draw]) for draw in entered if draw < 230)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_processes_and_threads_that_decode_change_nothing(streamed, num_workers):
    images = streamed(center_crop=False, random_flip=True)
    for alone, helped in islice(zip(batches_of(images, 5), batches_of(images, 5, num_workers=num_workers)), 12):
        assert alone.keys() == helped.keys()
        assert all(torch.equal(alone[name], helped[name]) for name in alone)


@pytest.mark.filterwarnings("ignore:image .* cannot be read")
@pytest.mark.parametrize("skip_bad_images", [False, True])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_processes_share_a_stream_as_they_share_a_folder(
    streamed, images, named, shards, bad_shards, num_workers, skip_bad_images
):
    files = (bad_shards if skip_bad_images else shards) / "*.tar"
    stream = streamed(train_data_files=files, skip_bad_images=skip_bad_images)
    for of_source in (stream, images(dataset_name=named)):
        whole = batches_of(of_source, 8, first_draw=16)
        halves = [
            prepare_data_loader(
                training_loader(of_source, 4, first_draw=16, num_workers=num_workers),
                num_processes=2,
                process_index=index,
                dispatch_batches=False,
            )
            for index in range(2)
        ]
        for batch, *shares in islice(zip(whole, *halves), 12):
            for name, values in batch.items():
                assert torch.equal(torch.cat([share[name] for share in shares]), values), name


def test_training_on_a_stream_killed_and_resumed_is_as_if_nothing_had_happened(train, bad_shards, tmp_path):
    flags = {
        "train_data_dir": None,
        "train_data_files": bad_shards / "*.tar",
        "streaming": True,
        "skip_bad_images": True,
        "num_classes": 3,
        "shuffle_buffer_size": 8,
        "random_flip": True,
        "center_crop": False,
        "dataloader_num_workers": 2,
        "max_train_steps": 8,
        "checkpointing_steps": 3,
        "validation_fraction": 0,
    }
    straight = train("train_classifier", output_dir=tmp_path / "straight", **flags)
    assert "of 64 images could not be read; the next ones stood in." in straight.output
    kill = Signal(signal.SIGKILL, ".checkpoint-6.partial", event="os.rename")
    train("train_classifier", status=-signal.SIGKILL, signal=kill, output_dir=tmp_path / "killed", **flags)
    assert [path.name for path in (tmp_path / "killed").glob("checkpoint-*")] == ["checkpoint-3"]
    train("train_classifier", output_dir=tmp_path / "killed", resume_from_checkpoint="latest", **flags)
    for path in (
        "checkpoint-8/model.safetensors",
        "checkpoint-8/optimizer.bin",
        "diffusion_pytorch_model.safetensors",
    ):
        assert (tmp_path / "killed" / path).read_bytes() == (tmp_path / "straight" / path).read_bytes(), path


def test_training_and_validating_on_streams(train, named, root, tmp_path):
    flags = {"train_data_dir": None, "dataset_name": named, "streaming": True, "cache_dir": root / "cache"}
    train("train_classifier", output_dir=tmp_path / "c", validation_split="test", save_images_epochs=1, **flags)
    assert NoisyClassifierModel.from_pretrained(tmp_path / "c").config.class_names == NAMES
    assert len(list((tmp_path / "c" / "validation").glob("*.json"))) == 1
    train(
        "train_unet",
        output_dir=tmp_path / "u",
        low_res_size=4,
        save_images_epochs=1,
        images_per_epoch=8,
        ddpm_num_inference_steps=2,
        **flags,
    )
    assert len(list((tmp_path / "u" / "samples").glob("*.png"))) == 2


# -------------------------------------------------------------------------------------------------- images that are bad


def test_bad_images_of_a_dataset_are_found_at_the_start(images, root, capsys):
    path = write_parquet(root / "spoilt" / "train.parquet", bad=(4, 7))
    flags = {"train_data_files": path, "image_column": "picture", "label_column": "kind"}
    with pytest.raises(
        InputError,
        match=r"^2 of 36 images cannot be read: image 4 of .*/train.parquet, split train \(not an image\); image 7 of ",
    ):
        images(**flags)
    found = images(**flags, skip_bad_images=True, dataloader_num_workers=2)
    assert found.num_images == 34 and "Skipped 2 of 36 images" in capsys.readouterr().out
    assert {number_of(found[i]["clean_images"]) for i in range(34)} == set(range(NUM_IMAGES)) - {4, 7}


@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streamed"])
def test_bad_images_met_in_the_middle(images, bad_shards, streaming):
    flags = {"train_data_files": bad_shards / "*.tar", "num_classes": 3, "shuffle_buffer_size": 0}
    flags |= {"streaming": True} if streaming else {"verify_images": False}
    with pytest.raises(
        InputError, match=r"^image 0003 of .* cannot be read as an image: damaged: .*--skip_bad_images"
    ):
        drawn(evaluation_loader(images(**flags), 4), 9)
    found = images(**flags, skip_bad_images=True)
    with pytest.warns(UserWarning, match="cannot be read as an image"):
        batches = list(evaluation_loader(found, NUM_IMAGES))
    shown = [number_of(image) for image in batches[0]["clean_images"]]
    assert shown == [{3: 4, 20: 22, 21: 22}.get(number, number) for number in range(NUM_IMAGES)]
    assert batches[0]["bad_images"].nonzero().flatten().tolist() == [3, 20, 21]
    assert batches[0]["draws"].tolist() == list(range(NUM_IMAGES))


def test_too_many_bad_images_in_a_row(images, root):
    shards = write_shards(root / "hopeless", bad=range(2, 30))
    flags = {"train_data_files": shards / "*.tar", "streaming": True, "num_classes": 3, "shuffle_buffer_size": 0}
    with (
        pytest.warns(UserWarning, match="cannot be read"),
        pytest.raises(
            InputError, match=f"^None of {SPARE_IMAGES + 1} images in a row can be read; the last: image 0017 "
        ),
    ):
        drawn(evaluation_loader(images(**flags, skip_bad_images=True), 4), 9)


def test_a_row_without_an_image(images, root):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int32")})
    content = {"image": [{"bytes": picture(1)}, None, {"bytes": picture(2)}], "label": [0, 1, 1]}
    (root / "hole").mkdir()
    datasets.Dataset.from_dict(content, features=features).to_parquet(root / "hole" / "train.parquet")
    with pytest.raises(
        InputError, match=r"^1 of 3 images cannot be read: image 1 of .*/hole, split train \(there is no image"
    ):
        images(dataset_name=root / "hole")


# ------------------------------------------------------------------------------------------------------------ bad input

COLUMNS = r"picture \(binary\), kind \(int64\), colour \(string\)"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({}, r"Pass --image_column to say which column to take, of " + COLUMNS),
        ({"image_column": "photo"}, r"There is no column photo \(--image_column\): the dataset has " + COLUMNS),
        ({"image_column": "picture"}, r"Pass --label_column to say which column to take, of " + COLUMNS),
        (
            {"image_column": "picture", "label_column": "colour"},
            "There is one class only in Column colour: guidance needs at least two",
        ),
        ({"image_column": "kind", "label_column": "kind"}, r"cannot be read: .*"),
        (
            {"image_column": "picture", "label_column": "kind", "num_classes": 2},
            "Column kind holds label 2, but there are 2 classes, from 0",
        ),
        (
            {"image_column": "picture", "label_column": "kind", "num_classes": 2, "class_names": NAMES},
            "The number of classes is not clear: .* --class_names 3, and --num_classes is 2",
        ),
        (
            {"image_column": "picture", "label_column": "kind", "class_names": ["a", "b", "a"]},
            "--class_names must differ from each other, got a b a",
        ),
        (
            {"image_column": "picture", "label_column": "kind", "streaming": True},
            "Column kind of the stream holds plain numbers: pass --num_classes, or --class_names with a name for each",
        ),
        ({"split": "tset"}, ".*cannot be read: .*tset.*train.*"),
        ({"train_data_dir": "images"}, "Pass one of .* got --train_data_dir and --train_data_files"),
        ({"train_data_files": ["a.tar", "b.parquet"]}, "There is no file a.tar"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_datasets_that_cannot_be_meant(images, root, flags, said):
    path = root / "colours" / "train.parquet"
    if not path.exists():
        write_parquet(path, colour=["red"] * NUM_IMAGES)
    with pytest.raises(InputError, match=f"{said}\\.$") as refused:
        images(**{"train_data_files": path, **flags})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([1, 2, 4], "holds 3 different labels from 1 to 4, where 0 to 2 are expected: pass --num_classes 5 to train"),
        ([0, -1, 1], "holds label -1, but every image needs a label of at least 0"),
        ([0, 0, 0], "one class only"),
    ],
    ids=["gaps", "unlabelled", "one class"],
)
def test_labels_that_are_not_counted_from_0(images, tmp_path, labels, said):
    path = write_parquet(tmp_path / "train.parquet", labels=labels * (NUM_IMAGES // 3))
    with pytest.raises(InputError, match=said):
        images(train_data_files=path, image_column="picture", label_column="kind")


def test_a_label_of_no_class_in_a_stream(streamed):
    with pytest.raises(
        InputError, match=r"^image 0001 of .*tar, split train has the label 2, which is none of 0\.\.1\.$"
    ):
        drawn(batches_of(streamed(num_classes=2, shuffle_buffer_size=0)), 9)


def test_files_of_several_kinds_or_of_none(images, shards, parquet, tmp_path):
    (tmp_path / "notes.txt").touch()
    for files in ([shards / "0000.tar", parquet], [tmp_path / "notes.txt"]):
        with pytest.raises(
            InputError, match=r"takes files of one kind, Parquet \(.parquet\) or webdataset \(.tar\), got"
        ):
            images(train_data_files=files)


def test_shards_that_are_damaged(images, shards, tmp_path):
    (tmp_path / "a.tar").write_bytes((shards / "0000.tar").read_bytes()[:3000])
    (tmp_path / "b.tar").write_bytes(b"no archive at all")
    for name in ("a.tar", "b.tar"):
        with pytest.raises(InputError, match="cannot be read: "):
            drawn(batches_of(images(train_data_files=tmp_path / name, streaming=True, num_classes=3)), 9)


def test_labels_of_a_stream_are_numbers_or_refused(images, tmp_path):
    columns = {"image_column": "picture", "label_column": "kind", "streaming": True, "shuffle_buffer_size": 0}
    path = write_parquet(tmp_path / "truths.parquet", labels=[False, True] * (NUM_IMAGES // 2))
    batch = next(batches_of(images(train_data_files=path, num_classes=2, **columns)))
    assert batch["class_labels"].dtype == torch.int64 and batch["class_labels"].tolist() == [0, 1, 0, 1]
    path = write_parquet(tmp_path / "texts.parquet", labels=["cat", "dog", "bird"] * (NUM_IMAGES // 3))
    found = images(train_data_files=path, class_names=["cat", "dog"], **columns)
    with pytest.raises(InputError, match="has the label bird"):
        next(batches_of(found))


@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_a_process_that_loads_images_is_one_sentence(images, bad_shards, streaming, num_workers):
    flags = {"train_data_files": bad_shards / "*.tar", "num_classes": 3, "streaming": streaming}
    found = images(**flags, shuffle_buffer_size=0, verify_images=False)
    with pytest.raises(InputError, match=r"^image \d{4} of [^\n]* cannot be read as an image: [^\n]*$"):
        drawn(batches_of(found, num_workers=num_workers), 12)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_stream_that_fails_in_a_process_of_its_own_tells_every_process(images, shards, tmp_path, num_workers):
    (tmp_path / "a.tar").write_bytes((shards / "0000.tar").read_bytes()[:9000])
    files = [shards / "0000.tar", tmp_path / "a.tar"]
    damaged = images(train_data_files=files, streaming=True, num_classes=3, shuffle_buffer_size=0)
    for index in range(2):
        loader = prepare_data_loader(
            training_loader(damaged, 4, first_draw=0, num_workers=num_workers),
            num_processes=2,
            process_index=index,
            dispatch_batches=False,
        )
        with pytest.raises(InputError, match=r"^[^\n]*0000.tar, split train cannot be read: [^\n]*$"):
            drawn(raise_errors(loader), 9)


def test_no_source_or_flags_of_another(images, few_digits, tmp_path):
    with pytest.raises(InputError, match="^Pass one of --train_data_dir, --dataset_name, --train_data_files to say"):
        images()
    for name in ("label_column", "validation_split"):
        with pytest.raises(
            InputError, match=f"^--{name} is for --dataset_name and --train_data_files, not for --train_data_dir"
        ):
            images(train_data_dir=few_digits, **{name: "label"})
    with pytest.raises(InputError, match="nowhere cannot be read: "):
        images(dataset_name=tmp_path / "nowhere")


def test_what_a_stream_cannot_do(train, named, tmp_path):
    flags = {"train_data_dir": None, "dataset_name": named, "streaming": True, "output_dir": tmp_path / "output"}
    said = train("train_classifier", status=2, **flags).output
    assert "error: Of a stream no fraction can be held out: pass --validation_split or --validation_data_dir" in said
    said = train("train_unet", status=2, max_train_steps=None, **flags).output
    assert "error: The length of a stream is not known: pass --max_train_steps, or --images_per_epoch." in said


# --------------------------------------------------------------------------------------------------------- without labels


@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streamed"])
def test_images_without_labels_are_one_class(images, tmp_path, streaming):
    file = tmp_path / "pictures.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"picture": [picture(number) for number in range(NUM_IMAGES)]}), file)
    flags = {"train_data_files": file, "image_column": "picture", "streaming": streaming}
    found = images("optional", **flags)
    assert found.class_names == ["images"]
    seen = [(number_of(image), label) for image, label in unlabelled_batches(found)]
    assert sorted(seen) == [(number, 0) for number in range(NUM_IMAGES)]
    with pytest.raises(InputError, match="Pass --label_column to say which column to take, of picture"):
        images(**flags)


def unlabelled_batches(images):
    for batch in evaluation_loader(images, batch_size=5):
        yield from zip(batch["clean_images"], batch["class_labels"].tolist())


@pytest.mark.parametrize("low_res_size", [None, 8], ids=["from noise", "upsampling"])
def test_an_unconditional_unet_needs_no_labels(train, few_digits, tmp_path, low_res_size):
    train(
        "train_unet",
        train_data_dir=few_digits / "1",  # images alone, no subfolder
        output_dir=tmp_path,
        class_conditional=False,
        low_res_size=low_res_size,
        save_images_epochs=1,
        ddpm_num_inference_steps=2,
    )
    assert ADMUNet2DModel.from_pretrained(tmp_path, subfolder="unet").config.num_class_embeds is None
    with Image.open(tmp_path / "samples" / "step_0000002.png") as grid:
        rows = 1 if low_res_size else 4
        assert grid.height == pytest.approx(rows * 70, abs=50)


def test_a_conditional_unet_and_a_classifier_need_labels(train, few_digits, tmp_path):
    for name in ("train_unet", "train_classifier"):
        ended = train(name, status=2, train_data_dir=few_digits / "1", output_dir=tmp_path)
        assert ended.output.strip().splitlines()[-1].startswith(f"error: {few_digits / '1'} has no subfolders")
    empty = tmp_path / "empty"
    empty.mkdir()
    ended = train("train_unet", status=2, train_data_dir=empty, output_dir=tmp_path, class_conditional=False)
    assert f"error: {empty} holds no images." in ended.output


def test_every_command_that_reads_images_says_what_it_left_out(train, few_digits, tmp_path):
    data = Path(shutil.copytree(few_digits, tmp_path / "data"))
    (data / "1" / "0.txt").write_text("a caption")
    said = f"{data}: 36 images"
    for name in ("train_unet", "train_classifier"):
        ended = train(name, train_data_dir=data, output_dir=tmp_path / name, max_train_steps=1)
        assert said in ended.output and "left out: 1 .txt" in ended.output
    flags = ["--reference", data, "--output", tmp_path / "report", "--extractor", "tiny_extractor:Thumbnails"]
    output = run_here("evaluate", data, *flags).output
    assert said in output and "left out: 1 .txt" in output
