"""The report's Chinese: every text of the pages, English → Chinese.

{name} stands for what varies and goes in as it is; {name:n} only for a number or an interval; {name:t} is translated
itself; {name:l} is a list, "a, b and c", whose parts are; {name:w} is one whose parts stay as they are; {name:s} is
parts with semicolons, {name:p} parts with commas, and {name:i} an interval with its level. What matches first counts. Words follow docs/glossary.md.
"""

from __future__ import annotations

from diagnostics.report import chinese_studies

_NAMES = {
    "corrected": "已纠正",
    "kept": "已保持",
    "corrected, not by looking": "已纠正，但不是靠看对位置",
    "corrected, unguarded": "已纠正，但没有护栏",
    "corrected, mediation not measured": "已纠正，中介未测量",
    "it did not move": "没有变化",
    "too few probes": "探针太少",
    "not held out": "探针图片未与训练数据分开",
    "answers got worse": "回答变差",
    "margin and answer disagree": "差距与回答不一致",
    "answers changed, too few right": "回答变了，但答对的太少",
    "it answers from the words": "只凭文字作答",
    "answers changed, a guard broke": "回答变了，但护栏失守",
    "answers changed, attention did not": "回答变了，注意力没变",
    "attention moved, answers did not": "注意力变了，回答没变",
    "answers changed, attention left the region": "回答变了，注意力却离开了该区域",
    "answers changed, attention not measured": "回答变了，注意力未测量",
    "answers not measured": "回答未测量",
    "answers changed, picture not measured": "回答变了，换图对照未测量",
    "answers and attention changed, cause not measured": "回答和注意力都变了，因果未测量",
    "answers and attention changed, cause does not agree": "回答和注意力都变了，因果不符",
    "forgot": "遗忘",
    "broke a neighbour": "殃及邻近能力",
    "answers": "回答",
    "picture": "图像",
    "attention": "注意力",
    "cause": "因果",
    "mediation": "中介",
    "guards": "护栏",
    "holds": "成立",
    "does not hold": "不成立",
    "not measured": "未测量",
    "right": "正确",
    "wrong": "错误",
    "before": "之前",
    "now": "现在",
    "after": "之后",
    "nats": "nats",
    "step": "步",
    "layer": "层",
    "checkpoint": "检查点",
    ".": "。",
}

_HEADLINE = {
    "Before and after: what the model looks at": "微调前后：模型在看哪里",
    "Before and now are the same model: nothing can have changed.": "前后是同一个模型：不可能有任何变化。",
    "It now answers {q:t} correctly {n:t}, because it looks at {r:t}.": "现在能答对{q}{n}，因为它看的是{r}。",
    "It now answers {q:t} correctly {n:t}, but not by looking: its attention carries too little of the change.": (
        "现在能答对{q}{n}，但不是靠看对位置：注意力对这一变化的贡献太小。"
    ),
    "It now answers {q:t} correctly {n:t}, looks at {r:t} and needs it; whether looking carries the change was not "
    "measured.": "现在能答对{q}{n}，会看{r}并且依赖它；变化是否由注意力带来，没有测量。",
    "It now answers {q:t} correctly {n:t}, looks at {r:t} and needs it; whether it now says so of everything was not "
    "tested.": "现在能答对{q}{n}，会看{r}并且依赖它；是否变成对什么图都这样答，没有检验。",
    "It rates the right answer to {q:t} higher {n:t}, but what it says does not agree.": (
        "对{q}，它给正确答案的分数更高了{n}，但实际说出来的与此不一致。"
    ),
    "It answers {q:t} correctly more often {n:t}, and still too seldom.": "答对{q}的次数变多了{n}，但仍然太少。",
    "Pictures that judge {q:t} are in its training data {n:t}: this shows no correction.": (
        "用来评判{q}的图片{n}就在训练数据里：这不能证明已纠正。"
    ),
    "It now answers {q:t} correctly {n:t}, but from the words: the picture matters too little.": (
        "现在能答对{q}{n}，但只凭文字：图像的作用太小。"
    ),
    "It now answers {q:t} correctly {n:t}, at the price of answers that had to stay right.": (
        "现在能答对{q}{n}，代价是一些本该保持正确的回答出了错。"
    ),
    "It now answers {q:t} correctly {n:t}, though its attention did not move to {r:t}.": (
        "现在能答对{q}{n}，但注意力并没有移到{r}。"
    ),
    "It now answers {q:t} correctly {n:t}, though its attention left {r:t}.": "现在能答对{q}{n}，但注意力反而离开了{r}。",
    "Its attention moved, but it answers {q:t} no better {n:t}.": "注意力变了，但对{q}的回答并没有变好{n}。",
    "Its answers to {q:t} did not change beyond chance {n:t}.": "对{q}的回答没有超出偶然的变化{n}。",
    "It answers {q:t} worse than before {n:t}.": "对{q}的回答比之前更差{n}。",
    "It now answers {q:t} correctly {n:t}; whether it needs the picture was not measured.": (
        "现在能答对{q}{n}；是否依赖图像，没有测量。"
    ),
    "It now answers {q:t} correctly {n:t}; where it looks was not judged.": "现在能答对{q}{n}；它在看哪里，未作判断。",
    "It now answers {q:t} correctly {n:t} and looks more at {r:t}; whether it needs that was not measured.": (
        "现在能答对{q}{n}，也更多地看{r}；是否依赖它，没有测量。"
    ),
    "It now answers {q:t} correctly {n:t} and looks more at {r:t}, but its answers do not depend on that enough.": (
        "现在能答对{q}{n}，也更多地看{r}，但回答对它的依赖不够。"
    ),
    "Whether it answers {q:t} correctly was not measured: no wrong answer to compare with is named.": (
        "能否答对{q}没有测量：没有给出可供比较的错误答案。"
    ),
    "There are too few pictures to judge {q:t} {n:t}.": "图片太少，无法对{q}下结论{n}。",
    "There are too few pictures to judge {q:t}.": "图片太少，无法对{q}下结论。",
    "What had to stay right stayed right {n:t}.": "本该保持正确的都保持住了{n}。",
    'It lost answers that had to stay right, in <b translate="no">{g}</b> {n:t}.': (
        '<b translate="no">{g}</b> 中有本该保持正确的回答丢失了{n}。'
    ),
    "Of what had to stay right as much is right as before {n:t}, but not the same: {l:n} answers were lost.": (
        "本该保持正确的，答对的与之前一样多{n}，但不是同一批：有 {l} 个回答丢失了。"
    ),
    "Of what had to stay right as much is right as before {n:t}, but not the same: on {l:n} pictures answers were lost.": (
        "本该保持正确的，答对的与之前一样多{n}，但不是同一批：有 {l} 张图片上的回答丢失了。"
    ),
    "({a:n} → {b:n} of {c:n})": "（{a} → {b}，共 {c} 题）",
    "({a:n} → {b:n})": "（{a} → {b}）",
    "({a:n} → {b:n}, by picture {c:n} → {d:n})": "（{a} → {b}；按图片计 {c} → {d}）",
    "({a:n} → {b:n} of what it says)": "（所说回答 {a} → {b}）",
    "({a:n} → {b:n} of what it says, by picture)": "（所说回答 {a} → {b}，按图片计）",
    "questions like {q}": "{q}这类问题",
    "the right place": "正确的位置",
    'the <b translate="no">{x}</b>': ' <b translate="no">{x}</b> ',
    "{a} before, {b} now, asked the same {n:n} questions.": "之前：{a}；现在：{b}；两者回答同样的 {n} 个问题。",
    "{a} before, {b} now, asked the same 1 question.": "之前：{a}；现在：{b}；两者回答同一个问题。",
}

_CASES = {
    "What happened": "发生了什么",
    "Asked {q}, it said {s}. Right is {r}.": "问 {q}，它答 {s}；正确答案是 {r}。",
    "Asked {q}, it found {s} likelier. Right is {r}.": "问 {q}，它认为 {s} 更可能；正确答案是 {r}。",
    "Asked {q}, it found {a} and {b} equally likely. Right is {r}.": "问 {q}，它认为 {a} 和 {b} 同样可能；正确答案是 {r}。",
    "{a} and {b} equally likely": "认为 {a} 和 {b} 同样可能",
    "Before: {s:t}": "之前：{s}",
    "Now: {s:t}": "现在：{s}",
    "{a}, though it rates {b} likelier than {c}": "{a}，尽管它认为 {b} 比 {c} 更可能",
    "{a} likelier than {b}": "认为 {a} 比 {b} 更可能",
    "attention before": "之前的注意力",
    "attention now": "现在的注意力",
    "{a:n} of its attention to the picture on the {r}, {b:n} on the {s}.": (
        "对图片的注意力中，{a} 在 {r} 上，{b} 在 {s} 上。"
    ),
    "{a:n} of its attention to the picture on the {r}.": "对图片的注意力中，{a} 在 {r} 上。",
    "Brighter means more attention.": "越亮，注意力越多。",
    "Why believe it?": "凭什么相信？",
    "Hide a place: how much of the right answer’s lead goes, nats. Below 0 it grows. Upper bar: before; lower: now.": (
        "遮住一处：正确答案的领先减少多少（nats）。低于 0 表示领先反而增大。上条：之前；下条：现在。"
    ),
    "Hide a place: how much of the right answer’s lead goes, nats. Upper bar: before; lower: now.": "遮住一处：正确答案的领先减少多少（nats）。上条：之前；下条：现在。",
    "random places": "随机位置",
    "What moves the answers most when hidden: the {r}, before ({a:n} of the questions) and now ({b:n}).": (
        "遮住后最能改变回答的位置：之前（{a} 的问题）和现在（{b}）都是 {r}。"
    ),
    "What moves the answers most when hidden: before, {a:t}; now, {b:t}.": "遮住后最能改变回答的位置：之前{a}；现在{b}。",
    "no place stood out": "没有哪处突出",
    "no place stands out": "没有哪处突出",
    "the {r} ({a:n} of the questions)": "是 {r}（{a} 的问题）",
    "{a:n} right, enough and more than before": "{a} 答对：够多，且多于之前",
    "{a:n} right: too few, no more than before, or not what it says": "{a} 答对：太少、并不多于之前，或与所说不符",
    "right answers: not measured": "答对率：未测量",
    "it needs the picture: with another, the answer goes": "它依赖图像：换一张图，答案就不成立",
    "it hardly needs the picture": "它几乎不依赖图像",
    "whether it needs the picture: not measured": "是否依赖图像：未测量",
    "it looks more at {r:t}, and only there": "它更多地看{r}，而且只有那里增加",
    "its attention did not move to {r:t} alone": "注意力并非只移到{r}",
    "where it looks: not judged": "看哪里：未判断",
    "it needs {r:t}: hidden, the answer suffers": "它依赖{r}：遮住后答案受损",
    "its answers do not depend enough on {r:t} alone": "回答对{r}的依赖不够，或还依赖别处",
    "what it needs: not measured": "依赖什么：未测量",
    "old attention put back, {a:n} of the gain goes": "换回原来的注意力，{a} 的提升随之消失",
    "old attention put back, too little of the gain goes": "换回原来的注意力，提升几乎不受影响",
    "whether looking carries the gain: not measured": "提升是否由注意力带来：未测量",
    "questions with the opposite answer stay right: {a:n}": "答案相反的问题仍然答对：{a}",
    "answers that had to stay right broke": "本该保持正确的回答被破坏了",
    "no questions with the opposite answer guard it": "没有答案相反的问题作护栏",
    "attention, layer {n:n}: 0": "注意力，第 {n} 层：0",
    "attention, layer {n:n}, trained on: 0": "注意力，第 {n} 层，受过训练：0",
    "{n:n} times the even share": "均匀分布的 {n} 倍",
    "More of this case": "这个例子的更多内容",
    "Of the answers that went from wrong to right, this is one of those nearest to their medians in margin, attention "
    "and cost. {a} · {b}": "在由错变对的回答中，它是差距、注意力和代价都最接近中位数的之一。{a} · {b}",
    "No answer went from wrong to right. Of those still wrong, this is one of those nearest to their medians in margin, "
    "attention and cost. {a} · {b}": "没有回答由错变对。在仍然答错的里面，它是差距、注意力和代价都最接近中位数的之一。{a} · {b}",
    "The picture as asked": "提问所用的图片",
    "the picture": "图片",
    "A similar one, right before too": "类似的一题，之前就答对",
    "It said {s}. {rest:t}": "它答 {s}。{rest}",
    "What it was trained on": "训练样本",
    "a training picture": "训练图片",
}

_CARDS = {
    "The verdicts": "结论",
    "One for each group of probes. Open a piece of evidence to read it in full.": "每组探针一个结论。点开一条依据可看全文。",
    "Verdicts": "结论",
    "{n:n} probes": "{n} 个探针",
    "{n:n} probes.": "基于 {n} 个探针。",
    "1 probe": "1 个探针",
    "1 probe.": "基于 1 个探针。",
    "{n:n} pictures": "{n} 张图片",
    "{n:n} pictures of it": "{n} 张",
    "1 picture": "1 张图片",
    "1 picture of it": "1 张",
    "{n:n} layers": "{n} 层",
    "right answers": "答对率",
    "no foil to compare with": "没有可比较的错误答案",
    "interval {i:n}": "区间 {i}",
    "{a:n} became right, {b:n} wrong (p = {p:n})": "{a} 个变对，{b} 个变错（p = {p}）",
    "attention on its region": "对各自区域的注意力",
    'attention on <b translate="no">{r}</b>': '对 <b translate="no">{r}</b> 的注意力',
    "median probe: {x:n} times": "中位探针：{x} 倍",
    "median probe: over {x:n} times": "中位探针：超过 {x} 倍",
    "each picture counted once: {a:n}, interval {i:n}": "每张图片计一次：{a}，区间 {i}",
    "interval {i:n}, each picture counted once": "区间 {i}，每张图片计一次",
    "on {n:n} pictures more right, on {b:n} fewer (p = {p:n})": "{n} 张图片上答对更多，{b} 张更少（p = {p}）",
    "on 1 picture more right, on {b:n} fewer (p = {p:n})": "1 张图片上答对更多，{b} 张更少（p = {p}）",
    "change {i:n}, layer {n:n}": "变化 {i}，第 {n} 层",
    "change {i:n}, layers {n:n} and {m:n}": "变化 {i}，第 {n} 和 {m} 层",
    "lead {x:n} over {place:t}": "领先 {place} {x}",
    "equally salient places": "同样显眼的位置",
    "the other regions": "其他区域",
    "random boxes {a:n} nats": "随机框 {a} nats",
    "random boxes {a:n}": "随机框 {a}",
    "without sinks {a:n}": "去掉注意力汇 {a}",
    "nats of margin": "差距，nats",
    "cost of hiding it": "遮住它的代价",
    "the six pieces of evidence": "六条依据",
    "rests on": "依据",
    "interval": "区间",
    "at least": "至少",
    "why": "理由",
    "boxes": "框",
    "before:": "之前：",
    "now:": "现在：",
    "{i}<b>answers</b>": "{i}<b>回答</b>",
    "{i}<b>picture</b>": "{i}<b>图像</b>",
    "{i}<b>attention</b>": "{i}<b>注意力</b>",
    "{i}<b>cause</b>": "{i}<b>因果</b>",
    "{i}<b>mediation</b>": "{i}<b>中介</b>",
    "{i}<b>guards</b>": "{i}<b>护栏</b>",
    "<b>{a:n}</b> of the answers right": "<b>{a}</b> 的回答正确",
    "<b>{a:n}</b> of the margin lost with another picture": "换图后差距损失 <b>{a}</b>",
    "<b>{a:n}</b> gain of the region, or its weakest lead": "该区域的增幅，或最弱的领先：<b>{a}</b>",
    "<b>{a:n}</b> of the margin’s rise, in cost of hiding it": "遮住它的代价占差距增幅的 <b>{a}</b>",
    "<b>{a:n}</b> of the margin’s change goes with attention": "差距变化中 <b>{a}</b> 随注意力而去",
    "<b>{a:n}</b> of the guards right": "<b>{a}</b> 的护栏答对",
    "Change of {w:t}: effect size {e:n} with {n:t}; about {m:n} would detect an effect of this size.": (
        "{w}的变化：效应量 {e}，{n}；要检出这样大的效应约需 {m} 个。"
    ),
    "Change of {w:t}: effect size {e:n} with {n:t}.": "{w}的变化：效应量 {e}，{n}。",
    "margin": "差距",
    "which region decides the answer": "哪个区域决定回答",
    "Share of the probes whose margin shifts most, up or down, when this region is hidden; in the rest none stands out.": (
        "遮住该区域时差距变化最大（增或减）的探针比例；其余探针没有突出的区域。"
    ),
    "what carries the change": "变化由什么带来",
    "Share of the margin’s change that goes when attention is put back as it was before. Shares need not add up.": (
        "把注意力换回原样时，差距的变化中有多少随之消失。各项之和不必等于 100%。"
    ),
    "all language layers": "全部语言层",
    "the key layers": "关键层",
    "key layers {n:l}": "关键层 {n}",
    "the connector": "连接器",
    "layer {n:n} alone": "仅第 {n} 层",
    "… and {n:t} that carry less, in comparison.json": "……另有 {n} 贡献更小，见 comparison.json",
    "taking the region away": "拿掉该区域",
    "Margin lost, nats, before → after; last, the same done to random places after.": (
        "差距损失（nats），之前 → 现在；最后一列：对随机位置做同样处理（现在）。"
    ),
    "hiding it in the picture": "在图中遮住它",
    "keeping question and answer from looking at it": "让问题和回答都看不到它",
    "cutting it inside vision tower and resampler": "在视觉塔和重采样器内切断它",
    "the region against other places": "该区域与其他位置相比",
    "How much more its attention grew than that of another place, over half of what both get before and after.": (
        "它的注意力比另一处多增长多少，除以两处前后所得之和的一半。"
    ),
    "{n:n} of {m:n} heads moved": "{m} 个注意力头中有 {n} 个变了",
    "Heads whose attention on the region changed more or less than on random places, beyond chance, adjusted for all "
    "heads tested.": "对该区域的注意力变化多于或少于随机位置、且超出偶然的头（已按全部受检的头校正）。",
    "layer {n:n}, head {h:n}: {a:n} on the region, {b:n} on random places": (
        "第 {n} 层第 {h} 头：对该区域 {a}，对随机位置 {b}"
    ),
    "Heads whose attention on the region changed beyond chance, adjusted for all heads tested.": (
        "对该区域的注意力变化超出偶然的头（已按全部受检的头校正）。"
    ),
    "layer {n:n}, head {h:n}: {a:n} on the region": "第 {n} 层第 {h} 头：对该区域 {a}",
    "layer {n:n}, head {h:n} (trained on): {a:n} on the region, {b:n} on random places": (
        "第 {n} 层第 {h} 头（受过训练）：对该区域 {a}，对随机位置 {b}"
    ),
    "layer {n:n}, head {h:n} (trained on): {a:n} on the region": "第 {n} 层第 {h} 头（受过训练）：对该区域 {a}",
    "“Trained on”: attention was trained on in this layer, so it looks where it was told to.": (
        "“受过训练”：训练直接约束了这一层的注意力，所以它看向被要求看的地方。"
    ),
    "… and {n:n} more in comparison.json": "……其余 {n} 个见 comparison.json",
    "the relation": "关系",
    "Expect weak signals: spatial order is often read from the background. × is a multiple of the area's share.": (
        "信号往往很弱：空间关系常从背景读出。× 是面积占比的倍数。"
    ),
    "the relation word looks at the subject": "关系词看主体",
    "the relation word looks at the object": "关系词看客体",
    "the smaller of these two, by layer and head": "逐层逐头取两者较小",
    "the later noun looks at the earlier one": "后一个名词看前一个",
    "the same with the nouns swapped": "交换名词后同上",
    "the relation word looks at the subject (trained on)": "关系词看主体（受过训练）",
    "the relation word looks at the object (trained on)": "关系词看客体（受过训练）",
    "the smaller of these two, by layer and head (trained on)": "逐层逐头取两者较小（受过训练）",
    "the later noun looks at the earlier one (trained on)": "后一个名词看前一个（受过训练）",
    "the same with the nouns swapped (trained on)": "交换名词后同上（受过训练）",
    "“Trained on”: a mean over layers; in one or more of them attention was trained on, so it looks where it was told to.": (
        "“受过训练”：各层的均值；其中一层或多层的注意力受过训练，因此它看的正是训练所要求之处。"
    ),
    "in the vision tower, the subject's patches look at the object": "视觉塔中主体的图块看客体",
    "the same for random boxes": "随机框同上",
    "hiding and showing the picture bit by bit": "逐步遮住与逐步露出图片",
    "Margin in nats; grey: random places of equal size. If a map matters, its line departs from the grey one.": (
        "差距（nats）；灰线：同样大小的随机位置。若注意力图有意义，它的线会与灰线分开。"
    ),
    "hiding, most attended first": "遮住，先遮最受关注处",
    "showing, same order": "露出，同样顺序",
    "share hidden": "遮住比例",
    "share shown": "露出比例",
    "random before": "随机，之前",
    "random after": "随机，之后",
    "Attention is collapsing: 1 head now rests on single tokens, and the highest attention logit is {a:n} ({b:n} "
    "before). Training in this state tends to become unstable; lower the learning rate.": (
        "注意力正在坍缩：1 个头只落在单个词元上，最高注意力 logit 为 {a}（之前 {b}）。这样训练容易不稳定，请调低学习率。"
    ),
    "Attention is collapsing: {n:n} heads now rest on single tokens, and the highest attention logit is {a:n} ({b:n} "
    "before). Training in this state tends to become unstable; lower the learning rate.": (
        "注意力正在坍缩：{n} 个头只落在单个词元上，最高注意力 logit 为 {a}（之前 {b}）。这样训练容易不稳定，请调低学习率。"
    ),
    "{g}:": "{g}：",
}

_REASONS = {
    "{level:n} interval {a:n} to {b:n}": "{level} 置信区间 {a} 至 {b}",
    "the same on every picture": "每张图都相同",
    "{a:n} of the answers are right ({i:i}; at least {b:n} must be), {c:n} before: {g:n} became right and {l:n} wrong "
    "(exact McNemar p = {p:n}){rest:t}": (
        "{a} 的回答正确（{i}；至少需 {b}），之前 {c}：{g} 张图变对，{l} 张变错（精确 McNemar 检验 p = {p}）{rest}"
    ),
    "{a:n} of the answers are right, {e:n} with each picture counted once ({i:i} of these; at least {b:n} of both must be), "
    "{c:n} of the answers before: on {g:t} more became right and on {l:n} fewer (exact McNemar p = {p:n}){rest:t}": (
        "{a} 的回答正确，每张图片计一次则为 {e}（后者的 {i}；两者都至少需 {b}），之前 {c} 的回答正确：{g}上答对更多，{l} 张更少"
        "（精确 McNemar 检验 p = {p}）{rest}"
    ),
    "; but {s:n} of the generated answers are right, {o:n} before, which differs by more than {d:n}.": (
        "；但实际生成的回答有 {s} 正确，之前 {o}，相差超过 {d}。"
    ),
    "; but {s:n} of the generated answers are right with each picture counted once, {o:n} before, which differs by more than "
    "{d:n}.": "；但每张图片计一次，实际生成的回答只有 {s} 正确，之前 {o}，相差超过 {d}。",
    "; in all, fewer answers are right, beyond chance{rest:t}": "；总体上正确的回答变少了，且超出偶然{rest}",
    "; in all, right answers did not become more{rest:t}": "；总体上正确的回答并没有变多{rest}",
    "; in all, right answers did not become fewer{rest:t}": "；总体上正确的回答并没有变少{rest}",
    "; {a:n} of the generated answers are right, {b:n} before.": "；实际生成的回答有 {a} 正确，之前 {b}。",
    "; {a:n} of the generated answers are right with each picture counted once, {b:n} before.": (
        "；每张图片计一次，实际生成的回答有 {a} 正确，之前 {b}。"
    ),
    "No probe of this group has a foil to compare with its answer.": "本组没有探针带有可与答案比较的错误答案。",
    "The region gets {a:n} times the attention that its area alone would get, {b:n} before ({m:t}; {c:t}){rest:t}": (
        "该区域得到的注意力是其面积应得的 {a} 倍，之前 {b} 倍（{m}；{c}）{rest}"
    ),
    "median probe: {x:n} times as much as before": "中位探针：之前的 {x} 倍",
    "median probe: over {x:n} times as much as before": "中位探针：超过之前的 {x} 倍",
    "{l:t}, each chosen on one half of the pictures and judged on the other": "{l}，各在一半图片上选出、在另一半上判断",
    "{l:t}, chosen on each half of the pictures for the other": "{l}，在两半图片上互相选出",
    "layer {n:n}": "第 {n} 层",
    "layer {n:n}, trained on": "第 {n} 层，受过训练",
    "layers {n:l}": "第 {n} 层",
    "; {w:t}; in {l:t} attention left the region. {trained:t}": "；{w}；在{l}，注意力离开了该区域。{trained}",
    "; {w:t}; in {l:t} attention left the region.": "；{w}；在{l}，注意力离开了该区域。",
    "{a:n} of the mean of before and after, p = {p:n}": "相当于前后均值的 {a}，p = {p}",
    "it left the region ({s:t})": "注意力离开了该区域（{s}）",
    "the change could be due to chance ({s:t}, adjusted for every group)": "变化可能出于偶然（{s}，已按所有组校正）",
    "chance does not explain the change ({s:t}), but a move is at least {p:n} to the region": (
        "偶然无法解释这一变化（{s}），但至少要向该区域移动 {p} 才算数"
    ),
    "chance does not explain the change ({s:t}), but no move is claimed: a few probes carry the mean, and the ranks that p "
    "judges point the other way": (
        "偶然无法解释这一变化（{s}），但不认定有移动：均值由少数探针决定，而 p 值所依据的秩指向相反方向"
    ),
    "chance does not explain the change ({s:t}), and its lead over {place:t} is {x:n} ({i:i}), at least {p:n}": (
        "偶然无法解释这一变化（{s}），并且它领先 {place} {x}（{i}），至少需 {p}"
    ),
    "chance does not explain the change ({s:t}), but its lead over {place:t} is {x:n} ({i:i}): it did not move to the "
    "region alone": "偶然无法解释这一变化（{s}），但它领先 {place} {x}（{i}）：注意力并非只移到该区域",
    ", but there is no other place to compare with: attention may have moved to any object (add a second region).": (
        "，但没有其他位置可比：注意力也可能移到了任何物体上（请再加一个区域）。"
    ),
    "; {w:t}. {trained:t}": "；{w}。{trained}",
    "; {w:t}.": "；{w}。",
    "These probes have no region, so attention is not judged.": "这些探针没有区域，不判断注意力。",
    "Attention was trained on in {l:t} and on {n:n} of these probes' pictures; it is judged only where it was not.": (
        "训练直接约束了{l}以及其中 {n} 个探针图片的注意力；只在未受约束之处判断。"
    ),
    "Attention was trained on in {l:t} and on {n:n} of these probes' pictures; it is judged only where it was not, as far "
    "as that is known: not for the supervised pictures of streamed data.": (
        "训练直接约束了{l}以及其中 {n} 个探针图片的注意力；只在已知未受约束之处判断：流式数据中受约束的图片无从得知。"
    ),
    "Attention was trained on in {l:t}; it is judged only where it was not, as far as that is known: not for the "
    "supervised pictures of streamed data.": (
        "训练直接约束了{l}的注意力；只在已知未受约束之处判断：流式数据中受约束的图片无从得知。"
    ),
    "Attention was trained on in {l:t}; it is judged only where it was not.": "训练直接约束了{l}的注意力；只在未受约束之处判断。",
    "Attention was trained on in {l:t} and on {n:n} of these probes' pictures, {e:t} that could be judged: where it looks "
    "there is what it was told to.": "训练直接约束了{l}以及其中 {n} 个探针图片的注意力，即{e}可判断之处：它看哪里正是训练所要求的。",
    "Attention was trained on in {l:t}, {e:t} that could be judged: where it looks there is what it was told to.": (
        "训练直接约束了{l}的注意力，即{e}可判断之处：它看哪里正是训练所要求的。"
    ),
    "Attention was trained on in {l:t} and in the resampler, through which every layer looks at the picture: where it "
    "looks is what it was told to.": (
        "训练直接约束了{l}以及重采样器的注意力，而各层都经由重采样器看图：它看哪里正是训练所要求的。"
    ),
    "In {l:t} a map has no attention at all before or after, but not both: it is not judged there.": (
        "在{l}，有的图只在训练前或只在训练后没有任何注意力：该层不作判断。"
    ),
    "In no key layer that could be judged does attention reach the region, before or after (a sliding window may end "
    "before the picture): choose others (--key_layers).": (
        "可判断的关键层中，训练前后都没有注意力落到该区域（滑动窗口可能到不了图片）：请另选关键层（--key_layers）。"
    ),
    "every layer": "所有",
    "every picture": "所有图片上",
    "{w:t} measured on {n:t}, and {m:n} are needed.": "{w}只在 {n}上测量，需要 {m} 张。",
    "Attention on a region was": "对区域的注意力",
    "The cost of hiding the region was": "遮住该区域的代价",
    "The margin with another picture was": "换图后的差距",
    "What carries the change was": "变化由什么带来，",
    "Of the margin, {lost:l} is lost ({i:i} {kind:t}; at least {p:n} must be).": (
        "差距的损失：{lost}（{i}，{kind}；至少需 {p}）。"
    ),
    "{a:n} with a picture of another answer": "换成另一答案的图时 {a}",
    "{a:n} with a blank picture": "空白图时 {a}",
    "{a:n} without a picture": "无图时 {a}",
    "with a picture of another answer": "换成另一答案的图",
    "with a blank picture": "空白图",
    "without a picture": "无图",
    "No other picture was tried, so the words alone may have sufficed.": "没有试过别的图片，可能只凭文字就够了。",
    "The margin is not significantly above 0, so no share of it can come from the picture.": (
        "差距并不显著高于 0，谈不上有多少来自图像。"
    ),
    "Hiding the region costs {a:n} nats of margin (how much likelier the right answer is than the wrong one; each nat is "
    "a factor of 2.7), {b:n} before ({i:i}), and random regions of its size {c:n}; {rest:t}": (
        "遮住该区域使差距减少 {a} nats（差距：正确答案比错误答案可能多少，每 nat 为 2.7 倍），之前 {b}（{i}），"
        "同样大小的随机区域 {c}；{rest}"
    ),
    "that is {a:n} of the margin's rise ({i:i}; at least {p:n}) and {b:n} of the margin (at least {q:n}){more:t}": (
        "这是差距增幅的 {a}（{i}；至少需 {p}），占差距的 {b}（至少需 {q}）{more}"
    ),
    "; but the answers still depend on {names}.": "；但回答仍依赖 {names}。",
    "the margin {fault:t}, so no share of it can be given.": "差距{fault}，无法给出所占比例。",
    "did not rise significantly": "没有显著上升",
    "is not significantly above 0": "并不显著高于 0",
    "The cost of hiding the region was not measured against random regions.": "没有与随机区域对照测量遮住该区域的代价。",
    "With attention put back as it was before, this share of the margin's change goes: {words:l} ({i:i} of {where:t}; "
    "looking must carry at least {p:n}).": "把注意力换回原样时，差距变化中随之消失的比例：{words}（{i}，{where}；至少需 {p}）。",
    "{a:n} in all language layers": "全部语言层 {a}",
    "{a:n} in the key layers": "关键层 {a}",
    "{a:n} in the connector": "连接器 {a}",
    "{a:n} in layer {n:n} alone": "仅第 {n} 层 {a}",
    "What carries the change was not measured: {why:t}.": "变化由什么带来，没有测量：{why}。",
    "the attention of the model before was not put back": "没有把之前模型的注意力换回去",
    "the margin did not rise significantly, so there is no change to carry": "差距没有显著上升，没有变化可言",
    "attention was put back in the key layers or the connector in only {n:n} of {m:n} probes": (
        "{m} 个探针中只有 {n} 个在关键层或连接器换回了注意力"
    ),
    "the model whose attention was put back ({m}) gives other margins than the one before ({n:n} of {k:n} probes)": (
        "换回注意力所用的模型（{m}）与之前的模型差距不同（{k} 个探针中 {n} 个）"
    ),
    "Of the {n:n} guards, whose right answer is the wrong one here{which:t} are right after and {b:n} before ({i:i} after; "
    "at least {p:n} must be, and {q:n} of those before){rest:t}": (
        "{n} 个护栏的正确答案正是这里的错误答案{which} 现在答对，之前 {b}（现在 {i}；至少需 {p}，并达到之前的 {q}）{rest}"
    ),
    "Of the {n:n} guards, whose right answer is the wrong one here, {a:n} are right after where the answer is {w} and {b:n} "
    "before ({i:i} after; at least {p:n} must be, and {q:n} of those before){rest:t}": (
        "{n} 个护栏的正确答案正是这里的错误答案，其中答案为 {w} 的 {a} 现在答对，之前 {b}"
        "（现在 {i}；至少需 {p}，并达到之前的 {q}）{rest}"
    ),
    "Of the {n:n} guards, whose right answer is the wrong one here, {a:n} are right after and {b:n} before, {c:n} and {d:n} "
    "with each picture counted once ({i:i} of these after; at least {p:n} of both must be, and {q:n} of those before)"
    "{rest:t}": (
        "{n} 个护栏的正确答案正是这里的错误答案，{a} 现在答对，之前 {b}；每张图片计一次则现在 {c}，之前 {d}"
        "（后者现在的 {i}；两者都至少需 {p}，并达到之前的 {q}）{rest}"
    ),
    "Of the {n:n} guards, whose right answer is the wrong one here, {a:n} are right after where the answer is {w} and {b:n} "
    "before, {c:n} and {d:n} with each picture counted once ({i:i} of these after; at least {p:n} of both must be, and {q:n} of "
    "those before){rest:t}": (
        "{n} 个护栏的正确答案正是这里的错误答案，其中答案为 {w} 的 {a} 现在答对，之前 {b}；每张图片计一次则现在 {c}，之前 {d}"
        "（后者现在的 {i}；两者都至少需 {p}，并达到之前的 {q}）{rest}"
    ),
    "No guards: {w} is the wrong answer of {k:n} of the {n:n} probes here, and the right answer of guards on {g:t}.": (
        "没有护栏：{w} 是这里 {n} 个探针中 {k} 个的错误答案，而以它为正确答案的护栏只在 {g}上。"
    ),
    "; {g} is broken.": "；{g} 失守。",
    "; they were wrong before too, so they say nothing about this group.": "；它们之前也答错，因此对本组说明不了什么。",
    "No guards held out: in {n:n} of {m:n} probes of '{g}' a picture is in the training data, the first is {id}.": (
        "没有与训练数据分开的护栏：“{g}”的 {m} 个探针中有 {n} 个的图片在训练数据里，第一个是 {id}。"
    ),
    "In {n:n} of {m:n} probes a picture is in the training data, the first is {id}: what was trained on says nothing of "
    "other pictures.": (
        "{m} 个探针中有 {n} 个的图片在训练数据里，第一个是 {id}：训练过的图片不能说明其他图片上的情况。"
    ),
    "No guards: no probe of this group has a foil.": "没有护栏：本组没有探针带错误答案。",
    "No guards: the right answer of at least {n:n} probes on as many pictures must be the wrong answer here ({w}), and "
    "there is {found:t}.": "没有护栏：需要至少 {n} 个图片各不相同的探针，其正确答案是这里的错误答案（{w}），而现在{found}。",
    "none": "一个也没有",
    "{a:n} of the probes are answered correctly, {b:n} before: at least {c:n} of the accuracy before{one:t}": (
        "{a} 的探针答对，之前 {b}：至少达到之前答对率的 {c}{one}"
    ),
    "{a:n} of the probes are answered correctly, {b:n} before: less than {c:n} of the accuracy before{one:t}": (
        "{a} 的探针答对，之前 {b}：不到之前答对率的 {c}{one}"
    ),
    "{a:n} of the probes are answered correctly, {b:n} before, with each picture counted once {c:n}, {d:n} before: at least "
    "{e:n} of the accuracy before by both{one:t}": (
        "{a} 的探针答对，之前 {b}；每张图片计一次则为 {c}，之前 {d}：两者都至少达到之前答对率的 {e}{one}"
    ),
    "{a:n} of the probes are answered correctly, {b:n} before, with each picture counted once {c:n}, {d:n} before: less than "
    "{e:n} of the accuracy before by both{one:t}": (
        "{a} 的探针答对，之前 {b}；每张图片计一次则为 {c}，之前 {d}：两者都不到之前答对率的 {e}{one}"
    ),
    "{a:n} of the probes are answered correctly, {b:n} before, with each picture counted once {c:n}, {d:n} before: less than "
    "{e:n} of the accuracy before by picture{one:t}": (
        "{a} 的探针答对，之前 {b}；每张图片计一次则为 {c}，之前 {d}：后者不到之前答对率的 {e}{one}"
    ),
    "{a:n} of the probes are answered correctly, {b:n} before, with each picture counted once {c:n}, {d:n} before: less than "
    "{e:n} of the accuracy before by answers{one:t}": (
        "{a} 的探针答对，之前 {b}；每张图片计一次则为 {c}，之前 {d}：前者不到之前答对率的 {e}{one}"
    ),
    "No probe was answered correctly before, so there is nothing to keep.": "之前没有一个探针答对，因此没有可保持的。",
    "Of what it says {a:n} is right, {b:n} before.": "它实际说出的回答有 {a} 正确，之前 {b}。",
    "; but {a:n} of the generated answers are right, {b:n} before.": "；但实际生成的回答有 {a} 正确，之前 {b}。",
    "; but {a:n} of the generated answers are right with each picture counted once, {b:n} before.": (
        "；但每张图片计一次，实际生成的回答有 {a} 正确，之前 {b}。"
    ),
    "; with {n:n} probes, one more wrong answer would fall below that line.": "；共 {n} 个探针，再错一个就会低于这条线。",
    "; with {n:n} probes, one more right answer would reach that line.": "；共 {n} 个探针，再对一个就能达到这条线。",
    "{n:t} on {m:t} cannot distinguish a change from chance; {rest:t}": "{n}（{m}）无法把变化与偶然区分开；{rest}",
    "{n:t} cannot distinguish a change from chance; {rest:t}": "{n}无法把变化与偶然区分开；{rest}",
    "at least {n:n} probes on as many different pictures are needed.": "至少需要 {n} 个图片各不相同的探针。",
    "at least {n:n} probes on as many different pictures are needed, and about {m:n} for a change as large and as "
    "consistent as this one.": "至少需要 {n} 个图片各不相同的探针；要检出这样大而一致的变化约需 {m} 个。",
    "In {n:n} of the {m:n} probes that the model before gets wrong by margin, it generates the right answer ({said}); put "
    "first the spelling that it uses.": "按差距之前答错的 {m} 个探针中，有 {n} 个生成的已是正确答案（{said}）；请把它所用的写法放在第一个。",
    "In {n:n} of the {m:n} probes that the model before gets wrong, it does not answer the foil ({said}); use its actual "
    "answer as the foil.": "之前答错的 {m} 个探针中，有 {n} 个答的并不是所给的错误答案（{said}）；请用它实际的回答作错误答案。",
    "The model before was measured in {a}, the model after in {b}: some of what differs is rounding; measure both in one "
    "precision.": "之前的模型以 {a} 测量，之后的模型以 {b} 测量：差别中有一部分只是舍入；请用同一精度测量两者。",
    "Before and after are both read through the adapter's processor, whose settings are not the base's own ({n}): the "
    "base by itself may answer otherwise.": (
        "之前和之后都经适配器的处理器读取，其设置与基座自己的不同（{n}）：基座单独运行时的回答可能不同。"
    ),
    "Before and after are read through processors of other settings ({n}): some of what differs may come from them, not "
    "from training.": "之前和之后经设置不同的处理器读取（{n}）：差别中有一部分可能来自处理器，而非训练。",
    "{n:n} of {m:n} probes of the records are not in the probe file: what is picked once answers are known can show "
    "anything; give all probes of the records, unless these were left out beforehand.": (
        "记录中的 {m} 个探针有 {n} 个不在探针文件里：知道回答之后再挑选，什么结果都能得出；请给出记录的全部探针，除非这些是事先就去掉的。"
    ),
}

_BOXES = {
    "{a:n} of {b:n} boxes right at IoU .5 (mean IoU {c:n}, centre inside {d:n}); {rest:s}": (
        "{b} 个框中 {a} 个正确（IoU .5；平均 IoU {c}，中心落入 {d}）；{rest}"
    ),
    "{a:n} of {b:n} boxes right at IoU .5 (mean IoU {c:n}, centre inside {d:n})": (
        "{b} 个框中 {a} 个正确（IoU .5；平均 IoU {c}，中心落入 {d}）"
    ),
    "without a box: {n:n}": "没有给出框：{n}",
    "corners that span no box: {n:n}": "角点不成框：{n}",
    "written as {form}: {n:n}": "写成 {form}：{n}",
    "on {name} instead: {n:n}": "框在 {name} 上：{n}",
    "without that, {n:n} would be right": "若无此偏差，{n} 个正确",
}

_CHARTS = {
    "Did the answers change?": "回答变了吗？",
    "Each line is one probe: log p(right answer) − log p(wrong answer), in nats. Above the dashed line the right answer is "
    "likelier (filled points), below it the wrong one (hollow). All charts share one scale.": (
        "每条线是一个探针：log p(正确答案) − log p(错误答案)，单位 nats。虚线以上正确答案更可能（实心点），以下错误答案更可能"
        "（空心点）。各图同一刻度。"
    ),
    "{a:n} of {n:n} right before, {b:n} now": "{n} 个中之前 {a} 个答对，现在 {b} 个",
    "{n:n} right": "{n} 个答对",
    "Did the attention move?": "注意力变了吗？",
    "Attention on the region over its share of the picture (1× is uniform attention), in each key layer: its change, with "
    "the 95 % paired bootstrap interval. An interval that includes zero may be chance.": (
        "每个关键层中，区域的注意力与其面积占比之比（1× 即均匀）的变化及 95% 配对自助法区间。区间含 0 则可能是偶然。"
    ),
    "No probe names a wrong answer, so margins are not measured.": "没有探针给出错误答案，不测量差距。",
    "No probe names a region, so attention is not judged.": "没有探针给出区域，不判断注意力。",
    "change {a:n}, interval {b:n}": "变化 {a}，区间 {b}",
    "change of attention on the region, times the even share": "区域注意力的变化，均匀分布的倍数",
    "How it developed": "训练过程",
    "The same questions at every checkpoint; charts of attention share one scale. Drift is the Jensen–Shannon divergence of "
    "a map from that of the first checkpoint, mean over all probes: 0 means the same map, 0.69 (ln 2) no overlap.": (
        "每个检查点都问同样的问题；注意力各图同一刻度。漂移是与第一个检查点的注意力图之间的 Jensen–Shannon 散度（全部探针平均）："
        "0 表示相同，0.69（ln 2）表示毫无重叠。"
    ),
    "drift of the maps, nats": "注意力图的漂移，nats",
    "attention on its region, times the even share: {g}": "对各自区域的注意力，均匀分布的倍数：{g}",
    "lines: {x:l}": "曲线：{x}",
    "lines: {x}": "曲线：{x}",
    "layer {n:n}: {v:n}": "第 {n} 层：{v}",
    "before: {v:n}": "之前：{v}",
    "after: {v:n}": "之后：{v}",
    "random before: {v:n}": "随机，之前：{v}",
    "random after: {v:n}": "随机，之后：{v}",
    "What came first": "先后次序",
    "The first checkpoint at which answers, attention on the region, and what hiding it costs differ from the base beyond "
    "chance.": "回答、对区域的注意力、遮住它的代价各自在哪个检查点开始与基线有超出偶然的差异。",
    "The first checkpoint at which answers, attention on the region, and what hiding it costs differ from the base beyond "
    "chance. The p of all {n:n} looks are adjusted together (Holm), so that a run in which nothing changes names no onset in "
    "95 of 100 cases. What varies more from probe to probe is noticed later.": (
        "回答、对区域的注意力、遮住它的代价各自在哪个检查点开始与基线有超出偶然的差异。全部 {n} 次检验的 p 一并校正（Holm），"
        "因此毫无变化的训练在 100 次中有 95 次不会报出起点。探针之间差异越大，越晚被察觉。"
    ),
    "Not judged: too few pictures.": "未判断：图片太少。",
    "{a:t} and {b:t} came together, within the {w:t} between {u:t} {x:n} and {y:n}.": (
        "{a}和{b}同时开始，在{u} {x} 至 {y} 之间（{w}内）。"
    ),
    "Whether {a:t} or {b:t} came first is not known: {a} came between {u:t} {w:n} and {x:n}, {b} between {y:n} and {z:n}.": (
        "{a}和{b}谁先无法判断：{a}在{u} {w} 至 {x} 之间，{b}在 {y} 至 {z} 之间。"
    ),
    "{a:t} led {b:t} by {n:t} ({u:t} {x:n} and {y:n}; checkpoints lie {w:t} apart).": (
        "{a}比{b}早 {n}（{u} {x} 和 {y}；检查点相隔 {w}）。"
    ),
    "{a:t}: not measured on enough pictures at any checkpoint.": "{a}：没有任何检查点测量了足够多的图片。",
    "{a:t} did not move beyond chance.": "{a}没有超出偶然的变化。",
    "{a:t} did not change beyond chance.": "{a}没有超出偶然的变化。",
    "{a:t} rose beyond chance by {u:t} {n:n}.": "{a}到{u} {n} 已超出偶然地上升。",
    "{a:t} fell beyond chance by {u:t} {n:n}.": "{a}到{u} {n} 已超出偶然地下降。",
    "{a:t} fell beyond chance by {u:t} {n:n}, and not at every later checkpoint.": (
        "{a}到{u} {n} 已超出偶然地下降，但并非此后每个检查点都如此。"
    ),
    "{a:t} was not beyond chance at every later checkpoint.": "{a}并非在此后每个检查点都超出偶然。",
    "{a:t} were not beyond chance at every later checkpoint.": "{a}并非在此后每个检查点都超出偶然。",
    "Pictures of this group are in the training data: what rose shows no correction.": (
        "本组有图片在训练数据里：上升的部分不能证明已纠正。"
    ),
    "Answers": "回答",
    "Attention": "注意力",
    "Cause": "因果",
    "the answers": "回答",
    "steps": "第",
    "checkpoints": "检查点",
    "{n:n} steps": "{n} 步",
    "{n:n} step": "{n} 步",
    "{n:n} checkpoints": "{n} 个检查点",
    "{n:n} checkpoint": "{n} 个检查点",
}

_PAGE = {
    "Every probe": "全部探针",
    "Attention from the token that decides the answer to the picture; the two maps share one colour scale. White boxes: the "
    "judged region. Where a right answer is a box, the box that was said is drawn too, dashed where it is wrong. Pick a "
    "group to see all its probes; click a map, or press Enter on it, to enlarge it.": (
        "决定答案的词元对图片的注意力热力图；前后两图同一色标。白框：被判断的区域。若正确答案是框，也画出模型说出的框，答错时为"
        "虚线。选一个组可看全部探针；点击热力图或按 Enter 可放大。"
    ),
    "Filter": "筛选",
    "Outcome": "结果",
    "any outcome": "全部结果",
    "wrong → right": "错 → 对",
    "right → wrong": "对 → 错",
    "right now": "现在正确",
    "wrong now": "现在错误",
    "Search": "搜索",
    "search question, answer, id": "搜索问题、答案、编号",
    "A script inside this file draws the maps; allow scripts to see them. Everything above works without.": (
        "热力图由本文件内的脚本绘制，请允许运行脚本；以上内容不需要脚本。"
    ),
    "No probe matches this filter.": "没有符合条件的探针。",
    "all {n:n}": "全部 {n}",
    "difference": "差异",
    "difference of attention": "注意力的差异",
    "cost of hiding the region": "遮住该区域的代价",
    "its answer depends on": "回答依赖于",
    "leave out sinks: tokens that draw attention whatever the picture shows": "去掉注意力汇：不论图片内容都吸引注意力的词元",
    "more +{n:n}×": "增加 +{n}×",
    "−{n:n}× less": "−{n}× 减少",
    "not generated": "未生成",
    "path of its maps over steps; the plane explains {n:n} % of the variance": "注意力图随步数的轨迹；该平面解释 {n}% 的方差",
    "region: {name}": "区域：{name}",
    "right / wrong": "正确 / 错误",
    "step {n:n}": "第 {n} 步",
    "steps {n:n} to {m:n}": "第 {n} 至 {m} 步",
    "the first {n:n} of {m:n}, in the order of the probe file": "共 {m} 个，按探针文件顺序显示前 {n} 个",
    "times the even share": "均匀分布的倍数",
    "training step": "训练步数",
    "without sinks": "去掉注意力汇",
    "{n:n} points": "{n} 个百分点",
    "{n:n}× (peak {m:n})": "{n}×（峰值 {m}）",
    "▶ play": "▶ 播放",
    "❚❚ pause": "❚❚ 暂停",
    "What this can and cannot show": "能说明什么，不能说明什么",
    "<b>Where, not why.</b> A map shows where a token looked. Only hiding that place, compared with random places of the "
    "same size, shows that the answer needs it.": (
        "<b>看哪里，不等于为什么。</b>热力图只说明词元看了哪里。只有把那里遮住，并与同样大小的随机位置比较，才能说明答案依赖它。"
    ),
    "<b>Answers may change while attention stays.</b> Then the correction happened elsewhere in the model. That is a finding "
    "too, and the verdict says so.": "<b>回答可能变了而注意力没变。</b>那么纠正发生在模型别处；这也是发现，结论会写明。",
    "<b>Sharp is not right.</b> A map may be sharp on the wrong place, and bright cells may be sinks, which draw attention "
    "whatever the picture shows.": (
        "<b>集中不等于正确。</b>热力图可能集中在错误的位置；亮格也可能是注意力汇，不论图片内容都吸引注意力。"
    ),
    "More: <code>docs/reading-attention.md</code> on what maps can tell, <code>docs/guide.md</code> on using your own data.": (
        "更多：热力图能说明什么，见 <code>docs/reading-attention.md</code>；用自己的数据，见 <code>docs/guide.md</code>。"
    ),
    "How to read this": "怎样读这份报告",
    "Share of probes for which the model finds the right answer likelier than its foil, the wrong answer it is compared "
    "with. Not the share of generated answers that are right; those are quoted with each probe.": (
        "模型认为正确答案比错误答案（foil）更可能的探针比例。这不是生成回答的正确率；生成的回答列在每个探针旁。"
    ),
    "One layer’s attention from the token that predicts the first differing word of the answer to the image, mean over "
    "heads, mapped onto the original picture, through the connector where there is one. It shows where, not how much: it "
    "sums to 1 over the picture.": (
        "某一层中，预测答案首个不同词的词元对图像的注意力，对各头取平均，（经连接器）映射回原图。它只说明看哪里，不说明看多少："
        "整张图之和为 1。"
    ),
    "How much margin is lost when the region is painted over; below it, the same for random boxes of the same area. A map "
    "alone explains nothing; this shows whether the answer needs the region.": (
        "把区域涂掉后差距损失多少；下面是同样面积的随机框。单凭热力图什么也解释不了，这才说明答案是否依赖该区域。"
    ),
    "the legs": "六条依据",
    "<b>answers</b>: right by margin, more than before, and said too. <b>picture</b>: the margin goes when another picture "
    "is shown. <b>attention</b>: the region gains, and more than any other place. <b>cause</b>: the margin rose because it "
    "needs the region. <b>mediation</b>: the change goes when attention is put back as it was before. <b>guards</b>: probes "
    "whose right answer is the wrong one here stay right.": (
        "<b>回答</b>：按差距算正确，多于之前，而且也这样说出来。<b>图像</b>：换一张图，差距就消失。<b>注意力</b>：该区域增加，且多于"
        "其他任何位置。<b>因果</b>：差距上升是因为依赖该区域。<b>中介</b>：把注意力换回原样，变化随之消失。<b>护栏</b>：正确答案恰是"
        "这里错误答案的探针仍然答对。"
    ),
}

_DIAGNOSIS = {
    "Where the right answer is lost": "正确答案在哪里丢失",
    "What is wrong": "哪里出了错",
    "language prior": "语言先验",
    "not seen": "没有看见",
    "seen, not passed on": "看见，未传递",
    "passed on, not looked at": "已传递，未注视",
    "looked at, not used": "已注视，未使用",
    "known, said otherwise": "知道，说成别的",
    "not determined": "未确定",
    "The answers are right.": "回答正确。",
    "Nothing is lost on the way.": "途中没有丢失。",
    "There are too few probes to say anything.": "探针太少，无法下结论。",
    "Nothing can be said of the way.": "无法说明途中的情况。",
    "It says {f} whatever the picture shows.": "不论图片内容如何，它都答 {f}。",
    "It says {f} where {r} is right.": "正确答案是 {r} 时，它答 {f}。",
    "It says {f} too readily.": "它太容易答 {f}。",
    "{a:n} are right.": "{a} 答对。",
    "{a:n} are right, {b:n} with each picture counted once.": "{a} 答对，每张图片计一次则为 {b}。",
    "The answer is never asked of the picture: the words of the question decide.": "回答根本不问图片：由问题的文字决定。",
    "It is lost in the vision tower: what it makes of {r:t} is the same for both answers.": (
        "在视觉塔中丢失：对两种答案，视觉塔从{r}得到的表示都一样。"
    ),
    "The tower sees it, and it is lost in the connector: the image tokens no longer tell the answers apart.": (
        "视觉塔看见了，但在连接器中丢失：图像词元已分不出两种答案。"
    ),
    "The image tokens hold the right answer, and the answer does not look at {r:t}; {d} decides.": (
        "图像词元含有正确答案，但回答时不看{r}，而由 {d} 决定。"
    ),
    "The image tokens hold the right answer, and the answer does not look at {r:t}.": "图像词元含有正确答案，但回答时不看{r}。",
    "What it sees of {r:t} has reached the answer's state, and does not reach its words; {d} decides.": (
        "它从{r}看到的已到达回答状态，但没有进入回答，而由 {d} 决定。"
    ),
    "What it sees of {r:t} has reached the answer's state, and does not reach its words.": (
        "它从{r}看到的已到达回答状态，但没有进入回答。"
    ),
    "It looks at {r:t}, and what it sees there does not reach its words; {d} decides.": (
        "它看了{r}，但看到的没有进入回答，而由 {d} 决定。"
    ),
    "It looks at {r:t}, and what it sees there does not reach its words.": "它看了{r}，但看到的没有进入回答。",
    "It knows: one number added to every margin would make its answers right.": "它其实知道：给每个差距加上同一个数，回答就都对了。",
    "The last step leans to one side.": "只是最后一步偏向一边。",
    "Where it is lost could not be determined.": "无法确定在哪里丢失。",
    "the region": "该区域",
    "Train {l:l}.": "训练{l}。",
    "the language layers": "语言层",
    "the vision tower": "视觉塔",
    "Layer {n:n}: brighter is more attention.": "第 {n} 层：越亮，注意力越多。",
    "White: {r}. Orange: {d}, which decides.": "白框：{r}。橙框：{d}，由它决定。",
    "White: {r}.": "白框：{r}。",
    "Orange: {r}, which decides.": "橙框：{r}，由它决定。",
    "Asked {q}. It rated {f} likelier than {a}, by {n:n} nats.": "问 {q}。它认为 {f} 比 {a} 更可能，差 {n} nats。",
    "Asked {q}. It rated {f} and {a} equally likely.": "问 {q}。它认为 {f} 和 {a} 同样可能。",
    "attention over the picture": "图片上的注意力",
    "vision tower": "视觉塔",
    "connector": "连接器",
    "answer state": "回答状态",
    "words": "文字",
    "picture to words; the place of loss is not determined": "从图像到文字；丢失的位置未确定",
    "picture to words; lost at: {x:t}": "从图像到文字；丢失于：{x}",
    "<b>Samples:</b>": "<b>样本：</b>",
    "<b>Guards:</b>": "<b>护栏：</b>",
    "None are missing.": "不缺样本。",
    "Add probes on other pictures before anything is trained.": "先在其他图片上增加探针，再训练。",
    "Add what the missing test needs before anything is trained.": "先补上未完成的检验所需的内容，再训练。",
    "Samples that ask the same words of pictures with different right answers, as many of each.": (
        "用同样的问题问正确答案不同的图片，各种答案的样本一样多。"
    ),
    "As many samples of each of the two answers: the model leans to one of them, and little else is wrong.": (
        "两种答案的样本一样多：模型只是偏向其中一个，其他问题不大。"
    ),
    "Samples in which nothing but the region that each probe names tells the two answers apart, large and small in the "
    "picture; try more --max_pixels first where the family has them.": (
        "只有每个探针所指的区域能区分两种答案的样本，在图中有大有小；若该模型支持 --max_pixels，请先试着调大。"
    ),
    "Samples in which nothing but the region that each probe names tells the two answers apart, at many places of the "
    "picture.": "只有每个探针所指的区域能区分两种答案的样本，位于图片的各处。",
    "Samples in which {d} contradicts the answer as often as it agrees: the answers depend on {d}, and only the region that "
    "each probe names may tell them apart.": (
        "{d} 与答案一致和矛盾各半的样本：回答依赖 {d}，而只应由每个探针所指的区域区分。"
    ),
    "Samples whose answer follows from the region that each probe names alone, with everything else in the picture varied "
    "at random.": "答案只取决于每个探针所指区域的样本，图片其余部分随机变化。",
    "Each answer names the boxes of the region that each probe names in look_at.": (
        "每个回答在 look_at 中给出其探针所指区域的框。"
    ),
    "Samples in which nothing but {r} tells the two answers apart, large and small in the picture; try more --max_pixels "
    "first where the family has them.": (
        "只有 {r} 能区分两种答案的样本，在图中有大有小；若该模型支持 --max_pixels，请先试着调大。"
    ),
    "Samples in which nothing but {r} tells the two answers apart, at many places of the picture.": (
        "只有 {r} 能区分两种答案的样本，位于图片的各处。"
    ),
    "Samples in which {d} contradicts the answer as often as it agrees: the answers depend on {d}, and only {r} may tell "
    "them apart.": "{d} 与答案一致和矛盾各半的样本：回答依赖 {d}，而只应由 {r} 区分。",
    "Samples whose answer follows from what decides alone, with everything else in the picture varied at random.": (
        "答案只取决于判断依据的样本，图片其余部分随机变化。"
    ),
    "Samples whose answer follows from {r} alone, with everything else in the picture varied at random.": (
        "答案只取决于 {r} 的样本，图片其余部分随机变化。"
    ),
    "Each answer names the boxes of {r} in look_at.": "每个回答在 look_at 中给出 {r} 的框。",
    "Keep as many samples, and at least 20 probes on as many pictures, whose right answer is the foil of one of these "
    "probes; and ordinary samples as --replay_data.": (
        "保留同样多正确答案为这些探针之一的错误答案的样本，以及至少 20 个图片各不相同的此类探针；并用普通样本作 --replay_data。"
    ),
    "Keep as many samples, and at least 20 probes on as many pictures, whose right answer is {w} or {v}; and ordinary "
    "samples as --replay_data.": (
        "保留同样多正确答案为 {w} 或 {v} 的样本，以及至少 20 个图片各不相同的此类探针；并用普通样本作 --replay_data。"
    ),
    "Keep as many samples, and at least 20 probes on as many pictures, whose right answer is {w}; and ordinary samples as "
    "--replay_data.": (
        "保留同样多正确答案为 {w} 的样本，以及至少 20 个图片各不相同的此类探针；并用普通样本作 --replay_data。"
    ),
    "tests": "检验",
    "tested": "检验项",
    "{i}<b>one shift</b>": "{i}<b>常数偏移</b>",
    "{i}<b>tower</b>": "{i}<b>视觉塔</b>",
    "{i}<b>tokens</b>": "{i}<b>图像词元</b>",
    "{i}<b>answer state</b>": "{i}<b>回答状态</b>",
    "{i}<b>hiding</b>": "{i}<b>遮挡</b>",
    "<b>{a:n}</b> right with the margin shifted": "差距平移后 <b>{a}</b> 正确",
    "<b>{a:n}</b> of the margin moves with the picture": "差距的 <b>{a}</b> 随图片变化",
    "<b>{a:n}</b> told apart in the tower": "视觉塔中可区分 <b>{a}</b>",
    "<b>{a:n}</b> told apart in the image tokens": "图像词元中可区分 <b>{a}</b>",
    "<b>{a:n}</b> the area’s share, in attention": "注意力为面积占比的 <b>{a}</b>",
    "<b>{a:n}</b> told apart where words are read from": "读出文字之处可区分 <b>{a}</b>",
    "<b>{a:n}</b> of the margin moves when it is hidden": "遮住后差距变化 <b>{a}</b>",
    "{a:n} of the answers are right ({i:i}; at least {b:n} must be).": "{a} 的回答正确（{i}；至少需 {b}）。",
    "{a:n} of the answers are right, {e:n} with each picture counted once ({i:i} of these; at least {b:n} of both must "
    "be).": "{a} 的回答正确，每张图片计一次则为 {e}（后者的{i}；两者都至少需 {b}）。",
    "Attention was trained on in this layer: it looks where it was told to.": (
        "训练直接约束了这一层的注意力：它看向被要求看的地方。"
    ),
    "No probe has a foil; {n:n} on as many pictures are needed.": "没有探针带错误答案；需要 {n} 个图片各不相同的探针。",
    "{n:n} pictures with a foil; {m:n} are needed, {k:n} more.": "{n} 张图片带错误答案；需要 {m} 张，还差 {k} 张。",
    "With the margin shifted by one number ({m:n} nats towards {a}), chosen on other pictures, {v:n} of both answers are "
    "right ({i:i}; at least {b:n} must be), {p:n} without; with blank pictures {w:n} would be.": (
        "差距平移一个数（向 {a} 移 {m} nats，在其他图片上选定）后，两种答案的 {v} 正确（{i}；至少需 {b}），不平移为 {p}；"
        "换成空白图时为 {w}。"
    ),
    "With the margin shifted by one number ({m:n} nats towards {a}), chosen on other pictures, {v:n} of both answers are "
    "right ({i:i}; at least {b:n} must be), {p:n} without.": (
        "差距平移一个数（向 {a} 移 {m} nats，在其他图片上选定）后，两种答案的 {v} 正确（{i}；至少需 {b}），不平移为 {p}。"
    ),
    "Of the margin's size, so much moves when the picture is replaced: {moved:l} ({i:i} {w:t}; at least {p:n} must).": (
        "更换图片时差距大小的变化：{moved}（{i}，{w}；至少需 {p}）。"
    ),
    "{a:n} with a blank one": "换成空白图 {a}",
    "with a blank one": "空白图",
    "{a:n} without any": "不给图 {a}",
    "Fewer than {n:n} pictures could be replaced by another or a blank one.": "能换成另一张或空白图的图片不足 {n} 张。",
    "{what:t} can tell the right answer from the wrong one: a linear probe gets {a:n} right on other pictures ({i:i}; "
    "at least {p:n} must be; {n:n} pictures of one answer, {m:n} of the other), shuffled labels up to {s:n}; the background of the same pictures {b:n}.": (
        "{what}能区分正确与错误答案：线性探测在其他图片上 {a} 正确（{i}；至少需 {p}；一种答案 {n} 张，另一种 {m} 张），"
        "打乱标签最高 {s}；同样图片的背景 {b}。"
    ),
    "{what:t} can tell the right answer from the wrong one: a linear probe gets {a:n} right on other pictures ({i:i}; "
    "at least {p:n} must be; {n:n} pictures of one answer, {m:n} of the other), shuffled labels up to {s:n}.": (
        "{what}能区分正确与错误答案：线性探测在其他图片上 {a} 正确（{i}；至少需 {p}；一种答案 {n} 张，另一种 {m} 张），"
        "打乱标签最高 {s}。"
    ),
    "{what:t} cannot tell the right answer from the wrong one: a linear probe gets {a:n} right on other pictures ({i:i}; "
    "at least {p:n} must be; {n:n} pictures of one answer, {m:n} of the other), shuffled labels up to {s:n}; the background of the same pictures {b:n}.": (
        "{what}不能区分正确与错误答案：线性探测在其他图片上 {a} 正确（{i}；至少需 {p}；一种答案 {n} 张，另一种 {m} 张），"
        "打乱标签最高 {s}；同样图片的背景 {b}。"
    ),
    "{what:t} cannot tell the right answer from the wrong one: a linear probe gets {a:n} right on other pictures ({i:i}; "
    "at least {p:n} must be; {n:n} pictures of one answer, {m:n} of the other), shuffled labels up to {s:n}.": (
        "{what}不能区分正确与错误答案：线性探测在其他图片上 {a} 正确（{i}；至少需 {p}；一种答案 {n} 张，另一种 {m} 张），"
        "打乱标签最高 {s}。"
    ),
    "{what:t} can tell the right answer from the wrong one: a linear probe gets {a:n} right on other pictures ({i:i}; "
    "at least {p:n} must be; {n:n} pictures of one answer, {m:n} of the other), shuffled labels up to {s:n}; with grey pictures {b:n}.": (
        "{what}能区分正确与错误答案：线性探测在其他图片上 {a} 正确（{i}；至少需 {p}；一种答案 {n} 张，另一种 {m} 张），"
        "打乱标签最高 {s}；换成灰色图片 {b}。"
    ),
    "{what:t} cannot tell the right answer from the wrong one: a linear probe gets {a:n} right on other pictures ({i:i}; "
    "at least {p:n} must be; {n:n} pictures of one answer, {m:n} of the other), shuffled labels up to {s:n}; with grey pictures {b:n}.": (
        "{what}不能区分正确与错误答案：线性探测在其他图片上 {a} 正确（{i}；至少需 {p}；一种答案 {n} 张，另一种 {m} 张），"
        "打乱标签最高 {s}；换成灰色图片 {b}。"
    ),
    "Not measured: the words up to the answer tell it, whatever the picture shows: with grey pictures a linear probe of the "
    "answer's state gets {a:n} right (at {b:n} the words tell); ask for both answers in the same words.": (
        "未测量：无论图片内容如何，回答之前的文字已透露答案：换成灰色图片，对回答状态的线性探测有 {a} 正确"
        "（达到 {b} 即说明文字透露了答案）；请用同样的措辞询问两种答案。"
    ),
    "The vision tower's states of the region": "视觉塔中该区域的状态",
    "The image tokens of the region": "该区域的图像词元",
    "The answer's own state": "回答自身的状态",
    "Where it answers wrong, the answer looks at the region {a:n} times as much as its area's share (95 % interval {b:n} to "
    "{c:n}; which must lie above {d:n}; random places {e:n}) in {l:t}, chosen on the other half of the pictures.": (
        "答错时，回答对该区域的注意力是其面积占比的 {a} 倍（95% 置信区间 {b} 至 {c}，须高于 {d}；随机位置 {e}），{l}，"
        "在另一半图片上选出。"
    ),
    "Where it answers wrong, hiding the region moves the margin by {a:n} nats more than hiding random places ({i:i}), "
    "{b:n} of it (at least {c:n} must be); hiding {d} moves it by {e:n}.": (
        "答错时，遮住该区域使差距比遮住随机位置多变化 {a} nats（{i}），占差距的 {b}（至少需 {c}）；遮住 {d} 变化 {e}。"
    ),
    "Where it answers wrong, hiding the region moves the margin by {a:n} nats more than hiding random places ({i:i}), "
    "{b:n} of it (at least {c:n} must be).": (
        "答错时，遮住该区域使差距比遮住随机位置多变化 {a} nats（{i}），占差距的 {b}（至少需 {c}）。"
    ),
    "The margins cannot be told from 0.": "差距与 0 无法区分。",
    "Not measured: {n:n} pictures with a wrong answer are needed whose probe {what:t}, and there is 1.": (
        "未测量：需要 {n} 张答错且其探针{what}的图片，现有 1 张。"
    ),
    "Not measured: {n:n} pictures with a wrong answer are needed whose probe {what:t}, and there are {m:n}.": (
        "未测量：需要 {n} 张答错且其探针{what}的图片，现有 {m} 张。"
    ),
    "Not measured: {n:n} pictures with a wrong answer are needed whose probe {what:t}, and there are none.": (
        "未测量：需要 {n} 张答错且其探针{what}的图片，现在一张也没有。"
    ),
    "Not measured: {n:n} pictures with a wrong answer are needed whose probe {what:t}, and there is 1 beside {k:t} whose "
    "region fills the picture, so that no other place is left.": (
        "未测量：需要 {n} 张答错且其探针{what}的图片，现有 1 张；另有 {k}的区域占满整张图片，没有其他位置可比。"
    ),
    "Not measured: {n:n} pictures with a wrong answer are needed whose probe {what:t}, and there are {m:n} beside {k:t} whose "
    "region fills the picture, so that no other place is left.": (
        "未测量：需要 {n} 张答错且其探针{what}的图片，现有 {m} 张；另有 {k}的区域占满整张图片，没有其他位置可比。"
    ),
    "Not measured: {n:n} pictures with a wrong answer are needed whose probe {what:t}, and there are none beside {k:t} whose "
    "region fills the picture, so that no other place is left.": (
        "未测量：需要 {n} 张答错且其探针{what}的图片，现在一张也没有；另有 {k}的区域占满整张图片，没有其他位置可比。"
    ),
    "names a region": "给出区域",
    "has a region to hide": "有可遮住的区域",
    "Not measured: too few guards have this group's right answer as their wrong one.": (
        "未测量：以本组正确答案为错误答案的护栏太少。"
    ),
    "Not measured: no probe of this group has a foil.": "未测量：本组没有探针带错误答案。",
    "Not measured: {n:n} pictures of each of two answers are needed, and there are {a:n} of one and {b:n} of the other: add "
    "probes whose right answer is the wrong one here.": (
        "未测量：两种答案各需 {n} 张图片，现有 {a} 张和 {b} 张：请增加正确答案恰是这里错误答案的探针。"
    ),
    "Not measured: these probes name no region.": "未测量：这些探针没有给出区域。",
    "Not measured: {n:n} pictures of each answer must have the region, and {a:t} of one and {b:n} of the other do.": (
        "未测量：每种答案需 {n} 张图片有该区域，现在一种有 {a}，另一种 {b} 张。"
    ),
    "Not measured: {n:t} stand on both sides: the answer depends on the question, so states of the picture alone cannot "
    "tell it.": "未测量：{n}同时属于两边：答案取决于问题，仅凭图片的状态无法区分。",
    "Not measured: on {n:t} it cannot be told which of these states stand for the region.": (
        "未测量：有 {n}无法确定哪些状态对应该区域。"
    ),
    "Not determined, since a test is missing.": "未确定，因为缺少一项检验。",
    "Not determined: it looks at the region, and yet it answers wrong.": "未确定：它看该区域，却仍然答错。",
    "Not determined: it looks at the region and needs it, and yet it answers wrong.": "未确定：它看该区域并且依赖它，却仍然答错。",
    "The evidence": "依据",
    "Evidence": "依据",
    "Tests in the order in which they are asked; the first that points somewhere decides. A test that could not be "
    "measured says why, and nothing that rests on it is claimed.": (
        "检验按提问顺序排列，第一个指向某处的检验作出判断。未能测量的检验会说明原因，依赖它的结论一概不下。"
    ),
    "<b>Readable is not used.</b> A linear probe shows that states hold the answer, not that the model uses it; what hiding "
    "a region moves shows that.": (
        "<b>读得出不等于用到了。</b>线性探测只说明状态含有答案，不说明模型用了它；遮住区域后的变化才说明这一点。"
    ),
    "<b>Not read is not absent.</b> A linear rule on few pictures may miss what is there in another form. Shuffled labels "
    "and background cells stand beside it.": (
        "<b>读不出不等于没有。</b>少量图片上的线性规则可能漏掉以其他形式存在的信息；旁边列有打乱标签和背景格的结果作对照。"
    ),
    "<b>The first fault, not all.</b> What comes later on the way is judged only once what comes before is mended.": (
        "<b>只是第一处问题，不是全部。</b>前面的修好之后，才能判断后面的。"
    ),
    "More: <code>docs/diagnose.md</code>.": "更多：<code>docs/diagnose.md</code>。",
}

_NUMBERS = {
    "{a:n} to {b:n}": "{a} 至 {b}",
    "<b>{a:n}</b> {b:n}": "<b>{a}</b> {b}",
}

_STUDIES = {
    "Not known: {v:t} with {n:n} samples; training on more does not change that, more or other probes may.": (
        "无法判断：{n} 个样本时，结论是{v}；用更多样本训练改变不了这一点，增加或更换探针才有可能。"
    ),
    "“Not known”: the probes cannot tell, with however many samples.": "“无法判断”是指：无论多少样本，这些探针都分辨不出。",
}

CHINESE: dict[str, str] = {
    **_NAMES,
    **_HEADLINE,
    **_DIAGNOSIS,
    **_CASES,
    **_CARDS,
    **_REASONS,
    **_BOXES,
    **_CHARTS,
    **_PAGE,
    **_NUMBERS,
    **chinese_studies.CURVE,
    **chinese_studies.KEEP,
    **_STUDIES,
}
