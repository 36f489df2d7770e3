package main

import (
	"context"
	"fmt"
	"os"
	"runtime/debug"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/overlayd/overlayd/cmd/overlayd/config"
	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/link"
)

// gcPercent is how much garbage may lie on the heap, in percent of what is in use there. A forwarding database that fills
// leaves behind three times what it takes: with Go's 100, so much of that stays that a million stations need twice their
// memory. Collecting more often costs little here: tables and packet memory have no pointers, and frames make no garbage.
const gcPercent = 25

func main() {
	limitGarbage()
	os.Exit(run(context.Background(), os.Args[1:], os.Stdout, os.Stderr, system{
		open: func(cfg vtep.Config) (tunnel, error) {
			v, err := vtep.New(cfg)
			if err != nil {
				return nil, err // not v: a nil *VTEP in an interface is not nil
			}
			return v, nil
		},
		facts:  hostFacts,
		notify: func(state string) error { _, err := daemon.SdNotify(false, state); return err },
		relax:  relaxMonitor,
	}))
}

// limitGarbage sets gcPercent, unless the operator has stated another in GOGC, the variable of the Go runtime.
func limitGarbage() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
}

// hostFacts asks the host for what the checks of the configuration need.
func hostFacts() (config.Facts, error) {
	name, err := os.Hostname()
	if err != nil {
		return config.Facts{}, fmt.Errorf("read the host name: %w", err)
	}
	return config.Facts{Hostname: name, Features: vtep.FeatureNames(), HasAddress: link.HasAddress}, nil
}
