"""When a page was written, and who says so."""

import pytest

from herd.curate.read.dates import date_of


@pytest.mark.parametrize(
    ("content", "date"),
    [
        (b'<script type="application/ld+json">{"datePublished": "2021-03-04T10:00:00+01:00"}</script>', "2021-03-04"),
        (b'<meta property="article:published_time" content="2020-01-02">', "2020-01-02"),
        (b"<meta content='2019-05-06' name='DC.date.issued'>", "2019-05-06"),
        (b"<meta name=date content=20180708>", "2018-07-08"),
        (b'<meta property="article:modified_time" content="2022-01-01">', "2022-01-01"),
        (b'{"dateModified":"2022-05-05","datePublished":"2020-05-05"}', "2020-05-05"),
        (b'<time itemprop="datePublished" datetime="2021-03-04">x</time><time datetime="2022-01-01">', "2021-03-04"),
        (
            b'<time class="entry-date published" datetime="2021-03-04T10:00">x</time><time datetime="2022">',
            "2021-03-04",
        ),
        (b'<span itemprop="datePublished" content="2021-03-04">x</span>', "2021-03-04"),
        (b'<meta name="date" content="Thursday, March 4, 2021, 10:00 AM">', "2021-03-04"),
        (b'<meta name="date" content="4th March 2021">', "2021-03-04"),
        (b'<p>On <time datetime="2017-02-03">3 Feb</time></p>', "2017-02-03"),
    ],
)
def test_a_page_tells_its_own_date(content, date):
    found = date_of("http://a.org/x", "2023-09-09T00:00:00Z", content)
    assert found.date.startswith(date) and found.by == "page"


def test_then_its_address_then_the_crawl_and_else_nobody():
    assert date_of("http://a.org/blog/2021/07/bees", "2023-09-09", b"") == ("2021-07", "address")
    assert date_of("http://a.org/2021-07-15-bees.html", "", b"") == ("2021-07-15", "address")
    assert date_of("http://a.org/2021/7/5/bees", "", b"") == ("2021-07-05", "address")
    assert date_of("http://a.org/news/20210705/bees", "", b"") == ("2021-07-05", "address")
    assert date_of("http://a.org/item/1998-05-1234", "", b"") == ("", "")
    assert date_of("http://a.org/bees", "20230909101112", b"") == ("2023-09-09T10:11:12Z", "crawl")
    assert date_of("/home/2021/07/bees.html", "", b"") == ("", "")


def test_dates_that_cannot_be_are_mistakes():
    wrong = b'<meta name="date" content="2031-01-01">', b'<meta name="date" content="0001-01-01">'
    for content in (*wrong, b'<meta name="date" content="soon enough">'):
        assert date_of("http://a.org/x", "2023-09-09", content) == ("2023-09-09", "crawl")
    several = b'<time datetime="2020-01-01"></time><time datetime="2021-01-01"></time>'
    assert date_of("http://a.org/x", "", several) == ("", "")
