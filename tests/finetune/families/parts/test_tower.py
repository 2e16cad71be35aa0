"""Places of a tower's sequences on pictures."""

from types import SimpleNamespace

import numpy as np
import pytest

from finetune.families import ImageTokens
from finetune.families.parts.processors import picture_settings
from finetune.families.parts.tower import patches_a_side
from tests.finetune.families.tiny_siglip import SIGLIPS


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_patches_a_cell_follow_the_checkpoints_own_settings(name, tmp_path):
    """Without them the published ones would cut this picture into tiles, whose overview has no patches of its own."""
    tiny = SIGLIPS[name]
    config, processor = tiny.model().config, tiny.processor(tmp_path)
    settings = picture_settings(processor) | {"do_image_splitting": False}
    image = ImageTokens(np.arange(4), (2, 2), np.zeros((4, 4)), (90, 30), False)
    assert patches_a_side(tiny.family, config, image) is None
    assert patches_a_side(tiny.family, config, image, settings) == config.scale_factor
    through = SimpleNamespace(through_connector=True)
    assert patches_a_side(tiny.family, config, through, settings) == 1
