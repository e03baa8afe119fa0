"""What huggingface_hub raises, as a line for the user."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from gb10.errors import UserError


def hub() -> str:
    """The hub's address, without the user and password that it may have."""
    from huggingface_hub import constants

    return re.sub("//[^/@]*@", "//", constants.ENDPOINT)


class LostError(UserError):
    """The hub did not answer, or the connection broke off: the same may work later."""


@contextmanager
def told(name: str, revision: str | None, file: str = "") -> Iterator[None]:
    """Raise a UserError for what of the hub's fails in this block, about a model, or its ``file``."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined, unused-ignore]

    try:
        yield
    except errors.GatedRepoError:
        raise UserError(
            f"model {name} is gated: ask for access at {hub()}/{name}, then set HF_TOKEN (or: hf auth login)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"model {name} is not on {hub()}, or it is private; check the name, or set HF_TOKEN"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(f"model {name} has no revision {revision}; give a branch, tag or commit") from None
    except errors.OfflineModeIsEnabled:
        raise UserError(
            f"model {name} is not in the cache, and HF_HUB_OFFLINE is set; unset it or give a folder"
        ) from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no answer"
        look = "check HF_TOKEN" if status in (401, 403) else "check HF_ENDPOINT, or try again"
        kind = LostError if status in (429, 500, 502, 503, 504) else UserError
        of = f" for {file}" if file else ""
        raise kind(f"model {name}: {hub()} answered {status}{of}; {look}") from None
    except (httpx.HTTPError, OSError, errors.LocalEntryNotFoundError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise UserError(f"cannot write {error.filename}: {error.strerror or error}") from None
        reason = " ".join(str(error).split()) or type(error).__name__
        raise LostError(
            f"model {name}: the connection to {hub()} broke off ({reason}); run it again: what was fetched "
            "is kept"
        ) from None
