"""torch-fidelity's own InceptionV3 with random weights, in processes of their own.

torch-fidelity imports torchvision, of which InceptionV3 uses nothing, and which cannot be installed beside every torch.
The processes put an empty stand-in in its place, so that all that runs is torch-fidelity's and ours.
"""

import importlib.util
import json
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from processes import run_function

from diffusers_cg.evaluation import InceptionFeatures
from diffusers_cg_cli import main


pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("torch_fidelity") is None,
    reason="torch-fidelity is not installed (beside CPU torch: pip install --no-deps torch-fidelity)",
)

STEM = ["Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"]
UNTIL_6D = [*STEM, "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"]
AFTER_6D = ["Mixed_6d", "Mixed_6e", "Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"]


def stand_in_for_torchvision():
    """The names that torch-fidelity's modules mention when they are imported."""
    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional"):
        module = sys.modules[name] = types.ModuleType(name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    for name in ("CIFAR10", "STL10", "CIFAR100"):
        setattr(sys.modules["torchvision.datasets"], name, type(name, (), {}))


def pixels(count, height=20, width=24, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, channels), dtype=np.uint8)


def make_weights(path):
    """Random weights that keep the features' magnitude from layer to layer."""
    stand_in_for_torchvision()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    torch.manual_seed(0)
    # the shapes come from the class itself: it asks for its weights when it is made
    FeatureExtractorInceptionV3.load_state_dict = lambda self, state_dict: None
    empty = path.with_suffix(".empty")
    torch.save({}, empty)
    network = FeatureExtractorInceptionV3("random", ["2048"], str(empty))
    for name, parameter in network.named_parameters():
        if name.endswith("conv.weight"):
            torch.nn.init.kaiming_normal_(parameter)
    torch.save(network.state_dict(), path)


def check_taps(path):
    stand_in_for_torchvision()
    extractor = InceptionFeatures(path)
    images = pixels(3)
    features = extractor(images)
    shapes = {name: (array.shape, array.dtype) for name, array in features.arrays().items()}
    assert shapes == {
        "pool": ((3, 2048), np.float32),
        "spatial": ((3, 2023), np.float32),
        "logits": ((3, 1008), np.float32),
    }, shapes
    assert all(array.std() > 0.01 for array in features.arrays().values())

    # the same, layer by layer
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x as resize

    network = extractor.network
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    x = (resize(x, size=(299, 299), align_corners=False) - 128) / 128
    with torch.no_grad():
        for name in UNTIL_6D:
            x = getattr(network, name)(x)
        branch = network.Mixed_6d.branch1x1
        tapped = F.relu(branch.bn(branch.conv(x)))
        for name in AFTER_6D:
            x = getattr(network, name)(x)
        pool = x.flatten(1)
        logits = pool @ network.fc.weight.T
    spatial = features.spatial.reshape(3, 17, 17, 7)
    for row, column, channel in ((0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (16, 3, 6)):
        np.testing.assert_allclose(
            spatial[:, row, column, channel], tapped[:, channel, row, column].numpy(), rtol=1e-4, atol=1e-5
        )
    assert (spatial >= 0).all() and (spatial == 0).any()
    np.testing.assert_allclose(features.pool, pool.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features.logits, logits.numpy(), rtol=1e-4, atol=1e-5)

    # whatever else is in the batch, and however it is laid out in memory
    for name, array in extractor(images[::-1][:2]).arrays().items():
        np.testing.assert_allclose(array, getattr(features, name)[[2, 1]], rtol=1e-4, atol=1e-5)
    gray = pixels(2, channels=1)
    np.testing.assert_allclose(extractor(gray).pool, extractor(np.repeat(gray, 3, axis=3)).pool, rtol=1e-5)

    weights = torch.load(path, weights_only=True)
    weights["fc.weight"][0, 0] += 1
    torch.save(weights, path.with_name("changed.pth"))
    assert InceptionFeatures(path).hash == extractor.hash != InceptionFeatures(path.with_name("changed.pth")).hash


def run_evaluate(argv):
    stand_in_for_torchvision()
    main(["evaluate", *argv])


def evaluate_beside_a_foreign_torchvision(argv, folder):
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator nms does not exist')")
    sys.path.insert(0, str(folder))
    main(["evaluate", *argv])


def evaluate_without_torchvision(argv):
    sys.modules["torchvision"] = None
    main(["evaluate", *argv])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    ended = run_function(make_weights, path, log=path.with_name("log"))
    assert ended.status == 0, ended.output
    return path


@pytest.fixture
def argv(tmp_path):
    np.savez(tmp_path / "samples.npz", pixels(4))
    np.savez(tmp_path / "reference.npz", pixels(5, seed=1))
    return [*map(str, (tmp_path / "samples.npz", "--reference", tmp_path / "reference.npz"))] + [
        *map(str, ("--output", tmp_path / "report", "--device", "cpu"))
    ]


def test_shapes_and_layers(weights, tmp_path):
    ended = run_function(check_taps, weights, log=tmp_path / "log")
    assert ended.status == 0, ended.output


def test_command(weights, argv, tmp_path):
    ended = run_function(run_evaluate, [*argv, "--inception_weights", str(weights)], log=tmp_path / "log")
    assert ended.status == 0, ended.output
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["extractor"] == "inception" and len(report["extractor_hash"]) == 64
    assert all(np.isfinite(value) for value in report["metrics"].values()), report
    assert report["metrics"]["fid"] > 0 and report["metrics"]["sfid"] > 0


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("exploited",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"fc.weight": torch.zeros(3)}, "does not hold the weights of torch-fidelity's InceptionV3."),
        ("text", "cannot be read as a checkpoint"),
        (Exploit(), "is refused, since reading anything else from it could run foreign code"),
        (None, "No such file or directory"),
    ],
    ids=["other weights", "text", "code", "missing"],
)
def test_bad_weights(content, said, argv, tmp_path):
    path = tmp_path / "weights.pth"
    if isinstance(content, str):
        path.write_text(content)
    elif isinstance(content, Exploit):
        path.write_bytes(pickle.dumps(content))
    elif content is not None:
        torch.save(content, path)
    ended = run_function(run_evaluate, [*argv, "--inception_weights", str(path)], log=tmp_path / "log")
    assert ended.status == 2 and said in ended.output.splitlines()[-1], ended.output
    assert "Traceback" not in ended.output
    assert not (tmp_path / "report").exists() and not os.path.exists("exploited")


def test_torchvision_of_another_torch(argv, tmp_path):
    ended = run_function(evaluate_beside_a_foreign_torchvision, argv, tmp_path, log=tmp_path / "log")
    assert ended.status == 2, ended.output
    said = "error: torch-fidelity cannot be imported (operator nms does not exist): install the torchvision"
    assert ended.output.splitlines()[-1].startswith(said)


def test_missing_torchvision(argv, tmp_path):
    ended = run_function(evaluate_without_torchvision, argv, log=tmp_path / "log")
    assert ended.status == 2, ended.output
    assert "error: This needs the package torchvision" in ended.output
    assert "pip install 'diffusers-cg[eval]'" in ended.output
