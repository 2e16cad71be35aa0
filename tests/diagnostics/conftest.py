"""Fixtures of the tiny model: a folder, a processor and a model per test file."""

import pytest

from tests.diagnostics.tiny_qwen_vl import tiny_model, tiny_processor


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    return tmp_path_factory.mktemp(request.module.__name__)


@pytest.fixture(scope="module")
def processor(folder):
    return tiny_processor(folder)


@pytest.fixture(scope="module")
def model():
    return tiny_model()
