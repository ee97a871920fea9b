"""The mixture of softmaxes (Yang et al. 2018) by its equation."""


def slow_prob(head, hidden, mask=None):
    """p = sum_k pi_k softmax(U tanh(W_k h + c_k) + b), an expert at a time, in float64."""
    hidden = hidden.double()
    prior = (hidden @ head.prior.weight.double().T).softmax(-1)
    size = head.weight.shape[1]
    prob = 0
    for k in range(head.num_experts):
        rows = slice(k * size, (k + 1) * size)
        inputs = hidden @ head.experts.weight[rows].double().T + head.experts.bias[rows].double()
        latent = inputs.tanh() * (1 if mask is None else mask[..., rows])
        logits = latent @ head.weight.double().T
        logits = logits if head.bias is None else logits + head.bias.double()
        prob = prob + prior[..., k, None] * logits.softmax(-1)
    return prob


def slow_nll(head, hidden, targets, mask=None):
    """The nll of each target, in float64."""
    return -slow_prob(head, hidden, mask).gather(-1, targets[..., None])[..., 0].log()
