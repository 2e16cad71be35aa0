"""What families are made of: chat templates, tiles, grids, towers, boxes, tokenizers, module paths."""
