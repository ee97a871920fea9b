"""A run in wandb: config, rows, a table of samples, the result, and how it ended."""

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
MOST_SAMPLES = 100  # in the table, which is written anew with each: the newest


class WandbTracker(Tracker):
    """A wandb run that may go on, where wandb numbers rows by itself.

    Offline every process that goes on writes a directory of its own; `wandb sync` uploads them in
    order and appends. wandb's ways to go back (`resume_from`, `fork_from`) ask the server, and
    a wandb run that is killed loses what it has not written to its file. So the rows that its files
    hold are read back, those beyond are logged, again or for the first time, and no row is twice.
    Online what the server has counts: so many of these rows.
    """

    logger: WandbLogger

    def known(self) -> tuple[Mark, Mark]:
        rows = list(self._recorded())
        run = self.logger.experiment
        # wandb's log of its own is a link to the user's cache until the run ends; a run whose
        # directory has a link out of it, as of one that is killed, does not go on.
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
        """Nothing: its files tell."""

    def conclude(self, summary: Mapping[str, float], exit_code: int) -> None:
        type(self.logger).finalize(self.logger, "failed" if exit_code else "success")
        if (run := self.logger._experiment) is None:
            return
        try:
            run.summary.update(dict(summary))
        finally:
            # Or a later run in this process would be merged into it.
            run.finish(exit_code=exit_code)
            self.logger._experiment = None

    def _recorded(self) -> Iterator[dict[str, Any]]:
        """The rows in the files of this run, oldest first, those of samples included."""
        place = Path(str(self.logger.save_dir)) / "wandb"
        parts = place.glob(f"*run-*/run-{self.logger.version}.wandb")
        for file in sorted(parts, key=lambda file: file.parent.name.removeprefix("offline-")):
            if file.parent.is_symlink():  # latest-run
                continue
            for record in records(file):
                if record.HasField("history"):
                    items = record.history.item
                    # A table is written as its fields, each under the key and its own name.
                    row = {item.key or item.nested_key[0]: item.value_json for item in items}
                    if STEP in row:
                        yield row | {STEP: json.loads(row[STEP])}
