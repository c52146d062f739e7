"""Every error this package raises on purpose, in one tree.

::

    ArhnError
    ├── ConfigurationError (ValueError)      options that cannot work, or none at all
    │   ├── MissingDependencyError           an optional package is not installed
    │   └── AccessDenied                     every request is refused: none can succeed
    ├── InputError (ValueError)              there is no dataset to read where one was named
    ├── SchemaError (ValueError)             columns or rows in no known form
    ├── AnnotatorError                       an annotator could not do its work
    │   └── EndpointError                    a request to an LLM server failed
    │       ├── EndpointUnavailable          no connection, or no reply in time
    │       ├── EndpointOverloaded           429
    │       ├── EndpointFailure              424, 500: the server's fault, perhaps another request's
    │       │   └── EmptyReply               200, and no completion in it
    │       └── RequestRejected              4xx: this request was refused
    │           └── PromptTooLong            more tokens than the server takes
    ├── EndpointsDead                        no server has answered for too long: the run ends
    ├── NotYetAnsweredError                  a request of a batch round has no reply yet
    ├── ClusterError                         a Ray cluster cannot be reached, or has ended the run
    ├── StoreError                           the store of replies cannot be used
    └── OutputError                          the result cannot be written or published there

Each message says what was found, what was expected and what to do next.
"""

from __future__ import annotations


class ArhnError(Exception):
    """Base of every error in this tree."""


# ValueError as a second base: `Dataset.map` awaits the clean-up of its running tasks only for ValueError.
class ConfigurationError(ArhnError, ValueError):
    """Options that cannot work, or no configuration at all."""


class MissingDependencyError(ConfigurationError, ImportError):
    """An optional dependency is needed and not installed."""

    @classmethod
    def of(cls, package: str, extra: str, purpose: str) -> MissingDependencyError:
        """The error for ``package``, which the extra ``extra`` brings."""
        return cls(
            f"{purpose} needs the package {package!r}, which is not installed: pip install 'arhn_datasets[{extra}]'."
        )


class AccessDenied(ConfigurationError):
    """The server refuses every request: the key, the model, the route, the credits, or what we send."""


class InputError(ArhnError, ValueError):
    """There is no dataset to read where one was named."""


class SchemaError(ArhnError, ValueError):
    """Columns or rows in no known form."""


class AnnotatorError(ArhnError):
    """An annotator could not do its work."""


class EndpointError(AnnotatorError):
    """A request to an LLM server failed."""


class EndpointUnavailable(EndpointError):
    """No connection to the server (also 502, 503, 504 of a proxy), or no reply in time.

    ``own`` tells that the server is there and this request was lost: a reply that did not come in time or broke off;
    ``waited`` are the seconds after which it was given up, None where it was not.
    """

    def __init__(self, message: str, *, own: bool = False, waited: float | None = None) -> None:
        super().__init__(message)
        self.own, self.waited = own, waited


class EndpointOverloaded(EndpointError):
    """The server has too many requests in flight (429); ``retry_after`` in seconds where it says so."""

    def __init__(self, message: str, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EndpointFailure(EndpointError):
    """The server failed on its side (424, 5xx); one bad request fails a whole batch there."""


class EmptyReply(EndpointFailure):
    """A 200 that holds no completion, or an empty one."""


class RequestRejected(EndpointError):
    """The server refuses this request (4xx); asking again cannot help.

    ``advice`` says what to do where all requests are refused like this one (the key, the model, the route, the
    credits), None where it is the fault of this one; ``lasting`` tells that it is no matter of one prompt.
    """

    def __init__(self, message: str, *, advice: str | None = None, lasting: bool = False) -> None:
        super().__init__(message)
        self.advice, self.lasting = advice, lasting


class PromptTooLong(RequestRejected):
    """The prompt has more tokens than the server takes; ``ratio`` is the share that fits, where it is known."""

    def __init__(self, message: str, ratio: float | None = None) -> None:
        super().__init__(message)
        self.ratio = ratio


class EndpointsDead(ArhnError):
    """No server has answered for longer than the run is to wait; what was replied so far is kept."""


class NotYetAnsweredError(ArhnError):
    """A request of a batch round has no reply yet: it is neither an error nor evidence."""


class ClusterError(ArhnError):
    """A Ray cluster cannot be reached, or has ended the run."""


class StoreError(ArhnError):
    """The store of replies cannot be opened or is not one."""


class OutputError(ArhnError):
    """The result cannot be written, or published, where it was asked for."""
