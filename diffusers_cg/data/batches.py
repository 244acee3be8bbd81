"""Many items, a batch at a time, of a size that is stated or found."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, TypeVar

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from tqdm.auto import tqdm

from diffusers_cg.errors import InputError


ON_CPU = 8  # more gain little there, and a process out of memory is killed, not told
MOST_ON_GPU = 512  # a run that is stopped loses the batch

OUT_OF_MEMORY = (  # what Accelerate does not know of it
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "unable to find an engine to execute this computation",  # no algorithm of cuDNN had the memory that it needs
)

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_batches(
    items: Sequence[Item],
    work: Callable[[Sequence[Item]], Result],
    batch_size: int | Literal["auto"],
    device: str | torch.device,
    progress_bar: tqdm,
) -> Iterator[tuple[Sequence[Item], Result]]:
    """All items in order, a batch at a time, and what is made of each batch.

    Args:
        items (sequence): Any number.
        work (callable): What is made of some items. It may be called for the same ones again, so it must not use up what it
            draws from.
        batch_size (`int` or `"auto"`): Items at once, at least 1; the last batch may be smaller. `"auto"` takes as many as the
            memory of a GPU does: all, up to 512, at first, and half as many whenever that is too much; elsewhere 8.
        device (`str` or `torch.device`): Where the work is done.
        progress_bar (`tqdm`): Says which size was found; for the caller to update.

    Raises:
        InputError: if memory does not take a single item.
    """
    on_gpu = torch.device(device).type != "cpu"
    size = min(len(items), MOST_ON_GPU if on_gpu else ON_CPU) if batch_size == "auto" else batch_size
    first = 0
    while first < len(items):
        batch = items[first : first + size]
        try:
            made = work(batch)
        except RuntimeError as error:
            if batch_size != "auto" or not is_out_of_memory(error):
                raise
            if len(batch) == 1:
                said = str(error).splitlines()[0]
                raise InputError(f"The memory of {device} does not take a single image ({said}).") from error
            size = (len(batch) + 1) // 2
        else:
            if batch_size == "auto":
                progress_bar.set_postfix_str(f"batches of {size}", refresh=False)
            yield batch, made
            first += len(batch)
            continue
        clear_device_cache(garbage_collection=True)  # after the handler, whose error holds what was computed


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether fewer items at once may help."""
    return (
        isinstance(error, torch.OutOfMemoryError)
        or should_reduce_batch_size(error)
        or any(message in str(error) for message in OUT_OF_MEMORY)
    )
