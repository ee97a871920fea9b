"""Composition from the command line, and every mistake of a config at once."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from lmkit.config.check import check, split_data
from lmkit.config.compose import Composition, compose, composed
from lmkit.config.grammar import hydra_arguments
from lmkit.errors import UserError
from lmkit.run import Run
from lmkit.system import hardware
from lmkit.system.processes import Launched


def mistakes_of(*argv: str, base: Path | None = None) -> list[str]:
    """The lines of the one error, without their count, which must be right."""
    with pytest.raises(UserError) as error:
        check(compose(argv, base))
    first, *lines = str(error.value).splitlines()
    assert first == f"{len(lines)} mistake{'s' if len(lines) > 1 else ''}:"
    return [line.removeprefix("  ") for line in lines]


def checked(*argv: str, base: Path | None = None) -> dict:
    return check(compose(argv, base))[0]


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    """A directory in the shape of WikiText."""
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text(" = A = \n\n some words \n")
    return f"data.path={tmp_path}"


def test_a_key_that_names_no_group_is_forced_in_so_that_the_check_sees_it():
    composed = compose(["model.hiden_size=3", "modle.x=1", "data.batch_size=40"])
    assert composed.config["model"]["hiden_size"] == 3
    assert composed.config["modle"] == {"x": 1}
    assert composed.config["data"]["batch_size"] == 40
    assert composed.mistakes == []
    assert composed.overrides == ["model.hiden_size=3", "modle.x=1", "data.batch_size=40"]


def test_a_group_takes_an_option_several_or_none():
    assert compose(["model=gru"]).config["model"]["_target_"] == "lmkit.model.GRU"
    several = compose(["logger=[wandb,tensorboard]", "callbacks=[default,early_stopping]"]).config
    assert set(several["logger"]) == {"wandb", "tensorboard"}
    assert {"checkpoint", "early_stopping"} <= set(several["callbacks"])
    without = checked("scheduler=constant", "logger=[]", "callbacks.samples=null")
    assert without["scheduler"] is None
    assert without["logger"] == {}
    assert without["callbacks"].keys() == {"non_finite", "checkpoint", "watchdog"}


@pytest.mark.parametrize(
    ("argv", "tokenizer"),
    [
        ([], "ByteLevelBPE"),
        (["data=wikitext"], "Word"),
        (["data=wikitext", "tokenizer=bytes"], "Bytes"),
        (["tokenizer=bytes", "data=wikitext"], "Bytes"),
        (["experiment=pytorch_examples_200"], "Word"),
        (["experiment=pytorch_examples_200", "data=pydocs"], "ByteLevelBPE"),
        (["experiment=pytorch_examples_200", "tokenizer=characters"], "Characters"),
    ],
)
def test_data_chooses_the_tokenizer_unless_told_otherwise(argv, tokenizer):
    assert compose(argv).config["tokenizer"]["_target_"] == f"lmkit.tokenizer.{tokenizer}"


@pytest.mark.parametrize("key", ["data.path", "data.valid_path", "tokenizer.path", "outputs"])
@pytest.mark.parametrize(
    "value",
    [
        "/My Data (1)/x, y [z]/*.txt",
        '/don\'t/"quote"',
        "/a\\b\\",
        "/${seed}/\\${x}/$HOME",
        "/key=value,1..2",
        "/über/数据",
        " leading and trailing ",
        "null",
        "'",
        '"',
    ],
)
def test_paths_are_taken_verbatim(key, value):
    found = compose([f"{key}={value}"]).config
    for part in key.split("."):
        found = found[part]
    assert found.endswith(value)


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0")))
@settings(max_examples=25, deadline=None)
def test_any_text_survives_the_command_line_and_the_run_directory(tmp_path_factory, text):
    own = compose([f"text={text}", f"file={text}"], own=("text", "file")).own
    assert own == {"text": text, "file": text}
    run = tmp_path_factory.mktemp("run") / "config.yaml"
    run.write_text(yaml.safe_dump({"callbacks": {"samples": {"prompt": text}}}), encoding="utf-8")
    assert compose([], base=run).config["callbacks"]["samples"]["prompt"] == text
    assert compose([f"callbacks.samples.prompt={text}"], base=run).config == compose([], run).config


def test_paths_that_exist_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    composed = compose(["data=files", "data.path=corpus", "data.valid_path=corpus/*.gz"]).config
    assert composed["outputs"] == str(tmp_path / "outputs")
    assert composed["data"]["path"] == str(tmp_path / "corpus")
    assert composed["data"]["valid_path"] == str(tmp_path / "corpus" / "*.gz")
    assert compose(["data=files", "data.path=nowhere"]).config["data"]["path"] == "nowhere"


def test_a_list_of_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b, c.txt", "a1.txt", "[x]"):
        (tmp_path / name).write_text("text")

    def path(text: str) -> object:
        return compose(["data=files", f"data.path={text}"]).config["data"]["path"]

    assert path('[a*.txt, "b, c.txt" ,gone.txt]') == [
        str(tmp_path / "a*.txt"),
        str(tmp_path / "b, c.txt"),
        "gone.txt",
    ]
    assert path("[x]") == str(tmp_path / "[x]")
    assert path("[a-z]*[0-9].txt") == str(tmp_path / "[a-z]*[0-9].txt")
    long = "x" * 300
    assert path(f"[{long},{long}]") == [long, long]
    assert path("[]") == []
    assert path("[a\rb\nc]") == str(tmp_path / "[a\rb\nc]")
    assert mistakes_of("data=wikitext", "data.path=[a1.txt]")[0].startswith("data.path=[")
    files = [str(tmp_path / "a1.txt"), str(tmp_path / "b, c.txt")]
    found = checked("data=files", f'data.path=[a1.txt,"{files[1]}"]')
    assert found["data"]["path"] == files


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("^# ", "^# "),
        ('"^a, b"', "^a, b"),
        ("'", "'"),
        ("[,]", "[,]"),
        ("null", None),
        ("a=1", "a=1"),
    ],
)
def test_patterns_and_characters_need_no_quotes(written, value):
    composed = compose(["data=csv", f"data.quote={written}", f"data.heading={written}"]).config
    assert composed["data"]["quote"] == composed["data"]["heading"] == value


@pytest.mark.parametrize(
    ("argv", "mistakes"),
    [
        (["data=spam", "data.path=x", "data.column=body"], ["data=spam: no such option of data"]),
        (["data.path=x", "data=spam"], ["data=spam: no such option of data"]),
        (["model=lsmt", "model.hidden_size=3", "data=spam"], ["mean lstm?", "data=spam: no such"]),
        (
            ["data=csf", "data.path=.", "data.column=body"],
            ["mean csv?", " names no files that end"],
        ),
        (
            ["data=jsonlines", "data.path=x", "data.feild=body"],
            [
                "mean jsonl?",
                "data.feild is not a key of lmkit.corpus.Jsonl; did you mean data.fi",
                "data.path=x does not exist",
            ],
        ),
        (["data=csv"], ["data.path is required by lmkit.corpus.Csv; set data.path=..."]),
        (["data=csv", "data.path=missing.csv"], ["data.path=missing.csv does not exist; "]),
        (
            ["data=tsv", "data.path=missing.tsv", "data.colum=x"],
            [
                "data.colum is not a key of lmkit.corpus.Csv; did you mean data.column?",
                "data.path=missing.tsv does not exist",
            ],
        ),
        (
            ["data=files", "data.path=.", "data.encoding=utf-61"],
            ["data.encoding=utf-61 is no enc", " names no files"],
        ),
        (
            ["data=csv", "data.path=.", "data.header=false"],
            ["data.header=false but data.column=", " names no files that end in .csv"],
        ),
    ],
)
def test_a_mistake_is_told_once(argv, mistakes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = mistakes_of(*argv)
    assert len(found) == len(mistakes)
    for mistake, part in zip(found, mistakes, strict=True):
        assert part in mistake


def test_numbers_are_read_as_the_user_means_them():
    found = checked(
        "optimizer=sgd", "optimizer.lr=20", "optimizer.weight_decay='1e-6'", "trainer.max_steps=1e3"
    )
    assert found["optimizer"]["lr"] == 20.0
    assert found["optimizer"]["weight_decay"] == 1e-6
    assert found["trainer"]["max_steps"] == 1000
    assert type(found["trainer"]["max_steps"]) is int
    assert checked("run_id=17", "name=3")["run_id"] == "17"


def test_secrets_stay_unresolved_and_everything_else_is_resolved(tmp_path, monkeypatch):
    (tmp_path / "hidden-200.txt").write_text("some words\n")
    monkeypatch.setenv("LMKIT_TEST_PLACE", str(tmp_path / "hidden"))
    found = checked(
        "data=files",
        "data.path=${oc.env:LMKIT_TEST_PLACE}-200.txt",
        "run_id='${model.hidden_size}'",
    )
    assert found["data"]["path"] == "${oc.env:LMKIT_TEST_PLACE}-200.txt"
    assert found["run_id"] == "200"
    assert "hidden" not in str(found).replace("hidden_size", "")


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("${oc.env:PLACE}-${model.hidden_size}", "${oc.env:PLACE}-200"),
        ("${ oc.env : PLACE , 3 }", "${oc.env:PLACE,3}"),
        ("${oc.env:PLACE,null}", "${oc.env:PLACE,null}"),
        ("${oc.decode:${oc.env:PLACE}}", "${oc.env:PLACE}"),
        ("${logger.wandb.entity}", "${oc.env:PLACE}"),
    ],
)
def test_no_way_to_write_it_resolves_a_secret(written, kept, monkeypatch):
    monkeypatch.setenv("PLACE", "hidden")
    argv = ["logger=wandb", "logger.wandb.entity='${oc.env:PLACE}'"]
    found = compose([*argv, f"logger.wandb.group='{written}'"]).config
    assert found["logger"]["wandb"]["group"] == kept
    assert OmegaConf.create({"a": "${oc.env:PLACE}"}).a == "hidden"  # and OmegaConf's is back


def test_a_broken_interpolation_is_a_mistake():
    (mistake,) = mistakes_of("seed='${nothing.there}'")
    assert "nothing.there" in mistake


MANY = {
    "model=lstmm": "model=lstmm: no such option of model; did you mean lstm?",
    "scheduler=[x]": "scheduler=x: no such option of scheduler; "
    "there are: constant, cosine, hold_then_decay, inverse_sqrt, linear, milestones, one_cycle, "
    "plateau, step, wsd",
    "stray": "stray: expected key=value",
    "seed=1,2": "seed=1,2: a run takes one value; for a run of each combination add -m "
    "(lmkit train -m ...) or take lmkit sweep; a list as one value is written [a,b]",
    "modle.x=1": "modle is not a key; did you mean model?",
    "name=[a]": "name=[a]: expected letters, digits and any of ._+=,@- after the first letter or "
    "digit (it names a directory inside outputs), and not `latest`",
    "data.batchsize=3": "data.batchsize is not a key of lmkit.corpus.WikiText; "
    "did you mean data.batch_size?",
    "data.protocol=document_": "data.protocol=document_: expected document | sentence | stream, "
    "found text; did you mean document?",
    "model.hiden_size=650": "model.hiden_size is not a key of lmkit.model.LSTM; "
    "did you mean model.hidden_size?",
    "optimizer.lr=-1": "optimizer.lr=-1.0: Invalid learning rate: -1.0",
    "trainer.precision=bf16_mixed": "trainer.precision=bf16_mixed: did you mean bf16-mixed?",
    "trainer.max_epochs=-2": "trainer.max_epochs=-2: must be at least -1",
    "trainer.plugins=[]": "trainer.plugins is set by lmkit itself and cannot be configured",
    "+data.bptt.x=1": "data.bptt={'x': 1}: expected int, found a mapping",
    "callbacks.checkpoint.keep=0": "callbacks.checkpoint.keep=0: must be at least 2",
    "callbacks.mine._target_=os.system": "callbacks.mine._target_: os.system is not allowed: a "
    "class must come from lmkit, lightning, torch, torchmetrics",
    "callbacks.sgd._target_=torch.optim.SGD": "callbacks.sgd._target_: torch.optim.SGD is not a "
    "lightning.pytorch.callbacks.Callback",
}


def test_all_mistakes_are_reported_together():
    found = mistakes_of("data=wikitext", *MANY)
    required = "data.path is required by lmkit.corpus.WikiText; set data.path=..."
    assert sorted(found) == sorted([*MANY.values(), required])


def test_tied_weights_of_a_model_that_cannot_change_size_are_a_mistake():
    (mistake,) = mistakes_of("model=window", "model.hidden_size=650", "model.tie_weights=true")
    assert mistake == (
        "model.hidden_size=650 but model.embedding_size=200: tied weights need them equal; set "
        "model.tie_weights=false or make them equal"
    )


def test_compiled_kernels_that_cannot_be_had_are_a_mistake(monkeypatch):
    for module in ("kernels", "kernels.library"):
        monkeypatch.setattr(f"lmkit.{module}.load", lambda: (None, "no gcc on the PATH"))
    assert mistakes_of("kernels=compiled") == [
        "kernels=compiled: no gcc on the PATH; set kernels=torch"
    ]
    assert checked("kernels=auto")["kernels"] == "torch"
    assert mistakes_of("kernels=fast")[0].startswith("kernels=fast: expected auto | compiled")


def test_a_value_out_of_hydras_grammar_says_how_to_quote_it():
    (mistake,) = mistakes_of("seed=[a")
    assert mistake.startswith("seed=[a: ")
    assert mistake.endswith("put the value in quotes within the shell's, as 'key=\"value\"'")


def test_a_missing_path_is_found_before_data_is_touched(tmp_path):
    (mistake,) = mistakes_of("data=wikitext", f"data.path={tmp_path / 'gone'}")
    assert mistake.startswith(f"data.path={tmp_path / 'gone'} does not exist")


@pytest.mark.parametrize(
    ("argv", "mistake"),
    [
        (
            ["trainer=ddp_cpu", "trainer.devices=3"],
            "data.batch_size=20 but there are 3 processes: the lanes must divide by their number; "
            "set data.batch_size=18 or 21, or the processes to one of 1, 2, 4, 5, 10, 20",
        ),
        (
            ["trainer=ddp_cpu", "data.batch_size=1"],
            "data.batch_size=1 but there are 2 processes: the lanes must divide by their number; "
            "set data.batch_size=2, or the processes to one of 1",
        ),
        (
            ["trainer.max_epochs=-1"],
            "trainer.max_epochs=-1 and trainer.max_steps=-1: training would never end; set one of "
            "them, or trainer.max_time",
        ),
        (
            ["scheduler=plateau", "trainer.limit_val_batches=0"],
            "scheduler watches val/nll but trainer.limit_val_batches=0; validate, or set "
            "scheduler=constant",
        ),
        (
            ["scheduler=plateau", "data.valid_fraction=0"],
            "scheduler watches val/nll but data has no valid split (it has train, test); validate, "
            "or set scheduler=constant",
        ),
        (
            ["callbacks=early_stopping", "trainer.limit_val_batches=0"],
            "callbacks.early_stopping.monitor=val/nll but trainer.limit_val_batches=0; validate, "
            "or set callbacks.early_stopping=null",
        ),
        (
            ["trainer.precision=16-mixed"],
            "trainer.precision=16-mixed but trainer.accelerator=cpu: fp16 needs a GPU; set "
            "trainer.precision=bf16-mixed or 32-true",
        ),
        (
            ["scheduler=cosine", "scheduler.warmup_steps=100", "trainer.max_steps=50"],
            "scheduler.warmup_steps=100 but trainer.max_steps=50: the learning rate would never "
            "leave its warm-up; lower the one or raise the other",
        ),
        (["restarts=-1"], "restarts=-1: must be at least 0"),
        (["threads=0"], "threads=0: must be at least 1"),
        (
            ["trainer=ddp_cpu", "trainer.num_nodes=2", "data.batch_size=8"],
            "trainer.num_nodes=2: on several machines torchrun or srun starts the processes "
            "(docs/reliability.md); leave it out here",
        ),
    ],
)
def test_contradictions_between_groups(argv, mistake):
    assert mistakes_of(*argv) == [mistake]


@pytest.mark.parametrize("devices", ["abc", "3.5", "'0'", "'-1'", "[0,1]", "[]", "'0,1'"])
def test_devices_of_the_cpu_are_a_number(devices):
    found = devices.strip("'").replace(",", ", " if devices[0] == "[" else ",")
    assert mistakes_of(f"trainer.devices={devices}") == [
        f"trainer.devices={found}: expected a number of devices"
    ]


@pytest.fixture
def gpus(monkeypatch):
    monkeypatch.setattr(hardware, "is_available", lambda name: True)
    monkeypatch.setattr(hardware, "num_here", lambda name: 4)
    monkeypatch.setattr(hardware, "fast_bf16", lambda name: True)


@pytest.mark.parametrize(
    ("devices", "number"), [("[0,1]", 2), ("'0,2'", 2), ("'3,'", 1), ("2", 2), ("'4'", 4)]
)
def test_gpus_may_be_told_by_their_numbers(devices, number, gpus):
    trainer = checked("trainer=gpu", f"trainer.devices={devices}")["trainer"]
    assert hardware.num_devices(trainer) == number


@pytest.mark.parametrize("devices", ["[0,0]", "[]", "'0,x'", "[[0]]", "'0,0'", "some", "'0'"])
def test_numbers_that_are_none_of_gpus(devices, gpus):
    (mistake,) = mistakes_of("trainer=gpu", f"trainer.devices={devices}")
    assert mistake.startswith("trainer.devices=")
    assert mistake.endswith(
        ": expected a number of devices, or a list of GPUs by their numbers, as [0,1]"
    )


@pytest.mark.parametrize("trainer", ["gpu", "ddp", "mps"])
def test_an_accelerator_that_is_not_here(trainer, monkeypatch):
    monkeypatch.setattr(hardware, "is_available", lambda name: name == "cpu")
    name = "mps" if trainer == "mps" else "cuda"
    assert mistakes_of(f"trainer={trainer}") == [
        f"trainer.accelerator={name}: PyTorch sees none here; set trainer=cpu"
    ]


def test_more_devices_than_there_are(monkeypatch):
    monkeypatch.setattr(hardware, "is_available", lambda name: True)
    monkeypatch.setattr(hardware, "num_here", lambda name: 2)
    monkeypatch.setattr(hardware, "fast_bf16", lambda name: False)
    assert mistakes_of("trainer=gpu", "trainer.devices=4", "trainer.precision=bf16-mixed") == [
        "trainer.devices=4: this machine has 2; set trainer.devices=2",
        "trainer.precision=bf16-mixed but this GPU or its cuDNN cannot compute recurrent layers in "
        "bf16; set trainer.precision=16-mixed or 32-true",
    ]


@pytest.mark.parametrize(("fast", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_auto_precision_is_decided_and_written_down(fast, precision, monkeypatch):
    monkeypatch.setattr(hardware, "fast_bf16", lambda name: fast)
    assert checked("trainer.precision=auto")["trainer"]["precision"] == precision
    assert checked("trainer.precision=32-true")["trainer"]["precision"] == "32-true"


def test_threads_are_shared_by_the_processes_and_written_down(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 12)
    assert checked()["threads"] is None  # a trial chooses
    assert checked("trainer=ddp_cpu", "trainer.devices=4")["threads"] == 3
    assert checked("threads=5")["threads"] == 5


def test_whoever_started_the_processes_knows_their_number(monkeypatch):
    place = Launched("torchrun", 5, 8, 1, 4)
    monkeypatch.setattr("lmkit.config.check.launched", lambda: place)
    monkeypatch.setattr("lmkit.config.contradictions.launched", lambda: place)
    trainer = checked("trainer=ddp_cpu", "data.batch_size=16", "data.eval_batch_size=8")["trainer"]
    assert (trainer["devices"], trainer["num_nodes"]) == (4, 2)


def test_a_gpu_without_bf16_trains_in_fp16(monkeypatch):
    monkeypatch.setattr(hardware, "fast_bf16", lambda name: False)
    assert hardware.precision("cuda") == "16-mixed"
    assert hardware.precision("mps") == "32-true"


@pytest.mark.parametrize(
    ("trainer", "count"),
    [
        ({"accelerator": "cpu", "devices": "auto"}, 1),
        ({"accelerator": "cpu", "devices": 4}, 4),
        ({"accelerator": "cpu", "devices": "4", "num_nodes": 2}, 8),
        ({"accelerator": "cuda", "devices": "0,2,3"}, 3),
        ({"accelerator": "cuda", "devices": [1, 3]}, 2),
        ({}, 1),
    ],
)
def test_processes_are_devices_by_nodes(trainer, count, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert hardware.num_processes(trainer) == count


def write_run(tmp_path: Path, *argv: str) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(checked(*argv), sort_keys=False))
    return path


def test_a_run_is_a_base_that_composes_to_itself(tmp_path):
    base = write_run(
        tmp_path, "model=gru", "data=files", f"data.path=${{oc.env:NOT_SET,{Path(__file__)}}}"
    )
    assert checked(base=base) == yaml.safe_load(base.read_text())


def test_a_run_of_before_a_key_was_renamed_is_read_and_the_old_name_is_a_mistake(tmp_path):
    config = checked("tokenizer=word", "tokenizer.vocabulary_size=50")
    assert config["tokenizer"]["vocabulary_size"] == 50
    old = {**config, "tokenizer": {"_target_": "lmkit.tokenizer.Word", "max_size": 50}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old, sort_keys=False))
    assert checked(base=tmp_path / "config.yaml") == config == Run(tmp_path).config()
    assert mistakes_of("tokenizer=word", "tokenizer.max_size=50") == [
        "tokenizer.max_size is not a key of lmkit.tokenizer.Word; did you mean "
        "tokenizer.vocabulary_size?"
    ]
    (mistake,) = mistakes_of("tokenizer=bpe", "tokenizer.vocab_size=50")
    assert mistake.endswith("did you mean tokenizer.vocabulary_size?")


def test_an_option_composes_its_group_afresh_and_then_values_merge(tmp_path):
    base = write_run(tmp_path, "model=gru", "model.dropout=0.5", "data.batch_size=40", "seed=3")
    found = checked("model.num_layers=3", "model=elman", "data.bptt=7", base=base)
    assert found["model"] == {
        "_target_": "lmkit.model.Elman",
        "embedding_size": 200,
        "hidden_size": 200,
        "num_layers": 3,
        "dropout": 0.2,
        "tie_weights": True,
        "nonlinearity": "tanh",
    }
    assert found["data"]["batch_size"] == 40
    assert found["data"]["bptt"] == 7
    assert found["seed"] == 3
    assert found["name"] == "quick"


def test_a_group_composed_afresh_knows_nothing_of_the_default_experiment(tmp_path, corpus):
    base = write_run(tmp_path, "data.protocol=stream")
    assert checked("data=wikitext", corpus, base=base)["data"].keys() == {"_target_", "path"}


def test_an_existing_run_takes_no_experiment(tmp_path):
    base = write_run(tmp_path)
    (mistake,) = mistakes_of("experiment=document", base=base)
    assert mistake.startswith("experiment=document: sets up a new run; an existing run takes ")


def test_keys_are_taken_away_with_a_tilde(tmp_path):
    base = write_run(tmp_path, "callbacks.checkpoint.keep=5")
    assert "samples" not in checked("~callbacks.samples", base=base)["callbacks"]
    assert mistakes_of("~callbacks.nothing", base=base) == [
        "~callbacks.nothing: there is no callbacks.nothing"
    ]


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_a_damaged_base_is_named(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=f"^{path} is damaged: "):
        compose([], base=path)


def test_a_config_on_disk_cannot_allow_code(tmp_path):
    base = write_run(tmp_path)
    config = yaml.safe_load(base.read_text())
    config["model"] = {"_target_": "os.system", "command": "true"}
    config["LMKIT_ALLOW"] = "os"
    base.write_text(yaml.safe_dump(config))
    found = mistakes_of(base=base)
    assert any(line.startswith("model._target_: os.system is not allowed") for line in found)


def test_users_add_groups_of_their_own(tmp_path):
    folder = tmp_path / "my, [conf]"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "tiny.yaml").write_text("_target_: lmkit.model.LSTM\nhidden_size: 8\n")
    argv = ["model=tiny", "--config-dir", str(folder), "model.embedding_size=8"]
    assert checked(*argv)["model"]["hidden_size"] == 8
    with pytest.raises(UserError, match="no such directory"):
        compose(["--config-dir", str(tmp_path / "gone")])


def test_flags_that_start_several_runs_are_refused():
    for flag in (["-m"], ["--multirun"], ["--experimental-rerun", "x"], ["--config-path", "x"]):
        with pytest.raises(UserError):
            compose(["seed=1", *flag])


def test_hydras_own_flags_see_the_same_command_line():
    argv = ["--cfg", "job", "model=gru", "modle=1", "data.path=a, b"]
    assert hydra_arguments(argv) == [
        "--cfg",
        "job",
        "model=gru",
        "++modle=1",
        '++data.path="a, b"',
    ]
    with pytest.raises(UserError, match="did you mean gru"):
        hydra_arguments(["--cfg", "job", "model=grru"])


def test_a_commands_own_keys_are_no_keys_of_the_config():
    def command(run: object, *, split: str = "test", num_tokens: int = 5) -> None: ...

    composed = compose(["split=valid", "num_tokens=1e2"], own=("split", "num_tokens"))
    config, own = check(composed, command)
    assert own == {"split": "valid", "num_tokens": 100}
    assert "split" not in config
    with pytest.raises(UserError) as error:
        check(compose(["splt=valid", "num_tokens=x"], own=("split", "num_tokens")), command)
    assert str(error.value).splitlines()[1:] == [
        "  splt is not a key; did you mean split?",
        "  num_tokens=x: expected int, found text",
    ]


def test_a_command_that_reads_a_run_needs_no_machine_and_no_data(tmp_path, monkeypatch):
    composed = compose(["data=wikitext", f"data.path={tmp_path / 'gone'}", "trainer=gpu"])
    monkeypatch.setattr(hardware, "is_available", lambda name: name == "cpu")
    config, _ = check(composed, trains=False)
    assert config["trainer"]["accelerator"] == "cuda"


def test_data_splits_into_source_and_settings():
    node = {"_target_": "lmkit.corpus.Files", "path": "x", "unit": "line", "bptt": 3}
    assert split_data(node) == (
        {"_target_": "lmkit.corpus.Files", "path": "x", "unit": "line"},
        {"bptt": 3},
    )


def test_nothing_composed_is_nothing_to_check():
    assert check(Composition()) == ({}, {})


def test_a_file_of_the_users_that_is_no_yaml_is_a_mistake(tmp_path):
    (tmp_path / "model").mkdir()
    file = tmp_path / "model" / "bad.yaml"
    file.write_text("_target_: lmkit.model.LSTM\nhidden_size: a: b\n")
    for composing in (compose, composed):
        with pytest.raises(UserError) as error:
            composing([f"--config-dir={tmp_path}", "model=bad"])
        assert str(error.value) == (
            f'1 mistake:\n  mapping values are not allowed here in "{file}", line 2, column 15'
        )
