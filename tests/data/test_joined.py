"""Responses behind one another in one document: the same comparisons, read where each response ends."""

import json

from herd.data.joined import joined
from herd.data.loader import PackedLoader, Phase
from herd.data.preferences import load_pairs
from herd.tokenizer.chat import render
from tests.post.models import small_tokenizer

ROWS = [
    {"prompt": "What does it do?", "chosen": "It opens a file.", "rejected": "Nothing.", "edited": "Open the thing."},
    {"prompt": "Which parameters", "chosen": "path", "rejected": "mode and much more"},
]


def test_every_response_ends_where_its_own_terminator_stands_and_none_is_lost(tmp_path):
    file, tokenizer = tmp_path / "pairs.jsonl", small_tokenizer()
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    apart = load_pairs(file, tokenizer, 256)
    found = joined(apart)
    assert len(found) == 2
    for row, index in zip(ROWS, range(2)):
        tokens = found.documents.tokens(index).tolist()
        names = [name for name in ("edited", "chosen", "rejected") if name in row]
        prompt = [{"role": "user", "content": row["prompt"]}]
        for name, end in zip(names, found.ends[index], strict=True):
            whole = render(tokenizer, [*prompt, {"role": "assistant", "content": row[name]}]).tokens
            asked = render(tokenizer, prompt, generation_prompt=True).tokens
            answer = whole[len(asked) :]
            assert tokens[end + 1 - len(answer) : end + 1] == answer
        assert tokens[: len(asked)] == asked
    assert found.documents.num_tokens.sum() < apart.documents.num_tokens.sum()
    phase = Phase(batch_tokens=256, row_tokens=256, mixture={"pairs": 1.0})
    batch = PackedLoader({"pairs": found.documents}, [phase], columns=found.reward_columns).batches(0)[0]
    better, worse = batch.columns["better"], batch.columns["worse"]
    assert len(better) == len(worse) == 4  # three comparisons of the first, one of the second
    assert all(batch.tokens[row, place] == tokenizer.eot_id for row, place in [*better.tolist(), *worse.tolist()])
