"""Sentences for the synthetic talker: a small grammar whose words cover the sounds of English.

Six everyday templates and one of commands in the manner of the GRID corpus; the word lists were
chosen so that every English phoneme occurs often, in stressed and unstressed places. Some hundred
million sentences, of 5 to 12 words.
"""

import numpy as np


def _words(text: str) -> list[str]:
    return text.split("|")


_PEOPLE = _words(
    "my mother|the old farmer|our new teacher|a young doctor|the tall judge|her brother George|"
    "the baker's wife|Uncle Theo|a quiet boy|the girl next door|Mister Jones|the vicar|"
    "every visitor|the blue team|a few children|our cheerful nurse|the shop owner|that pilot|"
    "Zoe and Hugh|the fishermen|both painters|a thoughtful youth|the royal guard|Aunt Joyce"
)
_PAST = _words(
    "found|washed|painted|bought|carried|measured|pushed|showed me|chose|borrowed|dropped|"
    "wrapped up|shook|watched|threw away|brought back|forgot|sold|mentioned|enjoyed|fixed|"
    "covered|gathered|moved|polished|saved|used|voted for|joined|pulled"
)
_ADJECTIVES = _words(
    "small|purple|heavy|thin|wooden|cheap|smooth|foolish|round|yellow|dusty|wide|broken|huge|"
    "weird|bright|very cold|fresh|rough|hollow|square|noisy|half empty|pure|shiny|leather"
)
_THINGS = _words(
    "boxes|book|bowl of soup|fish|coat|treasure|chair|garage key|violin|jug of juice|toys|watch|"
    "map of the moon|pot of jam|cushion|hammer|loaf of bread|feather|bathtub|umbrella|piano|"
    "church bell|pebbles|television|bag of oranges|sugar|vase|sheep|cloth|wool hat|yacht|mirror"
)
_PLACES = _words(
    "by the river|near the harbour|under the bridge|in the kitchen|behind the barn|"
    "at the village fair|on the roof|beyond the forest|in front of the cinema|at home|"
    "around the corner|up in the tower|between the shops|down the road|outside the museum|"
    "above the garage|across the bay|in Europe|over there|on the north shore"
)
_TIMES = _words(
    "this morning|on Thursday|before lunch|at five past eight|in the spring|last July|"
    "after the storm|every other week|for the third time|at noon|since Monday|again and again|"
    "just now|all through the night|until dawn|in a hurry|rather slowly|without a word"
)
_MOTIONS = _words(
    "walked|drove|sailed away|jumped|looked around|waited|sang|hid|laughed|fell asleep|ran|"
    "rode a horse|played chess|argued|got lost|whispered|climbed|woke up|danced|went fishing"
)
_WEATHER = _words("thunder|rain|fog|the moon|a breeze|the sun|smoke|a thick cloud|the snow|ice")
_DID = _words("rose|moved|came down|spread|appeared|vanished|passed|hung|grew|rolled")
_NUMBERS = _words("two|three|four|five|six|seven|eight|nine|ten|eleven|fifteen|thirty|forty")
_PRICES = _words("pounds|pence|dollars|francs|coins|shillings")
_COMMANDS = _words("place|set|lay|bin|put|pull|choose|push|watch|move|show|fetch")
_COLOURS = _words("blue|green|red|white|orange|brown|mauve|beige|yellow|azure")
_PREPOSITIONS = _words("at|by|in|with|on|for|near|above")
_LETTERS = _words("A|B|C|D|E|F|G|H|I|J|K|L|M|N|O|P|Q|R|S|T|U|V|X|Y|Z")
_DIGITS = _words("zero|one|two|three|four|five|six|seven|eight|nine")
_ADVERBS = _words("now|again|please|soon|first|later|today|over there")

_TEMPLATES: tuple[tuple[float, tuple[str | list[str], ...]], ...] = (
    (0.26, (_PEOPLE, _PAST, "the", _ADJECTIVES, _THINGS, _PLACES)),
    (0.16, (_PEOPLE, _MOTIONS, _PLACES, _TIMES)),
    (0.14, ("Did", _PEOPLE, "ask for a", _ADJECTIVES, _THINGS, _TIMES, "?")),
    (0.12, (_WEATHER, _DID, _PLACES, ", and", _PEOPLE, _MOTIONS)),
    (0.10, ("The", _ADJECTIVES, _THINGS, "cost", _NUMBERS, _PRICES, _TIMES)),
    (0.10, (_TIMES, ", the", _ADJECTIVES, _THINGS, "stood", _PLACES)),
    (0.12, (_COMMANDS, _COLOURS, _PREPOSITIONS, _LETTERS, _DIGITS, _ADVERBS)),
)


def draw_sentence(rng: np.random.Generator) -> str:
    """One sentence, drawn from the grammar; the same generator state gives the same sentence."""
    weights = [weight for weight, _ in _TEMPLATES]
    _, parts = _TEMPLATES[int(rng.choice(len(_TEMPLATES), p=weights))]
    words = [part if isinstance(part, str) else part[rng.integers(len(part))] for part in parts]
    sentence = " ".join(words).replace(" ,", ",").replace(" ?", "?")
    sentence = sentence[0].upper() + sentence[1:]
    return sentence if sentence.endswith("?") else sentence + "."
