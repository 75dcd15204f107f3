import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.loader import Loader

sizes = st.integers(1, 40)


@given(samples=sizes, batch=sizes, seed=st.integers(0, 5))
def test_every_sample_comes_once_per_epoch(samples, batch, seed):
    loader = Loader(samples, batch, seed)
    drawn = np.concatenate([loader.next() for _ in range(3 * samples)])
    for epoch in range(len(drawn) // samples):
        assert sorted(drawn[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


@given(samples=sizes, shares=st.integers(1, 6), before=st.integers(0, 12))
def test_a_resumed_loader_goes_on_and_ranks_share_the_same_global_order(samples, shares, before):
    batch = 6
    whole = Loader(samples, batch, 1)
    for _ in range(before):
        whole.next()
    ranks = [Loader(samples, batch, 1) for _ in range(shares)]
    for loader in ranks:
        loader.restore(whole.state())
    for _ in range(4):
        expected = whole.next()
        for rank, loader in enumerate(ranks):
            assert (loader.next(rank, shares) == expected[rank::shares]).all()


def test_epochs_and_seeds_differ():
    loader = Loader(100, 100, 0)
    first, second = loader.next(), loader.next()
    assert (first != second).any()
    assert (Loader(100, 100, 1).next() != first).any()
