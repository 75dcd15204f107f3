import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from data.loader import Loader
from data.shards import Windows

sizes = st.integers(1, 40)


@given(samples=sizes, batch=sizes, seed=st.integers(0, 5))
def test_every_sample_occurs_once_per_epoch(samples, batch, seed):
    loader = Loader(samples, batch, seed)
    drawn = np.concatenate([loader.next() for _ in range(3 * samples)])
    for epoch in range(len(drawn) // samples):
        assert sorted(drawn[epoch * samples : (epoch + 1) * samples]) == list(range(samples))


@given(samples=sizes, world_size=st.integers(1, 6), before=st.integers(0, 12))
def test_ranks_of_a_resumed_loader_share_one_global_order(samples, world_size, before):
    batch = 6
    whole = Loader(samples, batch, 1)
    for _ in range(before):
        whole.next()
    ranks = [Loader(samples, batch, 1) for _ in range(world_size)]
    for loader in ranks:
        loader.restore(whole.state())
    for _ in range(4):
        expected = whole.next()
        for rank, loader in enumerate(ranks):
            assert (loader.next(rank, world_size) == expected[rank::world_size]).all()


def test_data_order_depends_on_epoch_and_seed():
    loader = Loader(100, 100, 0)
    first, second = loader.next(), loader.next()
    assert (first != second).any()
    assert (Loader(100, 100, 1).next() != first).any()


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(20, 400),
    length=st.integers(3, 17),
    seed=st.integers(0, 3),
    world_sizes=st.lists(st.sampled_from([1, 2, 3]), min_size=1, max_size=8),
    data=st.data(),
)
def test_every_token_is_a_target_once_per_epoch_when_world_size_changes(tokens, length, seed, world_sizes, data):
    windows = Windows.__new__(Windows)
    windows.seq_len, windows.ids = length, np.arange(tokens)  # all tokens differ
    batch = 6
    state, seen = {"epoch": 0, "cursor": 0}, []
    while len(seen) * batch < 2 * len(windows):
        world_size = data.draw(st.sampled_from(world_sizes))
        ranks = [Loader(len(windows), batch, seed) for _ in range(world_size)]
        for loader in ranks:
            loader.restore(state)
        for _ in range(data.draw(st.integers(1, 5))):
            shares = [loader.next(rank, world_size) for rank, loader in enumerate(ranks)]
            step = np.empty(batch, np.int64)
            for rank, share in enumerate(shares):
                step[rank::world_size] = share
            seen.append(step)
        state = ranks[0].state()
    order = np.concatenate(seen)
    for epoch in range(2):
        part = order[epoch * len(windows) : (epoch + 1) * len(windows)]
        _, targets = windows.batch(part)
        drawn = targets[targets >= 0].sort().values.tolist()
        assert drawn == list(range(1, tokens))
