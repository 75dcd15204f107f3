"""Train a transformer from nothing, on one core or under torchrun on many GPUs.

    python -m train.pretrain RECIPE [--run-dir DIR] [--resume | --overwrite] [--train.steps 200 …]
    torchrun --standalone --nproc-per-node 2 -m train.pretrain RECIPE …

Prepares what is missing (documents, tokenizer, token shards; cached by content) and fills a run
directory that is complete in itself: config.toml, tokenizer.json, metrics.jsonl, checkpoints/,
plots/loss.png, sample.txt. Ctrl-C and SIGTERM save and say how to go on.
"""

import math
import os
import shlex
import shutil
import signal
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from configs.cli import Parser, UserError, load, parse, run_command, to_toml
from configs.console import say
from configs.schema import Recipe, Section, TrainConfig
from data.loader import Loader
from data.prepare import prepare
from data.shards import Examples, Windows, cached_tokenizer, write_shards
from model.sample import sample
from model.transformer import IGNORE, Transformer
from tokenizer.bpe import Tokenizer
from train.checkpoint import Progress, restore, save
from train.distributed import Ranks
from train.evaluate import evaluate
from train.metrics import Metrics, peak_memory, plot_run
from train.optim import adamw, learning_rate

DataSet = Windows | Examples
MAX_SKIPPED = 10  # steps without a finite gradient before a run gives up


@dataclass(frozen=True)
class RunResult:
    """What a call of `train` did, over all resumptions."""

    progress: Progress
    bits_per_byte: float
    """Of the last evaluation; NaN if a signal came before one."""
    peak_bytes: int
    signal: int
    """The signal that ended the run early, or 0."""


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
    if resume:
        fingerprint = train_set.fingerprint
        progress = restore(run, parameters, optimizer, loader, fingerprint, tokenizer, ranks)
    bfloat16 = uses_bfloat16(config.precision, model, device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=bfloat16)
    describe(model, train_set, config, ranks, bfloat16)
    dry_run(model, train_set, config, device, autocast)
    wrapped = ranks.wrap(model)
    metrics = Metrics(run, config, progress.step, ranks.first)
    started_at, score, evaluated_at, saved_at = progress.step, math.nan, -1, progress.step

    with Signals() as signals:
        while True:
            # Ranks must agree on when to stop: the first one's clock and any rank's signal count.
            seconds, stop = ranks.sum(progress.seconds * ranks.first, signals.received)
            done = seconds / config.max_seconds if config.max_seconds else None
            done = progress.step / config.steps if done is None else done
            last = done >= 1

            save_due = progress.step % config.save_every == 0 and progress.step > started_at
            if not stop and (progress.step % config.eval_every == 0 or save_due or last):
                result = evaluate(model, validation_set, config.micro_batch_size, ranks, autocast)
                score, evaluated_at = result["bits_per_byte"], progress.step
                metrics.evaluation({"step": progress.step, **result})
            if (save_due or last or stop) and (progress.step > saved_at or progress.step == 0):
                save(
                    run,
                    progress,
                    parameters,
                    optimizer,
                    loader,
                    train_set.fingerprint,
                    tokenizer,
                    score if evaluated_at == progress.step else None,
                    config.keep_last,
                    ranks,
                )
                saved_at = progress.step
            if last or stop:
                break

            started = time.perf_counter()
            lr = learning_rate(done if config.max_seconds else done + 1 / config.steps, config)
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

            loss_sum = torch.zeros((), device=device)
            for i, (inputs, targets) in enumerate(batches):
                # DDP adds up over ranks once, in the last backward pass of the step.
                more = ranks.world_size > 1 and i < len(batches) - 1
                with wrapped.no_sync() if more else nullcontext():  # type: ignore[operator]
                    with autocast:
                        loss = wrapped(inputs.to(device), targets=targets.to(device))
                    (loss * scale).backward()
                loss_sum += loss.detach()

            norm = torch.nn.utils.clip_grad_norm_(parameters.values(), config.clip_norm).item()
            if math.isfinite(norm):
                optimizer.step()
            else:
                progress.skipped += 1
                say(f"step {progress.step + 1}: gradient norm is {norm}; step skipped")
                if progress.skipped >= MAX_SKIPPED:
                    raise UserError(
                        f"{MAX_SKIPPED} steps without a finite gradient; lower train.learning_rate "
                        'or use train.precision = "float32"'
                    )
            optimizer.zero_grad()

            (all_loss,) = ranks.sum(loss_sum.item())
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

    metrics.close()
    if ranks.first:
        plot_run(run)
    received = signals.received or (signal.SIGTERM if stop else 0)  # or another rank's
    return RunResult(progress, score, peak_memory(device), int(received))


class Signals:
    """Remembers SIGINT and SIGTERM instead of dying of them, so that a step can be finished."""

    def __init__(self):
        self.received = 0

    def __enter__(self) -> "Signals":
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        self.received = number
        say(f"{signal.Signals(number).name}: finishing this step, then saving")


def uses_bfloat16(precision: str, model: Transformer, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16: where asked for or, with "auto", where it pays."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
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
    size = min(config.micro_batch_size, config.batch_size, len(train_set))
    inputs, targets = train_set.batch(torch.arange(size).numpy())
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


def check_run(run: Path, config: Section, resume: bool, overwrite: bool) -> None:
    """Raises UserError, before anything is made, if `run` may not be written to.

    With `resume` the recipe may differ from the saved one in [train] and [sample] only.
    """
    if resume:
        if not (run / "config.toml").exists():
            raise UserError(f"{run}: nothing to resume here; leave out --resume to start")
        saved = load(type(config), run / "config.toml")
        for table in type(config).model_fields:
            same = getattr(saved, table) == getattr(config, table)
            if not same and table not in ("train", "sample"):
                raise UserError(
                    f"{run}: was started with other [{table}] settings; use those, or start anew "
                    "with --overwrite"
                )
    elif run.exists() and any(run.iterdir()):
        if not overwrite:
            raise UserError(f"{run}: exists; go on with --resume, or replace it with --overwrite")
        if not (run / "config.toml").exists():
            raise UserError(f"{run}: is not a run directory, so --overwrite will not delete it")


def start_run(run: Path, config: Section, tokenizer: Tokenizer, resume: bool) -> None:
    """Make a run directory, complete in itself; without `resume` what is there is deleted."""
    if not resume:
        shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True, exist_ok=True)
    (run / "config.toml").write_text(to_toml(config), encoding="utf-8")
    (run / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")


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


def run_directory_arguments() -> Parser:
    """The arguments that every training command shares."""
    parser = Parser(sys.modules["__main__"].__doc__, add_help=False)
    parser.add_argument("--run-dir", type=Path, help="default: runs/NAME-OF-THE-RECIPE")
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    group.add_argument("--overwrite", action="store_true", help="delete the run that is there")
    return parser


def finish(result: RunResult, run: Path) -> int:
    """Say where everything is, or after a signal how to go on; returns the exit status."""
    progress = result.progress
    if not result.signal:
        say(
            f"done: {progress.step} steps, {progress.tokens:,} tokens, {progress.seconds:.0f} s, "
            f"{result.bits_per_byte:.4f} bits per byte on validation; everything is in {run}"
        )
        return 0
    words = [w for w in sys.argv[1:] if w not in ("--resume", "--overwrite")]
    spec = sys.modules["__main__"].__spec__
    module = spec.name if spec else "train.pretrain"
    local = os.environ.get("LOCAL_WORLD_SIZE", "1")
    start = "python" if local == "1" else f"torchrun --standalone --nproc-per-node {local}"
    say(
        f"{signal.Signals(result.signal).name}: saved step {progress.step}; go on with:\n"
        f"{start} -m {module} {shlex.join([*words, '--resume'])}"
    )
    return 128 + result.signal


def main() -> int:
    """Entry point of `python -m train.pretrain`."""
    recipe, own = parse(Recipe, run_directory_arguments())
    run = own.run_dir or Path("runs") / Path(own.config).stem
    with Ranks(recipe.train.device) as ranks:
        if ranks.first:
            check_run(run, recipe, own.resume, own.overwrite)
        else:
            ranks.wait()  # the first rank fills the cache, the others find it full
        tokenizer, train_set, validation_set = prepared(recipe)
        if ranks.first:
            start_run(run, recipe, tokenizer, own.resume)
            ranks.wait()
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
