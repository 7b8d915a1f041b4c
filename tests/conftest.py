"""What every test may use: the shared real data, and one thread of arithmetic so that figures repeat."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

os.environ.setdefault("HERD_QUIET", "1")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

settings.register_profile("no hurry", settings(), deadline=None)  # a busy machine is no fault
settings.load_profile("no hurry")

ROOT = Path(__file__).resolve().parent.parent
SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; tests that need it are skipped where it is not there."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the shared data folder (../shared/data) is not here")
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
def small_demo(tmp_path_factory) -> Path:
    """Where `herd demo` has gone through the whole story once: `pages/` as a user would have them, and `runs/demo/`."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "pages").mkdir()
    modules = (
        "argparse ast base64 calendar cmd code codecs configparser csv datetime difflib dis email enum fileinput gzip "
        "glob graphlib hashlib heapq hmac inspect json keyword locale logging mailbox netrc operator pathlib pickle"
    )
    pydoc = [sys.executable, "-m", "pydoc", "-w", *modules.split()]
    subprocess.run(pydoc, cwd=folder / "pages", check=True, capture_output=True)
    demo = [sys.executable, "-m", "herd", "demo", "pages=pages", "pretrain_tokens=30000"]
    subprocess.run(demo, cwd=folder, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True)
    return folder


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
