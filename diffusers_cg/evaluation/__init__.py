"""Metrics on arrays of features, whatever made them, and of sets of images by any extractor of features."""

from diffusers_cg.data import FeatureStatistics, ImageSet, open_images, open_set
from diffusers_cg.evaluation.evaluate import compare, evaluate
from diffusers_cg.evaluation.features import (
    FeatureExtractor,
    Features,
    FunctionExtractor,
    extract_features,
    load_extractor,
)
from diffusers_cg.evaluation.frechet_distance import feature_statistics, frechet_distance
from diffusers_cg.evaluation.inception import InceptionFeatures
from diffusers_cg.evaluation.inception_score import inception_score
from diffusers_cg.evaluation.measured_set import MeasuredSet, measure
from diffusers_cg.evaluation.precision_recall import precision_recall
from diffusers_cg.evaluation.report import Evaluation, SetFacts


__all__ = [
    "Evaluation",
    "FeatureExtractor",
    "FeatureStatistics",
    "Features",
    "FunctionExtractor",
    "ImageSet",
    "InceptionFeatures",
    "MeasuredSet",
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
