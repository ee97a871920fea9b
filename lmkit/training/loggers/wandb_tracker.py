"""Tracks a run in wandb: config, rows, a table of samples, the result, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from lmkit.training.loggers.tracker import Mark, Rows, Tracker
from lmkit.training.loggers.wandb import records

STEP = "trainer/global_step"  # Lightning's x-axis
SAMPLES = "samples"
MOST_SAMPLES = 100  # newest samples in the table, which is written anew with each


class WandbTracker(Tracker):
    """The tracker of wandb, which resumes a run although wandb numbers rows by itself.

    Offline, every resume writes a directory of its own; `wandb sync` uploads them in order and
    appends. wandb can set a run back (`resume_from`, `fork_from`) only on its server, and a killed
    run loses what it has not written to its file. So the rows in its files are read back, and only
    rows after these are logged: none is logged twice. Online, only as many of these rows count as
    the server has.
    """

    logger: WandbLogger

    def known(self) -> tuple[Mark, Mark]:
        rows = list(self._recorded())
        run = self.logger.experiment
        # Until a run ends, wandb's own log is a link to the user's cache. A killed run keeps the
        # link, and lmkit does not resume a run whose directory has a link out of it.
        for link in (Path(run.settings.sync_dir) / "logs").glob("*"):
            if link.is_symlink():
                link.unlink()
        if not run.offline:
            rows = rows[: run.starting_step]
        metrics, samples = Rows(), Rows()
        for row in rows:
            (samples if SAMPLES in row else metrics).is_new({"step": row[STEP]})
        return metrics.last, samples.last

    def configure(self, config: dict[str, Any]) -> None:
        super().configure(config)
        self._table: list[list[Any]] = []

    def send_sample(self, row: Mapping[str, Any]) -> None:
        import wandb

        table = wandb.Table(columns=["step", "epoch", "prompt", "text"], data=self._table)
        self.logger.experiment.log({SAMPLES: table, "epoch": row["epoch"], STEP: row["step"]})

    def _log_sample(self, row: Mapping[str, Any]) -> None:
        line = [row[key] for key in ("step", "epoch", "prompt", "text")]
        self._table = [*self._table, line][-MOST_SAMPLES:]
        super()._log_sample(row)

    def note(self) -> None:
        """Does nothing: the rows are in its files."""

    def conclude(self, summary: Mapping[str, float], exit_code: int) -> None:
        type(self.logger).finalize(self.logger, "failed" if exit_code else "success")
        if (run := self.logger._experiment) is None:
            return
        try:
            run.summary.update(dict(summary))
        finally:
            # Else a later run in this process would be merged into this one.
            run.finish(exit_code=exit_code)
            self.logger._experiment = None

    def _recorded(self) -> Iterator[dict[str, Any]]:
        """The rows in the files of this run, oldest first, including those of samples."""
        directory = Path(str(self.logger.save_dir)) / "wandb"
        files = directory.glob(f"*run-*/run-{self.logger.version}.wandb")
        for file in sorted(files, key=lambda file: file.parent.name.removeprefix("offline-")):
            if file.parent.is_symlink():  # latest-run
                continue
            for record in records(file):
                if record.HasField("history"):
                    items = record.history.item
                    # A table is written as its fields, each under the key and its own name.
                    row = {item.key or item.nested_key[0]: item.value_json for item in items}
                    if STEP in row:
                        yield row | {STEP: json.loads(row[STEP])}
