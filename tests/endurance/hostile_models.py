"""Hostile checkpoints: configurations, adapters, tokenizers and processors of every family, of small models."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.endurance.hostile_kinds import Kind, reshaped
from tests.endurance.mutations import changed, damaged, hostile_names, text_of


def families() -> dict[str, Any]:
    from tests.finetune.families.tiny_families import ALL
    from tests.finetune.families.tiny_llava import LLAVAS
    from tests.finetune.families.tiny_qwen3_5 import HYBRIDS
    from tests.finetune.families.tiny_siglip import SIGLIPS

    return {**ALL, **HYBRIDS, **LLAVAS, **SIGLIPS}


class Checkpoints(Kind):
    """Sound folders of every family, each written when it is first needed."""

    def __init__(self, world: Path) -> None:
        super().__init__(world)
        self.families = families()
        hostile_names(world)
        import finetune.auto_classes  # noqa: F401

    def sound(self, name: str) -> Path:
        folder = self.world / "sound" / name
        if not folder.is_dir():
            self.families[name].write(folder)
        return folder

    def linked(self, name: str, changing: str) -> Path:
        """The mutant's folder: links to the sound files, and a copy of the one to change."""
        self.clean()
        folder = self.place / "model"
        folder.mkdir()
        for path in self.sound(name).iterdir():
            if path.name == changing:
                shutil.copyfile(path, folder / path.name)
            else:
                (folder / path.name).symlink_to(path)
        return folder


class Configurations(Checkpoints):
    name = "configurations"

    def mutate(self, chance: random.Random) -> str:
        name = chance.choice([*self.families])
        self.folder = self.linked(name, "config.json")
        path = self.folder / "config.json"
        return f"{name} {self.json_or_bytes(json.loads(path.read_text()), chance, path, share=0.95)}"

    def read(self) -> str | None:
        from diagnostics import inspect
        from finetune import families as known
        from finetune.model import checkpoint

        config = checkpoint.load_config(self.folder)
        model = checkpoint.skeleton(config)
        family = known.family_of(config)
        if not any(True for _ in model.parameters()):
            return "a model without parameters"
        del family, model
        inspect.architecture(config, name=str(self.folder), tokens=100, picture=(40, 20))
        return None


class Adapters(Checkpoints):
    name = "adapters"

    def __init__(self, world: Path) -> None:
        super().__init__(world)
        from peft import LoraConfig, get_peft_model
        from safetensors.torch import load_file

        from finetune.model import checkpoint

        self.names = ("qwen-vl", "qwen2.5-vl")
        self.made: dict[str, Path] = {}
        self.tensors: dict[str, dict[str, torch.Tensor]] = {}
        for name in self.names:
            model, _ = checkpoint.load(self.sound(name))
            targets = ["c_attn", "w1"] if name == "qwen-vl" else ["q_proj", "v_proj"]
            adapted = get_peft_model(
                model, LoraConfig(r=2, lora_alpha=4, target_modules=targets, rank_pattern={targets[0]: 3})
            )
            folder = self.world / "adapter" / name
            adapted.save_pretrained(folder)
            config = json.loads((folder / "adapter_config.json").read_text())
            config["base_model_name_or_path"] = str(self.sound(name))
            (folder / "adapter_config.json").write_text(json.dumps(config))
            from finetune.model import adapters

            adapters.write_base(folder, str(self.sound(name)))
            self.made[name] = folder
            self.tensors[name] = load_file(folder / "adapter_model.safetensors")

    def mutate(self, chance: random.Random) -> str:
        from safetensors.torch import save

        self.clean()
        name = chance.choice(self.names)
        self.folder = self.place / "adapter"
        shutil.copytree(self.made[name], self.folder)
        way = chance.random()
        self.lost = ""
        if way < 0.5:
            path = self.folder / "adapter_config.json"
            return f"{name} {self.json_or_bytes(json.loads(path.read_text()), chance, path, share=0.93)}"
        if way < 0.56:
            path = self.folder / "adapter_base.json"
            return f"{name} base: {self.json_or_bytes(json.loads(path.read_text()), chance, path)}"
        path = self.folder / "adapter_model.safetensors"
        if way < 0.72:
            content, how = damaged(path.read_bytes(), chance, head=1_500)
            path.write_bytes(content)
            return f"{name} weights: {how}"
        if way < 0.8:
            content = path.read_bytes()
            length = int.from_bytes(content[:8], "little")
            made, done = changed(json.loads(content[8 : 8 + length]), chance)
            text = text_of(made, chance, ascii_only=True).encode()
            path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
            return f"{name} tensors: {'; '.join(map(str, done))}"
        tensors = dict(self.tensors[name])
        one = chance.choice([*tensors])
        self.lost = chance.choice(("deleted", "renamed", "both", "shape", "beside", "nan"))
        if self.lost == "deleted":
            del tensors[one]
        elif self.lost == "renamed":
            fresh = (f"{one}x", one.replace(".lora", ".lor"), f"\x1b[2J{one}", "x" * 3_000)
            tensors[chance.choice(fresh)] = tensors.pop(one)
        elif self.lost == "both":
            other = chance.choice([*tensors])
            tensors["a"] = tensors.pop(one)
            tensors["b"] = tensors.pop(other, torch.zeros(1))
        elif self.lost == "shape":
            array, _ = reshaped(tensors[one].numpy().astype(np.float32), chance)
            tensors[one] = torch.from_numpy(array)
        elif self.lost == "beside":
            tensors["base_model.model.extra.lora_A.weight"] = torch.zeros(2, 3)
        else:
            tensors[one] = tensors[one] * float("nan")
        path.write_bytes(save({key: value.contiguous() for key, value in tensors.items()}, {"format": "pt"}))
        return f"{name} {one} {self.lost}"

    def read(self) -> str | None:
        from finetune.model import checkpoint

        checkpoint.check(self.folder)
        if self.lost in ("deleted", "renamed", "both", "beside"):
            return f"an adapter with a tensor {self.lost}"
        if self.lost == "nan":
            model, _ = checkpoint.load(self.folder)
            del model
            return "an adapter of NaN"
        return None


class Tokenizers(Checkpoints):
    name = "tokenizers"
    templates = (
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ messages.append(1) }}",
        "{% if %}",
        "",
        "{{ raise_exception('\x1b[2J') }}",
        "{{ undefined.x }}",
        "{{ messages }}",
        "{{ 1/0 }}",
        "{% include '/etc/passwd' %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ messages[99] }}",
        "{{ messages[0]['content'] * 2 }}",
        "{{ strftime_now('%Y') }}",
        "{% for m in messages %}{{ m.role }}{% endfor %}",
        "{{ range(10**9)|list }}",
        "{{ 'x' * 10**11 }}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ i }}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
        "{% set n = namespace(x=[1]) %}{% for i in range(99) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
        "{% set n = namespace(x='a') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ 'a'|center(10**10) }}",
        "{{ 1.5|round(10**9, 'ceil') }}",
        "{{ '%99999999999d' % 1 }}",
    )

    def mutate(self, chance: random.Random) -> str:
        self.family = chance.choice([*self.families])
        files = [
            path.name
            for path in self.sound(self.family).iterdir()
            if path.name not in ("config.json", "generation_config.json") and path.suffix != ".safetensors"
        ]
        file = chance.choice(sorted(files))
        self.folder = self.linked(self.family, file)
        path = self.folder / file
        content = path.read_bytes()
        if path.suffix == ".json":
            return f"{self.family} {file} {self.json_or_bytes(json.loads(content), chance, path, share=0.93)}"
        if path.suffix == ".jinja" and chance.random() < 0.6:
            text = chance.choice(self.templates)
            path.write_text(text)
            return f"{self.family} {file} {text[:50]}"
        made, how = damaged(content, chance)
        path.write_bytes(made)
        return f"{self.family} {file} {how}"

    def read(self) -> str | None:
        from PIL import Image

        from finetune.model import checkpoint
        from finetune.samples.conversation import Conversation, ImageRef, Turn

        picture = self.world / "picture.png"
        if not picture.is_file():
            Image.effect_noise((40, 20), 50).convert("RGB").save(picture)
        processor = checkpoint.load_processor(self.folder)
        family = self.families[self.family].family
        asked = Turn("user", (ImageRef("picture.png", picture), "what?"))
        encoded = family.encode(processor, Conversation((asked, Turn("assistant", ("a cat",))), "hostile"))
        if not (encoded.labels != -100).any():
            return "no label is learned"
        if len(encoded.input_ids) != len(encoded.labels):
            return "labels of another length"
        return None


def kinds() -> dict[str, type[Kind]]:
    return {"configurations": Configurations, "adapters": Adapters, "tokenizers": Tokenizers}
