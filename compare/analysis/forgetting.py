"""Forgetting: what tuning costs on text that no method trained on."""

from collections.abc import Iterator, Sequence

import numpy as np

from compare.analysis.bootstrap import Resampled, Row, resample
from compare.analysis.ledger import Ledger, Sentence, foundation_of, row_ids


def general_bits(rows: Sequence[Row]) -> list[float]:
    """Bits per byte of general text, one per seed; empty if it was not measured."""
    return [row["general_bits"] / row["general_bytes"] for row in rows if "general_bits" in row]


def forgetting_sentences(ledger: Ledger) -> Iterator[Sentence]:
    """How much every tuned method forgot, and whether LoRA learned less and forgot less than full fine-tuning."""
    for axis in ("text", "task"):
        for untuned in ledger.variants(axis, "zero-shot"):
            rows, changes = ledger.largest(axis, untuned), []
            before, foundation = general_bits(rows), foundation_of(untuned)
            for method in ledger.variants(axis, "full", "top-layers", "lora", "soft-prompt"):
                if before and foundation_of(method) == foundation:
                    by_seed = [value - before[0] for value in general_bits(ledger.largest(axis, method))]
                    changes.append(f"{method} {np.mean(by_seed):+.3f} ({min(by_seed):+.3f} to {max(by_seed):+.3f})")
                    rows = [*rows, *ledger.largest(axis, method)]
            if changes:
                yield Sentence(
                    f"Forgetting: training on the {axis} changes the bits per byte of general text from "
                    f"{before[0]:.3f} by, as mean and range over seeds, {', '.join(changes)}.",
                    row_ids(rows),
                )
    yield from _learns_less_and_forgets_less(ledger)


def _learns_less_and_forgets_less(ledger: Ledger) -> Iterator[Sentence]:
    # "LoRA Learns Less and Forgets Less" (Biderman et al. 2024, arXiv:2405.09673), at every budget. Both halves
    # must hold, so neither needs a correction (Berger 1982).
    for factor in sorted({1.0, *(factor for axis, _, factor in ledger.budgets if axis == "text")}):
        for name in ledger.variants("text", "lora"):
            names = name, "full" + name.removeprefix("lora")
            lora, full = (ledger.measured("text", method, factor=factor) for method in names)
            if min(len(general_bits(lora)), len(general_bits(full))) < 2:
                continue
            learned, other = (ledger.budget_score("text", method, factor) for method in names)
            learned = learned.minus(other)
            forgot = _general_score(full).minus(_general_score(lora))
            budget = "the budget" if factor == 1 else f"{factor:g} times the budget"
            which = f"{foundation}: " if (foundation := foundation_of(name)) else ""
            yield Sentence(
                f"{which}LoRA learns less and forgets less than full fine-tuning (Biderman et al. 2024): "
                f"{_decide(learned, forgot)} with all of the text and {budget}. LoRA minus full, bits per byte: "
                f"{learned.estimate} on this text, {_general_score(lora).minus(_general_score(full)).estimate} on "
                "general text.",
                row_ids(lora, full),
            )


def _general_score(rows: Sequence[Row]) -> Resampled:
    # One sum over all general texts is recorded per seed, so its error is that over seeds.
    return resample(np.array([[row["general_bits"]] for row in rows]), np.array([float(rows[0]["general_bytes"])]))


def _decide(*halves: Resampled) -> str:
    intervals = [half.estimate for half in halves]
    if all(interval.low > 0 for interval in intervals):
        return "holds"
    return "does not hold" if any(interval.high < 0 for interval in intervals) else "undecided"
