import gc
import re
import threading
from pathlib import Path

import pytest
import torch

from herd.formats.checkpoint import save
from herd.infer import pages
from herd.infer.build import quantize_layers
from herd.infer.engine import Engine
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer, tiny_model


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
    assert moved(model)
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


def test_an_engine_answers_from_the_files_until_the_weights_have_moved(tmp_path):
    save(tiny_model().bfloat16(), tmp_path, small_tokenizer(), dtype=torch.bfloat16)
    engine = Engine(tmp_path)
    place = engine.model.model.embed_tokens.weight.data_ptr
    before, params = place(), SamplingParams(temperature=0, max_tokens=20)
    pieces = engine.stream("The quick", params)
    next(pieces)
    assert place() == before  # the first token has waited for nothing
    engine.warm_up()
    assert place() != before
    text = engine.generate("The quick", params).text
    "".join(piece.text for piece in pieces)  # goes on in the middle
    assert text == Engine(tmp_path).generate("The quick", params).text


def test_float32_matrices_lie_turned_for_small_batches_and_stay_so_when_they_move(tmp_path):
    model = tiny_model()
    save(model, tmp_path, small_tokenizer())
    engine, params = Engine(tmp_path), SamplingParams(temperature=0, max_tokens=20)
    asked = ["The quick", "An open door"]
    expected = [answer.text for answer in Engine.of(model, small_tokenizer()).generate(asked, params)]
    for _ in range(2):
        weight = engine.model.model.layers[0].mlp.down_proj.weight
        assert weight.t().is_contiguous() and not weight.is_contiguous()
        assert torch.equal(weight, model.model.layers[0].mlp.down_proj.weight)
        assert [answer.text for answer in engine.generate(asked, params)] == expected
        engine.warm_up()


def test_weights_that_answers_must_not_depend_on_the_place_of_stay(tmp_path):
    save(tiny_model(), tmp_path, small_tokenizer())
    engine = Engine(tmp_path, deterministic=True)
    before = engine.model.model.embed_tokens.weight.data_ptr()
    engine.generate("The quick", SamplingParams(max_tokens=3))
    engine.warm_up()
    assert engine.model.model.embed_tokens.weight.data_ptr() == before


def test_weights_stay_ordinary_tensors_and_where_they_are_if_there_is_no_room(monkeypatch):
    model = tiny_model()
    with torch.inference_mode():
        assert moved(model)
    assert not model.model.embed_tokens.weight.is_inference()

    def refuse(*_, **__):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(pages.mmap, "mmap", refuse)
    assert not moved(model)


def test_weights_that_were_exchanged_meanwhile_stay(monkeypatch):
    model = tiny_model()
    moving = pages.PageCopy.begin(model)
    newer = torch.zeros_like(model.model.embed_tokens.weight)
    model.model.embed_tokens.weight.data = newer
    moving.wait()
    assert moving.settle()
    assert model.model.embed_tokens.weight.data_ptr() == newer.data_ptr()
    assert model.model.layers[0].self_attn.q_proj.weight.data_ptr() in {
        tensor.data_ptr() for tensor in moving._moved.values()
    }


def test_copying_stops_when_the_model_is_gone(monkeypatch):
    model = tiny_model()
    begun, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(pages.PageCopy, "_copy_one", lambda *_: begun.set() or (go_on.wait(20) and False))
    moving = pages.PageCopy.begin(model)
    assert begun.wait(20)
    del model
    gc.collect()
    go_on.set()
    moving.wait()
    assert not moving.settle() and not moving._moved


def moved(model):
    """Whether a model's weights could be moved, and have been."""
    moving = pages.PageCopy.begin(model)
    if moving is None:
        return False
    moving.wait()
    return moving.settle()


def _holds(mapping: str, address: int) -> bool:
    found = re.search(r"^([0-9a-f]+)-([0-9a-f]+) ", mapping, re.MULTILINE)
    return found is not None and int(found[1], 16) <= address < int(found[2], 16)


def test_weights_stay_where_they_are_when_memory_is_short(monkeypatch):
    monkeypatch.setattr(pages, "available_memory", lambda device: 100_000)
    model = tiny_model()
    before = model.model.embed_tokens.weight.data_ptr()
    assert not moved(model)
    assert model.model.embed_tokens.weight.data_ptr() == before
