"""All settings of a run: frozen dataclasses, how YAML and `section.key=value` fill them, what is impossible.

A configuration is values only.  It is read once, checked once (every mistake of a file in one message) and
never changed afterwards.  What follows from the values (global batch, pipeline stages, warm-up steps) are
properties here and nowhere else.
"""
from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Type, TypeVar, Union, get_type_hints

import yaml

from bert_ipu.errors import ConfigError

CONFIG_FOLDER = Path(__file__).resolve().parents[1] / "configs"

Root = TypeVar("Root", bound="RunConfig")


def setting(
    default: Any, meaning: str, unit: str = "", choices: Sequence[str] = (),
    low: Optional[float] = None, high: Optional[float] = None,
) -> Any:
    """A field with what `--help` prints about it and the values it may take (`low` and `high` included)."""
    metadata = {"meaning": meaning, "unit": unit, "choices": tuple(choices), "low": low, "high": high}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class ModelConfig:
    """The shape of BERT, in Hugging Face's names."""

    vocab_size: int = setting(30522, "number of WordPiece tokens", "tokens", low=1)
    hidden_size: int = setting(768, "width of the hidden state", low=1)
    num_hidden_layers: int = setting(12, "encoder layers", "layers", low=1)
    num_attention_heads: int = setting(
        12, "attention heads per layer; must divide hidden_size", "heads", low=1)
    intermediate_size: int = setting(0, "width of the feed-forward layer; 0 means 4 * hidden_size", low=0)
    max_position_embeddings: int = setting(512, "longest sequence the model can place", "tokens", low=1)
    type_vocab_size: int = setting(2, "number of sentence types", low=1)
    hidden_dropout_prob: float = setting(
        0.1, "dropout after embeddings, attention and feed-forward", low=0, high=0.99)
    attention_probs_dropout_prob: float = setting(0.1, "dropout of attention probabilities", low=0, high=0.99)
    layer_norm_eps: float = setting(
        1e-3, "added to the variance in layer norm; the published 1e-12 vanishes in float16", low=0)
    initializer_range: float = setting(
        0.02, "standard deviation of the initial weights, cut at two of them", low=0)

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def feed_forward_size(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size


@dataclass(frozen=True)
class PretrainDataConfig:
    """Where pretraining rows come from and how they are masked."""

    dataset: str = setting(
        "records", "records reads train_data; generated draws random tokens, to measure without data",
        choices=("records", "generated"))
    train_data: str = setting(
        "data/wikipedia/128", "folder of records, or pattern of TFRecord files, as in a/*.tfrecord", "path")
    eval_data: str = setting("", "held-out rows of either kind; empty: no evaluation", "path")
    sequence_length: int = setting(128, "tokens of a row", "tokens", low=3)
    mask_tokens: int = setting(20, "most masked tokens of one sequence", "tokens", low=1)
    max_sequences_per_pack: int = setting(1, "sequences that share a row; 1: no packing", "sequences", low=1)
    whole_word_masking: bool = setting(False, "mask all pieces of a word or none")
    fixed_masks: bool = setting(
        False, "draw the same masks in every epoch, so that a small corpus can be memorised")
    workers: int = setting(
        0, "processes that read and mask; 0: the training process itself", "processes", low=0)
    async_loader: bool = setting(False, "stack batches in a process of their own, ahead of the device")

    @property
    def masked_positions(self) -> int:
        """Masked positions of a row: a pack may have one more for each further sequence."""
        return self.mask_tokens + self.max_sequences_per_pack - 1


@dataclass(frozen=True)
class SquadDataConfig:
    """Question answering files and how they become windows."""

    train_file: str = setting("", "SQuAD JSON to train on; empty: only evaluate", "path")
    eval_file: str = setting("", "SQuAD JSON to predict and score; empty: only train", "path")
    vocab_file: str = setting(
        "", "WordPiece vocabulary; empty: the one beside checkpoint.initial_weights", "path")
    sequence_length: int = setting(384, "tokens of a window", "tokens", low=8)
    doc_stride: int = setting(128, "tokens that neighbouring windows of a context share", "tokens", low=1)
    max_query_length: int = setting(64, "longest question; the rest is cut", "tokens", low=1)
    max_answer_length: int = setting(30, "longest answer that may be predicted", "tokens", low=1)
    n_best: int = setting(20, "answers kept per question in nbest_predictions.json", "answers", low=1)
    question: str = setting("", "after training, answer this question about context_file; empty: none")
    context_file: str = setting("", "plain text to answer data.question from", "path")
    version_2: bool = setting(False, "SQuAD 2.0: a question may have no answer")
    no_answer_threshold: float = setting(0.0, "SQuAD 2.0: score by which no answer must win")
    workers: int = setting(
        0, "processes that load windows; 0: the training process itself", "processes", low=0)
    async_loader: bool = setting(False, "stack batches in a process of their own, ahead of the device")


@dataclass(frozen=True)
class IpuConfig:
    """How the model lies on IPUs and what one call of it does."""

    backend: str = setting(
        "auto", "auto: IPU hardware where the SDK finds it, else the simulator; the others force one",
        choices=("auto", "simulator", "ipu_model", "ipu"))
    numerics: str = setting(
        "ipu", "simulator only: ipu rounds every result as the IPU would, fast does not and is quicker",
        choices=("fast", "ipu"))
    precision: str = setting("float16", "type of weights and activations", choices=("float16", "float32"))
    micro_batch_size: int = setting(1, "rows of one forward and backward pass of one replica", "rows", low=1)
    gradient_accumulation: int = setting(16, "micro-batches whose gradients make one weight update", low=1)
    replication_factor: int = setting(1, "copies of the pipeline, over all instances", "replicas", low=1)
    device_iterations: int = setting(1, "weight updates per call of the device", "updates", low=1)
    layers_per_ipu: Tuple[int, ...] = setting(
        (0, 4, 4, 4), "encoder layers on each IPU of a replica", "layers", low=0)
    matmul_proportion: Tuple[float, ...] = setting(
        (0.25,), "share of an IPU's memory for temporaries of matmuls; one or one per IPU", low=0, high=1)
    embedding_serialization_factor: int = setting(
        1, "slices of the word embedding and MLM decoder, computed in turn to save memory", "slices", low=1)
    recompute_checkpoint_every_layer: bool = setting(
        True, "stash each layer's output, recompute what lies between")
    half_partials: bool = setting(True, "accumulate matmuls in float16; float32 where false")
    stochastic_rounding: bool = setting(True, "round float16 results up or down at random, right on average")
    optimizer_state_offchip: bool = setting(True, "keep optimizer state in streaming memory")
    replicated_tensor_sharding: bool = setting(False, "divide optimizer state among replicas")
    synthetic_data: bool = setting(False, "random data made on the device: measures without the host")
    executable_cache_dir: str = setting(
        "", "folder of compiled executables; empty: compile every time", "path")
    profile_dir: str = setting("", "folder for a PopVision profile; empty: none", "path")

    @property
    def ipus_per_replica(self) -> int:
        return len(self.layers_per_ipu)

    @property
    def layer_ipus(self) -> List[int]:
        """The IPU of each encoder layer."""
        return [ipu for ipu, layers in enumerate(self.layers_per_ipu) for _ in range(layers)]

    @property
    def memory_proportions(self) -> Tuple[float, ...]:
        """`matmul_proportion`, one per IPU."""
        given = self.matmul_proportion
        return given * self.ipus_per_replica if len(given) == 1 else given


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule."""

    name: str = setting("adamw", "update rule", choices=("sgd", "adamw", "lamb"))
    bias_correction: bool = setting(
        True, "lamb: correct the moments for their start at zero; PopTorch's adamw always does")
    lr: float = setting(1e-3, "learning rate; the highest one of a schedule", low=0)
    schedule: str = setting(
        "constant", "linear: after the warm-up, falls to 0 at the last step", choices=("constant", "linear"))
    warmup_fraction: float = setting(0.0, "share of all steps in which lr rises from 0", low=0, high=1)
    weight_decay: float = setting(0.0, "decay of weights; never of biases and layer norms", low=0)
    momentum: float = setting(0.9, "sgd: momentum", low=0, high=1)
    beta1: float = setting(0.9, "adamw and lamb: decay of the first moment", low=0, high=1)
    beta2: float = setting(0.999, "adamw and lamb: decay of the second moment", low=0, high=1)
    eps: float = setting(1e-6, "adamw and lamb: added to the root of the second moment", low=0)
    loss_scaling: float = setting(
        1.0, "factor of the loss that keeps float16 gradients from vanishing", low=0)
    auto_loss_scaling: bool = setting(
        False, "let the device adapt loss_scaling, starting from the value given")
    accumulation_type: str = setting(
        "float16", "type in which gradients accumulate", choices=("float16", "float32"))
    momentum_type: str = setting("float32", "type of the first moment", choices=("float16", "float32"))
    combined_accumulation: bool = setting(
        False, "sgd: accumulate gradients in the momentum itself, in the weights' type, which saves memory")


@dataclass(frozen=True)
class CustomOpsConfig:
    """The project's own ops in C++; each changes the compiled program by a pattern."""

    group_pattern: bool = setting(
        False, "lay gradients out like what they are added to; needs optim.combined_accumulation")
    sparse_sgd: bool = setting(
        False, "accumulate only the looked-up rows of embeddings; needs optim.combined_accumulation")
    dropout_removal: bool = setting(False, "remove dropouts from the compiled evaluation")
    unmasked_attention_gradient: bool = setting(
        False, "pass gradients through attention dropout unchanged: deliberately biased, for fine-tuning")


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, from which seed, and what to write where."""

    steps: int = setting(100, "calls of the device in pretraining", "steps", low=0)
    epochs: int = setting(2, "SQuAD: passes over the training data", "epochs", low=0)
    seed: int = setting(42, "of weights, data order, masks and dropout", low=0)
    output_dir: str = setting("runs/latest", "folder of checkpoints, metrics and predictions", "path")
    eval_every_steps: int = setting(
        0, "evaluate on held-out rows every so many steps; 0: only at the end", "steps", low=0)
    eval_rows: int = setting(1024, "held-out rows of one evaluation", "rows", low=1)


@dataclass(frozen=True)
class CheckpointConfig:
    """Where weights come from, and when they are saved."""

    initial_weights: str = setting(
        "", "Hugging Face model folder to start from; empty: random weights", "path")
    every_steps: int = setting(0, "save every so many steps; 0: only at the end", "steps", low=0)
    keep: int = setting(2, "newest checkpoints kept", "checkpoints", low=1)


@dataclass(frozen=True)
class RecorderConfig:
    """What is shown and recorded; metrics.jsonl is always written."""

    progress_bar: bool = setting(True, "show loss, accuracies, learning rate, sequences/s and the time left")
    tensorboard: bool = setting(False, "also write TensorBoard events into output_dir/tensorboard")
    wandb_project: str = setting("", "also record in this Weights & Biases project; empty: do not")


@dataclass(frozen=True)
class RunConfig:
    """What pretraining and fine-tuning share, and what follows from the values."""

    model: ModelConfig = ModelConfig()
    ipu: IpuConfig = IpuConfig()
    optim: OptimConfig = OptimConfig()
    custom_ops: CustomOpsConfig = CustomOpsConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    recorder: RecorderConfig = RecorderConfig()

    @property
    def global_batch_size(self) -> int:
        """Rows of one weight update."""
        return self.ipu.micro_batch_size * self.ipu.gradient_accumulation * self.ipu.replication_factor

    @property
    def samples_per_step(self) -> int:
        """Rows of one call of the device."""
        return self.global_batch_size * self.ipu.device_iterations

    @property
    def head_ipu(self) -> int:
        """The IPU of the heads: beside the word embedding, which the MLM decoder shares."""
        return 0

    @property
    def forward_stages(self) -> int:
        """Pipeline stages of the forward pass: runs of blocks on one IPU, embedding first, heads last."""
        return sum(1 for _ in groupby([0, *self.ipu.layer_ipus, self.head_ipu]))

    @property
    def pipeline_depth(self) -> int:
        """Stages of a training pipeline; the last forward stage also begins the backward pass."""
        return 2 * self.forward_stages - 1

    def warmup_steps(self, total_steps: int) -> int:
        return int(self.optim.warmup_fraction * total_steps)


@dataclass(frozen=True)
class PretrainConfig(RunConfig):
    """A pretraining run."""

    data: PretrainDataConfig = PretrainDataConfig()


@dataclass(frozen=True)
class SquadConfig(RunConfig):
    """A fine-tuning run on question answering."""

    data: SquadDataConfig = SquadDataConfig()

    @property
    def head_ipu(self) -> int:
        """The IPU of the heads: with the last layer, as they share nothing with the embedding."""
        return self.ipu.layer_ipus[-1] if self.ipu.layer_ipus else 0


def load_config(root: Type[Root], name_or_path: str, overrides: Sequence[str] = ()) -> Root:
    """Read a named configuration or a file, apply `section.key=value` overrides, and check the whole.

    Raises ConfigError with every mistake found.
    """
    values = _read_values(root, name_or_path)
    problems: List[str] = []
    known = _fields(root)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            problems.append(f"override {override!r} has no '='; write section.key=value, as in optim.lr=1e-4")
        else:
            is_text = known.get(key.strip(), (None, None))[1] is str
            values[key.strip()] = text if is_text else _parsed_value(text)
    return config_from_values(root, values, problems, origin=name_or_path)


def _parsed_value(text: str) -> Any:
    """The value of an override, read as YAML would; what is not YAML is taken as it stands."""
    try:
        return yaml.safe_load(text) if text else ""
    except yaml.YAMLError:
        return text


def config_from_values(
    root: Type[Root], values: Mapping[str, Any], problems: Sequence[str] = (), origin: str = "values"
) -> Root:
    """Build and check a configuration from dotted keys; raises ConfigError with every mistake."""
    found = list(problems)
    known = _fields(root)
    sections: Dict[str, Dict[str, Any]] = {name: {} for name, _ in _sections(root)}
    for key, value in values.items():
        if key not in known:
            found.append(_unknown_key(key, list(known)))
            continue
        field, expected = known[key]
        converted, problem = _converted(value, expected, field.metadata)
        if problem:
            found.append(f"{key} = {value!r}: {problem}")
        else:
            sections[key.split(".")[0]][field.name] = converted
    if not found:
        config = root(**{name: section(**sections[name]) for name, section in _sections(root)})
        found = impossible_sizes(config)
        if not found:
            return config
    mistakes = "\n".join(f"  - {line}" for line in found)
    raise ConfigError(f"The configuration {origin} cannot be used:\n{mistakes}")


def _sections(root: Type[RunConfig]) -> List[Tuple[str, type]]:
    hints = get_type_hints(root)
    return [(field.name, hints[field.name]) for field in dataclasses.fields(root)]


def _fields(root: Type[RunConfig]) -> Dict[str, Tuple[dataclasses.Field[Any], Any]]:
    """Every dotted key with its field and type."""
    return {
        f"{name}.{field.name}": (field, get_type_hints(section)[field.name])
        for name, section in _sections(root)
        for field in dataclasses.fields(section)
    }


def config_folder(root: Type[RunConfig]) -> Path:
    """Where the named configurations of this kind of run lie."""
    return CONFIG_FOLDER / ("squad" if issubclass(root, SquadConfig) else "pretraining")


def _read_values(root: Type[RunConfig], name_or_path: str, seen: Tuple[Path, ...] = ()) -> Dict[str, Any]:
    """Flat dotted values of a file, over those of the file that its `base` names."""
    path = _find_file(root, name_or_path, seen)
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is neither YAML nor JSON: {error}. Check quotes and indents.") from error
    content = {} if content is None else content
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; sections with keys are needed")
    base = content.pop("base", None)
    values = _read_values(root, str(base), (*seen, path)) if base else {}
    for section, entries in content.items():
        if isinstance(entries, dict):
            values.update({f"{section}.{key}": value for key, value in entries.items()})
        elif entries is not None:  # nothing stands under the section's name
            values[str(section)] = entries
    return values


def _find_file(root: Type[RunConfig], name_or_path: str, seen: Tuple[Path, ...]) -> Path:
    folder = config_folder(root)
    candidates = [Path(name_or_path), folder / f"{name_or_path}.yaml", folder / f"{name_or_path}.json"]
    if seen:
        candidates.insert(0, seen[-1].parent / f"{name_or_path}.yaml")
    for path in candidates:
        if path.is_file():
            if path in seen:
                raise ConfigError(f"{path} is its own base, by way of {seen[-1]}. Remove one `base`.")
            return path
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    raise ConfigError(
        f"There is no configuration {name_or_path!r}{_nearest(name_or_path, names)}: give the path of a YAML "
        f"or JSON file, or one of {', '.join(names) or f'the names in {folder} (none found)'}.")


def _nearest(word: str, words: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""


def _unknown_key(key: str, known: List[str]) -> str:
    """A message with the nearest valid key: of the same section where it has one, else of all."""
    if any(full.startswith(f"{key}.") for full in known):
        return f"{key} is a section: write {key}.KEY=value; --help lists its keys"
    section, _, name = key.rpartition(".")
    ends = {full.split(".")[1]: full for full in known}
    own = {end: full for end, full in ends.items() if full.startswith(f"{section}.")}
    for candidates in (own, ends):
        close = difflib.get_close_matches(name, list(candidates), n=1, cutoff=0.6)
        if close:
            return f"{key} is no key (did you mean {candidates[close[0]]}?); --help lists all of them"
    return f"{key} is no key; {section + ' has ' + ', '.join(own) if own else '--help lists all of them'}"


def _converted(value: Any, expected: Any, limits: Mapping[str, Any]) -> Tuple[Any, str]:
    """The value as the type a field wants, or why it cannot be."""
    if expected in (Tuple[int, ...], Tuple[float, ...]):
        entries = value if isinstance(value, (list, tuple)) else [value]
        entry_type = int if expected == Tuple[int, ...] else float
        pairs = [_converted(entry, entry_type, limits) for entry in entries]
        problem = "; ".join(problem for _, problem in pairs if problem)
        return tuple(entry for entry, _ in pairs), problem or ("" if pairs else "a list cannot be empty")
    if expected is float and isinstance(value, (int, str)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):  # YAML reads 1e-4, without a point, as a string
            value = float(value)
    if expected is str and value is None:
        value = ""
    if type(value) is not expected:
        needed = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}[expected]
        return None, f"{type(value).__name__} given, {needed} needed"
    if limits["choices"] and value not in limits["choices"]:
        return None, f"one of {', '.join(limits['choices'])} needed{_nearest(value, limits['choices'])}"
    if limits["low"] is not None and not value >= limits["low"]:
        return None, f"at least {limits['low']} needed"
    if limits["high"] is not None and not value <= limits["high"]:
        return None, f"at most {limits['high']} allowed"
    return value, ""


def impossible_sizes(config: RunConfig) -> List[str]:
    """What of the values cannot go together: what was given, what is allowed, what to change."""
    model, ipu = config.model, config.ipu
    problems: List[str] = []

    def need(condition: bool, message: str) -> None:
        if not condition:
            problems.append(message)

    need(model.hidden_size % model.num_attention_heads == 0,
         f"model.hidden_size = {model.hidden_size} = {model.num_attention_heads} * {model.head_size} + "
         f"{model.hidden_size % model.num_attention_heads}; model.num_attention_heads = "
         f"{model.num_attention_heads} must divide it: change one of the two")
    need(sum(ipu.layers_per_ipu) == model.num_hidden_layers,
         f"ipu.layers_per_ipu = {list(ipu.layers_per_ipu)} places {sum(ipu.layers_per_ipu)} layers, but "
         f"model.num_hidden_layers = {model.num_hidden_layers}; the sum must be equal: change one of the two")
    need(len(ipu.matmul_proportion) in (1, ipu.ipus_per_replica),
         f"ipu.matmul_proportion has {len(ipu.matmul_proportion)} values for {ipu.ipus_per_replica} IPUs "
         f"(one per entry of ipu.layers_per_ipu); give 1 or {ipu.ipus_per_replica}")
    total_ipus = ipu.ipus_per_replica * ipu.replication_factor
    need(total_ipus & (total_ipus - 1) == 0,
         f"{ipu.ipus_per_replica} IPUs per replica (entries of ipu.layers_per_ipu) * "
         f"ipu.replication_factor = {ipu.replication_factor} is {total_ipus}; IPUs come in powers of two: "
         f"add entries of 0 layers or change the replication")
    need(ipu.gradient_accumulation >= config.pipeline_depth,
         f"ipu.gradient_accumulation = {ipu.gradient_accumulation} cannot fill the pipeline of "
         f"{config.forward_stages} forward and {config.forward_stages - 1} backward stages; at least "
         f"{config.pipeline_depth} micro-batches are needed: raise it, or place the layers on fewer IPUs")
    need(model.vocab_size % ipu.embedding_serialization_factor == 0,
         f"ipu.embedding_serialization_factor = {ipu.embedding_serialization_factor} does not divide "
         f"model.vocab_size = {model.vocab_size}; choose a divisor")
    need(not config.optim.auto_loss_scaling or config.optim.accumulation_type == "float16",
         "optim.auto_loss_scaling = true watches float16 gradients; with optim.accumulation_type = float32 "
         "there are none: change one of the two")
    need(not config.optim.combined_accumulation or config.optim.name == "sgd",
         f"optim.combined_accumulation = true is for optim.name = sgd, which is {config.optim.name}: "
         f"change one of the two")
    for name in ("group_pattern", "sparse_sgd"):
        need(not getattr(config.custom_ops, name) or config.optim.combined_accumulation,
             f"custom_ops.{name} = true matches only optim.name = sgd with optim.combined_accumulation = true: "
             f"set all of them, or custom_ops.{name}=false")
    if isinstance(config, (PretrainConfig, SquadConfig)):
        problems += _impossible_lengths(config)
    return problems


def _impossible_lengths(config: Union[PretrainConfig, SquadConfig]) -> List[str]:
    data, longest = config.data, config.model.max_position_embeddings
    problems = []
    if data.sequence_length > longest:
        problems.append(
            f"data.sequence_length = {data.sequence_length} exceeds model.max_position_embeddings = "
            f"{longest}; shorten the rows or enlarge the model's table")
    if isinstance(data, PretrainDataConfig) and data.masked_positions > data.sequence_length:
        problems.append(
            f"data.mask_tokens = {data.mask_tokens} with {data.max_sequences_per_pack} sequences per pack "
            f"asks for {data.masked_positions} masked positions in rows of {data.sequence_length} tokens; "
            f"mask fewer")
    if isinstance(data, SquadDataConfig):
        room = data.sequence_length - data.max_query_length - 3
        if room <= data.doc_stride:
            problems.append(
                f"data.sequence_length = {data.sequence_length} less data.max_query_length = "
                f"{data.max_query_length} and 3 special tokens leaves {room} tokens of context, but "
                f"neighbouring windows share data.doc_stride = {data.doc_stride}; the stride must be smaller")
    return problems


def config_as_dict(config: RunConfig) -> Dict[str, Dict[str, Any]]:
    """Plain values, section by section, as JSON holds them."""
    plain: Dict[str, Dict[str, Any]] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def describe_settings(root: Type[RunConfig]) -> str:
    """Every key with its meaning, default and unit, for `--help`."""
    lines = []
    section_seen = ""
    for key, (field, _) in _fields(root).items():
        section = key.split(".")[0]
        if section != section_seen:
            lines.append(f"\n{section}: {(get_type_hints(root)[section].__doc__ or '').strip()}")
            section_seen = section
        default = list(field.default) if isinstance(field.default, tuple) else field.default
        unit = f" {field.metadata['unit']}" if field.metadata["unit"] not in ("", "path") else ""
        choices = f"; one of {', '.join(field.metadata['choices'])}" if field.metadata["choices"] else ""
        shown = '""' if default == "" else default
        lines.append(f"  {key:<42} {field.metadata['meaning']}{choices} (default: {shown}{unit})")
    return "\n".join(lines)


def describe_derived(config: RunConfig, total_steps: int) -> str:
    """What follows from the values, with the arithmetic, for the first lines of a run."""
    ipu = config.ipu
    return "\n".join([
        f"global batch      {config.global_batch_size} rows = micro-batch {ipu.micro_batch_size} "
        f"* accumulation {ipu.gradient_accumulation} * replicas {ipu.replication_factor}",
        f"rows per step     {config.samples_per_step} = global batch "
        f"* device iterations {ipu.device_iterations}",
        f"steps             {total_steps}, of which {config.warmup_steps(total_steps)} warm-up",
        f"IPUs              {ipu.ipus_per_replica * ipu.replication_factor} = {ipu.ipus_per_replica} "
        f"per replica * replicas {ipu.replication_factor}",
        f"pipeline          {config.forward_stages} forward stages, {config.pipeline_depth} in training",
    ])
