"""Metrics on arrays of features, whatever made them, and of sets of images by any extractor of features."""

from diffusers_cg.data import FeatureStatistics, ImageSet, open_images, open_set
from diffusers_cg.evaluation.comparison import compare, evaluate
from diffusers_cg.evaluation.features import (
    FeatureExtractor,
    Features,
    FunctionExtractor,
    MeasuredSet,
    extract_features,
    load_extractor,
    measure,
)
from diffusers_cg.evaluation.inception import InceptionFeatures
from diffusers_cg.evaluation.metrics import (
    METRICS,
    Metric,
    feature_statistics,
    frechet_distance,
    inception_score,
    precision_recall,
)
from diffusers_cg.evaluation.report import Evaluation, SetFacts


__all__ = [
    "METRICS",
    "Evaluation",
    "FeatureExtractor",
    "FeatureStatistics",
    "Features",
    "FunctionExtractor",
    "ImageSet",
    "InceptionFeatures",
    "MeasuredSet",
    "Metric",
    "SetFacts",
    "compare",
    "evaluate",
    "extract_features",
    "feature_statistics",
    "frechet_distance",
    "inception_score",
    "load_extractor",
    "measure",
    "open_images",
    "open_set",
    "precision_recall",
]
