"""Real clients talk to a server: `python talks.py NAME URL` prints as JSON what one of them was told.

Every client asks for a text, the same as a stream, for the weather by a tool of its own, and for a `Person` by schema,
as far as it can do these, at its default address below the URL. It runs in an environment of its own, without Herd.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pydantic

ASK, WEATHER = "Say hello.", "How is the weather in Rome? Use the tool."


class Person(pydantic.BaseModel):
    """Somebody."""

    name: str = pydantic.Field(max_length=8)
    age: int = pydantic.Field(ge=0, le=99)


def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: Its name.
    """
    assert city == "Rome"
    return "seventeen degrees"


PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
FUNCTION = {"name": "get_weather", "description": "The weather in a city.", "parameters": PARAMETERS}


def openai_chat(url):
    import openai

    client, said = openai.OpenAI(), [{"role": "user", "content": WEATHER}]
    ask, tools = [{"role": "user", "content": ASK}], [{"type": "function", "function": FUNCTION}]
    text = client.chat.completions.create(model="tiny", messages=ask).choices[0].message.content
    chunks = client.chat.completions.create(model="tiny", messages=ask, stream=True)
    stream = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    first = client.chat.completions.create(model="tiny", messages=said, tools=tools).choices[0].message
    call = first.tool_calls[0]
    result = get_weather(**json.loads(call.function.arguments))
    said += [first, {"role": "tool", "tool_call_id": call.id, "content": result}]
    tool = client.chat.completions.create(model="tiny", messages=said, tools=tools).choices[0].message.content
    form = client.chat.completions.parse(model="tiny", messages=ask, response_format=Person).choices[0].message.parsed
    return text, stream, tool, form


def openai_responses(url):
    import openai

    client, tools = openai.OpenAI(), [{"type": "function", "strict": False, **FUNCTION}]
    text = client.responses.create(model="tiny", input=ASK).output_text
    with client.responses.stream(model="tiny", input=ASK) as events:
        stream = "".join(event.delta for event in events if event.type == "response.output_text.delta")
        assert events.get_final_response().output_text == stream
    said = [{"role": "user", "content": WEATHER}]
    first = client.responses.create(model="tiny", input=said, tools=tools)
    call = first.output[0]
    result = get_weather(**json.loads(call.arguments))
    said += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": result}]
    tool = client.responses.create(model="tiny", input=said, tools=tools).output_text
    form = client.responses.parse(model="tiny", input=ASK, text_format=Person).output_parsed
    return text, stream, tool, form


def openai_agents(url):
    import agents

    agents.set_tracing_disabled(True)
    plain = agents.Agent(name="Ann", instructions="Be brief.", model="tiny")
    tooled = agents.Agent(name="Ann", model="tiny", tools=[agents.function_tool(get_weather)])
    formed = agents.Agent(name="Ann", model="tiny", output_type=Person)

    async def talk():
        stream, run = "", agents.Runner.run_streamed(plain, ASK)
        async for event in run.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                stream += event.data.delta
        found = [(await agents.Runner.run(agent, ask)).final_output for agent, ask in asked]
        return found[0], stream, *found[1:]

    asked = ((plain, ASK), (tooled, WEATHER), (formed, ASK))
    return asyncio.run(talk())


def anthropic_messages(url):
    import anthropic

    client, more = anthropic.Anthropic(), {"model": "tiny", "max_tokens": 100}
    ask, said = [{"role": "user", "content": ASK}], [{"role": "user", "content": WEATHER}]
    tools = [{"name": "get_weather", "description": "The weather in a city.", "input_schema": PARAMETERS}]
    assert client.messages.count_tokens(model="tiny", messages=ask).input_tokens > 0
    text = client.messages.create(messages=ask, **more).content[0].text
    with client.messages.stream(messages=ask, **more) as events:
        stream = "".join(events.text_stream)
    with client.messages.stream(messages=said, tools=tools, **more) as events:
        first = events.get_final_message()
    call = first.content[0]
    assert first.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": call.id, "content": get_weather(**call.input)}
    said += [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    tool = client.messages.create(messages=said, tools=tools, **more).content[0].text
    return text, stream, tool, None


def langchain_openai(url):
    from langchain_core.messages import HumanMessage, ToolMessage
    from langchain_openai import ChatOpenAI

    model, said = ChatOpenAI(model="tiny"), [HumanMessage(WEATHER)]
    stream = "".join(chunk.text if isinstance(chunk.text, str) else chunk.text() for chunk in model.stream(ASK))
    first = model.bind_tools([get_weather]).invoke(said)
    call = first.tool_calls[0]
    said += [first, ToolMessage(get_weather(**call["args"]), tool_call_id=call["id"])]
    tool = model.bind_tools([get_weather]).invoke(said).content
    return model.invoke(ASK).content, stream, tool, model.with_structured_output(Person).invoke(ASK)


def langchain_anthropic(url):
    from langchain_anthropic import ChatAnthropic

    model = ChatAnthropic(model="tiny", max_tokens=100)
    stream = "".join(chunk.content if isinstance(chunk.content, str) else "" for chunk in model.stream(ASK))
    call = model.bind_tools([get_weather]).invoke(WEATHER).tool_calls[0]
    return model.invoke(ASK).content, stream or None, get_weather(**call["args"]), None


def langgraph(url):
    from langchain_openai import ChatOpenAI
    from langgraph.prebuilt import create_react_agent

    agent = create_react_agent(ChatOpenAI(model="tiny"), [get_weather], name="Ann")
    said = agent.invoke({"messages": [("user", WEATHER)]})["messages"]
    said = agent.invoke({"messages": [*said, ("user", ASK)]})["messages"]  # with the name that it gave itself
    return None, None, said[-3].content, None


def autogen(url):
    from autogen_agentchat.agents import AssistantAgent
    from autogen_ext.models.openai import OpenAIChatCompletionClient

    abilities = {"vision": False, "function_calling": True, "json_output": True, "structured_output": True}
    client = OpenAIChatCompletionClient(model="tiny", model_info=abilities | {"family": "unknown"})
    tooled = AssistantAgent("Ann", client, tools=[get_weather], reflect_on_tool_use=True, model_client_stream=True)
    formed = AssistantAgent("Ben", client, output_content_type=Person)

    async def talk():
        tool = (await tooled.run(task=WEATHER)).messages[-1].content
        form = (await formed.run(task=ASK)).messages[-1].content
        return None, None, tool, form

    return asyncio.run(talk())


def litellm(url):
    import litellm

    ask = [{"role": "user", "content": ASK}]
    text = litellm.completion(model="openai/tiny", messages=ask).choices[0].message.content
    chunks = litellm.completion(model="openai/tiny", messages=ask, stream=True)
    stream = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    tools = [{"type": "function", "function": FUNCTION}]
    said = [{"role": "user", "content": WEATHER}]
    first = litellm.completion(model="anthropic/tiny", messages=said, tools=tools, api_base=url).choices[0].message
    tool = get_weather(**json.loads(first.tool_calls[0].function.arguments))
    return text, stream, tool, None


def pydantic_ai(url):
    import pydantic_ai

    tooled = pydantic_ai.Agent("openai-responses:tiny", tools=[get_weather])
    plain = pydantic_ai.Agent("openai-chat:tiny", instructions="Be brief.")
    formed = pydantic_ai.Agent("openai-chat:tiny", output_type=pydantic_ai.NativeOutput(Person))

    async def streamed():
        async with pydantic_ai.Agent("anthropic:tiny").run_stream(ASK) as run:
            return [text async for text in run.stream_text()][-1]

    text, stream = plain.run_sync(ASK).output, asyncio.run(streamed())
    return text, stream, tooled.run_sync(WEATHER).output, formed.run_sync(ASK).output


def smolagents(url):
    import smolagents

    model = smolagents.OpenAIModel("tiny", api_base=f"{url}/v1", api_key="none")
    agent = smolagents.ToolCallingAgent([smolagents.tool(get_weather)], model, max_steps=3, verbosity_level=0)
    ask = [{"role": "user", "content": [{"type": "text", "text": ASK}]}]
    stream = "".join(part.content or "" for part in model.generate_stream(ask))
    return model.generate(ask).content, stream, agent.run(WEATHER), None


def dspy(url):
    import dspy

    dspy.configure(lm=dspy.LM("openai/tiny", api_base=f"{url}/v1", api_key="none", cache=False, max_tokens=200))
    return dspy.Predict("question -> answer")(question=ASK).answer, None, None, None


def instructor(url):
    import instructor
    import openai

    ask, formed = [{"role": "user", "content": ASK}], None
    for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
        client = instructor.from_openai(openai.OpenAI(), mode=mode)
        formed = client.chat.completions.create(model="tiny", messages=ask, response_model=Person, max_retries=0)
    return None, None, None, formed


def guidance(url):
    import guidance

    found = guidance.models.OpenAI("tiny", api_key="none", base_url=f"{url}/v1")
    with guidance.user():
        found += ASK
    with guidance.assistant():
        found += guidance.gen(name="text", max_tokens=50)
    return found["text"], None, None, None


if __name__ == "__main__":
    name, url = sys.argv[1:]
    os.environ |= {"OPENAI_BASE_URL": f"{url}/v1", "OPENAI_API_KEY": "none", "OPENAI_API_BASE": f"{url}/v1"}
    os.environ |= {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_URL": url, "ANTHROPIC_API_KEY": "none"}
    text, stream, tool, form = globals()[name](url)
    form = form.model_dump() if isinstance(form, pydantic.BaseModel) else form
    print(json.dumps({"text": text, "stream": stream, "tool": tool, "form": form}))
