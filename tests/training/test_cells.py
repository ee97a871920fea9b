"""Trainings of each kind of cell that is killed in mid-epoch and gone on with."""

import pytest
from fitted import Place, assert_same

CELLS = {
    "qrnn": ("kernels=auto", "model.zoneout=0.2", "model.weight_dropout=0.3"),
    "min_gru": ("model.zoneout=0.2", "model.state_expansion=2"),
    "min_lstm": ("kernels=auto",),
    "slstm": ("model.weight_dropout=0.3",),
    "mlstm": (),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.mark.parametrize("cell", CELLS)
def test_a_killed_training_of_each_cell_resumes_bit_for_bit(place, cell):
    argv = (
        f"model={cell}",
        *CELLS[cell],
        "model.dropout=0.2",
        "callbacks.checkpoint.every_n_train_steps=5",
    )
    undisturbed = place.fit(*argv)
    assert_same(place.train(*argv, kill_at=(8, 29)), undisturbed)
    losses = undisturbed.of("train/nll")
    assert losses[-1] < losses[0] - 0.3  # else there is nothing to resume
