"""What each key of Lightning's Trainer does to a run, for every row of docs/trainer.md."""

import inspect
import itertools
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from fitted import Fitted, Place, assert_same
from lightning.pytorch.callbacks import Timer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lmkit import kernels
from lmkit.assembly import make_data
from lmkit.config.contradictions import contradictions
from lmkit.errors import UserError
from lmkit.system import hardware
from lmkit.training.components import make_task
from lmkit.training.task import Task

KEYS = list(inspect.signature(pl.Trainer).parameters)
TABLE = (Path(__file__).resolve().parents[2] / "docs" / "trainer.md").read_text()

OFTEN = "callbacks.checkpoint.every_n_train_steps=4"
WORSE = ("optimizer.maximize=true", "optimizer.lr=0.01")  # every validation is worse than the first
STOPPING = (
    *("callbacks=[default,early_stopping]", "callbacks.early_stopping.patience=1"),
    *("callbacks.samples=null", *WORSE),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def plain(place) -> Fitted:
    return place.fit()


@pytest.fixture(autouse=True)
def torch_flags():
    """What a trainer sets for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = False


def test_the_table_has_every_key():
    assert re.findall(r"^\| `(\w+)` \|", TABLE, re.MULTILINE) == sorted(KEYS)


OWN = (
    *("callbacks", "default_root_dir", "enable_checkpointing", "enable_model_summary"),
    *("enable_progress_bar", "logger", "plugins", "use_distributed_sampler"),
)


@pytest.mark.parametrize("key", OWN)
def test_what_is_a_runs_own_cannot_be_set(place, key):
    with pytest.raises(UserError, match=rf"trainer\.{key} is set by lmkit itself and cannot be"):
        place.config(f"trainer.{key}=true")


LEAST = "must be at least"
REFUSED = {
    "accelerator=tpu": "PyTorch sees none here; set trainer=cpu",
    "accumulate_grad_batches=0": f"{LEAST} 1",
    "barebones=true": "a run always writes its metrics and checkpoints; leave it out",
    "check_val_every_n_epoch=0": f"{LEAST} 1",
    "devices=0": f"{LEAST} 1",
    "enable_autolog_hparams=false": "a run's config is what its loggers are compared by; leave it "
    "out",
    "fast_dev_run=-1": f"{LEAST} 0",
    "gradient_clip_algorithm=vale": "did you mean value?",
    "gradient_clip_val=-1.0": f"{LEAST} 0",
    "gradient_clip_val=nan": "must be a finite number",
    "limit_predict_batches=3": "a run predicts nothing; score and generate read it all; leave it "
    "out",
    "limit_test_batches=1.5": "expected a share up to 1.0, or a number of windows",
    "limit_train_batches=0": "nothing would be trained (null: no limit)",
    "limit_val_batches=-1": f"{LEAST} 0",
    "log_every_n_steps=0": f"{LEAST} 1",
    "max_epochs=0": "nothing would be trained (-1: no limit)",
    "max_steps=0": "nothing would be trained (-1: no limit)",
    "max_time=60": "expected a time above 0 as DD:HH:MM:SS, or as {hours: 1, minutes: 30}",
    "max_time=00:00:00:00": "expected a time above 0 as DD:HH:MM:SS, or as {hours: 1, minutes: 30}",
    "min_epochs=-1": f"{LEAST} 0",
    "min_steps=-1": f"{LEAST} 0",
    "model_registry=mine": "a run uploads no model; leave it out",
    "num_nodes=2": "on several machines torchrun or srun starts the processes "
    "(docs/reliability.md); leave it out here",
    "num_sanity_val_steps=-2": f"{LEAST} -1",
    "overfit_batches=-1": f"{LEAST} 0",
    "precision=64-true": "did you mean 32-true?",
    "profiler=xla": "there are: advanced, pytorch, simple",
    "reload_dataloaders_every_n_epochs=-1": f"{LEAST} 0",
    "strategy=fsdp": "there are: auto, ddp, ddp_find_unused_parameters_false, "
    "ddp_find_unused_parameters_true",
    "val_check_interval=0": "must be above 0; set trainer.limit_val_batches=0 to leave validation "
    "out",
    "val_check_interval=1.5": "expected a share up to 1.0, or a number of windows",
    "val_check_interval=00:01:00:00": "by the clock, a run that goes on validates after other "
    "updates than one that was not stopped; give a number of windows",
}


@pytest.fixture(scope="module")
def refusals(place) -> list[str]:
    """All mistakes of all assignments, as many at once as there are keys."""
    rounds: list[dict[str, str]] = []
    for assignment in REFUSED:
        key, _, value = assignment.partition("=")
        free = next((each for each in rounds if key not in each), None)
        if free is None:
            rounds.append(free := {})
        free[key] = value
    found = []
    for each in rounds:
        with pytest.raises(UserError) as error:
            place.config(*(f"trainer.{key}={value}" for key, value in each.items()))
        found += [line.removeprefix("  ") for line in str(error.value).splitlines()]
    return found


@pytest.mark.parametrize("assignment", REFUSED)
def test_what_cannot_be_is_refused_with_the_reason(refusals, assignment):
    assert f"trainer.{assignment}: {REFUSED[assignment]}" in refusals


TOGETHER = {
    "check_val_every_n_epoch=2 callbacks=[default,early_stopping] callbacks.samples=null "
    "callbacks.early_stopping.check_on_train_epoch_end=true": "callbacks.early_stopping."
    "check_on_train_epoch_end=true but trainer.check_val_every_n_epoch=2: not every epoch ends "
    "with a validation; leave callbacks.early_stopping.check_on_train_epoch_end out",
    "check_val_every_n_epoch=3 scheduler=plateau": "scheduler watches val/nll but "
    "trainer.check_val_every_n_epoch=3 is beyond trainer.max_epochs=2; validate, or set "
    "scheduler=constant",
    "min_epochs=3": "trainer.min_epochs=3 but trainer.max_epochs=2: lower the one or raise the "
    "other",
    "check_val_every_n_epoch=null": "trainer.check_val_every_n_epoch=null but "
    "trainer.val_check_interval=null: set it to a number of windows, counted over all epochs",
    "strategy._target_=lightning.pytorch.strategies.FSDPStrategy": "trainer.strategy=lightning."
    "pytorch.strategies.FSDPStrategy: a checkpoint holds all weights of one process; set "
    "trainer.strategy=auto or ddp",
}


@pytest.mark.parametrize("assignment", TOGETHER)
def test_keys_that_contradict_each_other(place, assignment):
    with pytest.raises(UserError) as error:
        place.config(*f"trainer.{assignment}".split())
    assert str(error.value) == f"1 mistake:\n  {TOGETHER[assignment]}"


# On this text, which has 18 windows of training and 3 of validation.
UNFIT = {
    "limit_train_batches=0.01": "trainer.limit_train_batches=0.01: of the 18 windows of train that "
    "is none; give a number of windows",
    "limit_val_batches=0.3": "trainer.limit_val_batches=0.3: of the 3 windows of valid that is "
    "none; give a number of windows",
    "val_check_interval=19": "trainer.val_check_interval=19 but an epoch has 18 windows: set "
    "trainer.check_val_every_n_epoch=null to count them over all epochs, or "
    "trainer.val_check_interval=18",
    "val_check_interval=6 trainer.limit_train_batches=5": "trainer.val_check_interval=6 but an "
    "epoch has 5 windows: set trainer.check_val_every_n_epoch=null to count them over all epochs, "
    "or trainer.val_check_interval=5",
    "val_check_interval=7 trainer.accumulate_grad_batches=3": "trainer.val_check_interval=7 but "
    "trainer.accumulate_grad_batches=3: after 7 windows an update is only begun; set "
    "trainer.val_check_interval=6",
    "val_check_interval=0.4 trainer.accumulate_grad_batches=3": "trainer.val_check_interval=0.4 "
    "but trainer.accumulate_grad_batches=3: after 7 windows an update is only begun; set "
    "trainer.val_check_interval=6",
    "val_check_interval=8 trainer.accumulate_grad_batches=4 trainer.check_val_every_n_epoch=null": (
        "trainer.val_check_interval=8 but trainer.accumulate_grad_batches=4: after 8 windows an "
        "update is only begun; set trainer.val_check_interval=18"
    ),
    "min_epochs=2 trainer.max_steps=35": "trainer.min_epochs=2 are 36 updates but "
    "trainer.max_steps=35: lower the one or raise the other",
}


@pytest.mark.parametrize("assignments", UNFIT)
def test_what_does_not_fit_the_text_is_refused_before_a_run_begins(place, assignments):
    with pytest.raises(UserError) as error:
        place.fit(*f"trainer.{assignments}".split())
    assert str(error.value) == f"1 mistake:\n  {UNFIT[assignments]}"


@pytest.mark.parametrize(
    "assignments",
    [
        "accelerator=auto devices='1' num_nodes=1 precision=32 strategy=auto max_time={seconds:99}",
        "benchmark=true detect_anomaly=true sync_batchnorm=true",
        "deterministic=true",
        "gradient_clip_algorithm=NORM inference_mode=false min_epochs=1 min_steps=3",
        "num_sanity_val_steps=2",
        "num_sanity_val_steps=-1 val_check_interval=18",
        "reload_dataloaders_every_n_epochs=1",
    ],
)
def test_the_run_stays_as_it_is(place, plain, assignments):
    assert_same(plain, place.fit(*(f"trainer.{each}" for each in assignments.split())))


PLATEAU = ("scheduler=plateau", "scheduler.patience=0", *WORSE)


@pytest.mark.parametrize(
    ("arguments", "kills"),
    [
        (("trainer.reload_dataloaders_every_n_epochs=1",), (21,)),
        (("trainer.overfit_batches=6",), (5, 9)),
        (("trainer.limit_train_batches=8", "trainer.accumulate_grad_batches=3"), (14,)),
        ((*PLATEAU, "trainer.val_check_interval=7"), (17, 20)),
        ((*PLATEAU, "trainer.val_check_interval=8", "trainer.check_val_every_n_epoch=null"), (30,)),
        ((*PLATEAU, "trainer.max_epochs=4", "trainer.check_val_every_n_epoch=2"), (20, 60)),
        (("trainer.max_steps=23", "trainer.num_sanity_val_steps=1"), (21,)),
        ((*STOPPING, "trainer.max_epochs=5", "trainer.min_epochs=3"), (40,)),
        ((*STOPPING, "trainer.max_epochs=5", "trainer.min_steps=45"), (40,)),
    ],
)
def test_killed_and_gone_on_with_is_the_same_run(place, arguments, kills):
    assert_same(place.fit(OFTEN, *arguments), place.train(OFTEN, *arguments, kill_at=kills))


def by_hand(place: Place, epochs: list[list[int]], *argv: str, together: int = 1, clip: Any = None):
    """Weights after these windows of each epoch, `together` an update, by plain SGD of rate 1."""
    config = place.config(*argv)
    pl.seed_everything(config["seed"], verbose=False)
    data = make_data(config)
    task = make_task(config, data)
    parameters = list(task.parameters())
    loader = data.loader("train", train=True)
    for chosen in epochs:
        windows = list(loader)
        for first in range(0, len(chosen), together):
            nll, count = torch.zeros(()), 0
            for window in (windows[number] for number in chosen[first : first + together]):
                lost = task.head.nll(
                    task.reader("train", window).read(window.tokens, window.resets).hidden,
                    window.targets,
                )
                nll = nll + lost[window.mask].sum()
                count += window.num_targets
            gradients = torch.autograd.grad(nll / count, parameters)
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter -= gradient if clip is None else gradient.clamp(-clip, clip)
    return task.state_dict()


NO_CLIP = "trainer.gradient_clip_val=null"
EPOCH = list(range(18))


@pytest.mark.parametrize(
    ("arguments", "epochs", "settings"),
    [
        (("accumulate_grad_batches=4",), [EPOCH, EPOCH], {"together": 4}),
        (
            ("limit_train_batches=5", "accumulate_grad_batches=3"),
            [EPOCH[:5], EPOCH[:5]],
            {"together": 3},
        ),
        (
            ("limit_train_batches=0.4", "accumulate_grad_batches=4"),
            [EPOCH[:7], EPOCH[:7]],
            {"together": 4},
        ),
        (("limit_train_batches=1.0", "max_steps=4"), [EPOCH[:4]], {}),
        (("max_epochs=null", "max_steps=20"), [EPOCH, EPOCH[:2]], {}),
        (("gradient_clip_val=0",), [EPOCH, EPOCH], {}),
        (("gradient_clip_val=1e9",), [EPOCH, EPOCH], {}),
        (
            ("gradient_clip_val=0.01", "gradient_clip_algorithm=value"),
            [EPOCH, EPOCH],
            {"clip": 0.01},
        ),
    ],
)
def test_updates_are_those_by_hand(place, arguments, epochs, settings):
    argv = (NO_CLIP, *(f"trainer.{each}" for each in arguments))
    fitted = place.fit(*argv).weights
    with kernels.use("torch"):
        wanted = by_hand(place, epochs, *argv, **settings)
    for name, tensor in wanted.items():
        torch.testing.assert_close(fitted[name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("argument", "repeats"),
    [
        ("trainer.overfit_batches=4.0", True),
        ("trainer.overfit_batches=0.25", True),
        ("trainer.limit_train_batches=4", False),
        ("trainer.reload_dataloaders_every_n_epochs=1", False),
    ],
)
def test_the_windows_of_two_epochs(place, argument, repeats):
    """At a rate of 0 the loss is that of the windows."""
    nll = place.fit(argument, "optimizer.lr=0").of("train/nll")
    half = len(nll) // 2
    assert (nll[:half] == nll[half:]) == repeats


def test_overfit_batches_also_limits_the_validation(place):
    fitted = place.fit("trainer.overfit_batches=2", "optimizer.lr=0")
    assert fitted.of("val/nll") == place.fit(
        "trainer.limit_val_batches=2", "optimizer.lr=0", "trainer.max_epochs=2"
    ).of("val/nll")


def test_a_mixture_cannot_be_overfitted():
    data = {"_target_": "lmkit.store.Mixture", "batch_size": 4, "protocol": "document"}
    config = {
        "data": data,
        "tokenizer": {"_target_": "lmkit.tokenizer.Stored"},
        "trainer": {"overfit_batches": 3, "max_epochs": 1},
    }
    assert contradictions(config, None) == [
        "trainer.overfit_batches=3 but data=mixture never reads a window again; train on one of "
        "its stores, data=store"
    ]


def test_figures_of_a_limit_are_those_of_the_windows_read(place):
    fitted = place.fit(
        "trainer.limit_val_batches=0.7", "trainer.limit_test_batches=4", "trainer.max_epochs=1"
    )
    config = place.config()
    data = make_data(config)
    task = make_task(config, data)
    task.load_state_dict(fitted.weights)
    for stage, split, number in (("val", "valid", 2), ("test", "test", 4)):
        total, count = 0.0, 0
        for window in itertools.islice(data.loader(split), number):
            with kernels.use("torch"), torch.no_grad():
                output = task.reader(stage, window).read(window.tokens, window.resets)
                nll = task.head.nll(output.hidden, window.targets)
            total += float(nll[window.mask].double().sum())
            count += int(window.mask.sum())
        assert fitted.summary[f"{stage}/nll"] == pytest.approx(total / count, rel=1e-12)
        assert f"{stage}/bits_per_byte" not in fitted.summary  # of a part of the bytes


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (("val_check_interval=0.4",), [7, 14, 25, 32]),
        (("val_check_interval=7", "limit_train_batches=0.4"), [7, 14]),
        (("val_check_interval=9", "accumulate_grad_batches=3"), [3, 6, 9, 12]),
        (("val_check_interval=25", "check_val_every_n_epoch=null"), [25]),
        (("check_val_every_n_epoch=2", "max_epochs=5"), [36, 72]),
        (("max_steps=23",), [18, 23]),
        (("limit_val_batches=0",), []),
    ],
)
def test_when_validations_come(place, arguments, steps):
    fitted = place.fit(*(f"trainer.{each}" for each in arguments))
    assert fitted.at("val/nll") == steps


@pytest.mark.parametrize(
    ("arguments", "epochs"),
    [
        (("check_val_every_n_epoch=2", "max_epochs=5"), [2, 4]),
        (("val_check_interval=27", "check_val_every_n_epoch=null", "max_epochs=5"), [2, 3, 5]),
        (("val_check_interval=0.4", "max_epochs=3"), [1, 2, 3]),
    ],
)
def test_plateau_steps_once_after_the_epochs_that_validated(place, arguments, epochs):
    argv = ("scheduler=plateau", "scheduler.patience=0", "scheduler.factor=0.5", *WORSE)
    fitted = place.fit(*argv, *(f"trainer.{each}" for each in arguments))
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.01)
    schedule = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for epoch in epochs:
        newest = max(step for step in fitted.at("val/nll") if step <= 18 * epoch)
        schedule.step(dict(zip(fitted.at("val/nll"), fitted.of("val/nll"), strict=True))[newest])
    saved = fitted.checkpoint["optimizer_states"][0]["param_groups"][0]["lr"]
    assert saved == optimizer.param_groups[0]["lr"] < 0.01


@pytest.mark.parametrize(
    ("arguments", "last"),
    [((), 36), (("min_epochs=3",), 54), (("min_steps=45",), 45), (("min_steps=20",), 36)],
)
def test_early_stopping_waits_for_the_least(place, arguments, last):
    fitted = place.fit(*STOPPING, "trainer.max_epochs=5", *(f"trainer.{a}" for a in arguments))
    assert fitted.checkpoint["global_step"] == fitted.at("val/nll")[-1] == last


def test_max_time_ends_between_two_updates(place, monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(Timer, "time_elapsed", lambda *_: next(seconds))
    fitted = place.train(
        "trainer.max_time=00:00:00:06", "trainer.accumulate_grad_batches=4", "trainer.max_epochs=-1"
    )
    assert fitted.at("val/nll") == [2]
    assert fitted.summary["best/step"] == fitted.checkpoint["global_step"] == 2


@pytest.mark.parametrize(("number", "steps"), [("5", [5, 10]), ("null", []), ("1000", [])])
def test_rows_of_training(place, number, steps):
    fitted = place.fit(f"trainer.log_every_n_steps={number}", "trainer.max_steps=12")
    assert fitted.at("train/nll") == steps


def test_fast_dev_run_reads_some_windows_and_writes_nothing(place, monkeypatch):
    seen = []
    step = Task.training_step
    monkeypatch.setattr(
        Task, "training_step", lambda self, *batch: (seen.append(1), step(self, *batch))[1]
    )
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        place.train("trainer.fast_dev_run=3", "trainer.accumulate_grad_batches=2")
    assert len(seen) == 3
    newest = max(place.outputs.glob("tiny/*"), key=lambda path: path.stat().st_mtime)
    assert not list(newest.glob("checkpoints/*"))
    assert not (newest / "summary.json").exists()


@pytest.mark.parametrize("kind", ["simple", "advanced", "pytorch"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_profile_is_a_file_of_the_run(place, kind):
    fitted = place.fit(f"trainer.profiler={kind}", "trainer.max_steps=6")
    assert "FIT Profiler Report" in (fitted.path / "fit-profile.txt").read_text()


def test_all_gpus_are_taken_where_asked(place, monkeypatch):
    for name, value in (("is_available", True), ("num_here", 2), ("fast_bf16", True)):
        monkeypatch.setattr(hardware, name, lambda _, value=value: value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for devices in ("-1", "'-1'", "auto"):
        config = place.config("trainer=ddp", f"trainer.devices={devices}")
        assert config["trainer"]["devices"] == 2


def test_names_of_a_precision(place):
    names = {"32": "32-true", "null": "32-true", "'32'": "32-true", "bf16": "bf16-mixed"}
    for name, wanted in names.items():
        assert place.config(f"trainer.precision={name}")["trainer"]["precision"] == wanted


def test_every_key_is_tried_here():
    tried = Path(__file__).read_text()
    assert [key for key in KEYS if key not in OWN and f"{key}=" not in tried] == []
