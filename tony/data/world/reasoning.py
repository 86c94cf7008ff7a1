"""Arithmetic and small logic with the reasoning written out, as text.

Every problem is (question, thinking, answer). A problem is held out by a hash of its numbers or its order of people,
whatever the wording of its question.
"""

import random
from dataclasses import dataclass
from itertools import pairwise

from tony.data.world.sentences import is_held_out


@dataclass(frozen=True)
class Problem:
    """One problem; `key` is what a split is decided by."""

    key: str
    question: str
    thinking: str
    answer: str


def _digits(value: int, count: int) -> list[int]:
    return [value // 10**place % 10 for place in range(count)]


def add(a: int, b: int) -> tuple[str, int]:
    """Column addition, written out from the right: (working, a + b)."""
    places = max(len(str(a)), len(str(b)))
    steps, carry = [], 0
    for x, y in zip(_digits(a, places), _digits(b, places), strict=True):
        total = x + y + carry
        left = f"{x}+{y}+{carry}" if carry else f"{x}+{y}"
        carry = total // 10
        steps.append(f"{left}={total}" + (f", {total % 10} carry {carry}" if carry else ""))
    return "; ".join(steps), a + b


def subtract(a: int, b: int) -> tuple[str, int]:
    """Column subtraction of b <= a with borrowing: (working, a - b)."""
    places = len(str(a))
    steps, borrow = [], 0
    for x, y in zip(_digits(a, places), _digits(b, places), strict=True):
        owed = borrow
        borrow = int(x - owed < y)
        left = f"{x + 10 * borrow}-{y}" + (f"-{owed}" if owed else "")
        steps.append(f"{left}={x - owed + 10 * borrow - y}" + (", borrow 1" if borrow else ""))
    return "; ".join(steps), a - b


def multiply(a: int, b: int) -> tuple[str, int]:
    """Long multiplication by the single digit b: (working, a * b)."""
    steps, carry = [], 0
    for x in _digits(a, len(str(a))):
        total = x * b + carry
        left = f"{x}*{b}+{carry}" if carry else f"{x}*{b}"
        carry = total // 10
        steps.append(f"{left}={total}" + (f", {total % 10} carry {carry}" if carry else ""))
    return "; ".join(steps), a * b


_WORDING = {
    "+": ("What is {a} + {b}?", "{a} + {b} = ?", "Add {a} and {b}.", "Calculate {a} + {b}.",
          "How much is {a} plus {b}?"),
    "-": ("What is {a} - {b}?", "{a} - {b} = ?", "Take {b} from {a}.", "Calculate {a} - {b}.",
          "How much is {a} minus {b}?"),
    "*": ("What is {a} * {b}?", "{a} * {b} = ?", "Multiply {a} by {b}.", "Calculate {a} * {b}.",
          "How much is {a} times {b}?"),
}  # fmt: skip


def arithmetic(rng: random.Random) -> Problem:
    """A sum, a difference (not negative) of numbers below 1000, or a product of one below 1000 and a digit."""
    sign = rng.choice("++--*")
    a, b = (rng.randrange(10 ** rng.randint(1, 3)) for _ in range(2))
    if sign == "+":
        working, answer = add(a, b)
    elif sign == "-":
        a, b = max(a, b), min(a, b)
        working, answer = subtract(a, b)
    else:
        b = rng.randrange(2, 10)
        working, answer = multiply(a, b)
    question = rng.choice(_WORDING[sign]).format(a=a, b=b)
    return Problem(f"{a}{sign}{b}", question, f"{a}{sign}{b}: {working}. {answer}", str(answer))


_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ivan", "June", "Kim", "Leo")
_ORDERS = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"))


def comparison(rng: random.Random) -> Problem:
    """Three or four people in an order told pair by pair, in any sequence; who is first, or last?"""
    people = rng.sample(_NAMES, rng.choice((3, 4)))
    more, most, least = rng.choice(_ORDERS)
    facts = [f"{high} is {more} than {low}." for high, low in pairwise(people)]
    rng.shuffle(facts)
    top = rng.random() < 0.5
    question = " ".join(facts) + f" Who is {most if top else least}?"
    answer = people[0] if top else people[-1]
    return Problem(" ".join(people), question, f"{' > '.join(people)}. {answer}", answer)


def problem(rng: random.Random, kind: str, held_out: bool) -> Problem:
    """A problem of a kind ("arithmetic" or "comparison") from one side of the split."""
    make = {"arithmetic": arithmetic, "comparison": comparison}[kind]
    while True:
        made = make(rng)
        if is_held_out(made.key) == held_out:
            return made
