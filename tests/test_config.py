"""Configurations: what is read, what is refused, and Graphcore's named ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bert_ipu.config import (
    CONFIG_FOLDER,
    PretrainConfig,
    RunConfig,
    SquadConfig,
    config_as_dict,
    config_from_values,
    describe_settings,
    load_config,
)
from bert_ipu.errors import ConfigError

NAMED = [
    *((PretrainConfig, path.stem) for path in sorted((CONFIG_FOLDER / "pretraining").glob("*.yaml"))),
    *((SquadConfig, path.stem) for path in sorted((CONFIG_FOLDER / "squad").glob("*.yaml"))),
]

# Global batch, learning rate and steps by the values of configs_pretraining.yml and configs_squad.yml in
# graphcore/examples nlp/bert/pytorch; pretrain_base_512_pod4 as its name says, not as that file does.
UPSTREAM_PRETRAINING = {
    "demo_tiny_128": (16, 1e-3, 150),
    "pretrain_base_128": (65536, 0.006, 7038),
    "pretrain_base_128_pod4": (65536, 0.006, 7038),
    "pretrain_base_512": (16384, 0.002828, 2137),
    "pretrain_base_512_pod4": (16384, 0.002828, 2137),
    "pretrain_large_128": (65536, 0.006, 7038),
    "pretrain_large_128_pod4": (65536, 0.006, 7038),
    "pretrain_large_128_ALS": (65536, 0.006, 7038),
    "pretrain_large_128_POD64": (65536, 0.006, 7038),
    "pretrain_large_128_POD64_ALS": (65536, 0.006, 7038),
    "pretrain_large_512": (16384, 0.002828, 2137),
    "pretrain_large_512_pod4": (16384, 0.002828, 2137),
    "pretrain_large_512_POD64": (16384, 0.002828, 2137),
    "unit_test": (16, 0.01, 10),
    "pretrain_base_3L_128_single": (1024, 1e-4, 150),
}
UPSTREAM_SQUAD = {
    "demo_tiny_128": (16, 1e-3),
    "squad_base_384": (32, 6e-5),
    "squad_large_384": (256, 5e-5),
    "squad_large_384_4x4": (512, 5e-5),
}


def problems(root: type[RunConfig], *overrides: str, name: str = "demo_tiny_128") -> str:
    with pytest.raises(ConfigError) as error:
        load_config(root, name, overrides)
    return str(error.value)


def flattened(sections: dict[str, dict[str, object]]) -> dict[str, object]:
    return {f"{section}.{key}": value for section, keys in sections.items() for key, value in keys.items()}


@pytest.mark.parametrize(("root", "name"), NAMED, ids=[f"{root.__name__}-{name}" for root, name in NAMED])
def test_every_named_configuration_loads(root: type[RunConfig], name: str) -> None:
    config = load_config(root, name)
    assert config_from_values(root, flattened(config_as_dict(config))) == config


@pytest.mark.parametrize("name", UPSTREAM_PRETRAINING)
def test_pretraining_equals_upstream(name: str) -> None:
    config = load_config(PretrainConfig, name)
    assert (config.global_batch_size, config.optim.lr, config.train.steps) == UPSTREAM_PRETRAINING[name]


@pytest.mark.parametrize("name", UPSTREAM_SQUAD)
def test_squad_equals_upstream(name: str) -> None:
    config = load_config(SquadConfig, name)
    assert (config.global_batch_size, config.optim.lr) == UPSTREAM_SQUAD[name]


def test_base_512_pod4_is_a_512_configuration() -> None:
    config = load_config(PretrainConfig, "pretrain_base_512_pod4")
    assert (config.data.sequence_length, config.data.mask_tokens, config.ipu.micro_batch_size) == (512, 76, 8)


def test_derived_values() -> None:
    base = load_config(PretrainConfig, "pretrain_base_128")
    assert base.ipu.layer_ipus == [1] * 4 + [2] * 4 + [3] * 4
    assert (base.forward_stages, base.pipeline_depth) == (5, 9)
    assert base.warmup_steps(base.train.steps) == 1970
    assert base.ipu.memory_proportions == (0.25,) * 4
    squad = load_config(SquadConfig, "squad_large_384")
    assert (squad.head_ipu, squad.forward_stages, squad.samples_per_step) == (7, 8, 512)


def test_overrides_and_json_and_base(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "{model: {hidden_size: 64, num_attention_heads: 4}, optim: {lr: 1e-4}}")
    child = tmp_path / "child.json"
    child.write_text(json.dumps({"base": "mine", "model": {"num_attention_heads": 8}}))
    overrides = ["optim.eps=1e-7", "ipu.layers_per_ipu=[6, 6]", "data.workers=2"]
    config = load_config(PretrainConfig, str(child), overrides)
    assert (config.model.hidden_size, config.model.num_attention_heads, config.optim.lr) == (64, 8, 1e-4)
    assert (config.optim.eps, config.ipu.layers_per_ipu, config.data.workers) == (1e-7, (6, 6), 2)


def test_texts_are_taken_as_they_stand(tmp_path: Path) -> None:
    """YAML would take them for a date, a mapping, a comment or a truth value."""
    texts = ["2026-01-31", "Who: he or she?", "What is C # like?", "no", ""]
    for text in texts:
        assert load_config(SquadConfig, "demo", [f"data.question={text}"]).data.question == text
    (tmp_path / "mine.yaml").write_text("base: demo\nmodel:\noptim:\n  lr: 0.5\n")
    assert load_config(SquadConfig, str(tmp_path / "mine.yaml")).optim.lr == 0.5


def test_all_mistakes_are_reported_at_once() -> None:
    message = problems(
        PretrainConfig, "ipu.bakend=ipu", "model.hidden_size=big", "ipu.precision=float61", "optim.lr=-1",
        "steps", "x=1", "train=3")
    for part in ["did you mean ipu.backend?", "a whole number needed", "did you mean float16?",
                 "at least 0 needed", "override 'steps' has no '='", "x is no key",
                 "train is a section: write train.KEY=value"]:
        assert part in message


@pytest.mark.parametrize(("override", "part"), [
    ("model.num_attention_heads=7", "= 7 * 9 + 1"),
    ("ipu.layers_per_ipu=[1, 1, 2, 0]", "places 4 layers"),
    ("ipu.layers_per_ipu=[1, 1, 1]", "IPUs come in powers of two"),
    ("ipu.replication_factor=3", "ipu.replication_factor = 3 is 12;"),
    ("ipu.gradient_accumulation=8", "at least 9 micro-batches"),
    ("ipu.matmul_proportion=[0.1, 0.2]", "give 1 or 4"),
    ("ipu.embedding_serialization_factor=5", "choose a divisor"),
    ("data.sequence_length=513", "exceeds model.max_position_embeddings = 512"),
    ("data.mask_tokens=129", "mask fewer"),
    ("model.hidden_dropout_prob=1.5", "at most 0.99"),
    ("data.whole_word_masking=1", "true or false needed"),
])
def test_impossible_values(override: str, part: str) -> None:
    assert part in problems(PretrainConfig, override)


def test_squad_stride_must_leave_room() -> None:
    assert "the stride must be smaller" in problems(SquadConfig, "data.doc_stride=100")


def test_unknown_names_and_broken_files(tmp_path: Path) -> None:
    assert "did you mean pretrain_base_128?" in problems(PretrainConfig, name="pretrain_bose_128")
    broken = {"a: [": "neither YAML nor JSON", "- 1": "sections with keys", "base: loop": "its own base"}
    for text, part in broken.items():
        (tmp_path / "loop.yaml").write_text(text)
        assert part in problems(PretrainConfig, name=str(tmp_path / "loop.yaml"))


def test_files_hold_no_anchors() -> None:
    for path in CONFIG_FOLDER.rglob("*.yaml"):
        tokens = yaml.scan(path.read_text())
        assert not [t for t in tokens if isinstance(t, (yaml.AnchorToken, yaml.AliasToken))], path


def test_help_names_every_key() -> None:
    text = describe_settings(SquadConfig)
    config = config_as_dict(load_config(SquadConfig, "squad_base_384"))
    assert all(f"{section}.{key} " in text for section, keys in config.items() for key in keys)
