package probe

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
)

// KeyLen is the length of a key in bytes.
const KeyLen = 32

const keyIDLen = 4

// publicKey seals between nodes that have no keys. Everyone can know it: it keeps damage and chance out, and
// nothing else. Against those who are not on the path the nonce protects.
const publicKey = "overlayd path probe, no secret.."

// Keys seals messages with one key and opens those that were sealed with any of several, so that keys can be
// changed at one node after another. The zero Keys has the public key alone.
type Keys struct {
	keys []key
}

type key struct {
	id     [keyIDLen]byte
	secret [KeyLen]byte
}

// NewKeys returns Keys that seal with the first of the given keys and open with all of them. Each has to be
// KeyLen bytes. Without keys, the public key is used.
func NewKeys(secrets [][]byte) (Keys, error) {
	var k Keys
	for i, s := range secrets {
		if len(s) != KeyLen {
			return Keys{}, fmt.Errorf("key %d of %d for path probes has %d bytes and not %d: derive each from a secret of the cluster", i+1, len(secrets), len(s), KeyLen)
		}
		k.keys = append(k.keys, newKey([KeyLen]byte(s)))
	}
	return k, nil
}

func newKey(secret [KeyLen]byte) key {
	sum := sha256.Sum256(secret[:])
	return key{id: [keyIDLen]byte(sum[:]), secret: secret}
}

// Public reports whether these are no secret keys but the one that everyone can know.
func (k Keys) Public() bool { return len(k.keys) == 0 }

// String says how many keys there are, and never what they are.
func (k Keys) String() string {
	if k.Public() {
		return "the public key"
	}
	return fmt.Sprintf("%d keys", len(k.keys))
}

func (k Keys) sealing() key {
	if k.Public() {
		return newKey([KeyLen]byte([]byte(publicKey)))
	}
	return k.keys[0]
}

func (k Keys) opening(id [keyIDLen]byte) (key, bool) {
	if k.Public() {
		public := k.sealing()
		return public, public.id == id
	}
	for _, key := range k.keys {
		if key.id == id {
			return key, true
		}
	}
	return key{}, false
}

// tag computes the tag of a whole message, whatever its tag field holds.
func (k key) tag(datagram []byte) [tagLen]byte {
	mac := hmac.New(sha256.New, k.secret[:])
	mac.Write(datagram[:offTag])
	mac.Write(datagram[offTag+tagLen:])
	var sum [sha256.Size]byte
	return [tagLen]byte(mac.Sum(sum[:0]))
}

// opens reports whether a whole message has the right tag, in a time that does not depend on where it differs.
func (k key) opens(datagram []byte) bool {
	tag := k.tag(datagram)
	return hmac.Equal(tag[:], datagram[offTag:offTag+tagLen])
}
