"""Metrics of a run: progress bar or log lines, metrics.jsonl, and wandb or TensorBoard if enabled."""

import contextlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from rich.progress import TextColumn

from cli.atomic import to_json, write_atomically
from cli.console import bar, console, say
from cli.errors import UserError
from configs.schema import TrainConfig


class Metrics:
    """Writes `metrics.jsonl` and shows progress, on the main rank only."""

    def __init__(self, run: Path, config: TrainConfig, start_step: int, is_main: bool):
        """Drops rows after `start_step`, which an interrupted run may have left; -1 drops all."""
        self.config, self.is_main, self.wandb = config, is_main, None
        self.tensorboard = None
        self.started: tuple[float, float] | None = None
        if not is_main:
            return
        self.path = run / "metrics.jsonl"
        self._open(start_step)
        self.bar = bar(TextColumn("{task.fields[status]}"))
        self.bar.start()
        self.total, self.unit = config.steps, "steps"
        if config.max_seconds:
            self.total, self.unit = round(config.max_seconds), "s"
        elif config.max_flops:
            self.total, self.unit = 100, "%"
        self.task = self.bar.add_task("training", total=self.total, status="")
        if config.wandb != "off":
            self.wandb = _wandb(run, config)
        if config.tensorboard:
            self.tensorboard = _tensorboard(run, start_step)

    def _open(self, last_step: int) -> None:
        rows = read_metrics(self.path.parent)
        kept = [to_json(row) for row in rows if row["step"] <= last_step]
        write_atomically(self.path, "".join(f"{line}\n" for line in kept))
        self.file = open(self.path, "a", encoding="utf-8", buffering=1)

    def __enter__(self) -> "Metrics":
        return self

    def __exit__(self, *_: object) -> None:
        if not self.is_main:
            return
        self.bar.stop()
        self.file.close()
        if self.wandb:
            self.wandb.finish()
        if self.tensorboard:
            self.tensorboard.close()

    def step(self, row: dict, share: float) -> None:
        """Record one training step; `share` of the run is done."""
        if not self.is_main:
            return
        done = share * self.total
        if self.started is None:  # the first step of a process is slower: keep it out of the estimate
            self.started = (done, row["seconds"])
        self._write(row)
        status = f"loss {row['loss']:.4f}  {row['tokens_per_second']:,.0f} tokens/s"
        if row["mfu"]:
            status += f"  mfu {row['mfu']:.0%}"
        rate = (done - self.started[0]) / max(1e-9, row["seconds"] - self.started[1])
        left = max(0.0, self.total - done) / rate if rate else 0.0
        if price := self.config.price_per_hour:
            status += f"  total price {price * (row['seconds'] + left) / 3600:,.2f}"
        self.bar.update(self.task, completed=min(done, self.total), status=status)
        if not console.is_terminal and row["step"] % self.config.log_every == 0:
            say(
                f"step {row['step']}  {done:.0f}/{self.total} {self.unit}  {status}  "
                f"lr {row['lr']:.2e}  grad {row['grad_norm']:.2f}  {format_duration(left)} left"
            )

    def evaluation(self, row: dict) -> None:
        """Record one evaluation."""
        if not self.is_main:
            return
        self._write(row)
        say(
            f"step {row['step']}  validation: {row['bits_per_byte']:.4f} bits per byte, "
            f"loss {row['validation_loss']:.4f}, perplexity {row['perplexity']:.2f}"
        )

    def final_evaluation(self, step: int, windows: int, scores: dict[str, float]) -> None:
        """Record the scores of the whole validation split, under `whole_…` keys."""
        if not self.is_main:
            return
        self._write({"step": step} | {f"whole_{name}": value for name, value in scores.items()})
        say(
            f"step {step}  all {windows:,} windows of the validation split: "
            f"{scores['bits_per_byte']:.4f} bits per byte, loss {scores['validation_loss']:.4f}"
        )

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, to which the run has been rewound."""
        if self.is_main:
            self.file.close()
            self._open(step)

    def _write(self, row: dict) -> None:
        self.file.write(to_json(row) + "\n")
        known = {k: v for k, v in row.items() if k != "step" and v is not None and v == v}
        if self.wandb:
            self.wandb.log(known, step=row["step"])
        if self.tensorboard:
            for name, value in known.items():
                self.tensorboard.add_scalar(name, value, row["step"])


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds, as 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def read_metrics(run: Path) -> list[dict]:
    """The rows of a run's metrics.jsonl, without a truncated last line.

    A non-finite loss or gradient norm is None.
    """
    rows = []
    if (run / "metrics.jsonl").exists():
        for line in (run / "metrics.jsonl").read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:
                break
    return rows


def peak_memory(device: torch.device) -> int:
    """Bytes: the GPU's peak allocation, or the process's peak resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text(encoding="utf-8").split("VmHWM:")[1].split()[0]) * 1024
    import psutil

    return psutil.Process().memory_info().rss  # other systems: the memory in use now


def reset_peak_memory(device: torch.device) -> None:
    """Reset `peak_memory` to the memory in use now, where the system can (Linux, CUDA)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def _tensorboard(run: Path, start_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("train.tensorboard = true needs: pip install tensorboard") from None
    return SummaryWriter(run / "tensorboard", purge_step=max(0, start_step + 1))


def _wandb(run: Path, config: TrainConfig) -> Any:
    try:
        import wandb
    except ImportError:
        raise UserError(f'train.wandb = "{config.wandb}" needs: pip install wandb') from None
    os.environ.setdefault("WANDB_SILENT", "true")
    identity = run / "wandb-id"
    if not identity.exists():
        identity.write_text(secrets.token_hex(4))
    return wandb.init(
        project="homegrown",
        name=run.name,
        id=identity.read_text(),
        resume="allow",
        dir=run,
        mode="online" if config.wandb == "online" else "offline",
        config=config.model_dump(),
    )
