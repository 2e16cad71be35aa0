"""The Auto classes know Qwen-VL once ``finetune`` is imported, in whatever order things are imported."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BASE = ROOT / "finetune" / "demo" / "base"
ASKED = f"""
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
import transformers.models.auto.modeling_auto as modeling
config = AutoConfig.from_pretrained({str(BASE)!r})
print(type(config).__name__)
for auto in (AutoModel, AutoModelForCausalLM, AutoModelForImageTextToText):
    print(auto._model_mapping[type(config)].__name__)
for auto in (AutoTokenizer, AutoProcessor, AutoImageProcessor):
    print(type(auto.from_pretrained({str(BASE)!r})).__name__)
print(type(modeling.__loader__).__name__, type(modeling.__spec__.loader).__name__)
"""
KNOWN = [
    "QwenVLConfig",
    "QwenVLModel",
    "QwenVLForConditionalGeneration",
    "QwenVLForConditionalGeneration",
    "QwenVLTokenizer",
    "QwenVLProcessor",
    "QwenVLImageProcessor",
    "SourceFileLoader SourceFileLoader",
]


@pytest.mark.parametrize(
    "first",
    [
        "from transformers import AutoConfig, AutoTokenizer; import finetune",
        "import finetune.qwen_vl.modeling",
        # what loads modeling_auto before it is whole itself
        "import finetune, transformers.modeling_layers",
        "import finetune.qwen_vl.visual",
    ],
)
def test_auto_classes_know_qwen_vl(first):
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", first + ASKED],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.stdout.splitlines() == KNOWN, ran.stderr[-2000:]
