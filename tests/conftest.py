import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import HubServer


torch.set_num_threads(1)  # tiny networks lose more than they win with several

# huggingface_hub asks the environment when it is imported, so all tests have this Hub and an empty cache, and no other
TOKENS = {"hf_me": "me", "hf_you": "you"}
_hub = HubServer(TOKENS)
_home = Path(tempfile.mkdtemp(prefix="hf_home"))
os.environ.update(_hub.environment(_home))
os.environ.pop("HF_TOKEN", None)


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
    return running_hub
