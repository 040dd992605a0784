"""What application code may say about an action that no framework can know.

    auditspan.set_actor("alice", roles=["admin"])          who acts in this request
    auditspan.describe(action="REFUND", reason="damaged")  what this request does; makes it a record
    @auditspan.audited("EXPORT", target_type="report", target_id="report_id")
    with auditspan.record("PURGE", target_type="cache"):   an action of its own inside (or without) a request

Where Auditspan does not run, each of them does nothing, in about a microsecond. None of them raises for a
reason of ours: a value that can't be used is left out and said once in the log.
"""

from __future__ import annotations

import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Self, TypeVar, cast

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode

from auditspan import attributes as names
from auditspan import context
from auditspan.context import Actor
from auditspan.extractors import hash_session, text, texts

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Mapping
    from contextvars import Token
    from types import TracebackType

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

    from auditspan.context import AuditedSpan
    from auditspan.processor import AuditSpanProcessor

_log = logging.getLogger(__name__)

_P = ParamSpec("_P")
_R = TypeVar("_R")

PROCESSOR: Final = "_auditspan"  # attribute of the tracer provider; there when Auditspan runs
_DENYING_STATUS: Final = (401, 403)
_said: set[str] = set()


def set_actor(
    id: object,  # noqa: A002 - the word of the contract: audit.actor.id
    *,
    type: str = "user",  # noqa: A002 - as above
    roles: Iterable[object] = (),
    session: object = None,
    auth_method: str | None = None,
    delegate: object = None,
) -> None:
    """Say who acts in the current request, from any thread or dependency of it; call it after you verified them.

    *type* is user, service or system. *session* is the session's id and is stored hashed only. *auth_method* is how
    they authenticated (password, bearer, mtls ...); *delegate* who acts for them, as when an administrator
    impersonates a user. The last call counts, for the request and for all records inside it.
    """
    state = context.current()
    announced = context.announced() if state is None else None
    if state is None and announced is None:
        return
    details = _details(type, roles, session, auth_method, delegate)
    actor = _actor(id, details)
    if actor is None:
        return
    if state is not None:
        state.root().actor = actor
    elif announced is not None:
        announced.actor = actor


def describe(
    *,
    action: str | None = None,
    target_type: object = None,
    target_id: object = None,
    outcome: str | None = None,
    reason: object = None,
) -> None:
    """Say what the current request does, and make it a record, a read too. What you leave out stays as it was.

    *action* is an upper-case verb, *outcome* one of success, failure, denied, unknown. Your word goes before what the
    framework says: an outcome that you set stays when the response is an error.
    """
    state = context.current()
    if state is not None:
        state = state.root()
        state.wanted = True
        _say(
            state, action=action, target_type=target_type, target_id=target_id, outcome=outcome, reason=reason
        )


class record:  # noqa: N801 - used like a function: with record("EXPORT") as it
    """An action of its own, as a context manager (``with`` and ``async with``).

    It is a span inside the current one and a record with that one's actor. It succeeds, or fails with the exception
    that leaves the block, which is denied when it stands for 401 or 403 and a failure otherwise.
    """

    def __init__(
        self, action: str, *, target_type: object = None, target_id: object = None, reason: object = None
    ) -> None:
        self._said = {"action": action, "target_type": target_type, "target_id": target_id, "reason": reason}
        self._state: AuditedSpan | None = None
        self._span: Any = None
        self._context: Context | None = None
        self._token: Token[Context] | None = None

    def actor(
        self,
        id: object,  # noqa: A002 - as in set_actor
        *,
        type: str = "user",  # noqa: A002 - as in set_actor
        roles: Iterable[object] = (),
        session: object = None,
        auth_method: str | None = None,
        delegate: object = None,
    ) -> None:
        """Say who acts here, when it is somebody else than in the request; arguments as in ``set_actor``."""
        if self._state is not None:
            details = _details(type, roles, session, auth_method, delegate)
            self._state.actor = _actor(id, details) or self._state.actor

    def target(self, target_type: object = None, target_id: object = None) -> None:
        """Say what is acted on, once it is known."""
        if self._state is not None:
            _say(self._state, target_type=target_type, target_id=target_id)

    def outcome(self, outcome: str, reason: object = None) -> None:
        """Say how it ended; goes before what an exception says."""
        if self._state is not None:
            _say(self._state, outcome=outcome, reason=reason)

    def reason(self, reason: object) -> None:
        """Say why it is done, or why it was denied."""
        if self._state is not None:
            _say(self._state, reason=reason)

    def __enter__(self) -> Self:
        """Start the span and make it current."""
        self._start()
        self._attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        """End the span; the record is then in the spool. Exceptions go on."""
        self._detach()
        self._end(error)

    async def __aenter__(self) -> Self:
        """As ``with``."""
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace_: TracebackType | None
    ) -> None:
        """As ``with``."""
        self.__exit__(kind, error, trace_)

    def _start(self) -> None:
        processor = _processor()
        if processor is None:
            return
        try:
            self._span = processor.tracer.start_span(
                f"{text(self._said['action'])} {text(self._said['target_type'])}".strip(),
                # The one or the other keeps the span recording when ordinary sampling drops it. On the ordinary copy,
                # the attribute says that the record comes by the spool.
                context=None if processor.span_attributes else context.kept(),
                attributes={names.DELIVERY: names.DELIVERY_SPOOL} if processor.span_attributes else None,
            )
            self._state = processor.begin_record(self._span)
            _say(self._state, **self._said)
            self._context = trace.set_span_in_context(self._span, context.with_state(self._state))
        except Exception:  # noqa: BLE001 - inside the application's code
            _say_once("a record could not be started", with_traceback=True)

    def _attach(self) -> None:
        if self._context is not None:
            self._token = otel_context.attach(self._context)

    def _detach(self) -> None:
        if self._token is not None:
            otel_context.detach(self._token)
            self._token = None

    def _end(self, error: BaseException | None) -> None:
        state, span = self._state, self._span
        if state is None:
            return
        try:
            if error is not None and not isinstance(error, GeneratorExit):
                _tell(state, span, error)
            if state.emitter is not None:
                state.emitter.responding(span, state)
        except Exception:  # noqa: BLE001 - as above
            _say_once("a record could not be ended", with_traceback=True)
        finally:
            span.end()  # never raises; the record is written by it


def _tell(state: AuditedSpan, span: Span, error: BaseException) -> None:
    """How *error* ended the record; each detail by itself, because an exception's own code may raise."""
    status = _asked(lambda: getattr(error, "status_code", None) or getattr(error, "code", None))
    denied = isinstance(error, PermissionError) or (isinstance(status, int) and status in _DENYING_STATUS)
    said = _asked(lambda: text(str(error))) or ""
    state.outcome = state.outcome or (names.DENIED if denied else names.FAILURE)
    state.reason = state.reason or (said if denied else "")
    span.set_status(Status(StatusCode.ERROR, f"{type(error).__name__}: {said}"))
    _asked(lambda: span.record_exception(error))


def _asked(question: Callable[[], _R]) -> _R | None:
    """The answer of the application's own code; None when it raises."""
    try:
        return question()
    except Exception:  # noqa: BLE001 - properties and __str__ of the application's objects may raise anything
        _say_once("an object of the application raised when it was asked", with_traceback=True)
        return None


def audited(
    action: str,
    *,
    target_type: object = None,
    target_id: str | Callable[..., object] | None = None,
    reason: object = None,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make each call of a function a record; for functions, coroutine functions and generators of both kinds.

    *target_id* is the name of a parameter, also of something in it (``"order"``, ``"order.id"``), or a function
    that is called with the same arguments. Raises ValueError, when the function is defined, for a name that is none
    of its parameters.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        find = _finder(function, target_id)

        def begin(args: Any, kwargs: Any) -> record:
            return record(action, target_type=target_type, target_id=find(args, kwargs), reason=reason)

        return cast("Callable[_P, _R]", _wrapped(function, begin))

    return decorate


def _wrapped(function: Callable[..., Any], begin: Callable[[Any, Any], record]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **kwargs: Any) -> Any:
            if _processor() is None:
                return await function(*args, **kwargs)
            with begin(args, kwargs):
                return await function(*args, **kwargs)

        return coroutine
    if inspect.isasyncgenfunction(function) or inspect.isgeneratorfunction(function):
        return _wrapped_generator(function, begin)

    @functools.wraps(function)
    def plain(*args: Any, **kwargs: Any) -> Any:
        if _processor() is None:
            return function(*args, **kwargs)
        with begin(args, kwargs):
            return function(*args, **kwargs)

    return plain


def _wrapped_generator(
    function: Callable[..., Any], begin: Callable[[Any, Any], record]
) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(function):
        # An async generator can't be delegated to another one, and frameworks ask whether this is one itself.
        @functools.wraps(function)
        async def async_generator(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
            inner, one = function(*args, **kwargs), begin(args, kwargs)
            one._start()  # noqa: SLF001 - one module
            step, given = inner.asend, None
            try:
                while True:
                    one._attach()  # noqa: SLF001 - as above
                    try:
                        item = await step(given)
                    finally:
                        one._detach()  # noqa: SLF001 - as above
                    try:
                        given = yield item
                        step = inner.asend
                    except GeneratorExit:
                        await inner.aclose()
                        raise
                    except BaseException as error:  # noqa: BLE001 - the consumer threw it into the generator
                        step, given = inner.athrow, error
            except StopAsyncIteration:
                one._end(None)  # noqa: SLF001 - as above
            except BaseException as error:
                one._end(error)  # noqa: SLF001 - as above
                raise

        return async_generator

    @functools.wraps(function)
    def generator(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        return (yield from _stepwise(function(*args, **kwargs), begin(args, kwargs)))

    return generator


def _stepwise(inner: Any, one: record) -> Generator[Any, Any, Any]:
    """Run a generator inside a record that is current only while it runs, not while its consumer does."""
    one._start()  # noqa: SLF001 - one module
    step, given = inner.send, None
    try:
        while True:
            one._attach()  # noqa: SLF001 - as above
            try:
                item = step(given)
            finally:
                one._detach()  # noqa: SLF001 - as above
            try:
                given = yield item
                step = inner.send
            except GeneratorExit:
                inner.close()
                raise
            except BaseException as error:  # noqa: BLE001 - the consumer threw it into the generator
                step, given = inner.throw, error
    except StopIteration as end:
        one._end(None)  # noqa: SLF001 - as above
        return end.value
    except BaseException as error:
        one._end(error)  # noqa: SLF001 - as above
        raise


def _finder(
    function: Callable[..., Any], target_id: str | Callable[..., object] | None
) -> Callable[[tuple[Any, ...], dict[str, Any]], object]:
    """How to find the target's id in a call's arguments."""
    if target_id is None:
        return lambda _args, _kwargs: None
    if callable(target_id):
        ask = target_id

        def asked(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
            return _asked(lambda: ask(*args, **kwargs))

        return asked
    name, *path = target_id.split(".")
    parameters = inspect.signature(function).parameters
    if name not in parameters:
        raise ValueError(
            f"audited(target_id={target_id!r}): {function.__qualname__} has no parameter {name!r}; it has "
            f"{', '.join(parameters) or 'none'}. For anything else pass a function."
        )
    position = list(parameters).index(name)
    default = parameters[name].default

    def found(args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        value = kwargs[name] if name in kwargs else args[position] if position < len(args) else default
        value = _asked(lambda: functools.reduce(_inside, path, value))
        return None if value is inspect.Parameter.empty else value

    return found


def _inside(value: Any, step: str) -> Any:
    return value.get(step) if isinstance(value, dict) else getattr(value, step, None)


def _processor() -> AuditSpanProcessor | None:
    return getattr(trace.get_tracer_provider(), PROCESSOR, None)


def _details(*values: object) -> dict[str, Any]:
    return dict(zip(("type", "roles", "session", "auth_method", "delegate"), values, strict=True))


def _actor(identity: object, details: Mapping[str, Any]) -> Actor | None:
    """An Actor of the arguments of ``set_actor``, or None when they name nobody."""
    try:
        name, kind = text(identity), details["type"]
        if not name:
            _say_once("set_actor() got an id without text; the actor stays as it was")
            return None
        if kind not in names.ACTOR_TYPES:
            _say_once(f"set_actor(type={kind!r}): allowed is {', '.join(names.ACTOR_TYPES)}; taken as user")
            kind = names.ACTOR_TYPES[0]
        return Actor(
            id=name,
            type=kind,
            roles=texts(details["roles"]),
            session=hash_session(details["session"]),
            auth_method=text(details["auth_method"]),
            delegate=text(details["delegate"]),
        )
    except Exception:  # noqa: BLE001 - an id's or a role's own __str__ may raise
        _say_once("set_actor() failed; the actor stays as it was", with_traceback=True)
        return None


def _say(
    state: AuditedSpan,
    *,
    action: object = None,
    target_type: object = None,
    target_id: object = None,
    outcome: object = None,
    reason: object = None,
) -> None:
    try:
        if outcome is not None and outcome not in names.OUTCOMES:
            _say_once(f"outcome {outcome!r} is left out; allowed is {', '.join(names.OUTCOMES)}")
            outcome = None
        state.action = text(action).upper() or state.action
        state.target_type = text(target_type) or state.target_type
        state.target_id = text(target_id) or state.target_id
        state.outcome = text(outcome) or state.outcome
        state.reason = text(reason) or state.reason
    except Exception:  # noqa: BLE001 - a value's own __str__ may raise
        _say_once("a value of a record has no text and is left out", with_traceback=True)


def _say_once(message: str, *, with_traceback: bool = False) -> None:
    if message not in _said and len(_said) < 100:
        _said.add(message)
        _log.warning("Auditspan: %s", message, exc_info=with_traceback)
