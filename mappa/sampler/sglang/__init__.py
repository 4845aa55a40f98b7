"""SGLang servers behind the `Sampler` protocol. Nothing of SGLang is imported here: it has an environment of its own.

sampler     requests, versions, publishing and retiring
server      one server's life: brought up, proven, watched, lost, brought up again
process     servers of our own as child processes; guard ends them with the trainer
wire        SGLang's HTTP interface
weights     adapters as servers take them
answers     requests before they are sent, answers as generations
canary      what the learner says of a known prompt
proof       that a server agrees with it, with an adapter and without
routing     which server a request goes to
"""
