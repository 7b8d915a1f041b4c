// Real clients talk to a server: `node talks.mjs NAME URL` prints as JSON what one of them was told (see talks.py).
import { z } from "zod";

const [name, url] = process.argv.slice(2);
process.env.OPENAI_BASE_URL = `${url}/v1`;
process.env.OPENAI_API_KEY = process.env.ANTHROPIC_API_KEY = "none";
process.env.ANTHROPIC_BASE_URL = name === "ai_anthropic" ? `${url}/v1` : url;

const ASK = "Say hello.", WEATHER = "How is the weather in Rome? Use the tool.";
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const described = { name: "get_weather", description: "The weather in a city." };
const getWeather = ({ city }) => {
  if (city !== "Rome") throw new Error(city);
  return "seventeen degrees";
};
const person = z.object({ name: z.string().max(8), age: z.number().int().min(0).max(99) });
const user = (content) => ({ role: "user", content });

async function gathered(stream, textOf) {
  let text = "";
  for await (const part of stream) text += textOf(part) ?? "";
  return text;
}

const talks = {
  async openai() {
    const { OpenAI } = await import("openai");
    const { zodTextFormat } = await import("openai/helpers/zod");
    const client = new OpenAI();
    const text = (await client.responses.create({ model: "tiny", input: ASK })).output_text;
    const events = await client.responses.create({ model: "tiny", input: ASK, stream: true });
    const stream = await gathered(events, (event) => (event.type === "response.output_text.delta" ? event.delta : ""));
    const tools = [{ type: "function", function: { ...described, parameters } }], messages = [user(WEATHER)];
    const first = (await client.chat.completions.create({ model: "tiny", messages, tools })).choices[0].message;
    const [call] = first.tool_calls;
    messages.push(first, { role: "tool", tool_call_id: call.id, content: getWeather(JSON.parse(call.function.arguments)) });
    const tool = (await client.chat.completions.create({ model: "tiny", messages, tools })).choices[0].message.content;
    const format = zodTextFormat(person, "person");
    const form = (await client.responses.parse({ model: "tiny", input: ASK, text: { format } })).output_parsed;
    return { text, stream, tool, form };
  },

  async ai(model) {
    const { generateText, streamText, Output, tool, stepCountIs } = await import("ai");
    model ??= (await import("@ai-sdk/openai")).openai("tiny");
    const text = (await generateText({ model, prompt: ASK })).text;
    const stream = await gathered(streamText({ model, prompt: ASK }).textStream, (part) => part);
    const inputSchema = z.object({ city: z.string() });
    const tools = { get_weather: tool({ description: described.description, inputSchema, execute: getWeather }) };
    const called = await generateText({ model, prompt: WEATHER, tools, stopWhen: stepCountIs(3) });
    const output = Output.object({ schema: person });
    const form = model.provider.startsWith("anthropic") ? null : (await generateText({ model, prompt: ASK, output })).output;
    return { text, stream, tool: called.text, form };
  },

  async ai_anthropic() {
    return talks.ai((await import("@ai-sdk/anthropic")).anthropic("tiny"));
  },

  async anthropic() {
    const { default: Anthropic } = await import("@anthropic-ai/sdk");
    const client = new Anthropic(), more = { model: "tiny", max_tokens: 100 };
    const text = (await client.messages.create({ ...more, messages: [user(ASK)] })).content[0].text;
    const stream = await client.messages.stream({ ...more, messages: [user(ASK)] }).finalText();
    const tools = [{ ...described, input_schema: parameters }], messages = [user(WEATHER)];
    const first = await client.messages.create({ ...more, messages, tools });
    const [call] = first.content;
    const result = { type: "tool_result", tool_use_id: call.id, content: getWeather(call.input) };
    messages.push({ role: "assistant", content: first.content }, user([result]));
    const tool = (await client.messages.create({ ...more, messages, tools })).content[0].text;
    return { text, stream, tool, form: null };
  },

  async langchain() {
    const { ChatOpenAI } = await import("@langchain/openai");
    const { tool } = await import("@langchain/core/tools");
    const model = new ChatOpenAI({ model: "tiny" });
    const text = (await model.invoke(ASK)).content;
    const stream = await gathered(await model.stream(ASK), (chunk) => chunk.content);
    const weather = tool(getWeather, { ...described, schema: z.object({ city: z.string() }) });
    const [call] = (await model.bindTools([weather]).invoke(WEATHER)).tool_calls;
    const form = await model.withStructuredOutput(person).invoke(ASK);
    return { text, stream, tool: await weather.invoke(call.args), form };
  },
};

console.log(JSON.stringify(await talks[name]()));
