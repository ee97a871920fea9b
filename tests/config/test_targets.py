"""A config names classes of known packages and nothing else."""

import sys
import types

import pytest
from lightning.pytorch.callbacks import Callback
from torch.optim import Optimizer

from lmkit.config.targets import SLOTS, resolve_target, slot_bases
from lmkit.errors import UserError


@pytest.mark.parametrize("slot", SLOTS)
def test_every_slot_has_a_base_class(slot):
    assert isinstance(slot_bases(slot)[0], type)


def test_a_class_is_found_where_it_is_named():
    assert resolve_target("torch.optim.SGD", (Optimizer,)).__module__ == "torch.optim.sgd"
    assert resolve_target("lmkit.corpus.Pydocs").__name__ == "Pydocs"


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "builtins.open",
        "builtins.eval",
        "subprocess.Popen",
        "torch.hub.load",
        "torch.hub.os.system",
        "torch.hub.subprocess.Popen",
        "torch.load",
        "torch.serialization.pickle.Unpickler",
        "torch.multiprocessing.Process",
        "torch.distributed.elastic.multiprocessing.subprocess_handler.SubprocessHandler",
        "torch.utils.cpp_extension.load",
        "torch.utils.data.IterableDataset",
        "torch.package.PackageImporter",
        "lightning.pytorch.cli.LightningCLI",
        "lmkit.training.failure.Failure.take",
        "torch",
        "torch.optim",
        "lmkit.corpus.pydocs.platform.popen",
        "lmkit.corpus.finding.Path",
        "lmkit.config.compose.compose.compose.compose.compose.compose.compose",
        "lmkit.cli.os.system",
        "lmkit.cli.os.PathLike",
        "lightning.pytorch.Trainer.fit",
        "torch.optim.SGD.__init__",
        "torch.optim.SGD.__class__",
        "torchx.Evil",
        "lmkitten.Evil",
        "",
        None,
        3,
        ["torch.optim.SGD"],
    ],
)
def test_functions_modules_and_foreign_classes_are_refused(path):
    with pytest.raises(UserError):
        resolve_target(path)


def test_a_class_of_another_slot_is_refused():
    with pytest.raises(UserError) as error:
        resolve_target("torch.nn.Linear", (Optimizer,))
    assert str(error.value) == "torch.nn.Linear is not a torch.optim.Optimizer"
    with pytest.raises(UserError) as error:
        resolve_target("torch.nn.Linear")
    assert str(error.value) == "torch.nn.Linear fits no group of the config"


def test_what_does_not_exist_is_named_as_far_as_it_does_not():
    with pytest.raises(UserError, match=r"^torch\.optim\.SDG does not exist"):
        resolve_target("torch.optim.SDG")
    with pytest.raises(UserError, match=r"^torch\.optim\.SGD\.Inner does not exist"):
        resolve_target("torch.optim.SGD.Inner")


def test_a_refused_module_is_not_even_imported(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError) as error:
        resolve_target("evil.Thing")
    assert str(error.value) == (
        "evil.Thing is not allowed: a class must come from lmkit, lightning, torch, torchmetrics; "
        "if evil is a package that you trust: export LMKIT_ALLOW=evil"
    )
    assert "evil" not in sys.modules


def test_the_environment_allows_a_package_of_the_user(monkeypatch):
    mine = types.ModuleType("mine")
    mine.Quiet = type("Quiet", (Callback,), {"__module__": "mine"})
    monkeypatch.setitem(sys.modules, "mine", mine)
    with pytest.raises(UserError, match="not allowed"):
        resolve_target("mine.Quiet", (Callback,))
    monkeypatch.setenv("LMKIT_ALLOW", "other, mine")
    assert resolve_target("mine.Quiet", (Callback,)) is mine.Quiet


def test_a_class_smuggled_into_an_allowed_module_is_refused(monkeypatch):
    import lmkit.errors

    foreign = type("Foreign", (Callback,), {"__module__": "foreign"})
    monkeypatch.setattr(lmkit.errors, "Foreign", foreign, raising=False)
    with pytest.raises(UserError, match=r"^lmkit\.errors\.Foreign is not a class of lmkit, "):
        resolve_target("lmkit.errors.Foreign", (Callback,))
