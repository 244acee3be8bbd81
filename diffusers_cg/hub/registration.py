"""Makes diffusers accept our components by the name `diffusers_cg`, from a folder and from the Hub alike."""

from diffusers.pipelines.pipeline_loading_utils import ALL_IMPORTABLE_CLASSES, LOADABLE_CLASSES


def register_library() -> None:
    """Adds this package to the libraries that diffusers loads components from.

    `model_index.json` then records `["diffusers_cg", "ADMUNet2DModel"]`, which stays valid wherever the class lives
    inside the package. diffusers looks the base classes up in the package's namespace, so it must hold them.
    """
    classes = {
        "ModelMixin": ["save_pretrained", "from_pretrained"],
        "SchedulerMixin": ["save_pretrained", "from_pretrained"],
    }
    LOADABLE_CLASSES["diffusers_cg"] = classes
    ALL_IMPORTABLE_CLASSES.update(classes)
