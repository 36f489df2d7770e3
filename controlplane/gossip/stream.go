package gossip

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
)

// Each direction of a stream begins with a preamble, and goes on with records:
//
//	preamble             record
//	0   1  kind          0  4  length n of the ciphertext, big-endian
//	1   8  cluster       4  n  ciphertext, the last 16 bytes of which are the tag
//	9   16 salt, random
//
// The nonce of a record is the salt and the number of the record, 8 bytes big-endian. What is authenticated
// beside the ciphertext is the preamble, in the direction to the one that opened the stream also its salt, and
// the length. So a record cannot be moved within a stream or to another one, and an answer belongs to one
// question. A record is never empty, and it is checked before its content is read: 64 KiB is all that anybody
// without a key can make a node keep.
const (
	saltLen     = 16
	preambleLen = headerLen + saltLen
	maxRecord   = 64 << 10 // plaintext
	// maxStream is how much one direction of one stream may carry: the membership of maxNodes takes half of it.
	maxStream = 4 << 20
)

// stream is one end of a sealed connection. It belongs to one goroutine at a time.
type stream struct {
	net.Conn
	t    *transport
	done func() // gives back what the transport holds for it; safe to call again

	dialled bool
	ring    *keyring

	// Of the reading side.
	peer   [preambleLen]byte
	opener cipher.AEAD // nil until a first record has been opened
	read   uint64      // records
	total  int         // bytes of plaintext
	plain  []byte      // of the last record, not yet read
	err    error       // why reading has ended

	// Of the writing side.
	own     [preambleLen]byte
	sealer  cipher.AEAD // nil until something has been written
	written uint64
}

func newStream(c net.Conn, t *transport, dialled bool) *stream {
	return &stream{Conn: c, t: t, done: func() {}, dialled: dialled, ring: t.keys.Load()}
}

// Read returns opened bytes. After an error it returns that error again.
func (s *stream) Read(p []byte) (int, error) {
	if len(s.plain) == 0 {
		if err := s.next(); err != nil {
			return 0, err
		}
	}
	n := copy(p, s.plain)
	s.plain = s.plain[n:]
	return n, nil
}

// next reads one record.
func (s *stream) next() error {
	if s.err == nil {
		s.err = s.readRecord()
	}
	return s.err
}

func (s *stream) readRecord() error {
	if s.read == 0 {
		if _, err := io.ReadFull(s.Conn, s.peer[:]); err != nil {
			return err // io.EOF if nothing came at all
		}
		want := kindDialled
		if s.dialled {
			want = kindAccepted
		}
		if s.peer[0] != want {
			return errMalformed
		}
		if [8]byte(s.peer[1:headerLen]) != s.t.cluster {
			return errCluster
		}
	}
	var length [4]byte
	if _, err := io.ReadFull(s.Conn, length[:]); err != nil {
		return err // io.EOF: the other end is done
	}
	n := binary.BigEndian.Uint32(length[:])
	if n <= tagLen || n > maxRecord+tagLen {
		return fmt.Errorf("%w: a record of %d bytes", errMalformed, n)
	}
	if s.total += int(n) - tagLen; s.total > maxStream {
		return fmt.Errorf("%w: more than %d bytes", errMalformed, maxStream)
	}
	record := make([]byte, n)
	if _, err := io.ReadFull(s.Conn, record); err != nil {
		return unexpected(err)
	}
	nonce := nonceOf(s.peer, s.read)
	aad := s.authenticated(s.peer, s.own, s.dialled, length)
	if s.opener != nil {
		// The tag says that it failed if the record was touched: nothing is left to try.
		plain, err := s.opener.Open(record[:0], nonce, record, aad)
		if err != nil {
			return errKey
		}
		s.plain = plain
	} else if err := s.openFirst(record, nonce, aad); err != nil {
		return err
	} else if !streamStart(s.plain) {
		s.plain = nil
		return fmt.Errorf("%w: it begins with what no node sends", errMalformed)
	}
	s.read++
	s.t.count.streamBytesReceived.Add(uint64(len(length)) + uint64(n))
	return nil
}

// openFirst finds the key of the stream.
func (s *stream) openFirst(record, nonce, aad []byte) error {
	plain := make([]byte, 0, len(record)-tagLen)
	for _, k := range s.ring.keys {
		aead, err := k.derive(s.peer[headerLen:])
		if err != nil {
			return err
		}
		if opened, err := aead.Open(plain, nonce, record, aad); err == nil {
			s.opener, s.plain = aead, opened
			return nil
		}
	}
	return errKey
}

// Write seals p. A stream that was accepted can be written to only when something has been read from it.
func (s *stream) Write(p []byte) (int, error) {
	if !s.dialled && s.opener == nil {
		return 0, errors.New("answering a stream before anything was received on it")
	}
	var out []byte
	if s.sealer == nil {
		s.own[0] = kindAccepted
		if s.dialled {
			s.own[0] = kindDialled
		}
		copy(s.own[1:], s.t.cluster[:])
		if _, err := rand.Read(s.own[headerLen:]); err != nil {
			return 0, err
		}
		aead, err := s.ring.keys[0].derive(s.own[headerLen:])
		if err != nil {
			return 0, err
		}
		s.sealer = aead
		out = append(out, s.own[:]...)
	}
	for rest := p; len(rest) > 0; {
		n := min(len(rest), maxRecord)
		var length [4]byte
		binary.BigEndian.PutUint32(length[:], uint32(n+tagLen))
		out = append(out, length[:]...)
		out = s.sealer.Seal(out, nonceOf(s.own, s.written), rest[:n], s.authenticated(s.own, s.peer, !s.dialled, length))
		s.written++
		rest = rest[n:]
	}
	if _, err := s.Conn.Write(out); err != nil {
		return 0, err
	}
	s.t.count.streamBytesSent.Add(uint64(len(out)))
	return len(p), nil
}

// authenticated returns what a record vouches for beside its content: the preamble of its sender and, if it
// goes to the one that opened the stream, the salt of that one.
func (s *stream) authenticated(sender, receiver [preambleLen]byte, toOpener bool, length [4]byte) []byte {
	b := append(make([]byte, 0, preambleLen+saltLen+len(length)), sender[:]...)
	if toOpener {
		b = append(b, receiver[headerLen:]...)
	}
	return append(b, length[:]...)
}

// nonceOf returns the last 12 of the 24 bytes of the nonce; the first 12 are in the derived key.
func nonceOf(preamble [preambleLen]byte, record uint64) []byte {
	n := append(make([]byte, 0, 12), preamble[headerLen+12:]...)
	return binary.BigEndian.AppendUint64(n, record)
}

// unexpected turns an end within a record into an error that does not look like an orderly end.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// Close closes the connection.
func (s *stream) Close() error {
	s.done()
	return s.Conn.Close()
}
