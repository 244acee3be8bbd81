"""Makes diffusers know our classes, from a folder and from the Hub alike."""

import diffusers
from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES


def register_library(*classes: type) -> None:
    """Adds this package to the libraries that diffusers loads components from, and `classes` to its own names.

    `model_index.json` then records `["diffusers_cg", "ADMUNet2DModel"]`, which stays valid wherever the class lives
    inside the package. diffusers looks the base classes up in the package's namespace, so it must hold them.
    `DiffusionPipeline.from_pretrained` looks the class of a pipeline up among diffusers' own names.
    """
    base_classes = {
        "ModelMixin": ["save_pretrained", "from_pretrained"],
        "SchedulerMixin": ["save_pretrained", "from_pretrained"],
    }
    LOADABLE_CLASSES["diffusers_cg"] = base_classes
    ALL_IMPORTABLE_CLASSES.update(base_classes)
    for registered in classes:
        setattr(diffusers, registered.__name__, registered)
