"""A window as heads are tested on it."""

import torch


def head_window(vocabulary_size, hidden_size, time):
    """Hidden vectors (3, time, hidden_size) with gradients, targets and weights, some of them 0."""
    torch.manual_seed(1)
    hidden = torch.randn(3, time, hidden_size, requires_grad=True)
    targets = torch.randint(vocabulary_size, (3, time))
    weight = torch.rand(3, time) * (torch.rand(3, time) > 0.3)
    return hidden, targets, weight
