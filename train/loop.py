"""The training loop that pretraining, fine-tuning and studies share.

`Trainer.train` is the loop, `Trainer.step` one optimiser step. Guarantees, each with a test in
`tests/train/`: the loss is a mean over all tokens of the global batch, so neither the micro-batch
size nor the number of ranks changes it; resume continues exactly where the checkpoint was taken; a
step with a non-finite loss or gradient is skipped; SIGINT and SIGTERM save and exit.

A step has no host sync: the device itself skips an update that is not finite, and the host reads
the loss and the gradient norm when they are there, at the latest during the next step. On a CPU that
is at once. On a GPU the row of a step is written during the next one, ten skipped steps in a row
end the run at the eleventh, and a loss spike and the end of `max_seconds` cost one more step. Before an evaluation or a
checkpoint the last step is read: what is saved does not depend on the late reading.
"""

import math
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cli.console import say
from cli.errors import UserError
from configs.schema import TrainConfig
from data.loader import build_loader
from data.shards import Windows
from model.flops import training_flops
from model.formats.native import checkpoints
from model.transformer import Transformer
from tokenizer.bpe import Tokenizer
from train.batches import Batches, StepBatch
from train.checkpoint import Progress, TrainState, restore, rewind, seed_generators
from train.compilation import compile_if_faster
from train.distributed import Ranks, sync_gradients
from train.ema import ema_weights, start_ema, update_ema
from train.evaluate import evaluate, evaluation_subset
from train.forward import Batch, DataSet, set_forward, summed_loss
from train.guard import Guard
from train.late import LateRead, UnreadStep, no_garbage_collection
from train.memory import BestWeights
from train.metrics import Metrics, peak_memory
from train.optim import build_optimizers, clip_gradients, learning_rate, skip_update_unless, step_flops
from train.preflight import find_micro_batch, frozen_hash, report_duration, report_setup, uses_bfloat16
from train.profiler import Profiler, parse_window, peak_flops
from train.saver import Saver
from train.signals import Signals
from train.watchdog import Watchdog


@dataclass(frozen=True)
class RunResult:
    """The outcome of `Trainer.train`, including the part before a resume."""

    progress: Progress
    bits_per_byte: float
    """The score of the last evaluation; NaN if a signal came before the first one."""
    peak_bytes: int
    signal: int
    """The signal that ended the run early, or 0."""


class Trainer:
    """One training run; every rank creates a Trainer and calls `train`, once."""

    def __init__(
        self,
        model: Transformer,
        train_set: DataSet,
        validation_set: DataSet,
        tokenizer: Tokenizer,
        config: TrainConfig,
        run: Path,
        ranks: Ranks,
        *,
        resume: bool = False,
        profile: str | None = None,
        keep_best: bool = False,
        in_memory: BestWeights | None = None,
        evaluations: int = 0,
    ):
        """Prepare to train the parameters of `model` that require gradients.

        Checkpoints, metrics and plots go to the run directory `run`. `resume` continues from its
        newest checkpoint, if there is one. `profile` names steps to profile, as "10:13".
        `keep_best` saves whenever the validation score improves, as `config.patience` does.
        `in_memory` keeps the best weights, instead of checkpoints in `run`. `evaluations` is the number of
        evaluations after the start, evenly spaced over `config.steps`, instead of `config.eval_every`.

        Raises UserError if the batch does not divide over ranks, memory is too small, or the
        checkpoint to resume does not match the model.
        """
        if config.batch_size % ranks.world_size:
            raise UserError(
                f"train.batch_size = {config.batch_size} does not divide over {ranks.world_size} ranks; use a multiple"
            )
        if config.document_mask:  # the caller's sets stay as they are
            train_set, validation_set = copy(train_set), copy(validation_set)
            train_set.separator = validation_set.separator = tokenizer.separator_id
        self.model, self.run, self.ranks, self.device = model.train(), run, ranks, ranks.device
        self.train_set, self.validation_set, self.keep_best = train_set, validation_set, keep_best
        self.evaluations = evaluations
        fingerprint = f"{train_set.fingerprint}:{frozen_hash(model)}"
        bfloat16 = uses_bfloat16(config.precision, model, self.device)
        self.autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=bfloat16)
        set_forward(model, checkpointing=config.activation_checkpointing)
        self.wrapped = ranks.wrap(model, config.parallel, bfloat16)
        micro, pass_seconds = find_micro_batch(self.wrapped, train_set, config, ranks, self.autocast)
        self.config = config = config.model_copy(update={"micro_batch_size": micro})
        report_setup(model, train_set, config, ranks, bfloat16)
        speedup = compile_if_faster(model, self.wrapped, train_set, config, ranks, self.autocast, run, pass_seconds)
        seed_generators(config.seed + ranks.rank)

        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.ema = start_ema(self.parameters) if config.ema else {}
        loader = build_loader(train_set, config.batch_size, config.seed)
        self.batches = Batches(train_set, loader, ranks, micro)
        products = torch.bfloat16 if bfloat16 else torch.float32
        self.optimizers = build_optimizers(self.parameters, config, model.config.width_ratio, products)
        self.state = TrainState(self.parameters, self.optimizers, self.batches, tokenizer, fingerprint, self.ema)
        self.progress = self.state.progress
        if resume and not checkpoints(run):
            say(f"{run}: no checkpoint to resume yet; starting from step 0")
            resume = False
        if resume:
            restore(run, self.state, ranks)
        self.resumed, self.started_at, self.score = resume, self.progress.step, math.nan
        self.subset = evaluation_subset(validation_set, config, self.progress.evaluated_windows)
        self.progress.evaluated_windows = len(self.subset)
        left = max(0.0, 1 - position(self.progress, self.progress.seconds, config)[0])
        sets, seconds = (train_set, validation_set), pass_seconds / (speedup or 1)
        report_duration(model, sets, config, ranks, seconds, len(self.subset), self.progress.step, left)
        # Compiled code is specialised to one shape; batches of examples have many.
        self.evaluates_compiled = speedup is not None and isinstance(validation_set, Windows)
        self.profiler = Profiler(run, parse_window(profile) if profile else None, ranks.rank)
        self.peak_flops = peak_flops(self.device, bfloat16)
        self.saver: Saver | BestWeights = in_memory or Saver(run, config.keep_last, ranks)
        self.guard = Guard(run, ranks.rank, self.progress)
        self.unread: UnreadStep | None = None  # the last step, whose results are still on the device

    def train(self) -> RunResult:
        """The loop: evaluate and save when due, then one step, until the run is done or a signal comes.

        Raises UserError if gradients stay non-finite, or the last checkpoint cannot be saved.
        """
        config, progress, ranks = self.config, self.progress, self.ranks
        with (
            Signals() as signals,
            Watchdog(ranks, config.hang_seconds, progress),
            Metrics(self.run, config, self.started_at if self.resumed else -1, ranks.is_main) as self.metrics,
            closing(self.batches),
            no_garbage_collection(),
        ):
            while True:
                stop, save_now, seconds = self.sync_flags(signals)
                done, end = position(progress, seconds, config)
                # The run before the resume has already evaluated and saved this step.
                is_new = progress.step > self.started_at or not self.resumed
                is_last, bits_per_byte, improved = done >= 1, None, False
                evaluation_due = not stop and (is_last or (is_new and self.is_evaluated(progress.step)))
                save_due = progress.step > 0 and progress.step % config.save_every == 0
                if (evaluation_due or save_due or save_now or stop) and self.finish_last_step():
                    continue  # rewound
                if evaluation_due:
                    bits_per_byte, improved = self.evaluate()
                    is_last = is_last or 0 < config.patience <= progress.stale  # early stopping
                save_due = save_due or (improved and (self.keep_best or config.patience > 0))
                if is_new and (save_due or is_last or stop or save_now):
                    self.saver.save(self.state, bits_per_byte)
                if is_last and not stop:
                    self.evaluate_whole_split()
                if is_last or stop:
                    self.profiler.close()
                    self.saver.finish()
                    break
                self.profiler.before_step(progress.step + 1)
                self.step(end)
        set_forward(self.model)  # what follows has other shapes
        # A signal after the last step stops nothing. `stop` may come from another rank's signal.
        received = (signals.received or signal.SIGTERM) if stop else 0
        return RunResult(progress, self.score, peak_memory(self.device), int(received))

    def is_evaluated(self, step: int) -> bool:
        """Whether an evaluation is due after `step` steps."""
        if not self.evaluations:
            return step % self.config.eval_every == 0
        n, steps = self.evaluations, self.config.steps
        return step * n // steps > (step - 1) * n // steps

    def step(self, end: float) -> None:
        """One optimiser step; `end` is the share of the run that will be done after it.

        Gradient accumulation over micro-batches, gradient clipping, update, EMA. Then reads the
        results of the step before.
        """
        started = time.perf_counter()
        config, ranks, progress = self.config, self.ranks, self.progress
        if self.unread is None:
            self.clock = started
        batch = self.batches.next()
        loading = time.perf_counter() - started
        tokens, padded = (int(total) for total in ranks.sum(batch.tokens, batch.padded))
        # DDP averages gradients over ranks; the loss is a sum over this rank's tokens.
        loss_sum = self.backward(batch.micro_batches, scale=ranks.world_size / max(1, tokens))
        loss = ranks.sum_on_device(loss_sum) / max(1, tokens)
        norm = clip_gradients(self.parameters, config.clip_norm)
        lr = learning_rate(end, config)
        self.update(lr, is_finite=loss.isfinite() & norm.isfinite())
        flops = self.advance(tokens, padded)
        row = {"step": progress.step, "lr": lr, "tokens": progress.tokens, "epoch": batch.epoch}
        row |= {"loader_seconds": loading, "memory_bytes": peak_memory(self.device)}
        last_step, self.unread = self.unread, UnreadStep(row, batch, padded, flops, LateRead(loss, norm))
        if last_step is not None and self.finish(last_step):
            return
        if self.unread.results.is_on_host:
            self.finish_last_step()

    def backward(self, batches: Sequence[Batch], scale: float) -> torch.Tensor:
        """Add `scale` times the gradient of each micro-batch's loss; returns the summed loss in nats, float64."""
        loss_sum = torch.zeros((), device=self.device)
        for i, batch in enumerate(batches):
            # Gradient accumulation: ranks exchange gradients once, in the last backward pass.
            with sync_gradients(self.wrapped, i == len(batches) - 1):
                with self.autocast:
                    loss = summed_loss(self.wrapped, batch, self.train_set.separator, self.device)
                (loss * scale).backward()
            loss_sum += loss.detach()
        return loss_sum.double()

    def update(self, lr: float, is_finite: torch.Tensor) -> None:
        """Apply the gradients at learning rate `lr` if `is_finite` (a bool on the device); update the EMA."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("scale", 1.0)
            skip_update_unless(is_finite, optimizer)
            optimizer.step()
            optimizer.zero_grad()
        update_ema(self.ema, self.parameters, self.config.ema, self.progress.step + 1)

    def finish(self, step: UnreadStep) -> bool:
        """Read the results of a step and write its row; whether a loss spike has rewound the run."""
        loss, norm = step.results.read()
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        self.progress.seconds += seconds
        self.guard.check_finite(step.row["step"], loss, norm, step.batch.micro_batches)
        row = step.row | {
            "loss": loss,
            "grad_norm": norm,
            "tokens_per_second": step.padded / seconds,
            "seconds": self.progress.seconds,
            "mfu": self.peak_flops and step.flops / seconds / self.peak_flops / self.ranks.world_size,
        }
        self.metrics.step(row, position(self.progress, self.progress.seconds, self.config)[0])
        if self.guard.is_spike(row["step"], loss) and self.config.on_spike == "rewind":
            return self.rewind(step.batch)
        return False

    def finish_last_step(self) -> bool:
        """`finish` the last step, unless it is finished."""
        step, self.unread = self.unread, None
        return step is not None and self.finish(step)

    def advance(self, tokens: int, padded: int) -> float:
        """Count one step in the progress; returns its FLOPs."""
        length = padded // self.config.batch_size
        flops = training_flops(self.model, padded, tokens, length) + step_flops(self.optimizers)
        self.progress.step += 1
        self.progress.tokens += tokens
        self.progress.flops += flops
        return flops

    def sync_flags(self, signals: Signals) -> tuple[bool, bool, float]:
        """Share flags over ranks: whether any should stop, whether any should save, the main rank's seconds.

        Also commits a checkpoint that all ranks have written.
        """
        save_requested, signals.save_requested = signals.save_requested, False
        seconds, stop, save_now, writing, failed = self.ranks.sum(
            self.progress.seconds * self.ranks.is_main,
            signals.received,
            save_requested,
            self.saver.is_writing,
            self.saver.error is not None,
        )
        self.saver.commit_or_discard(writing, failed)
        return bool(stop), bool(save_now), seconds

    def evaluate(self) -> tuple[float, bool]:
        """Score the validation subset; returns bits per byte, and whether that is the best so far."""
        result = self.run_evaluation(self.subset)
        self.metrics.evaluation({"step": self.progress.step, **result})
        self.score = result["bits_per_byte"]
        return self.score, self.progress.update_best(self.score)

    def evaluate_whole_split(self) -> None:
        """Score the whole validation split once, at the end of the run."""
        if len(self.subset) < len(self.validation_set):
            result = self.run_evaluation(None)
            self.metrics.final_evaluation(self.progress.step, len(self.validation_set), result)
            self.score = result["bits_per_byte"]

    def run_evaluation(self, windows: np.ndarray | None) -> dict[str, float]:
        """`evaluate` on `windows` of the validation split (None: all), with the EMA weights if any."""
        with ema_weights(self.ema, self.parameters):
            return evaluate(
                self.wrapped,
                self.model,
                self.validation_set,
                self.config,
                self.ranks,
                self.autocast,
                windows,
                self.evaluates_compiled,
            )

    def rewind(self, batch: StepBatch) -> bool:
        """Return to the newest checkpoint, if any, and continue with the data after `batch`."""
        self.saver.wait()
        if not checkpoints(self.run):
            return False
        self.unread = None
        self.batches.restore(batch.position)
        rewind(self.run, self.state, self.ranks)
        self.metrics.rewind(self.progress.step)
        self.started_at, self.resumed = self.progress.step, True
        return True


def position(progress: Progress, seconds: float, config: TrainConfig) -> tuple[float, float]:
    """The share (0 to 1) of the run that is done, and the share after the next step."""
    if not (config.max_seconds or config.max_flops):
        return progress.step / config.steps, (progress.step + 1) / config.steps
    spent = seconds if config.max_seconds else progress.flops
    done = spent / (config.max_seconds or config.max_flops)
    # The next step is assumed to take the mean time of the steps so far; the first has no estimate.
    return done, max(done + done / max(1, progress.step), 0.01 * config.warmup)
