"""docs/library.md: its scripts, in an empty directory, do what it says."""

import csv
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from documented import commands, sections, shell, write_files
from lightning.pytorch.callbacks import ModelCheckpoint

from lmkit.corpus import Files
from lmkit.head import FullSoftmax
from lmkit.model import LSTM
from lmkit.tokenizer import Bytes
from lmkit.training import Task
from lmkit.windows import DataModule

SECTIONS = sections("library.md")
SCRIPT = SECTIONS["In a Lightning script of your own"]
OWN = SECTIONS["Windows and carried state with a LightningModule of your own"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, text: Path) -> tuple[Path, str]:
    """Where the script has trained and gone on, and what it printed."""
    place = tmp_path_factory.mktemp("library")
    write_files("\n".join(SECTIONS.values()), place)
    paragraphs = text.read_text().split("\n\n")
    (place / "text.txt").write_text("\n\n".join(paragraphs[:60]))
    return place, shell(commands(SCRIPT), place)


def test_a_training_goes_on_from_lightnings_checkpoint(
    trained: tuple[Path, str], tmp_path: Path
) -> None:
    place, _ = trained
    for name in ("text.txt", "train.py"):
        (tmp_path / name).write_text((place / name).read_text())
    shell(["python train.py 2"], tmp_path)
    whole, resumed = (
        torch.load(each / "checkpoints" / "last.ckpt", weights_only=True)
        for each in (tmp_path, place)
    )
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    assert whole["global_step"] == resumed["global_step"]


def test_it_is_validated_tested_and_scores(trained: tuple[Path, str]) -> None:
    place, out = trained
    assert out.count("val/nll") == out.count("test/nll") == 2
    first, second = map(float, re.findall(r"perplexity of a text: ([\d.]+)", out))
    assert 1 < second != first > 1
    rows = [
        row
        for file in sorted((place / "logs").rglob("metrics.csv"))
        for row in csv.DictReader(file.read_text().splitlines())
    ]
    losses = [float(row["train/nll"]) for row in rows if row.get("train/nll")]
    assert losses[-1] < losses[0]


def test_a_module_of_ones_own(trained: tuple[Path, str]) -> None:
    place, _ = trained
    out = shell(commands(OWN), place)
    (nats,) = map(float, re.findall(r"nats per character: ([\d.]+)", out))
    assert nats < 2.7  # an even guess among some 20 characters is 3.0


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_within_an_epoch_is_gone_on_from_too(text: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("\n\n".join(text.read_text().split("\n\n")[:20]))

    def fit(name: str, newest: str | None = None) -> Task:
        pl.seed_everything(1 if newest is None else 2, verbose=False)
        source = Files(str(tmp_path / "text.txt"), unit="paragraph")
        data = DataModule(source, Bytes(), cache=tmp_path, batch_size=4, bptt=50)
        model = LSTM(257, embedding_size=8, hidden_size=8, dropout=0.3)
        head = FullSoftmax(8, 257, model.embedding)
        task = Task(model, head, lambda params: torch.optim.Adam(params, lr=0.01))
        steps = data.num_windows("train") + 3
        saves = ModelCheckpoint(
            tmp_path / name, filename="{step}", every_n_train_steps=steps, save_top_k=-1
        )
        trainer = pl.Trainer(
            accelerator="cpu",
            max_epochs=3,
            logger=False,
            callbacks=[saves],
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(task, data, ckpt_path=newest)
        return task

    whole = fit("whole")
    first, _ = sorted((tmp_path / "whole").glob("*.ckpt"))  # of the second and the third epoch
    resumed = fit("resumed", str(first))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.filterwarnings("ignore")  # what Lightning advises a script of one's own
def test_the_text_is_prepared_by_lightnings_hook(text: Path, tmp_path: Path) -> None:
    """In one process of a node, before any of them sets up."""

    class Watched(DataModule):
        def setup(self, stage: str) -> None:
            assert self._prepared is not None

    data = Watched(Files(str(text), unit="paragraph"), Bytes(), cache=tmp_path, batch_size=4)
    model = LSTM(257, hidden_size=4, embedding_size=4)
    task = Task(
        model, FullSoftmax(4, 257, model.embedding), lambda params: torch.optim.SGD(params, lr=0.1)
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, data)
    assert trainer.global_step == 1
