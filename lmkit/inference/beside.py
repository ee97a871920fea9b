"""Other runs that are put beside a first one: how they are found, and loaded to compute as it does.

key: of the command line that names them, for messages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lmkit.errors import UserError
from lmkit.inference.trained import TrainedModel
from lmkit.run import Run, no_checkpoint


def find_beside(run: Run, others: Sequence[str], key: str) -> list[Run]:
    """The other runs, from the same outputs; raises UserError, which names the key."""
    found = []
    for which in others:
        try:
            found.append(Run.find(run.path.parents[1], which, no_checkpoint))
        except UserError as error:
            raise UserError(str(error).replace("RUN=", f"{key}: ", 1)) from None
    paths = [each.path for each in (run, *found)]
    if len(set(paths)) < len(paths):
        raise UserError(f"{key}={','.join(others)}: name each run once, and not RUN again")
    return found


def load_beside(
    run: Run, first: Run, config: Mapping[str, Any], checkpoint: str, key: str
) -> TrainedModel:
    """A run's model, which computes as `config`, that of the first run, says."""
    own = config if run is first else run.config()
    computing = {key: config[key] for key in ("kernels", "threads") if key in config}
    trainer = {key: config["trainer"][key] for key in ("accelerator", "precision")}
    computing["trainer"] = {**own["trainer"], **trainer}
    try:
        return TrainedModel.load(run, {**own, **computing}, checkpoint)
    except UserError as error:
        if run is first:
            raise
        raise UserError(f"{key}: {error}; they are read at the same checkpoint as RUN") from None
