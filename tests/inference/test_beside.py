"""Another run is loaded to compute as the first one does, and read at the same checkpoint."""

import pytest
from trained_run import load, make_run

from lmkit.errors import UserError
from lmkit.inference.beside import load_beside


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("outputs")
    return make_run(outputs), make_run(outputs, "gru", protocol="sentence")


@pytest.mark.parametrize("which", [0, 1])
def test_it_computes_as_the_config_says(runs, which):
    config = runs[0].config() | {"kernels": "torch", "threads": 3}
    config["trainer"] = {**config["trainer"], "precision": "bf16-mixed"}
    found = load_beside(runs[which], runs[0], config, "best", "ensemble")
    assert (found.precision, found.kernels, found.threads) == ("bf16-mixed", "torch", 3)
    own = load(runs[which])
    assert (own.precision, own.protocol) == ("32-true", found.protocol)
    assert type(found.model) is type(own.model)


@pytest.mark.parametrize("which", [0, 1])
def test_a_checkpoint_that_it_lacks(runs, which):
    with pytest.raises(UserError) as error:
        load_beside(runs[which], runs[0], runs[0].config(), "step-3", "ensemble")
    lacks = f"{runs[which].id} has no checkpoint=step-3; it has best, last, step-000000007"
    others = f"ensemble: {lacks}; they are read at the same checkpoint as RUN"
    assert str(error.value) == (others if which else lacks)
