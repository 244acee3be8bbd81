"""What went wrong between here and the Hub, in one sentence."""

from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


SIGN_IN = "run hf auth login, set HF_TOKEN, or pass a token"


class HubError(OSError):
    """What went wrong, in one sentence."""


def hub_sentence(error: BaseException) -> str | None:
    """The sentence for an error that the Hub, or the way to it, is the cause of; None for any other.

    Libraries wrap one error in another: the first one in the chain that tells something counts.
    """
    for cause in _causes(error):
        if isinstance(cause, HubError):
            return str(cause)
        if isinstance(cause, HfHubHTTPError):
            return _answered(cause)
        if isinstance(cause, LocalTokenNotFoundError):
            return f"The Hub asks who you are: {SIGN_IN}"
        if isinstance(cause, OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE forbids to ask the Hub for what is not in the cache: unset it"
        if _is_transport_error(cause):
            return f"The Hub at {constants.ENDPOINT} cannot be reached: check the network"
    return None


def _answered(error: HfHubHTTPError) -> str:
    """The sentence for an answer that is not the one hoped for; what the Hub itself says of it stands in brackets."""
    status, request = error.response.status_code, error.response.request
    said = " ".join((error.server_message or "").split())
    said = f" ({said.rstrip('.')})" if said else ""
    what = str(request.url.path).removeprefix("/api/models/").removeprefix("/api/").strip("/")
    what, _, file = what.partition("/resolve/")
    name = what.partition("/revision/")[0].partition("/tree/")[0]
    if isinstance(error, EntryNotFoundError):
        return f"{what} on the Hub has no {file.partition('/')[2]}: it does not hold what is needed here"
    if isinstance(error, RevisionNotFoundError):
        return f"The Hub has no such revision of {name}{said}"
    if "Invalid credentials" in (error.response.headers.get("X-Error-Message") or ""):
        return f"The Hub does not know this token: {SIGN_IN}"
    if isinstance(error, GatedRepoError):
        return f"{name} on the Hub is for those whom its owners give access{said}: ask on its page, then {SIGN_IN}"
    if isinstance(error, DisabledRepoError):
        return f"The Hub has disabled {name}{said}: ask its owners"
    if isinstance(error, RepositoryNotFoundError):
        return f"There is no repository {name} on the Hub, or it is private: check its name, or {SIGN_IN}"
    if status == 401:
        return f"The Hub asks who you are{said}: {SIGN_IN}"
    if status == 403 and request.method in ("GET", "HEAD"):
        return f"The Hub refuses{said}: use a token that may read this"
    if status == 403:
        return f"The Hub refuses{said}: push under a name of your own, with a token that may write"
    if status in (402, 413, 507):
        return f"The Hub has no room for this{said}: free some of your quota, or ask for more"
    if status in (409, 412):
        return f"Somebody else writes there{said}: try again"
    if status == 429:
        after = error.response.headers.get("Retry-After")
        return f"The Hub has had too many requests from you{said}: try again {f'in {after} s' if after else 'later'}"
    if status >= 500:
        return f"The Hub fails at the moment, with status {status}{said}: try again later"
    return f"The Hub answered with status {status}{said}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_transport_error(error: BaseException) -> bool:
    # httpx's, which huggingface_hub ships under another name from version to version
    return "TransportError" in [base.__name__ for base in type(error).__mro__]
