"""Trains a run: `python train.py --help`."""

from dit.cli.front import front_door

if __name__ == "__main__":
    front_door("train", "dit.cli.train:job", sweep_end="dit.cli.runs:end_sweep")
