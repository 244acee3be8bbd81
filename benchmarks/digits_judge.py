"""An independent judge of generated digits: a support vector machine that only ever saw clean real ones.

It is an extractor of features, too, for digits of 16x16 pixels:

    diffusers-cg evaluate samples --reference digits/train --resolution 16 \
        --extractor benchmarks.digits_judge:JudgeFeatures --output report
"""

import numpy as np
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from diffusers_cg.data.images import resize_and_crop
from diffusers_cg.evaluation import Features
from diffusers_cg.training.export_digits import split_digits


RESOLUTION = 16


def real_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Real digits as the models see them: `{"train": (images (N, 16, 16, 1) in [0, 1], labels (N,)), "test": ...}`."""
    splits = {}
    for name, (images, labels) in split_digits().items():
        resized = [resize_and_crop(Image.fromarray(image), RESOLUTION, center_crop=True) for image in images]
        splits[name] = (np.stack([np.asarray(image) for image in resized])[..., None] / 255.0, labels)
    return splits


class DigitsJudge:
    """Says which digit an image shows, and where it lies in the space of the machine's 45 pairwise margins.

    Attributes:
        held_out_accuracy (`float`): Share of the 360 real test digits judged right.
    """

    def __init__(self):
        splits = real_digits()
        images, labels = splits["train"]
        self.machine = SVC(C=10, decision_function_shape="ovo").fit(self.flatten(images), labels)
        images, labels = splits["test"]
        self.held_out_accuracy = float((self.predict(images) == labels).mean())

    @staticmethod
    def flatten(images: np.ndarray) -> np.ndarray:
        return np.asarray(images, dtype=np.float64).reshape(len(images), -1)

    def predict(self, images: np.ndarray) -> np.ndarray:
        """Digits (N,) for images (N, 16, 16, 1) in [0, 1]."""
        return self.machine.predict(self.flatten(images))

    def features(self, images: np.ndarray) -> np.ndarray:
        """Signed margins (N, 45), one per pair of digits."""
        return self.machine.decision_function(self.flatten(images))


class JudgeFeatures:
    """The judge's margins as features, and the logarithms of its probabilities of the ten digits as logits."""

    def __init__(self):
        self.judge = DigitsJudge()
        images, labels = real_digits()["train"]
        self.probabilities = CalibratedClassifierCV(SVC(C=10), ensemble=False).fit(DigitsJudge.flatten(images), labels)

    def __call__(self, images: np.ndarray) -> Features:
        """Features of images (B, 16, 16, 1) uint8."""
        pixels = DigitsJudge.flatten(images) / 255
        logits = np.log(self.probabilities.predict_proba(pixels).clip(min=1e-12))
        return Features(self.judge.machine.decision_function(pixels), logits=logits)
