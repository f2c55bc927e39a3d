"""The ranks of a job: how they are started, how a process finds its rank, and what happens when a rank fails.

A job is the set of processes that one `mpirun` starts; each of them is a rank. Either RemoteRuntime (runtime/remote.py)
starts a job for the process that owns it, and every rank runs runtime/worker.py, or users start mpirun themselves, and
every rank runs their program. In this package `launchers` finds out which launcher started a process, `mpirun` builds
the command that starts ranks, on this machine or on `hosts`, `interface` finds the network between them, `nodes`
compares them, `world` represents the ranks that a process belongs to, `process` stops processes,
`last_words` reports a rank's error to the owner of the job, and `first_exit` and `stalled_rank` find the rank that
caused a failure.

A rank that fails can leave the other ranks waiting for it forever, in an all-reduce where no Python code runs. The
table lists each fault, what detects it, after how many seconds, and what happens then. Each number is the value of the
constant named beside it; the module of the constant is in parentheses.

FAULT                       | DETECTED BY                     | AFTER (SECONDS)           | WHAT HAPPENS
----------------------------+---------------------------------+---------------------------+-----------------------------
mpirun or the MPI library   | find_mpirun (mpirun),           | at once                   | UsageError that says what to
is missing                  | import_mpi (world)              |                           | install
----------------------------+---------------------------------+---------------------------+-----------------------------
mpirun belongs to another   | World.join: the launcher        | at once                   | UsageError on every rank
MPI than mpi4py             | started N ranks, but MPI has    |                           |
                            | one; `trtllm-pt doctor` reports |                           |
                            | it earlier                      |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
/dev/shm is missing, full   | RemoteRuntime, and World.join   | at once                   | UsageError that says what to
or read-only                | on every rank                   |                           | do
                            | (check_shared_memory)           |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
the number of ranks is not  | World.join, from the            | at once                   | UsageError on every rank
the number that the engine  | environment                     |                           |
needs                       |                                 |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
ranks do not start, or do   | their owner                     | 120 embedded, 900         | RunError; the owner stops
not load the engine         |                                 | TensorRT: start_seconds   | the job
                            |                                 | (backends/backend)        |
----------------------------+---------------------------------+---------------------------+-----------------------------
a rank is killed, crashes   | mpirun; FirstExit, which the    | at once                   | mpirun stops the other ranks
or exits                    | kernel notifies                 |                           | and the owner's socket
                            |                                 |                           | closes; the owner waits for
                            |                                 |                           | mpirun to exit, at most 5 s
                            |                                 |                           | (embedded) or 60 s
                            |                                 |                           | (TensorRT): stop_seconds; it
                            |                                 |                           | then raises a RunError that
                            |                                 |                           | names the rank
----------------------------+---------------------------------+---------------------------+-----------------------------
a rank learns from MPI that | last_words                      | 3: MPIRUN_SECONDS         | the rank waits for mpirun to
another rank is dead before |                                 | (last_words)              | stop it, and reports its own
mpirun has reported it      |                                 |                           | error only if that does not
                            |                                 |                           | happen
----------------------------+---------------------------------+---------------------------+-----------------------------
a rank that an owner        | last_words                      | at once                   | the rank prints one line and
started raises one of our   |                                 |                           | exits; the owner raises that
errors                      |                                 |                           | line as its error; mpirun
                            |                                 |                           | stops the other ranks
----------------------------+---------------------------------+---------------------------+-----------------------------
a rank of a user's own      | end_all_on_an_exception         | 0.5: SECONDS_TO_BE_HEARD  | the rank prints the error
mpirun raises an exception  | (world); run_script (cli/app)   | (launchers)               | and aborts all ranks
in one of our commands      |                                 |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
all ranks find the same     | cli/app                         | 1.5: 3 x                  | before MPI starts, the first
usage error                 |                                 | SECONDS_TO_BE_HEARD       | rank on each machine prints
                            |                                 |                           | the error; after that, every
                            |                                 |                           | rank except rank 0 first
                            |                                 |                           | waits this long for rank 0
                            |                                 |                           | to print it
----------------------------+---------------------------------+---------------------------+-----------------------------
rank 0 of a user's own      | release, at exit (runtime/llm)  | at once                   | the other ranks exit; after
mpirun exits without        |                                 |                           | a failed step they are
calling `close`             |                                 |                           | aborted
----------------------------+---------------------------------+---------------------------+-----------------------------
a rank is stopped (SIGSTOP) | every other rank of an embedded | 8: _SILENCE_SECONDS       | the rank that detects it
or gets no CPU time         | engine, in a thread             | (embedded/session); one   | names the stopped rank and
                            | (kernels/heartbeat.cpp), if     | heartbeat every 0.1 s:    | exits; mpirun stops the rest
                            | they are on the same machine    | kBeatNanoseconds          |
----------------------------+---------------------------------+---------------------------+-----------------------------
a machine is lost, or the   | the first rank of every other   | 5:                        | as above, with the name of
only rank on it is stopped  | machine, from datagrams         | _MACHINE_SILENCE_SECONDS  | the machine; the owner does
                            | (kernels/heartbeat.cpp)         | (embedded/session)        | not wait for mpirun
----------------------------+---------------------------------+---------------------------+-----------------------------
all processes of another    | mpirun                          | at once                   | the owner asks all hosts by
machine are killed          |                                 |                           | ssh, and names the one that
                            |                                 |                           | does not answer
----------------------------+---------------------------------+---------------------------+-----------------------------
a machine has other engines | check_same (nodes), on all      | at once                   | MachineError that names it
or versions than the others | ranks                           |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
the main thread of a rank   | StallDetector in Triton's       | 8: _STALL_SECONDS         | the model kills that rank;
waits forever for a lock or | engine model, while there are   | (triton/models/engine)    | the message names it
a disk, and its heartbeat   | requests                        |                           |
continues                   |                                 |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
the main thread of a rank   | Triton's engine model: rank 0   | 120 embedded:             | the engine is down, see
is in an endless loop: its  | does not answer the request for | start_seconds             | below
heartbeat continues and it  | statistics                      |                           |
uses CPU time               |                                 |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
the same under `trtllm-pt   | _watch (cli/serve) by fault     | 22: _CHECK_SECONDS        | `serve` stops the server and
serve`                      | (triton/health): the engine     | (cli/serve) + 2 x         | prints the fault
                            | model does not answer twice in  | _TIMEOUT_SECONDS (health) |
                            | a row                           |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
an endless loop or wait     | no process                      | -                         | the caller waits; an
without Triton              |                                 |                           | interrupt stops the job
----------------------------+---------------------------------+---------------------------+-----------------------------
the owner of a job exits or | rank 0: its socket closes       | at once, or after the     | rank 0 stops the other
is killed                   |                                 | current step              | ranks, and all of them exit;
                            |                                 |                           | the next owner removes the
                            |                                 |                           | files that a killed one left
                            |                                 |                           | (files/scratch)
----------------------------+---------------------------------+---------------------------+-----------------------------
ranks do not exit when the  | the owner, by process.end       | 5 embedded, 60 TensorRT,  | SIGTERM and then SIGKILL to
owner closes                |                                 | each of 3 times:          | the whole process group
                            |                                 | stop_seconds              |
----------------------------+---------------------------------+---------------------------+-----------------------------
all ranks are gone, under   | the engine model; while idle it | 10: LAST_SECONDS          | requests fail with the
Triton                      | checks every 0.5 s:             | (triton/process_guard)    | reason; the model is
                            | _IDLE_SECONDS                   |                           | unloaded at once if the
                            |                                 |                           | server can load it again;
                            |                                 |                           | otherwise the server gets
                            |                                 |                           | SIGTERM
----------------------------+---------------------------------+---------------------------+-----------------------------
the same under `trtllm-pt   | _watch (cli/serve) by fault     | 2: _CHECK_SECONDS         | `serve` stops the server and
serve`                      | (triton/health)                 |                           | prints the fault
----------------------------+---------------------------------+---------------------------+-----------------------------
the tritonserver of one     | mpirun; _watch (cli/serve)      | at once                   | mpirun stops all servers;
rank of a TensorRT engine   |                                 |                           | `serve` prints the reason
dies                        |                                 |                           | and exits
----------------------------+---------------------------------+---------------------------+-----------------------------
the process of a Python     | a shell beside it               | 11: _CHECK_SECONDS +      | the model is unloaded after
model (a Triton stub) dies; | (triton/process_guard)          | LAST_SECONDS              | 1 s if the server can load
Triton still reports the    |                                 |                           | it again; otherwise the
model as ready              |                                 |                           | server gets SIGTERM
----------------------------+---------------------------------+---------------------------+-----------------------------
the same under `trtllm-pt   | _watch (cli/serve) by fault     | 2; 22 if a model does not | `serve` stops the server and
serve`                      | (triton/health), which sends    | answer, as above          | prints the fault
                            | every model a request           |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
tritonserver is killed; its | the shell                       | 1: _CHECK_SECONDS         | each model is killed; then
models may hang             | (triton/process_guard)          |                           | as if the owner of a job had
                            |                                 |                           | exited
----------------------------+---------------------------------+---------------------------+-----------------------------
`trtllm-pt serve` is killed | the kernel: PR_SET_PDEATHSIG    | at once                   | tritonserver gets SIGTERM
                            | (triton/server)                 |                           |
----------------------------+---------------------------------+---------------------------+-----------------------------
tritonserver does not exit  | Server.close (triton/server)    | 20: DRAIN_SECONDS +       | SIGKILL to the whole process
                            |                                 | _GRACE_SECONDS; for a     | group
                            |                                 | single server that is     |
                            |                                 | unloading its models 10   |
                            |                                 | more: _UNLOAD_SECONDS     |
----------------------------+---------------------------------+---------------------------+-----------------------------

While the whole machine is suspended, no rank counts as late: heartbeat.cpp ignores silence that follows a pause of its
own process, and StallDetector counts checks instead of seconds.
"""
