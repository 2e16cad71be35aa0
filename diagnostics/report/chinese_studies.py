"""The Chinese of the pages about how many samples are enough and how many image tokens are; see ``chinese.py``."""

from __future__ import annotations

_REPORT = {  # of the page on before and after
    "checkpoint {n:n}": "检查点 {n}",
    "checkpoints {n:n} to {m:n}": "检查点 {n} 至 {m}",
    "path of its maps over checkpoints; the plane explains {n:n} % of the variance": (
        "注意力图随检查点的轨迹；该平面解释 {n}% 的方差"
    ),
    "“Now” is not the model of the last checkpoint, and no point of these lines.": (
        "“现在”不是最后一个检查点的模型，也不是这些曲线上的点。"
    ),
    "<b>These questions, not all.</b> A verdict holds for pictures like those of the probes; no correction is claimed "
    "where one of them is known to be in the training data. It says nothing about what no probe asks.": (
        "<b>只限这些问题。</b>结论适用于与探针图片相似的图片；已知其中有图片在训练数据中时，不会声称已纠正。探针没有问到的，它什么也不说。"
    ),
    "Claimed only where all six legs hold, each beyond chance and by its threshold; a leg that was not measured is named in "
    "the verdict. Not claimed where a picture of a probe is known to be in the training data.": (
        "只有六条依据全部成立（超出偶然且达到阈值）才这样说；未测量的依据会写在结论里。已知有探针图片在训练数据中时不这样说。"
    ),
    "Asked {q}, it said {s}, which is right, though it found {f} likelier.": "问 {q}，它答 {s}，这是对的，但它认为 {f} 更可能。",
}

CURVE = {
    **_REPORT,
    "Not settled for {g:w}; {a:n} of {b:n} groups have enough samples.": (
        "{g}尚无定论；{b} 组中有 {a} 组样本已经足够。"
    ),
    "{n:n} samples are enough for every group.": "每一组都只需 {n} 个样本。",
    "Nested parts of {s:w}, from {a:n} to {b:n} of {c:n} samples, trained for {h:t} ({m:t}).": (
        "{s}的逐级子集，从 {a} 到 {b} 个样本（共 {c} 个），训练{h}（{m}）。"
    ),
    "as many steps": "同样多的步数",
    "as many epochs": "同样多的轮数",
    "{n:n} steps each; fewer samples are seen more often": "各 {n} 步；样本越少，每个看得越多",
    "{a:n} to {b:n} steps": "{a} 至 {b} 步",
    "{n:n} seeds.": "{n} 个随机种子。",
    "One seed: another draw of the samples may need more or fewer.": "一个随机种子：换一批样本，所需数量可能更多或更少。",
    "Bars are 95 % intervals: of a share, and of the change from the base. The square is the base. Filled points have a "
    "verdict that holds.": "竖线是 95% 置信区间（比例本身，或相对基础模型的变化）。方块是基础模型。实心点的结论成立。",
    "Where probes share pictures, right answers are drawn with each picture counted once.": (
        "若多个探针共用图片，答对比例按每张图片计一次绘出。"
    ),
    "How many samples?": "需要多少样本？",
    "samples": "样本数",
    "verdict": "结论",
    "right answers": "答对比例",
    "attention on the region, times": "对区域的注意力（倍）",
    "hiding it costs, nats": "遮住它的代价（nats）",
    "guards right": "护栏答对",
    "began at (answers, attention, cause)": "开始于（回答、注意力、因果）",
    "{n:n}, seed {s:n}": "{n}，种子 {s}",
    "{a:n}, {b:n} by picture": "{a}，按图片计 {b}",
    "{a:n}, {b:n} by picture <i>[{l:n}, {h:n}]</i>": "{a}，按图片计 {b} <i>[{l}, {h}]</i>",
    "&quot;{a:t}&quot; or &quot;{b:t}&quot;": "“{a}”或“{b}”",
    "&quot;{a:t}&quot;": "“{a}”",
    "{n:n} samples are enough: {v:t}, the smallest number tried.": "{n} 个样本足够：{v}，是试过的最小数量。",
    "{n:n} samples are enough: {v:t}, and with every larger number tried; with {m:n}: {w:t}.": (
        "{n} 个样本足够：{v}，试过的更大数量也都如此；{m} 个时：{w}。"
    ),
    "Not monotone: it also held with {l:l}, and not with every larger number.": (
        "并不单调：{l} 个时也成立，但并非每个更大的数量都成立。"
    ),
    "More does not help: from {a:n} samples to {b:n} nothing rises beyond chance, and the verdict stays {v:t}.": (
        "再多也没有帮助：从 {a} 到 {b} 个样本，没有任何一项的上升超出偶然，结论仍是{v}。"
    ),
    "Not enough yet: {v:t} with {n:n} samples, the largest number tried.": "还不够：试过的最大数量 {n} 个样本时，结论是{v}。",
    "From {a:n} to {b:n} samples: not measured.": "从 {a} 到 {b} 个样本：未测量。",
    "From {a:n} to {b:n} samples: {p:p}; {m:t}.": "从 {a} 到 {b} 个样本：{p}；{m}。",
    "answers {a} ({b} to {c})": "回答 {a}（{b} 至 {c}）",
    "attention {a} ({b} to {c})": "注意力 {a}（{b} 至 {c}）",
    "cause {a} ({b} to {c})": "因果 {a}（{b} 至 {c}）",
    "nothing beyond chance": "没有超出偶然的变化",
    "{a:l} rose, {b:l} fell beyond chance": "{a}上升、{b}下降，超出偶然",
    "{a:l} rose beyond chance": "{a}的上升超出偶然",
    "{a:l} fell beyond chance": "{a}的下降超出偶然",
    "Every number is of these probes and of one seed.": "所有数字都只针对这些探针和一个随机种子。",
    "Every number is of these probes and of the seeds.": "所有数字都只针对这些探针和这几个随机种子。",
    "Differences between neighbouring numbers of samples are paired over the same probes and adjusted for all of a "
    "group's (Holm); the intervals in brackets are not adjusted, and say how much could have been missed.": (
        "相邻样本数之间的差异在相同探针上配对，并对同组的全部比较作 Holm 校正；括号中的区间未校正，表示可能漏掉多少。"
    ),
    "“More does not help” means: not beyond chance, on these probes.": "“再多也没有帮助”是指：在这些探针上没有超出偶然。",
}

_ORDERS = {
    "layer {n:n}'s map": "第 {n} 层的热图",
    "FastV, after layer {n:n}": "FastV（第 {n} 层之后）",
    "received in the tower": "在视觉塔中被注意的程度",
    "DivPrune": "DivPrune",
    "FastV": "FastV",
    "random, {n:n} draws": "随机（抽 {n} 次）",
    "the region first": "区域优先",
    "least looked at first": "最少被注意的优先",
    "tower": "视觉塔",
    "random": "随机",
    "region first": "区域优先",
    "least first": "最少优先",
}

KEEP = {
    **_ORDERS,
    **{english[:1].upper() + english[1:]: chinese for english, chinese in _ORDERS.items()},
    "all probes": "全部探针",
    "{a:n} of the image tokens, chosen by layer {n:n}, keep {b:n} of right answers; random ones {c:n}, DivPrune's {d:n}.": (
        "按第 {n} 层选出 {a} 的图像词元，可保住 {b} 的正确回答；随机选为 {c}，DivPrune 为 {d}。"
    ),
    "No probe is answered right with all image tokens, so {a:n} of them have nothing to keep.": (
        "用全部图像词元也没有一个探针答对，因此保留 {a} 无从谈起。"
    ),
    "{m}. Dropped are {d:t}. The key layer is {n:n}: {w:t}": "{m}。丢弃的是{d}。关键层为第 {n} 层：{w}",
    "image tokens ({n:n} in the first probe)": "图像词元（第一个探针有 {n} 个）",
    "the resampler's queries, each of which has read the whole picture ({n:n} in the first probe)": (
        "重采样器的查询（每个都读过整张图；第一个探针有 {n} 个）"
    ),
    "it was given": "由用户指定",
    "no probes are left to choose it on: a layer in the middle": "没有剩余探针可用来选择：取中间一层",
    "{n:n} probes with a region are too few to choose layers, {m:n} are needed: they are evenly spaced.": (
        "带区域的探针只有 {n} 个，不足以选层（需要 {m} 个）：按等间隔取层。"
    ),
    "no probe was set aside to choose layers on, since {a:n} pictures a group must be left to judge and {b:n} with a "
    "region chosen on; more probes, or calibration probes of their own (--calibration_probes), change that: they are "
    "evenly spaced.": (
        "没有留出用来选层的探针：每组须留 {a} 张图片作判断，另需 {b} 张带区域的图片选层；增加探针，或另给校准探针"
        "（--calibration_probes）即可。按等间隔取层。"
    ),
    "Layers {l:l} look at the named regions more than at random ones of their size, in the mean of their heads, most "
    "significantly of all {n:n} (measured before training on {m:n} probes {o:t}, which no verdict uses).": (
        "按各头平均，第 {l} 层看指定区域多于同样大小的随机区域，在全部 {n} 层中最显著（训练前在 {m} 个{o}的探针上测得，不用于任何结论）。"
    ),
    "No layer looks at the named regions more than at random ones of their size ({m:n} probes {o:t}): the layers are "
    "evenly spaced.": "没有哪一层看指定区域多于同样大小的随机区域（{m} 个{o}的探针）：按等间隔取层。",
    "answered right": "答对",
    "of any answer": "不论答对与否",
    "Nothing is recommended: {n:n} pictures are too few, at least {m:n} are needed.": (
        "不作推荐：{n} 张图片太少，至少需要 {m} 张。"
    ),
    "Better than random tokens and than DivPrune: {p:s}.": "优于随机选取和 DivPrune：{p}。",
    "{o:t} at {a:n} (minus random {x:t}, minus DivPrune {y:t})": "{o}，保留 {a}（减去随机 {x}，减去 DivPrune {y}）",
    "{a:n} points [{b:n}, {c:n}]": "{a} 个百分点 [{b}, {c}]",
    "{a:t} p {p:n}": "{a}，p {p}",
    "Nothing is recommended: no order by attention beats both random tokens and DivPrune.": (
        "不作推荐：没有哪种按注意力的排序同时优于随机选取和 DivPrune。"
    ),
    "{o:t} comes closest, at {a:n} (minus random {x:t}, minus DivPrune {y:t}).": (
        "最接近的是{o}，保留 {a}（减去随机 {x}，减去 DivPrune {y}）。"
    ),
    "{n:n} probes have no foil or no picture and are left out.": "{n} 个探针没有错误答案或没有图片，未计入。",
    "{o:t}: not measured, {w:t}.": "{o}：未测量，{w}。",
    "no probe names a region": "没有探针给出区域",
    "the tower's patches are not those of whole cells (tiles)": "视觉塔的图块与整格（分块）不对应",
    "a picture of {n:n} patches has too many rows to keep": "一张图片有 {n} 个图块，要保存的行太多",
    "the tower's last layer has no row for each patch of the picture's cells": "视觉塔最后一层没有与图片每个图块对应的行",
    "Right answers against what is kept": "保留多少与答对多少",
    "From all image tokens, at the right, to the fewest. Numbers and intervals stand below.": (
        "右端为全部图像词元，向左越来越少。数字和区间见下表。"
    ),
    "Numbers": "数字",
    "Each probe is asked again with a share of its image tokens; the others are out of every token's sight in all language "
    "layers, with FastV in those after its layer. Positions stay as they were.": (
        "每个探针只用一部分图像词元重新提问；其余词元在所有语言层中对任何词元都不可见（FastV 则在其层之后）。位置编码不变。"
    ),
    "Of a picture padded to a square the tokens of its margins are dropped wherever anything is.": (
        "若图片被补成正方形，只要丢弃任何词元，其补边的词元也一并丢弃。"
    ),
    "Right: log p of the right answer, through the end of the turn, is above that of the wrong one, by a margin in nats; no "
    "answer is generated.": (
        "正确：正确答案（直到该轮结束）的 log p 高于错误答案，其差即为差距（nats）；不生成回答。"
    ),
    "Intervals: 95 %, drawn by picture. Differences are of "
    "the same probes, and their p is adjusted for every order by attention and every share (Holm).": (
        "区间：95%，按图片重抽样。差异取自相同探针，p 值对每种注意力排序和每个比例作 Holm 校正。"
    ),
    "Still right: of the answers that are right with all image tokens. Region: which part of the named region's cells is "
    "among those kept.": "仍正确：在用全部图像词元时正确的回答中。区域：指定区域的格子有多少被保留。",
    "The first image token often gathers attention without showing anything (a sink), so orders by attention are also judged "
    "with it kept in any case and dropped in any case.": (
        "第一个图像词元常常聚集注意力却不表示任何内容（注意力沉没点），因此按注意力的排序也在始终保留它和始终丢弃它时各判断一次。"
    ),
    "order": "排序",
    "tokens kept": "保留的词元",
    "minus random": "减去随机",
    "minus DivPrune": "减去 DivPrune",
    "still right": "仍正确",
    "margin, nats": "差距（nats）",
    "region": "区域",
    "first kept, dropped": "保留、丢弃首个词元",
    "{n:n} probes, {a:n} [{b:n}, {c:n}] right with all tokens": "{n} 个探针，用全部词元时 {a} [{b}, {c}] 正确",
    "too few pictures to recommend anything": "图片太少，不作推荐",
    "% kept": "保留 %",
}
