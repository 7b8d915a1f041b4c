"""What every test may use: the shared real data, and one thread of arithmetic so that figures repeat."""

import importlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # several of us share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HERD_QUIET", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("no hurry", settings(), deadline=None)  # a busy machine is no fault
settings.load_profile("no hurry")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a CUDA device its tests are skipped, and say so."""
    chosen = [item for item in items if item.get_closest_marker("gpu")]
    if chosen and not importlib.import_module("torch").cuda.is_available():
        for item in chosen:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it skip without it, or fail where CI has it."""
    if not SHARED_DATA.is_dir():
        stop = pytest.fail if "HERD_SHARED_DATA" in os.environ else pytest.skip
        stop(f"the shared data folder {SHARED_DATA} is not here")
    return SHARED_DATA


class BaseModel(NamedTuple):
    """A real Llama that nobody here made: SmolLM2-135M-Instruct, at 4 bits, and the same numbers in float32."""

    file: Path
    folder: Path


@pytest.fixture(scope="session")
def base_model() -> BaseModel:
    """SmolLM2-135M-Instruct as `make base-model` leaves it; tests that need it are skipped where it is not there."""
    place = Path(os.environ.get("HERD_BASE_MODEL") or Path(__file__).resolve().parent.parent.parent / "base-model")
    found = BaseModel(place / "SmolLM2-135M-Instruct.Q4_1.gguf", place / "SmolLM2-135M-Instruct")
    if not (found.file.is_file() and found.folder.is_dir()):
        pytest.skip("the base model is not here: make base-model")
    return found


@pytest.fixture(scope="session")
def sentencepiece_style(tmp_path_factory):
    """A vocabulary as Llama 1 and 2 have it: pieces with a space mark, bytes as a last resort."""
    import tokenizers

    from tests.tokenizer.wild import TEXTS

    model = tokenizers.models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    built = tokenizers.Tokenizer(model)
    prepend, replace = tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")
    built.normalizer = tokenizers.normalizers.Sequence([prepend, replace])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, special_tokens=special, show_progress=False)
    built.train_from_iterator([line for text in TEXTS[:2] for line in text.splitlines()], trainer)
    data = json.loads(built.to_str())
    data["added_tokens"] = data["added_tokens"][:3]
    folder = tmp_path_factory.mktemp("llama2")
    (folder / "tokenizer.json").write_text(json.dumps(data))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    return folder
