"""From a model, its inputs and its options to a session: captures the forward once and compiles it."""

from __future__ import annotations

import dataclasses
import functools
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from ..compiler import compile_program
from ..errors import poptorch_error
from ..executables.cache import Key, describe_differences
from ..executables.container import Contents, UnusableFile
from ..graph import capture, limits
from ..graph.annotations import Placement
from ..graph.captured_tensor import CapturedTensor
from ..graph.ir import Program, Role
from ..graph.program_text import held_by_ipus, program_text
from ..graph.request import parameters_and_buffers
from ..installation import current_params
from ..runtime.engine import Executable
from . import devices, placement, session_options, wrapping
from ._logging import TRACE, compiler_logger, logger
from .arguments import Arguments
from .captured_program import CapturedProgram, read_captured
from .compile_request import Subject, compile_request, execution_settings
from .enums import ConnectionType, OutputMode
from .executable_caching import Watching, cache_folder, cached_program
from .executable_key import FITTING, fitting_key
from .options import Options
from .recording import place
from .session import Session
from .structure import flattenTensorStructure, hidden_tensors, reconstructTensorStructure
from .torch_behaviour import IpuByDefault, torch_without_values, without_autocast


@dataclass(frozen=True)
class Compiled:
    """A program, and the session that runs it."""

    session: Session
    captured: CapturedProgram


def compile_model(subject: Subject) -> Compiled:
    """Capture and compile. Raises what the forward raises, and Error for what the IPU cannot do."""
    return _make_session(subject, _captured_program)


def load_model(subject: Subject, filename: str, contents: Contents) -> Compiled:
    """Take the program of a file. Raises Error where it was compiled for another model or other settings."""
    return _make_session(subject, functools.partial(_loaded_program, filename, contents))


def key_for_loading(subject: Subject) -> Key:
    """What `load_model` compares."""
    with wrapping.unwrapped(subject.model):
        return fitting_key(subject, compile_request(subject, _FlatForward(subject.model, subject.inputs)))


def _make_session(subject: Subject, make_program: Callable[[Subject], CapturedProgram]) -> Compiled:
    """Make the program, check what the options and the devices ask of it, and lower it for the engine."""
    check_initialised(subject.model)
    _warn_of_torch_compile(subject.model)
    options = subject.options
    session_options.validate(options.toDict())
    _check_return_period(options)
    progress = options._progress_bar if options._show_compilation_progress_bar else _no_progress
    progress(0, 3)
    with wrapping.unwrapped(subject.model):
        captured = make_program(subject)
    program = captured.program
    _check_updatable_buffers(program, options)
    _warn_of_types(subject)
    for lost in limits.numbers_lost(program):
        compiler_logger.warning(lost)
    progress(2, 3)
    params = current_params()
    if options.connection_type == ConnectionType.Never:
        params = dataclasses.replace(params, device="null")
    placement.check_placement(program, options)
    ipus = devices.reserved_ipus(program, options)
    placement.check_pipeline(program, options)
    executable = Executable(program, execution_settings(options), params)
    _show(program, executable)
    progress(3, 3)
    return Compiled(Session(program, executable, ipus, options), captured)


def _show(program: Program, executable: Executable) -> None:
    """Log what the IPUs hold; at the level of PopTorch's own graphs, what was compiled, and the code that runs."""
    for line in held_by_ipus(program):
        compiler_logger.info("%s; activations and code come on top", line)
    if compiler_logger.isEnabledFor(TRACE):
        compiler_logger.log(TRACE, "Compiled program:\n%s", program_text(program))
        for title, source in executable.sources().items():
            compiler_logger.log(TRACE, "Code of the %s:\n%s", title, source)


def _check_updatable_buffers(program: Program, options: Options) -> None:
    """Raise Error for a name of `Options.updatableNamedBuffers` that is no buffer of the program."""
    known = [name for name, variable in program.variables.items() if variable.role is Role.BUFFER]
    unknown = [name for name in options._Popart.options.get("updatableNamedBuffers", ()) if name not in known]
    if unknown:
        raise poptorch_error(
            f"updatableNamedBuffers() names {unknown}; the buffers of real numbers that the model reads are {known}."
        )


_NARROWED = {torch.int64: ("int64", "int32"), torch.float64: ("float64", "float32")}


def _warn_of_types(subject: Subject) -> None:
    """Say what has another type on the IPU, and what of the model is no variable there."""
    named = parameters_and_buffers(subject.model)
    weights = [name for name, tensor in named.items() if tensor.is_floating_point()]
    for dtype, change in _NARROWED.items():
        inputs = [name for name, tensor in subject.inputs.named_tensors() if tensor.dtype == dtype]
        names = inputs + [name for name in weights if named[name].dtype == dtype]
        if names:
            compiler_logger.warning("The IPU has no %s, and computes with %s: %s", *change, _some_of(names))
    constants = [name for name in named if name not in weights]
    if constants:
        compiler_logger.warning(
            "Parameters and buffers that are not of real numbers are constants of the program: %s. What a forward "
            "writes to them, or the host after compiling, has no effect.",
            _some_of(constants),
        )


def _some_of(names: Sequence[str], most: int = 4) -> str:
    """The first few names, and how many more there are: batch norms alone can have a counter each."""
    listed = ", ".join(names[:most])
    return f"{listed} and {len(names) - most} more" if len(names) > most else listed


def check_initialised(model: Any) -> None:
    """Raise Error for a parameter or buffer of a lazy module, which has no shape before the module's first call."""
    for name, tensor in parameters_and_buffers(model).items():
        if torch.nn.parameter.is_lazy(tensor):
            raise poptorch_error(
                f"{name} belongs to a lazy module and has no shape yet: call the model with an example on the CPU "
                "before it is run or trained on the IPU."
            )


def _warn_of_torch_compile(model: Any) -> None:
    """Say that `torch.compile` does nothing here: while a forward is captured its modules call what they wrap."""
    modules = model.named_modules() if isinstance(model, torch.nn.Module) else ()
    compiled = [name or type(module).__name__ for name, module in modules if "_orig_mod" in module._modules]
    if compiled:
        logger.warning(
            "torch.compile has no effect on the IPU, whose compiler takes the forward as it was written: leave it out. "
            "It wraps %s.",
            _some_of(compiled),
        )


def _check_return_period(options: Options) -> None:
    """Raise Error where "every n-th batch" would be another one in each call (PopART's `DataFlow`).

    Anchored tensors may ask for it: PopTorch's own tests do (debug_tensors_test.py, test_tensor_modes).
    """
    period, iterations = options.output_return_period, options.device_iterations
    if options.output_mode == OutputMode.EveryN and iterations % period:
        raise poptorch_error(
            f"outputMode(EveryN, {period}) would return other results in each call: deviceIterations is {iterations}, "
            f"and must be a multiple of {period}."
        )


def _no_progress(done: int, total: int) -> None:
    """The user wants no progress bar."""


# -- the program, by its forward, from the cache or from a file ---------------------------------


def _captured_program(subject: Subject) -> CapturedProgram:
    """The program of a model, by its forward or from the cache."""
    forward = _FlatForward(subject.model, subject.inputs)
    request = compile_request(subject, forward)

    def compile_(watching: Watching = nullcontext) -> CapturedProgram:
        forward.watching = watching
        # A training model trains wherever it is called; what the forward does under `no_grad` of its own stays so.
        with without_autocast(), torch_without_values(), _tracing(subject.options), torch.set_grad_enabled(True):
            program = compile_program(request)
        _warn_of_what_follows_the_loss(program)
        return CapturedProgram(program, forward.returned)

    folder = cache_folder(subject.options)
    if folder is not None:
        return cached_program(folder, subject, request, compile_)
    if subject.options.Distributed.numProcesses > 1:
        logger.warning(
            "Each process compiles the model; with poptorch.Options.enableExecutableCaching() one would for all"
        )
    return compile_()


@contextmanager
def _tracing(options: Options) -> Iterator[None]:
    options._execution_strategy.onStartTracing()
    try:
        yield
    finally:
        options._execution_strategy.onEndTracing()


_ARITHMETIC = frozenset({"aten::add", "aten::sub", "aten::rsub", "aten::mul", "aten::div"})


def _warn_of_what_follows_the_loss(program: Program) -> None:
    """PopTorch minimises the result of the last loss function, whatever the forward computes from it."""
    for user in program.loss.users if program.loss is not None else ():
        schema = getattr(user.target, "_schema", None)
        if user.meta.get("pass") == "forward" and schema is not None and schema.name in _ARITHMETIC:
            logger.warning(
                "The result of the loss function at %s is minimised; what is computed from it at %s, as label "
                "smoothing is, changes nothing in training. Wrap the value to minimise in poptorch.identity_loss.",
                program.loss.meta.get("source"),  # type: ignore[union-attr]
                user.meta.get("source"),
            )


def _loaded_program(filename: str, contents: Contents, subject: Subject) -> CapturedProgram:
    request = compile_request(subject, _FlatForward(subject.model, subject.inputs))
    before = {part: json.loads(contents.headers["key"]).get(part, {}) for part in FITTING}
    differences = describe_differences(before, fitting_key(subject, request))
    if differences:
        raise poptorch_error(
            f"Invalid file {filename}: its executable was compiled for another model or other options: "
            f"{'; '.join(differences[:4])}. Load it for what it was compiled for, or compile again."
        )
    try:
        return read_captured(contents, parameters_and_buffers(subject.model), subject.optimizer_description)
    except UnusableFile as error:
        raise poptorch_error(f"Invalid file {filename}: {error}") from error


# -- the forward -------------------------------------------------------------------------------


class _FlatForward:
    """The forward as the compiler enters it: flat tensors in and out; it keeps the structure of what was returned."""

    def __init__(self, model: Any, inputs: Arguments) -> None:
        self._model = model
        self._inputs = inputs
        self.returned: Any = None
        """The user's result with tensors without data, once the forward was entered."""
        self.watching: Watching = nullcontext
        """Entered around the user's code."""

    def __call__(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = reconstructTensorStructure((self._inputs.args, self._inputs.kwargs), tensors)
        with IpuByDefault():
            with self.watching():
                result = self._model(*args, **kwargs)
            result = _recognised(result)
            _warn_of_hidden(result)
            place(Placement())  # What follows is not the user's and belongs to no block.
            outputs = tuple(_narrowed(output) for output in self._outputs(result))
        self.returned = reconstructTensorStructure(result, map(_placeholder, flattenTensorStructure(result)))
        return outputs

    @staticmethod
    def _outputs(result: Any) -> Iterator[torch.Tensor]:
        for output in flattenTensorStructure(result):
            if _is_on_ipu(output):
                yield output
            else:
                warnings.warn(
                    f"Output expected to be on the IPU but is on {output.device.type}", stacklevel=2
                )


def _warn_of_hidden(result: Any) -> None:
    for holder, tensor in hidden_tensors(result):
        if _is_on_ipu(tensor):
            logger.warning(
                "The forward returns a %s, which holds tensors: they get no values. Return them in tuples, lists and "
                "dicts, or teach PopTorch the class by poptorch.registerCustomArgParser.",
                type(holder).__name__,
            )
            return


def _placeholder(tensor: torch.Tensor) -> torch.Tensor:
    """What stands in a result's structure for a tensor of the program: nothing that keeps the capture alive."""
    if not _is_on_ipu(tensor):
        return tensor
    with capture.suspended():
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _recognised(result: Any) -> Any:
    """What the forward returned, its parameters and buffers as tensors of the program."""
    current = capture.current()
    assert current is not None, "the forward is entered inside a capture"
    return reconstructTensorStructure(result, map(current.recognise, flattenTensorStructure(result)))


def _narrowed(tensor: torch.Tensor) -> torch.Tensor:
    """The IPU has no 64-bit types: results come back as it has them."""
    narrower = {torch.int64: torch.int32, torch.float64: torch.float32}
    return tensor.to(narrower[tensor.dtype]) if tensor.dtype in narrower else tensor


def _is_on_ipu(tensor: torch.Tensor) -> bool:
    """Whether a tensor belongs to a captured program."""
    return isinstance(tensor, CapturedTensor)
