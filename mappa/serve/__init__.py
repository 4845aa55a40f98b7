"""`mappa serve`: training and sampling of LoRA adapters over one base, asked for with the Tinker API.

    app (routes, key) -> service (sessions, models, futures) -> worker (one thread) -> step, sampling

The event loop checks, orders and remembers; one thread computes. `wire` and `proto` are what goes over the wire,
`state` what survives a restart.
"""
