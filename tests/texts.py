"""Synthetic text for tests."""

import random


def words(seed, count):
    """`count` random words, without long repeats, with Zipf-like frequencies as in natural language."""
    draw = random.Random(seed)
    letters = "etaoinshrdlucmfwypvbgk"
    stock = ["".join(draw.choices(letters, k=draw.randint(2, 8))) for _ in range(400)]
    weights = [1 / (rank + 1) for rank in range(400)]
    drawn = draw.choices(stock, weights, k=count)
    return "".join(w + ("\n" if n % 9 == 8 else " ") for n, w in enumerate(drawn))
