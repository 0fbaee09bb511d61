"""Questions about emoji and their answers, from what `data/tiny` says of them: the small understanding model's data.

Everything is drawn from a random generator that the caller makes of the picture's name, so it is the same every time.
"""

import random
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from training.prepare_captions import with_article
from training.prepare_emoji import family_of

# The first of a kind is what evaluations ask.
NAME_QUESTIONS = [
    "what is it?",
    "what is this?",
    "what is in the picture?",
    "what does the picture show?",
    "what do you see?",
    "which emoji is this?",
    "what can be seen here?",
    "name this emoji.",
]
CATEGORY_QUESTIONS = ["which category is it from?", "what kind of emoji is it?", "which group does it belong to?"]
STYLE_QUESTIONS = ["which style is it drawn in?", "which set is it from?", "whose emoji is it?"]
COLOUR_QUESTIONS = ["what is its main colour?", "which colour is it mostly?", "what colour is it?"]
YES_NO_QUESTIONS = ["is it {}?", "is this {}?", "is there {} in the picture?", "does it show {}?", "can you see {}?"]
KINDS = ("name", "category", "style", "colour", "count", "yes_no")

# How many people a name speaks of, or no number where pictures of different styles show more or fewer.
TWO_PEOPLE = re.compile(
    r"(men|women|people|woman and man) (holding hands|wrestling|with bunny ears|hugging)$"
    r"|(couple with heart|kiss)(:|$)|busts in silhouette$"
)
ONE_PERSON = re.compile(r"((old|older|pregnant) )?(man|woman|person|boy|girl|baby|child|bust in silhouette)\b")
NOT_ONE_PERSON = re.compile(r"holding|feeding|massage|haircut|kiss|hugging")
CLOCK = re.compile(r"(\w+ o'clock|\w+-thirty)$")
HEARTS = re.compile(r"([\w ]+ heart|heart with (arrow|ribbon)|heart exclamation)$")
# What else can be counted, by the whole name.
COUNTED = {
    "two hearts": ("hearts", 2),
    "revolving hearts": ("hearts", 2),
    "star": ("points", 5),
    "dotted six-pointed star": ("points", 6),
    "eight-pointed star": ("points", 8),
    "four leaf clover": ("leaves", 4),
    "shamrock": ("leaves", 3),
    "camel": ("humps", 1),
    "two-hump camel": ("humps", 2),
    "exclamation mark": ("exclamation marks", 1),
    "double exclamation mark": ("exclamation marks", 2),
    "curly loop": ("loops", 1),
    "double curly loop": ("loops", 2),
}


@dataclass(frozen=True)
class Emoji:
    """What is known about a picture; `colours` are those that cover most of it, the foremost first."""

    name: str
    base_name: str
    category: str
    style: str
    colours: Sequence[str]


@dataclass(frozen=True)
class Amounts:
    """How many wordings of each kind a picture gets; of yes-or-no questions, that many with each answer."""

    name: int
    yes_no: int
    other: int


class NamePool:
    """
    The base names of all pictures, to ask about what is not there.

    A name of many pictures is drawn often, as it is by the questions about what is there: from the name alone nobody
    can tell which answer is right.

    Args:
        emoji: of which the names are taken.

    Raises:
        ValueError: all are of one family.
    """

    def __init__(self, emoji: Sequence[Emoji]) -> None:
        self.names = [row.base_name for row in emoji]
        self.by_category: dict[str, list[str]] = defaultdict(list)
        self.families = {name: family_of(name) for name in self.names}
        for row in emoji:
            self.by_category[row.category].append(row.base_name)
        if len(set(self.families.values())) < 2:
            raise ValueError(f"asking about what is not there takes two families of names; got {sorted(self.families)}")

    def draw(self, emoji: Emoji, same_category: bool, generator: random.Random) -> str:
        """A name of another family, from the same category if it has one."""
        family = family_of(emoji.base_name)
        for names in [self.by_category[emoji.category]] * same_category + [self.names]:
            if any(self.families[name] != family for name in names):
                name = generator.choice(names)
                while self.families[name] == family:
                    name = generator.choice(names)
                return name
        raise ValueError(f"there is no name of another family than {family}")


def describe(name: str) -> str:
    """A name within a question: `a red apple`, `the flag of france`, `the keycap 3`, `men wrestling`."""
    for start, phrase in (("flag: ", "the flag of "), ("keycap: ", "the keycap ")):
        if name.startswith(start):
            return phrase + name.removeprefix(start)
    return name if re.match(r"(men|women|people)\b", name) else with_article(name)


def spell_category(category: str) -> str:
    """`food-drink` as one says it: `food and drink`"""
    return category.replace("-", " and ")


def count_people(emoji: Emoji) -> int | None:
    """The number of people in a picture, where its name tells it."""
    if emoji.base_name.startswith("family: "):
        return len(emoji.base_name.split(","))
    if emoji.category != "people-body":
        return None
    if TWO_PEOPLE.match(emoji.base_name):
        return 2
    return 1 if ONE_PERSON.match(emoji.base_name) and not NOT_ONE_PERSON.search(emoji.base_name) else None


def count_question(emoji: Emoji) -> tuple[str, str] | None:
    """A question about a number, a digit or a time and its answer, where the name tells it."""
    name = emoji.base_name
    if (people := count_people(emoji)) is not None:
        return "how many people are there?", str(people)
    if name.startswith("keycap: ") and name[-1].isdigit():
        return "which number is on it?", name.removeprefix("keycap: ")
    if CLOCK.match(name):
        return "what time is it?", name
    if name in COUNTED:
        things, number = COUNTED[name]
        return f"how many {things} are there?", str(number)
    if emoji.category == "smileys-emotion" and HEARTS.match(name):
        return "how many hearts are there?", "1"
    return None


def ask_yes_no(emoji: Emoji, pool: NamePool, amount: int, generator: random.Random) -> list[dict[str, str]]:
    """As many questions with the answer yes as with no; of those every other is about a name of the same category."""
    others = [pool.draw(emoji, same_category=number % 2 == 0, generator=generator) for number in range(amount)]
    turns = []
    for names, answer in (([emoji.base_name] * amount, "yes"), (others, "no")):
        for name, wording in zip(names, generator.sample(YES_NO_QUESTIONS, amount), strict=True):
            turns.append({"kind": "yes_no", "question": wording.format(describe(name)), "answer": answer})
    return turns


def write_questions(
    emoji: Emoji, pool: NamePool, amounts: Amounts, generator: random.Random, first_wording: bool = False
) -> list[dict[str, str]]:
    """
    Questions and answers about a picture.

    Args:
        emoji: the picture.
        pool: where names of what is not there come from.
        amounts: how many of each kind.
        generator: draws wordings and names.
        first_wording: ask in the first wording of each kind instead of drawing them.

    Returns:
        Dictionaries of `kind` (of `KINDS`), `question` and `answer`. There are none about colours of a picture that is
        not mostly of one, nor about numbers where the name tells none.
    """
    kinds = [
        ("name", NAME_QUESTIONS, emoji.name, amounts.name),
        ("category", CATEGORY_QUESTIONS, spell_category(emoji.category), amounts.other),
        ("style", STYLE_QUESTIONS, emoji.style, amounts.other),
    ]
    if emoji.colours:
        kinds.append(("colour", COLOUR_QUESTIONS, emoji.colours[0], amounts.other))
    if counted := count_question(emoji):
        kinds.append(("count", [counted[0]], counted[1], 1))
    turns = []
    for kind, wordings, answer, amount in kinds:
        chosen = wordings[:amount] if first_wording else generator.sample(wordings, amount)
        turns += [{"kind": kind, "question": question, "answer": answer} for question in chosen]
    return turns + ask_yes_no(emoji, pool, amounts.yes_no, generator)
