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
# Magistral's manner: a thought is a block of the content, and its marks are in brackets.
BRACKETS = (
    "{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]"
    "{% elif m.content is string %}{{ m.content }}<|im_end|>{% else %}"
    "{% for block in m.content %}{% if block.type == 'thinking' %}[THINK]{{ block.thinking }}"
    "[/THINK]{% else %}{{ block.text }}{% endif %}{% endfor %}<|im_end|>{% endif %}{% endfor %}"
)
# gpt-oss's: a turn is a message to one of several channels, and a thought one before the last.
CHANNELS = (
    "{% for m in messages %}{% if m.role == 'user' %}<|start|>user<|message|>{{ m.content }}<|end|>"
    "{% else %}{% if loop.last and m.thinking %}<|start|>assistant<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|end|>{% endif %}<|start|>assistant<|channel|>final<|message|>{{ m.content }}"
    "{% if loop.last %}<|return|>{% else %}<|end|>{% endif %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
# Marks that no other model has, found by how the template writes a message with a thought.
OWN_MARKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}(musing:) "
    "{{ m.reasoning_content }} (:done) {% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
