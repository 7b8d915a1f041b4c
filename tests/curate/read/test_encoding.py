"""Bytes to text."""

import pytest
from faker import Faker

from herd.curate.read.encoding import decode

TEXT = "Bienen fliegen früher, als man dachte: «naïve» café."


@pytest.mark.parametrize(
    ("content", "declared", "encoding"),
    [
        (TEXT.encode(), "", "utf-8"),
        (TEXT.encode(), "iso-8859-1", "utf-8"),  # a wrong declaration: the bytes are valid UTF-8
        (TEXT.encode("latin1"), "utf-8", "cp1252"),  # the other way round
        (TEXT.encode("latin1"), "", "cp1252"),
        (TEXT.encode("utf-8-sig"), "", "utf-8"),
        (b"\xff\xfe" + TEXT.encode("utf-16-le"), "", "utf-16-le"),
        (b"<meta charset='windows-1252'>" + TEXT.encode("cp1252"), "", "cp1252"),
    ],
)
def test_text_is_found_whatever_was_declared(content, declared, encoding):
    text, used = decode(content, declared)
    assert text.endswith(TEXT) and used == encoding


def test_a_little_damage_in_utf8_stays_local():
    text, used = decode(TEXT.encode() * 10 + b"\xff" + TEXT.encode() * 10, "utf-8")
    assert used == "utf-8" and text.count("früher") == 20 and text.count("�") == 1


def test_unknown_labels_and_any_bytes_are_survived():
    assert decode(b"abc\xe9", "no-such-encoding")[0] == "abcé"
    assert isinstance(decode(bytes(range(256)))[0], str)


@pytest.mark.parametrize(
    "label", ["idna", "punycode", "undefined", "unicode_escape", "base64", "zlib", "a\0b", "rot13"]
)
def test_codecs_that_are_no_encodings_of_pages_are_not_believed(label):
    assert decode(b"bees \xff\xfe fly \\u12", label)[1] == "cp1252"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_wide_text_is_known_without_a_byte_order_mark(encoding):
    page = "<html><body><p>Die Bienen fliegen früh am Tag.</p></body></html>"
    assert decode(page.encode(encoding)) == (page, encoding)


FAMILIES = {
    "windows-1251": ("ru_RU", "bg_BG"),
    "koi8-r": ("ru_RU",),
    "gbk": ("zh_CN",),
    "big5": ("zh_TW",),
    "shift_jis": ("ja_JP",),
    "euc-jp": ("ja_JP",),
    "euc-kr": ("ko_KR",),
    "windows-1250": ("pl_PL", "cs_CZ", "hu_HU"),
    "windows-1253": ("el_GR",),
    "windows-1255": ("he_IL",),
    "windows-1256": ("ar_AA", "fa_IR"),
    "windows-874": ("th_TH",),
    "utf-16-le": ("ru_RU", "ja_JP", "th_TH"),
}


@pytest.mark.parametrize("declared", ["", "utf-8", "iso-8859-1"])
@pytest.mark.parametrize("encoding", FAMILIES)
def test_pages_of_other_scripts_are_read_though_nothing_or_a_wrong_thing_is_declared(encoding, declared):
    """Sentences of words that faker draws: nine pages of each family, eight of them must come out to the letter."""
    right = 0
    codec = {"windows-874": "cp874"}.get(encoding, encoding)
    for seed in range(9):
        words = Faker(FAMILIES[encoding][seed % len(FAMILIES[encoding])])
        words.seed_instance(seed)
        text = "\n".join(words.text(400).encode(codec, "ignore").decode(codec) for _ in range(4))
        page = f"<html><head><title>x</title></head><body><p>{text}</p></body></html>"
        right += decode(page.encode(codec), declared)[0] == page
    assert right >= 8


@pytest.mark.parametrize(("encoding", "locale"), [("cp1252", "de_DE"), ("cp1252", "fr_FR"), ("koi8-r", "ru_RU")])
def test_a_true_declaration_is_believed_also_of_short_texts(encoding, locale):
    words = Faker(locale)
    words.seed_instance(1)
    for _ in range(30):
        text = words.text(60).encode(encoding, "ignore").decode(encoding)
        assert decode(f"<p>{text}".encode(encoding), encoding)[0] == f"<p>{text}"


CENTRAL = {
    "hr": (
        "Općina je prošle godine obnovila školu, knjižnicu i šetalište uz rijeku.",
        "Čitatelji često pišu uredništvu o cijenama, poštanskim uslugama i lošim cestama.",
        "Međutim, većina građana još uvijek ne zna gdje će se održati izložba.",
        "Žitelji otoka ljeti žive od turizma, a zimi od ribolova i maslina.",
        "Vijeće će sljedeći tjedan odlučivati o proračunu i novim radnim mjestima.",
        "Ključni svjedok tvrdi da ništa nije čuo ni vidio te večeri.",
        "Dječak je našao staru željezničku kartu između stranica rječnika.",
        "Tko želi učiti svirati, može se javiti učiteljici glazbe do četvrtka.",
        "Najviše snijega palo je u Gorskom kotaru, gdje su škole zatvorene već treći dan.",
    ),
    "sl": (
        "Občina je lani obnovila šolo, knjižnico in sprehajališče ob reki.",
        "Bralci pogosto pišejo uredništvu o cenah, poštnih storitvah in slabih cestah.",
        "Večina občanov še vedno ne ve, kje bo razstava, čeprav se začne že jutri.",
        "Poleti živijo prebivalci od turizma, pozimi pa od oljk in ribištva.",
        "Priča trdi, da tistega večera ni slišala ničesar nenavadnega.",
        "Deček je našel staro železniško karto med stranmi slovarja.",
        "Kdor želi igrati, naj se do četrtka oglasi pri učiteljici glasbe.",
        "Največ snega je zapadlo v hribih, kjer so šole zaprte že tretji dan.",
        "Župan je obljubil, da bodo cesto popravili še pred začetkom zime.",
    ),
    "sk": (
        "Obec vlani opravila školu, knižnicu a chodník popri rieke.",
        "Čitatelia často píšu redakcii o cenách, poštových službách a zlých cestách.",
        "Väčšina občanov ešte stále nevie, kde sa výstava uskutoční.",
        "Svedok tvrdí, že v ten večer nič nepočul ani nevidel.",
        "Chlapec našiel medzi stránkami slovníka starý železničný lístok.",
        "Kto sa chce učiť hrať, môže sa do štvrtka prihlásiť u učiteľky.",
        "Najviac snehu napadlo v horách, kde sú školy zatvorené už tretí deň.",
        "Starosta sľúbil, že cestu opravia ešte pred začiatkom zimy.",
        "Ľudia z dediny žijú v lete z turistov a v zime z lesa.",
    ),
}


@pytest.mark.parametrize("encoding", ["cp1250", "iso8859-2"])
@pytest.mark.parametrize("code", CENTRAL)
def test_croatian_slovene_and_slovak_are_read_in_either_encoding(code, encoding):
    """Sentences by two and by four, with a foreign name and typographic quotes as pages have them."""
    right = 0
    for number in range(9):
        text = " ".join(CENTRAL[code][(number + step) % 9] for step in range(2 + 2 * (number % 2)))
        name = " Liétart Müller" if number % 3 == 0 else ""
        page = f"<html><body><p>{text}{name}</p></body></html>"
        right += decode(page.encode(encoding), "iso-8859-1" if number % 2 else "")[0] == page
    assert right >= 8


BETWEEN_ENGLISH = {
    "el": (
        "Η εγκατάσταση του πακέτου γίνεται με την εντολή",
        "Προσοχή: η αλλαγή αυτή",
        "Ο χρήστης πρέπει πρώτα να ανοίξει το αρχείο",
        "Αυτή η ρύθμιση δεν είναι απαραίτητη",
        "Μπορείτε επίσης να χρησιμοποιήσετε",
    ),
    "ro": (
        "Instalarea pachetului durează câteva minute",
        "Utilizatorul trebuie să deschidă întâi fişierul",
        "În versiunea următoare a fost adăugat",
        "Această setare nu este necesară",
        "Instrucţiunile se găsesc în fiecare capitol",
    ),
}


@pytest.mark.parametrize(
    ("encoding", "code"), [("cp1253", "el"), ("iso8859-7", "el"), ("cp1250", "ro"), ("iso8859-2", "ro")]
)
def test_greek_and_romanian_are_read_also_on_pages_of_mostly_english_words(encoding, code):
    english = " ".join(("the package manager checks every signature before it unpacks the archive",) * 4)
    right = 0
    for number in range(9):
        lines = [BETWEEN_ENGLISH[code][(number + step) % 5] for step in range(1 + number % 3 + (code == "ro"))]
        page = "".join(f"<p>{line} {english}.</p>" for line in lines)
        right += decode(page.encode(encoding), "iso-8859-1" if number % 2 else "")[0] == page
    assert right >= 8


def test_curly_quotes_do_not_make_a_page_english():
    text = "“Free software” and “open source” – these – are “words”. " * 3 + "Această secţiune este necesară şi utilă."
    assert decode(text.encode("cp1250"))[0] == text


SHORT = [
    ("windows-1251", "Расписание автобусов на зиму и весну"),
    ("windows-1251", "Јуче је у граду отворена нова библиотека, а већ првог дана дошло је више од хиљаду људи."),
    ("cp866", "Вчера в городе открыли новую библиотеку, и в первый же день туда пришло много людей."),
    ("iso8859-5", "Вчера в городе открыли новую библиотеку, и в первый же день туда пришло много людей."),
    ("gbk", "先把土豆切成小块，再放进锅里煮二十分钟，最后加盐。"),
    ("euc-jp", "昨日、町に新しい図書館が開館し、初日から千人以上が訪れました。"),
    ("iso2022_jp", "昨日、町に新しい図書館が開館しました。"),
    ("iso8859-6", "افتتحت أمس في المدينة مكتبة جديدة، وفي اليوم الأول وحده حضر إليها أكثر من ألف شخص."),
    ("iso8859-15", "Le prix du billet est de 12 € pour les élèves et de 20 € à l'été."),
    ("mac_roman", "Hier, une nouvelle bibliothèque a été inaugurée ; dès le premier jour, mille personnes étaient là."),
    ("utf-32-le", "Gestern wurde in der Stadt eine neue Bücherei eröffnet."),
]


@pytest.mark.parametrize(("encoding", "text"), SHORT)
@pytest.mark.parametrize("declared", ["", "iso-8859-1"])
def test_one_sentence_in_a_page_with_an_english_menu_is_read(encoding, text, declared):
    page = f"<html><body><ul><li>Home<li>About us<li>Login</ul><p>{text}</p><p>All rights reserved.</p></body></html>"
    assert decode(page.encode(encoding), declared)[0] == page
