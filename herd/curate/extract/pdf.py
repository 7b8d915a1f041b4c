"""PDF as text, page by page, by pypdf (the extra `pdf`); words that a line's end cuts are put together."""

from __future__ import annotations

import io
import logging
import re

_HYPHEN = re.compile(r"(?<=[^\W\d_])-\n(?=[a-zà-ÿ])")
_MAX_PAGES = 2000


def pdf_text(content: bytes) -> tuple[str, tuple[str, str] | None]:
    """The text of a PDF, or why there is none: reason and detail."""
    pages, problem = pdf_pages(content)
    return "" if problem else "\n\n".join(pages).strip("\n"), problem


def pdf_pages(content: bytes) -> tuple[list[str], tuple[str, str] | None]:
    """The text of each page of a PDF, or why there is none: reason and detail."""
    try:
        import pypdf
    except ImportError:
        return [], ("pdf", "reading PDF needs the package: pip install pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)
    try:
        pages = pypdf.PdfReader(io.BytesIO(content)).pages
        if len(pages) > _MAX_PAGES:
            return [], ("page_size", f"a PDF of {len(pages):,} pages")
        texts = [page.extract_text() for page in pages]
    except Exception as error:  # pypdf raises many kinds for damaged files
        return [], ("pdf", f"damaged: {type(error).__name__}: {str(error)[:100]}")
    return ["\n".join(" ".join(line.split()) for line in _HYPHEN.sub("", text).split("\n")) for text in texts], None
