"""How many tokens a picture becomes: what a family works out, without what importing a family loads."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ImageArithmetic:
    """How a picture becomes tokens.

    resized_pixels   (width, height) after the family's resize
    patches          (rows, columns) that the vision tower sees
    tokens           of the picture in the prompt, its markers not counted
    words            the same as one line of arithmetic
    """

    resized_pixels: tuple[int, int]
    patches: tuple[int, int]
    tokens: int
    words: str
