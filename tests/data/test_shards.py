import json
from itertools import pairwise

import numpy as np
import pytest

from cli.errors import UserError
from cli.recipes import load
from configs.schema import Recipe
from data.examples import Examples, encode_completions
from data.prepare import prepare
from data.shards import IGNORE, Windows, cached_tokenizer, write_shards
from data.splits import read_documents
from data.tokenise import id_dtype
from tokenizer.bpe import Tokenizer


@pytest.fixture(scope="module")
def prepared(recipe):
    config = load(Recipe, recipe)
    folder = prepare(config.data)
    tokenizer = Tokenizer.load(cached_tokenizer(folder, config.tokenizer))
    return folder, tokenizer, write_shards(folder, tokenizer)


def test_the_shards_decode_to_the_documents(prepared):
    folder, tokenizer, shards = prepared
    manifest = json.loads((shards / "manifest.json").read_text())
    for split, counts in manifest["splits"].items():
        ids = np.fromfile(shards / f"{split}-00000.bin", manifest["dtype"])
        assert len(ids) == counts["tokens"]
        assert ids[0] == ids[-1] == tokenizer.separator_id
        starts = np.flatnonzero(ids == tokenizer.separator_id)
        assert len(starts) == counts["documents"] + 1
        texts = [tokenizer.decode(ids[a + 1 : b]) for a, b in pairwise(starts)]
        assert texts == [d["text"] for d in read_documents(folder, split)]


@pytest.mark.parametrize(("size", "dtype"), [(400, "<u2"), (1 << 16, "<u2"), ((1 << 16) + 1, "<u4")])
def test_ids_have_the_smallest_sufficient_dtype(size, dtype):
    assert id_dtype(size) == np.dtype(dtype)


def test_each_token_except_the_first_is_a_target_once(prepared):
    _, tokenizer, shards = prepared
    windows = Windows(shards, "train", 50, tokenizer)
    inputs, targets = windows.batch(np.arange(len(windows)))
    scored = targets.reshape(-1)[targets.reshape(-1) != IGNORE]
    assert (scored.numpy() == windows.ids[1 : len(windows.ids)]).all()
    assert (inputs[:, 1:][targets[:, 1:] != IGNORE] == targets[:, :-1][targets[:, 1:] != IGNORE]).all()


def test_only_completion_tokens_have_a_loss(prepared):
    _, tokenizer, _ = prepared
    pairs = [("a longer prompt than that", " yes"), ("short", " no\n")]
    examples = Examples(encode_completions(pairs, tokenizer), 64, tokenizer)
    inputs, targets = examples.batch(np.array([0, 1]))
    for row, (prompt, completion) in enumerate(pairs):
        scored = targets[row][targets[row] != IGNORE].tolist()
        assert scored == tokenizer.encode(completion)
        first = int((targets[row] != IGNORE).nonzero()[0])
        assert inputs[row, : first + 1].tolist() == [tokenizer.separator_id, *tokenizer.encode(prompt)]
    with pytest.raises(UserError, match="more than the context of 3"):
        Examples(encode_completions(pairs, tokenizer), 3, tokenizer)
