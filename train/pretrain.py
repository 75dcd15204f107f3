"""Train a transformer from nothing, on one core or under torchrun on many GPUs.

    python -m train.pretrain RECIPE [--run-dir DIR] [--resume | --overwrite] [--train.steps 200 …]
    torchrun --standalone --nproc-per-node 2 -m train.pretrain RECIPE …

Prepares what is missing (documents, tokenizer, token shards; cached by content) and fills a run
directory that is complete in itself: config.toml, tokenizer.json, metrics.jsonl, checkpoints/,
plots/loss.png, sample.txt. Ctrl-C and SIGTERM save and say how to go on.
"""

import hashlib
import math
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from configs.cli import UserError, parse, run_command
from configs.console import say
from configs.schema import Recipe, TrainConfig
from data.loader import Loader
from data.prepare import prepare
from data.shards import Examples, Windows, cached_tokenizer, write_shards
from model.sample import prompt_ids, sample
from model.transformer import IGNORE, Transformer
from tokenizer.bpe import Tokenizer
from train.checkpoint import Progress, restore, save
from train.distributed import Ranks
from train.evaluate import evaluate
from train.metrics import Metrics, peak_memory, plot_run
from train.optim import adamw, learning_rate
from train.run import (
    RunResult,
    Signals,
    check_run,
    finish,
    run_directory_arguments,
    start_run,
)

DataSet = Windows | Examples
MAX_SKIPPED = 10  # steps without a finite gradient before a run gives up


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
) -> RunResult:
    """Train the parameters of `model` that require gradients; every rank calls it.

    A step's loss is summed over its tokens and divided by their number over all ranks and
    micro-batches, so neither the micro-batch size nor the number of ranks changes the result.
    Raises UserError if the batch does not divide over ranks, memory is too small, a checkpoint to
    resume does not fit, or gradients stay infinite.
    """
    torch.manual_seed(config.seed + ranks.rank)
    if config.batch_size % ranks.world_size:
        raise UserError(
            f"train.batch_size = {config.batch_size} does not divide over {ranks.world_size} ranks"
        )
    device = ranks.device
    model = model.to(device).train()
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = adamw(parameters, config)
    loader = Loader(len(train_set), config.batch_size, config.seed)
    progress = Progress()
    fingerprint = f"{train_set.fingerprint}:{frozen_hash(model)}"
    if resume:
        progress = restore(run, parameters, optimizer, loader, fingerprint, tokenizer, ranks)
    bfloat16 = uses_bfloat16(config.precision, model, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)
    describe(model, train_set, config, ranks, bfloat16)
    dry_run(model, train_set, config, device, autocast)
    wrapped = ranks.wrap(model)
    started_at, skipped, score = progress.step, 0, math.nan

    with Signals() as signals, Metrics(run, config, started_at, ranks.first) as metrics:
        while True:
            # Ranks must agree on when to stop: the first one's clock and any rank's signal count.
            seconds, stop = ranks.sum(progress.seconds * ranks.first, signals.received)
            done = seconds / config.max_seconds if config.max_seconds else None
            done = progress.step / config.steps if done is None else done
            last = done >= 1

            fresh = progress.step > started_at or not resume  # not what the resumed run has done
            bits_per_byte = None
            if not stop and (last or (fresh and progress.step % config.eval_every == 0)):
                result = evaluate(model, validation_set, config.micro_batch_size, ranks, autocast)
                score = bits_per_byte = result["bits_per_byte"]
                metrics.evaluation({"step": progress.step, **result})
            save_due = progress.step % config.save_every == 0 and progress.step > 0
            if (save_due or last or stop) and fresh:
                save(
                    run,
                    progress,
                    parameters,
                    optimizer,
                    loader,
                    fingerprint,
                    tokenizer,
                    bits_per_byte,
                    config.keep_last,
                    ranks,
                )
            if last or stop:
                break

            started = time.perf_counter()
            if config.max_seconds:  # the rate at the end of this step, as long as the mean so far
                end = done + seconds / config.max_seconds / max(1, progress.step)
                end = max(end, 0.01 * config.warmup)  # nothing is known of the first one
            else:
                end = done + 1 / config.steps
            lr = learning_rate(end, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            epoch = loader.epoch + loader.cursor / loader.samples
            indices = loader.next(ranks.rank, ranks.world_size)
            starts = range(0, len(indices), config.micro_batch_size)
            batches = [train_set.batch(indices[i : i + config.micro_batch_size]) for i in starts]
            loading = time.perf_counter() - started
            tokens = sum(int((targets != IGNORE).sum()) for _, targets in batches)
            padded = sum(inputs.numel() for inputs, _ in batches)
            all_tokens, all_padded = ranks.sum(tokens, padded)
            scale = ranks.world_size / max(1, all_tokens)  # DDP averages; the loss is a sum

            loss = backward(wrapped, batches, scale, device, autocast)
            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm).item()
            if math.isfinite(norm):
                optimizer.step()
                skipped = 0
            else:
                progress.skipped, skipped = progress.skipped + 1, skipped + 1
                say(f"step {progress.step + 1}: gradient norm is {norm}; step skipped")
                if skipped == MAX_SKIPPED:
                    raise UserError(
                        f"{MAX_SKIPPED} steps in a row without a finite gradient; lower "
                        'train.learning_rate or use train.precision = "float32"'
                    )
            optimizer.zero_grad()

            (all_loss,) = ranks.sum(loss)
            step_seconds = time.perf_counter() - started
            progress.step += 1
            progress.tokens += int(all_tokens)
            progress.seconds += step_seconds
            length = all_padded / config.batch_size
            progress.flops += model.training_flops(int(all_padded), int(all_tokens), int(length))
            row = {
                "step": progress.step,
                "loss": all_loss / max(1, all_tokens),
                "lr": lr,
                "grad_norm": norm,
                "tokens": progress.tokens,
                "tokens_per_second": all_padded / step_seconds,
                "seconds": progress.seconds,
                "loader_seconds": loading,
                "memory_bytes": peak_memory(device),
                "epoch": epoch,
            }
            metrics.step(row, progress.seconds if config.max_seconds else progress.step)

    if ranks.first:
        plot_run(run)
    received = signals.received or (signal.SIGTERM if stop else 0)  # or another rank's
    return RunResult(progress, score, peak_memory(device), int(received))


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
        # DDP adds up over ranks once, in the last backward pass of the step.
        more = isinstance(model, DistributedDataParallel) and i < len(batches) - 1
        with model.no_sync() if more else nullcontext():  # type: ignore[operator]
            with autocast:
                loss = model(inputs.to(device), targets=targets.to(device))
            (loss * scale).backward()
        loss_sum += loss.detach()
    return loss_sum.item()


def frozen_hash(model: Transformer) -> str:
    """SHA-256 of the weights that are not trained: an adapter is nothing without them."""
    total = hashlib.sha256()
    for parameter in model.parameters():
        if not parameter.requires_grad:
            total.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return total.hexdigest()


def uses_bfloat16(precision: str, model: Transformer, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16: where asked for or, with "auto", where it pays."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # Narrow matrices lose as much to the casts as bfloat16 instructions win (docs/log.md).
    return model.config.dim >= 256 and torch.cpu._is_avx512_bf16_supported()


def describe(
    model: Transformer, train_set: DataSet, config: TrainConfig, ranks: Ranks, bfloat16: bool
) -> None:
    """Say what is about to happen: sizes, epochs, precision, ranks."""
    windows, length = len(train_set), train_set.seq_len
    precision = "bfloat16 autocast" if bfloat16 else "float32"
    micro = min(config.micro_batch_size, config.batch_size // ranks.world_size)
    accumulation = -(-config.batch_size // ranks.world_size // micro)
    say(
        f"model: {model.num_parameters():,} parameters, {model.num_parameters(True):,} trained, "
        f"{precision} on {ranks.world_size} x {ranks.device.type}"
    )
    say(
        f"data: {windows:,} windows/epoch of {length} tokens, up to {windows * length:,} "
        f"tokens/epoch, {windows / config.batch_size:,.1f} steps/epoch; {config.batch_size} "
        f"windows/step = {ranks.world_size} ranks x {accumulation} x {micro}"
    )


def dry_run(
    model: Transformer,
    train_set: DataSet,
    config: TrainConfig,
    device: torch.device,
    autocast: torch.autocast,
) -> None:
    """One forward and backward pass, thrown away, to meet too little memory before step 1."""
    size = min(config.micro_batch_size, config.batch_size)
    inputs, targets = train_set.batch(train_set.longest(size))
    try:
        with autocast:
            loss = model(inputs.to(device), targets=targets.to(device))
        loss.backward()
    except RuntimeError as error:
        if "memory" not in str(error):
            raise
        raise UserError(
            f"out of memory with {tuple(inputs.shape)} tokens at a time: lower "
            "train.micro_batch_size first (the result stays the same), then model.max_seq_len or "
            "model.dim"
        ) from None
    model.zero_grad()


def prepared(recipe: Recipe) -> tuple[Tokenizer, Windows, Windows]:
    """Tokenizer, train windows and validation windows of a recipe, from the cache or made now."""
    folder = prepare(recipe.data)
    tokenizer = Tokenizer.load(cached_tokenizer(folder, recipe.tokenizer))
    shards = write_shards(folder, tokenizer)
    length = recipe.model.max_seq_len
    train_set, validation_set = (
        Windows(shards, split, length, tokenizer) for split in ("train", "validation")
    )
    return tokenizer, train_set, validation_set


def main() -> int:
    """Entry point of `python -m train.pretrain`."""
    recipe, own = parse(Recipe, run_directory_arguments())
    run = own.run_dir or Path("runs") / Path(own.config).stem
    with Ranks(recipe.train.device) as ranks:
        with ranks.first_goes_first():
            if ranks.first:
                check_run(run, recipe, own.resume, own.overwrite)
            tokenizer, train_set, validation_set = prepared(recipe)
            prompt_ids(recipe.model, tokenizer, recipe.sample.prompt)  # refuses it now, not later
            if ranks.first:
                start_run(run, recipe, tokenizer, resume=own.resume, overwrite=own.overwrite)
        model = Transformer(recipe.model, tokenizer.vocab_size).init_weights(recipe.train.seed)
        result = train(
            model,
            train_set,
            validation_set,
            tokenizer,
            recipe.train,
            run,
            ranks,
            resume=own.resume,
        )
        if ranks.first and not result.signal:
            write_samples(run, model, tokenizer, recipe)
        return finish(result, run) if ranks.first else 128 * bool(result.signal) + result.signal


def write_samples(run: Path, model: Transformer, tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Generate what [sample] asks for, print it and keep it in sample.txt."""
    settings = recipe.sample.model_dump()
    *_, streams = sample(model.eval(), tokenizer, seed=recipe.train.seed, **settings)
    texts = [recipe.sample.prompt + stream.text for stream in streams]
    (run / "sample.txt").write_text("\n\n".join(texts) + "\n", encoding="utf-8")
    for number, text in enumerate(texts):
        print(f"--- sample {number + 1} ---\n{text}")


if __name__ == "__main__":
    run_command(main)
