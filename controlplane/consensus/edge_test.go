package consensus

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childDir is set for the process that TestKilledProcess starts.
const childDir = "CONSENSUS_TEST_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		writeUntilKilled(dir)
		return
	}
	// What waits for a lock that bbolt left behind when it panicked stays: see doc.go.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("go.etcd.io/bbolt.(*DB).beginRWTx"), goleak.IgnoreAnyFunction("go.etcd.io/bbolt.(*DB).beginTx"))
}

// childConfig is a cluster of one with a real disk.
func childConfig(dir string, fsm FSM) Config {
	return Config{
		ID: "1", Dir: dir, Address: "192.0.2.1:7789", Stream: newNetwork().stream("192.0.2.1:7789"), FSM: fsm, Log: quiet(),
		Timing:    Timing{Heartbeat: 30 * time.Millisecond, Election: 30 * time.Millisecond, Lease: 30 * time.Millisecond},
		Retention: Retention{Threshold: 20, Trailing: 10, Interval: 10 * time.Millisecond},
	}
}

// lead opens the directory and waits until the node leads.
func lead(dir string, fsm FSM) (*Raft, error) {
	r, err := Open(childConfig(dir, fsm))
	if err != nil {
		return nil, err
	}
	if has, err := r.HasState(); err == nil && !has {
		err = r.Bootstrap()
		if err != nil {
			return nil, err
		}
	}
	for deadline := time.Now().Add(30 * time.Second); !r.IsLeader(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return nil, errors.New("no leader")
		}
	}
	return r, nil
}

// writeUntilKilled writes numbers and prints each that was acknowledged.
func writeUntilKilled(dir string) {
	fsm := &registers{}
	r, err := lead(dir, fsm)
	if err == nil {
		err = r.Read(context.Background(), func() {}) // it has caught up then
	}
	for i := len(fsm.history()); err == nil; i++ {
		if _, _, err = r.Propose(context.Background(), encode("k", strconv.Itoa(i))); err == nil {
			fmt.Println(i)
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// A process that is killed (SIGKILL), with the real disk under it, loses nothing that it acknowledged.
func TestKilledProcess(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "raft")
	acked := -1
	for round := range 4 {
		child := exec.Command(os.Args[0], "-test.run=^$")
		child.Env = append(os.Environ(), childDir+"="+dir, "GORACE=atexit_sleep_ms=0")
		var complaint bytes.Buffer
		child.Stderr = &complaint
		out, err := child.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := child.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		target := acked + 40 + 17*round
		for acked < target && lines.Scan() {
			if acked, err = strconv.Atoi(lines.Text()); err != nil {
				t.Fatal(err)
			}
		}
		_ = child.Process.Kill()
		for lines.Scan() { // what it managed to say
			acked, _ = strconv.Atoi(lines.Text())
		}
		_ = child.Wait()
		if acked < target {
			t.Fatalf("round %d: the process gave up: %s", round, &complaint)
		}
		fsm := &registers{}
		r, err := lead(dir, fsm)
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		if err := r.Read(t.Context(), func() {}); err != nil {
			t.Fatal(err)
		}
		got := fsm.history()
		for i, v := range got {
			if v != strconv.Itoa(i) {
				t.Fatalf("round %d: value %d is %q", round, i, v)
			}
		}
		if len(got) <= acked {
			t.Fatalf("round %d: %d was acknowledged, and %d values are there", round, acked, len(got))
		}
		acked = len(got) - 1 // one more than was said may have made it
		if err := r.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A file system that is full: the node stops, says so, and goes on when there is room.
func TestFullFileSystem(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting a small file system needs root")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Skipf("mounting a small file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	fsm := &registers{}
	r, err := lead(filepath.Join(dir, "raft"), fsm)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	f, err := os.Create(ballast)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = f.Write(make([]byte, 4096))
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	acked := 0
	for i := 0; ; i++ {
		_, _, err := r.Propose(t.Context(), encode("k", fmt.Sprintf("%d %s", i, strings.Repeat("x", 4000))))
		if err != nil {
			if !errors.Is(err, ErrUnknownOutcome) && r.Err() == nil {
				t.Errorf("the disk is full: %v", err)
			}
			break
		}
		if acked++; acked > 10000 {
			t.Fatal("the disk does not get full")
		}
	}
	select {
	case err := <-r.Failed():
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "raft.db") {
			t.Errorf("reported: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the failure was not reported")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		if _, _, err := r.Propose(t.Context(), encode("after", "1")); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("it does not go on after there is room: %v", r.Err())
		}
		time.Sleep(10 * time.Millisecond)
	}
	if n := len(fsm.history()); n < acked+1 || n > acked+2 {
		t.Errorf("%d values, %d were acknowledged: some are lost or were applied twice", n, acked+1)
	}
	if err := r.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

// A file that is cut off under a running process (or that cannot be read) faults in bbolt's mapping of it. That must
// not end the process.
func TestFileCutOffWhileInUse(t *testing.T) {
	dir := t.TempDir()
	r, err := lead(dir, &registers{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		if _, _, err := r.Propose(t.Context(), encode("k", fmt.Sprint(i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "raft.db"), 0); err != nil {
		t.Fatal(err)
	}
	if _, _, err := r.Propose(t.Context(), encode("k", "x")); err == nil {
		t.Error("a proposal was accepted")
	}
	select {
	case err := <-r.Failed():
		var d *DamagedError
		if !errors.As(err, &d) {
			t.Errorf("reported: %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("nothing was reported")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := r.Stop(ctx); err != nil {
		t.Error(err)
	}
}

// lockedDB is a database whose reading panics with a lock that writing needs.
type lockedDB struct {
	database
	lock             sync.Mutex
	locked, writing  chan struct{}
	fault, abandoned chan struct{}
}

func (d *lockedDB) FirstIndex() (uint64, error) {
	d.lock.Lock()
	close(d.locked)
	<-d.fault
	panic("the file is gone")
}

func (d *lockedDB) StoreLogs([]*raft.Log) error {
	close(d.writing)
	d.lock.Lock()
	close(d.abandoned)
	return nil
}

// What waits for a lock that a call which panicked holds does not wait for ever.
func TestPanicUnderAnotherCall(t *testing.T) {
	d := &lockedDB{locked: make(chan struct{}), writing: make(chan struct{}), fault: make(chan struct{}), abandoned: make(chan struct{})}
	s := &store{path: "raft.db", db: d, broke: make(chan struct{})}
	read, wrote := make(chan error, 1), make(chan error, 1)
	go func() { _, err := s.FirstIndex(); read <- err }()
	<-d.locked
	go func() { wrote <- s.StoreLogs([]*raft.Log{{Index: 1}}) }()
	<-d.writing
	close(d.fault)
	for what, c := range map[string]chan error{"the one that panicked": read, "the one that waits": wrote} {
		select {
		case err := <-c:
			if _, ok := errors.AsType[*DamagedError](err); !ok {
				t.Errorf("%s: %v", what, err)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("%s does not return", what)
		}
	}
	if _, err := s.LastIndex(); err == nil {
		t.Error("bbolt is called after it panicked")
	}
	d.lock.Unlock()
	<-d.abandoned
}

// A peer that stops in the middle of a snapshot must not hold the main loop: hashicorp/raft would read for ever.
func TestPeerThatStopsInTheMiddleOfASnapshot(t *testing.T) {
	inTime(t, func(t *testing.T) {
		c := newCluster(t, 3, nil)
		c.start()
		leader := c.awaitLeader()
		var victim *node
		for _, n := range c.nodes {
			if n != leader {
				victim = n
			}
		}
		stream := c.net.stream("192.0.2.66:1")
		conn, err := stream.Dial(raft.ServerAddress(victim.address), time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		// The header of a snapshot of a newer term, and nothing of the snapshot.
		half := newSessionStream(onlyDials{conn}, "192.0.2.66:1", time.Minute)
		peer := newTransport(half, time.Minute, nil, newLogger(quiet(), "x"))
		defer peer.Close()
		sent := make(chan error, 1)
		read, write := io.Pipe()
		go func() {
			var a raft.InstallSnapshotResponse
			sent <- peer.NetworkTransport.InstallSnapshot("x", raft.ServerAddress(victim.address), &raft.InstallSnapshotRequest{
				RPCHeader:       raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("x"), Addr: []byte("192.0.2.66:1")},
				SnapshotVersion: raft.SnapshotVersionMax, Term: 100, LastLogIndex: 1000, LastLogTerm: 99, Size: 1 << 20,
				Configuration: raft.EncodeConfiguration(raft.Configuration{}),
			}, &a, read)
		}()
		if _, err := write.Write(make([]byte, 300<<10)); err != nil { // more than is buffered
			t.Fatal(err)
		}
		// The whole cluster has to find a leader of a term above 100, with the victim.
		other := c.nodes[0]
		if other == leader || other == victim {
			other = c.nodes[1]
		}
		if other == leader || other == victim {
			other = c.nodes[2]
		}
		c.kill(other)
		c.set("k", "v")
		c.await("the victim to follow", func() bool { return victim.fsm.get("k") == "v" })
		_ = write.CloseWithError(io.ErrUnexpectedEOF)
		_ = conn.Close()
		<-sent
	})
}

// onlyDials is a stream layer with one connection.
type onlyDials struct{ conn net.Conn }

func (o onlyDials) Dial(raft.ServerAddress, time.Duration) (net.Conn, error) { return o.conn, nil }
func (o onlyDials) Accept() (net.Conn, error)                                { return nil, net.ErrClosed }
func (o onlyDials) Close() error                                             { return nil }
func (o onlyDials) Addr() net.Addr                                           { return address("192.0.2.66:1") }

func TestLogRepeatsNothing(t *testing.T) {
	inTime(t, func(t *testing.T) {
		var out bytes.Buffer
		l := newLogger(slog.New(slog.NewTextHandler(&out, nil)), "1")
		for range 100 {
			l.Error("failed to contact", "peer", hclog.Fmt("%d-%d", 1, 2))
		}
		l.Info("entering follower state")
		if n := strings.Count(out.String(), "\n"); n != 1 {
			t.Errorf("%d lines: %s", n, &out)
		}
		if !strings.Contains(out.String(), "level=WARN") || !strings.Contains(out.String(), "peer=1-2") {
			t.Errorf("it says %s", &out)
		}
		if !virtualTime {
			return
		}
		time.Sleep(quietFor)
		l.Error("failed to contact")
		if !strings.Contains(out.String(), "unsaid=99") {
			t.Errorf("it does not say what it left out: %s", &out)
		}
	})
}

func TestNewFileIsNoDamage(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "raft.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if empty, err := checkFile(path); !empty || err != nil {
		t.Errorf("a file of no bytes: %v, %v", empty, err)
	}
	db, err := openBolt(path, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if empty, err := checkFile(path); empty || err != nil {
		t.Errorf("a new database: %v, %v", empty, err)
	}
	if err := os.Truncate(path, 5000); err != nil {
		t.Fatal(err)
	}
	if _, err := checkFile(path); err == nil {
		t.Error("one that is cut off: no error")
	}
}
