"""Which picture a question names, in digits and words of both languages, and what only looks like one."""

import pytest

from diagnostics.web.named_pictures import about, numbers_of_pictures


@pytest.mark.parametrize(
    ("question", "picture"),
    [
        ("Which tower is this?", 2),
        ("What is in Picture 1?", 0),
        ("第 2 张图里有什么?", 1),
        ("图1和图3有什么不同?", 0),
        ("Is picture 7 the same?", 2),  # there is none
        ("picture 12", 2),
        ("What is in the second picture?", 1),
        ("第一张图里有什么?", 0),
    ],
)
def test_the_picture_that_a_question_is_about(question, picture):
    assert about(question, 3) == picture and about(question, 0) == 0


@pytest.mark.parametrize(
    ("question", "numbers"),
    [
        ("the 2nd photo and image #3", [2, 3]),
        ("What differs between the first and the second picture?", [1, 2]),
        ("Compare pictures 1, 2 and 4.", [1, 2, 4]),
        ("Describe picture two.", [2]),
        ("第一张和第二张有什么不同?", [1, 2]),
        ("第２幅圖片", [2]),
        ("图二里有什么?", [2]),
        ("第三个图呢?", [3]),
        ("What does picture 2 show, and the image 3?", [2, 3]),
        ("图片 2 是什么?", [2]),
        ("Is the man in this picture 1 taller?", [1]),
        ("What does the image 2 show?", [2]),
        ("图1只有一个人吗?", [1]),
        ("第二个图片里有什么?", [2]),
        ("Is it in image 2. Or not?", [2]),
        ("image 2/", [2]),
    ],
)
def test_numbers_in_words(question, numbers):
    assert numbers_of_pictures(question) == numbers


@pytest.mark.parametrize(
    "question",
    [
        "In this picture two people sit.",
        "In the last image 2 men are standing. Where is the left one?",
        "In this photo 1 man is walking.",
        "最后这张图片2个人在哪里?",
        "Is the picture one of a tower?",
        "the first of these",
        "图一共有几个人?",
        "这两张图一样吗?",
        "描述图片一下",
        "第二张桌子上有什么?",
        "墙上第二幅画是什么?",
        "第十一张图",
        "图十分清楚",
        "第2个图标是什么?",
        "第三个图案是什么颜色?",
        "Rate this image 1-5.",
        "请给这张图片1到5分",
        "Is the image 1/2 black?",
        "Is image 2.5 times as wide?",
        "Is this picture 3D?",
        "Rate the photo 1 to 5.",
    ],
)
def test_words_that_name_no_picture(question):
    assert numbers_of_pictures(question) == []
