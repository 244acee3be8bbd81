"""Random numbers that follow from whole numbers alone, in whatever order and process they are asked for."""

import numpy as np
import torch


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU whose stream belongs to these numbers, each at least 0; any other numbers have another."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
