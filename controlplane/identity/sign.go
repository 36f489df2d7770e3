package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
)

// batchContext stands before what is signed, so that no signature made for another purpose passes for one of a batch.
const batchContext = "overlayd batch 1\x00"

// Sign signs a statev1.Batch in wire form: ECDSA over SHA-256 of "overlayd batch 1\0" and the data, in ASN.1.
func (c *Credentials) Sign(data []byte) ([]byte, error) {
	sig, err := ecdsa.SignASN1(rand.Reader, c.key.private, batchDigest(data))
	if err != nil {
		return nil, fmt.Errorf("sign a batch of %d bytes: %w", len(data), err)
	}
	return sig, nil
}

// VerifySignature reports whether the node with this public key (PKIX, DER; see Credentials.PublicKey) signed the data.
// Whether that node may sign is for the caller to say.
func VerifySignature(publicKeyPKIX, data, sig []byte) error {
	if len(publicKeyPKIX) > maxDER || len(sig) > maxDER {
		return fmt.Errorf("verify a signature: the key has %d bytes and the signature %d, at most %d are read", len(publicKeyPKIX), len(sig), maxDER)
	}
	pub, err := x509.ParsePKIXPublicKey(publicKeyPKIX)
	if err != nil {
		return fmt.Errorf("verify a signature: the public key cannot be read: %w", err)
	}
	key, ok := pub.(*ecdsa.PublicKey)
	if !ok || key.Curve != elliptic.P256() {
		return errors.New("verify a signature: the public key is not ECDSA on P-256, as those of nodes are")
	}
	if !ecdsa.VerifyASN1(key, batchDigest(data), sig) {
		return errors.New("verify a signature: it was not made by this key over this data")
	}
	return nil
}

func batchDigest(data []byte) []byte {
	h := sha256.New()
	h.Write([]byte(batchContext))
	h.Write(data)
	return h.Sum(nil)
}
