"""One training step, and the loop around it, for pretraining and fine-tuning alike.

The state of a run is in three objects: the model, the optimizer, and the loop's place (step, position in the
data).  A checkpoint holds exactly these, so resuming is loading them and seeking to the position.
"""
from __future__ import annotations

import dataclasses
import glob
import hashlib
import math
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Union

import poptorch
import torch

from bert_ipu import custom_ops
from bert_ipu.backend import Backend
from bert_ipu.batch import IGNORED_LABEL, PretrainBatch, PretrainOutput, SquadBatch, SquadOutput
from bert_ipu.checkpoint import (
    TrainingState,
    load_checkpoint,
    load_initial_weights,
    newest_checkpoint,
    save_checkpoint,
)
from bert_ipu.config import (
    PretrainConfig,
    PretrainDataConfig,
    RunConfig,
    SquadConfig,
    config_as_dict,
    describe_derived,
)
from bert_ipu.distributed import World, code_version, data_version, join_world
from bert_ipu.errors import ConfigError, DataError, DivergedError
from bert_ipu.ipu_options import evaluation_options, training_options
from bert_ipu.optim import learning_rate, make_optimizer, set_learning_rate
from bert_ipu.pipeline import PipelinedModel, output_type, pretraining_model
from bert_ipu.pretraining_data import collate, open_pretraining_data
from bert_ipu.recorder import Recorder
from bert_ipu.sampler import Position, StreamSampler

LOADED_AHEAD = 8
"""Steps that a loader may be ahead, at most, apart from two for each of its workers."""

Batch = Union[PretrainBatch, SquadBatch]
Output = Union[PretrainOutput, SquadOutput]


class Task(NamedTuple):
    """What is trained on what; pretraining and fine-tuning each make one."""

    config: Union[PretrainConfig, SquadConfig]
    model: PipelinedModel
    dataset: Any
    """Rows by the sampler's names, with `batch(names)`, as PretrainDataset."""
    total_steps: int
    world: World
    vocab_file: Optional[Path] = None
    """Copied into checkpoints."""
    evaluate: Optional[Callable[[Any], Dict[str, float]]] = None
    """Metrics on held-out rows, given the training executor, which must leave the device meanwhile."""
    custom_ops: Sequence[str] = ()
    """Libraries that are loaded."""


def train_step(executor: Any, batch: Batch, names: Sequence[str], micro_batches: int) -> Dict[str, float]:
    """Run the device once; returns the mean of each output over this instance's micro-batches, by name."""
    totals = executor(*batch)  # OutputMode.Sum: one sum per replica
    return {name: total.float().sum().item() / micro_batches for name, total in zip(names, totals)}


def train(task: Task, resume: bool = False, compile_only: bool = False) -> None:
    """Compile the task's model and train it to `total_steps`, recording, evaluating and saving on the way.

    Raises ConfigError: the output folder holds another run's checkpoints.  DataError: nothing to resume from.
    DivergedError: the loss or a weight has overflowed or become NaN; no such weight is saved.
    """
    config, world = task.config, task.world
    _check_instances(task, compile_only)
    folder = Path(config.train.output_dir) / "checkpoints"
    optimizer = make_optimizer(task.model, config.optim)
    state = _start(task, folder, optimizer, resume)
    world.check_same({"steps taken before": str(state.step)})  # hosts may have checkpoints of their own
    world.broadcast_weights(task.model.state_dict().values())
    executor = poptorch.trainingModel(task.model.train(), training_options(config, compile_only), optimizer)
    if compile_only:
        _compile(executor, task, state)
        return
    recorder = Recorder(config, task.total_steps, state.step, world.is_first)
    try:
        _compile(executor, task, state)
        recorder.start()
        _loop(task, executor, optimizer, recorder, state, folder)
    finally:
        recorder.close()
    executor.destroy()


def _check_instances(task: Task, compile_only: bool) -> None:
    """Refuse a job whose instances have different code, settings or data: it would train on a mixture."""
    if task.world.size == 1:
        return
    config = task.config
    files = [
        str(getattr(config.data, field.name)) for field in dataclasses.fields(config.data)
        if field.metadata["unit"] == "path"]
    task.world.check_same({
        "code": code_version(),
        "settings": hashlib.sha256(repr(config).encode()).hexdigest()[:12],
        **({} if compile_only else {path: data_version(path) for path in files if path})})


def _loop(
    task: Task, executor: Any, optimizer: torch.optim.Optimizer, recorder: Recorder, state: TrainingState,
    folder: Path,
) -> None:
    config, world = task.config, task.world
    names = output_type(task.model)._fields
    micro_batches = config.samples_per_step // config.ipu.micro_batch_size // world.size
    batches = _batches(task, executor.options, state)
    for step in range(state.step, task.total_steps):
        started = time.perf_counter()
        lr = learning_rate(config.optim, step, task.total_steps)
        set_learning_rate(optimizer, lr)
        executor.setOptimizer(optimizer)
        batch = next(batches)
        metrics = world.mean(train_step(executor, batch, names, micro_batches))
        if not math.isfinite(metrics["loss"]):
            raise _diverged(f"The loss of step {step + 1} is {metrics['loss']}", config, lr, folder)
        seconds = time.perf_counter() - started
        recorder.step(step + 1, {
            "epoch": state.position.epoch, **metrics, "learning_rate": lr,
            "sequences_per_s": _sequences(batch) * world.size / seconds, "seconds": seconds})
        state = state._replace(
            step=step + 1, position=state.position.advanced(config.samples_per_step, len(task.dataset)))
        if task.evaluate is not None and _due(config.train.eval_every_steps, step + 1, task.total_steps):
            recorder.evaluation(step + 1, world.mean(task.evaluate(executor)))
        if _due(config.checkpoint.every_steps, step + 1, task.total_steps) and world.is_first:
            executor.copyWeightsToHost()
            for name, weight in task.model.model.named_parameters():
                # An IPU's float16 does not become infinite but stays at its largest number.
                if not (weight.abs() < torch.finfo(weight.dtype).max).all():
                    raise _diverged(f"By step {step + 1}, {name} has overflowed", config, lr, folder)
            now = state._replace(random_state=list(executor.rng_state))
            path = save_checkpoint(
                folder, task.model, config.model, optimizer, now, task.vocab_file, config.checkpoint.keep)
            recorder.say(f"saved {path}")


def _diverged(what: str, config: RunConfig, lr: float, folder: Path) -> DivergedError:
    half = config.ipu.precision == "float16"
    scaling = f" and optim.loss_scaling {config.optim.loss_scaling:g}" if half else ""
    kept = "no checkpoint was saved yet, so start again"
    if any(folder.glob("step_*")):
        kept = f"the checkpoints in {folder} are of before that, so go on from there with --resume"
    return DivergedError(
        f"{what}: from here on training can learn nothing. The learning rate was {lr:g}{scaling}; set "
        f"{'one of them' if half else 'optim.lr'} lower{', or ipu.precision=float32' if half else ''}. As to "
        f"what was learned, {kept}.")


def _due(every: int, step: int, total_steps: int) -> bool:
    return step == total_steps or (every > 0 and step % every == 0)


def _start(task: Task, folder: Path, optimizer: torch.optim.Optimizer, resume: bool) -> TrainingState:
    """Load what the run starts from: a checkpoint, another's weights, or the random weights it has."""
    config, world = task.config, task.world
    settings = config_as_dict(config)
    if resume:
        path = newest_checkpoint(folder)
        state = load_checkpoint(path, task.model, config.model, optimizer)
        world.say(f"resuming from {path} after step {state.step}")
        for key, (old, new) in _differences(state.configuration, settings).items():
            world.say(f"  changed since: {key} was {old!r}, is {new!r}")
        # PopTorch sends an optimizer's numbers only where they are not those of the compilation, after which it
        # sends the checkpoint's: a rate that no step has makes the first step send the configured ones.
        set_learning_rate(optimizer, 2 * config.optim.lr + 1)
        if state.step >= task.total_steps:
            world.say(f"  all {task.total_steps} steps are taken: nothing is left to train")
        return state._replace(configuration=settings)
    if any(folder.glob("step_*")):
        raise ConfigError(
            f"{folder} holds checkpoints of an earlier run. Add --resume to go on with it, or set "
            f"train.output_dir to another folder.")
    if config.checkpoint.initial_weights:
        random = load_initial_weights(Path(config.checkpoint.initial_weights), task.model, config.model)
        world.say(f"weights from {config.checkpoint.initial_weights}; random, as it lacks them: "
                  f"{', '.join(random) or 'none'}")
    return TrainingState(0, Position(), [], settings)


def _differences(old: Dict[str, Any], new: Dict[str, Any]) -> Dict[str, Any]:
    """Settings that differ, by dotted key, with both values."""
    return {
        f"{section}.{key}": (old.get(section, {}).get(key), value)
        for section, keys in new.items() for key, value in keys.items()
        if old.get(section, {}).get(key) != value
    }


def _compile(executor: Any, task: Task, state: TrainingState) -> None:
    started = time.perf_counter()
    rows = task.config.samples_per_step // task.world.size
    executor.compile(*task.dataset.batch([n % len(task.dataset) for n in range(rows)]))
    if state.random_state:
        executor.rng_state = state.random_state
    task.world.say(f"compiled in {time.perf_counter() - started:.1f} s")
    for line in custom_ops.report(task.custom_ops, executor):
        task.world.say(line)


def _batches(task: Task, options: Any, state: TrainingState) -> Iterator[Batch]:
    """This instance's batches from the state's position to the last step; raises DataError on a damaged row."""
    config, world = task.config, task.world
    # Instances take turns as replicas do, so that a row meets the same replica, and dropout, in every layout.
    rows_of_replicas = config.ipu.micro_batch_size * config.ipu.replication_factor // world.size
    sampler = StreamSampler(
        len(task.dataset), config.train.seed, config.samples_per_step, task.total_steps - state.step,
        state.position, world.rank, world.size, block=rows_of_replicas)
    modes, taken = poptorch.DataLoaderMode, 0
    try:
        loader = poptorch.DataLoader(
            options, task.dataset, batch_size=config.ipu.micro_batch_size, num_workers=config.data.workers,
            mode=modes.Async if config.data.async_loader else modes.Sync,
            auto_distributed_partitioning=False, sampler=sampler, collate_fn=collate)
        for batch in loader:
            yield task.model.batch_type(*batch)
            taken += 1
    except Exception:
        # A process that loads ends with its own traceback, if with that: what it read, read here, says why.
        for step in range(taken, min(taken + LOADED_AHEAD + 2 * config.data.workers, sampler.steps)):
            task.dataset.batch(sampler.step_samples(step))
        raise


def _sequences(batch: Batch) -> int:
    """Real sequences of a batch: packed rows hold several, rows that fill up a batch none."""
    labels = batch.next_sentence_labels if isinstance(batch, PretrainBatch) else batch.start_positions
    return int((labels != IGNORED_LABEL).sum())


class Evaluator:
    """The model in inference: compiled at its first use, on the device only while it runs."""

    def __init__(self, config: RunConfig, model: PipelinedModel, world: World) -> None:
        iterations = config.forward_stages  # the fewest that fill the pipeline
        self.rows = config.ipu.micro_batch_size * config.ipu.replication_factor * iterations // world.size
        """Rows of a call on this instance."""
        self._model = model
        self._options = evaluation_options(config, iterations)
        self._custom_ops, self._world = custom_ops.libraries(config.custom_ops), world
        self._executor: Any = None

    def outputs(self, batches: Iterable[Batch], training: Any = None) -> Iterator[Output]:
        """What the model gives for batches of `rows` rows; `training` is taken off the device meanwhile.

        Its scalars come as one value per micro-batch.
        """
        if training is not None and training.isAttachedToDevice():
            training.detachFromDevice()
        self._model.eval()
        names = output_type(self._model)
        for batch in batches:
            if self._executor is None:
                self._executor = self._compiled(batch)
            yield names(*self._executor(*batch))
        self._model.train()
        self._executor.detachFromDevice()

    def _compiled(self, batch: Batch) -> Any:
        executor = poptorch.inferenceModel(self._model, self._options)
        executor.compile(*batch)
        for line in custom_ops.report(self._custom_ops, executor, "evaluation"):
            self._world.say(line)
        return executor


class GeneratedRows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Random rows of the configured shape, to compile or measure without data."""

    def __init__(self, data: PretrainDataConfig, vocab_size: int, length: int, seed: int) -> None:
        self.data, self.vocab_size, self.length, self.seed = data, vocab_size, length, seed

    def __len__(self) -> int:
        return self.length

    def batch(self, names: Sequence[int]) -> PretrainBatch:
        """A batch of as many rows as there are names; every row is a full pack of sequences of one length."""
        generator = torch.Generator().manual_seed(self.seed + names[0])
        B, S, M = len(names), self.data.sequence_length, self.data.masked_positions
        P = self.data.max_sequences_per_pack

        def integers(high: int, columns: int) -> torch.Tensor:
            return torch.randint(high, (B, columns), dtype=torch.int32, generator=generator)

        length = S // P
        place = torch.arange(S, dtype=torch.int32).repeat(B, 1)
        number = (place // length).clamp(max=P - 1)
        starts = (torch.arange(P, dtype=torch.int32) * length).repeat(B, 1)
        return PretrainBatch(
            integers(self.vocab_size, S), number + 1, integers(2, S), place - number * length,
            integers(S, M), integers(self.vocab_size, M), starts, integers(2, P))

    def __getitems__(self, names: List[int]) -> PretrainBatch:
        return self.batch(names)

    def __getitem__(self, name: int) -> PretrainBatch:
        return PretrainBatch(*(field[0] for field in self.batch([name])))


def pretrain(
    config: PretrainConfig, backend: Backend, resume: bool = False, compile_only: bool = False
) -> None:
    """Build and train a pretraining task; with `compile_only`, stop once it is compiled, without data."""
    world = join_world(config.ipu.replication_factor)
    world.say(f"backend           {backend.name}: {backend.reason}")
    world.say(describe_derived(config, config.train.steps))
    libraries = custom_ops.load(config.custom_ops, backend)
    dataset = _dataset(config, config.data.train_data, generated=compile_only)
    torch.manual_seed(config.train.seed)
    model = pretraining_model(config)
    vocab_file = dataset.records.vocab_file if hasattr(dataset, "records") else None
    evaluate = None
    if config.data.eval_data and not compile_only:
        evaluate = _held_out_evaluation(config, model, world)
    task = Task(config, model, dataset, config.train.steps, world, vocab_file, evaluate, libraries)
    train(task, resume, compile_only)


def _dataset(config: PretrainConfig, path: str, generated: bool = False, fixed_masks: bool = False) -> Any:
    data, model = config.data, config.model
    if generated or data.dataset == "generated":
        return GeneratedRows(data, model.vocab_size, config.samples_per_step, config.train.seed)
    inputs = [Path(file) for file in sorted(glob.glob(path))] if "*" in path else [Path(path)]
    if not inputs:
        raise DataError(f"No file fits the pattern {path}. Name TFRecord files, as in folder/*.tfrecord.")
    opened = open_pretraining_data(
        inputs, data.sequence_length, data.mask_tokens, model.vocab_size, config.train.seed,
        data.whole_word_masking, fixed_masks or data.fixed_masks)
    if opened.max_sequences_per_pack != data.max_sequences_per_pack:
        raise DataError(
            f"{path} has up to {opened.max_sequences_per_pack} sequences in a row, but "
            f"data.max_sequences_per_pack = {data.max_sequences_per_pack}. Set it to the former.")
    return opened


def _held_out_evaluation(
    config: PretrainConfig, model: PipelinedModel, world: World
) -> Callable[[Any], Dict[str, float]]:
    """A function that measures loss and accuracy on held-out rows, always the same with the same masks."""
    dataset = _dataset(config, config.data.eval_data, fixed_masks=True)
    evaluator = Evaluator(config, model, world)
    calls = max(1, min(config.train.eval_rows, len(dataset)) // (evaluator.rows * world.size))

    def rows(call: int) -> List[int]:
        first = (call * world.size + world.rank) * evaluator.rows
        return [row % len(dataset) for row in range(first, first + evaluator.rows)]

    def evaluate(training: Any) -> Dict[str, float]:
        batches = (dataset.batch(rows(call)) for call in range(calls))
        outputs = list(evaluator.outputs(batches, training))
        return {
            name: torch.cat([value.float().reshape(-1) for value in values]).mean().item()
            for name, values in zip(PretrainOutput._fields, zip(*outputs))
        }

    return evaluate
