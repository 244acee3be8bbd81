"""Features of images: what extractors make of them, and sets that are measured once and compared with many others."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np
from tqdm.auto import tqdm

from diffusers_cg.data import FeatureStatistics, ImageSet, Source, open_set
from diffusers_cg.data.files import atomic_update
from diffusers_cg.data.image_sets import Statistics
from diffusers_cg.data.npz import STATISTICS, write_statistics
from diffusers_cg.errors import InputError
from diffusers_cg.evaluation.metrics import INCEPTION, feature_statistics
from diffusers_cg.evaluation.report import SetFacts


MIN_IMAGES = 4  # precision and recall look at three neighbours of an image


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
        return {name: array for name, array in vars(self).items() if array is not None}


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
        InputError: if it cannot be called.
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
        InputError: if there is no such thing, or it cannot be called.
    """
    module_name, _, name = spec.partition(":")
    if not (module_name and name):
        raise InputError(f"`extractor` must be inception or module:function, got {spec!r}.")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InputError(f"The extractor {spec} cannot be imported: there is no module {error.name}.") from error
    if not hasattr(module, name):
        raise InputError(f"The extractor {spec} cannot be imported: {module_name} has no {name}.")
    extractor = getattr(module, name)
    if inspect.isclass(extractor):
        extractor = extractor()
    if not callable(extractor):
        raise InputError(f"The extractor {spec} is a {type(extractor).__name__}, which cannot be called.")
    if hasattr(extractor, "name") and hasattr(extractor, "hash"):
        return extractor
    return FunctionExtractor(extractor, spec, hashlib.sha256(inspect.getsource(module).encode()).hexdigest())


# ----------------------------------------------------------------------------------------------------- measured sets


@dataclass
class MeasuredSet:
    """What [`measure`] makes: the features of images, statistics that were stated, or both.

    Args:
        facts ([`SetFacts`]): Where it is from.
        features ([`Features`], *optional*): None where there are statistics alone.
        stated (`dict`): Statistics that stand in for those of the features, as in [`FeatureStatistics`].
        is_lossy (`bool`): Whether files of the set were compressed with loss.
        extractor, extractor_hash (`str`, *optional*): What made the features; None where statistics do not say it.
    """

    facts: SetFacts
    features: Features | None = None
    stated: Statistics = field(default_factory=dict)
    is_lossy: bool = False
    extractor: str | None = None
    extractor_hash: str | None = None

    def __post_init__(self):
        self._statistics = dict(self.stated)

    def feature(self, kind: str) -> np.ndarray | None:
        """The features `"pool"`, `"spatial"` or `"logits"`; None if there are none."""
        return None if self.features is None else getattr(self.features, kind)

    def statistics(self, kind: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Mean and covariance of such features, computed once; None if there are none."""
        features = self.feature(kind)
        if kind not in self._statistics and features is not None:
            self._statistics[kind] = feature_statistics(features)
        return self._statistics.get(kind)

    def save_statistics(self, path: str | Path) -> None:
        """Writes its statistics, and what made them, into an `.npz`: a reference for those without the images.

        Raises:
            InputError: if it is not known what made them.
        """
        if self.extractor is None:
            raise InputError(f"{self.facts.source} does not say what made its statistics: measure images.")
        statistics = {kind: self.statistics(kind) for kind in STATISTICS}
        statistics = {kind: pair for kind, pair in statistics.items() if pair is not None}
        made_by = {"extractor": self.extractor, "extractor_hash": self.extractor_hash, **asdict(self.facts)}
        write_statistics(path, statistics, made_by | {"diffusers_cg": version("diffusers-cg")})


def measure(
    source: Source,
    extractor: AnyExtractor | None,
    batch_size: int = 64,
    cache_dir: str | Path | None = None,
    progress_bar: bool = False,
) -> MeasuredSet:
    """Features of a set, for [`evaluate`]: a reference that is measured once serves any number of samples.

    Statistics that an `.npz` states beside its images stand in for those of its features if the extractor is
    `inception`, which made the published ones.

    Args:
        source: At least 4 images, or statistics of features; see [`open_set`].
        extractor ([`FeatureExtractor`] or a function, *optional*): What makes the features; statistics need none.
        batch_size (`int`): Images at once, at least 1.
        cache_dir (`str` or `Path`, *optional*): Folder for the features, found again by the content of the images and
            the hash of the extractor.
        progress_bar (`bool`): Show one over the images.

    Raises:
        InputError: with one sentence, if the set or the extractor is not as described, an image cannot be decoded, or
            there is a `cache_dir` but the extractor states no hash.
    """
    opened = open_set(source, progress_bar=progress_bar)
    if isinstance(opened, FeatureStatistics):
        made_by = opened.made_by
        facts = SetFacts(opened.source, *(made_by.get(name) for name in ("num_images", "shape", "content_hash")))
        makers = [made_by.get(name) for name in ("extractor", "extractor_hash")]
        return MeasuredSet(facts, None, opened.statistics, False, *makers)
    check_images(opened)
    if extractor is None:
        raise InputError(f"{opened.source} holds images: pass an extractor to measure them with.")
    extractor = as_extractor(extractor)
    if batch_size < 1:
        raise InputError(f"`batch_size` must be at least 1, got {batch_size}.")
    facts = SetFacts(opened.source, len(opened), list(opened.shape[1:]), opened.content_hash())
    if cache_dir is None:
        features = extract_features(opened, extractor, batch_size, progress_bar)
    else:
        features = _cached_features(opened, facts.content_hash, extractor, batch_size, Path(cache_dir), progress_bar)
    stated = usable_statistics(opened, extractor)
    return MeasuredSet(facts, features, stated, opened.is_lossy, extractor.name, extractor.hash)


def check_images(images: ImageSet) -> None:
    """Raises `InputError` if there are too few images to measure."""
    if len(images) < MIN_IMAGES:
        raise InputError(
            f"{images.source} holds {len(images)} image{'s' * (len(images) != 1)}: metrics need at least "
            f"{MIN_IMAGES}, and thousands to mean something."
        )


def usable_statistics(images: ImageSet, extractor: FeatureExtractor) -> Statistics:
    """Statistics stated beside images that are used: Inception's."""
    return images.statistics if extractor.name == INCEPTION else {}


def extract_features(
    images: ImageSet, extractor: AnyExtractor, batch_size: int = 64, progress_bar: bool = False
) -> Features:
    """Features of all images of a set, in order, in the extractor's own dtypes.

    Raises:
        InputError: as [`check_features`]; if an image cannot be decoded, or the extractor's output changes its width.
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


def check_features(features: Features, num_images: int, extractor: FeatureExtractor) -> dict[str, np.ndarray]:
    """The arrays of an extractor's output by name.

    Raises:
        InputError: if it is no [`Features`], or an array has another number of rows, is not a matrix, or holds values
            that are not finite.
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


def _cached_features(
    images: ImageSet,
    content_hash: str,
    extractor: FeatureExtractor,
    batch_size: int,
    cache_dir: Path,
    progress_bar: bool,
) -> Features:
    if extractor.hash is None:
        raise InputError(
            f"Features of {extractor.name} cannot be kept in {cache_dir}, since it states no hash to find them by: pass "
            "FunctionExtractor(function, name, hash), or leave `cache_dir` out."
        )
    key = f"{content_hash} {images.shape} {extractor.name} {extractor.hash}"
    file = cache_dir / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"
    if file.is_file():
        try:
            with np.load(file) as arrays:
                return Features(**{name: arrays[name] for name in arrays.files})
        except Exception:  # a damaged file of the cache is made again, whatever is wrong with it
            file.unlink()
    features = extract_features(images, extractor, batch_size, progress_bar)
    with atomic_update(cache_dir) as directory:
        np.savez(directory / file.name, **features.arrays())
    return features
