"""The fork server: the other side of the control socket. Standard library only, imports nothing of mappa.

It runs as a process of its own, as the package `server`, started with an empty environment:

    start.py      what each of its processes does first; command.py says how they are started
    launch.py     makes namespaces and a private root, then executes the interpreter anew inside them
    main.py       reads requests, forks executions, enforces their deadlines, reports how they ended
    heap.py       the heap they are forked from
    isolation.py  what one execution is shut into: namespaces, mounts, identity
    confine.py    what it may use and may not call: rlimits, capabilities, seccomp
    runner.py     runs the model's code and reports its exception
    memory.py     what its processes hold together
    fallback.py   other ways: bubblewrap for each execution, or no isolation
    landlock.py   another: a fork without namespaces
    folders.py    workspaces of these, on the host
    trees.py      measuring and deleting what was left there

Invariant: nothing that an execution wrote or read passes through the server's memory. Code, output and reports go
over descriptors that the server hands on and never reads, so a fork of it holds nothing of an earlier execution.
"""
