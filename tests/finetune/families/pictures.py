"""Random pictures, conversations about them, and what a small model makes of them."""

import numpy as np
import torch
from PIL import Image

from finetune.samples.conversation import Conversation, ImageRef, Turn


def picture(size, seed=0):
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), np.uint8))


def about(*pictures, words="what?", answer=("yes",), **of_each):
    refs = tuple(ImageRef(f"{i}.png", one, **of_each) for i, one in enumerate(pictures))
    return Conversation((Turn("user", (*refs, words)), Turn("assistant", answer)))


def slots(model, encoded):
    return np.flatnonzero(encoded.input_ids == model.config.image_token_id)


@torch.no_grad()
def features(model, encoded):
    """What the model puts at a conversation's image tokens."""
    found = model.model.get_image_features(**encoded.media, return_dict=True).pooler_output
    return torch.cat([one.flatten(0, -2) for one in found]).numpy()


@torch.no_grad()
def local_model(tiny):
    """Its model with a tower whose layers add nothing: its features are each of one patch alone."""
    model = tiny.model()
    for name, parameter in model.get_submodule(tiny.family.paths.vision_layers).named_parameters():
        if any(f".{end}." in name for end in ("out_proj", "projection_layer", "fc2")):
            parameter.zero_()
    return model
