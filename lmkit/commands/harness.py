"""`lmkit harness`: tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from lmkit.errors import UserError
from lmkit.inference import TrainedModel
from lmkit.run import Run, no_checkpoint
from lmkit.system.files import strict_json, write_atomically


def harness(
    run: Annotated[Run, no_checkpoint],
    config: Mapping[str, Any],
    *,
    tasks: str | list[str],
    include_path: str | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    checkpoint: str = "best",
) -> dict[str, Any]:
    """Evaluate on tasks of lm-evaluation-harness, whole contexts at once, no document cut.

        lmkit harness latest tasks=blimp
        lmkit harness latest tasks=[mine] include_path=tasks limit=100

    Each request is a text of its own, read after <eos> from the zero state. The table that the
    harness prints is followed by the file of its results, in harness/ of the run's directory.
    tasks: names of the harness's, or of YAML files in include_path.
    include_path: a directory of tasks of one's own.
    num_fewshot: examples before each question; null: as the task says.
    limit: the first so many items of each task.
    checkpoint: best, last or another of the run's.
    config: that of the run, of which kernels, threads, trainer.accelerator and trainer.precision
    are used
    """
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
        from lm_eval.utils import make_table
    except ImportError as error:
        raise UserError(
            f'lmkit harness needs {error.name}: pip install "recurrent-lmkit[harness]"'
        ) from None
    from lmkit.export.harness import LmkitLM

    names = [tasks] if isinstance(tasks, str) else tasks
    if include_path is not None and not Path(include_path).is_dir():
        raise UserError(f"include_path={include_path} is no directory")
    for key, number in (("limit", limit), ("num_fewshot", num_fewshot)):
        if number is not None and number < (1 if key == "limit" else 0):
            raise UserError(f"{key}={number}: must be at least {1 if key == 'limit' else 0}")
    manager = TaskManager(include_path=include_path)
    if unknown := [name for name in names if not manager.match_tasks([name])]:
        where = f" and none in {include_path}" if include_path else "; name its include_path"
        raise UserError(f"tasks={unknown[0]}: the harness has no such task{where}")
    trained = TrainedModel.load(run, config, checkpoint)
    try:
        found = lm_eval.simple_evaluate(
            model=LmkitLM(trained),
            tasks=names,
            num_fewshot=num_fewshot,
            limit=limit,
            task_manager=manager,
            log_samples=False,
        )
    except (OSError, ValueError, KeyError) as error:  # of a task's file or its data
        raise UserError(f"tasks={'+'.join(names)}: the harness cannot run it: {error}") from error
    print(make_table(found))
    stem = trained.checkpoint.stem if trained.checkpoint else checkpoint
    parts = ["+".join(names)[:100], stem]
    parts += [f"{num_fewshot}-shot"] if num_fewshot is not None else []
    parts += [f"limit-{limit}"] if limit is not None else []
    path = run.path / "harness" / f"{'-'.join(parts)}.json"
    result = {
        "run": f"{run.name}/{run.id}",
        "checkpoint": stem,
        "results": json.loads(json.dumps(found["results"], default=str)),
        "harness": lm_eval.__version__,
    }
    run.check_links()
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, strict_json(result, indent=2).encode())
    print(path)
    return {**result, "file": str(path)}
