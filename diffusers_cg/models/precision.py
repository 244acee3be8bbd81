"""Precisions of weights, and what a device makes of them."""

import logging
from functools import cache

import torch


logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
"""Precisions of weights, by the names that commands give them."""


@cache
def warn_of_emulation(device_type: str, dtype: torch.dtype) -> None:
    """Says, once, that a CPU has no instructions for a dtype and computes in it many times slower than in float32."""
    if device_type != "cpu" or not torch.backends.mkldnn.is_available():
        return
    is_supported = {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,  # what PyTorch's convolutions go by
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    }
    if dtype in is_supported and not is_supported[dtype]():
        name = str(dtype).removeprefix("torch.")
        logger.warning(
            f"This CPU has no instructions for {name}: it is emulated, and takes tens of times as long as float32, which gives "
            "the same images or better."
        )
