"""Records in the input format of bertviz's head view (Vig 2019, arXiv 1906.05714)."""

from __future__ import annotations

from typing import Any

from diagnostics.records.record import AttentionRecord


def to_bertviz(record: AttentionRecord) -> dict[str, Any]:
    """The arguments of ``bertviz.head_view`` that show a record's rows: each kept query beside all tokens.

    >>> head_view(**to_bertviz(AttentionRecord.load("attention/step-000050/pearl-night-03.safetensors")))

    A record keeps a few rows of a few layers, so queries and keys differ in number: bertviz draws that as
    cross-attention. Layers keep their numbers; those that the record lacks are None and not included.

    cross_attention   list[Float32[1, heads, queries, keys]], one for each layer up to the last key layer
    encoder_tokens    text of each key; an image's tokens are numbered: "<image 17>", an overview's "<overview 17>"
    decoder_tokens    text of each query
    include_layers    the key layers
    """
    import torch

    rows: list[Any] = [None] * (max(record.layers) + 1)
    for at, layer in enumerate(record.layers):
        rows[layer] = torch.from_numpy(record.rows[at].copy())[None]
    tokens = list(record.tokens)
    for image in record.image_tokens:
        for name, one in (("image", image), ("overview", image.overview)):
            for number, position in enumerate(() if one is None else one.positions):
                tokens[int(position)] = f"<{name} {number}>"
    return {
        "cross_attention": rows,
        "encoder_tokens": tokens,
        "decoder_tokens": [query.text for query in record.queries],
        "include_layers": list(record.layers),
    }
