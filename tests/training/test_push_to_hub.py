"""`--push_to_hub` of the training scripts."""

import os
from pathlib import Path

import pytest

from diffusers_cg import ClassifierGuidedDDIMPipeline


def test_the_result_is_published(hub, train, tmp_path):
    token = Path(os.environ["HF_HOME"]) / "token"  # as hf auth login leaves it
    token.parent.mkdir(parents=True, exist_ok=True)
    token.write_text("hf_me")
    flags = {"hub_model_id": "me/unet", "output_dir": tmp_path / "unet"}
    assert "Published" in train("train_unet", **flags, push_to_hub=()).output
    pipe = ClassifierGuidedDDIMPipeline.from_pretrained("me/unet")
    assert pipe.num_classes == 3
    assert not [path for path in hub.files("me/unet") if "checkpoint" in path]


@pytest.mark.parametrize("name", [None, "unet"])
def test_a_name_is_asked_for_at_once(train, tmp_path, name):
    said = train("train_classifier", status=2, output_dir=tmp_path / "out", hub_model_id=name, push_to_hub=()).output
    assert "is no name on the Hub: pass OWNER/NAME" in said
