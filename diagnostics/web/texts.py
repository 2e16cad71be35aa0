"""Every text of the page, in English and Chinese; a test checks that both have the same keys.

``Words`` is a message whose language is chosen later; ``RefusedError`` is an error that carries one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple, TypeAlias

Language: TypeAlias = Literal["en", "zh"]

TEXTS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "Vision-language chat with attention maps",
        "language": "Language",
        "chat": "Chat",
        "attention": "Attention",
        "compare": "Before / after",
        "ask": "Add one or more pictures and ask a question",
        "stop": "Stop",
        "again": "Regenerate",
        "clear": "Clear",
        "as_written": "{words}",
        "welcome": "Ask about a picture, then see where the model looked",
        "demo_model": "This is the demo: a 1-million-parameter model that knows drawings of towers and rooms.",
        "tuned_demo": "This is {name}: the demo's 1-million-parameter model after training. It knows drawings of "
        "towers and rooms.",
        "other_model": "This is {name}, a model with {size} parameters.",
        "try_one": "Try one of these, or add a picture of your own:",
        "control": "◇ is a control token of the chat format.",
        "drop": "Drop a picture here, or click to choose a file",
        "waiting": "{n} ahead of you in the queue",
        "session_ended": "This session has ended; reload the page.",
        "busy": "The last answer is still being generated; stop it or wait.",
        "nothing_asked": "Type a question or add a picture.",
        "no_question": "Type a question.",
        "question_long": "Question: found {found} characters, expected at most {most}.",
        "pictures_many": "Pictures: found {found}, expected at most {most} per conversation; clear it and start again.",
        "turns_many": "This conversation has reached the limit of {most} turns; clear it and start again.",
        "file_large": "{file}: found {found} MB, expected at most {most}; use a smaller file.",
        "pixels_many": "{file}: found {width} × {height} pixels, expected at most {most} million; scale it down.",
        "pixels_too_many": "{file}: found too many pixels, expected at most {most} million; scale it down.",
        "no_image": "{file}: cannot be read as a picture; use PNG or JPEG.",
        "prompt_long": "The question and its pictures take {found} tokens, but the model reads at most {most}; shorten "
        "the question or send fewer pictures.",
        "conversation_long": "The conversation takes {found} tokens, but the model reads at most {most}; shorten the "
        "question, send fewer pictures, or clear it and start again.",
        "no_memory": "The model ran out of memory on this conversation; send fewer or smaller pictures, clear it and "
        "start again, or run with --low-memory.",
        "in_english": "{words}",
        "not_answered": "This could not be answered; see the server log.",
        "not_drawn": "This could not be drawn; see the server log.",
        "made_room": "This answer's attention was removed to make room for newer answers (limit: {limit} MB); ask "
        "again.",
        "nothing_yet": "Ask a question in Chat; the attention of the answer then appears here.",
        "answer": "Tokens of the answer: select one or more",
        "all_tokens": "all / one",
        "language_part": "Language",
        "connector": "Connector",
        "vision": "ViT",
        "layer": "Layer",
        "head": "Head",
        "mean": "mean",
        "with_sinks": "with sinks",
        "sinks_help": "Sinks draw attention without carrying content; exclude them to see the rest more clearly",
        "no_sinks": "No sinks were found in this layer.",
        "one_layer": "Only one layer was kept.",
        "connector_layer": "The connector has one layer.",
        "tower_layer": "Only the last layer of the vision tower was kept.",
        "picture": "Picture",
        "where_in_picture": "Attention in the picture",
        "touch_help": "Click a patch to see which tokens attend to it. Drag a box to see its share by layer and head. "
        "With the keyboard: arrows and Enter, Shift + arrows for a box, Esc to remove.",
        "cursor_words": "row {row}, column {column}: {value} the even share",
        "no_picture": "There is no picture in this conversation.",
        "no_map": "No attention was kept for this part.",
        "shape_only": "Shares within the picture; this part attends to nothing else.",
        "patch_shape": "Attention of the patch you clicked: shares within the picture; this part attends to nothing "
        "else.",
        "mass_words": "{mass} of this row is on the picture",
        "overview": "Layers (down) × heads (across): click to select",
        "mass": "on the picture",
        "box_mass": "in the box",
        "box_enrichment": "box enrichment",
        "overview_words": "here {here}, max {most}",
        "overview_language": "max {most}; these are language layers: click to switch to them",
        "where_in_text": "Attention in the text",
        "text_words": "{text} on text, {image} on pictures; max {most}",
        "each_token": "Each selected token separately",
        "more_tokens": "{left} more selected tokens are not shown",
        "language_only": "Only language layers attend to text.",
        "text_attention": "Text-to-text attention",
        "matrix_words": "{rows} tokens (down) attend to the tokens that they see (across); max {most}.",
        "matrix_first": "{rows} tokens (down) attend to the tokens that they see (across); max {most}, without the "
        "first token, which can only attend to itself.",
        "from_token": "from",
        "to_token": "to",
        "box": "Your box",
        "no_box": "Drag a box on the picture.",
        "box_words": "The box covers {area} of the picture. Share of the language layers' attention to the picture "
        "that lies in the box · enrichment:",
        "remove_box": "Remove the box",
        "save_probe": "Save as probe",
        "id": "id",
        "group": "group",
        "region": "region",
        "question": "question",
        "right_answer": "right answer",
        "foil": "wrong answer",
        "id_made": "made up if empty",
        "answer_needed": "what it should say",
        "field_long": "{field}: found {found} characters, expected at most {most}.",
        "field_empty": "{field}: must not be empty.",
        "id_wrong": "id: found {found}, expected a name of letters, digits, '_', '-' and '.', "
        "at most {most} characters ({bytes} bytes).",
        "id_taken": "id: '{id}' is already in {file}; choose another.",
        "image_taken": "id: {image} is already in {folder}/; choose another.",
        "probes_many": "{file} has {found} probes, the limit for this page.",
        "not_written": "{file} could not be written (disk full, or no permission); nothing was saved. See the server "
        "log.",
        "saved": "Saved: {id} is probe {n} of {file}.",
        "saved_alone": "Saved: {id} is probe {n} of {file}. It holds this question with this picture alone: earlier "
        "turns and their pictures are not in it, so its answer may be another.",
        "probe_pictures": "A probe has one picture, but this question has {found}: ask about one picture in a new "
        "conversation, and save that.",
        "probe_names_picture": "question: found Picture {found}, but the picture of a probe is Picture 1: write the "
        "question for this picture alone.",
        "cut_answer": "The answer is not whole: the token limit or Stop cut it off.",
        "rows_left_out": "The attention of the answer's first {left} tokens is not kept: memory holds that of the last "
        "tokens only.",
        "who_looks": "Tokens that attend to the patch",
        "no_patch": "Click a patch in the picture.",
        "who_words": "Share of each token's attention; max {most}. For pale tokens no attention was kept.",
        "who_language": "Tokens attend to patches only in language layers; select Language.",
        "scale_words": "{top} the even share",
        "scale_peak": "{top} the even share (peak {peak})",
        "scale_help": "1 × is uniform attention; all maps shown together have one scale, and cells beyond its end look "
        "alike",
        "swing_less": "−{swing} less",
        "swing_more": "more +{swing}",
        "other_grid": "The models divide the picture differently; their maps have no difference.",
        "cache_words": "answers kept: {looks}, {used} of {limit} MB",
        "lost": "The server does not respond. Is it still running? Reload the page.",
        "before": "Before",
        "after": "After",
        "question_box": "Question for both",
        "picture_box": "Picture",
        "compare_go": "Compare",
        "play_all": "All checkpoints",
        "asking": "{name} ({n} of {of}) …",
        "compared": "Answers compared: {n}.",
        "compared_on_one_picture": "Answers compared: {n}. The question names Picture {found}, but each model saw one "
        "picture, Picture 1: write the question for this picture alone.",
        "stopped": "Stopped; answers compared: {n} of {of}.",
        "no_answer": "{name} gave an empty answer; ask another question.",
        "adapter_off": "{name}, adapter off",
        "nothing_compared": "Choose two checkpoints, a picture and a question, then click Compare.",
        "one_checkpoint": "Only one model is loaded. Add others when you start the demo: --checkpoints output_qwen",
        "difference": "Difference",
        "answer_token": "Token",
        "checkpoint": "Checkpoint",
        "play": "Play",
        "pause": "Pause",
        "same_answer": "Both answers are the same.",
        "same_beginning": "Both answers are the same as far as they go, and not both are whole.",
        "other_answer": "The answers differ.",
        "difference_words": "Orange: more, blue: less. {moved} of the attention to the picture moved; on the picture: "
        "{mass} percentage points.",
    },
    "zh": {
        "title": "视觉语言对话与注意力可视化",
        "language": "语言",
        "chat": "对话",
        "attention": "注意力",
        "compare": "前后对比",
        "ask": "添加一张或多张图片，然后提问",
        "stop": "停止",
        "again": "重新生成",
        "clear": "清空",
        "as_written": "{words}",
        "welcome": "就一张图片提问，再看模型看的是哪里",
        "demo_model": "这是演示模型：约 100 万参数，只认识画出来的塔和房间。",
        "tuned_demo": "这是 {name}：演示模型（约 100 万参数）训练之后的样子，只认识画出来的塔和房间。",
        "other_model": "这是 {name}，一个 {size} 参数的模型。",
        "try_one": "点一个例子试试，或上传自己的图片：",
        "control": "◇ 是对话格式的控制词元。",
        "drop": "将图片拖到这里，或点击选择",
        "waiting": "排队中，前面还有 {n} 个请求",
        "session_ended": "会话已结束；请重新加载页面。",
        "busy": "上一个回答仍在生成；请先停止，或稍候。",
        "nothing_asked": "请输入问题或添加图片。",
        "no_question": "请输入问题。",
        "question_long": "问题有 {found} 个字符，上限为 {most} 个。",
        "pictures_many": "共有 {found} 张图片，一段对话最多 {most} 张；请清空后重新开始。",
        "turns_many": "这段对话已达到 {most} 轮的上限；请清空后重新开始。",
        "file_large": "{file}：大小为 {found} MB，上限为 {most} MB；请压缩后再上传。",
        "pixels_many": "{file}：尺寸为 {width} × {height}，上限为 {most} 百万像素；请缩小图片。",
        "pixels_too_many": "{file}：像素过多，最多 {most} 百万像素；请缩小图片。",
        "no_image": "{file}：无法识别为图片；请使用 PNG 或 JPEG。",
        "prompt_long": "问题和图片共 {found} 个词元，超过模型上限 {most}；请缩短问题或减少图片。",
        "conversation_long": "整段对话共 {found} 个词元，超过模型上限 {most}；请缩短问题、减少图片，或清空后重新开始。",
        "no_memory": "处理这段对话时内存（显存）不足；请减少或缩小图片，清空后重新开始，或以 --low-memory 启动。",
        "in_english": "无法完成。原因（英文）：{words}",
        "not_answered": "无法回答；详见服务器日志。",
        "not_drawn": "无法绘制；详见服务器日志。",
        "made_room": "这次回答的注意力已被清除，为较新的回答腾出空间（上限 {limit} MB）；请重新提问。",
        "nothing_yet": "请先在“对话”中提问；回答的注意力随后显示在这里。",
        "answer": "回答中的词元：可选一个或多个",
        "all_tokens": "全选 / 单选",
        "language_part": "语言模型",
        "connector": "连接器",
        "vision": "ViT",
        "layer": "层",
        "head": "头",
        "mean": "平均",
        "with_sinks": "包含注意力汇",
        "sinks_help": "注意力汇吸引注意力却不携带内容；排除后其余部分更清楚",
        "no_sinks": "这一层没有注意力汇。",
        "one_layer": "只保留了一层。",
        "connector_layer": "连接器只有一层。",
        "tower_layer": "只保留了视觉塔的最后一层。",
        "picture": "图片",
        "where_in_picture": "图片上的注意力",
        "touch_help": "点击一格，查看哪些词元关注它；拖出一个框，查看各层各头落在框内的比例。也可用键盘：方向键移动，"
        "回车选中，Shift + 方向键画框，Esc 删除。",
        "cursor_words": "第 {row} 行第 {column} 列：均匀份额的 {value}",
        "no_picture": "这段对话没有图片。",
        "no_map": "没有保留这一部分的注意力。",
        "shape_only": "图片内部的比例；这一部分只关注图片。",
        "patch_shape": "所点击的格的注意力：图片内部的比例；这一部分只关注图片。",
        "mass_words": "该行注意力有 {mass} 落在图片上",
        "overview": "层（纵）× 头（横）：点击选择",
        "mass": "落在图片上",
        "box_mass": "落在框内",
        "box_enrichment": "框的富集倍数",
        "overview_words": "此处 {here}，最高 {most}",
        "overview_language": "最高 {most}；这里是语言层，点击即可切换过去",
        "where_in_text": "文字上的注意力",
        "text_words": "文字 {text}，图片 {image}；最高 {most}",
        "each_token": "逐个查看所选词元",
        "more_tokens": "另有 {left} 个所选词元未显示",
        "language_only": "只有语言层会关注文字。",
        "text_attention": "文字之间的注意力",
        "matrix_words": "{rows} 个词元（纵）对其可见词元（横）的注意力；最高 {most}。",
        "matrix_first": "{rows} 个词元（纵）对其可见词元（横）的注意力；最高 {most}，首个词元只能关注自己，不计入。",
        "from_token": "从",
        "to_token": "到",
        "box": "你画的框",
        "no_box": "请在图片上拖出一个框。",
        "box_words": "该框占图片的 {area}。语言层对图片的注意力落在框内的比例 · 富集倍数：",
        "remove_box": "删除框",
        "save_probe": "存为探针",
        "id": "编号",
        "group": "分组",
        "region": "区域",
        "question": "问题",
        "right_answer": "正确答案",
        "foil": "错误答案",
        "id_made": "留空则自动生成",
        "answer_needed": "它应该怎么回答",
        "field_long": "{field}：有 {found} 个字符，上限为 {most} 个。",
        "field_empty": "{field}：不能为空。",
        "id_wrong": "编号 {found}：只能包含字母、数字、“_”“-”“.”，最多 {most} 个字符（{bytes} 字节）。",
        "id_taken": "{file} 中已有编号“{id}”；请换一个。",
        "image_taken": "编号：{folder}/ 中已有 {image}；请换一个。",
        "probes_many": "{file} 已有 {found} 个探针，达到本页的上限。",
        "not_written": "无法写入 {file}（磁盘已满或没有权限）；未保存任何内容。详见服务器日志。",
        "saved": "已保存：{id} 是 {file} 的第 {n} 个探针。",
        "saved_alone": "已保存：{id} 是 {file} 的第 {n} 个探针。其中只有这个问题和这张图片，不含之前的对话及其图片，"
        "因此回答可能不同。",
        "probe_pictures": "一个探针只有一张图片，而这个问题有 {found} 张；请清空对话，就一张图片提问，再保存。",
        "probe_names_picture": "问题：提到了图 {found}，但探针的图片是图 1；请只就这张图片来写问题。",
        "cut_answer": "回答不完整：达到词元上限，或被停止。",
        "rows_left_out": "没有保留回答前 {left} 个词元的注意力：内存只够保留最后的词元。",
        "who_looks": "关注这一格的词元",
        "no_patch": "请点击图片中的一格。",
        "who_words": "各词元注意力的比例；最高 {most}。浅色词元没有保留注意力。",
        "who_language": "只有语言层的词元会关注图片；请选择“语言模型”。",
        "scale_words": "均匀份额的 {top}",
        "scale_peak": "均匀份额的 {top}（峰值 {peak}）",
        "scale_help": "1 × 即均匀分布；同时显示的图共用一个色标，超出上限的格不再区分亮度",
        "swing_less": "少 −{swing}",
        "swing_more": "多 +{swing}",
        "other_grid": "两个模型划分图片的方式不同，无法求差异。",
        "cache_words": "已保留 {looks} 次回答，{used} / {limit} MB",
        "lost": "服务器没有响应。它还在运行吗？请重新加载页面。",
        "before": "之前",
        "after": "之后",
        "question_box": "向两个模型提出的问题",
        "picture_box": "图片",
        "compare_go": "对比",
        "play_all": "所有检查点",
        "asking": "{name}（第 {n} 个，共 {of} 个）……",
        "compared": "已对比 {n} 个回答。",
        "compared_on_one_picture": "已对比 {n} 个回答。问题提到了图 {found}，但每个模型只看到一张图片，即图 1；"
        "请只就这张图片来写问题。",
        "stopped": "已停止；已对比 {n} / {of} 个回答。",
        "no_answer": "{name} 的回答为空；请换一个问题。",
        "adapter_off": "{name}，适配器关闭",
        "nothing_compared": "请选择两个检查点、一张图片和一个问题，然后点击“对比”。",
        "one_checkpoint": "目前只加载了一个模型。启动时可添加其他检查点：--checkpoints output_qwen",
        "difference": "差异",
        "answer_token": "词元",
        "checkpoint": "检查点",
        "play": "播放",
        "pause": "暂停",
        "same_answer": "两者回答相同。",
        "same_beginning": "两者的回答到此为止相同，但并非都完整。",
        "other_answer": "两者回答不同。",
        "difference_words": "橙色：增加，蓝色：减少。对图片的注意力有 {moved} 发生转移；"
        "落在图片上的比例：{mass} 个百分点。",
    },
}


class Words(NamedTuple):
    """A message of the page, in every language.

    key      of ``TEXTS``
    fields   the values of its placeholders; ``Words`` among them are translated too
    """

    key: str
    fields: Mapping[str, object] = {}

    @classmethod
    def of(cls, text: str) -> Words:
        """A text that is identical in every language."""
        return cls("as_written", {"words": text})

    def text(self, language: Language) -> str:
        fields = {
            name: one.text(language) if isinstance(one, Words) else one for name, one in self.fields.items()
        }
        return TEXTS[language][self.key].format(**fields)

    def both(self) -> dict[Language, str]:
        """Text by language, for the browser, which chooses."""
        return {language: self.text(language) for language in TEXTS}


NO_WORDS = Words.of("")
ERROR_MAX = 600  # characters of another module's error


class RefusedError(ValueError):
    """A rejected request, with a message in every language; ``str()`` gives English."""

    def __init__(self, key: str, **fields: object) -> None:
        self.words = Words(key, fields)
        super().__init__(self.words.text("en"))


def words_of(error: ValueError) -> Words:
    """An error as a message for the visitor; other modules' errors stay English, with a Chinese introduction."""
    return (
        error.words
        if isinstance(error, RefusedError)
        else Words("in_english", {"words": str(error)[:ERROR_MAX]})
    )
