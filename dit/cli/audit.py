"""Checks, shows and exports an audit log, and makes its pictures again: `python -m dit.cli.audit check LOG`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from dit.cli.front import command_name, message_of, stop


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=command_name("audit"), description="The audit log of generate audit=LOG.")
    verbs = parser.add_subparsers(dest="verb", required=True)

    def verb(name: str, what: str) -> argparse.ArgumentParser:
        found = verbs.add_parser(name, help=what, description=what)
        found.add_argument("log", type=Path, metavar="LOG")
        return found

    check = verb("check", "find every change of the log; status 1 if there is one")
    check.add_argument("--checkpoint", type=Path, metavar="FILE", help="an exported checkpoint that must fit")
    check.add_argument("--public-key", metavar="BASE64", help="the key that must have signed it")
    show = verb("show", "print entries as JSON, one in each line")
    show.add_argument("id", type=int, nargs="?", metavar="ID", help="only this entry, with its texts")
    replay = verb("replay", "make the picture of a delivery again; status 1 if it differs by more than 1 of 255")
    replay.add_argument("id", type=int, metavar="ID")
    replay.add_argument("--picture", type=Path, metavar="FILE", help="the delivered picture")
    export = verb("export", "write a signed checkpoint, for somebody else to keep")
    export.add_argument("--key", type=Path, required=True, metavar="FILE", help="Ed25519 key, PEM; made if missing")
    export.add_argument("--out", type=Path, required=True, metavar="FILE")
    erase = verb("erase", "delete the key of a subject, so that its prompts cannot be read")
    erase.add_argument("subject", metavar="SUBJECT")
    return parser.parse_args(words)


def audit(args: argparse.Namespace) -> int:
    """Runs a verb and returns the exit status. Raises ValueError for a log that cannot be read."""
    from dit.generation.audit import AuditLog, faults

    log = AuditLog(args.log, make=False)
    if args.verb == "check":
        from dit.generation.audit_checkpoint import checkpoint_faults

        found = faults(log)
        if not found and args.checkpoint is not None:
            found = checkpoint_faults(log, args.checkpoint, args.public_key)
        print("\n".join(found) or f"{log.head()[0]} entries are as they were written; the last hash is {log.head()[1]}")
        return int(bool(found))
    if args.verb == "show" and args.id is None:
        for _, body, _ in log.entries():
            print(body)
    elif args.verb == "show":
        print(json.dumps(log.entry(args.id), indent=2, ensure_ascii=False))
    elif args.verb == "erase":
        log.erase(args.subject)
        print(f"the key of {args.subject} is deleted; copies of the log made before still have it")
    elif args.verb == "export":
        from dit.generation.audit_checkpoint import export

        held = export(log, args.key, args.out)
        print(f"{held['entries']} entries, signed by {held['public_key']}")
    else:
        import torch

        from dit.generation.audited import replay
        from dit.picture_files import read

        picture = None if args.picture is None else torch.from_numpy(read(args.picture))
        difference = replay(log.entry(args.id), picture)
        print(f"the picture of entry {args.id} made again differs by at most {difference} of 255")
        return int(difference > 1)
    return 0


def main() -> None:
    args = arguments()
    try:
        sys.exit(audit(args))
    except (ValueError, OSError) as error:
        stop(message_of(error) or str(error))


if __name__ == "__main__":
    main()
