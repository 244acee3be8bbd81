"""Packages that only a part of the library needs: imported where they are used, and named where they are missing."""

import importlib
from types import ModuleType


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
