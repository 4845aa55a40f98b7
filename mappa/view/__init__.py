"""A run as a person looks at it: a local page, one HTML file, a table in a terminal. All from the journal.

    catalogue.py    what lists and curves need of every action, in memory and indexed, kept up with the journal
    suspects.py     actions that talk to the coach instead of doing the work
    curves.py       per step, role and kind: means with intervals
    actions.py      actions by what is remarkable about them
    episode.py      one episode, from what a role saw to what came of it
    bias.py         the score gap between kinds on actions of equal outcome
    drift.py        how the coach scores its frozen anchors over the steps, and its alarms
    lanes.py        who was at work when
    overview.py     what the run is, and how it went before and after
    answers.py      every question the page may ask, by its path
    app.py          `mappa view`: the page on a loopback port, live
    report.py       `mappa report`: the same page with its answers in one file
    top.py          `mappa top`: the same numbers in a terminal

The journal is opened for reading only, also while a run writes to it.
"""
