"""One rule for labels: by known class names where there are any, else names in natural order, whatever they come from."""

import datasets
import numpy as np
import pytest
from PIL import Image

from diffusers_cg.data import open_folder, open_images
from diffusers_cg.data.classes import labels_of_names, natural_order
from diffusers_cg.errors import InputError


def save(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4) + np.uint8(value)).save(path, format="PNG")


def folder_of(root, names):
    """An image of the value n in the folder of the n-th name."""
    for value, name in enumerate(names):
        save(root / name / "image.png", value)
    return root


def labels_by_value(images):
    """The label of every image, in the order of their values."""
    labels = {int(np.asarray(stored.load(1))[0, 0]): stored.label for stored in images}
    return [labels[value] for value in sorted(labels)]


def rows(labels, feature):
    content = {"image": [Image.new("L", (4, 4), value) for value in range(len(labels))], "label": labels}
    return datasets.Dataset.from_dict(content, datasets.Features({"image": datasets.Image(), "label": feature}))


# ------------------------------------------------------------------------------------------------------------- the rule


def test_numbers_count_as_numbers():
    assert natural_order(["10", "2", "b", "class_10", "class_2", "a10", "a9", "B", "01", "1"]) == [
        *("01", "1", "2", "10", "B", "a9", "a10", "b", "class_2", "class_10")
    ]


@pytest.mark.parametrize(
    ("names", "known", "labels"),
    [
        (["cat", "dog"], ["dog", "cat"], [1, 0]),
        (["dog"], ["cat", "dog", "bird"], [1]),
        (["03", "11"], list(map(str, range(12))), [3, 11]),
        (["3", "11"], [f"{label:02d}" for label in range(12)], [3, 11]),
        (["2", "1"], ["1", "2"], [1, 0]),
        (["01", "00"], ["cat", "dog"], [1, 0]),  # as `sample` writes them
        (["cafe\u0301"], ["caf\xe9", "tea"], [0]),
    ],
)
def test_names_are_found_among_known_ones(names, known, labels):
    assert labels_of_names("here", names, known).tolist() == labels


@pytest.mark.parametrize(
    ("names", "known", "said"),
    [
        (["cat", "dgo"], ["cat", "dog"], r"here has classes that are none of the 2 .*dgo \(the nearest is dog\)"),
        (["Cat"], ["cat", "dog"], r"Cat \(the nearest is cat\)"),
        (["0", "2"], ["cat", "dog"], "none of the 2 known ones"),
        (["0", "1"], ["1", "2"], r"0 \(the nearest is "),
        (["3", "03"], ["3", "4"], "several names for the class 3: 3, 03"),
    ],
)
def test_other_names_are_refused(names, known, said):
    with pytest.raises(InputError, match=said):
        labels_of_names("here", names, known)


# ----------------------------------------------------------------------------------------------------------- the sources


def test_a_folder_of_more_than_ten_numbers(tmp_path):
    names = [str(label) for label in range(12)]
    images = open_folder(folder_of(tmp_path / "plain", names), "required")
    assert images.class_names == names and labels_by_value(images) == list(range(12))
    padded = open_folder(folder_of(tmp_path / "padded", [name.zfill(2) for name in names]), "required")
    assert labels_by_value(padded) == list(range(12))
    before = sorted(names)  # as models of before have them
    known = open_folder(tmp_path / "padded", "required", known_classes=before)
    assert known.class_names == before and [before[label] for label in labels_by_value(known)] == names
    assert labels_by_value(images.with_classes(before)) == labels_by_value(known)


def test_labels_of_a_model_that_names_no_classes(tmp_path):
    some = folder_of(tmp_path / "some", ["3", "07"])
    assert labels_by_value(open_folder(some, "required", num_classes=8)) == [3, 7]
    with pytest.raises(InputError, match="has 2 classes, but the model knows 5 and not their names"):
        open_folder(some, "required", num_classes=5)


def test_classes_in_the_names_of_files(tmp_path):
    """The layout of the paper's own code."""
    for value, name in enumerate(["dog_0001.png", "cat_0001.png", "deep/dog_2_b.PNG", "cat_3"]):
        save(tmp_path / name, value)
    save(tmp_path / "alone.png")
    images = open_folder(tmp_path, "required", class_from_file_name=True)
    assert images.class_names == ["cat", "dog"] and labels_by_value(images) == [1, 0, 1, 0]
    assert "1 without a class before a _ in their names" in images.summary()
    known = open_images(tmp_path, "required", class_from_file_name=True, known_classes=["dog", "cat", "bird"])
    assert labels_by_value(known) == [0, 1, 0, 1]
    with pytest.raises(InputError, match="has one class only, deep"):
        open_folder(tmp_path, "required")


@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize(
    ("labels", "feature", "options", "class_names", "expected"),
    [
        (["b", "a10", "a9"], datasets.Value("string"), {"class_names": ["a9", "a10", "b"]}, None, [2, 1, 0]),
        (["b", "a"], datasets.Value("large_string"), {"class_names": ["b", "a", "c"]}, None, [0, 1]),
        (["b", "a"], datasets.Value("string"), {"known_classes": ["c", "b", "a"]}, ["c", "b", "a"], [1, 2]),
        ([True, False], datasets.Value("bool"), {}, ["False", "True"], [1, 0]),
        ([True, False], datasets.Value("bool"), {"class_names": ["ill", "well"]}, None, [1, 0]),
        ([0, 1], datasets.ClassLabel(names=["cat", "dog"]), {"class_names": ["dog", "cat"]}, None, [1, 0]),
        ([0, 1], datasets.ClassLabel(names=["n01", "n02"]), {"class_names": ["dog", "cat"]}, None, [0, 1]),
        ([0, 1], datasets.ClassLabel(names=["cat", "dog"]), {"known_classes": ["dog", "ox", "cat"]}, None, [2, 0]),
        ([0, 2], datasets.Value("int8"), {"known_classes": ["dog", "ox", "cat"]}, None, [0, 2]),
    ],
)
def test_columns_of_labels(labels, feature, options, class_names, expected, streaming):
    dataset = rows(labels, feature)
    images = open_images(dataset.to_iterable_dataset() if streaming else dataset, "required", **options)
    assert images.class_names == (class_names or options.get("known_classes") or options["class_names"])
    assert [stored.label for stored in images] == expected


def test_texts_in_natural_order_and_streams_that_need_to_be_told():
    dataset = rows(["class_10", "class_2", "class_2"], datasets.Value("string"))
    images = open_images(dataset, "required")
    assert images.class_names == ["class_2", "class_10"] and images.labels.tolist() == [1, 0, 0]
    with pytest.raises(InputError, match="of the stream holds texts: pass --class_names with every text"):
        open_images(dataset.to_iterable_dataset(), "required")
    with pytest.raises(InputError, match=r"class_10 \(the nearest is"):
        open_images(dataset, "required", class_names=["class_1", "class_2"])
    with pytest.raises(InputError, match="1 missing labels"):
        open_images(rows(["a", None, "b"], datasets.Value("string")), "required")
    with pytest.raises(InputError, match="none of the 2 known ones"):
        open_images(rows([0, 1], datasets.ClassLabel(names=["a", "b"])), "required", known_classes=["a", "c"])


@pytest.mark.parametrize("streaming", [False, True], ids=["at once", "streamed"])
@pytest.mark.parametrize(
    ("labels", "feature"),
    [
        ([1, 2, 2], datasets.Value("int64")),
        ([-1, 0, 1], datasets.ClassLabel(names=["a", "b"])),
        ([0.5, 1.5, 2], datasets.Value("float32")),
        (["a", "a", None], datasets.Value("string")),
        ([None, None, None], datasets.Value("int64")),
    ],
)
def test_labels_that_are_not_needed_are_no_reason_to_refuse_images(labels, feature, streaming):
    content = {"image": [Image.new("L", (4, 4), value) for value in range(3)], "label": labels}
    plain = datasets.Dataset.from_dict(content, datasets.Features({"image": datasets.Image(), "label": feature}))
    dataset = plain.to_iterable_dataset() if streaming else plain
    images = open_images(dataset, "optional")
    assert all(stored.label in range(len(images.class_names)) for stored in images)
    assert len(list(open_images(dataset))) == len(list(images)) == 3
    two = plain.add_column("fine", [0, 1, 0]).cast_column("fine", datasets.ClassLabel(names=["x", "y"]))
    two = two.add_column("coarse", [0, 1, 0]).cast_column("coarse", datasets.ClassLabel(names=["x", "y"]))
    two = two.remove_columns("label")
    assert len(list(open_images(two.to_iterable_dataset() if streaming else two, "optional"))) == 3
