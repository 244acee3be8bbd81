"""What can be put right by whoever called: input that cannot be meant, and packages that are not installed."""

import importlib
from types import ModuleType


class InputError(ValueError):
    """Something that a user passed cannot be meant. One clear sentence: what was wrong, what was expected, what to do.

    Raised at the border only: by a pipeline's call, by a constructor, where settings are parsed or files are opened.
    """


class MissingExtraError(ImportError):
    """A package of one of our extras is not installed; the sentence says how to install it."""


def import_extra(module: str, extra: str) -> ModuleType:
    """Imports a module that comes with an extra of this package.

    Raises:
        MissingExtraError: if it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"This needs the package {error.name}, which is not installed: run pip install 'diffusers-cg[{extra}]'."
        ) from error
