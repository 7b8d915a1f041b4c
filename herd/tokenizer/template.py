"""The chat template that travels with a tokenizer, for readers other than Herd (`transformers`, vLLM)."""

META_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
{%- set role = "ipython" if message.role == "tool" else message.role %}
{{- "<|start_header_id|>" + role + "<|end_header_id|>\\n\\n" }}
{{- message.content or "" }}
{%- set goes_on = role == "assistant" and loop.nextitem is defined and loop.nextitem.role == "assistant" %}
{{- "<|eom_id|>" if goes_on else "<|eot_id|>" }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- "<|start_header_id|>assistant<|end_header_id|>\\n\\n" }}
{%- endif %}
"""
"""Llama 3's bare format: what `herd.tokenizer.chat.render` writes in style `meta`."""
