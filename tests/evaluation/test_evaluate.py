"""`diffusers-cg evaluate`, the sets of images that it reads, and extractors of a user's own."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image
from processes import run_here
from tiny_extractor import Thumbnails, mean_colors

from diffusers_cg.errors import InputError
from diffusers_cg.evaluation import (
    METRICS,
    Evaluation,
    FunctionExtractor,
    Metric,
    compare,
    evaluate,
    extract_features,
    feature_statistics,
    frechet_distance,
    inception_score,
    load_extractor,
    measure,
    open_images,
    precision_recall,
)


def pixels(count=30, size=8, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


SAMPLES, REFERENCE = pixels(30), pixels(40, seed=1) // 2 + 60


def save_folder(folder, images, suffix=".png"):
    for number, image in enumerate(images):
        path = folder / str(number % 3) / "deep" / f"{number:05d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(path)
    return folder


def save_npz(path, *arrays, **named):
    np.savez(path, *arrays, **named)
    return path


@pytest.fixture
def command(tmp_path):
    def command(samples, reference, *argv, status=0, extractor="tiny_extractor:Thumbnails"):
        flags = [samples, "--reference", reference, "--output", tmp_path / "report", *argv]
        result = run_here("evaluate", *flags, "--extractor", extractor)
        assert result.status == status, result.output
        assert "Traceback" not in result.output
        return result.output

    return command


@pytest.fixture
def files(tmp_path):
    save_npz(tmp_path / "samples.npz", SAMPLES, np.arange(30))
    save_npz(tmp_path / "reference.npz", REFERENCE)
    return tmp_path


# ------------------------------------------------------------------------------------------------------------- metrics


def test_metrics_are_those_of_the_features():
    evaluation = evaluate(SAMPLES, REFERENCE, Thumbnails(), batch_size=7)
    one, other = (Thumbnails()(images) for images in (SAMPLES, REFERENCE))
    precision, recall = precision_recall(other.pool, one.pool)
    expected = {
        "fid": frechet_distance(*feature_statistics(one.pool), *feature_statistics(other.pool)),
        "sfid": frechet_distance(*feature_statistics(one.spatial), *feature_statistics(other.spatial)),
        "inception_score": inception_score(one.logits),
        "precision": precision,
        "recall": recall,
    }
    assert evaluation.metrics == pytest.approx(expected, rel=1e-6)
    assert (evaluation.samples.num_images, evaluation.reference.num_images) == (30, 40)


def test_report(command, files):
    said = command(files / "samples.npz", files / "reference.npz", "--batch_size", 11)
    report = json.loads((files / "report" / "report.json").read_text())
    expected = evaluate(SAMPLES, REFERENCE, Thumbnails())
    assert report["metrics"] == pytest.approx(expected.metrics, rel=1e-6)
    assert (report["extractor"], report["extractor_hash"]) == ("thumbnails", "1")
    assert report["samples"]["shape"] == [8, 8, 3] and len(report["reference"]["content_hash"]) == 64
    markdown = (files / "report" / "report.md").read_text()
    assert markdown in said
    assert f"| Frechet distance | {expected.metrics['fid']:.4f} |" in markdown
    assert f"- Samples: {files / 'samples.npz'}, 30 images of 8x8 in color\n" in markdown
    assert "- Extractor: thumbnails, hash `1`" in markdown
    assert "- Warning: Of the samples there are 30 images: below 10000" in markdown
    assert "- Warning: Of the reference there are 40 images: below 10000" in markdown
    command(files / "reference.npz", files / "reference.npz")
    assert json.loads((files / "report" / "report.json").read_text())["metrics"]["fid"] == pytest.approx(0, abs=1e-6)


def test_features_of_the_reference_are_kept(command, files):
    counts = []
    for extractor in ("Thumbnails", "Thumbnails", "mean_colors"):
        before = Thumbnails.calls
        command(files / "samples.npz", files / "reference.npz", extractor=f"tiny_extractor:{extractor}")
        counts.append(Thumbnails.calls - before)
    assert counts == [1 + 40 + 30, 1 + 30, 0]
    cache = files / "reference_features"
    assert len(list(cache.iterdir())) == 2

    def again(damage):
        for file in cache.iterdir():
            damage(file)
        before = Thumbnails.calls
        command(files / "samples.npz", files / "reference.npz")
        return Thumbnails.calls - before

    assert again(lambda file: file.write_bytes(file.read_bytes()[:-40])) == 71
    assert again(lambda file: None) == 31
    save_npz(files / "reference.npz", REFERENCE[::-1].copy())
    assert again(lambda file: None) == 71


def test_statistics_of_a_reference(files):
    features = Thumbnails()(REFERENCE)
    (mu, sigma), (mu_s, sigma_s) = (feature_statistics(array) for array in (features.pool, features.spatial))
    path = save_npz(files / "statistics.npz", mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    expected = evaluate(SAMPLES, REFERENCE, Thumbnails()).metrics
    evaluation = evaluate(SAMPLES, path, Thumbnails())
    assert evaluation.metrics["precision"] is evaluation.metrics["recall"] is None
    for name in ("fid", "sfid", "inception_score"):
        assert evaluation.metrics[name] == pytest.approx(expected[name], rel=1e-6)
    assert "There are statistics alone of the reference: precision and recall need images." in evaluation.warnings
    without_spatial = evaluate(SAMPLES, save_npz(files / "pool.npz", mu=mu, sigma=sigma), Thumbnails())
    assert without_spatial.metrics["sfid"] is None
    assert (
        "There are no statistics of spatial features of the reference: there is no sFID." in without_spatial.warnings
    )

    # only Inception's are known to be those of the published files
    path = save_npz(files / "both.npz", REFERENCE, mu=mu + 1, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    assert evaluate(SAMPLES, path, Thumbnails()).metrics == pytest.approx(expected, rel=1e-6)
    inception = Thumbnails()
    inception.name = "inception"
    assert evaluate(SAMPLES, path, inception).metrics["sfid"] == pytest.approx(expected["sfid"], rel=1e-6)
    assert evaluate(SAMPLES, path, inception).metrics["fid"] != pytest.approx(expected["fid"], rel=1e-3)


def save_statistics(path, images, *kinds):
    features, names = Thumbnails()(images), {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}
    named = {}
    for kind in kinds:
        named |= dict(zip(names[kind], feature_statistics(getattr(features, kind))))
    return save_npz(path, **named)


def test_statistics_of_samples(command, files):
    """FID and sFID without images, and without an extractor where there are none on either side."""
    expected = evaluate(SAMPLES, REFERENCE, Thumbnails()).metrics
    samples = save_statistics(files / "samples_alone.npz", SAMPLES, "pool", "spatial")
    reference = save_statistics(files / "reference_alone.npz", REFERENCE, "pool", "spatial")
    for evaluation in (evaluate(samples, REFERENCE, Thumbnails()), evaluate(samples, reference)):
        for name in ("fid", "sfid"):
            assert evaluation.metrics[name] == pytest.approx(expected[name], rel=1e-6)
        for name in ("inception_score", "precision", "recall"):
            assert evaluation.metrics[name] is None
        assert "There are statistics alone of the samples: precision and recall need images." in evaluation.warnings
        assert "There are statistics alone of the samples: the Inception Score needs images." in evaluation.warnings
    assert evaluation.extractor is None and "- Extractor: unknown" in evaluation.to_markdown()
    assert any("are FID and sFID if Inception made both" in warning for warning in evaluation.warnings)

    said = command(samples, reference, extractor="inception")  # which is not made: there are no weights here
    report = json.loads((files / "report" / "report.json").read_text())
    assert report["metrics"]["fid"] == pytest.approx(expected["fid"], rel=1e-6)
    assert report["samples"] == {"source": str(samples), "num_images": None, "shape": None, "content_hash": None}
    assert f"- Samples: {samples}, statistics alone" in said
    pool = save_statistics(files / "pool_alone.npz", SAMPLES, "pool")
    assert evaluate(pool, reference).metrics["sfid"] is None
    assert "There are no statistics of spatial features of the samples: there is no sFID." in (
        evaluate(pool, reference).warnings
    )


def test_statistics_that_say_what_made_them(command, files):
    """Written beside a report, they take the images' place; those of another extractor or size are refused."""
    kept = files / "kept" / "statistics.npz"
    command(files / "samples.npz", files / "reference.npz", "--save_statistics", kept)
    expected = json.loads((files / "report" / "report.json").read_text())
    command(files / "samples.npz", kept, "--resolution", 8)
    report = json.loads((files / "report" / "report.json").read_text())
    for name in ("fid", "sfid", "inception_score"):
        assert report["metrics"][name] == pytest.approx(expected["metrics"][name], rel=1e-6)
    assert report["metrics"]["precision"] is None
    assert report["reference"] == {**expected["reference"], "source": str(kept)}
    assert any("Of the reference there are 40 images" in warning for warning in report["warnings"])
    with np.load(kept) as arrays:  # without pickles, and as others read statistics
        made_by = json.loads(str(arrays["made_by"]))
        assert arrays["mu"].shape == (6,) and arrays["sigma_s"].shape == (16, 16)
    assert (made_by["extractor"], made_by["extractor_hash"], made_by["num_images"]) == ("thumbnails", "1", 40)
    assert made_by["diffusers_cg"] and made_by["source"] == str(files / "reference.npz")
    assert os.listdir(kept.parent) == [kept.name]

    before = Thumbnails.calls
    for refused, said in (
        ({"extractor": "tiny_extractor:mean_colors"}, "measure both with one extractor"),
        ({"argv": ("--resolution", 4)}, "statistics of images of 8x8, not of 4x4"),
        ({"samples": kept, "argv": ("--resolution", 8)}, "--resolution is for images"),
    ):
        refused = {"samples": files / "samples.npz", "extractor": "tiny_extractor:Thumbnails", "argv": (), **refused}
        said_now = command(refused["samples"], kept, *refused["argv"], extractor=refused["extractor"], status=2)
        assert said in said_now
    assert Thumbnails.calls == before
    for text in ("[]", "{", json.dumps({**made_by, "shape": 3})):
        bad = save_npz(files / "bad.npz", mu=np.zeros(6), sigma=np.eye(6), made_by=text)
        assert "does not say what made the statistics" in command(files / "samples.npz", bad, status=2)
    unknown = save_statistics(files / "unknown.npz", REFERENCE, "pool")
    said = command(files / "samples.npz", unknown, "--save_statistics", kept, status=2)
    assert "does not say what made its statistics" in said


@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_every_kind_are_resized_alike(files, channels):
    images = pixels(5, size=9, channels=channels)
    folder = save_folder(files / "folder", images[[0, 2, 4, 1, 3]])  # which is read folder by folder
    sets = [images, save_npz(files / "images.npz", images, mu=np.zeros(3), sigma=np.eye(3)), folder]
    opened = [open_images(source, resolution=6) for source in sets]
    arrays = [np.concatenate(list(each.batches(2))) for each in opened]
    assert {each.shape for each in opened} == {(5, 6, 6, channels)}
    assert not np.array_equal(arrays[0], images[:, :6, :6])
    for array in arrays[1:]:
        np.testing.assert_array_equal(array, arrays[0])
    assert not opened[1].statistics  # which are those of the images as they are stored
    assert open_images(sets[1], resolution=9).statistics


def test_each_side_has_its_split_and_its_column(command, files):
    datasets = pytest.importorskip("datasets")
    for name, column, split, images in (("a", "img", "one", SAMPLES), ("b", "picture", "two", REFERENCE)):
        rows = [{column: Image.fromarray(image)} for image in images]
        features = datasets.Features({column: datasets.Image(), "other": datasets.Image()})
        rows = datasets.Dataset.from_list([row | {"other": None} for row in rows], features=features)
        (files / name).mkdir()
        rows.to_parquet(files / name / f"{split}-00000-of-00001.parquet")
    own = ["--samples_split", "train", "--samples_image_column", "img", "--reference_image_column", "picture"]
    command(files / "a", files / "b", *own, "--split", "train")
    report = json.loads((files / "report" / "report.json").read_text())
    assert report["metrics"] == pytest.approx(evaluate(SAMPLES, REFERENCE, Thumbnails()).metrics, rel=1e-6)
    command(files / "a", files / "reference.npz", "--image_column", "img")
    said = command(files / "a", files / "reference.npz", *own, status=2)
    assert f"--reference_image_column is for datasets, and {files / 'reference.npz'} is none" in said


def test_a_reference_measured_once_serves_many_samples(files):
    reference = measure(REFERENCE, Thumbnails())
    before = Thumbnails.calls
    for samples in (SAMPLES, SAMPLES[:20], files / "samples.npz"):
        expected = evaluate(samples, REFERENCE, Thumbnails())
        before = Thumbnails.calls
        evaluation = evaluate(samples, reference, Thumbnails())
        assert Thumbnails.calls - before == evaluation.samples.num_images + 1
        assert evaluation == expected
    assert compare(measure(SAMPLES, Thumbnails()), reference) == evaluate(SAMPLES, reference, Thumbnails())
    with pytest.raises(ValueError, match="made with mean_colors .* and the other with thumbnails .hash 1.: measure"):
        evaluate(SAMPLES, reference, mean_colors)
    with pytest.raises(ValueError, match="measure both with one extractor"):
        compare(measure(SAMPLES, mean_colors), reference)


@pytest.mark.parametrize("kind", ["array", "npz", "folder"])
def test_cache_of_every_kind_of_reference(tmp_path, kind):
    save = {
        "array": lambda: REFERENCE,
        "npz": lambda: save_npz(tmp_path / "reference.npz", REFERENCE),
        "folder": lambda: save_folder(tmp_path / "folder", REFERENCE),
    }
    reference, counts, evaluations = save[kind](), [], []
    for _ in range(2):
        before = Thumbnails.calls
        evaluations.append(evaluate(SAMPLES, reference, Thumbnails(), cache_dir=tmp_path / "cache"))
        counts.append(Thumbnails.calls - before)
    assert counts == [1 + 40 + 30, 1 + 30]
    assert evaluations[0] == evaluations[1]


def test_a_plain_function_as_extractor(tmp_path):
    evaluation = evaluate(SAMPLES, REFERENCE, mean_colors)
    assert evaluation.metrics == evaluate(SAMPLES, REFERENCE, load_extractor("tiny_extractor:mean_colors")).metrics
    assert (evaluation.extractor, evaluation.extractor_hash) == ("mean_colors", None)
    assert "- Extractor: mean_colors, no hash" in evaluation.to_markdown()
    with pytest.raises(ValueError, match="mean_colors cannot be kept in .* states no hash to find them by"):
        evaluate(SAMPLES, REFERENCE, mean_colors, cache_dir=tmp_path)
    named = FunctionExtractor(mean_colors, "colors", hash="7")
    assert evaluate(SAMPLES, REFERENCE, named, cache_dir=tmp_path).extractor_hash == "7"
    assert len(list(tmp_path.iterdir())) == 1


def test_names_of_metrics_are_inceptions_only_for_inception():
    inception = Thumbnails()
    inception.name = "inception"
    markdown = evaluate(SAMPLES, REFERENCE, inception).to_markdown()
    assert all(f"| {name} | " in markdown for name in ("FID", "sFID", "Inception Score"))
    markdown = evaluate(SAMPLES, REFERENCE, Thumbnails()).to_markdown()
    assert not any(f"| {name} | " in markdown for name in ("FID", "sFID", "Inception Score"))


def test_a_metric_of_a_user(tmp_path):
    """A function and a row: it stands in reports beside the others, or alone."""

    def shift(samples, reference):
        return np.linalg.norm(samples.mean(axis=0) - reference.mean(axis=0))

    mine = Metric("shift", "Shift of means", shift, needs="pool", better="lower")
    evaluation = evaluate(SAMPLES, REFERENCE, Thumbnails(), metrics=[*METRICS, mine])
    one, other = (Thumbnails()(images).pool.mean(axis=0) for images in (SAMPLES, REFERENCE))
    expected = evaluate(SAMPLES, REFERENCE, Thumbnails()).metrics | {"shift": np.linalg.norm(one - other)}
    assert evaluation.metrics == pytest.approx(expected, rel=1e-6)

    evaluation.save(tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert list(report) == ["metrics", "samples", "reference", "extractor", "extractor_hash", "warnings"]
    assert list(report["metrics"]) == ["fid", "sfid", "inception_score", "precision", "recall", "shift"]
    assert f"| Shift of means | {expected['shift']:.4f} |" in (tmp_path / "report.md").read_text()
    loaded = Evaluation.load(tmp_path)
    assert loaded == evaluation
    assert f"| shift | {expected['shift']:.4f} |" in loaded.to_markdown()  # the file says no more

    sets = [measure(images, Thumbnails()) for images in (SAMPLES, REFERENCE)]
    assert compare(*sets, metrics=[mine]).metrics == {"shift": evaluation.metrics["shift"]}
    statistics = save_statistics(tmp_path / "statistics.npz", REFERENCE, "pool")
    alone = evaluate(SAMPLES, statistics, Thumbnails(), metrics=[mine])
    assert alone.metrics == {"shift": None}
    assert "There are statistics alone of the reference: Shift of means needs images." in alone.warnings
    of_logits = Metric("share", "Share", lambda logits: logits.mean(), "logits", "higher", of_samples_alone=True)
    without = evaluate(SAMPLES, REFERENCE, mean_colors, metrics=[of_logits])
    assert without.metrics == {"share": None}
    assert "mean_colors gives no logits: there is no Share." in without.warnings


def test_rows_of_one_function_share_its_call():
    calls = []

    def both(samples, reference):
        calls.append((samples.shape, reference.shape))
        return {"one": 1.0, "other": 2.0}

    rows = [Metric(key, key, both, needs="spatial", better="higher") for key in ("one", "other")]
    assert evaluate(SAMPLES, REFERENCE, Thumbnails(), metrics=rows).metrics == {"one": 1.0, "other": 2.0}
    assert calls == [((30, 16), (40, 16))]


def test_better_says_where_good_samples_lie():
    """More images of the reference's kind score better than black ones, by every metric."""
    good, bad = pixels(40, seed=2) // 2 + 60, np.zeros_like(REFERENCE)
    good, bad = (evaluate(samples, REFERENCE, Thumbnails()).metrics for samples in (good, bad))
    for metric in METRICS:
        difference = good[metric.key] - bad[metric.key]
        assert difference > 0 if metric.better == "higher" else difference < 0, metric.key


def test_an_extractor_of_pool_features_alone():
    evaluation = evaluate(SAMPLES, REFERENCE, load_extractor("tiny_extractor:mean_colors"))
    assert evaluation.metrics["sfid"] is evaluation.metrics["inception_score"] is None
    assert evaluation.metrics["fid"] > 0 and "| Frechet distance, spatial | - |" in evaluation.to_markdown()
    assert "tiny_extractor:mean_colors gives no logits: there is no Inception Score." in evaluation.warnings
    assert len(evaluation.extractor_hash) == 64


def test_warnings_of_numbers_that_are_not_comparable(files):
    save_folder(files / "jpeg", pixels(5, size=16), ".jpg")
    warnings = evaluate(files / "jpeg", REFERENCE, Thumbnails()).warnings
    assert any(warning.startswith("Files of the samples are compressed with loss") for warning in warnings)
    assert any("The samples are 16x16 in color and the reference 8x8 in color" in warning for warning in warnings)
    assert "The features are those of thumbnails: published numbers are of Inception's." in warnings


def test_features_do_not_depend_on_the_batch_size():
    one, other = (extract_features(open_images(SAMPLES), Thumbnails(), size) for size in (4, 100))
    for name, array in one.arrays().items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, other.arrays()[name])


# ----------------------------------------------------------------------------------------------------------- bad input


def truncated(path):
    save_npz(path, SAMPLES)
    path.write_bytes(path.read_bytes()[:-100])


def damaged(path):
    save_npz(path, SAMPLES)
    data = bytearray(path.read_bytes())
    data[2000] ^= 255  # the checksum tells
    path.write_bytes(data)


def mixed_sizes(path):
    save_folder(path, pixels(3))
    save_folder(path / "z", pixels(1, size=4))


def text_among_images(path):
    save_folder(path, pixels(3))
    (path / "thesis.tex").write_text("precious")


def broken_image(path):
    save_folder(path, pixels(4))
    file = next(path.rglob("*.png"))
    file.write_bytes(file.read_bytes()[:-30])


BAD_SETS = {
    "There is no file or folder {path}: pass an .npz or a folder of images.": lambda path: None,
    "{path} holds no images.": lambda path: path.mkdir(),
    "{path} is no .npz, or is truncated or damaged (": truncated,
    "{path} is no .npz, or is truncated or damaged (Bad CRC-32": damaged,
    "{path} has no array arr_0 of images, only images.": lambda path: save_npz(path, images=SAMPLES),
    "arr_0 of {path} is of dtype float64: images are uint8": lambda path: save_npz(path, SAMPLES * np.nan),
    "arr_0 of {path} has the shape (30, 3, 8, 8): images must be (N, H, W, C) with 1 or 3 channels. Move the": (
        lambda path: save_npz(path, np.ascontiguousarray(SAMPLES.transpose(0, 3, 1, 2)))
    ),
    "arr_0 of {path} has the shape (30, 8, 8): images": lambda path: save_npz(path, SAMPLES[..., 0]),
    "arr_0 of {path} is in Fortran order": lambda path: save_npz(path, np.asfortranarray(SAMPLES)),
    "{path} holds 1 image: metrics need at least 4": lambda path: save_npz(path, SAMPLES[:1]),
    "{path} holds images of different sizes: {path}/0/deep/00000.png is 8x8 and {path}/z/0/deep/": mixed_sizes,
    "{path}/thesis.tex is not an image": text_among_images,
    "cannot be read as an image": broken_image,
}


@pytest.mark.parametrize(
    ("images", "error", "said"),
    [
        (np.full((5, 8, 8, 3), np.nan), ValueError, "The array is of dtype float64: images are uint8, in 0..255"),
        (SAMPLES.astype(np.int64), ValueError, "The array is of dtype int64: images are uint8, in 0..255"),
        (
            SAMPLES.transpose(0, 3, 1, 2),
            ValueError,
            "(30, 3, 8, 8): images must be (N, H, W, C) with 1 or 3 channels.",
        ),
        (SAMPLES[0], ValueError, "The array has the shape (8, 8, 3): images must be (N, H, W, C)"),
        (SAMPLES[:1], ValueError, "array holds 1 image: metrics need at least 4, and thousands to mean something."),
        (list(SAMPLES), InputError, "must be an array, a path or a dataset, got list: pass a numpy array"),
    ],
)
def test_bad_arrays(images, error, said):
    for sets in ((images, REFERENCE), (SAMPLES, images)):
        with pytest.raises(error, match=re.escape(said)):
            evaluate(*sets, Thumbnails())


def test_bad_extractors_from_python():
    with pytest.raises(InputError, match="`extractor` must be a function of images or a FeatureExtractor, got 3"):
        evaluate(SAMPLES, REFERENCE, 3)
    with pytest.raises(ValueError, match="array holds images: pass an extractor to measure them with"):
        evaluate(SAMPLES, REFERENCE)
    with pytest.raises(ValueError, match="`batch_size` must be at least 1, got 0."):
        evaluate(SAMPLES, REFERENCE, Thumbnails(), batch_size=0)


@pytest.mark.parametrize("role", ["samples", "reference"])
@pytest.mark.parametrize("said", BAD_SETS)
def test_bad_sets(command, files, said, role):
    bad = files / "bad.npz"
    BAD_SETS[said](bad)
    sets = (bad, files / "reference.npz") if role == "samples" else (files / "samples.npz", bad)
    line = command(*sets, status=2).strip().splitlines()[-1]
    assert line.startswith("error: ") and line.endswith(".") and said.format(path=bad) in line
    assert not (files / "report").exists()


@pytest.mark.parametrize(
    ("extractor", "said"),
    [
        ("nan", "The extractor tiny_extractor:nan returned `pool` with values that are not finite."),
        ("transposed", "returned `pool` of shape (3, 1) for 1 images: it must be (1, D)."),
        ("not_features", "The extractor tiny_extractor:not_features must return Features, got ndarray."),
        ("missing", "cannot be imported: tiny_extractor has no missing."),
        ("NUMBER", "The extractor tiny_extractor:NUMBER is a int, which cannot be called."),
    ],
)
def test_bad_extractors(command, files, extractor, said):
    extractor = f"tiny_extractor:{extractor}"
    assert said in command(files / "samples.npz", files / "reference.npz", extractor=extractor, status=2)
    assert not (files / "report").exists()


@pytest.mark.parametrize(
    ("argv", "extractor", "said"),
    [
        ([], "no_such_module:features", "there is no module no_such_module."),
        ([], "thumbnails", "`extractor` must be inception or module:function, got 'thumbnails'."),
        (["--inception_weights", "x"], "tiny_extractor:nan", "--inception_weights is for the extractor inception"),
        (["--split", "train"], "tiny_extractor:nan", "--split is for datasets"),
        (["--batch_size", 0], "tiny_extractor:nan", "--batch_size: must be greater than 0, got 0"),
    ],
)
def test_bad_flags(command, files, argv, extractor, said):
    assert said in command(files / "samples.npz", files / "reference.npz", *argv, extractor=extractor, status=2)


@pytest.mark.parametrize(
    ("mean", "covariance", "said"),
    [
        (np.zeros(5), np.eye(5), "is of 5 features, but the extractor thumbnails makes 6"),
        (np.zeros(6), np.eye(5), "must have the shapes (D,) and (D, D), got (6,) and (5, 5)."),
        (np.full(6, np.nan), np.eye(6), "hold values that are not finite."),
    ],
)
def test_bad_statistics(command, files, mean, covariance, said):
    bad = save_npz(files / "bad.npz", mu=mean, sigma=covariance)
    assert said in command(files / "samples.npz", bad, status=2)


def test_only_a_report_is_replaced(command, files):
    (files / "report").mkdir()
    (files / "report" / "thesis.tex").write_text("precious")
    said = command(files / "samples.npz", files / "reference.npz", status=2)
    assert "This folder has no report.json and would be replaced whole" in said
    assert os.listdir(files / "report") == ["thesis.tex"]
