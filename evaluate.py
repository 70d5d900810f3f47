"""Scores a run: `python evaluate.py --help`."""

from dit.cli.front import front_door

if __name__ == "__main__":
    front_door("evaluate", "dit.cli.evaluate:evaluate")
