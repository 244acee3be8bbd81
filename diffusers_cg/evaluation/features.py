"""Feature extractors: what turns images into the arrays that metrics are computed from."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm.auto import tqdm

from diffusers_cg.data import ImageSet
from diffusers_cg.errors import InputError


@dataclass
class Features:
    """Features of B images, floating-point arrays.

    Args:
        pool (`np.ndarray`): (B, D): FID, precision and recall are computed from these.
        spatial (`np.ndarray`, *optional*): (B, S), which keep where things are: sFID.
        logits (`np.ndarray`, *optional*): (B, K), of a classifier: the Inception Score.
    """

    pool: np.ndarray
    spatial: np.ndarray | None = None
    logits: np.ndarray | None = None

    def arrays(self) -> dict[str, np.ndarray]:
        """Those that are there, by name."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: array for name, array in named.items() if array is not None}


class FeatureExtractor(Protocol):
    """What can be measured with: any callable on images that states a name and a hash.

    Attributes:
        name (`str`): For people.
        hash (`str`, *optional*): Changes whenever the features may: it is the key of cached features, which need one.
    """

    name: str
    hash: str | None

    def __call__(self, images: np.ndarray) -> Features:
        """Features of images (B, H, W, C) uint8, C being 1 or 3; an image's do not depend on the rest of its batch."""


@dataclass(frozen=True)
class FunctionExtractor:
    """A function of images as a [`FeatureExtractor`].

    Args:
        function (callable): Images (B, H, W, C) uint8 to [`Features`].
        name (`str`): For people.
        hash (`str`, *optional*): Of your choice. Change it when the function, or weights that it uses, change. Features
            are not cached without one.
    """

    function: Callable[[np.ndarray], Features]
    name: str
    hash: str | None = None

    def __call__(self, images: np.ndarray) -> Features:
        return self.function(images)


AnyExtractor = FeatureExtractor | Callable[[np.ndarray], Features]


def as_extractor(extractor: AnyExtractor) -> FeatureExtractor:
    """A plain function as an extractor of its name, without a hash; an extractor as it is.

    Raises:
        TypeError: if it cannot be called.
    """
    if not callable(extractor) or inspect.isclass(extractor):
        raise InputError(
            f"`extractor` must be a function of images or a FeatureExtractor, got {extractor!r}: see "
            "diffusers_cg.evaluation.FeatureExtractor."
        )
    if hasattr(extractor, "name") and hasattr(extractor, "hash"):
        return extractor
    return FunctionExtractor(extractor, getattr(extractor, "__name__", type(extractor).__name__))


def load_extractor(spec: str) -> FeatureExtractor:
    """The extractor `module:name` of a user, searched in the working directory, too.

    It is a callable as [`FeatureExtractor`] describes, or a class of such that is made without arguments. One that does
    not state its hash, such as a plain function, gets that of its module's source: of the code, not of any weights.

    Raises:
        ValueError: if there is no such thing, or it cannot be called.
    """
    module_name, _, name = spec.partition(":")
    if not (module_name and name):
        raise InputError(f"`extractor` must be inception or module:function, got {spec!r}.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
        extractor = getattr(module, name)
    except ModuleNotFoundError as error:
        raise InputError(f"The extractor {spec} cannot be imported: there is no module {error.name}.") from error
    except AttributeError as error:
        raise InputError(f"The extractor {spec} cannot be imported: {module_name} has no {name}.") from error
    if inspect.isclass(extractor):
        extractor = extractor()
    if not callable(extractor):
        raise InputError(f"The extractor {spec} is a {type(extractor).__name__}, which cannot be called.")
    if hasattr(extractor, "name") and hasattr(extractor, "hash"):
        return extractor
    return FunctionExtractor(extractor, spec, hashlib.sha256(inspect.getsource(module).encode()).hexdigest())


def check_features(features: Features, num_images: int, extractor: FeatureExtractor) -> dict[str, np.ndarray]:
    """The arrays of an extractor's output by name.

    Raises:
        TypeError: if it is no [`Features`].
        ValueError: if an array has another number of rows, is not a matrix, or holds values that are not finite.
    """
    if not isinstance(features, Features):
        raise InputError(f"The extractor {extractor.name} must return Features, got {type(features).__name__}.")
    arrays = {name: np.asarray(array) for name, array in features.arrays().items()}
    for name, array in arrays.items():
        if array.ndim != 2 or len(array) != num_images:
            raise InputError(
                f"The extractor {extractor.name} returned `{name}` of shape {array.shape} for {num_images} images: it "
                f"must be ({num_images}, D)."
            )
        if not np.isfinite(array).all():
            raise InputError(f"The extractor {extractor.name} returned `{name}` with values that are not finite.")
    return arrays


def extract_features(
    images: ImageSet, extractor: AnyExtractor, batch_size: int = 64, progress_bar: bool = False
) -> Features:
    """Features of all images of a set, in order, in the extractor's own dtypes.

    Raises:
        ValueError, TypeError: as [`check_features`]; if a file is damaged, or the extractor's output changes its width.
        InputError: if a file of a folder cannot be read as an image.
    """
    extractor = as_extractor(extractor)
    collected, start = {}, 0
    with tqdm(total=len(images), desc=f"Features of {images.source}", unit="image", disable=not progress_bar) as bar:
        for batch in images.batches(batch_size):
            arrays = check_features(extractor(batch), len(batch), extractor)
            if not collected:
                collected = {
                    name: np.empty((len(images), array.shape[1]), dtype=np.result_type(array, np.float32))
                    for name, array in arrays.items()
                }
            widths = [{name: array.shape[1] for name, array in part.items()} for part in (collected, arrays)]
            if widths[0] != widths[1]:
                raise InputError(f"The extractor {extractor.name} returned {widths[1]} features after {widths[0]}.")
            for name, array in arrays.items():
                collected[name][start : start + len(batch)] = array
            start += len(batch)
            bar.update(len(batch))
    return Features(**collected)
