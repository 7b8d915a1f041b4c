"""Personal data is masked; what only looks like it stays."""

import pytest

from herd.curate.pii import is_card_number, is_iban, mask_pii


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to jane.doe+bees@garden.co.uk today.", "email"),
        ("It came from 8.8.4.4 at night.", "ip"),
        ("Call +49 30 1234 5678 before noon.", "phone"),
        ("Call (555) 234-5678 before noon.", "phone"),
        ("Card 4111 1111 1111 1111, please.", "card"),
        ("To DE89 3704 0044 0532 0130 00 it goes.", "iban"),
        ("To GB82WEST12345698765432 it goes.", "iban"),
    ],
)
def test_personal_data_is_masked(text, kind):
    masked, found = mask_pii(text)
    assert found == {kind: 1}
    assert masked != text and masked.split()[0] == text.split()[0] and masked.split()[-1] == text.split()[-1]


@pytest.mark.parametrize(
    "text",
    [
        "Write to someone@example.com as an example.",
        "The server listens on 127.0.0.1 or 192.168.1.10.",
        "Version 1.2.3.4.5 of 2024-01-15, at 10:30:45.",
        "Number 4111 1111 1111 1112 fails its checksum.",
        "DE89 3704 0044 0532 0130 01 fails its checksum.",
        "In 1914-1918 there were 1234567890123456 stars, 3.14159265358979 of them round.",
        "a @ b, a@b, @decorator, user@localhost",
        "ISBN 978-3-16-148410-0 and DOI 10.1000/182",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert mask_pii(text) == (text, {})


def test_checksums_decide():
    assert is_card_number("5500 0000 0000 0004") and not is_card_number("5500 0000 0000 0005")
    assert is_iban("FR1420041010050500013M02606") and not is_iban("FR1420041010050500013M02607")


def test_masking_is_settled_after_one_pass():
    masked, _ = mask_pii("jane@garden.org, 8.8.8.8, +1 212 555 0187, 4111111111111111")
    assert mask_pii(masked, ("email", "ip"))[1] == {}
