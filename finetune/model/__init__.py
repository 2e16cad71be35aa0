"""The model: opened, adapted, put on its kernels, measured, left untouched."""
