package identity_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/overlayd/overlayd/controlplane/identity"
)

// pemBlock returns the first part of what was saved.
func pemBlock(t *testing.T, dir string) []byte {
	t.Helper()
	b, _ := pem.Decode(must(os.ReadFile(filepath.Join(dir, "node.pem"))))
	return b.Bytes
}

func same(a, b *identity.Credentials) bool {
	return bytes.Equal(a.CertificateDER(), b.CertificateDER()) && bytes.Equal(a.AuthorityDER(), b.AuthorityDER())
}

func TestSaveAndLoad(t *testing.T) {
	c := newCluster()
	for _, umask := range []int{0, 0o022, 0o277} {
		dir := filepath.Join(t.TempDir(), "identity")
		old := syscall.Umask(umask)
		if _, err := identity.Load(dir); !errors.Is(err, identity.ErrNone) {
			t.Errorf("no directory: %v", err)
		}
		if umask == 0o277 { // it would take the directory's rights as well
			if err := os.Mkdir(dir, 0); err != nil {
				t.Fatal(err)
			}
			_ = os.Chmod(dir, 0o700)
		}
		first, second := c.node(worker), c.node(manager)
		for _, creds := range []*identity.Credentials{first, second} {
			if err := creds.Save(dir); err != nil {
				t.Fatal(err)
			}
			got, err := identity.Load(dir)
			if err != nil || !same(got, creds) {
				t.Fatalf("%v was loaded as %v, %v", creds, got, err)
			}
			if err := identity.VerifySignature(creds.PublicKey(), []byte("x"), must(got.Sign([]byte("x")))); err != nil {
				t.Errorf("the key is another one: %v", err)
			}
		}
		syscall.Umask(old)
		for path, want := range map[string]fs.FileMode{dir: fs.ModeDir | 0o700, filepath.Join(dir, "node.pem"): 0o600} {
			if st := must(os.Stat(path)); st.Mode() != want {
				t.Errorf("umask %03o: %s has mode %v, want %v", umask, path, st.Mode(), want)
			}
		}
		if n := len(must(os.ReadDir(dir))); n != 1 {
			t.Errorf("%d files are left", n)
		}
	}
}

// Credentials that have run out still say who the node is.
func TestExpiredCredentialsLoad(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	a := must(identity.NewAuthority(identity.NewID(), time.Now().AddDate(-1, 0, 0)))
	key := must(identity.NewKey())
	cert := must(a.Issue(must(key.CSR()), "00112233445566ff", worker, time.Now().AddDate(-1, 0, 0)))
	if err := must(identity.NewCredentials(key, cert, a.CertificateDER())).Save(dir); err != nil {
		t.Fatal(err)
	}
	got, err := identity.Load(dir)
	if err != nil || got.NodeID() != "00112233445566ff" || got.NotAfter().After(time.Now()) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestLooseModesAreRefused(t *testing.T) {
	for _, mode := range []fs.FileMode{0o644, 0o640, 0o604, 0o660, 0o602, 0o620, 0o700, 0o610} {
		dir := filepath.Join(t.TempDir(), "identity")
		path := filepath.Join(dir, "node.pem")
		if err := newCluster().node(worker).Save(dir); err != nil {
			t.Fatal(err)
		}
		must(0, os.Chmod(path, mode))
		if _, err := identity.Load(dir); !contains(err, "chmod 0600 "+path) {
			t.Errorf("file of mode %v: %v", mode, err)
		}
		must(0, os.Chmod(path, 0o600))
		must(0, os.Chmod(dir, 0o700|mode&0o077))
		if mode&0o077 == 0 {
			continue
		}
		if _, err := identity.Load(dir); !contains(err, "chmod 0700 "+dir) {
			t.Errorf("directory of mode %v: %v", 0o700|mode&0o077, err)
		}
		if err := newCluster().node(worker).Save(dir); !contains(err, "chmod 0700 "+dir) {
			t.Errorf("save to a directory of mode %v: %v", 0o700|mode&0o077, err)
		}
	}
}

// Wherever a crash comes while the file is written, the one before is what is read.
func TestHalfWrittenFileIsNotRead(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	path := filepath.Join(dir, "node.pem")
	c := newCluster()
	old, next := c.node(worker), c.node(manager)
	if err := next.Save(dir); err != nil {
		t.Fatal(err)
	}
	written := must(os.ReadFile(path))
	for n := 0; n <= len(written); n += 37 {
		if err := old.Save(dir); err != nil {
			t.Fatal(err)
		}
		// What the crash left, with modes and owners that a careless process may have given it.
		must(0, os.WriteFile(path+".new", written[:n], 0o644))
		if got, err := identity.Load(dir); err != nil || !same(got, old) {
			t.Fatalf("after %d bytes: %v, %v", n, got, err)
		}
		if err := next.Save(dir); err != nil {
			t.Fatal(err)
		}
		if got, err := identity.Load(dir); err != nil || !same(got, next) {
			t.Fatalf("saved again after %d bytes: %v, %v", n, got, err)
		}
	}
	// In place of the file itself, as a copy by hand may end, no part of it is taken for the whole.
	for n := 0; n < len(written)-1; n += 7 {
		must(0, os.WriteFile(path, written[:n], 0o600))
		if _, err := identity.Load(dir); !contains(err, path) || errors.Is(err, identity.ErrNone) || !contains(err, "restore the file from a backup") {
			t.Fatalf("%d of %d bytes: %v", n, len(written), err)
		}
	}
}

// Whoever loads while another one saves gets the old credentials or the new ones.
func TestSaveIsAtomic(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	c := newCluster()
	a, b := c.node(worker), c.node(manager)
	if err := a.Save(dir); err != nil {
		t.Fatal(err)
	}
	saved := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 40 && err == nil; i++ {
			err = []*identity.Credentials{a, b}[i%2].Save(dir)
		}
		saved <- err
	}()
	for {
		if got, err := identity.Load(dir); err != nil || !same(got, a) && !same(got, b) {
			t.Errorf("%v, %v", got, err)
		}
		select {
		case err := <-saved:
			if err != nil {
				t.Error(err)
			}
			return
		default:
		}
	}
}

// A link in place of the temporary file does not lead the key elsewhere, and one in place of the file is not followed.
func TestLinksAreNotFollowed(t *testing.T) {
	base := t.TempDir()
	dir, victim := filepath.Join(base, "identity"), filepath.Join(base, "victim")
	must(0, os.Mkdir(dir, 0o700))
	must(0, os.WriteFile(victim, []byte("keep"), 0o600))
	must(0, os.Symlink(victim, filepath.Join(dir, "node.pem.new")))
	if err := newCluster().node(worker).Save(dir); err != nil {
		t.Fatal(err)
	}
	if got := must(os.ReadFile(victim)); string(got) != "keep" {
		t.Error("the key was written through a link")
	}
	must(0, os.Rename(filepath.Join(dir, "node.pem"), filepath.Join(base, "moved")))
	must(0, os.Symlink(filepath.Join(base, "moved"), filepath.Join(dir, "node.pem")))
	if _, err := identity.Load(dir); !contains(err, "symbolic link") {
		t.Errorf("%v", err)
	}
}

func TestLoadRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	path := filepath.Join(dir, "node.pem")
	c := newCluster()
	if err := c.node(worker).Save(dir); err != nil {
		t.Fatal(err)
	}
	good := string(must(os.ReadFile(path)))
	other := filepath.Join(t.TempDir(), "other")
	must(0, c.node(worker).Save(other))
	key, rest, _ := strings.Cut(good, "-----END PRIVATE KEY-----\n")
	otherKey, _, _ := strings.Cut(string(must(os.ReadFile(filepath.Join(other, "node.pem")))), "-----END")
	for name, x := range map[string]struct{ data, want string }{
		"empty":             {"", "part 1 of 3"},
		"no key":            {rest, "part 1 of 3"},
		"something before":  {"hello\n" + good, "part 1 of 3"},
		"something behind":  {good + "hello\n", "6 bytes too many"},
		"twice":             {good + good, "too many"},
		"another node's":    {otherKey + "-----END PRIVATE KEY-----\n" + rest, "do not belong together"},
		"a key for the key": {strings.Replace(key, "MIGH", "MIGI", 1) + "-----END PRIVATE KEY-----\n" + rest, "the key cannot be read"},
		"huge":              {strings.Repeat("x", 1<<20), "more than 65536 bytes"},
	} {
		must(0, os.WriteFile(path, []byte(x.data), 0o600))
		if _, err := identity.Load(dir); !contains(err, x.want) {
			t.Errorf("%s: %v, want %q", name, err, x.want)
		}
	}
	must(0, os.Remove(path))
	if _, err := identity.Load(dir); !errors.Is(err, identity.ErrNone) {
		t.Errorf("no file: %v", err)
	}
	must(0, syscall.Mkfifo(path, 0o600))
	if _, err := identity.Load(dir); !contains(err, "not a regular file") {
		t.Errorf("a pipe: %v", err)
	}
}

func TestSaveSaysWhatIsInTheWay(t *testing.T) {
	base := t.TempDir()
	must(0, os.WriteFile(filepath.Join(base, "file"), nil, 0o600))
	must(0, os.MkdirAll(filepath.Join(base, "taken", "node.pem", "full"), 0o700))
	must(0, os.Chmod(filepath.Join(base, "taken"), 0o700))
	creds := newCluster().node(worker)
	for dir, want := range map[string]string{"file": "is not a directory", "none/below": "no such file", "taken": "node.pem"} {
		if err := creds.Save(filepath.Join(base, dir)); !contains(err, want) || !contains(err, filepath.Join(base, dir)) {
			t.Errorf("%s: %v, want %q", dir, err, want)
		}
	}
	if _, err := os.Stat(filepath.Join(base, "taken", "node.pem.new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a save that failed left its file: %v", err)
	}
}
