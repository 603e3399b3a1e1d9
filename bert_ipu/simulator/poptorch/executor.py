"""`PoplarExecutor`: a model that is compiled at its first call and then runs on the device."""

from __future__ import annotations

import collections
import contextlib
import datetime
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from ..errors import poptorch_error
from ..graph.ir import PatternChange
from ..graph.request import parameters_and_buffers
from . import compilation, export, latency, profiling, wrapping
from ._logging import logger
from .arguments import ArgumentParser, Arguments
from .captured_program import CapturedProgram, is_placeholder
from .compile_request import Subject
from .enums import ConnectionType, OutputMode
from .optim import SGD, Optimizer
from .optimizer_attributes import AttributeTracker, check_replacement, describe
from .options import Options
from .printing import module_repr
from .replica_grouping import GroupableParameter, Grouping
from .session import Session
from .strategies import is_pipelined
from .structure import reconstructTensorStructure

_NO_EXECUTABLE = "Model has not been compiled or has been destroyed."

Hooks = dict[int, Callable[[], None]]


class PoplarExecutor:
    """What `poptorch.trainingModel` and `poptorch.inferenceModel` return; call it like the model it wraps.

    Attributes it lacks are the model's. Raises Error where PopTorch does: a changed signature, an executable
    that is missing, a device that is not attached.
    """

    _precompile_hooks: Hooks = collections.OrderedDict()
    _postcompile_hooks: Hooks = collections.OrderedDict()

    def __init__(
        self,
        model: Any,
        options: Options | None,
        training: bool,
        poptorch_version: str,
        optimizer: torch.optim.Optimizer | None = None,
        user_model: Any = None,
    ) -> None:
        self._model = model
        """What is compiled: a shallow copy of the user's, which keeps its class when the user's is swapped."""
        self._user_model = user_model or model
        """What the user holds, and reads weights from (`wrapping.py`)."""
        self._training = training
        self._poptorch_version = poptorch_version
        self._options = _own_options(options, training)
        self._args_parser = ArgumentParser(model)
        self._session: Session | None = None
        """The compiled model, while there is one."""
        self._executable_inputs: Arguments | None = None
        """The inputs that it was compiled for: later ones must be like them."""
        self._captured: CapturedProgram | None = None
        self._anchor_memory: dict[str, torch.Tensor] = {}
        """The last values of anchored tensors, by their short names."""
        self.per_replica_params: dict[str, Grouping] = {}
        self._host_weights_version = 0
        """How often the host has got new weights from the device: by it inference follows training."""
        self._dirty_host_weights = False
        """Whether the device has changed the weights since the host got them."""
        self._rng_state: list[int] | None = None
        self._host_rng_state_is_dirty = False
        if self._options.exists("random_seed"):
            self._rng_state = [self._options.random_seed]
        self._profiling = profiling.Channel(
            "poptorch.trainingModel" if training else "poptorch.inferenceModel"
        )
        self._optimizer: Any = None
        self._optimizer_description: dict[str, Any] = {}
        self._ipu_optimizer_is_dirty = False
        self._wrapper: wrapping.Wrapper | None = None
        if training:
            compilation.check_initialised(self._user_model)
            self._attribute_tracker = AttributeTracker(self._options)
            self.setOptimizer(optimizer or SGD(self._user_model.parameters(), lr=0.01))
            self._wrapper = wrapping.Wrapper(self._user_model, self)
            self._wrapper.wrap(self._user_model)
        self._options._freeze()

    # -- the wrapped model ---------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The user's model."""
        return self._user_model

    @property
    def options(self) -> Options:
        """This model's own, frozen copy of the options."""
        return self._options

    @property
    def _executable(self) -> Session | None:
        """What was compiled, None before: Graphcore's programs ask for it by this name."""
        return self._session

    def __repr__(self) -> str:
        return module_repr(self._user_model)

    def __getattr__(self, attr: str) -> Any:
        model = self.__dict__.get("_user_model")
        if model is None:
            raise AttributeError(attr)  # not constructed yet: there is nothing to look in
        value = getattr(model, attr)
        is_parameter = isinstance(value, torch.nn.Parameter)
        return GroupableParameter(self.per_replica_params, attr, value) if is_parameter else value

    def __reduce_ex__(self, protocol: Any) -> Any:
        if self._session is None:
            return super().__reduce_ex__(protocol)
        raise poptorch_error(
            "A model on the IPU can be neither pickled nor copied: take the user's, `executor.model`, or write the "
            "executable by `executor.save()`."
        )

    def load_state_dict(self, state_dict: dict[str, Any], strict: bool = True) -> Any:
        """Load weights into the user's model, and onto the device if it is attached."""
        outcome = self._user_model.load_state_dict(state_dict, strict)
        if self.isAttachedToDevice():
            logger.debug("load_state_dict() calls copyWeightsToDevice()")
            self.copyWeightsToDevice()
        return outcome

    # -- weights -------------------------------------------------------------------------------

    def _compiled(self) -> Session:
        if self._session is None:
            raise poptorch_error(_NO_EXECUTABLE)
        return self._session

    def copyWeightsToHostIfNeeded(self) -> bool:
        """Copy the weights to the host if the device has changed them; whether it had."""
        if not self._dirty_host_weights:
            return False
        logger.debug("Implicit copyWeightsToHost()")
        self.copyWeightsToHost()
        return True

    def copyWeightsToHost(self) -> None:
        """Copy the device's weights and buffers to the user's model."""
        session = self._compiled()
        self._dirty_host_weights = False
        with self._profiling.tracepoint("copyWeightsToHost"):
            session.read_weights(parameters_and_buffers(self._model))
        self._host_weights_version += 1

    def copyWeightsToDevice(self) -> None:
        """Copy the user's model's weights and buffers to the device."""
        session = self._compiled()
        self._dirty_host_weights = False
        self._fetch_optimizer_state()
        with self._profiling.tracepoint("copyWeightsToDevice"):
            session.write_weights(parameters_and_buffers(self._model))

    def copyNamedBuffersToDevice(self) -> None:
        """Copy the buffers that `Options.updatableNamedBuffers` names to the device."""
        session = self._compiled()
        if "updatableNamedBuffers" not in self._options._Popart.options:
            raise poptorch_error(
                "There are no buffers to copy: name them by Options.updatableNamedBuffers()."
            )
        self._dirty_host_weights = False
        self._fetch_optimizer_state()
        buffers = dict(self._model.named_buffers())
        session.write_buffers(buffers, self._options._Popart.options["updatableNamedBuffers"])

    # -- optimizer -----------------------------------------------------------------------------

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Use an optimizer's attributes from the next call on; its kind cannot change after compilation."""
        if not self._training:
            raise poptorch_error("setOptimizer() needs a poptorch.trainingModel: this model only infers.")
        description = describe(optimizer, self._attribute_tracker, self._options, self.isCompiled())
        if self.isCompiled():
            check_replacement(self._optimizer_description, description)
        if self.isCompiled() and optimizer is not self._optimizer:
            if isinstance(self._optimizer, Optimizer):
                self._read_optimizer_state()
                self._optimizer.read_from_ipu = None
            if isinstance(optimizer, Optimizer):
                optimizer.ipu_state_is_dirty = True
        self._optimizer = optimizer
        if isinstance(optimizer, Optimizer):
            optimizer.read_from_ipu = self._read_optimizer_state
        if description != self._optimizer_description:
            self._optimizer_description = description
            self._ipu_optimizer_is_dirty = True
        if self.isAttachedToDevice():
            self._update_optimizer()
            self._write_optimizer_state()

    def _update_optimizer(self) -> None:
        if self._ipu_optimizer_is_dirty:
            self._compiled().update_optimizer(self._optimizer_description)
            self._ipu_optimizer_is_dirty = False

    def _fetch_optimizer_state(self) -> None:
        if self._optimizer is not None:
            self._optimizer.state_dict()

    def _read_optimizer_state(self) -> None:
        optimizer = self._optimizer
        if not optimizer.host_state_is_dirty:
            logger.debug("Using cached optimiser state dict")
            return
        optimizer.take_from_ipu(self._compiled().read_optimizer_state())

    def _write_optimizer_state(self) -> None:
        session, optimizer = self._compiled(), self._optimizer
        if not isinstance(optimizer, Optimizer) or not optimizer.ipu_state_is_dirty:
            return
        if optimizer.has_state():
            self.copyWeightsToHostIfNeeded()
            session.write_optimizer_state(optimizer.get_state_dict())
        optimizer.ipu_state_is_dirty = False

    # -- compiling -----------------------------------------------------------------------------

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile for inputs like these, without running."""
        inputs = self._args_parser(args, kwargs)
        if self.isCompiled():
            logger.warning("compile() changes nothing: the model is already compiled; destroy() it before")
            return
        self._compile(inputs)

    def _compile(self, inputs: Arguments) -> None:
        self._args_parser.warn_about_dicts(inputs)
        with self._profiling.tracepoint("modelCompilation"), self._hooks():
            compiled = compilation.compile_model(self._subject(inputs))
        self._install(compiled, inputs)

    def _subject(self, inputs: Arguments) -> Subject:
        return Subject(
            model=self._model,
            inputs=inputs.map(self._narrow_tensor),
            training=self._training,
            optimizer=self._optimizer,
            optimizer_description=self._optimizer_description,
            options=self._options,
            replica_groups=self.per_replica_params,
        )

    def _install(self, compiled: compilation.Compiled, inputs: Arguments) -> None:
        session = compiled.session
        attach = (
            self._options.connection_type != ConnectionType.Never and not session.executable.params.is_null
        )
        if attach:
            session.attach()
        self._session, self._captured = session, compiled.captured
        self._executable_inputs = inputs
        if attach:
            self._on_attach()

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        for hook in list(PoplarExecutor._precompile_hooks.values()):
            hook()
        try:
            yield
        finally:
            for hook in list(PoplarExecutor._postcompile_hooks.values()):
                hook()

    def _narrow_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """One micro-batch of an input: [rows / micro-batches, ...]."""
        options = self._options
        if tensor.requires_grad:
            logger.warning(
                "An input has requires_grad=True; it is detached, as no gradient goes through inputs."
            )
            tensor = tensor.detach()
        groups = options.replication_factor // options.input_group_size
        micro_batches = options.device_iterations * groups * options.Training.gradient_accumulation
        rows = tensor.shape[0] if tensor.dim() else 1
        assert rows % micro_batches == 0, (
            f"An input of shape {list(tensor.shape)} has {rows} rows, which do not divide among {micro_batches} "
            f"micro-batches: deviceIterations {options.device_iterations} * replicationFactor "
            f"{options.replication_factor} / input_group_size {options.input_group_size} * gradientAccumulation "
            f"{options.Training.gradient_accumulation}"
        )
        return tensor if not tensor.dim() else tensor.narrow(0, 0, rows // micro_batches)

    def isCompiled(self) -> bool:
        """Whether there is an executable."""
        return self._session is not None

    def destroy(self) -> None:
        """Bring weights and optimizer state to the host, forget the executable, unwrap the user's model."""
        if not self.isCompiled():
            return
        if self._training:
            self.copyWeightsToHostIfNeeded()
            self._fetch_optimizer_state()
        self._compiled().detach()
        self._session = None
        if self._training:
            if not wrapping.isWrapped(self._user_model):
                raise poptorch_error(
                    "Something else than destroy() has changed the class of the user's model back."
                )
            wrapping.unwrap_model(self._user_model)

    # -- saving --------------------------------------------------------------------------------

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        """Write the executable to a file, with the model (for `poptorch.load`) if `export_model`."""
        self._compiled()
        assert self._captured is not None and self._executable_inputs is not None, "the model is compiled"
        saved = export.Saved(
            version=self._poptorch_version,
            captured=self._captured,
            subject=self._subject(self._executable_inputs),
            inputs=self._executable_inputs,
            model=self._saved_model() if export_model else None,
            rng_state=self.rng_state if save_rng_state else None,
        )
        export.save(filename, saved)

    def _saved_model(self) -> export.SavedModel:
        optimizer = self._optimizer
        state = None if optimizer is None else optimizer.state_dict()
        return export.SavedModel(self._training, self._options, self.model, optimizer, state)

    def compileAndExport(self, filename: str, *args: Any, export_model: bool = True, **kwargs: Any) -> None:
        """`compile`, then `save`."""
        self.compile(*args, **kwargs)
        self.save(filename, export_model)

    def loadExecutable(self, filename: str) -> None:
        """Use the executable that `save` wrote instead of compiling."""
        contents = export.read(filename, self._poptorch_version)
        inputs = export.inputs_of(contents)
        if "program" not in contents.documents:
            logger.warning("loadExecutable(): %s holds no program; the model is compiled again", filename)
            self._compile(inputs)
            return
        with self._profiling.tracepoint("loadExecutable"), self._hooks():
            compiled = compilation.load_model(self._subject(inputs), filename, contents)
        self._install(compiled, inputs)

    # -- device --------------------------------------------------------------------------------

    def isAttachedToDevice(self) -> bool:
        """Whether the executable has a device."""
        return self._session is not None and self._session.attached

    def attachToDevice(self) -> None:
        """Take a device and copy weights and states to it."""
        session = self._compiled()
        assert self._options.connection_type != ConnectionType.Never, (
            "attachToDevice() needs a device, and ConnectionType.Never has none"
        )
        if session.attached:
            raise poptorch_error("attachToDevice(): the model has its device")
        session.attach()
        self._on_attach()

    def detachFromDevice(self) -> None:
        """Copy weights and states to the host and give the device back."""
        session = self._compiled()
        if not session.attached:
            raise poptorch_error("Device is not attached")
        _ = self.rng_state
        if self._training:
            self.copyWeightsToHostIfNeeded()
            if isinstance(self._optimizer, Optimizer):
                self._read_optimizer_state()
        session.detach()

    def _on_attach(self) -> None:
        self.copyWeightsToDevice()
        if self._optimizer is not None:
            self._update_optimizer()
        if isinstance(self._optimizer, Optimizer):
            goes_on = self._optimizer.has_state()
            self._optimizer.ipu_state_is_dirty, self._optimizer.host_state_is_dirty = goes_on, not goes_on
            self._write_optimizer_state()
        if self._rng_state is not None:
            self._compiled().random_state = self._rng_state

    @property
    def rng_state(self) -> list[int]:
        """The state of the device's random numbers: the seed first."""
        session = self._compiled()
        if self._host_rng_state_is_dirty:
            self._host_rng_state_is_dirty = False
            self._rng_state = session.random_state
        return self._rng_state  # type: ignore[return-value]

    @rng_state.setter
    def rng_state(self, state: list[int]) -> None:
        session = self._compiled()
        self._host_rng_state_is_dirty = False
        self._rng_state = list(state)
        if session.attached:
            session.random_state = self._rng_state

    # -- running -------------------------------------------------------------------------------

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self._options.connection_type != ConnectionType.Never, (
            "Trying to run a model on an offline device: with ConnectionType.Never it is compiled only, by compile()"
        )
        inputs = self._args_parser(args, kwargs)
        if not self.isCompiled():
            self._compile(inputs)
        session = self._compiled()
        if not session.attached:
            self.attachToDevice()
        if not self._training:
            self._fetch_trained_weights()
        assert self._executable_inputs is not None, "a compiled model knows its inputs"
        self._executable_inputs.validate(inputs)
        self._write_optimizer_state()
        with self._profiling.tracepoint("modelExecution"):
            outputs, anchors = session.run(inputs.tensors(self._executable_inputs))
        self._anchor_memory.update(anchors)
        self._after_run()
        return self._rebuild(outputs)

    def _fetch_trained_weights(self) -> None:
        """Take over what a training model of the same user model has learnt since the last call."""
        version = getattr(self._user_model, "_host_weights_version", None)
        if version is None:
            return
        self._user_model.copyWeightsToHostIfNeeded()
        version = self._user_model._host_weights_version
        if self._host_weights_version != version:
            logger.debug("copyWeightsToDevice(): a training model has changed the weights")
            self.copyWeightsToDevice()
            self._host_weights_version = version

    def _after_run(self) -> None:
        self._host_rng_state_is_dirty = True
        self._dirty_host_weights = self._training
        if isinstance(self._optimizer, Optimizer):
            self._optimizer.host_state_is_dirty = True

    def _rebuild(self, outputs: list[torch.Tensor]) -> Any:
        for output in outputs:
            output.backward = _refuse_backward  # type: ignore[method-assign]
        assert self._captured is not None, "a model that ran was compiled"
        return reconstructTensorStructure(self._captured.outputs, outputs, is_placeholder)

    # -- looking inside ------------------------------------------------------------------------

    def getTensorNames(self) -> list[str]:
        """Names of the program's tensors, for `Options.anchorTensor`."""
        assert self._session is not None, "a model has tensor names once it is compiled"
        return self._session.tensor_names()

    def getAnchoredTensor(self, short_name: str) -> torch.Tensor:
        """The last value of a tensor anchored by `Options.anchorTensor`."""
        known = ", ".join(self._anchor_memory) or "none"
        assert short_name in self._anchor_memory, (
            f"{short_name} is not anchored and run; of these there are: {known}"
        )
        return self._anchor_memory[short_name]

    def _debugGetPopartIR(self) -> str:
        return self._compiled().popart_ir()

    def pattern_changes(self) -> list[PatternChange]:
        """The simulator's own: what the patterns of loaded custom-op libraries did when this was compiled."""
        return list(self._compiled().program.pattern_changes)

    def cycleCount(self) -> int:
        """Cycles of the last call, where `Options.logCycleCount` is set."""
        if not self._options._Popart.options["instrumentWithHardwareCycleCounter"]:
            raise poptorch_error(
                "Cycle count logging is disabled. Please set option logCycleCount to True to enable."
            )
        if self._session is None:
            raise poptorch_error("Please run the model at least once before obtaining cycle count.")
        return self._session.cycle_count()

    def compilationTime(self) -> datetime.timedelta:
        """How long the compilation took, where its progress bar is shown."""
        if not self.isCompiled():
            raise poptorch_error("Please compile the model before obtaining compilation time.")
        if not self._options._show_compilation_progress_bar:
            raise poptorch_error("Please set showCompilationProgressBar option to obtain compilation time.")
        elapsed = self._options._progress_bar.compilation_time
        assert elapsed is not None, "a compilation reports its progress"
        return elapsed

    def getPerfCounters(self) -> dict[str, list[list[float]]]:
        """When each micro-batch of each input and output began and ended its way, in the last call."""
        return latency.counters(self._session)

    def getHostIpuLatency(self) -> tuple[float, float, float]:
        """Least, greatest and mean seconds from the host to the IPU."""
        return latency.between(self.getPerfCounters(), ("input", min), ("input_complete", max))

    def getComputeLatency(self) -> tuple[float, float, float]:
        """Least, greatest and mean seconds on the IPU."""
        return latency.between(self.getPerfCounters(), ("input_complete", max), ("output", max))

    def getIpuHostLatency(self) -> tuple[float, float, float]:
        """Least, greatest and mean seconds from the IPU to the host."""
        return latency.between(self.getPerfCounters(), ("output", min), ("output_complete", max))

    def getLatency(self) -> tuple[float, float, float]:
        """Least, greatest and mean seconds from the host to the host."""
        return latency.between(self.getPerfCounters(), ("input", min), ("output_complete", max))


def _own_options(options: Options | None, training: bool) -> Options:
    """The executor's copy of the user's options, with the output mode decided."""
    if options is not None and not isinstance(options, Options):
        raise poptorch_error(f"options must be a poptorch.Options, not {options!r}")
    if options is not None:
        options._freeze()
    own = options.clone() if options is not None else Options()
    _check_counts(own)
    if own.defaultOutputMode():
        own.outputMode(OutputMode.Final if training else OutputMode.All)
    if not training and own.Training.gradient_accumulation != 1:
        message = (
            "You must set poptorch.Options().Training.gradientAccumulation to 1 or leave it as its default value (1) "
            "when running a poptorch.inferenceModel()."
        )
        if is_pipelined(own._execution_strategy):
            message += (
                " Use poptorch.Options().deviceIterations to process a sufficient number of batches each run "
                "for pipelined execution instead."
            )
        raise poptorch_error(message)
    for anchor in own.anchored_tensors.values():
        if anchor[1]:
            anchor[2] = OutputMode(own.output_mode)
            anchor[3] = own.output_return_period if anchor[2] == OutputMode.EveryN else anchor[3]
    return own


def _check_counts(options: Options) -> None:
    counts = {
        "deviceIterations": options.device_iterations,
        "replicationFactor": options.replication_factor,
        "Training.gradientAccumulation": options.Training.gradient_accumulation,
    }
    for name, count in counts.items():
        if count < 1:
            raise poptorch_error(f"poptorch.Options().{name}({count}): it must be 1 or more.")


def _refuse_backward(*_: Any, **__: Any) -> None:
    raise poptorch_error(
        "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a trainingModel, the "
        "backwards pass is performed automatically when invoking the model. If you're using an inferenceModel, you "
        "should use a trainingModel instead."
    )


def _register(hooks: Hooks, hook: Callable[[], None]) -> RemovableHandle:
    if not callable(hook):
        raise RuntimeError(f"A hook must be callable, not {hook!r}")
    handle = RemovableHandle(hooks)
    hooks[handle.id] = hook
    return handle


def registerPreCompileHook(hook: Callable[[], None]) -> RemovableHandle:
    """Call `hook` before each model is compiled, until the handle is removed."""
    return _register(PoplarExecutor._precompile_hooks, hook)


def registerPostCompileHook(hook: Callable[[], None]) -> RemovableHandle:
    """Call `hook` after each model is compiled, until the handle is removed."""
    return _register(PoplarExecutor._postcompile_hooks, hook)
