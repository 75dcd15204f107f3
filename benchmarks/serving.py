"""Throughput, fairness and memory of the endpoint under load, beside `transformers serve`.

    python -m benchmarks.serving [--model smollm2-135m] [--clients 8 64] [--prompt 64] [--new 64] [--rounds 3]
        [--soak 0] [--peer]

Starts `python -m serve` and asks it over HTTP: clients that ask again and again, as many answers as
clients with 64 of them, and for --soak seconds 8 clients while the memory is watched. Beside it the
engine's own tokens/s at batch 8, in this process, and with --peer `transformers serve` of the same model
as a bfloat16 folder, with continuous batching. All in turn in every round; a server that is not measured
is stopped by SIGSTOP. Greedy, prompts of random tokens, answers of at most --new tokens. Writes
benchmarks/results/DEVICE/serving.json, with --soak serving-soak.json.
"""

import argparse
import json
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
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import psutil

from benchmarks.record import record
from cli.console import say
from model.engine import Engine
from model.inference import load_for_generation
from model.sampling import Sampling
from tokenizer.bpe import Tokenizer

ROWS = 8
ROUNDS = 4  # answers of every client
EVERY = 15.0  # seconds between looks at the memory


def make_prompt(tokens: int, seed: int, vocab_size: int) -> list[int]:
    """Random ids, so that no two prompts share a start."""
    chance = random.Random(seed)
    return [chance.randrange(100, vocab_size) for _ in range(tokens)]


class Endpoint:
    """A server process that runs while it is measured. `model` is its id; `lengths` of prompts and answers."""

    def __init__(self, command: list[str], model: str, tokenizer: Tokenizer, lengths: tuple[int, int]):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        self.model, self.tokenizer, self.lengths = model, tokenizer, lengths
        self.takes_ids = command[0] == sys.executable
        self.process = subprocess.Popen([*command, "--port", str(port)])
        self.address = f"http://127.0.0.1:{port}"
        while True:
            try:
                urllib.request.urlopen(f"{self.address}/health")
                return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit(f"{command[0]} has ended") from None
                time.sleep(0.2)

    def __enter__(self) -> "Endpoint":
        self.process.send_signal(signal.SIGCONT)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        """End the process."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait()

    def ask(self, seed: int, length: int, new: int) -> int:
        """The tokens of an answer to a prompt of `length` tokens."""
        prompt: list[int] | str = make_prompt(length, seed, self.tokenizer.vocab_size)
        if not self.takes_ids:
            prompt = self.tokenizer.decode(prompt)
        body = {"model": self.model, "prompt": prompt, "max_tokens": new, "temperature": 0}
        request = urllib.request.Request(
            f"{self.address}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:
            found: int = json.loads(answer.read())["usage"]["completion_tokens"]
            return found

    def load(self, clients: int, rounds: int) -> dict:
        """Answers of all clients, tokens/s, and how long the slowest answer took over the median one."""
        seconds: list[float] = []
        tokens: list[int] = []

        def work(client: int) -> None:
            for number in range(rounds):
                started = time.perf_counter()
                tokens.append(self.ask(1000 * client + number, *self.lengths))
                seconds.append(time.perf_counter() - started)

        started = time.perf_counter()
        run_together(work, clients)
        return {
            "clients": clients,
            "answers": len(seconds),
            "lost": clients * rounds - len(seconds),
            "tokens_per_second": sum(tokens) / (time.perf_counter() - started),
            "median_seconds": statistics.median(seconds),
            "slowest_over_median": max(seconds) / statistics.median(seconds),
        }

    def soak(self, seconds: float) -> list[float]:
        """MiB of the server while 8 clients ask short questions for so long, one value per EVERY seconds."""
        end, memory = time.monotonic() + seconds, list[float]()
        server = psutil.Process(self.process.pid)

        def work(client: int) -> None:
            number = 0
            while time.monotonic() < end:
                if client == 8:
                    time.sleep(min(EVERY, max(0.1, seconds / 10)))
                    memory.append(server.memory_info().rss / 2**20)
                else:
                    number += 1
                    self.ask(number * 8 + client, 16 + number % 64, 16)

        run_together(work, 9)
        return memory


def run_together(work: Callable[[int], None], count: int) -> None:
    """Call work(0) … work(count - 1) in threads; returns when all have ended."""
    threads = [threading.Thread(target=work, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def engine_speed(engine: Engine, lengths: tuple[int, int], vocab_size: int, seed: int) -> float:
    """Tokens/s of the engine without a server: the same lengths, all rows together."""
    rows = range(len(engine.rows))
    started = time.perf_counter()
    for row in rows:
        engine.join([make_prompt(lengths[0], 100 * seed + row, vocab_size)], [Sampling(0)], [0], lengths[1])
    while engine.step():
        pass
    drawn = sum(len(row.ids) - lengths[0] for row in engine.rows if row)
    speed = drawn / (time.perf_counter() - started)
    for row in rows:
        engine.leave(row)
    return speed


def start_peer(model: str, tokenizer: Tokenizer, lengths: tuple[int, int]) -> Endpoint:
    """`transformers serve` of the model, exported to a folder in bfloat16."""
    folder = tempfile.mkdtemp()
    subprocess.run([sys.executable, "-m", "model.export", model, folder], check=True, stdout=subprocess.DEVNULL)
    program = str(Path(sys.executable).with_name("transformers"))
    command = [program, "serve", folder, "--continuous-batching", "--dtype", "bfloat16", "--device", "cpu"]
    return Endpoint([*command, "--host", "127.0.0.1"], folder, tokenizer, lengths)


def main() -> None:
    """Entry point of `python -m benchmarks.serving`."""
    parser = argparse.ArgumentParser(description="the endpoint under load")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--clients", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--soak", type=float, default=0.0, help="seconds; 0 leaves it out")
    parser.add_argument("--peer", action="store_true", help="measure `transformers serve` too")
    args = parser.parse_args()
    lengths = args.prompt, args.new
    loaded = load_for_generation(args.model, "auto", "cpu", ROWS, True)
    engine, tokenizer = Engine(loaded.model, ROWS, sum(lengths) + 1), loaded.tokenizer
    command = [sys.executable, "-m", "serve", args.model, "--rows", str(ROWS), "--files", tempfile.mkdtemp()]
    command += ["--compile", "--context", str(max(256, sum(lengths) + 1))]
    servers = {"serve": Endpoint(command, Path(args.model).name.removesuffix(".gguf"), tokenizer, lengths)}
    rows: list[dict] = []
    memory: list[float] = []
    try:
        if args.peer:
            servers["transformers serve"] = start_peer(args.model, tokenizer, lengths)
        for number in range(args.rounds + 1):  # the first one warms up
            found = []
            for name, server in servers.items():
                with server:
                    for clients in args.clients if number else [2]:
                        found.append({"server": name} | server.load(clients, ROUNDS if clients <= ROWS else 1))
            own = engine_speed(engine, lengths, tokenizer.vocab_size, number)
            shares = [{"engine_tokens_per_second": own, "share_of_engine": r["tokens_per_second"] / own} for r in found]
            rows += [row | share for row, share in zip(found, shares, strict=True) if number]
        if args.soak:
            with servers["serve"] as server:
                memory = server.soak(args.soak)
    finally:
        for server in servers.values():
            server.end()
    report(rows, memory)
    about = {"model": args.model, "prompt": args.prompt, "new": args.new, "rounds": args.rounds}
    name = "serving-soak" if args.soak else "serving"
    print(f"written: {record(name, about | {'rows': rows, 'memory_mib': memory})}")


def report(rows: list[dict], memory: list[float]) -> None:
    """Print the medians of every server and number of clients, and the memory."""
    for name, clients in dict.fromkeys((row["server"], row["clients"]) for row in rows):
        mine = [row for row in rows if (row["server"], row["clients"]) == (name, clients)]
        shares = sorted(row["share_of_engine"] for row in mine)
        speed = statistics.median(row["tokens_per_second"] for row in mine)
        say(
            f"{name}, {clients} clients: {speed:.1f} tokens/s, {statistics.median(shares):.0%} of the engine's "
            f"({shares[0]:.0%} to {shares[-1]:.0%}); {sum(row['lost'] for row in mine)} lost, slowest answer "
            f"{max(row['slowest_over_median'] for row in mine):.2f} times the median"
        )
    if memory:
        say(f"memory: {memory[0]:.0f} MiB at first, {memory[-1]:.0f} at last, {max(memory):.0f} at most")


if __name__ == "__main__":
    main()
