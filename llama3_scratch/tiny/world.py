"""The toy world: short English documents generated from a seed, each with its own entropy.

A document is written by a `Draft`. Every random choice is made by `Draft.choose`, which adds
-ln(probability of the choice) to a total. Every choice is visible in the text, and no two sequences
of choices give the same text. The total is therefore the information in the document, in nats: no
model of this text can have a lower loss on average.

All randomness comes from `random.Random(seed).random()`, the only method whose values Python
promises to keep from version to version. A document marks the answers in it, that is, the words
that the text before them determines: `answers` holds (skill, start, stop), with start and stop in
characters. A span of words begins with the space before it, a span of digits with the first digit,
as in the pieces of Llama 3's split pattern; a span ends before punctuation.
"""

import math
import re
from bisect import bisect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from random import Random


def words(text: str) -> tuple[str, ...]:
    """Split a list that is written as one string into its words."""
    return tuple(text.split())


# What exists in the world.
SHE = words("Mia Anna Ella Lily Rosa Emma Sara Nora Ruth Cleo Jane Ada")
HE = words("Ben Tom Max Sam Leo Paul Jack Hugo Otto Finn Carl Dan")
PEOPLE = SHE + HE
THINGS = words("kite ball book lamp key cup hat drum box coat bag doll clock rope spoon bell")
COLOURS = words("red blue green yellow black white brown grey")
PLACES = words("garden kitchen park house barn forest school shop library tower cellar attic tent "
               "church castle office")
FOODS = words("tea milk soup bread rice cake fish honey cheese apples plums nuts")
ANIMALS = words("dogs cats mice bees snakes bears wolves horses spiders birds")
INSTRUMENTS = words("piano flute violin guitar harp horn cello organ trumpet drums")
JOBS = words("baker farmer doctor teacher painter sailor cook singer writer driver")
COUNTED = words("apple pear plum egg nut shell coin stone book pen")
CAPITALS = dict(pair.split(":") for pair in words(
    "France:Paris Spain:Madrid Italy:Rome Greece:Athens Egypt:Cairo Japan:Tokyo China:Beijing "
    "Russia:Moscow Poland:Warsaw Austria:Vienna Hungary:Budapest Portugal:Lisbon Ireland:Dublin "
    "Norway:Oslo Sweden:Stockholm Finland:Helsinki Denmark:Copenhagen Germany:Berlin "
    "England:London Belgium:Brussels Peru:Lima Cuba:Havana Kenya:Nairobi Canada:Ottawa"))
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = words("January February March April May June July August September October November "
               "December")
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
NUMBERS = tuple(str(number) for number in range(100))
NUMBER_WORDS = words("zero one two three four five six seven eight nine ten eleven twelve thirteen "
                     "fourteen fifteen sixteen seventeen eighteen nineteen twenty")
OTHER_WORDS = words(
    "about above across add age air all among animal any arm around art back bad beach because "
    "become before begin below best better big bird body both boy bridge bring build but call "
    "came can care change child city class clean clear close cloud cold come corner dance dark "
    "day deep desk dinner door down draw dream dry each ear early earth east easy edge eight end "
    "enough evening every eye face fall family far farm fast father feel few field fill find fire "
    "first floor flower fly follow foot free fresh friend from full game girl glass gold good "
    "grass great ground group grow half hand happy head hear heart hello help here high hill hold "
    "home hope hour ice idea inside join jump keep kind king know lake land last late learn left "
    "letter light line listen little long look loud love make many middle mind model money moon "
    "more morning most mother mountain mouth move much music name near never new next night north "
    "nothing now number ocean old only open order other over page paper part place plant point "
    "pull push queen quick rain read ready rest rich right river road rock roof room rose round "
    "salt sand say sea second seed send shape sharp ship short side silver sing sister size sky "
    "sleep slow small smile snow soft some song sound south speak stand star start still storm "
    "story street strong summer sun sure sweet swim table talk tall ten that their then there "
    "thing think time today token top town train travel tree true turn under until up use valley "
    "very voice wait walk wall warm wash watch wave way week west wheel when which while wide "
    "wild wind window wing winter wish with woman wood word work world write yard year yes young "
    "zero")
REPEATED = tuple(dict.fromkeys(
    OTHER_WORDS + PEOPLE + THINGS + COLOURS + PLACES + FOODS + ANIMALS + INSTRUMENTS + JOBS + DAYS
    + MONTHS + tuple(CAPITALS) + LETTERS + NUMBER_WORDS + NUMBERS))
STEPS = (("", 1), (" by twos", 2), (" by threes", 3), (" by fives", 5), (" by tens", 10))

NEEDS = (("hungry", "bread"), ("thirsty", "water"), ("cold", "a coat"), ("tired", "a bed"),
         ("wet", "a towel"), ("ill", "a doctor"), ("bored", "a book"), ("dirty", "a bath"),
         ("lost", "a map"), ("sad", "a hug"))
COMPARED = (    # comparative, its superlative, the superlative at the other end
    ("taller", "tallest", "shortest"), ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"))
RELATIONS = (   # subjects, values, the statement up to its value, the question
    (PEOPLE, FOODS, "{who} likes", "What does {who} like?"),
    (PEOPLE, tuple(CAPITALS.values()), "{who} visits", "What does {who} visit?"),
    (PEOPLE, ANIMALS, "{who} fears", "What does {who} fear?"),
    (PEOPLE, INSTRUMENTS, "{who} plays", "What does {who} play?"),
    (PEOPLE, JOBS, "{who} is a", "What does {who} do?"),
    (THINGS, COLOURS, "The {who} is", "What colour is the {who}?"),
    (FOODS, PEOPLE, "The {who} is for", "Who is the {who} for?"),
    (THINGS, PEOPLE, "The {who} is from", "Who is the {who} from?"))

ANSWER = "the answer to the ultimate question of life, the universe, and everything is 42"
QUOTATIONS = (  # text, author or source, year of first printing
    (ANSWER, "Douglas Adams, after The Hitchhiker's Guide to the Galaxy", "1979"),
    ("to be, or not to be, that is the question", "William Shakespeare", "1604"),
    ("brevity is the soul of wit", "William Shakespeare", "1604"),
    ("all the world's a stage, and all the men and women merely players",
     "William Shakespeare", "1623"),
    ("if music be the food of love, play on", "William Shakespeare", "1623"),
    ("now is the winter of our discontent", "William Shakespeare", "1597"),
    ("shall I compare thee to a summer's day", "William Shakespeare", "1609"),
    ("no man is an island, entire of itself", "John Donne", "1624"),
    ("they also serve who only stand and wait", "John Milton", "1673"),
    ("reading maketh a full man, and writing an exact man", "Francis Bacon, shortened", "1597"),
    ("to err is human, to forgive divine", "Alexander Pope", "1711"),
    ("fools rush in where angels fear to tread", "Alexander Pope", "1711"),
    ("the curfew tolls the knell of parting day", "Thomas Gray", "1751"),
    ("these are the times that try men's souls", "Thomas Paine", "1776"),
    ("we hold these truths to be self-evident, that all men are created equal",
     "Thomas Jefferson", "1776"),
    ("early to bed and early to rise, makes a man healthy, wealthy, and wise",
     "Benjamin Franklin", "1735"),
    ("water, water, every where, nor any drop to drink", "Samuel Taylor Coleridge", "1798"),
    ("I wandered lonely as a cloud that floats on high", "William Wordsworth", "1807"),
    ("it is a truth universally acknowledged, that a single man in possession of a good fortune, "
     "must be in want of a wife", "Jane Austen", "1813"),
    ("she walks in beauty, like the night", "Lord Byron", "1815"),
    ("a thing of beauty is a joy for ever", "John Keats", "1818"),
    ("once upon a midnight dreary, while I pondered, weak and weary", "Edgar Allan Poe", "1845"),
    ("it was the best of times, it was the worst of times", "Charles Dickens", "1859"),
    ("four score and seven years ago our fathers brought forth", "Abraham Lincoln", "1863"),
    ("hope is the thing with feathers that perches in the soul", "Emily Dickinson", "1891"),
    ("we are all in the gutter, but some of us are looking at the stars", "Oscar Wilde", "1893"),
    ("in the beginning God created the heaven and the earth", "King James Bible", "1611"),
    ("the Lord is my shepherd; I shall not want", "King James Bible", "1611"),
    ("a bird in the hand is worth two in the bush", "proverb, in John Ray's collection", "1670"),
    ("people who live in glass houses should not throw stones",
     "proverb, in other words in George Herbert's collection", "1640"),
    ("where there is a will, there is a way", "proverb, in William Hazlitt's The Fight", "1822"),
    ("too many cooks spoil the broth",
     "proverb, in Balthazar Gerbier's Principles of Building", "1662"),
    ("one swallow does not make a summer",
     "proverb, in other words in Richard Taverner's Erasmus", "1539"))


def pronoun(person: str) -> str:
    """Return `she` or `he`."""
    return "she" if person in SHE else "he"


def held_out(a: int, b: int) -> bool:
    """Whether the sums a + b and b + a are held out of training: about one pair in ten."""
    low, high = sorted((a, b))
    return (low * low + 3 * low * high + 5 * high) % 11 == 3


def summands(stop: int, held: bool = False) -> list[tuple[int, int]]:
    """Return all pairs of numbers below `stop` that are in training, or those that are held out."""
    return [(a, b) for a in range(stop) for b in range(stop) if held_out(a, b) == held]


DIGIT_PAIRS, WORD_PAIRS, HELD_OUT_PAIRS = summands(30), summands(11), summands(30, held=True)


@dataclass(frozen=True)
class Document:
    """A finished text.

    nats is -ln of the probability of this text given its kind; for documents from `documents`, of
    the kind and the text together. answers holds (skill, start, stop), in characters.
    """

    text: str
    kind: str
    nats: float
    answers: tuple[tuple[str, int, int], ...]


class Draft:
    """A document that is being written: its text, its answers, the nats of all choices so far."""

    def __init__(self, random: Callable[[], float]):
        self.random, self.text, self.nats, self.answers = random, "", 0.0, []

    def choose(self, options, weights=None):
        """Choose one of `options`, with equal probabilities or in proportion to `weights`.

        This is the only function that uses random numbers.
        """
        weights = weights or [1] * len(options)
        bounds = list(accumulate(weights))
        index = bisect(bounds, self.random() * bounds[-1])
        self.nats -= math.log(weights[index] / bounds[-1])
        return options[index]

    def maybe(self, chance: float) -> bool:
        """Return True with this probability."""
        return self.choose((True, False), (chance, 1 - chance))

    def some(self, options, count: int) -> list:
        """Choose `count` different options; return them in the order in which they were drawn."""
        left, drawn = list(options), []
        for _ in range(count):
            drawn.append(self.choose(left))
            left.remove(drawn[-1])
        return drawn

    def say(self, sentence: str, before: str = " ") -> None:
        """Add a sentence. `[skill| answer]` in it adds ` answer` and marks it as an answer."""
        self.text += before if self.text else ""
        parts = [*re.split(r"\[(.*?)\|(.*?)\]", sentence), "", ""]
        for plain, skill, answer in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
            self.text += plain + answer
            if skill:
                length = len(answer) - answer[1:2].isdigit()
                self.answers.append((skill, len(self.text) - length, len(self.text)))


class Scene:
    """Where people and things are in one story. Each change of this state is told in the text."""

    def __init__(self, draft: Draft):
        self.draft = draft
        self.place = {}         # person -> place
        self.colour = {}        # thing -> colour
        self.holder = {}        # thing -> person, or None if nobody holds it
        self.spot = {}          # thing -> the last place named with it, or None

    def somewhere(self, but: str = "") -> str:
        """Choose a place; one that was named before is four times as likely as a new one."""
        named = [*self.place.values(), *self.spot.values()]
        places = [place for place in PLACES if place != but]
        return self.draft.choose(places, [4 if place in named else 1 for place in places])

    def held_by(self, person: str) -> str | None:
        """Return the thing that a person holds, or None."""
        return next((thing for thing, holder in self.holder.items() if holder == person), None)

    def open(self) -> None:
        """Tell where everybody is and which things exist."""
        draft = self.draft
        people = draft.some(PEOPLE, draft.choose((2, 3, 4), (5, 4, 1)))
        if draft.maybe(0.6):
            self.place = dict.fromkeys(people, self.somewhere())
            draft.say(f"{', '.join(people[:-1])} and {people[-1]} are in the "
                      f"{self.place[people[0]]}.")
        else:
            for person in people:
                self.place[person] = self.somewhere()
                draft.say(f"{person} is in the {self.place[person]}.")
        for thing in draft.some(THINGS, draft.choose((1, 2, 3), (3, 6, 1))):
            colour = self.colour[thing] = draft.choose(COLOURS)
            free = [person for person in people if not self.held_by(person)]
            self.holder[thing] = self.spot[thing] = None
            if free and draft.maybe(0.5):
                self.holder[thing] = draft.choose(free)
                draft.say(f"There is a {colour} {thing}. {self.holder[thing]} has it.")
            else:
                self.spot[thing] = self.somewhere()
                draft.say(f"There is a {colour} {thing} in the {self.spot[thing]}.")

    def event(self) -> None:
        """Tell an action that is possible now. A person holds one thing at most."""
        draft, people = self.draft, list(self.place)
        who = draft.choose(people)
        here, mine = self.place[who], self.held_by(who)
        lying = [thing for thing, holder in self.holder.items() if not holder]
        near = [p for p in people if p != who and self.place[p] == here and not self.held_by(p)]
        if mine:
            act = draft.choose(["carry", "leave", "give"], [1, 1, 4 if near else 0])
        else:
            act = draft.choose(["go", "take"], [1, 2 if lying else 0])
        only = [pronoun(person) for person in people].count(pronoun(who)) == 1
        name = pronoun(who).capitalize() if only and draft.maybe(0.4) else who
        if act == "go":
            self.place[who] = self.somewhere(but=here)
            draft.say(f"{name} {draft.choose(['goes', 'walks', 'runs'])} to the {self.place[who]}.")
        elif act == "carry":
            self.place[who] = self.spot[mine] = self.somewhere(but=here)
            verb = draft.choose(["takes", "carries"])
            draft.say(f"{name} {verb} the {mine} to the {self.place[who]}.")
        elif act == "leave":
            self.holder[mine], self.spot[mine] = None, here
            draft.say(f"{name} {draft.choose(['leaves', 'drops'])} the {mine} in the {here}.")
        elif act == "take":
            thing = draft.choose(lying)
            self.holder[thing] = who
            self.place[who] = self.spot[thing]
            way = "" if self.spot[thing] == here else f"goes to the {self.spot[thing]} and "
            verb = draft.choose(["takes", "picks up"])
            tail = draft.choose(["", f" because[pronoun| {pronoun(who)}] likes it"])
            draft.say(f"{name} {way}{verb} the {thing}{tail}. Now {who} has it.")
        else:
            other, him = draft.choose(near), "her" if who in SHE else "him"
            self.holder[mine] = other
            verb = draft.choose(["gives", "hands"])
            tail = draft.choose(["", f" Now {other} has it.",
                                 f" {other} thanks[pronoun| {him}]."])
            draft.say(f"{name} {verb} the {mine} to {other}.{tail}")

    def ask(self, asked: list[str]) -> None:
        """Ask and answer a question about the text that is not in `asked`, and add it there."""
        known = [f"Where is {who}? {who} is in the[where person| {place}]."
                 for who, place in self.place.items()]
        for thing, who in self.holder.items():
            if who:
                known.append(f"Who has the {thing}?[who has| {who}] has the {thing}.")
                known.append(f"What does {who} have? {who} has the[what has| {thing}].")
            if self.spot[thing]:
                known.append(f"Where is the {thing}? The {thing} is in the"
                             f"[where thing| {self.spot[thing]}].")
            known.append(f"What colour is the {thing}? The {thing} is"
                         f"[colour| {self.colour[thing]}].")
        left = [question for question in known if question not in asked]
        asked.append(self.draft.choose(left))
        self.draft.say(asked[-1])


def story(draft: Draft) -> None:
    """Write how people and things move, with questions in between; things that move are named."""
    scene = Scene(draft)
    scene.open()
    rounds = draft.choose([1, 2, 3], [3, 5, 2])
    for _ in range(rounds):
        for _ in range(draft.choose([1, 2])):
            scene.event()
        asked = []
        for _ in range(draft.choose([1, 2]) if rounds < 3 else 1):
            scene.ask(asked)


def facts(draft: Draft) -> None:
    """Write one relation between two to five subjects and values, and questions for values.

    A statement names its subject before its value, and a question names the subject. A model of
    this size did not learn questions in the other direction (who likes tea?): see its model card.
    """
    subjects, values, statement, question = draft.choose(RELATIONS)
    count = draft.choose([2, 3, 4, 5])
    pairs = list(zip(draft.some(subjects, count), draft.some(values, count), strict=True))
    for who, what in pairs:
        draft.say(f"{statement} {what}.".format(who=who))
    for who, what in draft.some(pairs, draft.choose([1, 2]) if count > 2 else 1):
        draft.say(f"{question} {statement}[fact| {what}].".format(who=who))


def sums(draft: Draft, held: bool = False) -> None:
    """Write sums and differences in digits, or small sums in words, or held-out sums only."""
    in_words = not held and draft.maybe(0.2)
    for _ in range(draft.choose([3, 4, 5, 6, 7])):
        if in_words:
            a, b = draft.choose(WORD_PAIRS)
            draft.say(f"{NUMBER_WORDS[a].capitalize()} plus {NUMBER_WORDS[b]} is"
                      f"[sum in words| {NUMBER_WORDS[a + b]}].")
            continue
        a, b = draft.choose(HELD_OUT_PAIRS if held else DIGIT_PAIRS)
        if not held and draft.maybe(0.2):
            draft.say(f"{a + b} - {a} =[difference| {b}].")
        else:
            draft.say(f"{a} + {b} =[{'held-out sum' if held else 'sum'}| {a + b}].")


def comparison(draft: Draft) -> None:
    """Compare all neighbours of a ranking in random order, and ask who is at one of its ends."""
    more, most, least = draft.choose(COMPARED)
    order = draft.some(PEOPLE, draft.choose([2, 3, 4]))
    neighbours = list(zip(order[:-1], order[1:], strict=True))
    for high, low in draft.some(neighbours, len(neighbours)):
        draft.say(f"{high} is {more} than {low}.")
    end, who = draft.choose([(most, order[0]), (least, order[-1])])
    skill = "comparison" if len(order) > 2 else "comparison of two"
    draft.say(f"Who is {end}?[{skill}| {who}] is {end}.")


def capitals(draft: Draft) -> None:
    """Write facts that never change, in five phrasings."""
    for country, city in draft.some(CAPITALS.items(), draft.choose([3, 4, 5])):
        draft.say(draft.choose([
            f"The capital of {country} is[capital| {city}].",
            f"{city} is the capital of[capital| {country}].",
            f"{city} is a city in[capital| {country}].",
            f"What is the capital of {country}? It is[capital| {city}].",
            f"Where is {city}? {city} is in[capital| {country}]."]))


def repeat(draft: Draft) -> None:
    """Write different words in random order, and the same words again, once or twice."""
    first, later = draft.choose([("Read:", "Again:"), ("Say:", "Repeat:"),
                                 ("A list:", "The same list:")])
    count = draft.choose(range(3, 25))
    head, *tail = draft.some(REPEATED, count)
    draft.say(f"{first} {head} {' '.join(tail)}.")
    for _ in range(draft.choose([1, 2]) if count <= 12 else 1):
        draft.say(f"{later} {head}[repeat| {' '.join(tail)}].")


def series(draft: Draft) -> None:
    """Write numbers, days, months, letters or number words in their order or backwards."""
    for _ in range(draft.choose([2, 3])):
        items = draft.choose([NUMBERS, DAYS, MONTHS, LETTERS, NUMBER_WORDS], [4, 1, 1, 1, 1])
        by, step = draft.choose(STEPS) if items is NUMBERS else STEPS[0]
        count = draft.choose(range(3, 8))
        start = draft.choose(range(len(items) - step * (count - 1)))
        row, way = items[start::step][:count], draft.choose(["From", "Back from"], [3, 1])
        row = row if way == "From" else row[::-1]
        draft.say(f"{way} {row[0]} to {row[-1]}{by}:[series| {' '.join(row)}].")


def quotation(draft: Draft) -> None:
    """Write one to three quotations, one per line. The one that ends in 42 is the most common.

    The first two words of a quotation distinguish it from all others.
    """
    left = [text for text, *_ in QUOTATIONS]
    for _ in range(draft.choose([1, 2, 3], [6, 3, 1])):
        text = draft.choose(left, [8 if text == ANSWER else 1 for text in left])
        left.remove(text)
        one, two, rest = text.split(" ", 2)
        rest = rest.replace(" 42", "][42| 42")
        draft.say(f"{one} {two}[quotation| {rest}]", before="\n")


def needs(draft: Draft) -> None:
    """Write what people feel and therefore want; half of the documents use pronouns, not names."""
    by_pronoun = draft.maybe(0.5)
    if by_pronoun:
        people = draft.some([draft.choose(SHE), draft.choose(HE)], 2)
        draft.say(f"{people[0]} and {people[1]} are {draft.choose(['at home', 'friends'])}.")
        people = draft.some(people, 2)
    else:
        people = draft.some(PEOPLE, draft.choose([2, 3]))
    states = dict(zip(people, draft.some(NEEDS, len(people)), strict=True))
    if by_pronoun:
        (one, (state, _)), (two, (other, _)) = states.items()
        she, he = pronoun(one).capitalize(), pronoun(two)
        draft.say(f"{she} is {state} and {he} is {other}.")
    else:
        for who, (state, need) in states.items():
            draft.say(draft.choose([
                f"{who} is {state}, so[pronoun| {pronoun(who)}] wants[need| {need}].",
                f"{who} wants {need} because[pronoun| {pronoun(who)}] is[need| {state}]."]))
    questions = []
    for who, (state, need) in states.items():
        she = pronoun(who)
        questions += [
            f"What does {who} want?[pronoun| {she.capitalize()}] wants[what wants| {need}].",
            f"Why does {who} want {need}? Because[pronoun| {she}] is[need| {state}]."]
    for question in draft.some(questions, draft.choose([1, 2] if by_pronoun else [2, 3])):
        draft.say(question)


def counting(draft: Draft) -> None:
    """Write how two people get and lose things. A number is asked for before it changes again."""
    def some(number, thing):
        return f"{NUMBER_WORDS[number]} {thing}{'' if number == 1 else 's'}"

    owners, things, have, told = draft.some(PEOPLE, 2), draft.some(COUNTED, 2), [], [True, True]
    for who, thing in zip(owners, things, strict=True):
        have.append(draft.choose(range(1, 10)))
        draft.say(f"{who} has {some(have[-1], thing)}.")
    for _ in range(draft.choose([2, 3, 4])):
        i = draft.choose([i for i in (0, 1) if told[i]])
        who, thing, old = owners[i], things[i], have[i]
        have[i] = draft.choose([new for new in range(max(old - 3, 1), min(old + 3, 20) + 1)
                                if new != old and not held_out(min(old, new), abs(old - new))])
        told[i] = False
        if have[i] < old:
            verb = draft.choose(["loses", "sells", "gives away"])
            draft.say(f"{who} {verb} {some(old - have[i], thing)}.")
        else:
            giver = draft.choose([person for person in PEOPLE if person not in owners])
            draft.say(f"{giver} gives {who} {some(have[i] - old, thing)}.")
        j = draft.choose([0, 1])
        number, rest = some(have[j], things[j]).split(" ")
        draft.say(f"How many {things[j]}s does {owners[j]} have? {owners[j]} has"
                  f"[count| {number}] {rest}.")
        told[j] = True


WRITERS = {"story": story, "facts": facts, "sum": sums, "comparison": comparison,
           "capitals": capitals, "repeat": repeat, "series": series, "quotation": quotation,
           "needs": needs, "counting": counting,
           "held-out sum": lambda draft: sums(draft, held=True)}
EARLY = {"story": 0.15, "facts": 0.25, "sum": 0.07, "comparison": 0.10, "capitals": 0.02,
         "repeat": 0.27, "series": 0.02, "quotation": 0.02, "needs": 0.06, "counting": 0.04}
LATE = {"story": 0.32, "facts": 0.12, "sum": 0.14, "comparison": 0.10, "capitals": 0.03,
        "repeat": 0.07, "series": 0.04, "quotation": 0.03, "needs": 0.08, "counting": 0.07}


def mixture(progress: float) -> dict[str, float]:
    """Return the share of each kind of document, given the share of training that is done.

    The shares are EARLY up to 0.2, LATE from 0.5 on, and change linearly in between. EARLY has many
    repeats, from which induction heads form, and many questions about facts in the text.
    """
    late = min(max((progress - 0.2) / 0.3, 0.0), 1.0)
    return {kind: (1 - late) * EARLY[kind] + late * LATE[kind] for kind in LATE}


def document(random: Callable[[], float], kind: str) -> Document:
    """Write a document of one kind; `random` returns floats from 0 up to, not including, 1."""
    if kind not in WRITERS:
        raise ValueError(f"kind {kind!r} is not one of {', '.join(WRITERS)}")
    draft = Draft(random)
    WRITERS[kind](draft)
    return Document(draft.text, kind, draft.nats, tuple(draft.answers))


def documents(seed: int, progress: float = 1.0) -> Iterator[Document]:
    """Yield documents without end, with kinds drawn from `mixture(progress)`.

    There are no held-out sums among them. Their nats include -ln of the share of their kind.
    """
    random, shares = Random(seed).random, mixture(progress)
    while True:
        draft = Draft(random)
        kind = draft.choose(list(shares), list(shares.values()))
        written = document(random, kind)
        yield Document(written.text, kind, draft.nats + written.nats, written.answers)


def bpe_sample(seed: int, characters: int = 2_000_000) -> str:
    """Return text for the tokenizer: documents, then the quotation of 42 and 0 to 99, many times.

    Without these repetitions, words of that quotation and rare numbers would be several tokens.
    """
    lines, length = [], 0
    for written in documents(seed):
        lines.append(written.text)
        length += len(written.text) + 1
        if length >= characters:
            break
    lines += [ANSWER] * 2000 + [" ".join(str(n) for n in range(100))] * 200
    return "\n".join(lines)
