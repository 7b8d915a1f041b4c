"""Keys, tokens and passwords that were published by mistake.

Issuers give their keys a mark (`AKIA`, `ghp_`, `xoxb-`), which is looked for first; a value without a mark counts where
the text calls it a password, secret, token or key and it is as disordered as a random string. Placeholders
(`your-api-key`, `xxxx`, Amazon's `...EXAMPLE`) are nobody's and stay.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

_MARKS = (
    (("AKIA", "ASIA"), r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b"),  # Amazon
    (("gh",), r"\bgh[pousr]_[A-Za-z0-9]{36,255}\b"),  # GitHub
    (("github_pat_",), r"\bgithub_pat_\w{50,255}"),
    (("glpat-",), r"\bglpat-[\w-]{20,}"),  # GitLab
    (("xox",), r"\bxox[abeoprs]-(?:\d+-){0,3}[A-Za-z0-9-]{10,}"),  # Slack
    (("hooks.slack.com",), r"hooks\.slack\.com/services/T\w{6,12}/B\w{6,12}/\w{20,30}"),
    (("AIza",), r"\bAIza[\w-]{35}(?![\w-])"),  # Google
    (("ya29.",), r"\bya29\.[\w-]{30,}"),
    (("sk-",), r"\bsk-(?:ant-|proj-|svcacct-|or-v1-)?[A-Za-z0-9][\w-]{19,250}(?![\w-])"),  # OpenAI, Anthropic
    (("_live_", "_test_"), r"\b[rsp]k_(?:live|test)_[A-Za-z0-9]{16,}"),  # Stripe
    (("npm_",), r"\bnpm_[A-Za-z0-9]{36}\b"),
    (("pypi-AgE",), r"\bpypi-AgE[\w-]{50,}"),
    (("hf_",), r"\bhf_[A-Za-z]{34}\b"),  # Hugging Face
    (("SG.",), r"\bSG\.[\w-]{22}\.[\w-]{43}"),  # SendGrid
    (("dop_v1_",), r"\bdop_v1_[a-f0-9]{64}\b"),  # DigitalOcean
    (("shp",), r"\bshp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}\b"),  # Shopify
    (("eyJ",), r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),  # JSON web token
)
_MARKED = tuple((marks, re.compile(pattern, re.ASCII)) for marks, pattern in _MARKS)
_KEY_BLOCK = re.compile(
    r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----.{20,20000}?"
    r"-----END (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----",
    re.S,
)
_URL_PASSWORD = re.compile(r"\b[a-z][a-z0-9+.-]{1,20}://[^\s:/@'\"<>]{1,64}:([^\s/@'\"<>${}]{3,128})@(?=[\w.-])")
_VALUE = re.compile(r"(?:=>|[:=])\s{0,3}[\"']?(?=[^\s\d]{0,40}\d)([A-Za-z0-9+/_=.~!@#%^&*-]{12,200})")
_NAME_BEFORE = re.compile(
    r"(?:passw(?:or)?d|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|auth)[\w-]{0,20}[\"']?\s{0,3}:?$",
    re.I,
)
_NAMES = ("passw", "pwd", "secret", "token", "key", "auth")
_PLACEHOLDER = re.compile(
    r"example|placeholder|your|changeme|change_me|dummy|sample|redacted|insert|replace|test[-_]?key|foobar|"
    r"x{4}|\*{3}|\.{3}|0{6}|1234567|abcdef|<|\$\{|%\(|process\.env|os\.environ|getenv|self\.|config\.",
    re.I,
)
_LEAST_BITS = 3.5  # of entropy to a character: words lie below, random letters and digits above


def find_secrets(text: str) -> Iterator[tuple[int, int]]:
    """Where secrets stand in a text, in characters."""
    for marks, pattern in _MARKED:
        if any(mark in text for mark in marks):
            for match in pattern.finditer(text):
                if not _PLACEHOLDER.search(match[0]) and _entropy(match[0]) > 2.5 and any(map(str.isdigit, match[0])):
                    yield match.span()
    if "PRIVATE KEY" in text:
        yield from (match.span() for match in _KEY_BLOCK.finditer(text))
    if "://" in text and "@" in text:
        for match in _URL_PASSWORD.finditer(text):
            if not _PLACEHOLDER.search(match[1]) and match[1].lower() not in ("password", "pass", "pwd", "secret"):
                yield match.span(1)
    lower = text.lower()
    if any(name in lower for name in _NAMES):
        for match in _VALUE.finditer(text):
            before = text[max(0, match.start() - 40) : match.start()]
            if _NAME_BEFORE.search(before) and is_random(match[1]):
                yield match.span(1)


def is_random(value: str) -> bool:
    """Whether a value looks drawn at random: letters and digits mixed, as disordered as a key, no placeholder."""
    kinds = sum(any(map(test, value)) for test in (str.islower, str.isupper, str.isdigit))
    digits = sum(map(str.isdigit, value))
    if digits < (2 if kinds == 3 else max(3, 0.12 * len(value))) or kinds < 2 or _PLACEHOLDER.search(value):
        return False
    if sum(map(str.isalnum, value)) < 0.8 * len(value) or re.search(r"\w\.\w+\.|\w\(", value):
        return False
    return _entropy(value) >= min(_LEAST_BITS, 0.85 * math.log2(len(value)))


def _entropy(value: str) -> float:
    """Bits to a character."""
    return -sum(count / len(value) * math.log2(count / len(value)) for count in Counter(value).values())
