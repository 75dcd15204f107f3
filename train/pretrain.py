"""Train a transformer from nothing, on one core or under torchrun on many GPUs.

    python -m train.pretrain RECIPE [--run-dir DIR] [--resume | --overwrite] [--train.steps 200 …]
    torchrun --standalone --nproc-per-node 2 -m train.pretrain RECIPE …

Prepares what is missing (documents, tokenizer, token shards; cached by content) and fills a run
directory that is complete in itself: config.toml, tokenizer.json, metrics.jsonl, checkpoints/,
plots/loss.png, sample.txt. Ctrl-C and SIGTERM save and say how to go on.
"""

import math
import signal
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from configs.cli import UserError, parse, run_command
from configs.console import say, show
from configs.schema import Recipe, TrainConfig
from data.examples import Examples
from data.loader import Loader
from data.prepare import prepare
from data.shards import Windows, cached_tokenizer, write_shards
from model.formats.native import checkpoints, load_run
from model.sample import prompt_ids, sample
from model.transformer import IGNORE, Transformer
from tokenizer.bpe import Tokenizer
from train.average import averaged, start_average, update_average
from train.checkpoint import Progress, TrainState, restore, rewind, seed_generators
from train.compilation import compile_where_it_pays
from train.distributed import Ranks, gradients_summed
from train.evaluate import evaluate, evaluation_subset
from train.foresight import describe, describe_time, find_micro_batch, frozen_hash, uses_bfloat16
from train.guard import Guard
from train.metrics import Metrics, peak_memory, plot_run
from train.optim import learning_rate, optimizers, step_flops
from train.profiler import Profiler, parse_window, peak_flops
from train.run import (
    RunResult,
    Signals,
    check_run,
    finish,
    goes_on,
    pinned_recipe,
    resumable,
    run_directory_arguments,
    saved_config,
    start_run,
)
from train.saver import Saver
from train.watchdog import Watchdog

DataSet = Windows | Examples


def train(
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
) -> RunResult:
    """Train the parameters of `model` that require gradients; every rank calls it.

    `keep_best` saves whenever validation is better than before, as patience does.

    A step's loss is summed over its tokens and divided by their number over all ranks and
    micro-batches, so neither the micro-batch size nor the number of ranks changes the result.
    Raises UserError if the batch does not divide over ranks, memory is too small, a checkpoint to
    resume does not fit, gradients stay infinite, or the last checkpoint cannot be saved.
    """
    if config.batch_size % ranks.world_size:
        raise UserError(f"train.batch_size = {config.batch_size} does not divide over {ranks.world_size} ranks")
    device = ranks.device
    model.train().recompute = config.recompute
    model.separator = train_set.separator
    fingerprint = f"{train_set.fingerprint}:{frozen_hash(model)}"
    bfloat16 = uses_bfloat16(config.precision, model, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)
    wrapped = ranks.wrap(model, config.parallel, bfloat16)
    micro, pass_seconds = find_micro_batch(wrapped, train_set, config, ranks, autocast)
    config = config.model_copy(update={"micro_batch_size": micro})
    describe(model, train_set, config, ranks, bfloat16)
    speedup = compile_where_it_pays(model, wrapped, train_set, config, ranks, autocast, bfloat16, run)
    seed_generators(config.seed + ranks.rank)

    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    average = start_average(parameters) if config.average else {}
    loader = Loader(len(train_set), config.batch_size, config.seed)
    products = torch.bfloat16 if bfloat16 else torch.float32
    chosen = optimizers(parameters, config, model.config.width_ratio, products)
    state = TrainState(parameters, chosen, loader, tokenizer, fingerprint, average)
    if resume and not checkpoints(run):
        say(f"{run}: holds no checkpoint yet; starting from step 0")
        resume = False
    if resume:
        restore(run, state, ranks)
    progress = state.progress
    started_at, score = progress.step, math.nan
    done, _ = position(progress, progress.seconds, config)
    subset = evaluation_subset(validation_set, config, progress.evaluated_windows)
    progress.evaluated_windows = len(subset)
    describe_time(
        model,
        (train_set, validation_set),
        config,
        ranks,
        pass_seconds / (speedup or 1),
        len(subset),
        progress.step,
        max(0.0, 1 - done),
    )
    # Compiled code serves one shape; examples come in many.
    compiled = speedup is not None and isinstance(validation_set, Windows)
    profiler = Profiler(run, parse_window(profile) if profile else None, ranks.rank)
    peak = peak_flops(device, bfloat16)
    saver, guard = Saver(run, config.keep_last, ranks), Guard(run, ranks.rank, progress)

    def scored(windows: np.ndarray | None) -> dict[str, float]:
        return evaluate(wrapped, model, validation_set, config, ranks, autocast, windows, compiled)

    with (
        Signals() as signals,
        Watchdog(ranks, config.hang_seconds, progress),
        Metrics(run, config, started_at if resume else -1, ranks.first) as metrics,
    ):
        while True:
            # Ranks must agree: the first one's clock and any rank's signal count.
            asked, signals.save = signals.save, False
            seconds, stop, save_now, writing, failed = ranks.sum(
                progress.seconds * ranks.first, signals.received, asked, saver.writing, saver.error is not None
            )
            saver.settle(writing, failed)
            done, end = position(progress, seconds, config)
            last = done >= 1

            fresh = progress.step > started_at or not resume  # not what the resumed run has done
            bits_per_byte, better = None, False
            if not stop and (last or (fresh and progress.step % config.eval_every == 0)):
                with averaged(average, parameters):
                    result = scored(subset)
                    metrics.evaluation({"step": progress.step, **result})
                    score = bits_per_byte = result["bits_per_byte"]
                    better = progress.judge(score)
                    last = last or 0 < config.patience <= progress.stale
            save_due = progress.step % config.save_every == 0 and progress.step > 0
            save_due = save_due or (better and (keep_best or config.patience > 0))
            if (save_due or last or stop or save_now) and fresh:
                saver.save(state, bits_per_byte)
            if last and not stop and len(subset) < len(validation_set):
                with averaged(average, parameters):
                    result = scored(None)
                metrics.final_evaluation(progress.step, len(validation_set), result)
                score = result["bits_per_byte"]
            if last or stop:
                profiler.close()
                saver.finish()
                break
            profiler.before(progress.step + 1)

            started = time.perf_counter()
            lr = learning_rate(end, config)
            epoch = loader.epoch + loader.cursor / loader.samples
            indices = loader.next(ranks.rank, ranks.world_size)
            starts = range(0, len(indices), config.micro_batch_size)
            batches = [train_set.batch(indices[i : i + config.micro_batch_size]) for i in starts]
            loading = time.perf_counter() - started
            tokens = sum(int((targets != IGNORE).sum()) for _, targets in batches)
            padded = sum(inputs.numel() for inputs, _ in batches)
            all_tokens, all_padded = ranks.sum(tokens, padded)
            scale = ranks.world_size / max(1, all_tokens)  # gradients are averaged; loss is a sum

            (all_loss,) = ranks.sum(backward(wrapped, batches, scale, device, autocast))
            loss = all_loss / max(1, all_tokens)
            norm = clip(parameters, config.clip_norm)
            if guard.finite(loss, norm, batches):
                for optimizer in chosen:
                    for group in optimizer.param_groups:
                        group["lr"] = lr * group.get("scale", 1.0)
                    optimizer.step()
                update_average(average, parameters, config.average, progress.step + 1)
            for optimizer in chosen:
                optimizer.zero_grad()

            step_seconds = time.perf_counter() - started
            progress.step += 1
            progress.tokens += int(all_tokens)
            progress.seconds += step_seconds
            length = all_padded / config.batch_size
            flops = model.training_flops(int(all_padded), int(all_tokens), int(length))
            flops += step_flops(chosen)
            progress.flops += flops
            row = {
                "step": progress.step,
                "loss": loss,
                "lr": lr,
                "grad_norm": norm,
                "tokens": progress.tokens,
                "tokens_per_second": all_padded / step_seconds,
                "seconds": progress.seconds,
                "mfu": peak and flops / step_seconds / peak / ranks.world_size,
                "loader_seconds": loading,
                "memory_bytes": peak_memory(device),
                "epoch": epoch,
            }
            metrics.step(row, position(progress, progress.seconds, config)[0])
            if guard.spike(loss) and config.on_spike == "rewind":
                saver.wait()
                if checkpoints(run):
                    rewind(run, state, ranks)
                    metrics.rewind(progress.step)
                    started_at, resume = progress.step, True

    model.separator = -1
    if ranks.first:
        plot_run(run)
    # A signal that came when all was trained is too late to stop anything.
    received = (signals.received or signal.SIGTERM) if stop else 0  # or another rank's
    return RunResult(progress, score, peak_memory(device), int(received))


def position(progress: Progress, seconds: float, config: TrainConfig) -> tuple[float, float]:
    """Which share of the run is done, and which will be at the end of the next step."""
    if not (config.max_seconds or config.max_flops):
        return progress.step / config.steps, (progress.step + 1) / config.steps
    spent, most = (seconds, config.max_seconds) if config.max_seconds else (progress.flops, config.max_flops)
    done = spent / most
    # A step is taken to be as long as the mean so far; nothing is known of the first one.
    return done, max(done + done / max(1, progress.step), 0.01 * config.warmup)


def backward(
    model: nn.Module,
    batches: list[tuple[torch.Tensor, torch.Tensor]],
    scale: float,
    device: torch.device,
    autocast: torch.autocast,
) -> float:
    """Add `scale` times the gradient of each batch's loss; returns the summed loss in nats."""
    loss_sum = torch.zeros((), device=device)
    for i, (inputs, targets) in enumerate(batches):
        # Gradients are added up over ranks once, in the last backward pass of the step.
        with gradients_summed(model, i == len(batches) - 1):
            with autocast:
                loss = model(inputs.to(device), targets=targets.to(device))
            (loss * scale).backward()
        loss_sum += loss.detach()
    return loss_sum.item()


def clip(parameters: dict[str, nn.Parameter], limit: float) -> float:
    """Scale all gradients down to a global norm of `limit`; returns the norm that it was."""
    norm = torch.nn.utils.clip_grad_norm_(parameters.values(), limit)
    return (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()


def prepared(recipe: Recipe) -> tuple[Tokenizer, Windows, Windows]:
    """Tokenizer, train windows and validation windows of a recipe, from the cache or made now."""
    folder = prepare(recipe.data)
    tokenizer = Tokenizer.load(cached_tokenizer(folder, recipe.tokenizer))
    shards = write_shards(folder, tokenizer)
    length = recipe.model.max_seq_len
    train_set, validation_set = (Windows(shards, split, length, tokenizer) for split in ("train", "validation"))
    return tokenizer, train_set, validation_set


def main() -> int:
    """Entry point of `python -m train.pretrain`."""
    recipe, own = parse(Recipe, run_directory_arguments())
    run = own.run_dir or Path("runs") / Path(own.config).stem
    with Ranks(recipe.train.device) as ranks:
        resume = bool(ranks.sum(ranks.first and goes_on(run, own.resume))[0])
        with ranks.first_goes_first():
            if not ranks.first:  # what the first one has found on the hub and written down
                recipe = saved_config(run, Recipe, True) or recipe
            if ranks.first:
                recipe = pinned_recipe(recipe, saved_config(run, Recipe, resume))
                check_run(run, recipe, resume, own.overwrite)
            tokenizer, train_set, validation_set = prepared(recipe)
            prompt_ids(recipe.model, tokenizer, recipe.sample.prompt)  # refuses it now, not later
            if ranks.first:
                lock = start_run(run, recipe, tokenizer, resume=resume, overwrite=own.overwrite)
        with resumable():
            model = Transformer(recipe.model, tokenizer.vocab_size).init_weights(recipe.train.seed)
            result = train(
                model,
                train_set,
                validation_set,
                tokenizer,
                recipe.train,
                run,
                ranks,
                resume=resume,
                profile=own.profile,
            )
            if not ranks.first:
                return 128 * bool(result.signal) + result.signal
            if not result.signal:
                write_samples(run, recipe)
            lock.close()
            return finish(result, run)


def write_samples(run: Path, recipe: Recipe) -> None:
    """Generate what [sample] asks for from what was saved; print it and keep it in sample.txt."""
    model, tokenizer = load_run(run)
    settings = recipe.sample.model_dump()
    *_, streams = sample(model, tokenizer, seed=recipe.train.seed, **settings)
    texts = [recipe.sample.prompt + stream.text for stream in streams]
    (run / "sample.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    for number, text in enumerate(texts):
        show(f"--- sample {number + 1} ---\n{text}")


if __name__ == "__main__":
    run_command(main)
