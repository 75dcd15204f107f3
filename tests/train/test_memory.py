"""The best weights of a short run, kept in memory."""

import pytest
import torch

from train.checkpoint import TrainState
from train.memory import BestWeights


@pytest.mark.parametrize("has_average", [False, True])
def test_a_score_that_is_not_finite_never_replaces_the_best_weights(has_average):
    weight = torch.nn.Parameter(torch.ones(2))
    ema = {"w": torch.full((2,), 5.0)} if has_average else {}
    state, best = TrainState({"w": weight}, [], None, None, "", ema), BestWeights()
    for step, score in enumerate((2.0, float("nan"), None, 3.0), 1):
        state.progress.step = step
        best.save(state, score)
        with torch.no_grad():
            weight.add_(1)
    assert (best.step, best.score) == (1, 2.0)
    best.restore(state)
    assert weight.tolist() == ([5.0, 5.0] if has_average else [1.0, 1.0])
