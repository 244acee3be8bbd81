import torch


torch.set_num_threads(1)  # tiny networks lose more than they win with several
