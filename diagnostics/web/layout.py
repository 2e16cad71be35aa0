"""The page's components, tab by tab, and which of their texts are translated."""

from __future__ import annotations

import json
from abc import ABCMeta
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import gradio as gr

from diagnostics.web.checkpoints import about, short_name
from diagnostics.web.example_questions import examples
from diagnostics.web.handlers import Page, json_errors
from diagnostics.web.sessions import QUESTION_MAX_CHARACTERS
from diagnostics.web.texts import TEXTS, Language, Words
from diagnostics.web.views import Json

ASSETS = Path(__file__).parent
LANGUAGES = [("English", "en"), ("中文", "zh")]
_ENGLISH = TEXTS["en"]  # shown until the visitor's language is known


def _path_of(_: gr.Image, sent: Any) -> str | None:
    """Of what a visitor sent. Gradio's own ``preprocess`` opens the picture, and fails without words where it is none;
    whether the path is one of an upload is checked before."""
    return None if sent is None else sent.path


# Not by a class statement: Gradio's metaclass writes a stub file beside this one. And not a method of the instance:
# Gradio makes the component again, by its class, whenever its label changes.
_PICTURE: Any = ABCMeta.__new__(
    type(gr.Image), "Picture", (gr.Image,), {"preprocess": _path_of, "is_template": True}
)


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


class TranslatedWelcome(NamedTuple):
    """What an empty chat shows; its value holds every language."""

    component: gr.HTML

    def update(self, language: Language) -> Json:
        """The component's properties in this language."""
        return {"value": json.dumps({**json.loads(str(self.component.value)), "language": language})}


Texts: TypeAlias = list[Translated | TranslatedChoices | TranslatedWelcome]


class Chat(NamedTuple):
    """The components of the chat's tab."""

    welcome: gr.HTML
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
    kept                    the same in the browser, where it outlives a reload
    attention, comparison   the pane and the tab; None without attention
    texts                   all translated components
    """

    session: gr.State
    kept: gr.Textbox
    language: gr.Radio
    chat: Chat
    attention: gr.HTML | None
    comparison: Comparison | None
    texts: Texts


def lay_out(page: Page, *, attention: bool) -> Layout:
    """The whole page, inside a ``gr.Blocks``; without ``attention`` only the chat."""
    texts: Texts = []
    session = gr.State("")
    language = _top(page, texts)
    seen, comparison = None, None
    with gr.Tabs():
        with _tab("chat", texts):
            chat = _chat(page, texts)
        if attention:
            with _tab("attention", texts):
                seen = _pane("attention", page.facts, page.view, page.save_probe)
            with _tab("compare", texts):
                comparison = _comparison(page, texts)
    kept = gr.Textbox(visible="hidden", elem_id="kept")
    return Layout(session, kept, language, chat, seen, comparison, texts)


def _top(page: Page, texts: Texts) -> gr.Radio:
    with gr.Row(elem_id="top"):
        title = _words(_ENGLISH["title"], "title")
        _words(short_name(page.engine.name), "model")
        language = gr.Radio(LANGUAGES, value="en", show_label=False, container=False, elem_id="language")
    texts.append(Translated(title, "value", "title"))
    return language


def _tab(key: str, texts: Texts) -> gr.Tab:
    tab = gr.Tab(_ENGLISH[key])
    texts.append(Translated(tab, "label", key))
    return tab


def _chat(page: Page, texts: Texts) -> Chat:
    welcome = _welcome(page)
    messages = gr.Chatbot(
        show_label=False,
        height="auto",
        elem_id="chat",
        render_markdown=False,  # Markdown in an answer could load a picture from another site
        latex_delimiters=[],  # $$ in a text is text
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
    with gr.Row(elem_id="buttons"):
        status = _words("", "chat_status")
        stop, again, clear = (
            gr.Button(_ENGLISH[name], elem_id=name, size="sm", min_width=90)
            for name in ("stop", "again", "clear")
        )
    texts += [Translated(button, "value", str(button.elem_id)) for button in (stop, again, clear)]
    texts += [Translated(message, "placeholder", "ask"), TranslatedWelcome(welcome)]
    return Chat(welcome, messages, message, stop, again, clear, status)


def _welcome(page: Page) -> gr.HTML:
    value = {
        "language": "en",
        "model": about(page.engine).both(),
        "examples": [{"picture": one.card(), "questions": one.questions} for one in examples()],
    }
    return _scripted("welcome", json.dumps(value), "heat.js", "welcome.js", elem_id="welcome")


def _comparison(page: Page, texts: Texts) -> Comparison:
    names = page.checkpoints.names()
    with gr.Row():
        before = _checkpoint_list("before", names, names[0][1], texts)
        after = _checkpoint_list("after", names, names[-1][1], texts)
    with gr.Row():
        picture = _PICTURE(
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
            status = _words(_ENGLISH["one_checkpoint"] if len(names) < 2 else "", "compare_status")
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
    return _scripted(
        "pane", "{}", "heat.js", f"{name}.js", elem_id=f"{name}-pane", style="pane.css", functions=functions
    )


def _words(text: str, elem_id: str) -> gr.HTML:
    """A line of text that is shown as it is: neither as HTML nor as a template."""
    return _scripted("words", text, "words.js", elem_id=elem_id)


def _scripted(
    inside: str,
    value: str,
    *scripts: str,
    elem_id: str,
    style: str | None = None,
    functions: Sequence[Callable[..., Json]] = (),
) -> gr.HTML:
    """An element of class ``inside`` that scripts fill from ``value``, which no template reads."""
    code = "\n".join((ASSETS / script).read_text(encoding="utf-8") for script in scripts)
    return gr.HTML(
        value=value,
        html_template=f"<div class='{inside}'></div>",
        css_template=(ASSETS / style).read_text(encoding="utf-8") if style else "",
        js_on_load=f"const TEXTS = {json.dumps(TEXTS)};\n{code}",
        server_functions=[json_errors(function) for function in functions] or None,
        elem_id=elem_id,
    )
