"""Seven narrow families of instructions whose answers can be checked word by word: past tense, plural, opposite,
spelling, passive voice, negative sentences, units.

    train, test = families.items()                  # no training item has a word of its family's test
    counts = families.score(test, answers)          # {family: {"n", "exact", "form", "key"}}
    families.score(test, [item["rule"] for item in test])

An item is an entry of shared.instructions with four more fields: `family`; `keys`, of which a right answer says one;
`frame`, the expected answer with {} in place of the key; and `rule`, what the simplest rule answers, which knows the
frame but no word (add -ed). The lists were written for this course.
"""

import itertools
import random
import re

# Where a rule of spelling does not give the form, it stands behind a colon.
PAST = """
walk jump climb laugh shout open answer ask help look watch wash paint clean cook pull push start finish learn listen
talk work play stay enjoy visit call fill rain turn knock kick pick pack lock touch reach point count wait want need
dance bake smile close move live love hope race chase taste place notice arrive believe decide invite share save wave
carry cry try dry fry study hurry worry marry copy bury empty reply tidy
stop:stopped plan:planned drop:dropped hop:hopped clap:clapped grab:grabbed hug:hugged nod:nodded rub:rubbed
skip:skipped slip:slipped tap:tapped trip:tripped wrap:wrapped drag:dragged beg:begged
break:broke bring:brought build:built buy:bought catch:caught come:came dig:dug drink:drank drive:drove eat:ate
fall:fell feel:felt find:found forget:forgot give:gave go:went grow:grew hear:heard hold:held keep:kept know:knew
leave:left lose:lost make:made meet:met ride:rode ring:rang run:ran see:saw sell:sold send:sent sing:sang sit:sat"""
PLURAL = """
dog cat table chair garden window river mountain hat shoe boat train lamp letter stone bird horse farmer doctor teacher
flower tree cloud road bridge house door room floor wall kitchen bottle spoon plate apple orange market village town
ship sailor king queen song clock pencil island pillow
bus box fox church bench branch brush dish glass dress match watch class inch lunch peach beach wish kiss cross tax
potato:potatoes tomato:tomatoes hero:heroes echo:echoes
city lady baby berry cherry country family story party body army copy diary duty fairy ferry hobby lily pony puppy
knife:knives life:lives wife:wives leaf:leaves wolf:wolves shelf:shelves half:halves loaf:loaves thief:thieves
man:men woman:women child:children foot:feet tooth:teeth mouse:mice goose:geese"""
OPPOSITE = """
hot:cold big:small,little old:young,new early:late long:short high:low hard:soft,easy fast:slow rich:poor
happy:sad,unhappy clean:dirty strong:weak wet:dry full:empty open:closed,shut,close day:night black:white good:bad,evil
up:down inside:outside above:below,under before:after first:last always:never all:none,nothing begin:end,finish
love:hate buy:sell come:go push:pull give:take win:lose laugh:cry,weep remember:forget friend:enemy,foe war:peace
life:death north:south east:west summer:winter morning:evening,night heaven:hell true:false right:wrong,left
loud:quiet,soft light:dark,heavy,darkness thick:thin wide:narrow deep:shallow near:far brave:cowardly,timid
safe:dangerous,unsafe sharp:blunt,dull smooth:rough sweet:bitter,sour tall:short beautiful:ugly cheap:expensive
kind:cruel,unkind,mean polite:rude,impolite noisy:quiet,silent wise:foolish,unwise busy:idle,free public:private
simple:complex,complicated same:different major:minor male:female entrance:exit question:answer arrive:leave,depart
save:spend,waste,lose build:destroy,demolish accept:reject,refuse increase:decrease,reduce float:sink raise:lower
teach:learn attack:defend follow:lead success:failure victory:defeat profit:loss joy:sorrow,sadness,grief hope:despair
past:future top:bottom front:back beginning:end,ending giant:dwarf king:queen husband:wife uncle:aunt brother:sister
son:daughter ancient:modern,new alive:dead asleep:awake visible:invisible possible:impossible honest:dishonest
regular:irregular patient:impatient correct:incorrect,wrong legal:illegal fair:unfair lucky:unlucky usual:unusual"""
DOUBLED = """
letter butter better summer winner hammer kitten rabbit carrot bottle little middle puzzle apple happy sunny
funny pretty silly berry cherry merry hurry sorry jelly penny puppy hobby valley yellow follow pillow arrow narrow
tomorrow borrow hollow shallow fellow swallow balloon coffee cannon button cotton lesson ribbon tunnel funnel barrel
arrive address accident account attack attend appear apply approach support suppose success suggest sudden grass glass
class cross dress press guess across bell hill wall shell small spell still mirror terror error horror butterfly
different difficult office offer effort traffic million village collect connect common comment command summit
opposite opportunity recommend immediate exaggerate embarrass possess necessary committee tennis hidden bigger"""
ACTORS = """
farmer teacher doctor sailor soldier baker painter singer hunter gardener driver king queen thief judge child boy girl
man woman dog cat wolf bear monkey nurse captain student neighbor uncle aunt father mother brother sister artist
writer waiter tailor butcher fisherman policeman lawyer priest prince princess servant shepherd miller carpenter
traveler stranger visitor guest friend enemy winner player pilot guard cook giant fox goat lion"""
THINGS = """
house letter bridge garden boat table window cake song picture horse door wall basket bottle ring tree ship book lamp
fence clock coat field flower stone story plate kite bell roof road box chair carpet mirror shirt shoe hat coin knife
spoon cup pot candle blanket pillow drum violin piano map ladder rope wheel wagon cart engine train car bicycle tower
castle church market shop room kitchen cellar barn farm orchard hedge path river lake island mountain cave ticket
newspaper page poem dress button pocket bag"""
ACTIONS = """
took:taken stole:stolen saw:seen drew:drawn wrote:written chose:chosen forgot:forgotten gave:given broke:broken
threw:thrown painted cleaned repaired opened closed watched followed lifted carried moved visited finished washed
dropped admired loved touched pulled kicked discovered destroyed filled emptied counted noticed saved built found sold
bought lost burned caught held covered measured described decorated guarded hated ignored inspected liked missed
needed offered ordered packed polished praised protected pushed received remembered removed returned rented sketched
shared borrowed improved damaged designed"""
STATES = """
old new clean dirty broken empty full heavy small large beautiful cheap safe warm cold wet dry dark bright strong weak
ready late famous useful strange quiet tired happy hungry busy angry lucky rich poor sick alone awake asleep lost
hidden ruined popular modern careful polite honest lazy clever friendly kind brave gentle proud rude calm"""
UNITS = [("kilometers", "meters", 1000), ("kilograms", "grams", 1000), ("liters", "milliliters", 1000),
         ("meters", "centimeters", 100), ("dollars", "cents", 100), ("centimeters", "millimeters", 10),
         ("hours", "minutes", 60), ("days", "hours", 24), ("weeks", "days", 7), ("feet", "inches", 12)]  # fmt: skip
SENTENCES = {"passive": r"the \w+ was \w+ by the \w+", "negative": r"the \w+ (is|was|will) not \w+( \w+)?"}  # the forms


def past_tense(verb):
    """The past tense of a regular verb whose last consonant is not doubled."""
    return verb[:-1] + "ied" if re.search("[^aeiou]y$", verb) else verb + ("d" if verb.endswith("e") else "ed")


def plural(noun):
    """The plural of a regular noun."""
    if re.search("[^aeiou]y$", noun):
        return noun[:-1] + "ies"
    return noun + ("es" if re.search("(s|x|z|ch|sh)$", noun) else "s")


def undouble(word):
    """A word as it is often misspelled: its first double letter single."""
    return re.sub(r"(.)\1", r"\1", word, count=1)


def normalise(text):
    """What is compared: words and numbers in small letters, without quotes, points and spacing; 7,000 is 7000."""
    return " ".join(re.findall(r"\d+(?:\.\d+)+|[\w-]+", re.sub(r"(?<=\d),(?=\d{3})", "", text.casefold())))


def item(family, instruction, frame, keys, rule, given=""):
    """One item: what is asked (`given` is its input), and what is accepted."""
    return {"instruction": instruction, "input": given, "output": frame.format(keys[0]), "family": family,
            "keys": list(keys), "frame": frame, "rule": frame.format(rule)}  # fmt: skip


def of_words(family, instruction, frame, words, rule):
    """Items about single words: [(word, accepted forms), ...]; `rule` is a function word -> form."""
    return [item(family, instruction.format(word), frame.replace("WORD", word), keys, rule(word))
            for word, keys in words]  # fmt: skip


def pairs(text, regular=None):
    """A list such as PAST as [(word, [its forms]), ...]."""
    split = [entry.partition(":") for entry in text.split()]
    return [(word, forms.split(",") if forms else [regular(word)]) for word, _, forms in split]


def passives(actors, things, actions, each, seed):
    """`each` sentences for every action, each with an actor and a thing drawn for it."""
    chance, found = random.Random(seed), []
    for past, [participle] in [pair for pair in actions for _ in range(each)]:
        actor, thing = chance.choice(actors), chance.choice(things)
        key, by_rule = (f"The {thing} was {form} by the {actor}" for form in (participle, past))
        found.append(item("passive", "Rewrite the sentence in the passive voice.", "{}.", [key], by_rule,
                          f"The {actor} {past} the {thing}."))  # fmt: skip
    return found


def negatives(actors, states, n, seed):
    """`n` different sentences about someone and a state, to be made negative."""
    chance, found = random.Random(seed), []
    for actor, verb, state in chance.sample([*itertools.product(actors, ("is", "was", "will be"), states)], n):
        first, *rest = verb.split()
        key = " ".join(("The", actor, first, "not", *rest, state))
        found.append(item("negative", "Make the sentence negative.", "{}.", [key], key, f"The {actor} {verb} {state}."))
    return found


def conversions(numbers, each, seed):
    """`each` numbers for every pair of units."""
    chance, found = random.Random(seed), []
    for large, small, factor in UNITS:
        for n in sorted(chance.sample(numbers, each)):
            found.append(item("units", f"Convert {n} {large} to {small}.", f"{n} {large} is {{}} {small}.",
                              [str(n * factor)], f"{n}000"))  # fmt: skip
    return found


def items():
    """(training items, test items): of each list every third word is held out, of the numbers those 3 divides."""
    words = {
        "past tense": ("What is the past tense of '{}'?", "The past tense of 'WORD' is '{}'.", pairs(PAST, past_tense),
                       lambda word: word + "ed"),
        "plural": ("What is the plural of '{}'?", "The plural of 'WORD' is '{}'.", pairs(PLURAL, plural),
                   lambda word: word + "s"),
        "opposite": ("What is the opposite of '{}'?", "The opposite of 'WORD' is '{}'.", pairs(OPPOSITE),
                     lambda word: "un" + word),
        "spelling": ("Correct the spelling of '{}'.", "The correct spelling of 'WORD' is '{}'.",
                     [(undouble(word), [word]) for word in DOUBLED.split()], lambda word: word),
    }  # fmt: skip
    parts = []
    for held_out in (False, True):

        def part(whole, held_out=held_out):
            return [entry for i, entry in enumerate(whole) if (i % 3 == 0) == held_out]

        found = []
        for family, (instruction, frame, pairs_of_family, rule) in words.items():
            found += of_words(family, instruction, frame, part(pairs_of_family), rule)
        nouns = part(ACTORS.split())
        found += passives(nouns, part(THINGS.split()), part(pairs(ACTIONS, str)), 2 if held_out else 5, held_out)
        found += negatives(nouns, part(STATES.split()), 40 if held_out else 150, held_out)
        found += conversions(part(range(3, 100)), 4 if held_out else 16, held_out)
        parts.append(found)
    return parts


def without(entries, test):
    """The entries that do not put a word of the test items in quotes, so that the words of the test stay unseen."""
    asked = {word for one in test for word in re.findall(r"'([\w-]+)'", one["instruction"])}
    prompts = {normalise(one["instruction"] + " " + one["input"]) for one in test}
    return [entry for entry in entries
            if not asked & {word.casefold() for word in re.findall(r"[\"']([\w-]+)[.,?]?[\"']", entry["instruction"])}
            and normalise(entry["instruction"] + " " + entry["input"]) not in prompts]  # fmt: skip


def judge(one, answer):
    """What is right about an answer to an item: {"exact", "form", "key"}, each True or False.

    exact: word for word an expected answer. form: the expected sentence and no more, with any one word in place of the
    key. key: a right key stands somewhere in the answer, in whatever words; where a word is asked for and the answer
    says "… is …", after the "is", since what stands before it often only repeats the question.
    """
    said, before, after = normalise(answer), *map(normalise, one["frame"].split("{}"))
    keys = [normalise(key) for key in one["keys"]]
    form = SENTENCES.get(one["family"]) or f"{re.escape(before)} [\\w.-]+{re.escape(' ' + after if after else '')}"
    exact = said in [" ".join(filter(None, (before, key, after))) for key in keys]
    told = said if one["family"] in SENTENCES else said.partition(" is ")[2] or said
    has_key = any(f" {key} " in f" {told} " for key in keys)
    return {"exact": exact, "form": bool(re.fullmatch(form, said)), "key": has_key}


def score(test, answers):
    """How many answers to the items are right: {family: {"n", "exact", "form", "key"}} (see `judge`)."""
    counts = {one["family"]: dict.fromkeys(("n", "exact", "form", "key"), 0) for one in test}
    for one, answer in zip(test, answers, strict=True):
        for what, right in ({"n": True} | judge(one, answer)).items():
            counts[one["family"]][what] += right
    return counts
