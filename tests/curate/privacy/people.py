"""Made-up people for measuring: faker's locales give the data, sentences written by hand carry them."""

import random

from faker import Faker

SEEN = ("en_US", "de_DE", "fr_FR", "it_IT", "es_ES", "pt_BR", "pl_PL", "nl_NL")
UNSEEN = ("sv_SE", "en_GB", "cs_CZ", "ja_JP")

CARRIERS = {
    "phone": (
        "Phone:{}",
        "Tel. {}",
        "call me at {}, any time",
        "Telefon: {}\nFax: none",
        "Ring {} (ask for the keeper)",
        "Our hotline {} is open from 9 to 17.",
        "Name\tPhone\nA. Keeper\t{}",
        "Reach us on {} or by post.",
        "Mobile {}; office closed on Mondays",
        "WhatsApp ({})",
        "Téléphone : {}.",
        "On 12.03.2021 we moved; tel {} stays.",
        "Tel: {} / {}",
        "“{}” is the number she gave.",
    ),
    "email": (
        "Write to {}.",
        "<{}>",
        "mail:{}",
        "contact={};name=x",
        "E-mail {} or come by.",
        "{},{}",
        "Questions? {}!",
        "author: A. Keeper ({})",
        "Adresse:{}\n",
    ),
    "ip": ("Connection from {}:8080 refused", "host {} is down", "[{}] said no", "client={} ", "at {}, twice", "IP:{}"),
    "card": ("Card:{}", "card no. {} exp 12/27", "Kreditkarte {}.", "paid with {}, thanks", "CC={}", "(Visa {})"),
    "iban": ("IBAN:{}", "Account {}.", "Konto {} bei der Bank", "transfer to {}, please", "({})"),
}


def samples(locale, number, seed):
    """Texts with personal data of one country: the text, the kind, and the values in it."""
    people, draw = Faker(locale), random.Random(f"{locale} {seed}")
    people.seed_instance(seed)
    web = Faker("en_US")
    web.seed_instance(seed + 1)
    made = {
        "phone": people.phone_number,
        "email": lambda: people.email(safe=False),
        "ip": lambda: web.ipv4_public() if draw.random() < 0.8 else "2a02:" + web.ipv6()[5:],
        "card": lambda: web.credit_card_number(draw.choice(["visa16", "mastercard", "amex"])),
        "iban": people.iban,
    }
    for _ in range(number):
        kind = draw.choice(list(made))
        carrier = draw.choice(CARRIERS[kind])
        values = [spaced(made[kind](), kind, draw) for _ in range(carrier.count("{}"))]
        yield carrier.format(*values), kind, values


def spaced(value, kind, draw):
    """Cards and accounts as people write them: often in groups."""
    if kind in ("card", "iban") and draw.random() < 0.5:
        return " ".join(value[i : i + 4] for i in range(0, len(value), 4))
    return value
