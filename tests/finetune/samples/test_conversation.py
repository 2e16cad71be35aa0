from pathlib import Path

from finetune.samples.conversation import BoxRef, Conversation, ImageRef, Turn, questions

DOG = BoxRef("<ref>the dog</ref><box>(1,2),(3,4)</box>", ((0.001, 0.002, 0.003, 0.004),), "the dog")


def about(*images: ImageRef) -> Conversation:
    asked = Turn("user", ("Picture 1: ", *images, "\nwhere is ", DOG, "?"))
    return Conversation((asked, Turn("assistant", ("here: ", DOG))))


def test_images_are_those_of_all_turns_in_order():
    first, second = ImageRef("a", Path("a")), ImageRef("b", Path("b"))
    turns = (Turn("user", (first, "x")), Turn("assistant", ("y",)), Turn("user", ("z", second)))
    assert Conversation(turns).images == (first, second)


def test_questions_read_as_the_user_wrote_them_boxes_too():
    file = ImageRef("a.png", Path("/data/a.png"))
    assert questions([about(file)]) == [(file.path, f"where is {DOG.written}?", f"here: {DOG.written}")]


def test_questions_are_about_one_picture_that_is_a_file():
    file, inside = ImageRef("a", Path("a")), ImageRef("b", Path("b"), data=b"png")
    assert questions([about(), about(file, file), about(inside), about(file, inside)]) == []


def test_where_a_sample_comes_from_is_no_part_of_it():
    turns = (Turn("user", ("a",)),)
    assert Conversation(turns, "x.json: record 1") == Conversation(turns, "y.json: record 2")
