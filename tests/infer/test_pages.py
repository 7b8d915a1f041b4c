import re
from pathlib import Path

import pytest
import torch

from herd.infer import pages
from herd.infer.engine import quantize_layers
from tests.infer.models import tiny_model


@pytest.fixture(autouse=True)
def large_pages(monkeypatch):
    monkeypatch.setattr(pages, "_system_has_them", lambda: hasattr(pages.mmap, "MADV_HUGEPAGE"))
    if not pages._system_has_them():
        pytest.skip("this system has no advice about large pages")


@pytest.mark.parametrize("scheme", [None, "int8", "int4"])
def test_moved_weights_are_the_same_numbers_at_another_place(scheme):
    model = tiny_model(tie_word_embeddings=True).bfloat16()
    if scheme is not None:
        quantize_layers(model, scheme)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    places = {name: tensor.data_ptr() for name, tensor in model.state_dict().items() if tensor.ndim == 2}
    assert pages.move_to_large_pages(model)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(after[name].data_ptr() != place for name, place in places.items())
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()  # still one


def test_the_room_is_given_in_large_pages_where_the_system_has_them():
    if not pages._system_has_them() or "[never]" in pages._SETTING.read_text():
        pytest.skip("this system has no large pages")
    room = pages._large_pages(16 * 2**20)
    room.zero_()
    mappings = Path("/proc/self/smaps").read_text().split("VmFlags:")
    mine = next(m for m in mappings if _holds(m, room.data_ptr()))
    assert int(re.search(r"AnonHugePages:\s+(\d+)", mine)[1]) >= 8 * 1024  # kB: most of it


def _holds(mapping: str, address: int) -> bool:
    found = re.search(r"^([0-9a-f]+)-([0-9a-f]+) ", mapping, re.MULTILINE)
    return found is not None and int(found[1], 16) <= address < int(found[2], 16)


def test_weights_stay_where_they_are_when_memory_is_short(monkeypatch):
    monkeypatch.setattr(pages, "available_memory", lambda device: 100_000)
    model = tiny_model()
    before = model.model.embed_tokens.weight.data_ptr()
    assert not pages.move_to_large_pages(model)
    assert model.model.embed_tokens.weight.data_ptr() == before
