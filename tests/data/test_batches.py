"""Work in batches of a stated size, or of one that memory takes."""

import pytest
import torch
from tqdm import tqdm

from diffusers_cg.data.batches import in_batches
from diffusers_cg.errors import InputError


class Memory:
    """Work that takes as many items as have room."""

    def __init__(self, room):
        self.room, self.asked = room, []

    def __call__(self, items):
        self.asked.append(len(items))
        if len(items) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has none.")
        return [2 * item for item in items]


def made(count, memory, batch_size, device):
    with tqdm(total=count) as progress_bar:
        parts = list(in_batches(range(count), memory, batch_size, device, progress_bar))
        assert [value for _, values in parts for value in values] == [2 * item for item in range(count)]
        assert [item for items, _ in parts for item in items] == list(range(count))
        return str(progress_bar)


def test_stated_sizes():
    memory = Memory(room=100)
    assert "batches" not in made(10, memory, 4, "cuda")
    assert memory.asked == [4, 4, 2]


def test_a_gpu_starts_with_all_and_halves_what_is_too_much():
    memory = Memory(room=10)
    assert "batches of 8" in made(30, memory, "auto", "cuda")
    assert memory.asked == [30, 15, 8, 8, 8, 6]
    large = Memory(room=10_000)
    made(1100, large, "auto", torch.device("cuda", 1))
    assert large.asked == [512, 512, 76]


def test_memory_that_another_process_takes_meanwhile():
    memory = Memory(room=8)
    with tqdm(total=20) as progress_bar:
        parts = in_batches(range(20), memory, "auto", "cuda", progress_bar)
        values = next(parts)[1]
        memory.room = 2
        values += [value for _, part in parts for value in part]
    assert values == [2 * item for item in range(20)]
    assert memory.asked == [20, 10, 5, 5, 3, 2] + [2] * 6 + [1]


def test_a_cpu_takes_few():
    memory = Memory(room=100)
    assert "batches of 8" in made(20, memory, "auto", "cpu")
    assert memory.asked == [8, 8, 4]


@pytest.mark.parametrize(
    "said", ["CUBLAS_STATUS_ALLOC_FAILED", "unable to find an engine to execute this computation"]
)
def test_libraries_have_words_of_their_own_for_no_memory(said):
    def work(items):
        if len(items) > 2:
            raise RuntimeError(f"CUDA error: {said} when calling a library")
        return [2 * item for item in items]

    assert "batches of 2" in made(4, work, "auto", "cuda")


def test_nothing_to_do():
    made(0, Memory(room=1), "auto", "cuda")


def test_what_no_smaller_batch_would_mend():
    with pytest.raises(InputError, match=r"^The memory of cuda does not take a single image \(CUDA out .* GiB\.\)\.$"):
        made(3, Memory(room=0), "auto", "cuda")
    with pytest.raises(torch.OutOfMemoryError):
        made(3, Memory(room=2), 3, "cuda")

    def other(items):
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        made(3, other, "auto", "cuda")
