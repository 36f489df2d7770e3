//go:build !amd64

package checksum

// sumLong is sumGeneric: there is no assembly for this architecture.
func sumLong(b []byte) uint64 { return sumGeneric(b) }
