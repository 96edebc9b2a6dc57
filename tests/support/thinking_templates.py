"""Chat templates of models that think, minimal and of our own, in the manner of public ones."""

START = "<|im_start|>"
END = "<|im_end|>\n"
EMPTY = "<think>\n\n</think>\n\n"
ANSWERED = (
    "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}<|im_start|>assistant\n"
    "<think>\n\n</think>\n\n{{ m.content }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)
SWITCH = "enable_thinking is defined and enable_thinking is false"
# A finished answer has an empty thought, and so has the prompt where thinking is switched off.
CLOSING = (
    ANSWERED + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if " + SWITCH + " %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
# The prompt opens the thought, or has an empty one where thinking is switched off.
OPENING = (
    ANSWERED + "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if " + SWITCH + " %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}{% endif %}"
)
# The prompt opens a thought, there is no switch, and history is written without thoughts.
DROPPING = (
    "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>{{ m.content }}"
    "{% elif m.role == 'assistant' %}<|im_start|>a {{ m.content.split('</think>')[-1] }}<|im_end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>a <think>\n{% endif %}"
)
# The prompt closes a thought that it never opened, where there is to be none.
BARE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>a </think>{{ m.content }}"
    "<|im_end|>{% else %}<|im_start|>u {{ m.content }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a "
    "{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
)
TEMPLATES = {"closing": CLOSING, "opening": OPENING, "dropping": DROPPING, "bare": BARE}
