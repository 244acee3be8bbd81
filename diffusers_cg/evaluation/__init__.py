"""Metrics on arrays of features, whatever made them, and of sets of images by any extractor of features."""

from diffusers_cg.evaluation.evaluate import Evaluation, evaluate
from diffusers_cg.evaluation.features import FeatureExtractor, Features, extract_features, load_extractor
from diffusers_cg.evaluation.frechet_distance import feature_statistics, frechet_distance
from diffusers_cg.evaluation.image_sets import open_images
from diffusers_cg.evaluation.inception import InceptionFeatures
from diffusers_cg.evaluation.inception_score import inception_score
from diffusers_cg.evaluation.precision_recall import precision_recall


__all__ = [
    "Evaluation",
    "FeatureExtractor",
    "Features",
    "InceptionFeatures",
    "evaluate",
    "extract_features",
    "feature_statistics",
    "frechet_distance",
    "inception_score",
    "load_extractor",
    "open_images",
    "precision_recall",
]
