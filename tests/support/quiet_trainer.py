"""A Lightning trainer that shows and writes nothing, and a logger that keeps what it is given."""

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger


def make_trainer(**kwargs):
    quiet = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
    }
    return pl.Trainer(**{**quiet, **kwargs})


class Collected(CSVLogger):
    """Keeps what is logged."""

    def __init__(self, directory):
        super().__init__(directory)
        self.rows = []

    def log_metrics(self, metrics, step=None):
        self.rows.append((step, metrics))

    def save(self):
        pass

    def of(self, key):
        """The values of a key, in their order."""
        return [metrics[key] for _, metrics in self.rows if key in metrics]
