import pytest

from data.metrics import score_answer, word_f1


def test_names_and_labels_score_by_exact_match():
    assert score_answer("naming", "GetItem", "GetItem") == 1
    assert score_answer("classification", "get", "Get") == 0


@pytest.mark.parametrize(
    ("answer", "label", "score"),
    [
        ("the cat sat", "The cat, sat.", 1),
        ("a b", "c d", 0),
        ("", "", 1),
        ("", "x", 0),
        ("a a b", "a b c", 2 / 3),
        ("a", "a b c", 0.5),
    ],
)
def test_free_text_scores_by_word_f1(answer, label, score):
    assert word_f1(answer, label) == pytest.approx(score)
    assert score_answer("completion", answer, label) == pytest.approx(score)
