"""Block lists and the knowledge cutoff: what is meant goes, with its category; what only looks like it stays."""

import gzip

import pytest
import tldextract

from herd.curate.filters.addresses import AddressGate, Blocked, host, plain_date, registered_domain
from herd.errors import DataError


def gate(**lists):
    return AddressGate(Blocked(**lists))


def test_a_domain_is_blocked_with_its_subdomains_and_nothing_else():
    blocked = gate(domains={"adult": ["casino.example", "www.Bets.example."]})
    assert blocked.why_refuse("https://casino.example/x") == ("blocked_domain_adult", "casino.example")
    assert blocked.why_refuse("http://user@m.de.CASINO.example:8080/")[1] == "casino.example"
    assert blocked.why_refuse("http://bets.example/")[0] == "blocked_domain_adult"
    for wanted in ("http://notcasino.example/", "http://example/", "http://casino.example.org/", "casino.example", ""):
        assert blocked.why_refuse(wanted) is None


def test_words_are_whole_words_of_the_address_accents_and_escapes_aside():
    blocked = gate(words={"gambling": ["casino", "jeux-d-argent", "Glücksspiel"]})
    assert blocked.why_refuse("http://a.org/best_Casino-games") == ("blocked_word_gambling", "casino")
    assert blocked.why_refuse("http://a.org/gl%C3%BCcksspiel/1")[1] == "glucksspiel"
    assert blocked.why_refuse("http://a.org/jeux-d-argent")[1] == "jeux-d-argent"
    for wanted in ("http://a.org/casinos", "http://a.org/jeux-argent", "http://[broken/"):
        assert blocked.why_refuse(wanted) is None


def test_lists_come_from_files_in_their_usual_forms(tmp_path):
    (tmp_path / "hosts").write_text("# malware\n0.0.0.0 bad.example # why\n||worse.example^\n*.worst.example\n\n")
    with gzip.open(tmp_path / "words.gz", "wt") as file:
        file.write("poker\n")
    blocked = gate(domain_files={"unsafe": [tmp_path / "hosts"]}, word_files={"gambling": [tmp_path / "words.gz"]})
    assert set(blocked.domains) == {"bad.example", "worse.example", "worst.example"}
    assert blocked.why_refuse("http://x.org/poker")[0] == "blocked_word_gambling"


def test_what_is_no_list_is_refused_with_its_place(tmp_path):
    (tmp_path / "list").write_text("fine.example\nnot a domain\n")
    with pytest.raises(DataError, match=r"list:2: 'not a domain' is no domain"):
        gate(domain_files={"x": [tmp_path / "list"]})
    with pytest.raises(DataError, match="cannot be read"):
        gate(domain_files={"x": [tmp_path / "none"]})


@pytest.mark.parametrize(
    ("cutoff", "date", "is_kept"),
    [
        ("2023-12-31", "2023-12-31T23:59:59Z", True),
        ("2023-12-31", "2024-01-01T00:00:00Z", False),
        ("2023", "2023-11-01", True),
        ("2023", "2024", False),
        ("2023-12-31", "", True),
    ],
)
def test_pages_after_the_cutoff_are_dropped_and_undated_ones_kept(cutoff, date, is_kept):
    reason = AddressGate(Blocked(), cutoff).why_refuse("http://a.org", date)
    assert (reason is None) == is_kept
    assert is_kept or reason[0] == "after_cutoff"


def test_hosts_are_read_from_any_address():
    assert host("https://www.Bees.org./x") == "bees.org" and host("http://bücher.de") == "xn--bcher-kva.de"
    assert host("python://3.11/lib/x.py") == "3.11" and host("/home/x.html") == "" == host("http://[x")


@pytest.mark.parametrize(
    ("date", "plain"),
    [
        ("2024-05-01T10:20:30.5Z", "2024-05-01T10:20:30Z"),
        ("2024-05-01 10:20", "2024-05-01T10:20:00Z"),
        ("20240501102030", "2024-05-01T10:20:30Z"),
        ("2024/5/1", "2024-05-01"),
        ("2024-05", "2024-05"),
        ("Wed, 01 May 2024 12:20:30 +0200", "2024-05-01T10:20:30Z"),
        ("1714558830", "2024-05-01T10:20:30Z"),
        ("1714558830000", "2024-05-01T10:20:30Z"),
        *(
            (odd, "")
            for odd in ("", "yesterday", "01/05/2024", "2024-13-01", "0000-00-00", "-1", "9" * 400, "2024-05-")
        ),
    ],
)
def test_dates_are_read_in_their_usual_forms_and_what_is_no_date_is_none(date, plain):
    assert plain_date(date) == plain


def test_a_date_that_cannot_be_read_is_not_after_the_cutoff():
    cut = AddressGate(Blocked(), "2023-12-31")
    assert cut.why_refuse("http://a/", "Someday") is None and cut.why_refuse("http://a/", "20230501") is None
    assert cut.why_refuse("http://a/", "Wed, 01 May 2024 12:20:30 GMT")[0] == "after_cutoff"


def test_registered_domains_are_those_that_tldextract_finds():
    theirs = tldextract.TLDExtract(suffix_list_urls=(), cache_dir=None)
    suffixes = [suffix.lstrip("!").replace("*", "bees") for suffix in theirs.tlds]
    names = [f"{before}{suffix}" for suffix in suffixes for before in ("", "bees.", "www.shop.bees.")]
    names += ["1.2.3.4", "localhost", "shop.unknown", "2001::1", "", "jane.github.io", "xn--e1afmkfd.xn--p1ai"]
    assert [name for name in names if registered_domain(name) != theirs(name).top_domain_under_public_suffix] == []
