package identity

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// ErrNone says that there are no credentials: the node is in no cluster.
var ErrNone = errors.New("this node has no credentials: it is in no cluster")

const (
	// fileName is the one file. Key and certificates are renewed by one rename, so that they always fit together.
	fileName = "node.pem"
	// tempName is what is being written. A crash may leave it; nothing reads it.
	tempName = "node.pem.new"

	directoryMode fs.FileMode = 0o700
	fileMode      fs.FileMode = 0o600
	maxFile                   = 64 << 10 // bytes; it has some 2,000
)

// What the file holds, in this order (RFC 7468).
const (
	pemKey         = "PRIVATE KEY"
	pemCertificate = "CERTIFICATE"
)

// Load reads the credentials that Save wrote. The error is ErrNone if there are none. It refuses files and directories
// that others may read.
func Load(dir string) (*Credentials, error) {
	path := filepath.Join(dir, fileName)
	data, err := readPrivate(dir, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if err != nil {
		return nil, fmt.Errorf("load the credentials of the node from %s: %w", path, err)
	}
	c, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("load the credentials of the node from %s: %w; restore the file from a backup, or remove the node from the cluster and let it join again", path, err)
	}
	return c, nil
}

// Save writes the credentials to a file in the directory, which it makes if there is none. The file is replaced as a
// whole: after a crash it is the old one or the new one. Two processes must not save to one directory at once.
func (c *Credentials) Save(dir string) error {
	if err := c.save(dir); err != nil {
		return fmt.Errorf("save the credentials of the node to %s: %w", dir, err)
	}
	return nil
}

func (c *Credentials) save(dir string) error {
	data, err := c.encode()
	if err != nil {
		return err
	}
	switch err := os.Mkdir(dir, directoryMode); {
	case err == nil:
		if err := syncDirectory(filepath.Dir(dir)); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrExist):
		return err
	}
	if err := checkDirectory(dir); err != nil {
		return err
	}
	temp := filepath.Join(dir, tempName)
	if err := writeNew(temp, data); err != nil {
		_ = os.Remove(temp)
		return err
	}
	if err := os.Rename(temp, filepath.Join(dir, fileName)); err != nil {
		_ = os.Remove(temp)
		return err
	}
	return syncDirectory(dir)
}

// writeNew writes a file that was not there, to the disk.
func writeNew(path string, data []byte) error {
	// What a crash left must not lend its mode, nor a link its target.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, fileMode)
	if err != nil {
		return err
	}
	err = f.Chmod(fileMode) // the umask may have taken something off
	if err == nil {
		_, err = f.Write(data)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// syncDirectory brings the names in a directory to the disk.
func syncDirectory(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// readPrivate reads a file of bounded size that nobody else may read.
func readPrivate(dir, path string) ([]byte, error) {
	if err := checkDirectory(dir); err != nil {
		return nil, err
	}
	// Not blocking, lest a pipe in its place holds up the start.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, syscall.ELOOP) {
		return nil, errors.New("it is a symbolic link: put the file itself there")
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, errors.New("it is not a regular file")
	case st.Mode().Perm()&^fileMode != 0:
		return nil, fmt.Errorf("its mode is %04o, so that others can read or write the key: rotate the tokens and let the node join again if they may have, then run `chmod %04o %s`",
			st.Mode().Perm(), fileMode, path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes and cannot be what was saved", maxFile)
	}
	return data, nil
}

// checkDirectory refuses a directory in which others could put a file in the place of ours.
func checkDirectory(dir string) error {
	st, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !st.IsDir():
		return fmt.Errorf("%s is not a directory", dir)
	case st.Mode().Perm()&^directoryMode != 0:
		return fmt.Errorf("the mode of the directory %s is %04o, so that others can look into it: run `chmod %04o %s`", dir, st.Mode().Perm(), directoryMode, dir)
	}
	return nil
}

// encode writes what parse reads.
func (c *Credentials) encode() ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(c.key.private)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	for _, block := range []*pem.Block{
		{Type: pemKey, Bytes: key}, {Type: pemCertificate, Bytes: c.leaf.Raw}, {Type: pemCertificate, Bytes: c.ca.Raw},
	} {
		if err := pem.Encode(&b, block); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// parse reads a file. Its errors do not repeat what is in it.
func parse(data []byte) (*Credentials, error) {
	var der [3][]byte
	for i, want := range []string{pemKey, pemCertificate, pemCertificate} {
		block, rest := pem.Decode(data)
		if block == nil || block.Type != want || len(block.Headers) != 0 || !bytes.HasPrefix(data, []byte("-----BEGIN ")) {
			return nil, fmt.Errorf("part %d of 3, which should be a %s, is missing or damaged", i+1, want)
		}
		der[i], data = block.Bytes, rest
	}
	if len(data) != 0 {
		return nil, fmt.Errorf("%d bytes too many follow its last part", len(data))
	}
	key, err := parseKey(der[0])
	if err != nil {
		return nil, err
	}
	return NewCredentials(&Key{private: key}, der[1], der[2])
}

// parseKey reads a private key. What the decoder has to say of one that is damaged is left out: it may quote it.
func parseKey(der []byte) (*ecdsa.PrivateKey, error) {
	if len(der) > maxDER {
		return nil, fmt.Errorf("the key has %d bytes, at most %d are read", len(der), maxDER)
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("the key cannot be read")
	}
	key, ok := k.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() {
		return nil, errors.New("the key is not ECDSA on P-256")
	}
	return key, nil
}
