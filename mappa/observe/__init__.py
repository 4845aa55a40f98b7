"""What a person sees of a run, while it runs and afterwards.

    metrics.py      StepMetrics, one JSON line per step in metrics.jsonl
    progress.py     the live display on a terminal, plain lines elsewhere
    scalars.py      the same numbers for TensorBoard
    loggers.py      and for wandb and trackio, where the config asks for them
    curves.py       one picture of the run
    evaluation.py   EvaluationResult, the table before and after
    summary.py      summary.json
    speed.py        tokens per second, shares of a step
    statistics.py   intervals

Nothing is imported here: each part brings what it needs (rich, tensorboard, matplotlib) when it is used.
"""
