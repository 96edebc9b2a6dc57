"""What messages, keys and the folders of sites have in common."""

from typing import Annotated

from pydantic import AfterValidator

from fedsdr.core.client_names import is_client_name
from fedsdr.core.errors import UserError


class WireError(UserError):
    """Bytes that are no message of ours."""


def check_wire_name(name: str) -> str:
    """The same name. Raises `ValueError` for what is no name of a client."""
    if not is_client_name(name):
        raise ValueError("it is no name of a client")
    return name


ClientName = Annotated[str, AfterValidator(check_wire_name)]
