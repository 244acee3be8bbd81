"""What diffusers is told of our classes: how to load them, from a folder and from the Hub alike, and how to publish them."""

import diffusers
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES

from diffusers_cg.hub.publishing import upload_pipeline
from diffusers_cg.pipelines import ClassifierGuidedPipeline


def register_library(*classes: type) -> None:
    """Adds this package to the libraries that diffusers loads components from, and `classes` to its own names.

    `model_index.json` then records `["diffusers_cg", "ADMUNet2DModel"]`, which stays valid wherever the class lives
    inside the package. diffusers looks the base classes up in the package's namespace, so it must hold them.
    `DiffusionPipeline.from_pretrained` looks the class of a pipeline up among diffusers' own names. Its `push_to_hub` and
    `save_pretrained(push_to_hub=True)` end in `_upload_folder`: ours are published with our card, in one commit.
    """
    base_classes = {
        "ModelMixin": ["save_pretrained", "from_pretrained"],
        "SchedulerMixin": ["save_pretrained", "from_pretrained"],
    }
    LOADABLE_CLASSES["diffusers_cg"] = base_classes
    ALL_IMPORTABLE_CLASSES.update(base_classes)
    for registered in classes:
        setattr(diffusers, registered.__name__, registered)
    ClassifierGuidedPipeline._upload_folder = upload_pipeline
