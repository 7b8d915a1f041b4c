"""Chat templates: that of Herd's own tokenizers, and those of named formats."""

META_TEMPLATE = """\
{{- bos_token }}
{%- if tools %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nEnvironment: ipython" }}
{%- if messages[0].role == "system" %}
{{- "\\n\\n" + messages[0].content if messages[0].content }}
{%- set messages = messages[1:] %}
{%- endif %}
{{- "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
{%- set role = "ipython" if message.role == "tool" else message.role %}
{%- set goes_on = role == "assistant" and loop.nextitem is defined and loop.nextitem.role == "assistant" %}
{{- "<|start_header_id|>" + role + "<|end_header_id|>\\n\\n" }}
{%- if tools and loop.first %}
{%- if role != "user" %}
{{- raise_exception("tools are announced in the first user message, and the conversation does not open with one") }}
{%- endif %}
{{- "Answer the user's question by making use of the following functions if needed.\\n" }}
{{- "If none of the function can be used, please say so.\\nHere is a list of functions in JSON format:\\n" }}
{%- for tool in tools %}
{%- set told = tool.function or tool %}
{%- set parameters = told.parameters or {"type": "object", "properties": {}} %}
{%- set told = {"name": told.name, "description": told.description or "", "parameters": parameters} %}
{{- {"type": "function", "function": told} | tojson(indent=4) + "\\n" }}
{%- endfor %}
{{- "Return function calls in JSON format.\\n\\n" }}
{%- endif %}
{%- if message.tool_calls and message.tool_calls | length > 1 %}
{{- raise_exception("only one tool call fits into a message of this format") }}
{%- endif %}
{%- if role == "assistant" %}
{%- generation %}
{{- message.content or "" }}
{%- if message.tool_calls %}
{%- set call = message.tool_calls[0].function or message.tool_calls[0] %}
{{- "<|python_tag|>" }}
{%- if call.name == "code_interpreter" %}
{{- call.arguments.code }}
{%- elif call.name in ("brave_search", "wolfram_alpha", "photogen") %}
{{- call.name + '.call(query="' + call.arguments.query + '")' }}
{%- else %}
{{- {"type": "function", "name": call.name, "parameters": call.arguments} | tojson }}
{%- endif %}
{%- endif %}
{{- "<|eom_id|>" if goes_on or message.tool_calls else "<|eot_id|>" }}
{%- endgeneration %}
{%- else %}
{{- (message.content or "") + "<|eot_id|>" }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
"""Llama 3's format without dates, custom tools in JSON: what `herd.tokenizer.chat.render` writes in style `meta`."""


TEMPLATES = {
    "llama3": META_TEMPLATE,
    "chatml": """\
{%- for message in messages %}
{{- "<|im_start|>" + message.role + "\\n" }}
{%- if message.role == "assistant" %}
{%- generation %}{{ message.content + "<|im_end|>" }}{% endgeneration %}
{%- else %}
{{- message.content + "<|im_end|>" }}
{%- endif %}
{{- "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|im_start|>assistant\\n" }}
{%- endif %}
""",
    "tulu": """\
{{- bos_token }}
{%- for message in messages %}
{{- "<|" + message.role + "|>\\n" }}
{%- if message.role == "assistant" %}
{%- generation %}{{ message.content + eos_token }}{% endgeneration %}
{%- else %}
{{- message.content }}
{%- endif %}
{{- "\\n" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|assistant|>\\n" }}
{%- endif %}
""",
    "vicuna": """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == "assistant" %}
{{- "ASSISTANT: " }}
{%- generation %}{{ message.content + eos_token }}{% endgeneration %}
{%- else %}
{{- ("USER: " if message.role == "user" else "") + message.content + ("\\n\\n" if message.role == "system" else " ") }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "ASSISTANT:" }}
{%- endif %}
""",
}
"""Chat formats by name, for checkpoints without a template."""
