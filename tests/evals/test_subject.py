"""Who is asked: what does not fit into the context is told apart from every other refusal."""

import pytest

from herd.errors import RequestError
from herd.evals.subject import Endpoint, TooLong
from herd.infer.engine import Engine
from herd.serve.app import create_app
from herd.types import SamplingParams
from tests.post.models import small_tokenizer, tiny_model
from tests.serve.conftest import listening


def test_an_endpoints_refusal_of_a_long_prompt_costs_that_prompt_alone():
    engine = Engine.of(tiny_model(), small_tokenizer())
    params = SamplingParams(temperature=0, max_tokens=4)
    with listening(create_app(engine, name="tiny")) as address:
        subject = Endpoint(f"{address}/v1")
        long, short = subject.generate(["open " * 300, "Open the thing"], params)
        assert isinstance(long, TooLong) and "context" in long.why
        assert short == engine.generate("Open the thing", params).text
        assert all(isinstance(one, TooLong) for one in subject.generate(["open " * 300], params))
        with pytest.raises(RequestError):
            subject.generate(["Open"], SamplingParams(temperature=0, max_tokens=4, adapter="none"))
