// Package consensus has the managers of a cluster agree on one sequence of commands. It wraps hashicorp/raft with
// raft-boltdb and adds what a daemon needs that must go on forwarding whatever happens to its disk or its peers.
//
// Terms. A session is one life of hashicorp/raft on an open store; a Raft lives through several of them if the disk
// fails in between. An entry is what the log holds; its index and term are those of Raft. A machine is the caller's
// FSM with the index up to which it has applied entries. A voter counts for the quorum, a non-voter only listens.
//
// What differs from bare hashicorp/raft, and why:
//
//   - A failing disk ends the session and nothing else. hashicorp/raft panics when it cannot write its term or read a
//     committed entry. The stores of this package stop the goroutine that would panic (runtime.Goexit), report the
//     error, which names the file, and the session is opened again with a growing wait.
//   - Nothing damaged is used. bbolt has no checksums on data, and panics or faults on bad pages, partly on goroutines
//     of its own where nobody can recover. The file is checked page by page before bbolt sees it, every entry,
//     term and vote carries a checksum, and so does all that describes a snapshot. What is damaged is refused with the
//     name of the file and the repair. There is one exception: a damaged snapshot is set aside if an older one
//     and the log hold everything that was in it.
//   - Read is linearizable also after the process was stopped. hashicorp/raft's VerifyLeader counts answers to
//     heartbeats that were sent before the question, and those of non-voters; here a quorum of voters has to answer
//     a heartbeat that was sent after the read.
//   - A leader whose disk is slow hands leadership over. One whose disk hangs stops its heartbeats, because nothing
//     else would make the others elect a new leader.
//   - It is quiet when nothing happens. hashicorp/raft has two timers for each follower, and each of their messages wakes
//     two managers. Here all heartbeats go out at once, less often, and when the clock shows a whole multiple of their interval
//     (beats.go), and what was committed is told when it was (commits.go), so that the other timer may be slow. What did not
//     arrive is sent again when the follower answers, and need not wait for that timer. The disk, the servers and who leads are
//     looked at after something happened.
//   - A stranger or a frozen peer cannot hold the main loop of Raft: reads in the middle of a message, above all of a
//     snapshot, have a deadline.
//
// Files in the directory: raft.db (the log, the term and the vote; locked while in use), snapshots/ (one directory a
// snapshot), set-aside/ (the last damaged snapshot that was not needed), restore-*.tmp (while Restore runs),
// probe-*.tmp (for a moment, before a session is opened again), raft.db.new (while Recover runs) and raft.db.damaged (what
// Recover could not read whole).
//
// Concurrency: all methods of Raft may be called from many goroutines. The FSM is called from one goroutine at a
// time. Goroutines:
//
//   - "supervise", one a Raft: opens and closes sessions; Stop joins it.
//   - "accept", one a Raft: takes connections from Config.Stream and hands them to the session; ends when the
//     stream is closed, which Stop does.
//   - "observe", "beat", "commits", "autopilot", "disk watch", "verify", one each a session: pass changes of leadership on,
//     have heartbeats sent, tell followers what was committed and have what they lack sent again, promote non-voters, watch
//     the latency of writes, send rounds of heartbeats for Read. All but "beat" sleep until there is something to
//     do. "commits" starts one short-lived goroutine a follower that is to be told, "verify" one a voter and round.
//   - one a call of Propose and of the calls that change the servers, which waits for hashicorp/raft and ends when
//     that answers. hashicorp/raft forgets to answer when it is shut down at a bad moment; such a goroutine stays.
//     Closing a session therefore waits for pending calls first.
//   - one a call of the database, which ends with it. One that waits for a lock which another call left behind when
//     bbolt panicked stays, as the database does, until the process ends.
//   - those of hashicorp/raft and of its NetworkTransport, which end with the session.
//
// The package must not import gossip, identity or state: they meet in controlplane.
package consensus
