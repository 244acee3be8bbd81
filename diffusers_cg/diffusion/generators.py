"""Where randomness comes from."""

import numpy as np
import torch


Generators = torch.Generator | list[torch.Generator] | None
"""One generator for a batch, one per image so that an image does not depend on its batch, or PyTorch's own."""


def seeded_generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU whose stream belongs to these numbers, each at least 0; any other numbers have another.

    So random numbers follow from whole numbers alone, in whatever order and process they are asked for.
    """
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))
