"""Speaking by a script: the words are given, and the model decides when each is due.

Without a script the model chooses its words as it speaks (`tony.tokens.chat.Speech`: text and sound take turns). With
one it only chooses whether the sound goes on or the next words come; it can't skip, change or repeat any.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tony.arrays import HIDDEN
from tony.errors import TonyError
from tony.tokens.chat import words_of
from tony.tokens.text import TextTokenizer
from tony.tokens.vocabulary import Vocabulary

LONGEST = 128  # text tokens


class Script(NamedTuple):
    """For each row: text tokens [rows, LONGEST], which of them some sound comes before, how many there are (0: there is
    no script), and which is next [rows]."""

    tokens: jax.Array | np.ndarray
    after_sound: jax.Array | np.ndarray
    length: jax.Array | np.ndarray
    next: jax.Array | np.ndarray

    @classmethod
    def empty(cls, rows: int) -> "Script":
        """No script in any row; NumPy arrays to write into."""
        table, numbers = np.zeros((rows, LONGEST), np.int32), np.zeros(rows, np.int32)
        return cls(table, table.astype(bool), numbers, numbers.copy())


def runs_of(text: str, text_tok: TextTokenizer, vocab: Vocabulary) -> tuple[tuple[int, ...], ...]:
    """The script of a text: tokens of each word; TonyError if it is too long or empty."""
    words = [text_tok.encode(word) for word in words_of(text)]
    count = sum(map(len, words))
    if not 1 <= count <= LONGEST:
        raise TonyError(f"a text of {count} tokens is to be said; expected 1 to {LONGEST}: say it in pieces")
    return tuple(tuple(vocab.text.start + token for token in word) for word in words)


def write(script: Script, row: int, runs: Sequence[Sequence[int]], said: int) -> None:
    """Put a script of which `said` tokens have been said into a row."""
    tokens = [token for run in runs for token in run]
    begins = np.cumsum([0, *map(len, runs)])[1:-1]
    script.tokens[row, : len(tokens)] = tokens
    script.after_sound[row, begins] = True
    script.length[row], script.next[row] = len(tokens), said


def follow(
    script: Script, logits: jax.Array, allowed: jax.Array, sounding: jax.Array, wording: jax.Array, kinds: dict
) -> tuple[jax.Array, jax.Array]:
    """(logits, allowed), both [rows, vocabulary], of rows that follow a script.

    `sounding` and `wording` [rows] are true where the last token was sound, or speech's text or the place for it;
    `kinds` has what is "text" and what is "audio_end", bool [vocabulary].
    """
    left = script.next < script.length
    at = jnp.minimum(script.next, LONGEST - 1)[:, None]
    token = jnp.take_along_axis(script.tokens, at, 1)
    waits = jnp.take_along_axis(script.after_sound, at, 1)[:, 0] | ~left  # nothing more is said before some sound
    due = (jnp.arange(logits.shape[1]) == token) & (left & (sounding | ~waits))[:, None]
    other = allowed & ~kinds["text"] & (sounding | waits)[:, None] & ~(kinds["audio_end"] & left[:, None])
    # However the model would have gone on in words, it goes on with the script's.
    going_on = jax.nn.logsumexp(jnp.where(allowed & kinds["text"], logits, HIDDEN), axis=1, keepdims=True)
    scripted = ((script.length > 0) & (sounding | wording))[:, None]
    return jnp.where(scripted & due, going_on, logits), jnp.where(scripted, due | other, allowed)
