"""Images from wherever they are, as the networks, the metrics and people want them."""

from diffusers_cg.data.bad_images import Checked, check_images, find_bad_images, readable_images
from diffusers_cg.data.folders import open_folder
from diffusers_cg.data.hf_datasets import ImageStream, is_dataset, open_dataset
from diffusers_cg.data.image_sets import FeatureStatistics, ImageSet, StoredImage
from diffusers_cg.data.sources import Source, open_images, open_set


__all__ = [
    "Checked",
    "FeatureStatistics",
    "ImageSet",
    "ImageStream",
    "Source",
    "StoredImage",
    "check_images",
    "find_bad_images",
    "is_dataset",
    "open_dataset",
    "open_folder",
    "open_images",
    "open_set",
    "readable_images",
]
