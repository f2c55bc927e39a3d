"""Chat templates give the text that transformers gives them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from trtllm_pt.checkpoint.tokenizer_files import copy_tokenizer
from trtllm_pt.errors import UsageError
from trtllm_pt.serving.openai.chat_template import ChatTemplate

transformers = pytest.importorskip("transformers")

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
USER = [{"role": "user", "content": "Is 1 < 2 & é > 0?"}]
TURNS = [
    {"role": "system", "content": " Be 'brief'. "},
    {"role": "user", "content": "Hi\n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello. "},
    {"role": "user", "content": "Bye", "name": "Ann"},
]
# In the forms of public models. Those that know parts show a content that is a list.
SHAPES = {path.stem: path.read_text() for path in sorted(Path(__file__).parent.glob("chat_templates/*.jinja"))}
KNOW_PARTS = {"llama-4"}


def folder_of(folder: Path, config: dict[str, Any] | None = None, **files: str) -> Path:
    """A tokenizer's folder. files: other files, by names in which `__` stands for a folder."""
    folder.mkdir(exist_ok=True)
    Tokenizer(models.BPE({"x": 0, "<s>": 1, "</s>": 2, "<|eot|>": 3}, [])).save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", **(config or {})}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_jinja", ".jinja").replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def both(folder: Path, messages: list[dict[str, Any]], **options: bool) -> tuple[str, str]:
    """Our text of a chat, and transformers'."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given = {"add_generation_prompt": True, "continue_final_message": False, **options}
    theirs = tokenizer.apply_chat_template(messages, tokenize=False, **given)
    return ChatTemplate(folder).render(messages, **given), theirs


@pytest.mark.parametrize("messages", [USER, TURNS], ids=["one message", "several messages"])
@pytest.mark.parametrize("name", SHAPES)
def test_public_shapes(tmp_path: Path, name: str, messages: list[dict[str, Any]]) -> None:
    folder = folder_of(tmp_path, {**TOKENS, "chat_template": SHAPES[name]})
    for begins in (True, False):
        ours, theirs = both(folder, messages, add_generation_prompt=begins)
        assert ours == theirs
        assert theirs


def test_fields_that_clients_leave_empty(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, {"chat_template": "{{ messages | tojson }}"})
    messages = [{"role": "assistant", "content": "x", "tool_calls": None, "refusal": None, "reasoning": "why"}]
    ours, theirs = both(folder, messages)
    assert ours == theirs and "null" not in ours and '"reasoning_content": "why"' in ours


NAMED = [{"name": "default", "template": "one {{ bos_token }}"}, {"name": "tool_use", "template": "two"}]
FOLDERS: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "in the config": ({"chat_template": "config"}, {}),
    "a list in the config": ({"chat_template": NAMED, **TOKENS}, {}),
    "a file before the config": ({"chat_template": "config"}, {"chat_template_jinja": "file\n"}),
    "a file beside others": ({}, {"chat_template_jinja": "file", "additional_chat_templates__rag_jinja": "other"}),
    "a default among others": (
        {"chat_template": "config"},
        {"additional_chat_templates__default_jinja": "default", "additional_chat_templates__rag_jinja": "other"},
    ),
    "a token as an object": (
        {"bos_token": {"__type": "AddedToken", "content": "<s>", "special": True}, "chat_template": "{{ bos_token }}x"},
        {},
    ),
    "a token of its own name": ({"eot_token": "<|eot|>", "chat_template": "{{ eot_token }}x"}, {}),
    "further special tokens": (
        {"extra_special_tokens": {"eot_token": "<|eot|>"}, "chat_template": "{{ eot_token }}x"},
        {},
    ),
    "a list of further special tokens": ({"extra_special_tokens": ["<|eot|>"], "chat_template": "{{ a }}x"}, {}),
    "the file of special tokens": (
        {"chat_template": "{{ bos_token }}{{ eos_token }}"},
        {"special_tokens_map_json": '{"bos_token": {"content": "<s>"}, "eos_token": "</s>"}'},
    ),
    "a config that replaces that file": (
        {**TOKENS, "added_tokens_decoder": {}, "chat_template": "{{ bos_token }}x"},
        {"special_tokens_map_json": '{"bos_token": "x"}'},
    ),
    "tokens that are null": ({"bos_token": None, "chat_template": "{{ bos_token is defined }}{{ x is defined }}"}, {}),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_where_templates_and_tokens_are_found(tmp_path: Path, name: str) -> None:
    config, files = FOLDERS[name]
    folder = folder_of(tmp_path / "model", config, **files)
    ours, theirs = both(folder, USER)
    assert ours == theirs
    copy_tokenizer(folder, tmp_path / "checkpoint")
    assert ChatTemplate(tmp_path / "checkpoint").render(USER) == theirs


CONTENTS = ["Hello", " Hello ", "Hello\n", [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}]]


@pytest.mark.parametrize("content", CONTENTS, ids=repr)
@pytest.mark.parametrize("name", ["chatml", "llama-3", "llama-4"])
def test_a_message_that_the_output_continues(tmp_path: Path, name: str, content: Any) -> None:
    if isinstance(content, list) and name not in KNOW_PARTS:
        content = "\n".join(part["text"] for part in content)  # what a template for texts gets
    folder = folder_of(tmp_path, {**TOKENS, "chat_template": SHAPES[name]})
    messages = [*USER, {"role": "assistant", "content": content}]
    ours, theirs = both(folder, messages, add_generation_prompt=False, continue_final_message=True)
    assert ours == theirs
    assert not ours.endswith(("<|im_end|>\n", "<|eot_id|>"))


def test_parts_of_text(tmp_path: Path) -> None:
    """A template that knows parts gets them; any other gets their texts as lines."""
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    lines = [{"role": "user", "content": "a\nb"}]
    for name, template in SHAPES.items():
        shutil.rmtree(tmp_path)
        folder = folder_of(tmp_path, {**TOKENS, "chat_template": template})
        wanted = both(folder, parts if name in KNOW_PARTS else lines)[1]
        assert ChatTemplate(folder).render(parts) == wanted, name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "this model has no chat template: use /v1/completions"),
        ({"chat_template": NAMED[1:]}, r"several chat templates \(tool_use\), and none of them is named default"),
        ({"chat_template": "{% if %}"}, "this model's chat template is not valid: Expected an expression"),
        ({"chat_template": "{{ raise_exception('only one turn') }}"}, "do not fit the chat template: only one turn"),
        ({"chat_template": "{{ messages[0].content + 1 }}"}, "do not fit the chat template: can only concatenate str"),
        ({"chat_template": "{{ messages.append(1) }}"}, "do not fit the chat template: access to attribute 'append'"),
        (
            {"chat_template": "{{ ''.__class__.__mro__ }}"},
            "access to attribute '__class__'",
        ),
    ],
)
def test_templates_that_fail(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    template = ChatTemplate(folder_of(tmp_path, config))
    with pytest.raises(UsageError, match=message):
        template.render(USER)


def test_a_message_that_the_template_cuts_cannot_be_continued(tmp_path: Path) -> None:
    template = ChatTemplate(folder_of(tmp_path, {"chat_template": "{{ messages[-1].content[:3] }}"}))
    with pytest.raises(UsageError, match="continue_final_message: the chat template changes the content"):
        template.render(USER, add_generation_prompt=False, continue_final_message=True)
