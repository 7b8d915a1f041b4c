"""A small tokenizer of our own, and Llama 3's where the shared data lies beside the checkout."""

import pytest

from herd.formats.vocabulary import open_tokenizer
from herd.tokenizer import Tokenizer
from herd.tokenizer.chat import in_format
from tests.tokenizer.wild import TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 1500)


@pytest.fixture(scope="session")
def llama(shared_data) -> Tokenizer:
    return in_format(open_tokenizer(shared_data / "llama3" / "tokenizer.model"), "llama3")
