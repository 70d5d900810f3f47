"""The installed commands: dit-train runs `python -m dit.cli.train`, and so on. Slow imports follow after the command
line is checked."""

from dit.cli.front import front_door


def train() -> None:
    front_door("train", "dit.cli.train:job", sweep_end="dit.cli.runs:end_sweep")


def evaluate() -> None:
    front_door("evaluate", "dit.cli.evaluate:evaluate")


def generate() -> None:
    front_door("generate", "dit.cli.generate:generate")


def synthesize() -> None:
    front_door("synthesize", "dit.cli.synthesize:synthesize")


def calibrate() -> None:
    front_door("calibrate", "dit.cli.calibrate:calibrate")


def export() -> None:
    front_door("export", "dit.cli.export:export")


def latents() -> None:
    front_door("latents", "dit.cli.latents:latents")


def prepare() -> None:
    front_door("prepare", "dit.cli.prepare:prepare")


def provenance() -> None:
    front_door("provenance", "dit.cli.provenance:provenance")


def serve() -> None:
    front_door("serve", "dit.cli.serve:serve")


def runs() -> None:
    from dit.cli.runs import main

    main()


def compare() -> None:
    from dit.cli.compare import main

    main()


def authority() -> None:
    front_door("authority", "dit.cli.authority:authority")


def verify() -> None:
    from dit.cli.verify import main

    main()


def audit() -> None:
    from dit.cli.audit import main

    main()
