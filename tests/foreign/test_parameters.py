"""Which parameter is which, in the names of the programs that people train such models with."""

import pytest
import torch
from torch import nn

from lmkit.errors import UserError
from lmkit.foreign import collect, identify, settings, weights
from lmkit.foreign.unpickler import Record

NOWHERE = {"embedding": None, "rnn": None, "output": None}


def state_dict(embedding, rnn, output, kind=nn.LSTM, hidden=6, size=4, layers=2, words=11):
    """The parameters of such a model under these prefixes."""
    parts = {
        embedding: nn.Embedding(words, size),
        rnn: kind(size, hidden, layers),
        output: nn.Linear(hidden, words),
    }
    return {
        f"{prefix}.{name}": tensor.detach()
        for prefix, module in parts.items()
        for name, tensor in module.named_parameters()
    }


NAMES = {
    "pytorch/examples": ("encoder", "rnn", "decoder"),
    "ESPnet": ("lm.encoder", "lm.rnn", "lm.decoder"),
    "icefall": ("input_embedding", "rnn", "output_linear"),
    "REINVENT": ("_embedding", "_rnn", "_linear"),
    "MOSES": ("embedding_layer", "lstm_layer", "linear_layer"),
    "a module of one's own": ("net.embed", "net.lstm", "net.fc"),
}


@pytest.mark.parametrize("hidden", [6, 4])  # 4: embedding and output have the same shape
@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_the_roles_by_the_names_of_each_program(names, hidden):
    tensors = state_dict(*names, hidden=hidden)
    found = identify(collect({"model": tensors, "epoch": 3}), NOWHERE)
    embedding, rnn, output = names
    assert found.kind == "lstm"
    assert found.embedding is tensors[f"{embedding}.weight"]
    assert found.output is tensors[f"{output}.weight"]
    assert found.output_bias is tensors[f"{output}.bias"]
    for number, layer in enumerate(found.layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            assert getattr(layer, name) is tensors[f"{rnn}.{name}_l{number}"]
    assert not found.is_tied


@pytest.mark.parametrize(("kind", "name"), [(nn.LSTM, "lstm"), (nn.GRU, "gru"), (nn.RNN, "elman")])
def test_the_cell_by_its_gates(kind, name):
    found = identify(collect(state_dict("a", "b", "c", kind)), NOWHERE)
    assert f"model={name}" in settings(found)


class Weightdrop(nn.Module):
    """As awd-lstm-lm's: the parameter is called _raw, and beside it is the weight with dropout."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        raw = module._parameters.pop("weight_hh_l0")
        module.register_parameter("weight_hh_l0_raw", raw)
        module.weight_hh_l0 = nn.functional.dropout(raw.detach(), 0.5)


class Awd(nn.Module):
    def __init__(self):
        super().__init__()
        sizes = [(4, 7), (7, 7), (7, 4)]
        self.encoder = nn.Embedding(11, 4)
        self.rnns = nn.ModuleList(Weightdrop(nn.LSTM(*pair)) for pair in sizes)
        self.decoder = nn.Linear(4, 11)
        self.decoder.weight = self.encoder.weight


def test_awd_lstm_lm_has_its_raw_weights_and_a_smaller_last_layer(tmp_path):
    from lmkit.foreign import read

    module = Awd()
    torch.save([module, nn.CrossEntropyLoss(), torch.optim.SGD(module.parameters(), 0.1)],
               tmp_path / "awd.pt")  # fmt: skip
    found = identify(collect(read(tmp_path / "awd.pt")), NOWHERE)
    assert settings(found) == [
        *("model=lstm", "model.embedding_size=4", "model.hidden_size=7", "model.num_layers=3"),
        *("model.tie_weights=true", "head.bias=true"),
    ]
    state = weights(found)
    for number, rnn in enumerate(module.rnns):
        raw = rnn.module.weight_hh_l0_raw
        assert torch.equal(state[f"model.layers.{number}.weight_hh"], raw)


def test_a_layer_without_biases_has_zeros():
    tensors = state_dict("encoder", "rnn", "decoder")
    for name in [name for name in tensors if "bias" in name]:
        del tensors[name]
    found = identify(collect(tensors), NOWHERE)
    assert "head.bias=false" in settings(found)
    state = weights(found)
    assert "head.bias" not in state
    assert not state["model.layers.1.bias_hh"].any()


def test_what_is_not_clear_is_asked_for_and_given():
    tensors = state_dict("one", "rnn", "two", hidden=4)
    with pytest.raises(UserError) as caught:
        identify(collect(tensors), NOWHERE)
    assert str(caught.value) == (
        "the embedding, a matrix of 4 columns: 2 may be it, one.weight, two.weight; "
        "name it with embedding=PREFIX; "
        "the output, a matrix of 4 columns: 2 may be it, one.weight, two.weight; "
        "name it with output=PREFIX"
    )
    given = {"embedding": "two", "rnn": None, "output": "one"}
    with pytest.raises(UserError, match=r"^left over: two\.bias$"):
        identify(collect(tensors), given)
    found = identify(collect(tensors), {"embedding": "one", "rnn": "rnn.", "output": "two"})
    assert found.embedding is tensors["one.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("encoder.weight"), "the embedding, a matrix of 4 columns: none"),
        (lambda t: t.pop("rnn.weight_ih_l1"), r"rnn\.\*_l1: weight_ih missing"),
        (lambda t: t.update({"attention.weight": torch.ones(3)}), "left over: attention.weight"),
        (lambda t: t.update({"rnn.weight_ih_l0_reverse": torch.ones(3)}), "reads backwards too"),
        (lambda t: t.update({"rnn.weight_hr_l0": torch.ones(3)}), "an LSTM with projection"),
        (lambda t: t.update({"rnn.weight_ih_l1": torch.ones(24, 5)}), "reads 5 values, not 6"),
        (lambda t: t.update({"rnn.weight_hh_l0": torch.ones(24)}), "weight_hh must have two dim"),
        (lambda t: t.update({"rnn.weight_hh_l0": torch.ones(24, 0)}), r"layers of \[4, 24\] gates"),
        (lambda t: t.update({"rnn.weight_hh_l0": torch.ones(12, 6)}), r"layers of \[2, 4\] gates"),
        (lambda t: [t.pop(n) for n in list(t) if "rnn" in n], "no recurrent layers"),
    ],
)
def test_what_is_missing_left_over_or_odd_is_named(change, message):
    tensors = state_dict("encoder", "rnn", "decoder")
    change(tensors)
    with pytest.raises(UserError, match=message):
        identify(collect(tensors), NOWHERE)


def test_what_holds_no_model():
    with pytest.raises(UserError, match=r"no state dict: its keys are epoch, args"):
        collect({"epoch": 1, "args": {}})
    with pytest.raises(UserError, match="neither a module nor a state dict"):
        collect(3)


def module(**modules):
    record = Record()
    record.state = {"_modules": modules}
    return record


def test_modules_without_end_are_refused():
    itself = module()
    itself.state["_modules"]["again"] = itself
    twice = module()
    for _ in range(40):
        twice = module(a=twice, b=twice)  # 2**40 names
    around = {}
    around["model"] = around
    for hostile, message in (
        (itself, "modules within each other without end"),
        (twice, "modules within each other without end"),
        (around, "no state dict: its keys are model"),
    ):
        with pytest.raises(UserError, match=message):
            collect(hostile)


def test_layers_of_several_sizes_are_refused():
    tensors = state_dict("encoder", "rnns.0", "decoder", layers=1)
    tensors |= {
        f"rnns.1.{name}": tensor.detach() for name, tensor in nn.LSTM(6, 5).named_parameters()
    }
    tensors["decoder.weight"] = torch.randn(11, 5)
    with pytest.raises(UserError, match=r"layers of the sizes \[6, 5\]: lmkit's are all of one"):
        settings(identify(collect(tensors), NOWHERE))
