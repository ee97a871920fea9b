"""Shards as tasks of datatrove's executors, and the tokens that datatrove itself writes."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmkit.cli import main
from lmkit.errors import UserError
from lmkit.store import Datatrove, prepare
from lmkit.tokenizer import Bytes, Pretrained, Word

pytest.importorskip("datatrove")

TEXTS = [f"document {n} has {'some ' * (n % 7)}words\nand a line\n" for n in range(60)]

EXECUTE = """
import sys
from lmkit.corpus.source import Source

Source.piece_bytes = 400  # of the files' bytes: several shards
from lmkit.cluster import shard_step

store, kind, *arguments = sys.argv[1:]
if __name__ == "__main__":
    step = shard_step(arguments, store, workers=1)
    assert len(step.jobs) > 8
    settings = {"logging_dir": f"{store}.logs"}
    if kind == "local":
        from datatrove.executor import LocalPipelineExecutor

        LocalPipelineExecutor([step], tasks=4, workers=2, **settings).run()
    elif kind == "ray":
        import ray
        from datatrove.executor import RayPipelineExecutor

        ray.init(num_cpus=2, include_dashboard=False)
        RayPipelineExecutor([step], tasks=4, workers=2, mem_per_cpu_gb=0.1, **settings).run()
    else:
        from datatrove.executor import SlurmPipelineExecutor

        place = {"partition": "cpu", "time": "1:00:00", "slurm_logs_folder": f"{store}.slurm"}
        SlurmPipelineExecutor([step], tasks=4, **place, **settings).run()
"""

PREPARE = """
import sys
from lmkit.cli import main
from lmkit.corpus.source import Source

Source.piece_bytes = 400
sys.exit(main(["prepare", "workers=1", *sys.argv[1:]]))
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("cluster") / "text"
    directory.mkdir()
    for number in range(12):
        lines = [json.dumps({"text": text}) for text in TEXTS[number::12]]
        (directory / f"{number:02d}.jsonl").write_text("\n".join(lines))
    return directory


def python(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def arguments(text: Path, tmp_path: Path) -> list[str]:
    outputs = f"outputs={tmp_path / 'outputs'}"
    return ["data=jsonl", f"data.path={text}", "tokenizer=word", outputs]


def sums(store: Path) -> dict[str, str]:
    return {str(file.relative_to(store)): file.read_text() for file in store.rglob("manifest.json")}


def executed(kind: str, text: Path, tmp_path: Path) -> None:
    """The store of an executor's tasks is that of one process."""
    script = tmp_path / "execute.py"  # which the executors' processes import, as a user's
    script.write_text(EXECUTE)
    given = arguments(text, tmp_path)
    store, plain = tmp_path / "store", tmp_path / "plain"
    subprocess.run(
        [sys.executable, str(script), str(store), kind, *given],
        check=True,
        capture_output=True,
        timeout=280,
    )
    made = {file: file.stat().st_mtime_ns for file in store.rglob("tokens.bin")}
    assert len(made) > 8
    assert not (store / "data.json").exists()
    for place in (store, plain):
        python(PREPARE, *given, f"store={place}")
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert sums(store) == sums(plain)
    assert (store / "data.json").read_text() == (plain / "data.json").read_text()


def test_tasks_of_the_local_executor(text: Path, tmp_path: Path) -> None:
    executed("local", text, tmp_path)


@pytest.mark.slow
def test_tasks_of_ray(text: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    executed("ray", text, tmp_path)


def test_the_script_for_slurm_and_one_of_its_tasks(text: Path, tmp_path: Path) -> None:
    """Without a SLURM: an `sbatch` that notes what it is given, and a task by its environment."""
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(
        f'#!/bin/sh\nfor file; do :; done\ncat "$file" >> {tmp_path}/submitted\n'
        "echo Submitted batch job 17\n"
    )
    sbatch.chmod(0o755)
    paths = f"{sbatch.parent}:{os.environ['PATH']}"
    store = tmp_path / "store"
    python(EXECUTE, str(store), "slurm", *arguments(text, tmp_path), PATH=paths)
    script = (tmp_path / "submitted").read_text()
    assert script.startswith("#!/bin/bash\n#SBATCH --cpus-per-task=1\n")
    for directive in ("array=0-3", "partition=cpu", "time=1:00:00"):
        assert f"#SBATCH --{directive}\n" in script
    (pickle,) = set(re.findall(r"launch_pickled_pipeline (\S+)", script))
    assert subprocess.run(["bash", "-n"], input=script, text=True).returncode == 0
    assert not list(store.rglob("tokens.bin"))
    task = {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_JOB_ID": "17", "RUN_OFFSET": "0"}
    task |= {"SLURM_JOB_ID": "17", "SLURM_NODEID": "0", "SLURM_NODELIST": "here", "PATH": paths}
    scontrol = sbatch.with_name("scontrol")
    scontrol.write_text("#!/bin/sh\necho here\n")
    scontrol.chmod(0o755)
    launch = "import sys; from datatrove.tools.launch_pickled_pipeline import main; main()"
    python(launch, pickle, **task)
    made = sorted(store.glob("*/[0-9]*[0-9]"))
    assert {int(path.name) % 4 for path in made if path.parent.name == "train"} == {1}


# ---- what datatrove's DocumentTokenizer writes


def library(directory: Path, size: int = 300) -> Path:
    """A tokenizer.json over words, `</s>` being the last of `size` ids."""
    words = sorted({word for text in TEXTS for word in text.split()})
    vocabulary = {word: n for n, word in enumerate(["<unk>", *words])}
    vocabulary |= {f"unused{n}": n for n in range(len(vocabulary), size - 1)}
    model = {"type": "WordLevel", "vocab": vocabulary | {"</s>": size - 1}, "unk_token": "<unk>"}
    added = {"id": size - 1, "content": "</s>", "special": True, "single_word": False}
    added |= {"lstrip": False, "rstrip": False, "normalized": False}
    value = {"version": "1.0", "added_tokens": [added], "model": model}
    file = directory / f"tokenizer-{size}.json"
    file.write_text(json.dumps(value | {"pre_tokenizer": {"type": "Whitespace"}}))
    return file


def tokenized(directory: Path, file: Path, eos: str | None = "</s>") -> Path:
    """What datatrove makes of TEXTS in four tasks."""
    from datatrove.data import Document
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.tokens import DocumentTokenizer

    def documents(data: Any, rank: int, world_size: int) -> Any:
        for number, text in list(enumerate(TEXTS))[rank::world_size]:
            yield Document(text=text, id=str(number))

    writer = DocumentTokenizer(
        str(directory), str(file), eos_token=eos, shuffle_documents=False, seed=1
    )
    LocalPipelineExecutor(
        [documents, writer], tasks=4, workers=1, logging_dir=f"{directory}.logs"
    ).run()
    return directory


@pytest.mark.parametrize("size", [300, 70_000])
def test_datatroves_tokens_are_read_where_they_lie(tmp_path: Path, size: int) -> None:
    file = library(tmp_path, size)
    place = tokenized(tmp_path / "train", file)
    tokenizer = Pretrained(str(file))
    prepared = prepare(Datatrove(str(place), valid_path=str(place / "00001*.ds")), tokenizer,
                       tmp_path / "cache")  # fmt: skip
    store = prepared.stores["train"]
    assert (len(store.parts), len(prepared.stores["valid"].parts)) == (4, 1)
    assert store.tokens.dtype == (np.uint16 if size == 300 else np.uint32)
    expected = tokenizer.encode([text for rank in range(4) for text in TEXTS[rank::4]])
    assert store.tokens[:].tolist() == expected.ids.tolist()
    assert store.document_ends.tolist() == expected.document_ends.tolist()
    assert store.document_id(15).endswith(".ds:1")
    with pytest.raises(UserError, match=r"^data=datatrove has no line ends: "):
        store.line_ends  # noqa: B018
    again = prepare(Datatrove(str(place), valid_path=str(place / "00001*.ds")), tokenizer,
                    tmp_path / "cache")  # fmt: skip
    assert again.hash == prepared.hash
    assert len(list((tmp_path / "cache").iterdir())) == 2


def refused(place: Path, tokenizer: Any, cache: Path) -> str:
    with pytest.raises(UserError) as caught:
        prepare(Datatrove(str(place)), tokenizer, cache)
    return str(caught.value)


def test_tokens_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    file = library(tmp_path)
    place = tokenized(tmp_path / "train", file)
    cache, tokenizer = tmp_path / "cache", Pretrained(str(file))
    assert refused(place, Bytes(), cache).endswith(
        "has the token 299, beyond the tokenizer's vocabulary of 257: it was made with another"
    )
    assert "give the one they were made with, tokenizer=pretrained" in refused(place, Word(), cache)
    assert "tokens of 2 bytes, too few for the tokenizer's vocabulary of 70,000" in refused(
        place, Pretrained(str(library(tmp_path, 70_000))), cache
    )
    assert "60 of 60 documents do not end with token 62, " in refused(
        place, Pretrained(str(file), eos="and"), cache
    )
    without = tokenized(tmp_path / "without", file, eos=None)
    assert "60 of 60 documents do not end with token 299, " in refused(without, tokenizer, cache)
    first = min(place.glob("*.ds"))
    metadata = first.with_name(f"{first.name}.metadata")
    metadata.write_text(metadata.read_text().replace("|2", "|4"))
    assert f"{first} is damaged: found " in refused(place, tokenizer, cache)
    metadata.write_text(metadata.read_text().replace("|4", "|2").replace("\n", "\n1"))
    assert refused(place, tokenizer, cache).startswith(f"{metadata} says 1")
    metadata.unlink()
    assert prepare(Datatrove(str(place)), tokenizer, cache).stores["train"].num_documents == 60
    os.truncate(first, first.stat().st_size - 2)
    assert f"{first} is damaged: found " in refused(place, tokenizer, cache)
    first.with_name(f"{first.name}.index").unlink()
    assert f"{first} has no {first.name}.index" in refused(place, tokenizer, cache)


def test_a_model_is_trained_on_datatroves_tokens(tmp_path: Path, capsys: Any) -> None:
    file = library(tmp_path)
    place = tokenized(tmp_path / "train", file)
    given = ["data=datatrove", f"data.path={place}", f"data.valid_path={place / '00001*.ds'}"]
    given += [f"data.test_path={place / '00002*.ds'}", f"tokenizer.path={file}"]
    size = ["model.embedding_size=8", "model.hidden_size=8", "model.num_layers=1"]
    size += ["data.batch_size=4", "trainer.max_epochs=1", f"outputs={tmp_path / 'outputs'}"]
    assert main(["train", *given, *size, "run_id=a"]) == 0
    data = json.loads((tmp_path / "outputs/quick/a/data.json").read_text())
    assert data["splits"]["train"]["num_documents"] == 60
    assert main(["evaluate", "a", f"outputs={tmp_path / 'outputs'}", "format=json"]) == 0
    capsys.readouterr()
    assert main(["train", *given[:-1], "tokenizer=word", *size]) == 2
    assert "data=datatrove has tokens, no text to train a tokenizer on" in capsys.readouterr().err
