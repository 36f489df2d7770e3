package checksum

import "golang.org/x/sys/cpu"

func vectorImplementations() map[string]func([]byte) uint64 {
	if !cpu.X86.HasAVX2 {
		return map[string]func([]byte) uint64{}
	}
	return map[string]func([]byte) uint64{"avx2": sumVector}
}
