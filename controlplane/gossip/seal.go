package gossip

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
)

// A sealed packet is
//
//	0   1  kind, 1
//	1   8  cluster
//	9   24 nonce, random
//	33  n  ciphertext
//	    16 tag
//
// The first 9 bytes are authenticated. The cipher is XAES-256-GCM (C2SP): AES-256-GCM under a key that is
// derived for each nonce, which makes random nonces safe for as many packets as a cluster will ever send.
const (
	kindPacket   byte = 1
	kindDialled  byte = 2 // a stream, from the one that opened it
	kindAccepted byte = 3 // a stream, the other direction

	headerLen      = 9 // kind and cluster
	nonceLen       = 24
	tagLen         = 16
	packetOverhead = headerLen + nonceLen + tagLen
)

var (
	errCluster   = errors.New("it is of another cluster")
	errKey       = errors.New("no key opens it")
	errMalformed = errors.New("it is malformed")
)

// A keyring is immutable. Its first key seals, all of them open.
type keyring struct {
	keys []*sealKey
}

func newKeyring(keys [][]byte) (*keyring, error) {
	if err := checkKeys(keys); err != nil {
		return nil, err
	}
	r := &keyring{}
	for i, k := range keys {
		s, err := newSealKey(k)
		if err != nil {
			return nil, fmt.Errorf("taking up gossip key %d: %w", i, err)
		}
		r.keys = append(r.keys, s)
	}
	return r, nil
}

// sealKey is a key of XAES-256-GCM.
type sealKey struct {
	block cipher.Block
	k1    [aes.BlockSize]byte // the subkey of CMAC for messages of whole blocks
}

func newSealKey(key []byte) (*sealKey, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	k := &sealKey{block: block}
	block.Encrypt(k.k1[:], k.k1[:])
	var carry byte
	for i := len(k.k1) - 1; i >= 0; i-- {
		carry, k.k1[i] = k.k1[i]>>7, k.k1[i]<<1|carry
	}
	if carry != 0 {
		k.k1[len(k.k1)-1] ^= 0x87
	}
	return k, nil
}

// derive returns the cipher for all nonces that begin with the 12 bytes of prefix.
func (k *sealKey) derive(prefix []byte) (cipher.AEAD, error) {
	var derived [keyLen]byte
	for i := range 2 {
		half := derived[i*aes.BlockSize : (i+1)*aes.BlockSize]
		half[1], half[2] = byte(i+1), 'X'
		copy(half[4:], prefix[:12])
		for j := range half {
			half[j] ^= k.k1[j]
		}
		k.block.Encrypt(half, half)
	}
	block, err := aes.NewCipher(derived[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// sealPacket returns a new packet with the content plain.
func (r *keyring) sealPacket(cluster [8]byte, plain []byte) ([]byte, error) {
	out := make([]byte, headerLen+nonceLen, packetOverhead+len(plain))
	out[0] = kindPacket
	copy(out[1:], cluster[:])
	nonce := out[headerLen:]
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	aead, err := r.keys[0].derive(nonce)
	if err != nil {
		return nil, err
	}
	return aead.Seal(out, nonce[12:], plain, out[:headerLen]), nil
}

// openPacket returns the content of a packet, never empty, in new memory.
func (r *keyring) openPacket(cluster [8]byte, packet []byte) ([]byte, error) {
	if len(packet) <= packetOverhead || packet[0] != kindPacket {
		return nil, errMalformed
	}
	if [8]byte(packet[1:headerLen]) != cluster {
		return nil, errCluster
	}
	nonce := packet[headerLen : headerLen+nonceLen]
	plain := make([]byte, 0, len(packet)-packetOverhead)
	for _, k := range r.keys {
		aead, err := k.derive(nonce)
		if err != nil {
			return nil, err
		}
		if plain, err := aead.Open(plain, nonce[12:], packet[headerLen+nonceLen:], packet[:headerLen]); err == nil {
			return plain, nil
		}
	}
	return nil, errKey
}
