"""Chat templates give the same text as transformers, with a loss on the assistant's turns."""

import copy
import json

import jinja2
import pytest

from cli.errors import UserError
from configs.schema import DataConfig
from data.examples import read_examples
from tokenizer.chat import encode_chat

CHAT = [
    {"role": "user", "content": "say <|im_end|> twice"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "why?"},
    {"role": "assistant", "content": "Because."},
]


def test_chat_matches_jinja_and_only_assistant_turns_have_a_loss(foundation, tmp_path):
    _, tokenizer = foundation
    path = tmp_path / "chat.jsonl"
    lines = [{"messages": CHAT, "group": str(n)} for n in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    train_rows, validation_rows = read_examples(path, DataConfig(), tokenizer)
    assert len(train_rows) + len(validation_rows) == 40
    row = train_rows[0]
    raw = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    text = raw.from_string(tokenizer.chat.template).render(messages=CHAT)
    shown = tokenizer.backend.decode(row.ids[1:], skip_special_tokens=False)
    assert shown == text
    learned = [i for i, s in zip(row.ids, row.scored, strict=True) if s]
    shown = tokenizer.backend.decode(learned, skip_special_tokens=False)
    assert shown == "No.<|im_end|>Because.<|im_end|>"
    ends = row.ids.count(tokenizer.backend.token_to_id("<|im_end|>"))
    assert ends == 5  # four turns and the system turn; the user's text contains no special token


TEMPLATES = {  # reduced to the features that Llama 3, SmolLM3 and Qwen3 use
    "trims": "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n\n"
    "{{ m['content'] | trim }}<|im_end|>{% endfor %}",
    "marks": "{% set today = strftime_now('%Y') %}{% for m in messages %}{% if m.role == 'user' %}"
    "<|im_start|>user {{ today }}\n{{ m.content }}<|im_end|>\n{% else %}<|im_start|>assistant\n"
    "{% generation %}{{ m.content.lstrip() }}<|im_end|>{% endgeneration %}\n{% endif %}"
    "{% endfor %}",
    "breaks": "{%- for m in messages %}{%- if loop.index0 > 9 %}{% break %}{% endif %}"
    "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_of_other_families_match_transformers(foundation, name):
    from transformers import PreTrainedTokenizerFast

    _, tokenizer = foundation
    chat = tokenizer.chat._replace(template=TEMPLATES[name])
    theirs = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend,
        bos_token=chat.bos_token,
        eos_token=chat.eos_token,
        chat_template=chat.template,
    )
    messages = [m | {"content": f"  {m['content']}"} for m in CHAT]
    expected = theirs.apply_chat_template(messages, tokenize=False)
    ours = copy.copy(tokenizer)
    ours.chat = chat
    ids, scored = encode_chat(ours, messages, "here")
    assert tokenizer.backend.decode(ids[1:], skip_special_tokens=False) == expected
    learned = [i for i, s in zip(ids, scored, strict=True) if s]
    shown = tokenizer.backend.decode(learned, skip_special_tokens=False)
    assert shown.replace(" ", "") == "No.<|im_end|>Because.<|im_end|>"
    ours.chat = chat._replace(template="{% for m in messages %}{{ m.content | upper }}{% endfor %}")
    with pytest.raises(UserError, match=r"changes the text of a message"):
        encode_chat(ours, messages, "here")
