"""The furniture of threads: what a board writes above and below every post, known by its words and that it repeats."""

from __future__ import annotations

import re
from collections import Counter

_BUTTONS = (
    r"reply(?: with quote)?|re-?quote|(?:multi-?)?quote|report(?: post| abuse| to moderator)?|share(?: this post)?|"
    r"likes?|dislike|edit|delete|flag|permalink|link|top|up|(?:up|down)?vote|follow|save|thanks?|"
    r"link to (?:this )?(?:post|comment|answer)|add a comment|improve this (?:answer|question)|back to top|go to top|"
    r"(?:view )?profile|find all posts.{0,30}|(?:send (?:a )?)?(?:pm|message|private message)|offline|online|print|"
    r"bookmark|(?:ip )?logged|hide|show|antworten|zitieren|zitat|melden|teilen|bearbeiten|nach oben|gefällt mir|"
    r"beitrag melden|répondre|citer|signaler|partager|j'aime|haut|responder|citar|denunciar|compartir|me gusta|arriba|"
    r"rispondi|quota|segnala|condividi|odpowiedz|cytuj|zgłoś|udostępnij|ответить|цитировать|цитата|пожаловаться|"
    r"поделиться|наверх|回复|回覆|举报|舉報|分享|引用|收藏|点赞|赞|顶|踩|只看该作者|只看該作者|使用道具|楼主|樓主|"
    r"返信|通報|いいね|답글|신고|공유"
)
_FACTS = (
    r"posted|posts?|joined|join date|registered|member since|messages?|location|reputation|rep power|reaction score|"
    r"points|karma|likes received|trophy points|thanked|(?:last )?edited|answered|asked|commented|replied|reply|"
    r"total posts|gender|age|beiträge|registriert|verfasst|geschrieben|wohnort|dabei seit|messages ?|inscrit|posté|"
    r"publicado|mensajes|registrado|inviato|messaggi|napisano|posty|dołączył|сообщений|зарегистрирован|добавлено|"
    r"откуда|发表于|發表於|注册时间|积分|帖子|来自"
)
_ROLES = (
    r"(?:(?:senior|junior|new|well-known|active|full|hero|super|registered|valued|gold) )?member|administrator|"
    r"moderator|newbie|guest"
)
_LINE = re.compile(
    rf"\W*(?:(?:{_BUTTONS})(?:[\s|·•,/()\d]+(?:{_BUTTONS}))*[\s\d().…]*|(?:{_FACTS})[\s:#»]+[^.!?。]{{1,50}}|(?:{_ROLES})|"
    r"(?:post )?#\s?\d{1,6}|\d{1,5} ?(?:楼|樓|points?|likes?|votes?|reputation|posts?|replies|comments?))\W*",
    re.I,
)
_MONTH = r"(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?|(?:mon|tue|wed|thu|fri|sat|sun)[a-z]*\.?"
_VARYING = re.compile(rf"\b(?:{_MONTH}|am|pm|today|yesterday|ago|days?|hours?|months?|years?|weeks?)\b|\d+", re.I)
_DATE = re.compile(rf"\W*(?:(?:{_MONTH}|\d{{1,4}}(?:st|nd|rd|th)?|am|pm|at|on|by|[tz年月日时分])\W*){{2,12}}", re.I)
_MAX_CHARACTERS = 60
_LEAST_REPEATS = 3


def post_furniture(lines: list[str]) -> list[bool]:
    """For each line whether it is the furniture of a post: such words, thrice on the page; and then dates as well."""
    short = {number: line.strip() for number, line in enumerate(lines) if 0 < len(line.strip()) <= _MAX_CHARACTERS}
    forms = {number: _VARYING.sub("0", line.lower()) for number, line in short.items() if _LINE.fullmatch(line)}
    counts = Counter(forms.values())
    found = [counts[forms.get(number, "")] >= _LEAST_REPEATS for number in range(len(lines))]
    if any(found):
        dates = [number for number, line in short.items() if any(map(str.isdigit, line)) and _DATE.fullmatch(line)]
        if len(dates) >= _LEAST_REPEATS:
            for number in dates:
                found[number] = True
    return found
