package gossip

import (
	"errors"
	"sync/atomic"
)

// Stats counts since New, unless it says otherwise. Bytes are those of UDP and TCP payloads.
type Stats struct {
	PacketsSent, PacketsReceived         uint64
	BytesSent, BytesReceived             uint64 // of packets
	StreamsDialled, StreamsAccepted      uint64
	StreamBytesSent, StreamBytesReceived uint64

	Delivered  uint64 // messages given to Deliver
	Duplicates uint64 // messages that were not, because they had been lately
	Spread     uint64 // messages that were sent on
	Unknown    uint64 // messages of a type that this version does not know

	Queued       int    // messages that wait or are being repeated, now
	QueueDropped uint64 // messages that were taken out of the queue before they had been sent often enough

	RejectedCluster   uint64 // packets and streams of another cluster
	RejectedKey       uint64 // that none of the keys opens
	RejectedMalformed uint64 // that are not of this protocol, or from a member against its rules
	RejectedBusy      uint64 // streams beyond what is allowed at once
	Oversize          uint64 // packets that could not be cut to the size of the path

	Members int // alive or suspect, this node included, now
	Suspect int // now
	// Heals counts how often managers were found again after any had been missing. A manager that was
	// down and comes back looks the same from here as one that was cut off.
	Heals uint64
	// Missing is how many of the addresses that Rejoin returned last were not members.
	Missing int
	// Health is memberlist's score of how well this node keeps up: 0 is best.
	Health int
}

type counters struct {
	packetsSent, packetsReceived, bytesSent, bytesReceived                atomic.Uint64
	streamsDialled, streamsAccepted, streamBytesSent, streamBytesReceived atomic.Uint64
	delivered, duplicates, spread, unknown, queueDropped                  atomic.Uint64
	rejectedCluster, rejectedKey, rejectedMalformed, rejectedBusy         atomic.Uint64
	oversize, heals                                                       atomic.Uint64
	missing                                                               atomic.Int64
}

// reject counts why something was not taken.
func (c *counters) reject(err error) {
	switch {
	case errors.Is(err, errCluster):
		c.rejectedCluster.Add(1)
	case errors.Is(err, errKey):
		c.rejectedKey.Add(1)
	default: // also a stream on which nothing came, or not in time
		c.rejectedMalformed.Add(1)
	}
}
