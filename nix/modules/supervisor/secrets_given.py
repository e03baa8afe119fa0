"""The service's secrets: systemd's credentials, which no other user and no `systemctl show` can read."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from gb10.errors import UserError

VARIABLES = {"gb10_api-key": "VLLM_API_KEY", "gb10_hf-token": "HF_TOKEN"}
"""A credential, as LoadCredential=gb10:FOLDER names it, and the variable that ``gb10 serve`` reads."""

_FOLDER = "CREDENTIALS_DIRECTORY"


def read(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of the credentials that there are.

    Raises UserError for one that is no single word, and for a secret that the unit has elsewhere.
    """
    for credential, variable in VARIABLES.items():
        if variables.get(variable):
            raise UserError(
                f"{variable} is among the service's variables, which are no place for a secret; "
                f"{_instead(credential)}"
            )
    folder = variables.get(_FOLDER)
    if not folder:
        return {}
    found = {}
    for credential, variable in VARIABLES.items():
        path = Path(folder) / credential
        try:
            text = path.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"the credential {_name(credential)} cannot be read: {error}") from None
        if not text.isprintable() or len(text.split()) != 1:
            raise UserError(f"the credential {_name(credential)} is not one word of printable ASCII")
        found[variable] = text
    return found


def check(arguments: Sequence[str], variables: Mapping[str, str]) -> None:
    """No key among the arguments, which `ps` shows. Raises UserError."""
    try:
        extra = shlex.split(variables.get("VLLM_EXTRA_ARGS", ""))
    except ValueError:
        extra = []  # `gb10 serve` says what is wrong with it
    for word in (*arguments, *extra):
        if word.partition("=")[0].replace("_", "-") == "--api-key":
            raise UserError(f"--api-key is no option of the service; {_instead('gb10_api-key')}")


def _name(credential: str) -> str:
    return credential.removeprefix("gb10_")


def _instead(credential: str) -> str:
    name = _name(credential)
    return (
        f"write it into /etc/gb10/credentials/{name} (mode 600), or on NixOS into the file that "
        f"services.gb10.{'apiKeyFile' if name == 'api-key' else 'hfTokenFile'} names"
    )
