"""Two spellings of one utterance must count as equal; two utterances must not."""

import pytest

from tony.data.world.sentences import number_words
from tony.evals.judges.words import normalise, spell, word_error_rate, word_errors


def test_spelling_agrees_with_the_corpus():
    assert [spell(value) for value in range(1000)] == [number_words(value) for value in range(1000)]


@pytest.mark.parametrize(
    ("value", "words"),
    [(1000, "one thousand"), (1996, "one thousand nine hundred ninety six"), (2_000_017, "two million seventeen"),
     (-5, "minus five")],
)  # fmt: skip
def test_spelling_beyond_the_corpus(value, words):
    assert spell(value) == words


@pytest.mark.parametrize(
    ("heard", "written"),
    [
        (" There are 16 cakes near the river.", "there are sixteen cakes near the river"),
        ("What is 43-11?", "what is forty three minus eleven"),
        ("What is 43 – 11?", "what is forty three minus eleven"),
        ("It's -5.", "it is minus five"),
        ("forty-three plus 2 = 45", "forty three plus two is forty five"),
        ("Which colour does it have?", "which color does it have"),
        ("It’s 1,024 o'clock!", "it is one thousand twenty four oclock"),
        ("The digit is 7.", "the digit is seven"),
        ("Hello — how are you…", "hello how are you"),
        ("", ""),
        ("?!", ""),
    ],
)
def test_spellings_of_one_utterance_are_equal(heard, written):
    assert normalise(heard) == normalise(written) == written


def test_normalising_twice_changes_nothing():
    text = "It's 3-2, isn't it? Ça va, Zoë: 100%!"
    assert normalise(normalise(text)) == normalise(text)


def test_a_misheard_number_stays_an_error():
    pytest.importorskip("jiwer")
    assert word_errors("nineteen minus six", "1996").errors > 0


def test_word_errors_count_each_kind():
    pytest.importorskip("jiwer")
    assert word_errors("the cat sat on the mat", "the cat sat on the mat").errors == 0
    assert word_errors("the cat sat on the mat", "the dog sat the mat now").errors == 3
    assert word_errors("the cat", "").errors == 2
    silent = word_errors("", "hello there")
    assert (silent.errors, silent.words) == (2, 0)


def test_word_error_rate_pools_words_rather_than_sentences():
    pytest.importorskip("jiwer")
    pairs = [word_errors("yes", "no"), word_errors("a b c d e f g h i", "a b c d e f g h i")]
    assert word_error_rate(pairs) == pytest.approx(0.1)
