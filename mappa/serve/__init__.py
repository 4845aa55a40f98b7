"""`mappa serve`: training and sampling of LoRA adapters over one base, asked for with the Tinker API.

    app (routes, key) -> service (what may be asked) -> intake (futures, order) -> worker (one thread): models, step

The event loop checks, orders and remembers; one thread computes. `wire` and `proto` are what goes over the wire,
`state` and `checkpoint` what survives a restart.
"""
