"""What a board writes around every post goes, what people write stays."""

from herd.curate.extract.html import extract
from herd.curate.extract.threads import post_furniture

POSTS = (
    "My two hives lived through the winter, but one of them is weak. Should I join them?",
    "I would wait until April. To join weak hives in the cold kills both.",
    "Feed them first, and look at the brood when it is above fifteen degrees.",
    "Thanks to all of you, I fed them today and will report in a week or two.",
    "Any news of them? Mine began to fly yesterday, when the sun came out.",
)


def test_words_of_the_board_between_posts_go():
    page = "".join(
        f"<div><p>bee{n}</p><p>Posted May {n + 2}, 2012 at 10:1{n} am</p><p>Joined: Jan 201{n}</p><p>{post}</p>"
        f"<p>Share this post</p><p>Reply | Quote | Report</p></div>"
        for n, post in enumerate(POSTS)
    )
    lines = extract(f"<html><body><h1>Weak hive</h1>{page}</body></html>").text.split("\n")
    assert all(post in lines for post in POSTS)
    assert not any(word in line for line in lines for word in ("Posted", "Joined", "Share", "Quote"))


def test_other_scripts_too():
    lines = [
        line
        for n in range(3)
        for line in (f"用户{n}", f"发表于 2019-5-{n + 1} 10:2{n}", f"第{n}个问题是这样的。", "回复", "举报")
    ]
    assert [line for line, gone in zip(lines, post_furniture(lines), strict=True) if not gone] == [
        line for line in lines if line.startswith(("用户", "第"))
    ]


def test_what_does_not_repeat_or_says_more_stays():
    kept = [
        "Reply",
        "May 3",
        "Posted May 2",
        "May 4",
        "The post of the bridge broke.",
        "Report of the council: it rained.",
    ]
    kept += ["Step 1", "Step 2", "Step 3", "Parameters", "Parameters", "Parameters", "Note", "Note", "Note", "May 5"]
    assert not any(post_furniture(kept))
    diary = [line for day in range(1, 9) for line in (f"May {day}", "It rained all day, and we read.")]
    assert not any(post_furniture(diary))
