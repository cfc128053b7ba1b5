"""Words whose kind the rules of `values` must know: months, numbers, given names, places.

Short lists of common English usage, not gazetteers: what they lack gives fewer questions, never
wrong ones.
"""

from __future__ import annotations


def words(text: str) -> frozenset[str]:
    """A set of words."""
    return frozenset(text.split())


def _ranks(text: str, start: int) -> dict[str, int]:
    return {word: rank for rank, word in enumerate(text.split(), start)}


MONTHS = _ranks(
    """
    January February March April May June July August September October November December
    """,
    start=1,
)
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")

NUMBER_WORDS = _ranks(
    """
    two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen twenty
    """,
    start=2,
) | {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}

ORDINALS = _ranks(
    "second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth", start=2
)

# nouns that a number counts although they do not end in s
COUNTED = words(
    "people men women children feet percent million billion hundred thousand km mi kg mm cm "
    "mph knots tons troops aircraft crew staff % ft lb"
)

MEN = words("""
    Aaron Abraham Adam Adrian Alan Albert Alec Alex Alexander Alfred Allen Andre Andrew Anthony
    Antonio Arnold Arthur Barry Ben Benjamin Bernard Bill Billy Bob Bobby Brad Brandon Brendan
    Brent Brian Bruce Bryan Carl Carlos Chad Charles Charlie Chris Christian Christopher Clark
    Claude Colin Craig Curtis Dan Daniel Dave David Dean Dennis Derek Dick Dominic Don Donald
    Doug Douglas Duncan Dwight Dylan Earl Ed Eddie Edgar Edmund Edward Edwin Elliott Eric Ernest
    Ethan Eugene Evan Felix Ferdinand Francis Frank Franklin Fred Frederick Gareth Gary Gene
    Geoffrey George Gerald Gilbert Glenn Gordon Graham Grant Greg Gregory Guy Harold Harry
    Harvey Henry Herbert Herman Homer Howard Hugh Hugo Ian Isaac Ivan Jack Jackie Jacob Jacques
    Jake James Jason Jay Jeff Jeffrey Jeremy Jerome Jerry Jesse Jim Jimmy Joe Joel Johann John
    Johnny Jonathan Jorge Jose Joseph Josh Joshua Juan Julian Justin Karl Keith Ken Kenneth
    Kevin Kirk Kurt Kyle Lance Larry Lawrence Leo Leon Leonard Lewis Lloyd Louis Luis Luke
    Malcolm Marc Marcus Mario Mark Marshall Martin Marvin Matt Matthew Maurice Max Michael Mick
    Miguel Mike Mitchell Nathan Neil Nicholas Nick Nigel Noel Norman Oliver Oscar Owen Patrick
    Paul Pedro Pete Peter Phil Philip Phillip Pierre Quentin Ralph Randy Raymond Reginald Rex
    Ricardo Richard Rick Robert Rob Robin Rod Roger Roland Ron Ronald Ross Roy Rudolf Rupert
    Russell Ryan Sam Samuel Scott Sean Sebastian Shane Sidney Simon Stan Stanley Stephen Steve
    Steven Stuart Ted Terrence Terry Theodore Thomas Tim Timothy Todd Tom Tommy Tony Travis
    Trevor Tyler Vernon Victor Vincent Walter Warren Wayne Wesley Wilhelm Will William Winston
    Zachary
    """)
WOMEN = words("""
    Abigail Agnes Alexandra Alice Alison Amanda Amy Andrea Angela Anna Anne Annette Annie Ashley
    Audrey Barbara Beatrice Beth Betty Beverly Brenda Bridget Brittany Carmen Carol Caroline
    Catherine Cecilia Charlotte Christina Christine Cindy Claire Clara Claudia Cynthia Danielle
    Deborah Debra Denise Diana Diane Donna Doris Dorothy Edith Eileen Elaine Eleanor Elizabeth
    Ella Ellen Emily Emma Erica Erin Esther Ethel Eva Evelyn Fiona Florence Frances Gertrude
    Gina Gloria Grace Hannah Harriet Heather Heidi Helen Hilda Holly Ida Irene Isabel Jacqueline
    Jane Janet Janice Jean Jennifer Jessica Jill Joan Joanna Josephine Josie Joyce Judith Judy
    Julia Julie Karen Kate Katherine Kathleen Kathryn Katie Kelly Kimberly Laura Lauren Leah
    Lillian Linda Lisa Louise Lucy Lynn Madeline Margaret Maria Marie Marilyn Martha Mary
    Maureen Megan Melanie Melissa Michelle Mildred Miriam Molly Monica Nancy Naomi Natalie
    Nicole Nina Nora Olivia Pamela Patricia Paula Pauline Phyllis Rachel Rebecca Rita Rosa Rose
    Rosemary Ruth Sally Samantha Sandra Sara Sarah Sharon Sheila Shirley Sophia Sophie Stella
    Stephanie Sue Susan Suzanne Sylvia Teresa Theresa Thora Tina Tracy Valerie Vanessa Vera
    Veronica Victoria Violet Virginia Vivian Wendy Yvonne
    """)

# by region: a true and a false place of one region are both likely in a text about it
_COUNTRIES = {
    "northern Europe": "Denmark Estonia Finland Iceland Latvia Lithuania Norway Sweden",
    "Britain": "England Scotland Wales",
    "western Europe": "Austria Belgium France Germany Ireland Luxembourg Switzerland",
    "southern Europe": "Cyprus Greece Italy Malta Portugal Spain Turkey",
    "eastern Europe": "Albania Armenia Azerbaijan Belarus Bosnia Bulgaria Croatia Hungary Poland "
    "Romania Russia Serbia Slovakia Slovenia Ukraine",
    "Americas": "Argentina Bolivia Brazil Chile Colombia Costa_Rica Cuba Ecuador Guatemala Haiti "
    "Honduras Jamaica Mexico Nicaragua Panama Paraguay Peru Uruguay Venezuela",
    "Middle East": "Egypt Iran Iraq Israel Jordan Kuwait Lebanon Libya Morocco Oman Qatar Syria "
    "Tunisia Algeria Yemen",
    "Asia": "Afghanistan Bangladesh Burma Cambodia China India Indonesia Japan Kazakhstan Laos "
    "Malaysia Mongolia Myanmar Nepal North_Korea Pakistan Singapore South_Korea Sri_Lanka Taiwan "
    "Thailand Vietnam",
    "Africa": "Angola Botswana Cameroon Chad Ethiopia Gabon Ghana Guinea Kenya Liberia Madagascar "
    "Malawi Mali Mozambique Namibia Niger Nigeria Rwanda Senegal Somalia South_Africa Sudan "
    "Tanzania Uganda Zambia Zimbabwe",
    "English-speaking": "Australia Canada New_Zealand",
}
_STATES = {
    "North America": "Alabama Alaska Arizona Arkansas California Colorado Connecticut Delaware "
    "Florida Hawaii Idaho Illinois Indiana Iowa Kansas Kentucky Louisiana Maine Maryland "
    "Massachusetts Michigan Minnesota Mississippi Missouri Montana Nebraska Nevada New_Hampshire "
    "New_Jersey New_Mexico North_Carolina North_Dakota Ohio Oklahoma Oregon Pennsylvania "
    "Rhode_Island South_Carolina South_Dakota Tennessee Texas Utah Vermont West_Virginia Wisconsin "
    "Wyoming",
    "Canada": "Alberta British_Columbia Manitoba Nova_Scotia Ontario Quebec Saskatchewan",
    "Australia": "New_South_Wales Queensland South_Australia Tasmania Western_Australia",
}
_CITIES = {
    "Britain": "Belfast Birmingham Bristol Cambridge Cardiff Dublin Edinburgh Glasgow Leeds "
    "Liverpool London Manchester Nottingham Oxford Plymouth Portsmouth Sheffield Southampton York",
    "Europe": "Amsterdam Athens Barcelona Belgrade Berlin Brussels Bucharest Budapest Cologne "
    "Copenhagen Dresden Florence Frankfurt Geneva Hamburg Helsinki Istanbul Kiev Leipzig "
    "Leningrad Lisbon Lyon Madrid Marseille Milan Moscow Munich Naples Oslo Paris Prague Rome "
    "Rotterdam Sofia Stockholm Turin Venice Vienna Warsaw Zagreb Zurich",
    "North America": "Atlanta Baltimore Boston Buffalo Chicago Cincinnati Cleveland Dallas Denver "
    "Detroit Houston Las_Vegas Los_Angeles Memphis Miami Milwaukee Minneapolis Montreal Nashville "
    "New_Orleans New_York_City Ottawa Philadelphia Phoenix Pittsburgh Portland Seattle Toronto "
    "Vancouver",
    "Asia": "Bangkok Beijing Bombay Calcutta Delhi Hanoi Hong_Kong Jakarta Karachi Manila Mumbai "
    "Seoul Shanghai Tokyo",
    "Middle East": "Baghdad Beirut Cairo Damascus Jerusalem Tehran",
    "Oceania": "Auckland Brisbane Canberra Melbourne Perth Sydney Wellington",
    "South": "Buenos_Aires Havana Johannesburg Lagos Nairobi Santiago",
}
_NATIONS = {
    "northern Europe": "Danish Finnish Icelandic Norwegian Swedish",
    "Britain": "English Scottish Welsh",
    "western Europe": "Austrian Belgian British Dutch French German Irish Swiss",
    "southern Europe": "Greek Italian Portuguese Spanish Turkish",
    "eastern Europe": "Bulgarian Croatian Czech Hungarian Polish Romanian Russian Serbian "
    "Ukrainian",
    "Americas": "Argentine Brazilian Chilean Colombian Cuban Mexican Peruvian",
    "Middle East": "Egyptian Israeli Persian",
    "Asia": "Chinese Indian Indonesian Japanese Korean Malaysian Thai Vietnamese",
    "English-speaking": "American Australian Canadian",
}


def _by_name(regions: dict[str, str]) -> dict[str, str]:
    return {
        name.replace("_", " "): region
        for region, names in regions.items()
        for name in names.split()
    }


PLACES = {
    "country": _by_name(_COUNTRIES),
    "state": _by_name(_STATES),
    "city": _by_name(_CITIES),
}
"""Kind of place -> name -> region."""
NATIONS = _by_name(_NATIONS)
"""Adjective -> region."""

# a name's last word that says what is named: "Bush Theatre", "Menominee River"
HEADS = words("""
    Abbey Academy Airport Arena Army Avenue Award Awards Bank Baptist Basin Bay Beach Bridge
    Brigade Building Canal Castle Cathedral Cemetery Center Centre Championship Championships
    Channel Chapel Church Club College Command Committee Conference Corps Council County Court
    Creek Cup Department District Division Entertainment Festival Field Fleet Foundation Gallery
    Garden Gardens Hall Highway Hill Hills Hospital Hotel House Institute Island Islands Journal
    Lake League Library Magazine Market Memorial Mill Mine Monthly Museum Observer Ocean
    Orchestra Palace Parish Park Parkway Peninsula Pictures Plaza Point Post Press Prison
    Productions Province Radio Railroad Railway Ranch Records Regiment Reservoir Review River
    Road School Sea Series Society Square Squadron Stadium Station Street Studios Synagogue
    Telegraph Temple Theater Theatre Times Tournament Tower Tribune Trophy University Valley
    Village Weekly
    """)
# a name's first word before "of": "Battle of X"
OF_HEADS = words("""
    Archbishop Bank Battle Bay Bishop Cape City County Duchy Duke Earl Gulf House Isle King
    Kingdom Lake Lord Museum Port Prince Province Queen Siege Straits Treaty University
    """)
TITLES = words("""
    Mr Mrs Ms Dr Sir Lord Lady Captain Major Colonel General Lieutenant Sergeant Admiral
    Commander Commodore President Senator Governor Mayor Professor Judge Bishop Saint St Prince
    Princess King Queen Emperor Rabbi Reverend Father Mr. Mrs. Ms. Dr. Gen. Col. Lt. Maj. Capt.
    Sgt. Prof. Rev. Hon. St.
    """)
NAME_LINKS = words("of de del la van von der den di da du al")
