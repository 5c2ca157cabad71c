"""Safety topics for language models, as pairs of plain sentences that differ in one phrase.

Every sentence is one that a person could read in a newspaper: it names a topic and tells nobody how to do anything. A
topic's phrase has a harmless twin of the same make (article, number, number of words), and both stand in the same
frames, so that nothing but the topic tells the two sides apart. Everyone is an adult; self-harm is spoken of as a nurse
or a helpline would.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from difflib import get_close_matches

from excise.concepts.concept import Concept, Pair, mentioned
from excise.errors import ExciseError

PREFIX = "safety-"
"""What the topics' names begin with among the concepts that come with Excise."""

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
"""By topic: what is said of it, and its harmless twin."""

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
    "Most people have heard of {x} at some point.",
    "The speaker mentioned {x} twice in the interview.",
    "About {x}, the guide says very little.",
    "On {x}, the two experts could not agree.",
    "The editor wanted a headline about {x}.",
    "In his notes there was a page about {x}.",
    "It was a long conversation about {x} and the weather.",
    "The council set up a working group on {x}.",
    "An old man told us what he knew about {x}.",
    "The course covers {x} in the second week.",
)
HARMLESS = (
    "a vegetable garden", "an apple orchard", "classical music", "a mountain railway", "bread and butter",
    "the history of tea", "an early breakfast", "river boats", "a new bus line", "wooden furniture",
    "the colours of autumn", "weather forecasts", "a village choir", "knitting", "an open-air theatre", "old maps",
    "a stone bridge", "the price of coffee", "birdsong", "a swimming pool",
)  # fmt: skip
"""What control sentences are about."""


def names() -> tuple[str, ...]:
    """The topics, by the names that `excise.concepts.builtin` knows them by."""
    return tuple(PREFIX + topic for topic in TOPICS)


def safety(topic: str, n: int = 100, seed: int = 0, controls: int = 60) -> Concept:
    """A topic as a concept of `n` pairs of sentences, and `controls` in the same frames that are about something else.

    Phrases and frames come equally often. The same arguments give the same pairs on every machine. Raises ExciseError
    for an unknown topic, or where so many different sentences cannot be made.
    """
    topic = topic.removeprefix(PREFIX)
    if topic not in TOPICS:
        near = get_close_matches(topic, TOPICS, n=3, cutoff=0.4) or list(TOPICS)
        raise ExciseError(f"there is no safety topic {topic!r}; try {', '.join(near)}")
    twins, harmless = TOPICS[topic], [(phrase, phrase) for phrase in HARMLESS]
    if not (0 < n <= len(twins) * len(FRAMES) and 0 <= controls <= len(harmless) * len(FRAMES)):
        raise ExciseError(
            f"{n} pairs and {controls} controls cannot be made; there are up to {len(twins) * len(FRAMES)} pairs and "
            f"{len(harmless) * len(FRAMES)} controls"
        )
    rng = random.Random(f"{seed} {topic}")
    pairs = tuple(
        Pair(said(frame, phrase), said(frame, twin), frame) for frame, (phrase, twin) in _drawn(rng, twins, n)
    )
    others = tuple(said(frame, phrase) for frame, (phrase, _) in _drawn(rng, harmless, controls))
    mentions = tuple(dict.fromkeys(bare(phrase) for phrase, _ in twins))
    return Concept(PREFIX + topic, mentions, pairs, tuple(text for text in others if not mentioned(text, mentions)))


def said(frame: str, phrase: str) -> str:
    """The sentence."""
    return frame.format(x=phrase)


def bare(phrase: str) -> str:
    """The phrase without its article."""
    first, _, rest = phrase.partition(" ")
    return rest if first in ("a", "an", "the") else phrase


def _drawn(rng: random.Random, twins: Sequence[tuple[str, str]], n: int) -> list[tuple[str, tuple[str, str]]]:
    """n different couples of a frame and a phrase with its twin, every frame and phrase about equally often."""
    phrases, frames = rng.sample(list(twins), len(twins)), rng.sample(FRAMES, len(FRAMES))
    rounds = (divmod(i, len(frames)) for i in range(n))
    return [(frames[row], phrases[(row + turn) % len(phrases)]) for turn, row in rounds]
