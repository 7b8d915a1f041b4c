"""Pre-tokenizers of byte-level vocabularies, by llama.cpp's names.

A GGUF file names one (`tokenizer.ggml.pre`), a `tokenizer.json` has its patterns. Patterns are applied in order, each
to the pieces that the previous one left; text between matches is a piece too.

Source: `llm_tokenizer_bpe` in llama.cpp's llama-vocab.cpp, whose patterns are those of the models' own files.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import tokenizers

from herd.tokenizer.pieces import is_byte_level
from herd.tokenizer.specials import SPLIT_PATTERN

if TYPE_CHECKING:
    from herd.tokenizer.tokenizer import Tokenizer


class Split(NamedTuple):
    """A pre-tokenizer."""

    patterns: tuple[str, ...]
    whole_first: bool = False
    """Whether a piece that is a whole token is used without merging."""
    add_bos: bool = False
    """Whether BOS is added if the file does not say."""


def _characters(*ranges: str) -> str:
    """A character class from hexadecimal ranges: "41-5A" -> "A-Z"."""
    return "".join("-".join(chr(int(end, 16)) for end in one.split("-")) for text in ranges for one in text.split())


_CASED = _characters(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1",
    "3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A",
    "1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4",
    "1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128",
    "212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D",
    "A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3",
    "104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943",
)
_ASIAN = _characters("4E00-9FA5 800-4E00 AC00-D7FF")
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ONE_DIGIT = SPLIT_PATTERN.replace("{1,3}", "")
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_CAPITALS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%(end)s"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%(end)s"
    r"|%(digits)s| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SYMBOLS_FIRST = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEFAULT = Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"))

SPLITS = {
    "llama-bpe": Split((SPLIT_PATTERN,), whole_first=True, add_bos=True),
    "smollm": Split((r"\p{N}", _GPT2)),
    "gpt-2": Split((_GPT2,)),
    "qwen2": Split((_ONE_DIGIT,)),
    "smaug-bpe": Split((SPLIT_PATTERN,)),
    "deepseek-llm": Split(
        (
            r"[\r\n]",
            rf"\s?[{_CASED}]+",
            rf"\s?[{_characters('21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002')}]+",
            r"\s+$",
            rf"[{_ASIAN}]+",
            r"\p{N}+",
        )
    ),
    "deepseek-coder": Split((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", rf"[{_ASIAN}]+", r"\p{N}")),
    "deepseek-v3": Split((r"\p{N}{1,3}", rf"[{_characters('4E00-9FA5 3040-309F 30A0-30FF')}]+", _SYMBOLS_FIRST)),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "tekken": Split((_CAPITALS % {"end": "", "digits": r"\p{N}"},), whole_first=True, add_bos=True),
    "gpt-4o": Split((_CAPITALS % {"end": _ENDINGS, "digits": r"\p{N}{1,3}"},)),
    "default": _DEFAULT,
}
"""llama.cpp's pre-tokenizers, the likeliest for a Llama first."""

_ALIASES = {
    "llama-bpe": "llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
    "smollm": "starcoder refact command-r codeshell exaone minerva-7b mellum2",
    "gpt-2": "phi-2 mpt olmo jais jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert exaone4 "
    "trillion granite-docling",
    "qwen2": "stablelm2 deepseek-r1-qwen kormo f2llmv2 hunyuan solar-open megrez grok-2",
    "smaug-bpe": "dbrx glm4 chatglm-bpe",
    "deepseek-v3": "hunyuan-dense joyai-llm hy_v4",
    "gpt-4o": "llama4 kanana2 talkie",
    "default": "",
}
_BY_NAME = SPLITS | {name: SPLITS[key] for key, names in _ALIASES.items() for name in names.split()}
_PROBES = (
    "Hello, world! It's 1234567 o'clock; we'LL see what they'Re up to.  Two  spaces\tand tabs\t\tand\r\nlines\n\n\n  x",
    "x=1.5e-10+f(a)->b; // C++ <code> $5 ^2 ~`tick` | pipe | 3.14159 100,000 __init__ CamelCaseWord HTTPServer's",
    "Ça va très bien, où êtes-vous? Grüße aus Köln. \u01c5 \u2167\u00b2 \u00bd \u0663\u0664 \u00a0 nbsp\u3000wide",
    "漢字とかな、한국어 조선말。我们2024年见面！ “引号” हिन्दी भाषा ไทยภาษา",
    "Привет мир Ωmega \U0001f600\U0001f1e9\U0001f1ea e\u0301",
    "   leading and trailing   ",
    "\n  \n\t x \u2028 y \u0085 z   \n",
    " 12 345 6789 A1B2C3 'tis 'S 'll '' \"\" ... !!!??? @user #tag/path",
)


def find_split(name: str | None) -> Split | None:
    """llama.cpp's pre-tokenizer of that name, None if unknown; without a name its default."""
    return _BY_NAME.get(name or "default")


def pre_tokenizer(split: Split) -> dict[str, Any]:
    """A pre-tokenizer as in `tokenizer.json`."""
    steps = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in split.patterns
    ]
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*steps, to_bytes]}


def name_split(data: dict[str, Any]) -> str | None:
    """llama.cpp's name for the pre-tokenizer of a byte-level `tokenizer.json`; None if it has none.

    Found by its output on a few texts: the same pieces, else the same ids.
    """
    whole_first = bool(data["model"].get("ignore_merges"))
    own = _pieces(data.get("pre_tokenizer"))
    for name, split in SPLITS.items():
        if split.whole_first == whole_first and _pieces(pre_tokenizer(split)) == own:
            return name
    wanted = _ids(data)
    for name, split in SPLITS.items():
        model = data["model"] | {"ignore_merges": split.whole_first}
        if _ids(data | {"pre_tokenizer": pre_tokenizer(split), "model": model}) == wanted:
            return name
    return None


def split_of(tokenizer: Tokenizer) -> str:
    """The name of a tokenizer's pre-tokenizer: llama.cpp's, `sentencepiece`, or `of its own`."""
    if tokenizer.pieces is None:
        return "llama-bpe"
    data = json.loads(tokenizer.pieces)
    return name_split(data) or "of its own" if is_byte_level(data) else "sentencepiece"


def _pieces(step: dict[str, Any] | None) -> list[list[str]]:
    empty: dict[str, Any] = {
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        "pre_tokenizer": step,
        "added_tokens": [],
    }
    cut = tokenizers.Tokenizer.from_str(json.dumps(empty)).pre_tokenizer
    return [[piece for piece, _ in cut.pre_tokenize_str(text)] if cut else [text] for text in _PROBES]


def _ids(data: dict[str, Any]) -> Iterable[list[int]]:
    plain = data | {"added_tokens": [], "post_processor": None, "normalizer": None}
    encode = tokenizers.Tokenizer.from_str(json.dumps(plain)).encode
    return [encode(text, add_special_tokens=False).ids for text in _PROBES]
