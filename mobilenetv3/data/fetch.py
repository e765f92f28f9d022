"""Reading a URL: http and https by Python itself, whatever else fsspec opens by fsspec.

What may pass, such as a server that restarts, is tried again; what will not is told at once.
"""
import base64
import errno
import http.client
import re
import time
import urllib.error
import urllib.request
from typing import Callable, Iterator
from urllib.parse import unquote, urlsplit, urlunsplit

from mobilenetv3.data.manifest import Lost

WAITS = (2.0, 8.0)
"""Seconds between one try and the next."""
TIMEOUT = 60.0
"""Seconds that a server may say nothing."""
_PART = 1 << 20
_BY_PYTHON = ("http", "https")
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class Final(OSError):
    """Asking again would not help."""


def is_url(path: str) -> bool:
    """Whether a data path is a URL, rather than a folder."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.:-]*://", path) is not None


def beside(url: str, name: str) -> str:
    """The URL of a file in the folder that a URL names; a query (a signature) stays."""
    if not _is_by_python(url):
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def shown(url: str) -> str:
    """A URL without password and signature, for people; another path as it is."""
    if not is_url(url):
        return url
    if not _is_by_python(url):
        protocol, _, rest = url.partition("://")
        server, slash, path = rest.partition("/")
        return f"{protocol}://{server.rpartition('@')[2]}{slash}{path}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def parts(url: str) -> Iterator[bytes]:
    """The content at a URL, a MiB or less at a time.

    Raises:
        Final: it is not there, may not be read, or cannot be asked for.
        OSError, HTTPException: something that may pass.
    """
    return _by_python(url) if _is_by_python(url) else _by_fsspec(url)


def tried(url: str, action: Callable):
    """Run an action that reads a URL, several times if it must be.

    Raises:
        Lost: no try succeeded; naming the URL and the last cause.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except (OSError, http.client.HTTPException) as error:
            cause = error
        number = getattr(cause, "errno", None)
        if isinstance(cause, Final) or number in _NO_SPACE or wait is None:
            break
        time.sleep(wait)
    if number in _NO_SPACE:
        raise Lost(
            f"{shown(url)} cannot be kept ({cause.strerror}); --shard_cache names another folder, "
            "and --shard_cache_gb bounds what is kept") from cause
    reason = _hidden(str(getattr(cause, "reason", None) or cause) or type(cause).__name__, url)
    times = "" if isinstance(cause, Final) else f" in {len(WAITS) + 1} tries"
    raise Lost(f"cannot fetch {shown(url)}{times}: {reason}") from cause


def _hidden(reason: str, url: str) -> str:
    """What others say of a URL, which may quote it, without its password and signature."""
    parts = urlsplit(url)
    account, at, _ = parts.netloc.rpartition("@")
    secrets = [account + at, account.partition(":")[2]]
    if _is_by_python(url):
        secrets += [parts.query, parts.fragment]
    for secret in filter(None, secrets):
        reason = reason.replace(secret, "***")
    return reason


def _is_by_python(url: str) -> bool:
    return url.split(":", 1)[0].lower() in _BY_PYTHON


def _request(url: str) -> urllib.request.Request:
    """What asks for a URL: a user and a password in it are sent as http has them, which urllib does
    not do by itself."""
    parts = urlsplit(url)
    account, at, server = parts.netloc.rpartition("@")
    request = urllib.request.Request(urlunsplit(parts._replace(netloc=server)))
    if at:
        word = base64.b64encode(unquote(account).encode("utf-8")).decode("ascii")
        # Not to another server that this one sends to.
        request.add_unredirected_header("Authorization", f"Basic {word}")
    return request


def _by_python(url: str) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(_request(url), timeout=TIMEOUT) as source:
            expected, size = source.length, 0  # None where the server did not say
            for part in iter(lambda: source.read(_PART), b""):
                size += len(part)
                yield part
            if expected is not None and size < expected:  # read() does not mind
                raise OSError(f"{size} of {expected} bytes came")
    except urllib.error.HTTPError as error:
        error.close()  # it is an answer, too
        may_pass = error.code >= 500 or error.code in (408, 425, 429)
        kind = OSError if may_pass else Final
        raise kind(f"the server says {error.code} {error.reason}") from error
    except (ValueError, http.client.InvalidURL) as error:
        raise Final(f"it cannot be asked for ({error})") from error


def _by_fsspec(url: str) -> Iterator[bytes]:
    try:
        import fsspec
    except ImportError as error:
        raise Final("URLs other than http:// and https:// need fsspec, which is not installed "
                    "(pip install fsspec)") from error
    try:
        with fsspec.open(url, "rb") as source:
            yield from iter(lambda: source.read(_PART), b"")
    except (FileNotFoundError, PermissionError) as error:
        raise Final(f"{type(error).__name__}: {error}") from error
    except (ImportError, ValueError) as error:  # no such protocol, or not without its package
        raise Final(str(error)) from error
    except OSError:
        raise
    except Exception as error:  # each file system of fsspec has errors of its own
        raise OSError(f"{type(error).__name__}: {error}") from error
