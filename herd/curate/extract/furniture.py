"""What furniture is called: words of class names, and phrases that invite the reader elsewhere.

A word is compared with the words that a class name or id is made of (`article-related_list` is article, related, list),
never with a part of one, so that `shadow` is no `ad`.
"""

from __future__ import annotations

import functools
import re

CUT = "nav, script:not([type^=math]), style, template, iframe, button, select, textarea, dialog, object, canvas"
CUT += ", audio, video, input, svg, link, meta"
ROLES = {"navigation", "banner", "contentinfo", "search", "complementary", "dialog", "alertdialog"}
ROLES |= {"menu", "menubar", "toolbar", "tablist"}
"""Elements and roles that are no text of a page, whatever they hold."""
_STRONG = frozenset(
    """
    nav navbar navigation menu submenu topnav subnav mainnav sitenav postnav breadcrumb breadcrumbs
    pager pagination paging footer sidebar toc masthead comment comments commentlist disqus respond
    reply replies share sharing sharethis sharedaddy sharebar shares social socials socialmedia
    followus addthis addtoany related relateds recommend recommended recommendation recommendations
    recommends similar yarpp trending outbrain taboola zergnet morelinks linkbox newsletter
    newsletters subscribe subscription subscriptions signup paywall login register ad ads adv advert
    adverts advertisement advertising adsense dfp adunit sponsor sponsored sponsors cookie cookies
    consent gdpr popup modal lightbox rollover tooltip popover noprint editsection navbox catlinks
    printfooter headerlink jumplink skiplink
    """.split()  # noqa: SIM905
)
_STRONG_PAIRS = re.compile(
    r"(?<![a-z])(?:more-?(?:stories|news|from|on|articles|like|posts)|read-?(?:more|next|also)|also-?like|you-?may|"
    r"most-?(?:read|popular)|skip-?(?:link|to|nav)|screen-?reader\w*|sr-only|visually-?hidden|print-only|prev-?next|"
    r"next-?prev|post-?navigation|author-?(?:bio|box|info|card|profile)|about-?(?:the-)?author|tag-?(?:list|cloud)|"
    r"cat-links|tags-links|table-of-contents|site-(?:header|footer)|page-footer|sign-up|log-in|pop-up|side-?bar|"
    r"right-?rail|left-?rail|like-box|widget-area|call-to-action|follow-us|support-us)(?![a-z])"
)
_WEAK = frozenset(
    """
    teaser teasers promo promos promotion byline author authors dateline timestamp tags tagged
    categories widget widgets toolbar toolbox copyright disclaimer credit credits rating ratings
    votes banner banners rail latest gallery slideshow carousel slider caption captions figcaption
    topbar overlay cta donate donation infobox factbox download downloads mailto feedback survey
    playlist player embed counter livestream popular meta metadata follow search
    """.split()  # noqa: SIM905
)
_WEAK_NAMES = {"tag", "date", "hidden", "hide", "d-none", "print", "email", "contact", "form", "published", "posted"}
_WEAK_NAMES |= {"info", "box", "aside", "notice", "extra"}
_WEAK_PAIRS = re.compile(
    r"(?<![a-z])(?:post|entry|article|story|news|blog)[-_]*(?:meta|info|date|footer|tags)(?![a-z])"
)
_LEAD = re.compile(
    r"(?<![a-z])(?:intro|lead|lede|chapo|sapo|stand-?first|teaser-?text|\w*__teaser|summary|sub-?title|dek|deck|"
    r"sub-?head(?:line)?|abstract|excerpt|vorspann|entradilla|bajada)(?![a-z])"
)
_MODIFIER = re.compile(
    r"^(?:has|no|with|without|is|js|not|hide|show|open|close|u)-"  # `has-sidebar` says what is beside, not what it is
    r"|^(?:md|sm|lg|xl|xs|hover|focus|group|dark|print|before|after):"
)
_MAX_WORDS = 4  # longer names are made from the words of a heading: `sharing-with-a-single-developer`
_CAMEL_CASE = re.compile(r"(?<=[a-z])(?=[A-Z])")
_WORDS = re.compile(r"[a-z]+")

_PHRASES = (
    # advertisements, captions and buttons
    r"advert(?:isement|ising)?s?|anzeige|werbung|publicidad|publicité|reklama|реклама|sponsored(?: content)?",
    r"caption|close|print|e-?mail|copy link|like this.*|tweet|pin it|next|prev(?:ious)?|next prev|menu|home|search",
    r"share(?: this.*| on .*| article)?|teilen|partager|compartir|condividi|loading.*|enlarge(?: image)?",
    r"this slideshow requires javascript\.?|\[?(?:edit|bearbeiten)\]?|skip to.*|jump to.*",
    r"(?:photo|foto|bild|image|source|quelle|fuente|fonte)s?(?: credit)?\s*[:©/].{0,80}",
    r"<\w+ [^>]*>.*",  # markup that a page shows by mistake
    # elsewhere on the site
    r"read (?:more|next|also|the full).*|click here.*|see also:?|continue reading.*|view all.*",
    r"more(?: (?:from|on|in|news|stories|about)\b.*)?:?|(?:you )?(?:may|might) also (?:like|be interested).*",
    r"don'?t miss:?|top (?:video|stor)\w*|recommended.*|trending.*|most (?:read|popular).*|show more.*",
    r"schon gelesen.*|lesen sie auch.*|mehr zum thema.*|das könnte sie auch.*|auch interessant.*|weiterlesen.*",
    r"weitere (?:artikel|beiträge|themen|nachrichten).*|ähnliche (?:artikel|beiträge|nachrichten|themen).*",
    r"lire aussi.*|à lire aussi.*|sur le même sujet.*|lea también.*|leia (?:também|mais).*|veja também.*",
    r"te puede interesar.*|czytaj (?:także|też|również).*|zobacz (?:także|też|również).*|leggi anche.*",
    r"potrebbe interessarti.*|читайте также.*|lees ook.*|läs också.*",
    r"zurück zur .{0,30}|zurück|back to (?:top|.{0,20})|nach oben",
    r"related(?! (?:work|functions?|methods?|concepts?|modules?|projects?|class(?:es)?|commands?)\b)(?: \w+){0,2}:?",
    # readers' part
    r"leave a (?:reply|comment).*|post a comment.*|join the conversation.*|tell us what you think.*|vos réactions.*",
    r"(?:\d+ |no |keine |view )?(?:comments?|kommentare?|comentarios|commentaires)(?: \(.*\)| \d+)?:?",
    r"kommentar schreiben.*|schreibe einen kommentar.*",
    r"subscribe(?: to| now| here)?\b.{0,60}|sign up.{0,80}|newsletter|follow (?:us|me)\b.*",
    r"get the .{0,40}(?:app|newsletter)\b.*",
    # labels and rights
    r"tags?(?::.*)?|filed under.*|posted in.*|categor(?:y|ies):?|schlagwörter:?|schlagworte:?",
    r"all rights reserved.*|©.*",
    r"copyright\b(?!.*\b(?:laws?|is|are|was|do|does|protects?|covers?|applies|expires)\b).{0,80}",
)
_PHRASE = re.compile(rf"^\W*(?:{'|'.join(_PHRASES)})\W*$", re.I)
_MAX_PHRASE = 120
MAX_PHRASE_CHARACTERS = 400  # a notice of rights can be that long


_CONSENT = re.compile(
    r"\bcookies?\b|\bconsent\b|\bpartners\b|\bvendors\b|legitimate interest|privacy policy|personal data|\bgdpr\b|"
    r"unique identifiers|your (?:privacy )?choices|browsing data|on a device|einwilligung|datenschutz|"
    r"consentement|données personnelles|consentimiento|datos personales|согласи|персональны",
    re.I,
)
_CONSENT_FRAME = re.compile(
    r"(?<![a-z])(?:overlay|modal|popup|dialog|consent|privacy|cookies?|gdpr|cmp|onetrust|didomi|banner)(?![a-z])"
)
_CONSENT_CHARACTERS, _CONSENT_WORDS = 4000, 3


def asks_consent(text: str) -> bool:
    """Whether a text asks the reader for consent: it is short, and of such words."""
    found = {match.lower() for match in _CONSENT.findall(text)} if len(text) <= _CONSENT_CHARACTERS else set()
    return len(found) >= _CONSENT_WORDS


def frames_consent(hint: str) -> bool:
    """Whether classes and ids are of what asks for consent."""
    return _CONSENT_FRAME.search(_CAMEL_CASE.sub("-", hint).lower()) is not None


@functools.lru_cache(maxsize=1 << 16)
def strength(hint: str) -> int:
    """How surely a class name or id names furniture: 2, 1 (where there is little text) or 0.

    `post-comments` is 2, `teaser` is 1, `teaser-text` and `has-sidebar` are 0.
    """
    found = 0
    hint = _CAMEL_CASE.sub("-", hint).lower()
    for name in hint.split():
        words = _WORDS.findall(name)
        if len(words) > _MAX_WORDS or _MODIFIER.match(name):
            continue
        if not _STRONG.isdisjoint(words) or _STRONG_PAIRS.search(name):
            return 2
        if name in _WEAK_NAMES or not _WEAK.isdisjoint(words) or _WEAK_PAIRS.search(name):
            found = 1
    return 0 if found and _LEAD.search(hint) else found


def is_phrase(text: str) -> bool:
    """Whether a short text only sends the reader elsewhere: `Read more`, `Share this on ...`, `Keine Kommentare`."""
    if text.startswith("©"):
        return len(text) <= MAX_PHRASE_CHARACTERS
    return len(text) <= _MAX_PHRASE and bool(_PHRASE.match(text))


_OPENED = re.compile(
    r"(?<![a-z])(?:accordion|collaps(?:e|ed|ible)|tab-?(?:panel|pane|content)s?|panel|faqs?|answers?|expand(?:able|ed|er)?|"
    r"toggle-?(?:content|text|body)|spoilers?|show-?more)(?![a-z])",
    re.I,
)
_NO_SLUG = re.compile(r"[^a-z0-9]+")


@functools.lru_cache(maxsize=1 << 16)
def is_opened(hint: str) -> bool:
    """Whether a class name or id is of what a click on its heading shows: hidden it is content all the same."""
    return _OPENED.search(hint) is not None


def slug(heading: str) -> str:
    """The id that documentation tools make of a heading."""
    return _NO_SLUG.sub("-", heading.lower()).strip("-")
