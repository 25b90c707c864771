"""Downloads a model from the Hugging Face Hub into the cache that all Hugging Face libraries share.

What huggingface_hub has is used: server, login, requests, redirects, retries. What it lacks is done here, file by file:
a download that was stopped goes on where it stopped, also in a new process, and every file is checked against the
digest that the Hub states before it gets its place. The reference (`refs/main`) moves when all files are there.
"""

import errno
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pg2ref.errors import ModelNotAvailableError, Pg2RefError, UsageError, brief
from pg2ref.hub.cache import UNFINISHED, commit_of, hub_cache_folder, is_commit, repository_folder
from pg2ref.hub.names import PAGE, ModelName

WANTED = re.compile(r"[\w-][\w.-]*\.(json|model|safetensors|npz)|LICENSE[\w.-]*|NOTICE[\w.-]*", re.ASCII)
WEIGHTS = (".safetensors", ".npz")
SHA256, GIT_BLOB = re.compile(r"[0-9a-f]{64}"), re.compile(r"[0-9a-f]{40}")
PIECE = 1 << 22
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST}
DOWNLOADING, CHECKING = "downloading", "checking"

OnBytes = Callable[[str, int], None]


class RemoteFile(NamedTuple):
    """A file as the Hub states it: SHA-256 of large files, Git's SHA-1 of small ones."""

    path: str
    size: int
    digest: str


class Listing(NamedTuple):
    """The files of a model that are wanted, in one state of it."""

    name: ModelName
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def repository(self) -> Path:
        """Its place in the cache."""
        return repository_folder(self.name.model_id)

    @property
    def snapshot(self) -> Path:
        """The folder that the files will lie in."""
        return self.repository / "snapshots" / self.commit

    @property
    def total_bytes(self) -> int:
        """Of all files."""
        return sum(file.size for file in self.files)

    @property
    def missing_bytes(self) -> int:
        """What has yet to come: begun files count for what they lack."""
        return sum(file.size - min(file.size, _stored_bytes(self, file)) for file in self.files)


def list_files(name: ModelName) -> Listing:
    """Ask the Hub what there is; a few kilobytes.

    Raises:
        UsageError: huggingface_hub is not installed.
        ModelNotAvailableError: there is no such model or revision, it may not be read, or the Hub is out of reach.
    """
    try:
        from huggingface_hub import HfApi
    except ImportError:
        raise UsageError("downloads need huggingface_hub: pip install 'pg2ref[hub]'") from None
    with _hub_errors(name), _quiet_hub():
        info = HfApi().model_info(name.model_id, revision=name.revision, files_metadata=True)
    siblings = info.siblings or []
    files = tuple(_remote_file(name, one) for one in siblings if WANTED.fullmatch(one.rfilename))
    if not any(file.path.endswith(WEIGHTS) for file in files):
        raise ModelNotAvailableError(
            f"{name}: holds no safetensors or npz weights; name a model such as those of {PAGE}/google"
        )
    if not is_commit(str(info.sha)):
        raise ModelNotAvailableError(f"{name}: the Hub names the commit {brief(info.sha)}; try again later")
    return Listing(name, str(info.sha), files)


def fetch(listing: Listing, on_bytes: OnBytes = lambda phase, count: None) -> Path:
    """Bring what is missing, check all of it, and return the folder; what came before an interruption is kept.

    `on_bytes` hears the phase, DOWNLOADING or CHECKING, and how many bytes of it are done more (or less, where a server
    begins anew).

    Raises:
        ModelNotAvailableError: a file may not be read, does not come, or is not what the Hub says it is.
        Pg2RefError: the disk has no room, or may not be written.
    """
    with _hub_errors(listing.name), _quiet_hub():
        _check_room(listing)
        if commit_of(listing.repository, listing.name.revision) is None:
            _point_reference(listing)  # so that a first download can be told shard by shard, however far it comes
        for file in listing.files:
            _fetch_file(listing, file, on_bytes)
        _point_reference(listing)
    return listing.snapshot


def _remote_file(name: ModelName, sibling: Any) -> RemoteFile:
    """Raises ModelNotAvailableError where the Hub leaves out what a download must know."""
    lfs = sibling.lfs
    digest = str(sibling.blob_id if lfs is None else lfs.sha256)
    pattern = GIT_BLOB if lfs is None else SHA256
    if type(sibling.size) is not int or sibling.size < 0 or not pattern.fullmatch(digest):
        raise ModelNotAvailableError(
            f"{name}: the Hub states no size or digest of {sibling.rfilename}; try again later"
        )
    return RemoteFile(sibling.rfilename, sibling.size, digest)


def _stored_bytes(listing: Listing, file: RemoteFile) -> int:
    """How much of a file is there, as a whole or in the making."""
    blob = listing.repository / "blobs" / file.digest
    for path in (listing.snapshot / file.path, blob, blob.with_name(blob.name + UNFINISHED)):
        if path.is_file():
            return path.stat().st_size
    return 0


def _check_room(listing: Listing) -> None:
    folder = hub_cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(folder).free, listing.missing_bytes
    if free < needed:
        raise Pg2RefError(
            f"{folder}: {needed / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB are free; make room, or name another "
            "place with HF_HUB_CACHE"
        )


def _fetch_file(listing: Listing, file: RemoteFile, on_bytes: OnBytes) -> None:
    """One file, from wherever it stands to its place in the snapshot; under the lock that huggingface_hub takes too."""
    from huggingface_hub.utils import WeakFileLock

    lock = hub_cache_folder() / ".locks" / listing.repository.name / f"{file.digest}.lock"
    blob, place = listing.repository / "blobs" / file.digest, listing.snapshot / file.path
    for path in (lock, blob, place):
        path.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        stored = place if place.is_file() else blob
        if not stored.is_file():
            unfinished = blob.with_name(blob.name + UNFINISHED)
            _fetch_rest(listing, file, unfinished, on_bytes)
            _check_digest(listing, file, unfinished, on_bytes)
            unfinished.replace(blob)
        else:
            _check_digest(listing, file, stored, on_bytes)
        if not place.is_file():
            _link(blob, place)


def _fetch_rest(listing: Listing, file: RemoteFile, unfinished: Path, on_bytes: OnBytes) -> None:
    """Append what is missing to a file that was begun, perhaps in another process."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(listing.name.model_id, file.path, revision=listing.commit)
    with open(unfinished, "ab") as stream:
        stored = stream.tell()
        if stored < file.size:
            counted: Any = _Counted(stream, on_bytes)
            http_get(url, counted, resume_size=stored, headers=build_hf_headers(), expected_size=file.size)


class _Counted:
    """A file that tells how much is written to it; a server that sends a file from its start takes back what was."""

    def __init__(self, stream: BinaryIO, on_bytes: OnBytes) -> None:
        self.stream, self.on_bytes = stream, on_bytes
        self.tell, self.seek = stream.tell, stream.seek

    def write(self, content: bytes) -> int:
        self.on_bytes(DOWNLOADING, len(content))
        return self.stream.write(content)

    def truncate(self) -> int:
        position = self.stream.tell()
        self.on_bytes(DOWNLOADING, position - self.stream.seek(0, os.SEEK_END))
        self.stream.seek(position)
        return self.stream.truncate()


def _check_digest(listing: Listing, file: RemoteFile, path: Path, on_bytes: OnBytes) -> None:
    """Raises ModelNotAvailableError where the content is another one; it is removed, or it would be there for ever."""
    is_small = len(file.digest) == 40
    digest = hashlib.sha1(usedforsecurity=False) if is_small else hashlib.sha256()
    if is_small:
        digest.update(b"blob %d\0" % path.stat().st_size)
    with open(path, "rb") as stream:
        while piece := stream.read(PIECE):
            digest.update(piece)
            on_bytes(CHECKING, len(piece))
    if digest.hexdigest() != file.digest:
        for damaged in (path.resolve(), path):
            damaged.unlink(missing_ok=True)
        raise ModelNotAvailableError(
            f"{listing.name}: {file.path} is damaged: its digest is {digest.hexdigest()}, expected {file.digest}; it "
            f"was removed: run `pg2ref download {listing.name}` again"
        )


def _link(blob: Path, place: Path) -> None:
    """Show a blob under the file's name; without links it is moved there, as huggingface_hub does."""
    place.unlink(missing_ok=True)  # a link to a blob that is gone
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:
        blob.replace(place)


def _point_reference(listing: Listing) -> None:
    """Let the branch or tag stand for the commit."""
    if is_commit(listing.name.revision):
        return
    reference = listing.repository / "refs" / listing.name.revision
    reference.parent.mkdir(parents=True, exist_ok=True)
    written = reference.with_name(f"{reference.name}.{os.getpid()}.part")
    written.write_text(listing.commit, encoding="ascii")
    written.replace(reference)


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """No bars and no log lines of huggingface_hub: progress and errors are told by whoever calls."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    logger, had_bars = logging.getLogger("huggingface_hub"), not are_progress_bars_disabled()
    level = logger.level
    logger.setLevel(logging.ERROR)
    disable_progress_bars()
    try:
        yield
    finally:
        logger.setLevel(level)
        if had_bars:
            enable_progress_bars()


@contextmanager
def _hub_errors(name: ModelName) -> Iterator[None]:
    """The Hub's refusals as ModelNotAvailableError with the next step, the disk's as Pg2RefError."""
    try:
        yield
    except Pg2RefError:
        raise
    except Exception as error:  # each version of huggingface_hub stands on an HTTP library with errors of its own
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise Pg2RefError(
                f"{hub_cache_folder()}: cannot be written ({error.strerror}); what has come is kept: make room, or "
                "name another place with HF_HUB_CACHE"
            ) from error
        raise ModelNotAvailableError(f"{name}: {_next_step(name, error)}") from error


def _next_step(name: ModelName, error: Exception) -> str:
    """What the error means, and the one thing to do about it."""
    from huggingface_hub import constants, get_token
    from huggingface_hub import errors as hub

    page, has_token = f"{PAGE}/{name.model_id}", get_token() is not None
    status = getattr(getattr(error, "response", None), "status_code", None)
    log_in = "run `hf auth login`, or set HF_TOKEN"
    if isinstance(error, hub.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so that nothing is downloaded: unset it"
    if isinstance(error, hub.GatedRepoError) and not has_token:
        return f"it is gated: accept its licence at {page}, then {log_in}"
    if isinstance(error, hub.GatedRepoError):
        return (
            f"the account of this token has not accepted the licence: accept it at {page} (a fine-grained token also "
            "needs the right to read gated repositories), then run the same command again"
        )
    if status == 401 and has_token:
        return f"the token is not valid: make one at {PAGE}/settings/tokens, then {log_in}"
    if isinstance(error, hub.RepositoryNotFoundError):
        see = "this account may not see it" if has_token else f"it is private: {log_in}"
        return f"there is no such model at {constants.ENDPOINT}, or {see}; look for the name at {PAGE}/google"
    if isinstance(error, hub.RevisionNotFoundError):
        return f"there is no revision {name.revision}; {page}/branches lists them"
    if status is not None:
        return f"{constants.ENDPOINT} answered {status}; what has come is kept: run the same command again later"
    got = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    return (
        f"the connection to {constants.ENDPOINT} failed ({got}); what has come is kept: run the same command again and "
        "it goes on from there"
    )
