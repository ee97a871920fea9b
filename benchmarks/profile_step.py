"""Where the time of a training step goes, by PyTorch's profiler over some steps of a fit.

    python benchmarks/profile_step.py path=DIR [shape=650_tied] [precision=bf16-mixed] [steps=10]

Products of LSTM weights are told by their shapes; what the compiled kernels take is the own time
of the functions that call them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
from measure import console, print_header, settings
from rich.table import Table
from torch.profiler import ProfilerActivity, profile
from turns import Settings, make_trainer, start

from lmkit.system.allocator import keep_freed_memory
from lmkit.training.components import make_task

WARM_UP = 3
KERNELS = {
    "CompiledLSTM": "LSTM forward",
    "CompiledLSTMBackward": "LSTM backward through time",
    "LinearCrossEntropy": "head: products and softmax",
    "KeyedDropout": "dropout",
    "aten::add_": "the update, sums of gradients",
    "aten::copy_": "copies and changes of precision",
    "aten::linalg_vector_norm": "the gradient's norm",
}


@dataclass
class ProfileSettings(Settings):
    shape: str = "650_tied"
    precision: str = "bf16-mixed"
    steps: int = 10


class Profiled(pl.Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)

    def on_train_batch_start(
        self, trainer: pl.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        if index == WARM_UP:
            self.profile.__enter__()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == WARM_UP + self.steps:
            self.profile.__exit__(None, None, None)


def main() -> None:
    given = settings(ProfileSettings)
    print_header()
    config, data = start(given)
    task = make_task(config, data)
    profiled = Profiled(given.steps)
    steps = WARM_UP + given.steps
    trainer = make_trainer(config, profiled, max_steps=steps, limit_val_batches=0)
    keep_freed_memory()
    trainer.fit(task, datamodule=data)
    times: Counter[str] = Counter()
    gates = {layer.num_gates * layer.hidden_size for layer in task.model.layers}
    for event in profiled.profile.key_averages(group_by_input_shape=True):
        name = KERNELS.get(event.key, "all else")
        if event.key in ("aten::mm", "aten::addmm"):
            lstm = any(n in gates for shape in event.input_shapes for n in shape)
            name = "products of the LSTM's gradients" if lstm else "other products"
        times[name] += event.self_cpu_time_total
    total = sum(times.values())
    table = Table(title=f"a step of {given.shape}, {given.precision}", title_justify="left")
    for column in ("", "ms", "share"):
        table.add_column(column, justify="right" if column else "left")
    for name, microseconds in times.most_common():
        table.add_row(
            name, f"{microseconds / given.steps / 1e3:.1f}", f"{microseconds / total:.1%}"
        )
    table.add_row("together", f"{total / given.steps / 1e3:.1f}", "100%")
    console.print(table)


if __name__ == "__main__":
    main()
