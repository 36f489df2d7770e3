package main

import (
	"context"
	"fmt"
	"os"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/overlayd/overlayd/cmd/overlayd/config"
	"github.com/overlayd/overlayd/vtep"
	"github.com/overlayd/overlayd/vtep/link"
)

func main() {
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
	}))
}

// hostFacts asks the host for what the checks of the configuration need.
func hostFacts() (config.Facts, error) {
	name, err := os.Hostname()
	if err != nil {
		return config.Facts{}, fmt.Errorf("read the host name: %w", err)
	}
	return config.Facts{Hostname: name, Features: vtep.FeatureNames(), HasAddress: link.HasAddress}, nil
}
