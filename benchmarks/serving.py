"""Throughput, fairness and memory of the endpoint under load.

    python -m benchmarks.serving [--model smollm2-135m] [--clients 8 64] [--prompt 64] [--new 64] [--soak 0]

Starts `python -m serve` and asks it over HTTP: clients that ask again and again, as many answers as
clients with 64 of them, and for --soak seconds 8 clients while the memory is watched. Beside it the
engine's own tokens/s at batch 8, in this process, with the server stopped by SIGSTOP. Greedy, prompts of
random words, every answer has --new tokens. Writes benchmarks/results/DEVICE/serving.json.
"""

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import psutil

from benchmarks.record import record
from cli.console import say
from model.engine import Engine
from model.inference import load_for_generation
from model.sampling import Sampling

ROWS = 8
ROUNDS = 4  # answers of every client
EVERY = 15.0  # seconds between looks at the memory


def make_prompt(tokens: int, seed: int, vocab_size: int) -> list[int]:
    """Random ids, so that no two prompts share a start."""
    chance = random.Random(seed)
    return [chance.randrange(100, vocab_size) for _ in range(tokens)]


def start_server(model: str, context: int, threads: int) -> tuple[subprocess.Popen, str]:
    """A server process and its address."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "serve", model, "--rows", str(ROWS), "--context", str(context)]
    command += ["--port", str(port), "--files", tempfile.mkdtemp(), "--compile"]
    env = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    process = subprocess.Popen(command, env=env)
    address = f"http://127.0.0.1:{port}"
    while True:
        try:
            urllib.request.urlopen(f"{address}/health")
            return process, address
        except OSError:
            if process.poll() is not None:
                raise SystemExit("the server has ended") from None
            time.sleep(0.2)


def ask(address: str, model: str, prompt: list[int], new: int) -> int:
    """The tokens of an answer."""
    body = {"model": model, "prompt": prompt, "max_tokens": new, "temperature": 0}
    request = urllib.request.Request(
        f"{address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        found: int = json.loads(answer.read())["usage"]["completion_tokens"]
        return found


def load(address: str, model: str, clients: int, rounds: int, lengths: tuple[int, int], vocab_size: int) -> dict:
    """Answers per client, tokens/s, and how long the slowest answer took over the median one."""
    seconds: list[float] = []
    tokens: list[int] = []

    def work(client: int) -> None:
        for number in range(rounds):
            started = time.perf_counter()
            tokens.append(ask(address, model, make_prompt(lengths[0], 1000 * client + number, vocab_size), lengths[1]))
            seconds.append(time.perf_counter() - started)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(clients)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    whole = time.perf_counter() - started
    return {
        "clients": clients,
        "answers": len(seconds),
        "lost": clients * rounds - len(seconds),
        "tokens_per_second": sum(tokens) / whole,
        "median_seconds": statistics.median(seconds),
        "slowest_over_median": max(seconds) / statistics.median(seconds),
    }


def engine_speed(model: str, lengths: tuple[int, int], batch: int) -> float:
    """Tokens/s of the engine without a server, the median of three: the same lengths, `batch` texts together."""
    loaded = load_for_generation(model, "auto", "cpu", batch, True)
    vocab_size = loaded.tokenizer.vocab_size
    engine = Engine(loaded.model, batch, sum(lengths) + 1)
    speeds = []
    for attempt in range(3):
        started = time.perf_counter()
        for row in range(batch):
            engine.join([make_prompt(lengths[0], 100 * attempt + row, vocab_size)], [Sampling(0)], [0], lengths[1])
        while engine.step():
            pass
        drawn = sum(len(row.ids) - lengths[0] for row in engine.rows if row)
        speeds.append(drawn / (time.perf_counter() - started))
        for row in range(batch):
            engine.leave(row)
    return statistics.median(speeds)


def soak(process: subprocess.Popen, address: str, model: str, seconds: float, vocab_size: int) -> list[float]:
    """MiB of the server while 8 clients ask short questions for so long, one value per EVERY seconds."""
    end, memory = time.monotonic() + seconds, []
    server = psutil.Process(process.pid)

    def work(client: int) -> None:
        number = 0
        while time.monotonic() < end:
            number += 1
            ask(address, model, make_prompt(16 + number % 64, number * 8 + client, vocab_size), 16)

    threads = [threading.Thread(target=work, args=(client,)) for client in range(8)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        time.sleep(min(EVERY, max(0.1, seconds / 10)))
        memory.append(server.memory_info().rss / 2**20)
    for thread in threads:
        thread.join()
    return memory


def main() -> None:
    """Entry point of `python -m benchmarks.serving`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds; 0 leaves it out")
    parser.add_argument("--threads", type=int, default=0, help="of the server; 0: torch's default")
    args = parser.parse_args()
    lengths, name = (args.prompt, args.new), Path(args.model).name.removesuffix(".gguf")
    process, address = start_server(args.model, max(256, sum(lengths) + 1), args.threads)
    vocab_size = load_for_generation(args.model).tokenizer.vocab_size
    try:
        load(address, name, 2, 1, lengths, vocab_size)  # warms up
        rows = [load(address, name, n, ROUNDS if n <= ROWS else 1, lengths, vocab_size) for n in args.clients]
        process.send_signal(signal.SIGSTOP)
        own = engine_speed(args.model, lengths, ROWS)
        process.send_signal(signal.SIGCONT)
        memory = soak(process, address, name, args.soak, vocab_size) if args.soak else []
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        process.wait()
    for row in rows:
        row["share_of_engine"] = row["tokens_per_second"] / own
        share, slowest = row["share_of_engine"], row["slowest_over_median"]
        say(
            f"{row['clients']:3} clients: {row['tokens_per_second']:7.1f} tokens/s, {share:.0%} of the engine's; "
            f"{row['lost']} lost, slowest answer {slowest:.2f} times the median"
        )
    if memory:
        say(f"memory: {memory[0]:.0f} MiB at first, {memory[-1]:.0f} at last, {max(memory):.0f} at most")
    about = {"model": args.model, "prompt": args.prompt, "new": args.new, "engine_tokens_per_second": own}
    print(f"written: {record('serving', about | {'rows': rows, 'memory_mib': memory})}")


if __name__ == "__main__":
    main()
