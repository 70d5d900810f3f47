"""Every picture that is delivered or refused gets its entry in the audit log, before its file is written."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dit import __version__
from dit.config_check import check_config
from dit.errors import shortened
from dit.files import write_atomic
from dit.generation.asking import Refused
from dit.generation.audit import AuditLog
from dit.generation.credentials import manifest_id
from dit.generation.delivery import Delivery, Wrapped
from dit.generation.duplicates import Pdq
from dit.generation.encoding import Encoding
from dit.generation.marked import Marked
from dit.generation.policy import Decision, refusal
from dit.generation.reviews import PENDING, REJECTED, held_in, log_release, parsed, reasons_of
from dit.generation.rows import pixels_sha256
from dit.generation.work import Job
from dit.picture_files import read_bytes
from dit.plain_values import plain
from dit.trust import give_consent

# In the encrypted texts, because they may quote what the user wrote.
TEXTS = ("recipe", "edit", "refused", "rejected", "failed")


class Audited(Wrapped):
    """Another delivery with a log. config: of the call, for replays; subject: whose prompts these are, if no key of
    the server says it; hold: the folder in which pictures wait for a review, or None if they are delivered at once."""

    def __init__(
        self, inner: Delivery, log: AuditLog, subject: str, config: Mapping[str, Any], hold: Path | None = None
    ) -> None:
        super().__init__(inner)
        self.audit, self.subject, self.hold = log, subject, hold
        self.holds, self._giving = hold is not None, threading.Lock()
        self.config = {name: value for name, value in config.items() if name != "prompts"}

    def check_user(self, key: str | None) -> None:
        super().check_user(key)
        if self.audit.erased(key or self.subject):
            raise Refused("the texts of this user were erased: ask for a key of another name", 403, "erased")

    def log(
        self, row: Mapping[str, Any], decisions: Sequence[Decision], png: bytes | None, facts: Mapping[str, Any]
    ) -> None:
        super().log(row, decisions, png, facts)
        kept = {name: value for name, value in row.items() if name not in ("prompt", "index", *TEXTS)}
        kept |= facts
        if png is not None:
            kept |= hashes_of(png)
        if decisions:
            # A reason may quote the prompt; it is kept with the texts.
            kept["decisions"] = [{k: v for k, v in asdict(one).items() if k != "reason"} for one in decisions]
            kept["policy"] = decisions[0].policy
        texts = {"prompt": row["prompt"], "config": self.config}
        texts |= {name: row[name] for name in TEXTS if name in row}
        kind = "failure" if "failed" in row else "rejection" if "rejected" in row else "delivery"
        kind = "refusal" if "refused" in row or refusal(decisions) is not None else kind
        if self.hold is not None and png is not None:
            kind, kept["hold"] = PENDING, str(self.hold)
        subject = facts.get("key", self.subject)  # each user of the server can be erased alone
        with ExitStack() as stack:
            if self.hold is not None and png is not None and "file" not in row:  # of the server, which writes no files
                stack.enter_context(kept_file(self.hold / kept["file"], png))
            self.audit.append(kind, subject, {**kept, "version": __version__}, texts)

    def pick_up(self, file: str, key: str | None) -> bytes:
        if self.hold is None:
            return super().pick_up(file, key)
        none = Refused("there is no such picture", 404, "not_found")
        if re.fullmatch(r"[0-9a-f]{32}\.png", file) is None or not (self.hold / file).is_file():
            raise none  # before the whole log is read
        # A connection of its own: nobody who samples waits for it.
        with closing(AuditLog(self.audit.file, make=False)) as log, self._giving:
            held = held_in(log, self.hold, empty=True).get(file)
            if held is None or held.body.get("key") != key:
                raise none
            if held.state == PENDING:
                raise Refused("the picture waits for its review; try again later", 403, "pending_review")
            if held.state == REJECTED:
                raise Refused(f"a reviewer rejected it: {reasons_of(log, held)}", 403, "rejected_in_review")
            content = held.content(self.hold)
            if not any(body["kind"] == "release" and body["of"] == held.entry for _, body in parsed(log)):
                log_release(log, held, file)
            return content


@contextmanager
def kept_file(file: Path, content: bytes) -> Iterator[None]:
    """Writes a file first, so that no entry is without it, and removes it if the block fails."""
    write_atomic(file, content)
    try:
        yield
    except BaseException:
        file.unlink(missing_ok=True)
        raise


def hashes_of(png: bytes) -> dict[str, str]:
    """Returns what identifies a picture's file: its SHA-256, the PDQ hash of the picture, 256 bits, and the id of its
    Content Credentials, if it has them; in hexadecimal."""
    [pdq] = Pdq().describe(read_bytes(png, "the picture")[None])
    found = {"file_sha256": hashlib.sha256(png).hexdigest(), "pdq": pdq.tobytes().hex()}
    manifest = manifest_id(png)
    return found | ({"manifest": manifest} if manifest else {})


def replay(entry: Mapping[str, Any], picture: Tensor | None = None, trust: Sequence[str] = ()) -> int:
    """Makes the picture of a delivery again and returns the largest difference of a value, of 255.

    picture: (3, H, W) uint8, the delivered one, which is needed unless the new one has the same hash. trust: packages
    from outside dit whose code may run; the config in the entry, which somebody else may have written, gives no such
    consent. Raises ValueError if the prompt is erased, if the weights have changed, if the config names other code, or
    if the picture is not the delivered one.
    """
    from dit.generation.model import load_model, model_without_edit

    if entry["kind"] not in ("delivery", PENDING):
        raise ValueError(f"entry {entry['id']} is a {entry['kind']}: only a delivery can be made again")
    if entry["texts"] is None:
        raise ValueError(f"the prompt of entry {entry['id']} is erased; its picture cannot be made again")
    config = OmegaConf.create(dict(entry["texts"]["config"]))
    assert isinstance(config, DictConfig)
    if "recipe" not in config:
        raise ValueError(f"entry {entry['id']} is of the server: only pictures of generate can be made again")
    config.device = "auto"  # not the GPU of the process that made it
    config.prompts, config.trust = None, list(trust) or None
    give_consent(list(trust))
    of_generate = "resample" in config  # else of synthesize
    check_config("generate" if of_generate else "synthesize", plain(config), trusted=False)
    model = (load_model if of_generate else model_without_edit)(config, entry["model"])
    if model.about["weights"] != entry["weights"]:
        raise ValueError(f"{entry['model']} has other weights now: {model.about['weights']}, not {entry['weights']}")
    edited, size = "edit" in entry["texts"], (entry["width"], entry["height"])
    job = Job(0, entry["name"], 0, None if edited else size, entry["texts"]["prompt"], entry["seed"])
    delivery = Delivery() if config.get("marks") is None else Marked(Delivery(), instantiate(config.marks))
    encoding = Encoding(config.get("encoding", "png"), config.get("quality", 95))
    again = encoding.pixels(delivery.mark([job], model.sample(delivery.seeded([job]))[0])[0])
    if pixels_sha256(again) == entry["pixels_sha256"]:
        return 0
    if picture is None or pixels_sha256(picture) != entry["pixels_sha256"]:
        given = "give the delivered picture" if picture is None else "the given picture is not the delivered one"
        raise ValueError(
            f"{shortened(entry['name'])}: the picture made again has another hash, and only its difference from the "
            f"delivered one shows whether that is rounding: {given}, --picture FILE"
        )
    return int((again.to(torch.int16) - picture.to(torch.int16)).abs().max())
