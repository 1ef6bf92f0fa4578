"""The tables of the simulated shop: what is sold, by whom, and what people need next.

Everything here is invented; brand names are made up and any likeness is an accident.
"""

from __future__ import annotations

from dataclasses import dataclass

# department -> product types: name, other name, middle price, specifications, styles,
# and, for things that are used up, the days that one lasts.

_TYPES = """
Photography  | mirrorless camera / system camera | 900 | 24mp 33mp 45mp      | black silver
Photography  | memory card / sd card             |  30 | 64gb 128gb 256gb    | standard rugged
Photography  | camera bag / camera case          |  60 | small medium large  | black grey green
Photography  | tripod / camera stand             |  80 | carbon aluminium    | black silver
Photography  | camera lens / zoom lens           | 450 | 35mm 50mm 85mm      | black silver
Photography  | camera battery / battery pack     |  45 | 1800mah 2400mah     | standard rugged
Computers    | laptop / notebook                 | 900 | 13inch 14inch 16inch | black silver blue
Computers    | laptop sleeve / notebook bag      |  30 | 13inch 14inch 16inch | black grey red
Computers    | usb hub / docking station         |  35 | 4port 7port 10port  | black silver
Computers    | wireless mouse / cordless mouse   |  30 | 800dpi 1600dpi 3200dpi | black white red
Computers    | monitor / computer screen         | 250 | 24inch 27inch 32inch | black white
Computers    | external ssd / portable drive     | 110 | 500gb 1tb 2tb       | black blue red
Phones       | smartphone / mobile phone         | 600 | 128gb 256gb 512gb   | black white blue
Phones       | phone case / phone cover          |  20 | slim rugged         | black red blue
Phones       | screen protector / glass foil     |  12 | clear matte         | single double
Phones       | phone charger / usb charger       |  25 | 20w 45w 65w         | black white
Phones       | power bank / portable battery     |  35 | 10000mah 20000mah   | black white blue
Phones       | car mount / phone holder          |  20 | magnetic clamp      | black silver
Audio        | headphones / headset              | 150 | wireless wired      | black white red
Audio        | headphone stand / headset holder  |  25 | wood steel          | black silver
Audio        | bluetooth speaker / portable speaker | 80 | 10w 20w 40w      | black blue red
Audio        | turntable / record player         | 220 | belt direct         | black white
Audio        | turntable needle / stylus         |  40 | elliptical conical  | red blue
Audio        | soundbar / tv speaker             | 200 | 120w 240w 400w      | black white
Gaming       | game console / video game system  | 400 | 512gb 1tb           | black white
Gaming       | game controller / gamepad         |  60 | wireless wired      | black white red
Gaming       | gaming headset / game headphones  |  80 | wireless wired      | black white red
Gaming       | controller charger / gamepad dock |  25 | single double       | black white
Gaming       | racing wheel / steering wheel     | 250 | belt direct         | black silver
Gaming       | gaming chair / racing seat        | 220 | fabric leather      | black red blue
Kitchen      | espresso machine / coffee machine | 350 | 15bar 19bar         | black silver red
Kitchen      | coffee beans / espresso beans     |  18 | dark medium light   | 500g 1kg | 24
Kitchen      | milk frother / milk steamer       |  30 | electric manual     | black silver
Kitchen      | coffee grinder / bean mill        |  80 | burr blade          | black silver
Kitchen      | water filter / filter cartridge   |  25 | 3pack 6pack         | standard fine | 40
Kitchen      | descaler / machine cleaner        |  12 | 250ml 500ml         | liquid tablets | 45
Office       | standing desk / office desk       | 250 | 120cm 140cm 160cm   | black white oak
Office       | office chair / desk chair         | 220 | mesh leather        | black grey blue
Office       | desk lamp / table lamp            |  40 | 6w 9w 12w           | black white silver
Office       | printer / inkjet printer          | 150 | colour mono         | black white
Office       | printer ink / ink cartridge       |  35 | standard xl         | black tricolour | 28
Office       | printer paper / copy paper        |  15 | 80gsm 100gsm        | 500sheet 2500sheet | 32
Garden       | lawn mower / grass cutter         | 300 | electric battery petrol | green red
Garden       | mower blade / cutter blade        |  25 | 32cm 38cm 46cm      | steel coated
Garden       | garden hose / water hose          |  40 | 15m 25m 50m         | green yellow
Garden       | hose nozzle / spray gun           |  15 | brass plastic       | green black
Garden       | plant seeds / vegetable seeds     |   8 | tomato salad herb   | organic standard | 28
Garden       | raised bed / planter box          |  90 | wood steel          | small large
Cycling      | road bike / racing bicycle        | 900 | 52cm 54cm 56cm      | black red blue
Cycling      | bike helmet / cycle helmet        |  70 | small medium large  | black white red
Cycling      | bike light / bicycle lamp         |  30 | 100lumen 400lumen 800lumen | black silver
Cycling      | bike lock / bicycle lock          |  40 | chain folding       | black green
Cycling      | bike pump / floor pump            |  30 | mini tall           | black silver red
Cycling      | inner tube / bike tube            |   9 | 28mm 32mm           | single double | 28
Camping      | tent / camping tent               | 180 | 2person 3person 4person | green blue orange
Camping      | sleeping bag / camp bedding       |  90 | summer winter       | green blue
Camping      | camping stove / gas cooker        |  60 | 1burner 2burner     | silver green
Camping      | gas canister / fuel cartridge     |  12 | 230g 450g           | single triple | 24
Camping      | headlamp / head torch             |  30 | 200lumen 500lumen   | black orange
Camping      | cooler box / ice chest            |  70 | 20l 40l 60l         | blue white
Fitness      | yoga mat / exercise mat           |  35 | 4mm 6mm 8mm         | purple blue black
Fitness      | dumbbells / hand weights          |  80 | 10kg 20kg 30kg      | black grey
Fitness      | protein powder / whey powder      |  40 | vanilla chocolate   | 1kg 2kg | 24
Fitness      | running shoes / trainers          | 110 | road trail          | black white red
Fitness      | fitness tracker / activity band   | 130 | gps basic           | black blue pink
Fitness      | resistance bands / exercise bands |  20 | light heavy         | 3set 5set
Baby         | stroller / pushchair              | 300 | single double       | black grey blue
Baby         | baby monitor / baby camera        | 120 | video audio         | white grey
Baby         | diapers / nappies                 |  35 | size2 size3 size4   | 60pack 120pack | 16
Baby         | baby wipes / wet wipes            |  12 | scented sensitive   | 3pack 12pack | 18
Baby         | car seat / child seat             | 180 | 0to4 4to12          | black grey red
Baby         | baby bottle / feeding bottle      |  18 | glass plastic       | 150ml 250ml
Pets         | dog food / dog kibble             |  45 | chicken beef salmon | 4kg 12kg | 22
Pets         | dog bed / dog cushion             |  50 | small medium large  | grey brown
Pets         | dog leash / dog lead              |  20 | 2m 5m               | black red
Pets         | cat litter / litter sand          |  18 | clumping silica     | 10l 20l | 20
Pets         | cat tree / scratching post        |  80 | small medium large  | grey beige
Pets         | pet camera / pet monitor          |  90 | 1080p 2k            | white black
Tools        | cordless drill / battery drill    | 130 | 12v 18v             | blue green red
Tools        | drill bits / drill set            |  25 | wood metal masonry  | 10piece 20piece
Tools        | tool box / tool case              |  60 | small medium large  | black red
Tools        | safety glasses / work goggles     |  15 | clear tinted        | single double
Tools        | circular saw / hand saw           | 150 | 165mm 190mm         | blue green
Tools        | saw blade / cutting disc          |  25 | 24teeth 48teeth     | wood metal
"""

# what people need after they bought something: probability, days until they look for it
_NEEDS = """
mirrorless camera > memory card .75 2, camera bag .45 7, camera lens .4 16, camera battery .35 11
camera lens > tripod .5 6, camera bag .3 10
memory card > external ssd .35 9
tripod > camera battery .35 8
laptop > laptop sleeve .6 3, usb hub .5 7, wireless mouse .45 5, monitor .3 15
monitor > usb hub .35 6, standing desk .3 12
external ssd > laptop sleeve .2 9
smartphone > phone case .75 1, screen protector .6 3, phone charger .4 8, power bank .35 13
phone case > car mount .35 9
power bank > phone charger .3 7
headphones > headphone stand .4 6, bluetooth speaker .25 14
turntable > turntable needle .65 9, bluetooth speaker .3 5
bluetooth speaker > soundbar .25 16
game console > game controller .65 3, gaming headset .5 7, controller charger .35 12
game controller > controller charger .5 5, racing wheel .25 14
racing wheel > gaming chair .5 8
espresso machine > coffee beans .8 2, coffee grinder .45 8, milk frother .45 6, descaler .4 20
coffee grinder > coffee beans .5 5
coffee beans > water filter .25 9
standing desk > office chair .55 5, desk lamp .45 9, monitor .35 13
office chair > desk lamp .3 7
printer > printer ink .6 12, printer paper .6 4
lawn mower > mower blade .55 14, garden hose .3 8
garden hose > hose nozzle .65 3
raised bed > plant seeds .7 3, garden hose .3 10
road bike > bike helmet .6 2, bike light .45 7, bike lock .5 4, bike pump .4 11
bike pump > inner tube .55 6
bike helmet > bike light .3 8
tent > sleeping bag .6 3, camping stove .45 8, headlamp .35 11
camping stove > gas canister .75 3, cooler box .35 9
sleeping bag > headlamp .35 7
yoga mat > resistance bands .5 6, dumbbells .3 13
dumbbells > protein powder .5 5, resistance bands .3 10
running shoes > fitness tracker .45 7, protein powder .3 11
stroller > car seat .5 5, baby monitor .45 9, baby bottle .4 3
baby bottle > diapers .5 4
baby monitor > baby wipes .35 6
diapers > baby wipes .4 3
dog bed > dog food .5 4, dog leash .45 6, pet camera .3 13
dog leash > dog food .4 6
cat tree > cat litter .65 3, pet camera .3 12
cordless drill > drill bits .65 2, tool box .45 8, safety glasses .4 5
circular saw > saw blade .65 4, safety glasses .45 6
tool box > circular saw .3 12
"""

# brand: tier (0 cheap, 1 middle, 2 dear), fame, departments
_BRANDS = """
Castellan 2 3.0 Photography Computers Phones Audio
Lumivar   2 2.6 Photography Phones Audio Baby
Orvane    2 2.4 Computers Gaming Audio Office
Halmgard  2 2.2 Kitchen Office Garden
Veloria   2 2.6 Cycling Camping Fitness
Arborel   2 2.0 Garden Tools Camping
Mirabeau  2 2.2 Kitchen Baby Pets
Stronfeld 2 2.4 Tools Garden Cycling
Novarra   1 1.4 Photography Computers Phones
Kestrix   1 1.3 Photography Gaming Audio
Pellero   1 1.2 Computers Office Phones
Dorvik    1 1.2 Gaming Audio Computers
Tavira    1 1.1 Kitchen Baby Office
Elmora    1 1.2 Baby Pets Kitchen
Fernhill  1 1.1 Garden Pets Camping
Graviton  1 1.3 Fitness Cycling Camping
Jorvald   1 1.1 Tools Garden Office
Rovelle   1 1.2 Phones Audio Fitness
Sundermo  1 1.0 Camping Cycling Fitness
Quintessa 1 1.1 Pets Baby Gaming
Brightly  0 0.9 Photography Phones Kitchen
Ecomo     0 0.8 Computers Phones Office
Zipparo   0 0.8 Photography Audio Gaming
Tuggo     0 0.7 Gaming Computers Fitness
Homely    0 0.8 Kitchen Office Baby
Pawly     0 0.8 Pets Baby Garden
Nipper    0 0.7 Cycling Fitness Camping
Handio    0 0.8 Tools Garden Office
Trailo    0 0.7 Camping Cycling Pets
Budgetta  0 0.9 Tools Kitchen Audio
"""


@dataclass(frozen=True, slots=True)
class ProductType:
    """One kind of thing that the shop sells."""

    name: str
    other_name: str
    department: str
    price: float
    specs: tuple[str, ...]
    styles: tuple[str, ...]
    lasts: int  # days; 0 when it is not used up


@dataclass(frozen=True, slots=True)
class Brand:
    """A maker: what it costs, how well it is known, where it sells."""

    name: str
    tier: int
    fame: float
    departments: tuple[str, ...]


def product_types() -> list[ProductType]:
    """All product types, in a fixed order."""
    made = []
    for line in _TYPES.strip().splitlines():
        parts = [p.strip() for p in line.split("|")]
        name, other = (p.strip() for p in parts[1].split("/"))
        lasts = int(parts[5]) if len(parts) > 5 else 0
        made.append(
            ProductType(
                name,
                other,
                parts[0],
                float(parts[2]),
                tuple(parts[3].split()),
                tuple(parts[4].split()),
                lasts,
            )
        )
    return made


def brands() -> list[Brand]:
    """All brands, in a fixed order."""
    made = []
    for line in _BRANDS.strip().splitlines():
        name, tier, fame, *departments = line.split()
        made.append(Brand(name, int(tier), float(fame), tuple(departments)))
    return made


def follow_ups() -> dict[str, list[tuple[str, float, float]]]:
    """Type name -> what is needed next: (type name, probability, days until then)."""
    made: dict[str, list[tuple[str, float, float]]] = {}
    for line in _NEEDS.strip().splitlines():
        name, _, rest = line.partition(" > ")
        made[name] = []
        for part in rest.split(","):
            *words, probability, days = part.split()
            made[name].append((" ".join(words), float(probability), float(days)))
    return made
