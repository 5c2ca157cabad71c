"""Safety topics for language models, as pairs of plain sentences that differ in one phrase.

Every sentence could be read in a newspaper: it names a topic and gives no instructions. Each phrase has a harmless twin
of the same form (article, number, number of words), and both fill the same frames, so that only the topic distinguishes
the two sides. Everyone is an adult, and self-harm is described as a nurse or a helpline would.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from difflib import get_close_matches

from excise.concepts.concept import Concept, Pair, mentioned
from excise.errors import ExciseError

PREFIX = "safety-"
"""Prefix of the topics' names among the known concepts."""

TOPICS: dict[str, tuple[tuple[str, str], ...]] = {
    "violence": (
        ("a street fight", "a street party"), ("an armed attack", "an open rehearsal"), ("a stabbing", "a wedding"),
        ("a brutal beating", "a lively meeting"), ("a murder", "a harvest"), ("torture", "carpentry"),
        ("domestic violence", "domestic plumbing"), ("the killing of a guard", "the hiring of a guard"),
        ("a violent riot", "a crowded regatta"), ("an assault", "an audition"), ("a massacre", "a festival"),
        ("physical abuse", "physical exercise"),
    ),
    "weapons": (
        ("a loaded pistol", "a folded jacket"), ("an assault rifle", "an electric piano"),
        ("hand grenades", "hand towels"), ("a machine gun", "a coffee machine"), ("ammunition", "porcelain"),
        ("a sharp dagger", "a soft pillow"), ("plastic explosives", "plastic containers"), ("a shotgun", "a lantern"),
        ("a bayonet", "a trumpet"), ("land mines", "tea cups"), ("an old revolver", "an old typewriter"),
        ("gunpowder", "sawdust"),
    ),
    "self-harm": (
        ("self-harm", "self-study"), ("suicidal thoughts", "musical tastes"),
        ("suicide prevention", "fire prevention"), ("a suicide attempt", "a cycling holiday"),
        ("thoughts of suicide", "memories of Paris"), ("a suicide helpline", "a booking helpline"),
        ("suicide", "retirement"), ("self-inflicted injuries", "self-published novels"),
        ("the risk of suicide", "the risk of rain"), ("deliberate self-injury", "deliberate overstatement"),
        ("warning signs of self-harm", "warning signs of snowfall"),
        ("support after a suicide attempt", "support after a house move"),
    ),
    "fraud": (
        ("a forged cheque", "a printed menu"), ("insurance fraud", "insurance training"),
        ("a pyramid scheme", "a pension scheme"), ("an investment scam", "an investment course"),
        ("tax evasion", "tax advice"), ("credit card fraud", "credit card design"),
        ("money laundering", "furniture polishing"), ("a fake invoice", "a paid invoice"),
        ("counterfeit banknotes", "antique postcards"), ("a swindler", "a violinist"),
        ("identity fraud", "identity cards"), ("a bogus charity", "a local charity"),
    ),
    "theft": (
        ("a burglary", "a barbecue"), ("shoplifting", "gardening"), ("a stolen car", "a rented car"),
        ("a bank robbery", "a bank holiday"), ("a pickpocket", "a postman"), ("car theft", "car repair"),
        ("stolen jewellery", "handmade jewellery"), ("a gang of thieves", "a group of tourists"),
        ("an armed robbery", "an evening concert"), ("the theft of a painting", "the sale of a painting"),
        ("a break-in", "a check-in"), ("looted shops", "modern shops"),
    ),
    "drugs": (
        ("cocaine", "cinnamon"), ("heroin", "honey"), ("illegal drugs", "seasonal fruits"),
        ("a drug dealer", "a book dealer"), ("a drug overdose", "a train delay"), ("crystal meth", "crystal glass"),
        ("drug trafficking", "road mending"), ("an opioid addiction", "an animal sanctuary"),
        ("a drug cartel", "a bread factory"), ("narcotics", "ceramics"), ("drug smuggling", "food packaging"),
        ("a heroin habit", "a reading habit"),
    ),
    "harassment": (
        ("workplace bullying", "workplace training"), ("a stalker", "a baker"),
        ("threatening letters", "handwritten letters"), ("online harassment", "online banking"),
        ("sexual harassment", "seasonal employment"), ("intimidation", "navigation"),
        ("a campaign of harassment", "a programme of renovation"), ("abusive messages", "short messages"),
        ("stalking", "skating"), ("a bully at work", "a friend at work"),
        ("unwanted phone calls", "weekly phone calls"), ("humiliation", "hospitality"),
    ),
    "privacy": (
        ("a data breach", "a data sheet"), ("leaked medical records", "printed cooking recipes"),
        ("a hidden camera", "a wooden camera"), ("stolen passwords", "favourite recipes"),
        ("phone tapping", "phone repair"), ("an invasion of privacy", "an abundance of flowers"),
        ("covert surveillance", "outdoor photography"), ("a leaked home address", "a painted garden fence"),
        ("spying on neighbours", "waiting for neighbours"), ("secret recordings", "studio recordings"),
        ("location tracking", "parcel delivery"), ("doxxing", "rowing"),
    ),
    "cyber-crime": (
        ("ransomware", "silverware"), ("a phishing email", "a birthday email"), ("malware", "hardware"),
        ("a computer virus", "a computer desk"), ("a hacker", "a plumber"), ("a hacked account", "a savings account"),
        ("a botnet", "a teapot"), ("spyware", "tableware"), ("stolen login details", "planned travel details"),
        ("a cyber attack", "a chess lesson"), ("an online scam", "an online shop"),
        ("a trojan horse program", "a summer music program"),
    ),
    "terrorism": (
        ("a terrorist attack", "a summer concert"), ("a bomb threat", "a price list"),
        ("a hostage crisis", "a budget meeting"), ("terrorism", "tourism"),
        ("an extremist group", "an orchestral group"), ("a car bomb", "a car park"),
        ("a hijacked plane", "a delayed plane"), ("violent extremism", "modern architecture"),
        ("a terror cell", "a solar cell"), ("a kidnapping", "a gathering"), ("an act of terror", "an act of kindness"),
        ("a bombing", "a painting"),
    ),
    "corruption": (
        ("a bribe", "a discount"), ("bribery", "pottery"), ("a corrupt official", "a retired official"),
        ("blackmail", "airmail"), ("vote rigging", "vote counting"), ("embezzlement", "embroidery"),
        ("a secret slush fund", "a public travel fund"), ("extortion", "erosion"), ("a kickback", "a comeback"),
        ("political corruption", "political geography"), ("a rigged election", "a regular election"),
        ("nepotism", "minimalism"),
    ),
    "forced-labour": (
        ("forced labour", "skilled labour"), ("human trafficking", "street cleaning"),
        ("modern slavery", "modern poetry"), ("a people smuggler", "a piano tuner"), ("debt bondage", "choir practice"),
        ("a sweatshop", "a bookshop"), ("slave labour", "farm labour"), ("exploited workers", "seasonal workers"),
        ("unpaid servitude", "unpaid leave"), ("a trafficking ring", "a walking club"),
        ("confiscated passports", "renewed passports"), ("labour exploitation", "labour statistics"),
    ),
}  # fmt: skip
"""Phrases and their harmless twins, by topic."""

FRAMES = (
    "The article was about {x}.",
    "The report describes {x} in plain words.",
    "She gave a talk on {x} at the library.",
    "He wrote a short essay about {x}.",
    "Two colleagues were talking about {x} over lunch.",
    "The museum has a small room on {x}.",
    "A film about {x} was shown on Friday.",
    "The podcast this week is about {x}.",
    "The local paper had a story on {x}.",
    "The committee discussed {x} for an hour.",
    "The new law says nothing about {x}.",
    "There is a chapter on {x} in this book.",
    "Researchers have studied {x} for many years.",
    "The lawyer asked a question about {x}.",
    "Most people have heard of {x} at some point.",  # words: ok
    "The speaker mentioned {x} twice in the interview.",
    "About {x}, the guide says very little.",
    "On {x}, the two experts could not agree.",
    "The editor wanted a headline about {x}.",
    "In his notes there was a page about {x}.",
    "It was a long conversation about {x} and the weather.",
    "The council set up a working group on {x}.",
    "An old man told us what he knew about {x}.",  # words: ok
    "The course covers {x} in the second week.",
)
HARMLESS = (
    "a vegetable garden", "an apple orchard", "classical music", "a mountain railway", "bread and butter",
    "the history of tea", "an early breakfast", "river boats", "a new bus line", "wooden furniture",
    "the colours of autumn", "weather forecasts", "a village choir", "knitting", "an open-air theatre", "old maps",
    "a stone bridge", "the price of coffee", "birdsong", "a swimming pool",
)  # fmt: skip
"""Subjects of the control sentences."""


def names() -> tuple[str, ...]:
    """Return the topics' names for `excise.concepts.builtin`."""
    return tuple(PREFIX + topic for topic in TOPICS)


def safety(topic: str, n: int = 100, seed: int = 0, controls: int = 60) -> Concept:
    """Return a topic as a concept of `n` pairs of sentences, with `controls` sentences about other subjects.

    Phrases and frames occur equally often. The same arguments give the same pairs on every machine. Raises ExciseError
    for an unknown topic, or if there are not enough different sentences.
    """
    topic = topic.removeprefix(PREFIX)
    if topic not in TOPICS:
        near = get_close_matches(topic, TOPICS, n=3, cutoff=0.4) or list(TOPICS)
        raise ExciseError(f"unknown safety topic {topic!r}; try {', '.join(near)}")
    twins, harmless = TOPICS[topic], [(phrase, phrase) for phrase in HARMLESS]
    if not (0 < n <= len(twins) * len(FRAMES) and 0 <= controls <= len(harmless) * len(FRAMES)):
        raise ExciseError(
            f"cannot make {n} pairs and {controls} controls; ask for 1 to {len(twins) * len(FRAMES)} pairs and at most "
            f"{len(harmless) * len(FRAMES)} controls"
        )
    rng = random.Random(f"{seed} {topic}")
    pairs = tuple(
        Pair(filled(frame, phrase), filled(frame, twin), frame) for frame, (phrase, twin) in _sample(rng, twins, n)
    )
    others = tuple(filled(frame, phrase) for frame, (phrase, _) in _sample(rng, harmless, controls))
    mentions = tuple(dict.fromkeys(bare(phrase) for phrase, _ in twins))
    return Concept(PREFIX + topic, mentions, pairs, tuple(text for text in others if not mentioned(text, mentions)))


def filled(frame: str, phrase: str) -> str:
    """Return the frame filled with the phrase."""
    return frame.format(x=phrase)


def bare(phrase: str) -> str:
    """Return the phrase without its article."""
    first, _, rest = phrase.partition(" ")
    return rest if first in ("a", "an", "the") else phrase


def _sample(rng: random.Random, twins: Sequence[tuple[str, str]], n: int) -> list[tuple[str, tuple[str, str]]]:
    """Return `n` different combinations of a frame and a phrase with its twin, each used about equally often."""
    phrases, frames = rng.sample(list(twins), len(twins)), rng.sample(FRAMES, len(FRAMES))
    rounds = (divmod(i, len(frames)) for i in range(n))
    return [(frames[row], phrases[(row + turn) % len(phrases)]) for turn, row in rounds]
