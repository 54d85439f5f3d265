"""The errors of the importers, from one operator to the whole file."""

from __future__ import annotations

from bnn_perception.errors import Error
from bnn_perception.net.checks import ModelError

#: What a graph with damaged attributes or constants can raise.
MALFORMED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class RefusalError(Error):
    """Why one operator cannot be evaluated or expressed; the reader that catches it adds the file and the node."""


class ImporterError(ModelError):
    """A net that cannot be imported; the message names the file or the layer and the reason."""


class FloatTwinError(ImporterError):
    """A float twin that cannot be evaluated; the message names the file, the node, its operator and the reason."""
