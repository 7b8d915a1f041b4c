"""Eleven small chat templates with the constructs of published families, and conversations to put through them."""

# ruff: noqa: E501 - templates are written as publishers write them

TEMPLATES = {
    "chatml": """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a helpful assistant.<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}""",
    "tulu": """{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ '<|system|>\n' + \
message['content'] + '\n' }}{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}\
{% elif message['role'] == 'assistant' %}{% if not loop.last %}{{ '<|assistant|>\n' + message['content'] + eos_token + \
'\n' }}{% else %}{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}{% endif %}\
{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}""",
    "hermes": """{{ bos_token }}
{%- macro described(tool) -%}
    {{- '{"type": "function", "function": ' + (tool.function | tojson) + '}' }}
{%- endmacro %}
{%- if tools %}
    {{- "<|im_start|>system\n" }}
    {%- if messages[0].role == "system" %}
        {{- messages[0].content + "\n\n" }}
    {%- endif %}
    {{- "Tools: <tools>" }}
    {%- for tool in tools %}
        {{- "\n" + described(tool) }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == "tool" %}
        {%- if loop.previtem and loop.previtem.role != "tool" %}
            {{- "<|im_start|>tool\n" }}
        {%- endif %}
        {{- "<tool_response>\n" ~ message.content ~ "\n</tool_response>" }}
        {%- if loop.last or loop.nextitem.role != "tool" %}
            {{- "<|im_end|>\n" }}
        {%- else %}
            {{- "\n" }}
        {%- endif %}
    {%- elif message.role == "assistant" and message.tool_calls is defined %}
        {{- "<|im_start|>assistant" }}
        {%- for call in message.tool_calls %}
            {%- if call.function is defined %}{% set call = call.function %}{% endif %}
            {{- '\n<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' ~ call.arguments | tojson ~ '}\n</tool_call>' }}
        {%- endfor %}
        {{- "<|im_end|>\n" }}
    {%- elif not (tools and loop.first and message.role == "system") %}
        {{- "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "<|im_start|>assistant\n" }}
{%- endif %}
""",
    "r1": """{% set ns = namespace(system='', is_tool=false) %}{%- for message in messages %}{%- if message['role'] == \
'system' %}{% set ns.system = message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system }}\
{%- for message in messages %}{%- if message['role'] == 'user' %}{{ '<|User|>' + message['content'] }}{%- endif %}\
{%- if message['role'] == 'assistant' and message['content'] %}{% set content = message['content'] %}\
{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}\
{{ '<|Assistant|>' + content + eos_token }}{%- endif %}{%- endfor %}\
{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}""",
    "llama2": """{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}\
{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}\
{% if loop.index0 == 0 and system_message != false %}\
{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% else %}\
{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}\
{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}\
{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}""",
    "vicuna": """{{ bos_token }}{% for message in messages %}{% if message.role == 'system' %}{{ message.content + ' ' }}\
{% elif message.role == 'user' %}{{ 'USER: ' + message.content + ' ' }}{% elif message.role == 'assistant' %}\
{{ 'ASSISTANT: ' + message.content + eos_token }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}""",
    "mistral": """{%- if messages[0].role == "system" %}{%- set system = messages[0].content %}\
{%- set rest = messages[1:] %}{%- else %}{%- set rest = messages %}{%- endif %}
{%- if tools is not defined %}{%- set tools = none %}{%- endif %}
{%- set asked = rest | selectattr("role", "equalto", "user") | list %}
{{- bos_token }}
{%- for message in rest %}
    {%- if message.role == "user" %}
        {%- if tools is not none and message == asked[-1] %}
            {{- "[AVAILABLE_TOOLS] " + tools | tojson(indent=2) + "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system is defined %}
            {{- "[INST] " + system + "\n\n" + message.content + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message.content + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls %}
        {{- "[TOOL_CALLS] [" }}
        {%- for call in message.tool_calls %}
            {{- (call.function | tojson)[:-1] + (", " if not loop.last else "}]") }}
        {%- endfor %}
        {{- eos_token }}
    {%- elif message.role == "assistant" %}
        {{- " " + message.content | trim + eos_token }}
    {%- elif message.role == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + "}[/TOOL_RESULTS]" }}
    {%- else %}
        {{- raise_exception("Only user, assistant and tool roles are known") }}
    {%- endif %}
{%- endfor %}
""",
    "gemma": """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}\
{% endif %}{% for message in messages %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}\
{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + \
'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}""",
    "phi": """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}\
{{ '<|im_start|>system\n' + message['content'] + '<|END|>\n' }}{% elif message['role'] == 'user' %}\
{{ '<|im_start|>user\n' + message['content'] + '<|END|>\n' }}{% elif message['role'] == 'assistant' %}\
{{ '<|im_start|>assistant\n' + message['content'] + '<|END|>\n' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% else %}{{ eos_token }}{% endif %}""",
    "qwen": """{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}\
{%- endif %}
{%- set ns = namespace(last=messages|length - 1, searching=true) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == "user" %}{%- set ns.searching = false %}{%- set ns.last = index %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- if loop.index0 > ns.last %}
            {{- '<|im_start|>assistant\n<think>\n\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {{- '<|im_start|>user\n<tool_response>\n' + content + '\n</tool_response><|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
""",
    "command": """{{ bos_token }}{%- set today = strftime_now("%d %B %Y") if strftime_now is defined else "" -%}
{{- "<|START|><|SYSTEM|>Today is " + today + "." }}
{%- if documents %}{% for document in documents %}{{ "\nDocument " ~ loop.index0 ~ ": " ~ document.title ~ ": " ~ \
document.text }}{% endfor %}{% endif %}
{%- for message in messages -%}
    {%- if message.role == "system" -%}{{ "\n" + message.content }}{%- continue -%}{%- endif -%}
    {{ "<|END|><|START|><|" + message.role | upper + "|>" }}
    {%- if message.role == "assistant" -%}{%- generation -%}{{ message.content }}{{ "<|END|>" }}{%- endgeneration -%}
    {%- else -%}{{ message.content }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|END|><|START|><|ASSISTANT|>" }}{%- endif -%}
""",
}

SPECIAL = (
    *("<|begin|>", "<|finish|>", "<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<|User|>"),
    *("<|Assistant|>", "<|START|>", "<|END|>", "[INST]", "[/INST]"),
)
VISIBLE = ("<think>", "</think>", "<tool_call>")

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place <in> \u00e9",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
DOCUMENTS = [{"title": "A", "text": "One."}, {"title": "B", "text": "Two & more."}]
SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Is it raining in Paris? \u5df4\u9ece"}
ANSWER = {"role": "assistant", "content": "Yes, it is."}
CALLED = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"type": "function", "id": "a1", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "a1", "content": '{"rain": true}'}
TALKS = {
    "a question": [USER],
    "system": [SYSTEM, USER],
    "turns": [SYSTEM, USER, ANSWER, {"role": "user", "content": "  And tomorrow?\n"}],
    "finished": [USER, ANSWER],
    "finished turns": [
        SYSTEM,
        USER,
        ANSWER,
        USER,
        {"role": "assistant", "content": "No.\nNot <b>at</b> all 'quoted'."},
    ],
    "thinking": [USER, {"role": "assistant", "content": "<think>hm</think>Yes."}, USER],
    "calls": [USER, CALLED, RESULT, ANSWER],
    "a call": [USER, CALLED, RESULT],
}
