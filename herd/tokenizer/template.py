"""The chat template that travels with a tokenizer, for readers other than Herd (`transformers`, vLLM)."""

META_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- set role = "ipython" if message.role == "tool" else message.role %}
{%- set goes_on = role == "assistant" and loop.nextitem is defined and loop.nextitem.role == "assistant" %}
{{- "<|start_header_id|>" + role + "<|end_header_id|>\\n\\n" }}
{{- message.content or "" }}
{%- if message.tool_calls %}
{%- set goes_on = true %}
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
{{- "<|eom_id|>" if goes_on else "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
"""Llama 3's bare format: what `herd.tokenizer.chat.render` writes in style `meta`."""
