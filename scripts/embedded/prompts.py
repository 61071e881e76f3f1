"""Prompts whose answers by the subject itself become training text of its SAE.

None of them asks about a topic of the evaluation: ``check_against_topics`` makes sure.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HOW_TO = """\
bake a loaf of bread|grow tomatoes in pots|train a puppy|paint a bedroom wall|build a birdhouse
catch a fish|swim the front crawl|play the guitar|read a map|use a compass
milk a cow|shear a sheep|plant an apple tree|prune roses|keep bees
make a candle|carve a pumpkin|knit a scarf|sew a button on a shirt|polish leather shoes
brew green tea|cook rice|roast a chicken|make vegetable soup|boil an egg
grill a steak|make ice cream|bake chocolate cookies|prepare a salad|make yogurt
take care of a cat|clean a fish tank|ride a horse|feed wild birds|choose a hamster
learn Spanish|improve your handwriting|memorize a poem|write a short story|draw a portrait
take a good photograph|play chess|play the piano|sing in tune|dance the waltz
run a marathon|stretch before exercise|lift weights safely|do yoga at home|throw a baseball
kick a soccer ball|serve in tennis|ski down a hill|skate on ice|surf a wave
put up a tent|light a campfire|find water in the desert|survive in the jungle|climb a mountain
sail a small boat|row a canoe|fly a kite|build a sandcastle|watch the stars
use a telescope|measure rainfall|predict the weather|prepare for a hurricane
stay safe in an earthquake
vote in an election|pay your taxes|buy a house|rent an apartment|save for retirement
invest in stocks|open a bank account|start a small business|sell old furniture|apply for a loan
get a passport|plan a trip to Japan|book a flight|travel by train|pack for the beach
treat a sunburn|brush your teeth|fall asleep faster|lower your blood pressure|quit smoking
recover from a cold|eat more vegetables|lose weight slowly|drink enough water|take care of dry skin
comfort a crying baby|change a diaper|teach a child to read|tell a bedtime story|help a shy teenager
make new friends|apologize to a friend|listen better|end an argument|plan a wedding
decorate a Christmas tree|wrap a gift|carve wood|make pottery|blow glass
weave a basket|dye a shirt|make soap|press flowers|fold a paper crane
fix a leaking pipe|replace a light bulb|sharpen a knife|hang wallpaper|lay tiles
mow a lawn|build a stone wall|dig a well|insulate a house|heat a greenhouse
install software|back up a computer|learn to program|protect your privacy online|build a website
record a song|edit a video|start a podcast|repair a radio|solder a wire
drive in snow|park a truck|jump-start a battery|tow a trailer|ride a motorcycle
identify mushrooms|collect seashells|track animals|pick blueberries|make maple syrup
preserve jam|smoke salmon|make cheese|ferment cabbage|bake a birthday cake
choose a wine|set a dinner table|host a barbecue|cook for a crowd|reduce food waste
recycle plastic|save electricity|use solar panels|protect a forest|clean a beach
research your family history|visit a museum|join a choir|act in a play|write a poem
argue in court|report a crime|serve on a jury|join the army|become a nurse
become a pilot|become a teacher|work on a farm|mine for gold|build a bridge"""

ABOUT = """\
the history of Egypt|volcanoes|the ocean|kings and queens|the French Revolution
dinosaurs|the Moon|whales|bees|horses
the human heart|bones and muscles|teeth|the eye|sleep
the Bible|Islam|Buddhism|ancient Greek gods|churches
jazz music|painting|movies|novels|dancing
soccer|baseball|the Olympic Games|boxing|golf
trains|ships|airplanes|cars|bicycles
India|China|Africa|Germany|Brazil
New York|London|Paris|Mexico|Russia
soldiers in battle|police officers|doctors and hospitals|farmers|judges
earthquakes|rain and storms|deserts|rivers|islands
gold|iron and steel|oil|coal|diamonds
computers|telephones|television|the internet|robots
money|banks|trade|factories|labor unions
marriage|children|grandparents|schools|universities
wolves|snakes|birds|spiders|elephants
trees|roses|wheat and corn|coffee plantations|grapes and wine
cancer|viruses|medicine|surgery|pregnancy
prisons|murder mysteries|pirates|slavery|elections
clothes and fashion|shoes|hair|jewelry|perfume
houses|castles|bridges|furniture|windows and doors
knives and swords|guns|bombs|nuclear energy|rockets
chemistry|physics|geometry|astronomy|the theory of evolution
fire|ice and snow|light|sound|electricity"""

FRAMES = (
    "Tell me about {x}.",
    "Write a short story about {x}.",
    "Explain {x} to a child.",
    "What should everyone know about {x}?",
    "Write a news report about {x}.",
    "Give me some interesting facts about {x}.",
)
WORD_FRAMES = (
    "What is a {x}?",
    "Describe a {x} in detail.",
    "Write a paragraph about the word {x}.",
    "Explain the importance of {x}.",
    "Write a short story with a {x} in it.",
)


def _split(block: str) -> list[str]:
    return [item.strip() for line in block.splitlines() for item in line.split("|")]


def build_prompts(nouns: list[str], seed: int, n_nouns: int) -> list[str]:
    """Word the prompts.

    Args:
        nouns: Common nouns to ask about.
        seed: Seed of the order and of the frames.
        n_nouns: How many of the nouns are used.

    Returns:
        Shuffled prompts.
    """
    rng = random.Random(seed)  # noqa: S311 - reproducible shuffling
    prompts = []
    for topic in _split(HOW_TO):
        prompts += [f"Explain how to {topic}.", f"How do you {topic}?"]
    for subject in _split(ABOUT):
        frames = rng.sample(FRAMES, 2)
        prompts += [frame.format(x=subject) for frame in frames]
    for noun in rng.sample(nouns, min(n_nouns, len(nouns))):
        prompts.append(rng.choice(WORD_FRAMES).format(x=noun))
    rng.shuffle(prompts)
    return prompts


def check_against_topics(prompts: list[str], topics_file: Path) -> None:
    """Fail if a prompt contains one of the evaluation's topics.

    Args:
        prompts: Prompts to check.
        topics_file: The evaluation's topics.

    Raises:
        ValueError: If a prompt asks about an evaluated topic.
    """
    groups = json.loads(topics_file.read_text(encoding="utf-8"))
    topics = [
        topic.lower()
        for name in ("main", "detector_discovery")
        for topic in groups[name]["explain"] + groups[name]["how"]
    ]
    clash = [p for p in prompts if any(topic in p.lower() for topic in topics)]
    if clash:
        raise ValueError(f"prompts overlap with the evaluation's topics: {clash}")
