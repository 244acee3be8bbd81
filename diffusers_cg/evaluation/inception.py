"""The extractor that published numbers are computed with: TensorFlow's InceptionV3, as torch-fidelity ports it."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import torch

from diffusers_cg.errors import InputError, MissingExtraError, import_extra
from diffusers_cg.evaluation.features import Features
from diffusers_cg.evaluation.metrics import INCEPTION


SPATIAL_CHANNELS = 7


class InceptionFeatures:
    """Pool features (B, 2048), spatial features (B, 2023) and unbiased logits (B, 1008) of images, float32.

    The spatial ones are the first 7 channels of the 1x1 branch of `Mixed_6d` after its ReLU, 17x17, flattened height
    first and channels last as the published `mu_s` and `sigma_s` are. Images of any size are resized as TensorFlow 1
    did it; gray ones are repeated over three channels.

    Args:
        weights (`str` or `Path`, *optional*): torch-fidelity's file of weights; it downloads the file by default.
        device (`str` or `torch.device`): Where it computes.

    Attributes:
        name (`str`): `"inception"`.
        hash (`str`): SHA-256 of the network's weights.

    Raises:
        MissingExtraError: if torch-fidelity is not installed.
        InputError: if it cannot be imported here, or the weights cannot be had or are others.
    """

    name = INCEPTION

    def __init__(self, weights: str | Path | None = None, device: str | torch.device = "cpu"):
        module = _import_network()
        if weights is not None:
            _check_holds_no_code(weights)
        try:
            self.network = module.FeatureExtractorInceptionV3(
                INCEPTION, ["2048", "logits_unbiased"], None if weights is None else str(weights)
            ).to(device)
        except (RuntimeError, pickle.UnpicklingError) as error:
            raise InputError(f"{weights} does not hold the weights of torch-fidelity's InceptionV3.") from error
        except OSError as error:
            if weights is not None:
                raise
            raise InputError(
                f"The weights of InceptionV3 could not be downloaded ({error}): fetch {module.URL_INCEPTION_V3} and "
                "pass its place with --inception_weights."
            ) from error
        self.device = device
        digest = hashlib.sha256(b"pool 2048, Mixed_6d.branch1x1 17x17x7, logits_unbiased")
        for name, tensor in self.network.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().numpy().tobytes())
        self.hash = digest.hexdigest()

    @torch.no_grad()
    def __call__(self, images: np.ndarray) -> Features:
        """Features of images (B, H, W, C) uint8, C being 1 or 3."""
        batch = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2)
        maps = []
        branch = self.network.Mixed_6d.branch1x1  # its last layer is the ReLU
        handle = branch.register_forward_hook(lambda _, args, output: maps.append(output[:, :SPATIAL_CHANNELS]))
        try:
            pool, logits = self.network(batch.expand(-1, 3, -1, -1))
        finally:
            handle.remove()
        spatial = maps[0].permute(0, 2, 3, 1).flatten(1)
        return Features(*(tensor.cpu().numpy() for tensor in (pool, spatial, logits)))


def _check_holds_no_code(weights: str | Path) -> None:
    """Raises `InputError` for a file of anything but tensors: torch-fidelity would execute whatever a pickle says."""
    try:
        torch.load(weights, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{weights} is not a file of tensors alone, and is refused, since reading anything else from it could run "
            "foreign code: pass torch-fidelity's own."
        ) from error
    except (RuntimeError, EOFError, ValueError, LookupError, AttributeError) as error:
        raise InputError(
            f"{weights} cannot be read as a checkpoint; it is truncated or another kind of file."
        ) from error


def _import_network():
    try:
        return import_extra("torch_fidelity.feature_extractor_inceptionv3", "eval")
    except MissingExtraError:
        raise
    except (ImportError, OSError, RuntimeError) as error:  # as a torchvision made for another torch raises them
        raise InputError(
            f"torch-fidelity cannot be imported ({error}): install the torchvision that belongs to this torch "
            f"{torch.__version__}."
        ) from error
