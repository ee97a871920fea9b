"""Makes the loggers of a config, each with its tracker."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from lmkit.config.build import build
from lmkit.config.safety import anchored
from lmkit.config.signatures import signature_keys
from lmkit.config.targets import resolve_target
from lmkit.errors import UserError
from lmkit.run import Run
from lmkit.system.processes import launched
from lmkit.system.redaction import redact
from lmkit.training.loggers.tensorboard_tracker import TensorBoardTracker
from lmkit.training.loggers.tracker import Account, CSVTracker, Tracker, notes
from lmkit.training.loggers.wandb_tracker import WandbTracker

log = logging.getLogger(__name__)


TRACKERS: dict[type[Logger], type[Tracker]] = {
    WandbLogger: WandbTracker,
    TensorBoardLogger: TensorBoardTracker,
    CSVLogger: CSVTracker,
}


def make_trackers(nodes: Mapping[str, Any], run: Run, account: Account) -> list[Tracker]:
    """The trackers of the loggers of a checked config; one that cannot be made costs a warning.

    Of several processes only the first has any.
    """
    process = launched()
    if process and process.rank:
        return []
    made = []
    for key, node in nodes.items():
        try:
            logger = _make(key, node, run)
            kind = next(
                (each for base, each in TRACKERS.items() if isinstance(logger, base)), Tracker
            )
            tracker = kind(logger, account, key)  # may still change how the logger begins
            _ = getattr(logger, "experiment", None)  # begun here, where an error does no harm
        except UserError:
            raise
        except Exception as error:  # a service or its library may raise anything
            what = redact(f"{type(error).__name__}: {error}")
            log.warning("logger.%s cannot start (%s): the run goes on without it", key, what)
            continue
        made.append(tracker)
    return made


def _make(key: str, node: Mapping[str, Any], run: Run) -> Logger:
    """A logger that writes inside the run directory, and continues what it has of the run."""
    name = f"{run.name}/{run.id}"
    known = notes(run.path).get(key, {}).get("version")
    passed = {
        "save_dir": run.path,
        "version": run.id,
        "run_name": name,
        "run_id": known,
        "experiment_key": known or hashlib.sha256(str(run.path).encode()).hexdigest()[:40],
    }
    local = "tracking_uri" in signature_keys(resolve_target(node["_target_"]))
    if local and not (node.get("tracking_uri") or os.environ.get("MLFLOW_TRACKING_URI")):
        # MLflow now refuses its own default, files below the current directory.
        node = {"artifact_location": "mlflow", **node}
        node["tracking_uri"] = f"sqlite:///{run.path / 'mlflow.db'}"
    made: Logger = build("logger", anchored(node, run.path), **passed)
    return made
