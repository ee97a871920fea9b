"""Tracks a run in TensorBoard: rows, samples as text, and hyperparameters with the result."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.logger import _flatten_dict
from lightning.pytorch.loggers import TensorBoardLogger

from lmkit.training.loggers.tracker import NOTHING, Account, Mark, Tracker

# The values by which the HPARAMS tab compares runs.
RESULTS = ("best/val/nll", "best/val/perplexity", "test/nll", "test/perplexity", "val/nll")
# The tab shows the first keys in alphabetical order; these would push aside more useful ones.
NOT_COMPARED = ("callbacks", "logger", "outputs", "run_id", "restarts", "hashes", "versions")


class TensorBoardTracker(Tracker):
    """The tracker of TensorBoard. A run that resumes makes TensorBoard forget all rows from its
    checkpoint's step on, and logs them again."""

    logger: TensorBoardLogger

    def __init__(self, logger: TensorBoardLogger, account: Account, key: str = "") -> None:
        super().__init__(logger, account, key)
        self._before = NOTHING
        if any(Path(logger.log_dir).glob("events.out.tfevents.*")):
            step = account.step or 0
            logger._kwargs["purge_step"] = step
            self._before = (step - 1, sys.maxsize)

    def known(self) -> tuple[Mark, Mark]:
        return self._before, self._before

    def configure(self, config: dict[str, Any]) -> None:
        self._write_hparams(config, None)

    def send_sample(self, row: Mapping[str, Any]) -> None:
        lines = str(row["text"]).split("\n")
        text = "\n".join([f"prompt: `{row['prompt']}`", "", *(f"    {line}" for line in lines)])
        self.logger.experiment.add_text("samples", text, row["step"])

    def note(self) -> None:
        """Does nothing: the step of a checkpoint says which rows TensorBoard keeps."""

    def conclude(self, summary: Mapping[str, float], exit_code: int) -> None:
        if self.logger._experiment is not None:
            self._write_hparams(self.account.config, exit_code)
        super().conclude(summary, exit_code)

    def _write_hparams(self, config: Mapping[str, Any], exit_code: int | None) -> None:
        """Write the values at the start, with exit_code None, and at the end how the run ended.
        TensorBoard reads the results from the scalars of these names."""
        from tensorboard.plugins.hparams.api_pb2 import Status
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
        from torch.utils.tensorboard.summary import hparams

        config = {key: value for key, value in config.items() if key not in NOT_COMPARED}
        # The tab can show lists and null only as text.
        flat = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in _flatten_dict(dict(config)).items()
        }
        experiment, start, end = hparams(flat, dict.fromkeys(RESULTS, math.nan))
        writer = self.logger.experiment._get_file_writer()
        if exit_code is None:
            writer.add_summary(experiment)
            writer.add_summary(start)
            return
        metadata = end.value[0].metadata.plugin_data  # torch always writes success here
        data = HParamsPluginData.FromString(metadata.content)
        status = "STATUS_FAILURE" if exit_code else "STATUS_SUCCESS"
        data.session_end_info.status = Status.Value(status)
        metadata.content = data.SerializeToString()
        writer.add_summary(end)
