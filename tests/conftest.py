import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import HubServer
from PIL import Image
from processes import Ended, run_command


NUM_CLASSES = 3
IMAGES_PER_CLASS = 12
TINY = {
    "resolution": 16,
    "channels": 1,
    "base_channels": 16,
    "norm_num_groups": 8,
    "channel_multipliers": (1, 2),
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "train_batch_size": 8,
    "eval_batch_size": 40,
    "max_train_steps": 2,
    "save_images_epochs": 0,
    "checkpointing_steps": 0,
    "logger": "none",
}

# tiny networks lose more than they win with several; processes that we start are told so, too, as launchers do
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

LONG = ("tests/training/", "tests/test_reference_parity.py", "tests/test_pages.py")

# huggingface_hub asks the environment when it is imported, so all tests have this Hub and an empty cache, and no other
TOKENS = {"hf_me": "me", "hf_you": "you"}
_hub = HubServer(TOKENS)
_home = Path(tempfile.mkdtemp(prefix="hf_home"))
os.environ.update(_hub.environment(_home))
os.environ.pop("HF_TOKEN", None)


def pytest_xdist_auto_num_workers() -> int:
    """A process more than there are cores: a third of their time is waiting, for files and for what they start."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process of several is left alone with one at the end."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))


def pytest_collection_finish() -> None:
    """Garbage collection, which commands ask for when they let go of a network, need not look through all packages."""
    gc.freeze()


def pytest_unconfigure() -> None:
    shutil.rmtree(_home, ignore_errors=True)


@pytest.fixture(scope="session")
def running_hub() -> Iterator[HubServer]:
    with _hub:
        yield _hub


@pytest.fixture
def hub(running_hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub without repositories, on which we are `me`, and an empty cache."""
    running_hub.reset()
    shutil.rmtree(_home, ignore_errors=True)
    monkeypatch.setenv("HF_TOKEN", "hf_me")
    monkeypatch.setattr("diffusers_cg.hub.publishing.GRID_ROWS", 1)  # fewer samples for the cards, to be quick
    return running_hub


@pytest.fixture
def own_layouts() -> Iterator[None]:
    """Layouts of checkpoints that a test registers are gone after it."""
    from diffusers_cg.models.presets import LAYOUTS  # not before the environment of huggingface_hub is set

    before = dict(LAYOUTS)
    yield
    LAYOUTS.clear()
    LAYOUTS.update(before)


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """What export_digits.py writes."""
    root = tmp_path_factory.mktemp("digits")
    ended = run_command("export_digits", "--output_dir", root / "digits", log=root / "log")
    assert ended.status == 0, ended.output
    return root / "digits"


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory) -> Path:
    """A dozen each of 0, 1 and 2, of those that export_digits.py writes."""
    from diffusers_cg.training.export_digits import split_digits  # not before the environment is set

    root = tmp_path_factory.mktemp("few_digits")
    images, labels = split_digits()["train"]
    for label in range(NUM_CLASSES):
        (root / str(label)).mkdir()
        for number in np.flatnonzero(labels == label)[:IMAGES_PER_CLASS]:
            Image.fromarray(images[number]).save(root / str(label) / f"{number:04d}.png")
    return root


@pytest.fixture(scope="session")
def tiny_flags(few_digits) -> Callable[..., list[str]]:
    """Flags of a training command: a tiny model on a few digits, with some of them changed."""

    def flags(**changed) -> list[str]:
        merged = {"train_data_dir": few_digits, **TINY, **changed}
        listed = []
        for name, value in merged.items():
            if isinstance(value, bool):
                listed.append(f"--{name}" if value else f"--no-{name}")
            elif value is not None:
                listed += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
        return listed

    return flags


@pytest.fixture(scope="session")
def train(tiny_flags, tmp_path_factory) -> Callable[..., Ended]:
    """Runs train_unet or train_classifier with `tiny_flags` in a process of its own; by default it must succeed."""
    log = tmp_path_factory.mktemp("logs") / "log"

    def train(name: str, status: int = 0, signal=None, file_size_limit=None, **changed) -> Ended:
        ended = run_command(name, *tiny_flags(**changed), log=log, signal=signal, file_size_limit=file_size_limit)
        assert ended.status == status, ended.output
        return ended

    return train
