"""Random scenes of a word of two to four letters."""

import random
import zlib
from dataclasses import replace

from models.training.language.tables import short_words
from models.training.scenes import (
    COLOURS,
    LETTERS,
    TILE,
    WORD_TILES,
    Box,
    Element,
    Scene,
    snap_centre,
    usual_colours,
)

SIDE = WORD_TILES * TILE
KNOWN = tuple(
    """
    AM AT BE BY DO GO HI IF IN IT ME MY NO OF OK ON OR PC PS TO TV UP US WE ACE ACT ADD AGE AIR ALL AND
    ANT ARM ART ASK BAG BAR BAT BED BEE BIG BOX BOY BUS BUY CAB CAP CAR CAT COW CUP DAY DOG DRY EAR EAT
    EGG END EYE FAN FAR FIT FLY FOX FUN GAS GYM HAT HEN HEY HOT ICE INK JAM JAR JOY KEY KID LAW LOW MAP
    MAX MIX MOM NEW NEO NOW OIL OLD ONE OWL PEN PET PIE PIG POP RAT RED RUN SEA SKY SUN TAX TEA TEN TOP
    TOY TWO USE VAN VIP WAR WAY WEB WIN WOW YES ZEN ZIP ZOO ABLE ACID ARCH BABY BALL BAND BANK BEAR BIRD
    BLUE BOAT BOOK BOSS CAFE CAKE CARD CITY CLUB COOL CUBE DARK DATA DAWN DEAL DOOR DUCK EAST EASY ECHO
    EXIT FACE FARM FAST FILM FIRE FISH FLOW FOOD FREE FROG GAME GIFT GOAL GOLD GOOD HAND HELP HERO HOME
    HOPE ICON IDEA IRON JAZZ JUMP KIND KING KITE LAMP LAVA LEAF LIFE LION LOVE LUCK MATH MEGA MENU MILK
    MIND MOON NAVY NEWS NEXT NOTE OPEN OVEN PARK PEAK PLAY PLUS POST QUIZ RAIN READ REST RICE RING ROAD
    ROCK SALE SAVE SHIP SHOP SNOW SODA SOFA SOUP STAR STOP TAXI TEAM TIME TREE UNIT VIEW WAVE WIND WOLF
    WORK YOGA ZERO ZONE
    """.split()  # noqa: SIM905 (a list would fill a page)
)


TOKENS = tuple(short_words())  # have a token each, whose spelling must be learnt


def held_out_word(word: str) -> bool:
    """Whether a word is reserved for measuring: about one in eight of those that the tokenizer spells."""
    return zlib.crc32(word.encode()) % 8 == 0 and word not in TOKENS


def random_text(rng: random.Random, most: int, measuring: bool = False) -> str:
    """A word of 2 to `most` letters: half of them are English, the others any letters."""
    while True:
        any_letters = "".join(rng.choices(LETTERS, k=rng.choice((2, 3, 3, 4, 4))))
        word = rng.choices((any_letters, rng.choice(KNOWN), rng.choice(TOKENS)), (0.5, 0.38, 0.12))[0]
        if len(word) <= most and held_out_word(word) == measuring:
            return word


def known_text(rng: random.Random) -> str:
    """A known word that is held out."""
    return rng.choice([word for word in KNOWN if held_out_word(word)])


def put_word(name: str, colour: str, cx: float, cy: float, width: int, height: int) -> Element:
    """The word with its centre aligned to tiles."""
    x, y = snap_centre(cx, SIDE * len(name), width), snap_centre(cy, SIDE, height)
    return Element("word", name, colour, x, y, SIDE)


def random_word(rng: random.Random, width: int, height: int, name: str = "") -> Scene:
    """A word in the middle, a random one unless it is named."""
    colour, background = usual_colours(rng, *rng.sample(list(COLOURS), 2))
    name = name or random_text(rng, min(4, width // SIDE))
    return Scene(width, height, background, put_word(name, colour, width / 2, height / 2, width, height))


def random_boxed_word(rng: random.Random, width: int, height: int, name: str = "") -> Scene:
    """A word in a box about as large as the word."""
    colour, background = usual_colours(rng, *rng.sample(list(COLOURS), 2))
    name = name or random_text(rng, min(4, width // SIDE))
    h = min(1.0, SIDE / height * rng.uniform(0.95, 1.3))
    w = min(1.0, SIDE * len(name) / width * rng.uniform(0.95, 1.2))
    y, x = rng.uniform(0, 1 - h), rng.uniform(0, 1 - w)
    step = rng.choice((1, 1, 5, 10, 25))
    box: Box = tuple(min(1000, round(v * 1000 / step) * step) for v in (y, x, y + h, x + w))  # type: ignore[assignment]
    element = put_word(name, colour, (x + w / 2) * width, (y + h / 2) * height, width, height)
    return Scene(width, height, background, replace(element, bbox=box))
