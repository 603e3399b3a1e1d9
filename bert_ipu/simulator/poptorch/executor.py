"""`PoplarExecutor`: a model that is compiled at its first call and then runs on the device."""

from __future__ import annotations

import datetime
from typing import Any

import torch

from ..errors import poptorch_error
from ..graph.ir import PatternChange
from ..graph.request import parameters_and_buffers
from . import compilation, compile_hooks, export, latency, profiling, wrapping
from ._logging import logger
from .arguments import ArgumentParser, Arguments
from .captured_program import CapturedProgram, is_placeholder
from .compile_request import Subject
from .device_optimizer import DeviceOptimizer
from .enums import ConnectionType
from .model_options import own_options
from .optim import SGD
from .options import Options, micro_batches_of_a_call
from .printing import module_repr
from .replica_grouping import GroupableParameter, Grouping
from .session import Session
from .structure import reconstructTensorStructure

_NO_EXECUTABLE = "Model has not been compiled or has been destroyed."


class PoplarExecutor:
    """What `poptorch.trainingModel` and `poptorch.inferenceModel` return; call it like the model it wraps.

    Attributes it lacks are the model's. Raises Error where PopTorch does: a changed signature, an executable
    that is missing, a device that is not attached.
    """

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
        self._user_model = model if user_model is None else user_model
        """What the user holds, and reads weights from (`wrapping.py`)."""
        self._training = training
        self._poptorch_version = poptorch_version
        self._options = own_options(options, training)
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
        self._device_optimizer: DeviceOptimizer | None = None
        """The optimizer of a training model."""
        self._wrapper: wrapping.Wrapper | None = None
        if training:
            compilation.check_initialised(self._user_model)
            self._device_optimizer = DeviceOptimizer(
                self._options, self._compiled, self.copyWeightsToHostIfNeeded
            )
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
        if self._device_optimizer is not None:
            self._device_optimizer.fetch_state()
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
        if self._device_optimizer is not None:
            self._device_optimizer.fetch_state()
        buffers = dict(self._model.named_buffers())
        session.write_buffers(buffers, self._options._Popart.options["updatableNamedBuffers"])

    # -- optimizer -----------------------------------------------------------------------------

    def setOptimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """Use an optimizer's attributes from the next call on; its kind cannot change after compilation."""
        if self._device_optimizer is None:
            raise poptorch_error("setOptimizer() needs a poptorch.trainingModel: this model only infers.")
        self._device_optimizer.replace(optimizer, self.isCompiled())
        if self.isAttachedToDevice():
            self._device_optimizer.write_attributes()
            self._device_optimizer.write_state()

    @property
    def _optimizer(self) -> Any:
        """The user's optimizer, None for inference: Graphcore's programs ask for it by this name."""
        return None if self._device_optimizer is None else self._device_optimizer.given

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
        with self._profiling.tracepoint("modelCompilation"), compile_hooks.called_around():
            compiled = compilation.compile_model(self._subject(inputs))
        self._install(compiled, inputs)

    def _subject(self, inputs: Arguments) -> Subject:
        trained_by = self._device_optimizer
        return Subject(
            model=self._model,
            inputs=inputs.map(self._narrow_tensor),
            training=self._training,
            optimizer=self._optimizer,
            optimizer_description={} if trained_by is None else trained_by.description,
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

    def _narrow_tensor(self, tensor: torch.Tensor) -> torch.Tensor:
        """One micro-batch of an input: [rows / micro-batches, ...]."""
        options = self._options
        if tensor.requires_grad:
            logger.warning(
                "An input has requires_grad=True; it is detached, as no gradient goes through inputs."
            )
            tensor = tensor.detach()
        micro_batches = micro_batches_of_a_call(options)
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
        if self._device_optimizer is not None:
            self.copyWeightsToHostIfNeeded()
            self._device_optimizer.fetch_state()
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
        with self._profiling.tracepoint("loadExecutable"), compile_hooks.called_around():
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
        if self._device_optimizer is not None:
            self.copyWeightsToHostIfNeeded()
            self._device_optimizer.read_state()
        session.detach()

    def _on_attach(self) -> None:
        self.copyWeightsToDevice()
        if self._device_optimizer is not None:
            self._device_optimizer.attach()
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
        if self._device_optimizer is not None:
            self._device_optimizer.write_state()
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
        if self._device_optimizer is not None:
            self._device_optimizer.has_run()

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


def _refuse_backward(*_: Any, **__: Any) -> None:
    raise poptorch_error(
        "backward() cannot be called explicitly on outputs of a PopTorch model. If you're using a trainingModel, the "
        "backwards pass is performed automatically when invoking the model. If you're using an inferenceModel, you "
        "should use a trainingModel instead."
    )
