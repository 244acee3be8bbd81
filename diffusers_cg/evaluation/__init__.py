"""Metrics on arrays of features: what made the features does not matter here."""

from diffusers_cg.evaluation.frechet_distance import feature_statistics, frechet_distance
from diffusers_cg.evaluation.inception_score import inception_score
from diffusers_cg.evaluation.precision_recall import precision_recall


__all__ = ["feature_statistics", "frechet_distance", "inception_score", "precision_recall"]
