"""Answers from a model in shards: gathered whole, asked, trained on, gathered again."""

import json
from functools import partial

import pytest
import torch
import torch.distributed as dist

from herd.infer.engine import Engine
from herd.parallel.layout import check
from herd.parallel.mesh import Mesh
from herd.parallel.model import ParallelModel
from herd.parallel.settings import ParallelSettings
from herd.train.lora import adapt, merged_model
from herd.types import SamplingParams
from tests.infer.models import small_tokenizer
from tests.parallel.processes import LORA, run_on_meshes, shape, whole_model

GREEDY = SamplingParams(temperature=0, max_tokens=12)
PROMPT = "The quick brown fox jumps over the lazy dog, and what does this function do?"
CONFIG = shape(vocab_size=small_tokenizer().vocab_size, max_position_embeddings=128)
MESHES = [
    (ParallelSettings(shard=2), None),
    (ParallelSettings(tensor=2), None),
    (ParallelSettings(pipeline=2), None),
    (ParallelSettings(replicas=2), None),
    (ParallelSettings(context=2), None),
    (ParallelSettings(shard=2), LORA),
]


def model_of(seed, lora):
    model = whole_model(CONFIG, lora)
    for number, parameter in enumerate(model.parameters()):
        if parameter.ndim == 2:
            parameter.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(100 * seed + number))
    return model.eval()


def asked(settings, lora, folder):
    adapted = {} if lora is None else {"adapt": partial(adapt, options=lora)}
    mesh = Mesh(check(CONFIG, settings, dist.get_world_size(), row_tokens=32))
    model = ParallelModel(CONFIG, settings, mesh, torch.float32, **adapted).materialize()
    model.fill(model_of(1, lora).named_parameters())
    whole = model.gather()
    engine = Engine.of(whole, small_tokenizer(), cache_bytes=2**22)
    found = {"first": engine.generate(PROMPT, GREEDY).tokens}
    given = dict(model_of(1, lora).named_parameters())
    same = {name: torch.equal(parameter, given[name]) for name, parameter in whole.named_parameters()}
    model.fill(model_of(2, lora).named_parameters())
    model.gather(into=whole)
    engine.weights_changed()
    found["second"] = engine.generate(PROMPT, GREEDY).tokens
    (folder / f"answers-{dist.get_rank()}.json").write_text(json.dumps(found | {"same": all(same.values())}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return run_on_meshes([(2, asked, case) for case in MESHES], tmp_path_factory.mktemp("gathered"))


def alone(seed, lora):
    model = model_of(seed, lora)
    model = model if lora is None else merged_model(model)
    return Engine.of(model, small_tokenizer(), cache_bytes=2**22).generate(PROMPT, GREEDY).tokens


@pytest.mark.parametrize("case", range(len(MESHES)))
def test_every_process_answers_as_the_whole_model_before_and_after_a_change(case, folders):
    lora = MESHES[case][1]
    for rank in range(2):
        found = json.loads((folders[case] / f"answers-{rank}.json").read_text())
        assert found["same"]
        assert found["first"] == alone(1, lora)
        assert found["second"] == alone(2, lora) != found["first"]
