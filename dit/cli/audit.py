"""Checks, shows and exports an audit log, makes its pictures again, and reviews those that are held:
`python -m dit.cli.audit check LOG`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dit.cli.front import command_name, message_of, stop

if TYPE_CHECKING:
    from dit.generation.audit import AuditLog


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=command_name("audit"), description="The audit log of generate audit=LOG.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, what: str, held: bool = False) -> argparse.ArgumentParser:
        found = verbs.add_parser(name, help=what, description=what)
        found.add_argument("log", type=Path, metavar="LOG")
        if held:
            found.add_argument("hold", type=Path, metavar="HOLD", help="the folder of review=HOLD")
        return found

    check = verb("check", "find every change of the log; status 1 if there is one")
    show = verb("show", "print entries as JSON, one in each line")
    show.add_argument("id", type=int, nargs="?", metavar="ID", help="only this entry, with its texts")
    replay = verb("replay", "make the picture of a delivery again; status 1 if it differs by more than 1 of 255")
    replay.add_argument("id", type=int, metavar="ID")
    replay.add_argument("--picture", type=Path, metavar="FILE", help="the delivered picture")
    chain = verb(
        "chain", "from a picture to its entry, its weights, their run and its data; status 1 if a link is open"
    )
    chain.add_argument("picture", type=Path, metavar="PICTURE")
    chain.add_argument("--anchors", type=Path, metavar="FILE", help="certificates whose signatures are trusted, PEM")
    chain.add_argument("--ckpt", metavar="RUN", help="the run, if it is not any more where the entry says")
    for found in (replay, chain):
        found.add_argument(
            "--trust", action="append", default=[], metavar="PACKAGE", help="run its code, which the run names"
        )
    for found in (check, chain):
        found.add_argument("--checkpoint", type=Path, metavar="FILE", help="an exported checkpoint that must fit")
        found.add_argument("--public-key", metavar="BASE64", help="the key that must have signed it")
    export = verb("export", "write a signed checkpoint, for somebody else to keep")
    export.add_argument("--key", type=Path, required=True, metavar="FILE", help="Ed25519 key, PEM; made if missing")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    erase = verb("erase", "delete the key of a subject, so that its prompts cannot be read")
    erase.add_argument("subject", metavar="SUBJECT")
    review = verb("review", "serve a page on which one reviewer judges the pictures of a holding folder", held=True)
    review.add_argument("--reviewer", required=True, metavar="NAME")
    review.add_argument("--port", type=int, default=0, help="0: one that is free")
    verb("verdicts", "print how many pictures are pending, approved and rejected, and how reviewers agree", held=True)
    release = verb("release", "write the approved pictures to the out of their command", held=True)
    release.add_argument("--partial", action="store_true", help="leave out pending pictures")
    tasks = verb("tasks", "write the pictures for Label Studio, with what is decided about them", held=True)
    tasks.add_argument("--out", type=Path, required=True, metavar="FILE")
    return parser.parse_args(words)


def check(log: AuditLog, args: argparse.Namespace) -> int:
    from dit.generation.audit import faults
    from dit.generation.audit_checkpoint import checkpoint_faults

    found = faults(log)
    if not found and args.checkpoint is not None:
        found = checkpoint_faults(log, args.checkpoint, args.public_key)
    print("\n".join(found) or f"{log.head()[0]} entries are as they were written; the last hash is {log.head()[1]}")
    return int(bool(found))


def show(log: AuditLog, args: argparse.Namespace) -> int:
    if args.id is None:
        for _, body, _ in log.entries():
            print(body)
    else:
        print(json.dumps(log.entry(args.id), indent=2, ensure_ascii=False))
    return 0


def replay(log: AuditLog, args: argparse.Namespace) -> int:
    import torch

    from dit.generation.audited import replay
    from dit.picture_files import read

    picture = None if args.picture is None else torch.from_numpy(read(args.picture))
    difference = replay(log.entry(args.id), picture, args.trust)
    print(f"the picture of entry {args.id} made again differs by at most {difference} of 255")
    return int(difference > 1)


def chain(log: AuditLog, args: argparse.Namespace) -> int:
    from dit.generation.chain import links

    found = []
    for link in links(log, args.picture, args.anchors, args.ckpt, args.checkpoint, args.public_key, args.trust):
        print(link, flush=True)
        found.append(link)
    return int(not all(link.closed for link in found))


def export(log: AuditLog, args: argparse.Namespace) -> int:
    from dit.generation.audit_checkpoint import export

    held = export(log, args.key, args.out)
    print(f"{held['entries']} entries, signed by {held['public_key']}")
    return 0


def erase(log: AuditLog, args: argparse.Namespace) -> int:
    log.erase(args.subject)
    print(f"the key of {args.subject} is deleted; copies of the log made before still have it")
    return 0


def review(log: AuditLog, args: argparse.Namespace) -> int:
    try:
        from dit.generation.review_page import serve_page
    except ImportError as error:
        raise ValueError(f"the page needs {error.name}: pip install 'dit[serve]'") from None
    serve_page(log, args.hold, args.reviewer, args.port)
    return 0


def verdicts(log: AuditLog, args: argparse.Namespace) -> int:
    from dit.generation.reviews import agreements_of, counts_of, held_in

    pictures = held_in(log, args.hold)
    print(", ".join(f"{count} {state}" for state, count in counts_of(pictures).items()))
    for name in sorted({name for held in pictures.values() for name in held.verdicts}):
        print(f"{name}: {sum(name in held.verdicts for held in pictures.values())} of {len(pictures)} judged")
    for names, agreement in agreements_of(pictures).items():
        print(f"{' and '.join(names)}: {agreement}")
    return 0


def release(log: AuditLog, args: argparse.Namespace) -> int:
    from dit.generation.release import release

    out, counts = release(log, args.hold, args.partial)
    print(", ".join(f"{count} {state}" for state, count in counts.items()), file=sys.stderr)
    print(out)
    return 0


def tasks(log: AuditLog, args: argparse.Namespace) -> int:
    from dit.files import write_atomic
    from dit.generation.label_studio import CONFIG, tasks_of

    found = tasks_of(log, args.hold)
    write_atomic(args.out, json.dumps(found, indent=1, ensure_ascii=False) + "\n", 0o600)  # it has prompts
    print(f"{len(found)} tasks for a project with this labelling interface:\n{CONFIG}")
    return 0


VERBS: dict[str, Callable[[AuditLog, argparse.Namespace], int]] = {
    found.__name__: found for found in (check, show, replay, chain, export, erase, review, verdicts, release, tasks)
}


def audit(args: argparse.Namespace) -> int:
    """Runs a verb and returns the exit status. Raises ValueError for a log that cannot be read."""
    from dit.generation.audit import AuditLog

    return VERBS[args.verb](AuditLog(args.log, make=False), args)


def main() -> None:
    args = arguments()
    try:
        sys.exit(audit(args))
    except (ValueError, OSError) as error:
        stop(message_of(error) or str(error))


if __name__ == "__main__":
    main()
