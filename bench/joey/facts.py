"""The fixed facts of joey's world: people's names, towns, trades, animals and materials. All of it is invented."""

from __future__ import annotations

import random
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True)
class Turn:
    prompt: str
    answer: str


@dataclass(frozen=True)
class Dialogue:
    """One conversation. `category` is a Spec-Bench category: one of the five single subtasks or an mt_bench one."""

    category: str
    turns: tuple[Turn, ...]


@dataclass(frozen=True)
class Person:
    name: str
    he: str
    him: str


Town = namedtuple("Town", "name river region craft month fair landmark founder")
Trade = namedtuple("Trade", "name makes tool place start hard joy")
Animal = namedtuple("Animal", "name home food habit trait reason")
Material = namedtuple("Material", "name source use virtue care")


def _rows(make: Callable[..., Row], table: str) -> tuple[Row, ...]:
    return tuple(make(*line.split("|")) for line in table.splitlines())


_SHE = (
    "Ada Anna Bella Clara Dora Edith Ella Emma Fay Flora Grace Hanna Iris Ivy Jane Julia Kate Lena Lily Lucy Mara Mary "
    "Mira Nina Nora Olga Pia Rosa Ruth Sara Tess Vera Wilma Zoe"
).split()
_HE = (
    "Adam Alan Ben Bruno Carl Colin Dan Edgar Emil Felix Frank George Hugo Ivan Jack Jonas Karl Leo Lukas Mark Max "
    "Nils Oscar Otto Paul Peter Robin Rolf Sam Simon Tom Victor Walter Will"
).split()
PEOPLE = (*(Person(name, "she", "her") for name in _SHE), *(Person(name, "he", "him") for name in _HE))
SURNAMES = tuple(
    "Ashby Barrow Birch Carver Dale Ember Fenn Gale Hale Kerr Lark Marsh North Oakes Penn Reed Stone Thorne Vale "
    "West".split()
)

TOWNS = _rows(
    Town,
    """\
Aldery|Tane|hill country|glass|April|lantern fair|an old stone bridge|a widow named Berta Fenn
Brackton|Ost|plain|iron tools|September|harvest fair|a tall water mill|two brothers from the coast
Corrin|Mirrel|forest|baskets|May|flower fair|a hall built of oak|a group of charcoal burners
Dunmere|Lune|marsh|candles|November|fair of lights|a path on wooden posts|a ferryman named Odo Reed
Elsby|Sarn|coast|boats|July|sea fair|a white lighthouse|five families of fishers
Farrow|Bray|plain|bread ovens|August|wheat fair|a round barn|a miller named Hugo Dale
Galden|Wend|high valley|bells|January|snow fair|a bell tower with twelve bells|monks from the south
Harwick|Ivel|hill country|wool cloth|June|sheep fair|a long market hall|a weaver named Anna Hale
Istrel|Tane|coast|salt|March|wind fair|a harbour wall of black stone|salt makers from the islands
Jorvale|Ost|high valley|cheese|October|cattle fair|a cave with cool rooms|a herder named Rolf Birch
Kelmor|Mirrel|hill country|clay pots|May|potters' fair|a red tower|three sisters with one cart
Lindow|Lune|forest|paper|February|book fair|a library with a green roof|a teacher named Clara Vale
Morrin|Sarn|marsh|rope|April|boat fair|a bridge that can be raised|sailors who lost their ship
Nethby|Bray|coast|nets|September|fish fair|a market under arches|a captain named Otto Marsh
Orsel|Wend|forest|honey|July|bee fair|a lime tree of great age|an old beekeeper and his daughter
Pellam|Ivel|plain|saddles|June|horse fair|a wide race course|riders from the east
Ravelin|Tane|high valley|clocks|December|winter fair|a clock with moving figures|a clockmaker named Emil Stone
Selwick|Ost|marsh|ink|October|rain fair|a school on an island|a writer named Vera Kerr
Tarnby|Sarn|hill country|lace|August|bride fair|a garden with high walls|a nurse named Ruth Oakes
Wexley|Wend|plain|kites|March|kite fair|a hill with no trees|a carpenter named Carl West""",
)

TRADES = _rows(
    Trade,
    """\
baker|bread and sweet cakes|a long wooden shovel|bakery|long before sunrise|the heat of the oven in summer|\
the smell of fresh bread
potter|bowls and jugs|a turning wheel|workshop by the clay pit|after breakfast|a pot that cracks in the fire|\
a jug that pours without a drop lost
weaver|blankets and warm cloth|a wide loom|room with large windows|when the light is good|\
a thread that breaks again and again|a pattern that comes out right
smith|hooks, locks and tools|a heavy hammer|forge|at six in the morning|the noise and the smoke|\
the moment when iron glows
beekeeper|honey and wax|a smoker and a thick veil|orchard|when the day grows warm|\
a cold spring that kills the bees|the first honey of the year
miller|flour and oats|two great stones|mill by the river|when the wind or the water allows|\
a dry month with no water|a full sack at the end of the day
carpenter|tables, chairs and doors|a saw and a plane|yard behind the house|at seven in the morning|\
wet wood that bends|a door that closes without a sound
fisher|fresh fish for the market|a wide net|boat in the harbour|in the dark with the tide|storms in late autumn|\
a calm sea at dawn
gardener|beans, apples and herbs|a spade and a rake|walled garden|early, before the sun is high|\
slugs after a week of rain|the first green shoots
clockmaker|clocks and small watches|tiny tools and a glass|quiet shop on the square|after the morning bells|\
a part too small to see|a hundred clocks that strike together
teacher|lessons in reading and numbers|chalk and a large board|school|when the bell rings at eight|\
a noisy class before a holiday|a child who reads alone for the first time
doctor|medicine and good advice|a bag with many pockets|house near the market|at any hour of the day or night|\
roads full of snow|a patient who walks home
shepherd|wool and milk|a crook and a clever dog|hills above the town|at first light|\
a lamb that is lost in the fog|a quiet evening with the flock
printer|books and notices|a press with lead letters|shop that smells of ink|after the post has come|\
a page with one letter upside down|a new book with clean pages""",
)

ANIMALS = _rows(
    Animal,
    """\
fox|a den under the roots|mice and berries|hunts alone at dusk|a thick red tail|\
the tail keeps it warm in the snow
otter|the bank of a river|fish and crabs|plays in the water in small groups|fur that keeps the water out|\
the air in its fur keeps it warm
owl|a hollow tree|mice and beetles|flies at night without a sound|soft feathers|\
the soft edge of each feather breaks the noise of the air
heron|the tall reeds|frogs and small fish|stands still for an hour|long thin legs|\
long legs let it wade without moving the water
badger|a deep set of tunnels|worms and roots|cleans its bed every week|strong front claws|\
strong claws make it easy to dig
hare|a hollow in the open field|grass and bark|runs in quick turns|very long ears|\
long ears let it hear a danger early
beaver|a lodge made of branches|bark and young twigs|builds a dam in the evening|wide front teeth|\
its teeth never stop growing
goat|the steep rocks|herbs and thorny leaves|climbs where no dog can follow|hard narrow feet|\
the edges of its feet hold on to the rock
swallow|a nest of mud under the roof|flies and gnats|leaves for the south in autumn|narrow wings|\
narrow wings make fast turns easy
toad|a damp cellar|slugs and insects|sleeps through the winter|dry rough skin|its skin stores water for dry days
bee|a hive in the orchard|nectar and pollen|dances to show the way|a long tongue|\
a long tongue reaches deep into a flower
bat|an old barn|moths and flies|hangs upside down by day|large ears|its ears catch the echo of its own call
seal|the rocks on the coast|herring and crabs|sleeps in the sun at low tide|a thick layer of fat|\
the fat keeps out the cold of the sea
deer|the quiet part of the forest|leaves and moss|moves in small herds|wide eyes at the side of the head|\
such eyes can see almost all around""",
)

MATERIALS = _rows(
    Material,
    """\
wool|the coat of sheep|blankets and coats|it holds warm air between its fibres|wash it in cool water
clay|the banks of old rivers|pots and bricks|it becomes hard as stone in the fire|keep it damp until it is used
glass|sand and ash|windows and bottles|it lets the light through and keeps the wind out|pack it in straw
iron|red stone from the hills|tools and nails|it can be bent when it is hot and is strong when it is cold|\
rub it with oil
oak|slow trees of the forest|doors and ships|it is heavy and does not rot quickly|let it dry for two years
wax|the hives of bees|candles and seals|it melts slowly and burns with a clear flame|store it in a cool place
leather|the hides of cattle|shoes and saddles|it bends without breaking and keeps water out|feed it with fat
paper|rags and soft wood|books and letters|it is light and takes ink well|keep it away from damp walls
salt|the water of the sea|food that must last the winter|it draws the water out of meat and fish|keep the lid closed
copper|green stone from the high valley|kettles and pipes|it carries heat very quickly|\
polish it with ash""",
)

ANY_TOWN = f"[{'|'.join(town.name for town in TOWNS)}]"  # a choice within a sentence
MONTHS = tuple("January February March April May June July August September October November December".split())
WEATHER = ("a clear sky", "light rain", "thick fog", "a cold wind", "heavy snow", "warm sunshine", "a sudden storm")
NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def people(rng: random.Random, count: int) -> list[Person]:
    """`count` different people."""
    return rng.sample(PEOPLE, count)


def full_name(rng: random.Random, person: Person) -> str:
    return f"{person.name} {rng.choice(SURNAMES)}"
