"""Trainings with the regularisation of Merity et al. 2018, killed and gone on with."""

import pytest
from fitted import Place, assert_same

REGULARISED = (
    *("model.num_layers=2", "model.locked_dropout=true", "model.dropout=0.3"),
    *("model.embedding_dropout=0.2", "model.output_dropout=0.4", "model.word_dropout=0.1"),
    *("model.weight_dropout=0.5", "regularizers=[ar,tar]", "optimizer.weight_decay=1e-4"),
    *("data.variable_bptt=true", "data.protocol=stream"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("regularised"))


BLOCKS = ("model.residual=rms_norm", "model.expansion=1.5")


@pytest.mark.parametrize(
    "more",
    [
        *[(), ("kernels=compiled",), ("model=gru",), ("model.zoneout=0.2",)],
        *[
            ("model=lstmp", *BLOCKS),
            ("model=mogrifier", "model.rank=2"),
            ("model=layer_norm_lstm",),
        ],
    ],
)
def test_a_killed_training_resumes_bit_for_bit(place, more):
    settings = (*REGULARISED, *more)
    every = "callbacks.checkpoint.every_n_train_steps=4"
    whole = place.fit(*settings, every)
    assert len({row["train/nll"] for row in whole.rows if "train/nll" in row}) > 20
    assert_same(place.train(*settings, every, kill_at=(6, 23)), whole)
