"""Write the course's own conversations: an airline and the help desk of a university, both invented.

    python -m tools.write_conversations

Each line of shared/data/samples/airline.jsonl and help_desk.jsonl is one conversation in the form of OpenAI's messages.
They are put together from the forms and lists below, always in the same way. `|` parts several ways to say a thing;
{names} are filled from the lists, the same way in the whole conversation. No person, address, flight or price is real.
"""

import json
import random

from shared.data.places import SAMPLES
from shared.files import write_atomically

N = 120  # conversations of each domain
CITIES = """Oslo Porto Vienna Dublin Prague Athens Geneva Lisbon Madrid Warsaw Krakow Bergen Seville Palermo Zagreb Riga
Tallinn Munich Lyon Turin""".split()
NAMES = """Anna Ben Clara David Emma Felix Grace Henry Irene Jonas Karen Leo Maria Nina Oscar Paula Robert Sofia Thomas
Vera""".split()
SURNAMES = "Berg Costa Dahl Ellis Fischer Grant Hansen Ivers Jensen Keller Lang Moreau Novak Olsen Parker".split()
SUBJECTS = """chemistry history physics biology law economics music geography mathematics philosophy nursing
architecture""".split()
MONTHS = "January February March April May June September October November".split()
BUILDINGS = "the Old Library|the North Hall|the Science Wing|the River Building|the Tower House".split("|")

AIRLINE = (
    ("Hello, I would like to change my flight.|Can I move my booking to another day?|I must change a flight.",
    "Of course. What is your booking reference?|Gladly. May I have your booking reference?",
    "It is {ref}.|{ref}.|The reference is {ref}.",
    "Thank you. {ref} is flight {flight} from {a} to {b} on {d1}. Which day would suit you?|Found it: {flight}, {a} to "
    "{b}, on {d1}. To which day shall I move it?",
    "{d2}, please.|Could you make it {d2}?|I would like to fly on {d2}.",
    "There is a seat on {d2}. The change costs {price}. Shall I book it?|{d2} is possible for {price}. Do you want it?",
    "Yes, please.|Yes, go ahead.|Please do.",
    "Done. You now fly from {a} to {b} on {d2}.|Your flight to {b} is now on {d2}. The new ticket is in your mail."),
    ("How many bags may I take from {a} to {b}?|I fly from {a} to {b}. What luggage is allowed?",
    "That depends on your fare. Is it Basic or Plus?|Do you travel on a Basic or a Plus fare?",
    "It is a {fare} fare.|{fare}, I think.|{fare}.",
    "With {fare} you may take {bags} and a small bag for the cabin.|A {fare} fare includes {bags}, and a small bag in "
    "the cabin.",
    "And what does one more bag cost?|How much is another bag?",
    "Another bag from {a} to {b} costs {price}. You can add it up to two hours before departure.|One more bag is "
    "{price}, if you add it online."),
    ("My bag did not arrive in {b}.|My suitcase is missing. I have just landed in {b}.",
    "I am sorry to hear that. On which flight were you?|I am sorry. What was your flight number?",
    "{flight} from {a}.|I came from {a} on {flight}.",
    "Thank you. What does the bag look like?|I have {flight} here. Please describe the bag.",
    "It is a {colour} suitcase with a {mark}.|A {colour} suitcase. It has a {mark}.",
    "A {colour} suitcase with a {mark}: I have opened a report for it. Where may we deliver it?|I have noted a "
    "{colour} suitcase with a {mark}. Where shall we send it?",
    "To my hotel in {b}, until {d1}.|Please bring it to my hotel in {b}. I stay until {d1}.",
    "We will bring the {colour} suitcase to your hotel in {b} before {d1}.|As soon as it is found, the {colour} "
    "suitcase comes to your hotel in {b}."),
    ("Is flight {flight} on time?|Is {flight} to {b} delayed?",
    "Flight {flight} is late by {delay} minutes today.|{flight} leaves {delay} minutes late, I am afraid.",
    "Will I still reach my next flight to {c}? It leaves at {time}.|I change to a flight to {c} at {time}. Is that "
    "enough?",
    "It will be tight, but the flight to {c} at {time} waits for you.|Yes. You will have half an hour before your "
    "flight to {c} at {time}.",
    "What if I miss it?|And if it does not wait?",
    "Then we book you on the next flight to {c} without any cost.|In that case we find another flight to {c}, and pay "
    "for a hotel if you need one."),
    ("I want to cancel my trip to {b} on {d1}.|Please cancel my flight to {b}. It is on {d1}.",
    "I can do that. Under which name was it booked?|Of course. May I have the name on the booking?",
    "{name} {surname}.|The name is {name} {surname}.|It is under {surname}.",
    "I see a booking for {surname} to {b} on {d1}. You would get {price} back. Shall I cancel it?|For {surname}, {b}, "
    "{d1}: the refund is {price}. Do you want to cancel?",
    "Yes, I cannot travel.|Yes, please cancel it.",
    "The flight to {b} is cancelled. We send {price} back to your account within seven days.|It is cancelled. You "
    "receive {price} in about a week."),
    ("May I take my {pet} on the plane?|Can a {pet} travel with me to {b}?",
    "Yes. A {pet} of up to eight kilos may travel in the cabin. How heavy is yours?|A small {pet} can travel with you. "
    "How much does it weigh?",
    "About {kilos} kilos.|{kilos} kilos with the bag.",
    "With {kilos} kilos your {pet} can stay with you in the cabin. It costs {price}.|Then the {pet} may sit under the "
    "seat in front of you. The price is {price}.",
    "When must I tell you?|Do I have to book this?",
    "Please book it two days before you fly, because we take only three animals on a flight.|Yes, at least two days "
    "before. Only three animals may travel on one flight."),
    ("I would like to choose a seat on {flight}.|Can I pick my seat for {flight}?",
    "Yes. Would you like a window or an aisle seat?|Gladly. Window or aisle?",
    "{side}, please, and near the {part}.|{side}. If possible near the {part}.",
    "Seat {seat} is free. It is a {side} seat near the {part} and costs {small}.|I can offer you {seat}, {side}, near "
    "the {part}, for {small}.",
    "I take it.|Good, please book it.",
    "You now have seat {seat} on {flight}.|Seat {seat} on {flight} is yours."),
    ("How do I check in?|When can I check in for my flight to {b}?",
    "Check-in opens a day before departure. When do you fly?|You can check in online, a day before. What is your date?",
    "On {d1}, from {a}.|I leave {a} on {d1}.",
    "Then you can check in on the day before {d1}, on our page or at the machines in {a}.|For {d1} check-in opens the "
    "day before. You will find machines at the airport in {a} too.",
    "Do I have to print anything?|Is my phone enough?",
    "No. Your phone is enough, and a passport.|You need no paper. Please bring your passport."),
    ("My {relative} needs a wheelchair at the airport.|We need a wheelchair for my {relative}.",
    "We are glad to help. Which flight is it?|Of course. For which flight and day?",
    "{flight} on {d1}.|It is {flight}, on {d1}.",
    "I have ordered a wheelchair for your {relative} on {flight}. Can she walk up stairs?|It is noted for {flight} on "
    "{d1}. Can your {relative} climb a few stairs?",
    "Only a few.|No, she cannot.|Not without help.",
    "Then we take your {relative} to the seat. Please come to the desk in {a} ninety minutes before.|Our staff will "
    "meet your {relative} at the desk in {a} and stay until she sits in the plane."),
    ("Do you serve a {meal} meal?|I need a {meal} meal on the flight to {b}.",
    "Yes. A {meal} meal must be ordered a day before. What is your flight?|We do. Please tell me the flight.",
    "{flight} on {d1}.|I fly on {d1} with {flight}.",
    "A {meal} meal is ordered for {flight} on {d1}.|I have ordered it: {meal}, on {flight}.",
    "Thank you. What does it cost?|Is there a charge?",
    "It costs nothing.|The {meal} meal is free."),
    ("My flight from {a} was cancelled. What now?|You cancelled {flight} to {b}! What can I do?",
    "I am very sorry. Do you want another flight, or your money back?|I am sorry. Shall I find you another flight, or "
    "do you want a refund?",
    "I must be in {b} on {d1}.|Another flight. I have to be in {b} by {d1}.",
    "There is a flight through {c} that arrives in {b} in the evening of {d1}.|You could fly by way of {c} and be in "
    "{b} on {d1}.",
    "Good, I take that one.|Please book it.",
    "You are booked through {c} to {b}. We also pay you {price}, because we cancelled late.|It is booked: {a}, {c}, "
    "{b}. You will also receive {price}."),
    ("Can my son fly alone?|I would like to send my daughter to {b} alone.",
    "Children from six years on can fly with our care. How old is the child?|Yes, with somebody of our staff. What is "
    "the age?",
    "{age}.|{age} years.",
    "At {age} our staff goes along from desk to desk. It costs {price} each way.|For a child of {age} the service is "
    "{price} each way.",
    "Who may come to the airport in {b}?|My {relative} will be waiting in {b}. Is that all right?",
    "The person whose name you give us, with a passport.|Yes. Please give us the name, and she must bring a passport."),
)  # fmt: skip
AIRLINE_RECALL = (
    ("Sorry, where did I say that I fly to?|Which city do I fly to, again?", "You fly to {b}.", "{b}"),
    ("From which city did I say that I leave?|Where do I leave from, again?", "You leave from {a}.", "{a}"),
    ("What was the first day, again?|Which day came first?", "It was {d1}.", "{d1}"),
    ("Which flight did I name?|What was my flight number, again?", "It was {flight}.|You said {flight}.", "{flight}"),
    ("What name did I give you?|Under which name is it?", "The name is {surname}.", "{surname}"),
)

HELP_DESK = (
    ("I cannot log in to my account.|My password does not work any more.",
    "I can help you with that. What is your student number?|Let us see. May I have your student number?",
    "It is {number}.|{number}.|My number is {number}.",
    "Thank you. The account {number} was locked after five wrong passwords. Shall I send you a link?|I see {number}. "
    "It is locked. I can send a link for a new password.",
    "Yes, please.|Please do.",
    "The link is on its way to your university mail. It works for {hours} hours.|I have sent it. Please use it within "
    "{hours} hours."),
    ("When is the exam in {s1}?|On which day do we write the exam in {s1}?",
    "The exam in {s1} is on {d1} at {time} in {building}.|It is on {d1}, at {time}, in {building}.",
    "And the one in {s2}?|When is {s2}?",
    "The exam in {s2} is on {d2}.|{s2} follows on {d2}.",
    "May I use a calculator?|What may I bring to {s1}?",
    "A plain calculator and one page of notes are allowed.|You may bring a plain calculator, pens and one page of "
    "notes."),
    ("I need more time for my essay in {s1}.|Can I hand in my essay in {s1} later?",
    "What is the reason, and which day would you need?|That is possible for a good reason. Why, and until when?",
    "I was ill. Until {d2}, please.|I was in hospital. Could I have until {d2}?",
    "I am sorry to hear that. Please send us a note from your doctor; then {d2} is fine.|With a doctor's note the new "
    "day is {d2}.",
    "Where do I send the note?|To whom do I give the note?",
    "Upload it on the page of {s1}, under Deadlines.|Please upload it under Deadlines, on the page of {s1}."),
    ("How do I borrow books?|I would like to borrow a book on {s1}.",
    "With your student card, in {building}. You may keep a book for {weeks} weeks.|Go to {building} with your card. A "
    "loan lasts {weeks} weeks.",
    "Can I keep it longer?|What if I need it longer?",
    "Yes, twice, if nobody else waits for it.|You can renew it two times, unless somebody has asked for it.",
    "And if I am late?|What does a late book cost?",
    "Each day costs {small}.|It is {small} for each day."),
    ("I want to change my subject from {s1} to {s2}.|Can I move from {s1} to {s2}?",
    "Yes, until {d1}. In which year are you?|That is possible until {d1}. What year are you in?",
    "In my {year} year.|The {year}.",
    "From the {year} year of {s1} most of your credits count in {s2} too.|In the {year} year you keep the credits that "
    "{s2} shares with {s1}.",
    "Whom should I talk to?|Who decides?",
    "Dr {surname} advises students of {s2}. The office is in {building}.|Please see Dr {surname} in {building}, who "
    "knows all about {s2}."),
    ("I need a letter for my visa.|Could you write me a letter for the visa office?",
    "Of course. What is your full name?|Gladly. Under which name do you study?",
    "{name} {surname}.|My name is {name} {surname}.",
    "And what do you study, {name}?|Thank you, {name}. Which subject is it?",
    "I study {s1}.|{s1}.",
    "The letter says that {name} {surname} studies {s1}. It will be ready on {d1}.|Your letter, for {name} {surname}, "
    "{s1}, can be fetched on {d1}.",
    "Where do I get it?|Where is it?",
    "In {building}, from nine to four. Please bring your passport.|It is in {building}. Please bring a passport."),
    ("How much are the fees this year?|What do I pay for {s1}?",
    "The fees for {s1} are {fee} a term. Do you want to pay at once or in parts?|It is {fee} for each term of {s1}.",
    "Can I pay in parts?|In parts, if that is possible.",
    "Yes. Three parts, the first on {d1}.|Of course: the first of three parts is due on {d1}.",
    "What happens if I pay late?|And if I am late?",
    "We add {small} for each week.|A week costs {small} more."),
    ("I would like to book a room for my group.|Can we have a room to study in?",
    "How many are you, and on which day?|For how many people, and when?",
    "We are {people}, and it is {d1}.|{people} people, on {d1}.",
    "For {people} people there is a room in {building} on {d1}, from {time}.|A room for {people} is free in {building} "
    "on {d1} at {time}.",
    "Good, please book it.|We take it. Under the name {name}, please.",
    "The room in {building} is yours on {d1} from {time}.|It is booked for {d1}, {time}, in {building}."),
    ("How do I connect to the wireless network?|The wireless network does not let me in.",
    "Which device do you use?|With which device do you try?",
    "A {device}.|My {device}.",
    "On a {device} choose the network Aldermoor and log in with your number and your password.|Please open the "
    "settings of your {device}, choose Aldermoor, and give your number and password.",
    "It says that the certificate is not known.|It asks whether I trust it.",
    "You may accept it, if it names aldermoor.example.|That is fine on a new {device}, as long as it names "
    "aldermoor.example."),
    ("I have lost my student card.|My student card is gone.",
    "I am sorry. I will block it. What is your number?|Let me block it first. Your student number, please?",
    "{number}.|It is {number}.",
    "The card of {number} is blocked. A new one costs {small}.|Done, {number} is blocked. You can get a new one for "
    "{small}.",
    "Where can I get it?|When can I have the new one?",
    "In {building}, on {d1}.|It will be in {building} on {d1}."),
    ("Can I take {s2} beside {s1}?|I study {s1}. May I also take a course in {s2}?",
    "You may take two courses outside {s1}. Which one in {s2} is it?|Yes, up to two courses. Which one is it?",
    "The one by Dr {surname}.|Dr {surname} teaches it, on {day}s.",
    "The course of Dr {surname} in {s2} has {places} places left.|There are still {places} places with Dr {surname}.",
    "Please sign me up.|Then I would like one.",
    "You are signed up for {s2} with Dr {surname}.|It is done: {s2}, with Dr {surname}. The first meeting is in "
    "{building}."),
    ("When do I get my degree paper?|I have finished {s1}. When is my degree paper ready?",
    "Congratulations! It is ready about six weeks after the last exam. When was that?|Congratulations! Which day was "
    "your last exam?",
    "On {d1}.|It was {d1}.",
    "Then it will be ready on {d2}. Shall we send it to you?|So you can have it from {d2} on. Do you fetch it?",
    "Please send it to {city}.|I have moved to {city}. Can you send it?",
    "We send it to {city} by registered mail. Please give us the address.|Of course. It goes to {city} by "
    "registered mail."),
)  # fmt: skip
HELP_RECALL = (
    ("Sorry, which subject did I say that I study?|What do I study, again?", "You study {s1}.", "{s1}"),
    ("Which day was it, again?|What was the first day, again?", "It was {d1}.|The day is {d1}.", "{d1}"),
    ("What is my number, again?|Which number did I give you?", "Your number is {number}.", "{number}"),
    ("What was the name, again?|Which name did we say?", "The name is {surname}.", "{surname}"),
    ("In which building is it?|Where was it, again?", "It is in {building}.", "{building}"),
)
THANKS = (
    ("Thank you!|Thanks a lot.|That helps, thank you.",
    "You are welcome.|Gladly. Goodbye!|You are welcome. Is there anything else?"),
    ("That is all.|No, that is all. Thanks.", "Then have a good day.|Goodbye!"),
)  # fmt: skip


def slots(rng):
    """What fills the {names} of one conversation."""
    (a, b, c), (s1, s2) = rng.sample(CITIES, 3), rng.sample(SUBJECTS, 2)
    fare = rng.choice(["Basic", "Plus"])
    return {
        "a": a, "b": b, "c": c, "city": c, "s1": s1, "s2": s2, "name": rng.choice(NAMES),
        "surname": rng.choice(SURNAMES), "d1": day(rng), "d2": day(rng), "day": rng.choice(["Monday", "Thursday"]),
        "ref": "".join(rng.choices("ABCDEFGHJKLMNPQRSTUVWXYZ", k=3)) + str(rng.randint(100, 999)),
        "flight": f"KX {rng.randint(100, 989)}", "price": f"{rng.randint(2, 19) * 5} euros",
        "small": f"{rng.randint(2, 15)} euros", "fee": f"{rng.randint(6, 30) * 50} euros", "fare": fare,
        "bags": {"Basic": "one bag of 20 kilos", "Plus": "two bags of 23 kilos"}[fare],
        "colour": rng.choice(["red", "blue", "green", "black", "grey", "yellow"]),
        "mark": rng.choice(["white ribbon", "broken wheel", "leather tag", "paper star"]),
        "delay": rng.choice([20, 35, 40, 50, 75]), "time": f"{rng.randint(8, 19)}:{rng.choice(['00', '15', '45'])}",
        "pet": rng.choice(["cat", "dog", "rabbit"]), "kilos": rng.choice(["three", "four", "five", "six", "seven"]),
        "side": rng.choice(["window", "aisle"]), "part": rng.choice(["front", "back", "wings"]),
        "seat": f"{rng.randint(4, 31)}{rng.choice('ABCDEF')}", "relative": rng.choice(["mother", "aunt", "sister"]),
        "meal": rng.choice(["vegetarian", "vegan", "kosher", "halal"]), "age": rng.choice(["seven", "nine", "eleven"]),
        "number": str(rng.randint(200_000, 899_999)), "hours": rng.choice([2, 12, 24]), "weeks": rng.choice([2, 3, 4]),
        "building": rng.choice(BUILDINGS), "year": rng.choice(["first", "second", "third"]),
        "people": rng.choice(["three", "four", "five", "six"]), "device": rng.choice(["phone", "laptop", "tablet"]),
        "places": rng.choice(["two", "five", "nine"]),
    }  # fmt: skip


def day(rng):
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)}"


def conversation(rng, forms, recall):
    """One conversation as a list of messages: a form, in most of them a question about it, and mostly thanks."""
    filled = slots(rng)

    def say(ways):
        text = rng.choice(ways.split("|")).format(**filled)
        return text[0].upper() + text[1:]

    turns = [say(ways) for ways in forms]
    said = " ".join(turns)
    fitting = [one for one in recall if one[2].format(**filled) in said]
    if fitting and rng.random() < 0.7:
        turns += [say(ways) for ways in rng.choice(fitting)[:2]]
    for thanks in THANKS:
        if rng.random() < 0.6:
            turns += map(say, thanks)
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]


def conversations(domain, n=N):
    """The conversations of "airline" or "help_desk", without the system line."""
    forms, recall = {"airline": (AIRLINE, AIRLINE_RECALL), "help_desk": (HELP_DESK, HELP_RECALL)}[domain]
    rng = random.Random(domain)
    return [conversation(rng, forms[i % len(forms)], recall) for i in range(n)]


def main():
    for domain in ("airline", "help_desk"):
        lines = [json.dumps({"messages": messages}, ensure_ascii=False) for messages in conversations(domain)]
        with write_atomically(SAMPLES / f"{domain}.jsonl") as part:
            part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{domain}: {len(lines)} conversations, {sum(map(len, lines)):,} characters")


if __name__ == "__main__":
    main()
