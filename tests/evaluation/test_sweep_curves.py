"""Curves of whatever draws images: here numbers, no network."""

import json
import os

import numpy as np
import pytest
from PIL import Image
from tiny_extractor import Thumbnails, mean_colors

from diffusers_cg.errors import InputError
from diffusers_cg.evaluation import METRICS, Metric, evaluate, measure
from diffusers_cg.evaluation.sweep import Cell, sweep_to_folder


REFERENCE = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
CELLS = [Cell(algorithm, 2, scale) for algorithm in ("ddpm", "ddim") for scale in (0.0, 0.5, 4.0)]


def images_of(cell):
    """The same noise at every scale, of less and less contrast."""
    noise = np.random.default_rng(1).normal(size=(6, 8, 8, 3)) * 60 / (1 + cell.scale)
    return (128 + noise + 5 * (cell.sampler == "ddim")).clip(0, 255).astype(np.uint8)


@pytest.fixture
def sweep(tmp_path):
    """Runs a sweep; `drawn` lists the cells that were asked for."""
    drawn = []

    def draw(cell, directory):
        drawn.append((cell, directory))
        return images_of(cell), images_of(cell), {}

    def sweep(cells=CELLS, num_samples=6, reference=REFERENCE, extractor=None, **changed):
        return sweep_to_folder(
            tmp_path / "out", draw, cells, num_samples, reference, extractor or Thumbnails(), **changed
        )

    sweep.drawn = drawn
    return sweep


def test_points_are_the_metrics_of_what_was_drawn(sweep, tmp_path):
    points = sweep()
    out = tmp_path / "out"
    assert [point.cell for point in points] == CELLS
    assert sweep.drawn == [(cell, out / cell.folder) for cell in CELLS]
    for point in points:
        assert point.metrics == evaluate(images_of(point.cell), REFERENCE, Thumbnails()).metrics
    assert str(CELLS[4].folder) == "ddim_2/scale_0.5"
    assert sorted(os.listdir(out)) == [
        *("by_scale.png", "ddim_2", "ddim_2.png", "ddpm_2", "ddpm_2.png", "sweep.json", "table.md", "trade_off.png")
    ]
    rows = json.loads((out / "sweep.json").read_text())
    assert rows[4] == {
        "sampler": {"name": "ddim", "num_inference_steps": 2},
        "scale": 0.5,
        "evaluations": {},
        "metrics": points[4].metrics,
    }
    assert "| DDIM 2 | 0.5 |" in (out / "table.md").read_text()
    assert Image.open(out / "ddim_2.png").height > 3 * 64


def test_reports_are_kept_as_long_as_they_are_of_the_same(sweep):
    reference = measure(REFERENCE, Thumbnails())

    def cost(**changed):
        before = Thumbnails.calls
        sweep(CELLS[:2], **{"reference": reference, "metrics": METRICS[:1], **changed})
        return Thumbnails.calls - before

    tried = 1
    assert cost() == 2 * (tried + 6)
    assert cost() == 0
    assert cost(reference=measure(REFERENCE[:10], Thumbnails())) == 2 * (tried + 6)
    assert cost() == 2 * (tried + 6)
    assert cost(extractor=mean_colors, reference=REFERENCE) == 0
    assert cost() == 2 * (tried + 6)


def test_a_metric_of_a_user_stands_in_table_and_plots(sweep, tmp_path):
    contrast = Metric(
        "contrast", "Contrast", lambda samples: samples.std(), needs="pool", better="higher", of_samples_alone=True
    )
    sweep(metrics=METRICS[-2:])
    width = Image.open(tmp_path / "out" / "by_scale.png").width
    points = sweep(metrics=[*METRICS[-2:], contrast])  # measured anew: the reports of before lack it
    expected = [Thumbnails()(images_of(cell)).pool.std() for cell in CELLS]
    assert [point.metrics["contrast"] for point in points] == pytest.approx(expected)
    header, _, *rows = (tmp_path / "out" / "table.md").read_text().splitlines()
    assert header.endswith("| Recall | Contrast |")
    assert [row.split("|")[-2].strip() for row in rows] == [f"{value:.3f}" for value in expected]
    report = json.loads((tmp_path / "out" / CELLS[0].folder / "report.json").read_text())
    assert report["metrics"]["contrast"] == pytest.approx(expected[0])
    assert json.loads((tmp_path / "out" / "sweep.json").read_text())[0]["metrics"] == report["metrics"]
    assert Image.open(tmp_path / "out" / "by_scale.png").width > width
    sweep(metrics=[contrast])
    assert (tmp_path / "out" / "table.md").read_text().startswith("| sampler | scale | Contrast |\n")


def test_another_process_only_draws(sweep, tmp_path):
    before = Thumbnails.calls
    assert sweep(is_main_process=False) == []
    assert len(sweep.drawn) == len(CELLS) and Thumbnails.calls == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"cells": []}, "`cells` must be at least one, each once"),
        ({"cells": [CELLS[0], CELLS[0]]}, "`cells` must be at least one, each once"),
        ({"num_samples": 3}, "`num_samples` must be at least 4 for metrics, got 3"),
        ({"extractor": 3}, "`extractor` must be a function of images or a FeatureExtractor, got 3"),
        ({"reference": REFERENCE[:2]}, "array holds 2 images: metrics need at least 4"),
    ],
)
def test_refused_before_anything_is_drawn(sweep, tmp_path, changed, said):
    with pytest.raises(InputError, match=said):
        sweep(**changed)
    assert not sweep.drawn and not (tmp_path / "out").exists()
