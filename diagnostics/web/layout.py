"""The page's components, tab by tab, and which of their texts are translated."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import gradio as gr

from diagnostics.web.checkpoints import short_name
from diagnostics.web.handlers import Page, json_errors
from diagnostics.web.sessions import QUESTION_MAX_CHARACTERS
from diagnostics.web.texts import TEXTS, Language, Words
from diagnostics.web.views import Json

ASSETS = Path(__file__).parent
LANGUAGES = [("English", "en"), ("中文", "zh")]
_ENGLISH = TEXTS["en"]  # shown until the visitor's language is known


class Translated(NamedTuple):
    """A component whose ``property`` shows the text ``key`` in the visitor's language."""

    component: Any
    property: str
    key: str

    def update(self, language: Language) -> Json:
        """The component's properties in this language."""
        return {self.property: TEXTS[language][self.key]}


class TranslatedChoices(NamedTuple):
    """A list of checkpoints whose names are in the visitor's language."""

    component: gr.Dropdown
    names: Sequence[tuple[Words, str]]

    def update(self, language: Language) -> Json:
        """The component's properties in this language."""
        return {"choices": [(words.text(language), key) for words, key in self.names]}


Texts: TypeAlias = list[Translated | TranslatedChoices]


class Chat(NamedTuple):
    """The components of the chat's tab."""

    messages: gr.Chatbot
    message: gr.MultimodalTextbox
    stop: gr.Button
    again: gr.Button
    clear: gr.Button
    status: gr.HTML


class Comparison(NamedTuple):
    """The components of the before / after tab."""

    before: gr.Dropdown
    after: gr.Dropdown
    picture: gr.Image
    question: gr.Textbox
    compare: gr.Button
    compare_all: gr.Button
    stop: gr.Button
    status: gr.HTML
    pane: gr.HTML


class Layout(NamedTuple):
    """Every component that an event reads or changes.

    session                 the key of the visitor's session
    attention, comparison   the pane and the tab; None without attention
    texts                   all translated components
    """

    session: gr.State
    language: gr.Radio
    chat: Chat
    attention: gr.HTML | None
    comparison: Comparison | None
    texts: Texts


def lay_out(page: Page, *, attention: bool, example: tuple[Path, str] | None) -> Layout:
    """The whole page, inside a ``gr.Blocks``; without ``attention`` only the chat."""
    texts: Texts = []
    session = gr.State("")
    language = _top(texts)
    seen, comparison = None, None
    with gr.Tabs():
        with _tab("chat", texts):
            chat = _chat(page, example, texts)
        if attention:
            with _tab("attention", texts):
                seen = _pane("attention", page.facts, page.view, page.save_probe)
            with _tab("compare", texts):
                comparison = _comparison(page, texts)
    return Layout(session, language, chat, seen, comparison, texts)


def _top(texts: Texts) -> gr.Radio:
    with gr.Row(elem_id="top"):
        title = gr.Markdown(_ENGLISH["title"], elem_id="title")
        language = gr.Radio(LANGUAGES, value="en", show_label=False, container=False, elem_id="language")
    texts.append(Translated(title, "value", "title"))
    return language


def _tab(key: str, texts: Texts) -> gr.Tab:
    tab = gr.Tab(_ENGLISH[key])
    texts.append(Translated(tab, "label", key))
    return tab


def _chat(page: Page, example: tuple[Path, str] | None, texts: Texts) -> Chat:
    messages = gr.Chatbot(
        show_label=False,
        height="58vh",
        elem_id="chat",
        render_markdown=False,  # Markdown in an answer could load a picture from another site
        buttons=["copy"],
    )
    message = gr.MultimodalTextbox(
        placeholder=_ENGLISH["ask"],
        show_label=False,
        file_types=["image"],
        file_count="multiple",
        sources=["upload"],
        max_plain_text_length=QUESTION_MAX_CHARACTERS,
        elem_id="message",
    )
    status = gr.HTML(elem_id="chat_status", elem_classes="status", padding=False)
    with gr.Row(elem_id="buttons"):
        stop, again, clear = (
            gr.Button(_ENGLISH[name], elem_id=name, size="sm", min_width=90)
            for name in ("stop", "again", "clear")
        )
    if example is not None:
        gr.Examples([[{"text": example[1], "files": [str(example[0])]}]], message, label="Example · 示例")
    gr.Markdown(f"`{short_name(page.engine.name)}`", elem_id="model")
    texts += [Translated(button, "value", str(button.elem_id)) for button in (stop, again, clear)]
    texts.append(Translated(message, "placeholder", "ask"))
    return Chat(messages, message, stop, again, clear, status)


def _comparison(page: Page, texts: Texts) -> Comparison:
    names = page.checkpoints.names()
    with gr.Row():
        before = _checkpoint_list("before", names, names[0][1], texts)
        after = _checkpoint_list("after", names, names[-1][1], texts)
    with gr.Row():
        picture = gr.Image(
            type="filepath",
            image_mode=None,
            sources=["upload"],
            label=_ENGLISH["picture_box"],
            placeholder=_ENGLISH["drop"],
            height=180,
            scale=1,
        )
        with gr.Column(scale=2):
            question = gr.Textbox(
                label=_ENGLISH["question_box"], max_length=QUESTION_MAX_CHARACTERS, elem_id="question"
            )
            with gr.Row():
                compare = gr.Button(_ENGLISH["compare_go"], variant="primary", elem_id="compare_go")
                compare_all = gr.Button(_ENGLISH["play_all"], elem_id="play_all", interactive=len(names) > 2)
                stop = gr.Button(_ENGLISH["stop"], elem_id="compare_stop")
            alone = html.escape(_ENGLISH["one_checkpoint"]) if len(names) < 2 else ""
            status = gr.HTML(alone, elem_id="compare_status", elem_classes="status", padding=False)
    pane = _pane("compare", page.compare_facts, page.compare_view)
    texts += [
        Translated(picture, "label", "picture_box"),
        Translated(picture, "placeholder", "drop"),
        Translated(question, "label", "question_box"),
        Translated(compare, "value", "compare_go"),
        Translated(compare_all, "value", "play_all"),
        Translated(stop, "value", "stop"),
    ]
    return Comparison(before, after, picture, question, compare, compare_all, stop, status, pane)


def _checkpoint_list(key: str, names: Sequence[tuple[Words, str]], chosen: str, texts: Texts) -> gr.Dropdown:
    shown = [(words.text("en"), name) for words, name in names]
    component = gr.Dropdown(shown, value=chosen, label=_ENGLISH[key], elem_id=key, min_width=260)
    texts += [TranslatedChoices(component, names), Translated(component, "label", key)]
    return component


def _pane(name: str, *functions: Callable[..., Json]) -> gr.HTML:
    """A pane drawn by its own script, which may call only these functions of the server."""
    scripts = "\n".join((ASSETS / script).read_text(encoding="utf-8") for script in ("heat.js", f"{name}.js"))
    return gr.HTML(
        value="{}",
        html_template="<div class='pane'></div>",
        css_template=(ASSETS / "pane.css").read_text(encoding="utf-8"),
        js_on_load=f"const TEXTS = {json.dumps(TEXTS)};\n{scripts}",
        server_functions=[json_errors(function) for function in functions],
        elem_id=f"{name}-pane",
    )
