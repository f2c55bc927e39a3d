"""The ranks of a job: how they are started, which of them a process is, and what happens when one of them fails.

A job is all processes that one `mpirun` starts; each of them is a rank. Either RemoteRuntime (runtime/remote.py) starts
a job for the process that owns it, and every rank runs runtime/worker.py, or users start mpirun themselves, and every
rank runs their program. In this package `launchers` tells who started a process, `mpirun` makes the command that starts
ranks, `world` is the ranks that a process belongs to, `process` ends processes, `last_words` takes the error of a rank
to its owner, and `first_exit` and `stalled_rank` find the rank that is to blame.

A rank that fails can leave the others waiting for it for ever, in an all-reduce where no Python runs. This table has
what can fail, who sees it, within how many seconds, and what happens then. Each number is the value of the constant
that is named beside it, with its module in parentheses.

FAULT                       | WHO SEES IT                     | SECONDS                   | WHAT HAPPENS
----------------------------+---------------------------------+---------------------------+-----------------------------
mpirun or MPI's library is  | find_mpirun (mpirun),           | at once                   | UsageError that says what to
missing                     | import_mpi (world)              |                           | install
----------------------------+---------------------------------+---------------------------+-----------------------------
mpirun belongs to another   | World.join: the launcher        | at once                   | UsageError on every rank
MPI than mpi4py             | started N ranks, MPI has one;   |                           |
                            | `trtllm-pt doctor` before that  |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
another number of ranks     | World.join, by the environment  | at once                   | UsageError on every rank
than needed                 |                                 |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
ranks do not start, or do   | their owner                     | 120 embedded, 900         | RunError; the job is ended
not load the engine         |                                 | TensorRT: _PATIENCE       |
                            |                                 | (runtime/remote)          |
----------------------------+---------------------------------+---------------------------+-----------------------------
a rank is killed, crashes   | mpirun; FirstExit, told by the  | at once                   | mpirun ends the other ranks
or exits                    | kernel                          |                           | and the owner's socket
                            |                                 |                           | closes; the owner waits for
                            |                                 |                           | mpirun to exit, at most 5 s
                            |                                 |                           | (embedded) or 60 s
                            |                                 |                           | (TensorRT; _PATIENCE), and
                            |                                 |                           | raises RunError that names
                            |                                 |                           | the rank
----------------------------+---------------------------------+---------------------------+-----------------------------
a rank hears from MPI that  | last_words                      | 3: MPIRUN_SECONDS         | it waits for mpirun to end
another is dead, before     |                                 | (last_words)              | it, and only then reports
mpirun has reported it      |                                 |                           | its own error
----------------------------+---------------------------------+---------------------------+-----------------------------
a rank that an owner        | last_words                      | at once                   | it prints one line, which
started raises one of our   |                                 |                           | the owner raises, and exits;
errors                      |                                 |                           | mpirun ends the others
----------------------------+---------------------------------+---------------------------+-----------------------------
a rank of a user's own      | end_all_on_an_exception         | 0.5: SECONDS_TO_BE_HEARD  | it prints the error and
mpirun raises an exception  | (world); run_script (cli/app)   | (launchers)               | aborts all ranks
                            | in our commands                 |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
all ranks find the same     | cli/app                         | 1.5: 3 x                  | before MPI starts, the first
mistake in the call         |                                 | SECONDS_TO_BE_HEARD       | rank of each machine prints
                            |                                 |                           | it; later a rank other than
                            |                                 |                           | 0 first waits so long for
                            |                                 |                           | rank 0 to print it
----------------------------+---------------------------------+---------------------------+-----------------------------
rank 0 of a user's own      | release, at exit (runtime/llm)  | at once                   | the other ranks end; after a
mpirun exits without        |                                 |                           | failed step they are aborted
`close`                     |                                 |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
a rank is stopped (SIGSTOP) | every other rank of an embedded | 8: _SILENCE_SECONDS       | the rank that sees it names
or gets no processor time   | engine, in a thread             | (embedded/session); a     | the stopped rank and exits;
                            | (kernels/heartbeat.cpp), where  | beat every 0.1 s:         | mpirun ends the rest
                            | all ranks are on one machine    | kBeatNanoseconds          |
----------------------------+---------------------------------+---------------------------+-----------------------------
the main thread of a rank   | StallDetector in Triton's       | 8: _STALL_SECONDS         | the model kills that rank;
waits for ever, for a lock  | engine model, while there are   | (triton/models/engine)    | the message names it
or a disk; its heart beats  | requests                        |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
the main thread of a rank   | Triton's engine model: rank 0   | 120 embedded: _PATIENCE   | the engine is down, see
is in an endless loop: it   | does not answer its question    | (runtime/remote)          | below
beats and uses processor    | for statistics                  |                           |
time                        |                                 |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
the same under `trtllm-pt   | _watch (cli/serve) by fault     | 22: _CHECK_SECONDS        | the server is ended, the
serve`                      | (triton/health): the engine     | (cli/serve) + 2 x         | fault is printed
                            | model does not answer, twice in | _TIMEOUT_SECONDS (health) |
                            | a row                           |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
an endless loop or wait     | nobody                          | -                         | the caller waits; an
without Triton              |                                 |                           | interrupt ends the job
----------------------------+---------------------------------+---------------------------+-----------------------------
the owner of a job exits or | rank 0: its socket closes       | at once, or after the     | rank 0 stops the others, all
is killed                   |                                 | step that runs            | exit
----------------------------+---------------------------------+---------------------------+-----------------------------
ranks do not exit when the  | the owner, by process.end       | 5 embedded, 60 TensorRT,  | SIGTERM and then SIGKILL to
owner closes                |                                 | each of 3 times:          | the whole group
                            |                                 | _PATIENCE                 |
----------------------------+---------------------------------+---------------------------+-----------------------------
all ranks are gone, under   | the engine model; while idle it | 10: LAST_SECONDS          | requests get the reason; the
Triton                      | looks every 0.5 s:              | (triton/process_guard)    | model is unloaded at once
                            | _IDLE_SECONDS                   |                           | where the server can load it
                            |                                 |                           | again, else the server gets
                            |                                 |                           | SIGTERM
----------------------------+---------------------------------+---------------------------+-----------------------------
the same under `trtllm-pt   | _watch (cli/serve) by fault     | 2: _CHECK_SECONDS         | the server is ended, the
serve`                      | (triton/health)                 |                           | fault is printed
----------------------------+---------------------------------+---------------------------+-----------------------------
a tritonserver of a         | mpirun; _watch (cli/serve)      | at once                   | mpirun ends all servers;
TensorRT engine's rank dies |                                 |                           | `serve` prints the reason
                            |                                 |                           | and exits
----------------------------+---------------------------------+---------------------------+-----------------------------
the process of a Python     | a shell beside it               | 11: _CHECK_SECONDS +      | the model is unloaded after
model (a Triton stub) dies; | (triton/process_guard)          | LAST_SECONDS              | 1 s where the server can
Triton calls it ready       |                                 |                           | load it again, else the
                            |                                 |                           | server gets SIGTERM
----------------------------+---------------------------------+---------------------------+-----------------------------
the same under `trtllm-pt   | _watch (cli/serve) by fault     | 2, or 22 where a model    | the server is ended, the
serve`                      | (triton/health), which asks     | does not answer: as above | fault is printed
                            | every model                     |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
tritonserver is killed; its | the shell                       | 1: _CHECK_SECONDS         | each model is killed; then
models may hang             | (triton/process_guard)          |                           | as for the owner of a job
----------------------------+---------------------------------+---------------------------+-----------------------------
`trtllm-pt serve` is killed | the kernel: PR_SET_PDEATHSIG    | at once                   | tritonserver gets SIGTERM
                            | (triton/server)                 |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
tritonserver does not exit  | Server.close (triton/server)    | 20: _EXIT_SECONDS +       | SIGKILL to the whole group
                            |                                 | _GRACE_SECONDS; one rank  |
                            |                                 | that unloads its models:  |
                            |                                 | 10 more, _UNLOAD_SECONDS  |
----------------------------+---------------------------------+---------------------------+-----------------------------

While the whole machine sleeps no rank is late: heartbeat.cpp excuses what it sees after a pause of its own, and
StallDetector counts looks instead of seconds. Ranks on several machines have no heartbeat: only mpirun watches them.
"""
