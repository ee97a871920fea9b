"""One weight for look-up and softmax."""

import torch
import torch.nn.functional as F

from lmkit.head import FullSoftmax
from lmkit.model import Embedding


def test_shared_embedding_sums_both_gradients_also_again_and_alone():
    torch.manual_seed(0)
    embedding = Embedding(9, 4, init_range=1.0, tied=True)
    head = FullSoftmax(4, 9, embedding)
    tokens, targets, weight = torch.randint(9, (2, 5)), torch.randint(9, (2, 5)), torch.rand(2, 5)

    def loss():
        return head.loss(embedding(tokens).tanh(), targets, weight).loss

    hidden = F.embedding(tokens, embedding.weight).tanh()
    nll = F.cross_entropy(
        F.linear(hidden, head.weight, head.bias).transpose(1, 2), targets, reduction="none"
    )
    (expected,) = torch.autograd.grad((nll * weight).sum(), [embedding.weight])
    one = loss()
    one.backward(retain_graph=True)
    torch.testing.assert_close(embedding.weight.grad, expected)
    one.backward()
    loss().backward()  # as in accumulation
    torch.testing.assert_close(embedding.weight.grad, 3 * expected)
    embedding.weight.grad = None
    with torch.no_grad():
        embedding(tokens)  # a look-up that no loss follows
    (loss() + loss()).backward()
    torch.testing.assert_close(embedding.weight.grad, 2 * expected)
    embedding.weight.grad = None
    embedding(tokens).sum().backward()
    assert embedding.weight.grad.to_dense().sum() == tokens.numel() * 4
