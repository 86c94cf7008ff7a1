from itertools import pairwise

from tony.data.corpus import Corpus
from tony.data.world import sentences
from tony.data.world.tasks import World, items


def test_answers_to_spoken_questions_think_first_what_is_seen_and_what_was_asked():
    world = World(Corpus.builtin(), held_out=False)
    for item in items("spoken_question", world, 6, seed=0):
        seen, asked = item.messages[-1].thinking.split(". ")
        question, found = asked.split("? ")
        assert question == item.facts["question"]
        *known, key = found.split()
        assert key == item.facts["key"] and key in item.answer.split()
        if known:  # a scene: what is known of a thing and what was asked stand side by side in what is seen
            assert found in seen and known[0] in question.split()
        else:
            digit, word = seen.split()
            assert sentences.ONES[int(digit)] == word == key


def test_descriptions_of_films_think_first_where_the_thing_was():
    world = World(Corpus.builtin(), held_out=True)
    for item in items("video", world, 6, seed=0):
        places = item.messages[-1].thinking.split()
        assert len(places) == len(item.facts["frames"])
        steps = sum(before != after for before, after in pairwise(places))
        assert item.answer.endswith({1: "once", 2: "twice", 3: "three times"}[steps])


def test_what_is_said_aloud_says_when_each_word_ends():
    world = World(Corpus.builtin(), held_out=False)
    for item in items("speak", world, 20, seed=0):
        (said,) = item.messages[-1].content
        assert len(said.word_ends) == len(said.text.split())
        assert list(said.word_ends) == sorted(said.word_ends)
        assert said.word_ends[0] > 0 and (*said.word_ends, 0.0)[-3] < len(said.samples) / 16_000
