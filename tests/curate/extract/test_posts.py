"""Threads: the posts stay, in the markup of five kinds of forum software; articles and manuals are read as before."""

from __future__ import annotations

import pytest
from selectolax.lexbor import LexborHTMLParser

from herd.curate.extract.blocks import read_blocks
from herd.curate.extract.content import measure
from herd.curate.extract.features import FIGURES, figures
from herd.curate.extract.html import extract
from herd.curate.extract.posts import load_table, posts_of

POSTS = [
    "My mower starts and dies after ten seconds. The fuel is new. What should I look at first?",
    "Clean the main jet of the carburettor, it is most likely clogged.",
    "Or the cap of the tank lets no air in: open it while the engine runs.",
    "It was the jet, full of green varnish from last year's fuel.",
    "Drain the tank in autumn then, or run it dry.",
    "That was it, thanks.",
]
MARKUPS = {
    "phpbb": (
        "<ul id=nav-breadcrumbs><li class=breadcrumbs><a href='viewforum.php?f=2'>Board index</a></li></ul><div "
        "id=page-body><h2 class=topic-title><a href='viewtopic.php?t=9'>Mower dies</a></h2>{}</div><div "
        "class=copyright>"
        "Powered by <a href='https://www.phpbb.com/'>phpBB</a> Forum Software</div>",
        "<div id='p{n}' class='post has-profile bg1'><div class='inner'><dl class='postprofile' id='profile{n}'><dt>"
        "<div class='avatar-container'></div><a href='memberlist.php?u={n}' class='username'>gardener{n}</a></dt>"
        "<dd class='profile-posts'>Posts: 31{n}</dd></dl><div class='postbody'><div id='post_content{n}'><p "
        "class='author'>"
        "<a href='viewtopic.php?p={n}#p{n}'></a>by <a class='username'>gardener{n}</a> » Sun Jul 1{n}, 2012 3:24 pm</p>"
        "<ul class='post-buttons'><li><a href='posting.php?mode=quote&p={n}'><span>Quote</span></a></li></ul>"
        "<div class='content'>{text}</div></div></div></div></div>",
    ),
    "vbulletin": (
        "<a href='forumdisplay.php?f=4'>Engines</a><div id='posts'>{}</div><div>Powered by vBulletin</div>",
        "<table class='tborder' id='post{n}'><tr><td class='thead'><a href='showthread.php?p={n}'>#{n}</a> "
        "07-1{n}-2012, 03:24 PM</td></tr><tr><td class='alt2'><div id='postmenu_{n}'><a class='bigusername' href="
        "'member.php?u={n}'>gardener{n}</a></div><div class='smallfont'>Junior Member</div><div "
        "class='smallfont'>Posts: "
        "31{n}</div></td></tr><tr><td class='alt1'><div id='post_message_{n}'>{text}</div></td></tr><tr><td>"
        "<a href='newreply.php?p={n}'>Reply</a></td></tr></table>",
    ),
    "xenforo": (
        "<html id='XenForo'><ol class='messageList' id='messageList'>{}</ol>",
        "<li id='post-{n}' class='message' data-author='gardener{n}'><div class='messageUserInfo'><div "
        "class='avatarHolder'>"
        "</div><h3 class='userText'><a class='username' href='/members/{n}'>gardener{n}</a></h3><dl><dt>Messages:</dt>"
        "<dd>31{n}</dd></dl></div><div class='messageInfo'><article><blockquote class='messageText ugc baseHtml'>{text}"
        "</blockquote></article><div class='messageMeta'><a href='/threads/9'>Jul 1{n}, 2012</a> "
        "<a>Reply</a></div></div></li>",
    ),
    "questions": (
        "<div itemscope itemtype='https://schema.org/QAPage'><div id='mainbar'>{}</div></div>",
        "<div class='answer' id='answer-{n}' itemtype='https://schema.org/Answer'><div class='votecell'><div "
        "class='js-vote-count'>1{n}</div></div><div class='answercell post-layout--right'><div class='s-prose "
        "js-post-body'>{text}</div><div class='user-info'><div class='user-action-time'>answered Jul 1{n}, 2012</div>"
        "<div class='user-details'><a href='/users/{n}'>gardener{n}</a></div></div></div></div>",
    ),
    "discuz": (
        "<meta name=generator content='Discuz! X3.4'><div id='postlist' class='pl bm'>{}</div>",
        "<div id='post_{n}'><table id='pid{n}' class='plhin'><tr><td class='pls'><div class='avatar'></div><div "
        "class='authi'>"
        "<a href='space-uid-{n}.html'>gardener{n}</a></div><p>帖子 31{n}</p></td><td class='plc'><div class='pi'>"
        "发表于 2012-7-1{n}</div><div class='t_fsz'><table><tr><td class='t_f' "
        "id='postmessage_{n}'>{text}</td></tr></table>"
        "</div><a href='forum.php?mod=viewthread&tid=9'>回复</a></td></tr></table></div>",
    ),
}


def thread(kind: str) -> str:
    around, post = MARKUPS[kind]
    posts = "".join(post.format(n=number, text=text) for number, text in enumerate(POSTS, 1))
    return f"<html><head><title>Mower dies</title></head><body>{around.format(posts)}</body></html>"


@pytest.mark.parametrize("kind", MARKUPS)
def test_the_posts_of_a_thread_stay_and_who_wrote_them_when_does_not(kind):
    text = extract(thread(kind)).text
    assert all(post in text for post in POSTS), text
    assert "gardener" not in text and "2012" not in text and "31" not in text, text


def test_without_the_table_threads_are_read_like_other_pages():
    assert "gardener1" in extract(thread("xenforo"), threads=False).text


def test_an_article_with_comments_and_a_page_of_a_manual_are_no_threads():
    table = load_table()
    comments = "".join(f"<li class='comment' id='comment-{n}'><p>I liked lamp {n}.</p></li>" for n in range(9))
    article = (
        f"<article class='post entry'><h1>Lamps</h1><p>{'A lamp gives light. ' * 40}</p></article><ol>{comments}</ol>"
    )
    manual = "".join(
        f"<section class='detail'><div class='member-signature'>get{n}()</div></section>" for n in range(40)
    )
    for page in (article, manual):
        assert not table.is_thread([one.hint for one in measure(LexborHTMLParser(page))], page)


def test_a_page_is_not_changed_by_the_search_for_posts():
    tree = LexborHTMLParser(thread("phpbb"))
    before = tree.html
    assert posts_of(tree.body, load_table()) is not None and tree.html == before


def test_every_block_has_all_figures_and_one_score():
    blocks, _ = read_blocks(LexborHTMLParser(thread("vbulletin")).body)
    assert figures(blocks, load_table().words).shape == (len(blocks.texts), len(FIGURES))
    assert load_table().scores(blocks).shape == (len(blocks.texts),)
