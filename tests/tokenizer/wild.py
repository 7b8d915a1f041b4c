"""Texts to train on, and strings that tokenizers trip over."""

import textwrap
from pathlib import Path

from hypothesis import strategies as st

TEXTS = [
    Path(textwrap.__file__).read_text(encoding="utf-8"),
    "Grüße aus Köln! Où est la bibliothèque? ¿Dónde está? Ça va très bien, 3.14159 et 2024.\n" * 3,
    "सभी मनुष्य जन्म से स्वतंत्र हैं। มนุษย์ทั้งหลายเกิดมามีอิสระ 人人生而自由 😀👩‍👩‍👧 e\u0301\n\n" * 3,
    "don't we'll I'VE they're\r\n\tx =  1;\n\n\n    return  y   \n" * 5,
]

PIECES = [
    *(
        "don't",
        "'S",
        "'ll",
        "'",
        "ſ",
        "_x1",
        "12345",
        "٣٤٥",
        "Ⅷ²",
        " ",
        "  ",
        "   \n",
        "\t",
        "\r\n",
        "\n\n\n",
        "\u00a0",
    ),
    *(
        "\u2028",
        "\u3000",
        "\x1c",
        "\x00",
        "\u200d",
        "é",
        "e\u0301",
        "ไทย",
        "हिन्दी",
        "漢字",
        "😀",
        "\U0001f469\u200d\U0001f467",
    ),
    *("==", "====", "!!!", "->", ".foo", "<|eot_id|>", "<|begin_of_text|>", "aaaaa", "ababab", "\ufeff", "\U00100000"),
]
WILD_TEXT = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.text(max_size=80),
    st.text(alphabet=" \t\n\r'abAB19.=é", max_size=40),
)
"""Strings that tokenizers trip over: all of Unicode, odd whitespace, repetitions, special strings."""
